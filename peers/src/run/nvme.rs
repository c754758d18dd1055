//! `nvme-…`: 4 KiB random reads by the driver of `examples/nvme` from a namespace in memory, at depths 1, 32 and 256,
//! with doorbells that are registers, a page of memory, or buffers of the driver's; theirs is pread(2) of a file in
//! memory by one thread, or io_uring at the same depth.

use anyhow::{Context, Result};

use crate::inside::{NVME_DEPTHS, Nvme, NvmeDoorbells, Task};
use crate::run::{Bench, Benchmark};
use crate::table::{Figure, Row, Unit};

macro_rules! benchmarks {
    ($($name:literal, $doorbells:ident, $depth:literal, $figure:expr;)*) => {
        /// For each kind of doorbells and depth, beside pread and beside io_uring.
        pub const BENCHMARKS: &[Benchmark] = &[$(
            Benchmark {
                name: $name,
                measure: |bench| row(bench, $name, NvmeDoorbells::$doorbells, $depth, false, $figure),
            },
            Benchmark {
                name: concat!($name, "-uring"),
                measure: |bench| {
                    row(bench, concat!($name, "-uring"), NvmeDoorbells::$doorbells, $depth, true, Figure::None)
                },
            },
        )*];
    };
}

benchmarks! {
    "nvme-registers-1", Registers, 1, Figure::None;
    "nvme-registers-32", Registers, 32, Figure::None;
    "nvme-registers-256", Registers, 256, Figure::None;
    "nvme-page-1", Page, 1, Figure::Ratio { at_least: 1.0 / 3.0 };
    "nvme-page-32", Page, 32, Figure::Ratio { at_least: 1.0 };
    "nvme-page-256", Page, 256, Figure::None;
    "nvme-buffers-1", Buffers, 1, Figure::Ratio { at_least: 1.0 / 3.0 };
    "nvme-buffers-32", Buffers, 32, Figure::Ratio { at_least: 1.0 };
    "nvme-buffers-256", Buffers, 256, Figure::None;
}

fn row(
    bench: &Bench,
    name: &str,
    doorbells: NvmeDoorbells,
    depth: usize,
    beside_uring: bool,
    figure: Figure,
) -> Result<Row> {
    let index = NVME_DEPTHS.iter().position(|known| *known == depth).context("a depth that is measured")?;
    let Nvme { pread, uring } = &bench.nvme(doorbells)?[index];
    let theirs = if beside_uring { "io_uring at the same depth" } else { "pread by one thread" };
    Ok(Row {
        name: name.into(),
        samples: if beside_uring { uring.clone() } else { pread.clone() },
        unit: Unit::Time,
        figure,
        note: format!("a 4 KiB read of 64 MiB in memory, {depth} at once; {theirs}"),
    })
}

/// Has the driver measure.
pub fn measure(bench: &Bench, doorbells: NvmeDoorbells) -> Result<Vec<Nvme>> {
    bench.runner()?.answer(match doorbells {
        NvmeDoorbells::Registers => Task::NvmeRegisters,
        NvmeDoorbells::Page => Task::NvmePage,
        NvmeDoorbells::Buffers => Task::NvmeBuffers,
    })
}
