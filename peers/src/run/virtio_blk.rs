//! `virtio-blk`: the example's device over a port behind the IOMMU; beside it, the same code without translation.
//!
//! A sample is the time of one request of 4 KiB, averaged over thousands that are all verified. Each page of guest
//! memory needs a translation of its own; see `examples/virtio_blk` for what is measured and what is not.

use anyhow::Result;
use ioasid_example_virtio_blk::machine::{Guest, LARGE, Path, SAMPLE};

use crate::run::Benchmark;
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};

const PAIRS: usize = 51;

/// Requests of 4 KiB.
pub const BENCHMARK: Benchmark = Benchmark { name: "virtio-blk", measure: |_| measure() };

fn measure() -> Result<Row> {
    let mut machine = Guest::new(LARGE)?;
    let samples = interleave(PAIRS, |side| {
        let path = match side {
            Side::Ours => Path::Translated,
            Side::Theirs => Path::Direct,
        };
        Ok::<_, anyhow::Error>(machine.sample(path)?.as_secs_f64() * 1e9 / SAMPLE as f64)
    })?;
    Ok(Row {
        name: BENCHMARK.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least: 0.9 },
        note: "a virtio-blk request of 4 KiB through a port; the same device over guest memory without an IOMMU".into(),
    })
}
