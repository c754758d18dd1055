//! `remote-read`: a read of a register of our server by our client; theirs is one by the crate `vfio_user`, of its
//! server by its client. Each pair is on two processors.

use anyhow::{Result, bail};

use crate::ours::remote;
use crate::process::{pin, processors};
use crate::run::{Bench, Benchmark, time};
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};
use crate::theirs::vfio_user;

/// Reads of a sample.
const READS: u32 = 2000;

/// One after the other.
pub const READ: Benchmark = Benchmark { name: "remote-read", measure: read };

fn read(_: &Bench) -> Result<Row> {
    let processors = processors()?;
    let [client, server, ..] = processors[..] else { bail!("two processors are wanted: {processors:?} are here") };
    let ours = remote::Device::start(server)?;
    let mut theirs = vfio_user::Device::start(server)?;
    // In a thread, as the others go where they like.
    let samples = std::thread::scope(|scope| {
        let measured = scope.spawn(|| {
            pin(client)?;
            interleave(31, |side| {
                let elapsed =
                    time(|| (0..READS).try_for_each(|_| if side == Side::Ours { ours.read() } else { theirs.read() }))?;
                anyhow::Ok(elapsed / f64::from(READS))
            })
        });
        measured.join().unwrap_or_else(|_| bail!("the thread that measures panicked"))
    })?;
    Ok(Row {
        name: READ.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least: 1.0 },
        note: "a 4-byte read over vfio-user's socket, in a loop; the same by the crate vfio_user".into(),
    })
}
