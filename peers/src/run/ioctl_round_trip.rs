//! `ioctl-round-trip`: a request that is answered by another process; beside it, a system call that the kernel answers.

use anyhow::Result;

use crate::inside::Task;
use crate::run::{Bench, Benchmark};
use crate::table::{Figure, Row, Unit};

/// Its one line.
pub const BENCHMARK: Benchmark = Benchmark { name: "ioctl-round-trip", measure };

fn measure(bench: &Bench) -> Result<Row> {
    Ok(Row {
        name: BENCHMARK.name.into(),
        samples: bench.runner()?.inside(Task::Ioctl)?,
        unit: Unit::Time,
        figure: Figure::None,
        note: "IOMMU_IOAS_ALLOC and IOMMU_DESTROY, two calls; one getppid, under the runner too".into(),
    })
}
