//! See the library.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pages = std::env::args().nth(1).map_or(Ok(4096), |text| text.parse())?;
    ioasid_example_dsa::run(pages)
}
