//! `walk-…`: a walk of a table of four levels to a leaf of 4 KiB; beside it, the same by other crates for x86-64.
//!
//! The 1,024 pages are few enough for their entries to stay in the caches, and a walk does not depend on the one
//! before. Ours loads entries atomically, as another thread may be mapping, and says what access all levels together
//! allow. Theirs must be the table's only user, and say what the leaf allows. On both sides it is checked that this is
//! to read.

use anyhow::Result;
use iopt::format;

use crate::layout::Layout;
use crate::ours::Table;
use crate::run::Benchmark;
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};
use crate::theirs::frames::Frames;
use crate::theirs::multiarch::Multiarch;
use crate::theirs::x86_64::X86;

/// Pages that are mapped.
const PAGES: u32 = 1024;
/// More than they need tables.
const TABLES: usize = 16;

/// Beside `page_table_multiarch`.
pub const MULTIARCH: Benchmark = Benchmark { name: "walk-multiarch", measure: |_| multiarch() };
/// Beside `x86_64`.
pub const X86_64: Benchmark = Benchmark { name: "walk-x86_64", measure: |_| x86_64() };

fn multiarch() -> Result<Row> {
    let mut theirs = Multiarch::new(Frames::touched(TABLES))?;
    let layout = Layout::permuted(PAGES, 12);
    layout.mappings().try_for_each(|(iova, target)| theirs.map(iova, target, layout.page_length()))?;
    let note =
        "1024 pages of 4 KiB, hot; iopt: atomic, access of all levels; page_table_multiarch's query: of the leaf";
    measure::<format::X86_64>(MULTIARCH.name, &layout, |iova| theirs.walk(iova), 1.0, note)
}

fn x86_64() -> Result<Row> {
    let mut theirs = X86::new(Frames::touched(TABLES))?;
    let layout = Layout::permuted(PAGES, 12);
    layout.mappings().try_for_each(|(iova, target)| theirs.map(iova, target, layout.page_length()))?;
    let note = "1024 pages of 4 KiB, hot; iopt: atomic, access of all levels; x86_64's translate: of the leaf";
    measure::<format::X86_64>(X86_64.name, &layout, |iova| theirs.walk(iova), 0.77, note)
}

fn measure<F: iopt::Format>(
    name: &str,
    layout: &Layout,
    mut theirs: impl FnMut(u64) -> Option<u64>,
    at_least: f64,
    note: &str,
) -> Result<Row> {
    let ours = Table::<F>::new(TABLES as u32)?;
    layout.mappings().try_for_each(|(iova, target)| ours.map_small(iova, target, layout.page_length()))?;
    let sweep = layout.sweep(layout.addresses(), 0);
    let samples = interleave(31, |side| match side {
        Side::Ours => sweep.time(ours.walker()),
        Side::Theirs => sweep.time(&mut theirs),
    })?;
    Ok(Row { name: name.into(), samples, unit: Unit::Time, figure: Figure::Ratio { at_least }, note: note.into() })
}
