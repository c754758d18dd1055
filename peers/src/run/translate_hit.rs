//! `translate-hit-…`: a port translates addresses in pages that were mapped one by one; beside it, `vm-memory`'s
//! `Iotlb`, which is a B-tree of ranges.
//!
//! Ours is all that a device pays: the port passes its gate, so that an unmap can wait for it, and looks into its
//! IOTLB, which may evict. Theirs is the look-up alone, in an `Iotlb` that holds everything and that no lock protects;
//! what `vm-memory` needs beside it to be safe against an unmap is not counted.

use anyhow::Result;
use vm_memory::{GuestAddress, Iotlb, Permissions};

use crate::layout::Layout;
use crate::ours::{self, Memory, Space};
use crate::run::Benchmark;
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};

/// As many as QEMU's IOTLB holds.
pub const PAGES_1K: Benchmark = Benchmark {
    name: "translate-hit-1k",
    measure: |_| measure(PAGES_1K.name, 1 << 10, 31, Figure::Ratio { at_least: 15.0 }),
};
/// The buffers of a large network device.
pub const PAGES_64K: Benchmark = Benchmark {
    name: "translate-hit-64k",
    measure: |_| measure(PAGES_64K.name, 1 << 16, 21, Figure::Ratio { at_least: 30.0 }),
};
/// More than any cache of translations holds.
pub const PAGES_1M: Benchmark =
    Benchmark { name: "translate-hit-1m", measure: |_| measure(PAGES_1M.name, 1 << 20, 11, Figure::None) };

/// Where their memory begins.
const THEIR_MEMORY: u64 = 1 << 40;

fn measure(name: &str, pages: u32, pairs: usize, figure: Figure) -> Result<Row> {
    let layout = Layout::permuted(pages, 12);
    let addresses = layout.addresses();
    let memory = Memory::of(&layout)?;
    let space = Space::over(&layout, &memory)?;
    let mut port = space.port();
    let theirs = iotlb(&layout)?;

    let our_sweep = layout.sweep(addresses.clone(), memory.start());
    let their_sweep = layout.sweep(addresses, THEIR_MEMORY);
    let samples = interleave(pairs, |side| match side {
        Side::Ours => our_sweep.time(|iova| ours::translate(&mut port, iova)),
        Side::Theirs => their_sweep.time(|iova| {
            let mut found = Iotlb::lookup(&theirs, GuestAddress(iova), 8, Permissions::Read).ok()?;
            Some(found.next()?.base.0)
        }),
    })?;
    Ok(Row {
        name: name.into(),
        samples,
        unit: Unit::Time,
        figure,
        note: format!(
            "{pages} pages of 4 KiB, random; ours passes the gate; vm-memory's Iotlb::lookup, without a lock"
        ),
    })
}

fn iotlb(layout: &Layout) -> Result<Iotlb> {
    let mut iotlb = Iotlb::new();
    for (iova, target) in layout.mappings() {
        let length = layout.page_length() as usize;
        iotlb.set_mapping(GuestAddress(iova), GuestAddress(THEIR_MEMORY + target), length, Permissions::ReadWrite)?;
    }
    Ok(iotlb)
}
