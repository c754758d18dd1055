//! The program; see the library of the same name.

use anyhow::Result;
use clap::Parser;
use ioasid_example_virtio_blk::device::QUEUE_SIZE;
use ioasid_example_virtio_blk::driver::BUFFER;
use ioasid_example_virtio_blk::machine::{BATCH, Guest, LARGE, SMALL};
use ioasid_example_virtio_blk::measure::Report;

/// A virtio-blk device over plain guest memory and over a port behind the IOMMU, measured in turn.
#[derive(Parser)]
#[command(name = "ioasid-example-virtio-blk", version)]
struct Cli {
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let Cli { json } = Cli::parse();
    let reports = [Report::of_disk(LARGE)?, Report::of_disk(SMALL)?];
    let refused = Guest::new(SMALL)?.buggy_driver()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
        return Ok(());
    }
    println!("virtio-blk, requests of {BUFFER} bytes, queue of {QUEUE_SIZE}, {BATCH} requests at a time\n");
    for report in &reports {
        println!("{report}");
    }
    let [Report { pairs, requests, .. }, _] = &reports;
    println!("Median (smallest…largest) of {pairs} pairs, taken in turn; {requests} requests each, all verified.");
    println!("\na buffer that the driver forgot to map\n  {refused}\n  memory as before, and the device goes on");
    Ok(())
}
