//! `areas-growth`: mapping 65,536 areas of 4 KiB and unmapping them again takes no longer than n log n allows.
//!
//! "Theirs" is our own time for 1,024 areas, multiplied by what n log n makes of it. The table `cost-areas` has the
//! sizes between, and what a program under `ioasid run` pays.

use anyhow::Result;

use crate::layout::{BASE, Layout};
use crate::ours::{Memory, Space};
use crate::run::{Benchmark, time};
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};

/// Its one line.
pub const BENCHMARK: Benchmark = Benchmark { name: "areas-growth", measure: |_| measure() };

const MANY: u64 = 1 << 16;
const FEW: u64 = 1 << 10;
const PAGE: u64 = 4096;

fn measure() -> Result<Row> {
    let layout = Layout::permuted(MANY as u32, 12);
    let (memory, space) = (Memory::of(&layout)?, Space::new()?);
    let round = |areas: u64| {
        (0..areas).try_for_each(|n| space.map(BASE + n * PAGE, memory.segment(n * PAGE, PAGE)))?;
        (0..areas).try_for_each(|n| space.unmap(BASE + n * PAGE, PAGE))
    };
    let n_log_n = |n: u64| n as f64 * (n as f64).log2();
    let samples = interleave(11, |side| match side {
        Side::Ours => time(|| round(MANY)),
        Side::Theirs => {
            let rounds = MANY / FEW;
            let few = time(|| (0..rounds).try_for_each(|_| round(FEW)))? / rounds as f64;
            Ok(few * n_log_n(MANY) / n_log_n(FEW))
        }
    })?;
    Ok(Row {
        name: BENCHMARK.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least: 1.0 },
        note: "65,536 areas of 4 KiB mapped and unmapped one by one; theirs: as n log n grows from our 1,024".into(),
    })
}
