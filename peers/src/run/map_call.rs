//! `map-one`, `map-256` and their unmaps: what a call costs for one page of 4 KiB, and for 256 of them.
//!
//! There is no peer in this run. What stands in the notes was published with the patches of Linux's generic_pt, for the
//! second stage of VT-d, which is the format here, too; it was measured on another machine.

use anyhow::{Result, ensure};
use iopt::format::VtdSecondStage;

use crate::layout::BASE;
use crate::ours::Table;
use crate::run::{Benchmark, time};
use crate::statistics::alone;
use crate::table::{Figure, Row, Unit};

/// Calls of a sample.
const CALLS: u64 = 1 << 14;
/// The most pages that are mapped at a time, so that their tables stay in the caches.
const MOST_PAGES: u64 = 1 << 18;
/// One page further in its 2 MiB than the IOVA, so that nothing larger fits.
const PA: u64 = (1 << 40) + 0x1000;

/// Maps one page.
pub const MAP_ONE: Benchmark = Benchmark { name: "map-one", measure: |_| measure(MAP_ONE.name, 1, true, 53) };
/// Maps 256 pages.
pub const MAP_256: Benchmark = Benchmark { name: "map-256", measure: |_| measure(MAP_256.name, 256, true, 384) };
/// Unmaps one page.
pub const UNMAP_ONE: Benchmark = Benchmark { name: "unmap-one", measure: |_| measure(UNMAP_ONE.name, 1, false, 67) };
/// Unmaps 256 pages.
pub const UNMAP_256: Benchmark = Benchmark { name: "unmap-256", measure: |_| measure(UNMAP_256.name, 256, false, 216) };

fn measure(name: &str, pages: u64, is_map: bool, published_ns: u32) -> Result<Row> {
    let length = pages << 12;
    // Each has a range of its own, until these are used again.
    let calls = CALLS.min(MOST_PAGES / pages);
    let range = |call: u64| (BASE + call * length, PA + call * length);
    let table = Table::<VtdSecondStage>::new((calls * pages / 256) as u32)?;
    let samples = alone(31, || {
        let mut taken = 0.0;
        for _ in 0..CALLS / calls {
            let map = time(|| (0..calls).try_for_each(|call| table.map_small(range(call).0, range(call).1, length)))?;
            for call in 0..calls {
                let (iova, pa) = range(call);
                ensure!(table.walk(iova + length - 1) == Some(pa + length - 1), "IOVA {iova:#x} is not mapped");
            }
            let unmap = time(|| (0..calls).try_for_each(|call| table.unmap(range(call).0, length)))?;
            ensure!((0..calls).all(|call| table.walk(range(call).0).is_none()), "something is still mapped");
            taken += if is_map { map } else { unmap };
        }
        Ok::<_, anyhow::Error>(taken / CALLS as f64)
    })?;
    Ok(Row {
        name: name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::None,
        note: format!(
            "{pages} × 4 KiB in a call, VT-d second stage, warm arena; Linux's generic_pt, published: {published_ns} ns"
        ),
    })
}
