//! `copy-shared` and `copy-shared-cold`: the I/OAT engine copies one shared mapping of an unmodified program to
//! another; beside it, the program does the same with memcpy.

use anyhow::Result;

use crate::inside::{COPY_LENGTH, Task};
use crate::run::{Bench, Benchmark};
use crate::table::{Figure, Row, Unit};

/// With all pages present.
pub const WARM: Benchmark = Benchmark { name: "copy-shared", measure: warm };
/// With what the first copy needs: mapping, and page faults.
pub const COLD: Benchmark = Benchmark { name: "copy-shared-cold", measure: cold };

fn warm(bench: &Bench) -> Result<Row> {
    Ok(Row {
        name: WARM.name.into(),
        samples: bench.runner()?.inside(Task::Copy)?,
        unit: Unit::Throughput { bytes: COPY_LENGTH as u64 },
        figure: Figure::Ratio { at_least: 0.5 },
        note: "256 MiB in chained 1 MiB descriptors, doorbell to completion; memcpy of the same buffers".into(),
    })
}

fn cold(bench: &Bench) -> Result<Row> {
    Ok(Row {
        name: COLD.name.into(),
        samples: bench.runner()?.inside(Task::CopyCold)?,
        unit: Unit::Throughput { bytes: COPY_LENGTH as u64 },
        figure: Figure::None,
        note: "IOMMU_IOAS_MAP of both buffers and the first copy; mmap of both again and the first memcpy".into(),
    })
}
