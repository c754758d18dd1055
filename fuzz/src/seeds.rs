//! Writes what the fuzzers begin with to `corpus/requests` and `corpus/vfio`: every request that the tests know to
//! succeed, after what has to be there for it; and every way to an open device.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "files of a test program, of which this needs a part")]

#[path = "../../crates/serve/tests/requests/errno.rs"]
mod errno;
#[path = "../../crates/serve/tests/requests/extra.rs"]
mod extra;
#[path = "../../crates/serve/tests/requests/failing.rs"]
mod failing;
#[path = "../../crates/serve/tests/requests/program.rs"]
mod program;
#[path = "../../crates/serve/tests/requests/sequence.rs"]
mod sequence;
#[path = "../../crates/serve/tests/requests/setup.rs"]
mod setup;
#[path = "../../crates/serve/tests/requests/vfio_sequence.rs"]
mod vfio_sequence;

use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = |name| Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let sequences = vfio_sequence::seeds();
    std::fs::create_dir_all(folder("vfio"))?;
    for (name, bytes) in &sequences {
        std::fs::write(folder("vfio").join(name), bytes)?;
    }
    println!("{} inputs in {}", sequences.len(), folder("vfio").display());
    let folder = folder("requests");
    std::fs::create_dir_all(&folder)?;
    let cases = failing::cases();
    for case in &cases {
        let setup = setup::Setup::new();
        let (number, bytes) = (case.make)(&setup);
        // What a fuzzer begins with may fail, too.
        let _ = setup.raw(number, &bytes);
        let name = case.name.to_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        std::fs::write(folder.join(name), setup.log.take())?;
    }
    println!("{} inputs in {}", cases.len(), folder.display());
    Ok(())
}
