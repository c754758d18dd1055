//! `translate-list-…`: a port translates addresses in 2,048 pages; beside it, the sorted list that DPDK's vhost has for
//! an IOTLB (see [`crate::theirs::sorted_list`]), with as many entries, and with one, which is its best case.

use anyhow::Result;

use crate::layout::Layout;
use crate::ours::{self, Memory, Space};
use crate::run::Benchmark;
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};
use crate::theirs::sorted_list::{BURST, SortedList};

/// The most that DPDK's vhost keeps.
const PAGES: u32 = 2048;
/// Where their memory begins.
const THEIR_MEMORY: u64 = 1 << 40;

/// Both have all pages.
pub const ENTRIES_2K: Benchmark = Benchmark {
    name: "translate-list-2k",
    measure: |_| measure(ENTRIES_2K.name, PAGES, Figure::Ratio { at_least: 150.0 }),
};
/// Ours has all pages, theirs has one. Ours may take 1.5 times as long.
pub const ENTRY: Benchmark =
    Benchmark { name: "translate-list-1", measure: |_| measure(ENTRY.name, 1, Figure::Ratio { at_least: 1.0 / 1.5 }) };

fn measure(name: &str, entries: u32, figure: Figure) -> Result<Row> {
    let ours = Layout::permuted(PAGES, 12);
    let memory = Memory::of(&ours)?;
    let space = Space::over(&ours, &memory)?;
    let mut port = space.port();
    let our_sweep = ours.sweep(ours.addresses(), memory.start());

    let theirs = Layout::permuted(entries, 12);
    let mappings = theirs.mappings().map(|(iova, target)| (iova, THEIR_MEMORY + target));
    let list = SortedList::of(mappings, theirs.page_length());
    let their_sweep = theirs.sweep(theirs.addresses(), THEIR_MEMORY);

    let samples = interleave(21, |side| match side {
        Side::Ours => our_sweep.time_bursts(BURST, |iovas| ours::translate_burst(&mut port, iovas)),
        Side::Theirs => their_sweep.time_bursts(BURST, |iovas| {
            let reading = list.read();
            iovas.iter().try_fold(0u64, |sum, &iova| Some(sum.wrapping_add(reading.find(iova, 8, false)?)))
        }),
    })?;
    Ok(Row {
        name: name.into(),
        samples,
        unit: Unit::Time,
        figure,
        note: format!(
            "{PAGES} pages of 4 KiB, random, one pass of the gate for {BURST}; DPDK's list written afresh, entries: \
             {entries}, locked once for {BURST}"
        ),
    })
}
