//! `nested-hit`: a port translates addresses in pages of a guest's own table, over what the guest's memory is mapped
//! to; beside it, the same pages by a table of one stage.
//!
//! What comes out of two stages is cached like any other translation, so a hit has to cost the same. Both go to the
//! same memory, in the same order.

use anyhow::Result;

use crate::layout::Layout;
use crate::ours::{Memory, Stages, TableKind, translate};
use crate::run::Benchmark;
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};

/// Pages that are mapped.
const PAGES: u32 = 1024;

/// Its one line.
pub const BENCHMARK: Benchmark = Benchmark { name: "nested-hit", measure: |_| measure() };

fn measure() -> Result<Row> {
    let layout = Layout::permuted(PAGES, 12);
    let memory = Memory::of(&layout)?;
    let (two, one) = (Stages::two(&TableKind::X86_64, &layout, &memory)?, Stages::one(&layout, &memory)?);
    let (mut two, mut one) = (two.port(), one.port());
    let sweep = layout.sweep(layout.addresses(), memory.start());
    let samples = interleave(31, |side| {
        let port = if side == Side::Ours { &mut two } else { &mut one };
        sweep.time(|iova| translate(port, iova))
    })?;
    Ok(Row {
        name: BENCHMARK.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least: 0.95 },
        note: "1024 pages of 4 KiB, random, by a guest's table of x86-64 over its parent; by a table of one stage"
            .into(),
    })
}
