//! What a page table alone costs: a walk, a walk when nothing of the table is in the processor's caches, and a map
//! together with an unmap.

use anyhow::Result;
use iopt::format;

use super::SAMPLES;
use super::eviction::Eviction;
use crate::layout::Layout;
use crate::ours::Table;
use crate::process;
use crate::random::Random;
use crate::run::time;
use crate::table::Cell;

/// The most pages that are walked to and mapped anew.
const PAGES: usize = 4096;

/// What is in a line.
pub const COLUMNS: &[&str] =
    &["walk", "walk, caches cold", "map + unmap", "memory for a mapping", "tables for a mapping"];

/// Measures a table of `layout`, in which each page was mapped by a call of its own.
///
/// # Errors
/// Of the crate.
pub fn line(layout: &Layout) -> Result<Vec<Cell>> {
    let mut pages = Random::new(5).permutation(layout.pages());
    pages.truncate(PAGES);
    let sweep = layout.sweep(layout.addresses_in(&pages), 0);
    let mut eviction = Eviction::new();

    let before = process::resident()?;
    let table = Table::<format::X86_64>::new((layout.pages() >> 8) + 4096)?;
    layout.mappings().try_for_each(|(iova, target)| table.map_large(iova, target, layout.page_length()))?;
    let grown = process::resident()?.saturating_sub(before);

    let (mut walks, mut cold_walks, mut remaps) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        eviction.fill_caches();
        cold_walks.push(sweep.time_once(table.walker())?);
        walks.push(sweep.time(table.walker())?);
        let remap = time(|| {
            pages.iter().try_for_each(|&page| {
                let iova = layout.iova(page);
                table.unmap(iova, layout.page_length())?;
                table.map_large(iova, layout.target(iova), layout.page_length())
            })
        })?;
        remaps.push(remap / pages.len() as f64);
    }
    let each = |bytes: u64| Cell::memory(bytes as f64 / f64::from(layout.pages()));
    Ok(vec![Cell::times(walks), Cell::times(cold_walks), Cell::times(remaps), each(grown), each(table.bytes())])
}
