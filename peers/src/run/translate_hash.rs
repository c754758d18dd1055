//! `translate-hash-1k`: a port translates addresses in 1,000 pages; beside it, QEMU's IOTLB of an emulated VT-d (see
//! [`crate::theirs::locked_hash`]), which just holds them.
//!
//! Theirs is the look-up alone. In QEMU, an access comes to it through the dispatch of memory regions.

use anyhow::Result;

use crate::layout::Layout;
use crate::ours::{self, Memory, Space};
use crate::run::Benchmark;
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};
use crate::theirs::locked_hash::LockedHash;

/// Pages that are mapped.
const PAGES: u32 = 1000;
/// Where their memory begins.
const THEIR_MEMORY: u64 = 1 << 40;
/// Requester id of their device.
const SOURCE: u16 = 0x0008;

/// Its one line.
pub const BENCHMARK: Benchmark = Benchmark { name: "translate-hash-1k", measure: |_| measure() };

fn measure() -> Result<Row> {
    let layout = Layout::permuted(PAGES, 12);
    let addresses = layout.addresses();
    let memory = Memory::of(&layout)?;
    let space = Space::over(&layout, &memory)?;
    let mut port = space.port();
    let theirs = LockedHash::default();
    layout.mappings().for_each(|(iova, target)| theirs.insert(SOURCE, iova, THEIR_MEMORY + target));

    let our_sweep = layout.sweep(addresses.clone(), memory.start());
    let their_sweep = layout.sweep(addresses, THEIR_MEMORY);
    let samples = interleave(31, |side| match side {
        Side::Ours => our_sweep.time(|iova| ours::translate(&mut port, iova)),
        Side::Theirs => their_sweep.time(|iova| theirs.find(SOURCE, iova, false)),
    })?;
    Ok(Row {
        name: BENCHMARK.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::None,
        note: "1000 pages of 4 KiB, random, ours passes the gate; QEMU's locked hash table written afresh".into(),
    })
}
