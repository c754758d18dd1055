//! `cost-areas`: what an area costs that is mapped and unmapped by calls of its own, against how many there are.
//!
//! Nothing may take time that grows faster than n log n: for each area, no faster than the logarithm of how many there
//! are. The last column says what that would come to, from the first line's "map + unmap" on.

use anyhow::{Result, ensure};
use ioasid::Placement;

use super::{SAMPLES, Table, short};
use crate::inside::{AREA_COUNTS, Growth, Task};
use crate::layout::{BASE, Layout};
use crate::ours::{Memory, Space};
use crate::run::time;
use crate::table::{Cell, Costs, Line};

/// Its one line.
pub const TABLE: Table = Table {
    name: "cost-areas",
    measure: |bench| {
        let inside: Vec<Growth> = bench.runner()?.answer(Task::Areas)?;
        let mut lines = Vec::new();
        let mut first = None;
        for (count, growth) in AREA_COUNTS.into_iter().zip(inside) {
            let library = library(count)?;
            let both = sums(&library.map, &library.unmap);
            let log = f64::from(count).log2();
            let first = first.get_or_insert_with(|| (both.clone(), log));
            let allowed = first.0.iter().map(|time| time * log / first.1).collect();
            let through = sums(&growth.map, &growth.unmap);
            let cells = [library.map, library.anywhere, library.unmap, library.at_once, through, both, allowed];
            lines.push(Line { label: short(count), cells: cells.map(Cell::times).into() });
        }
        Ok(Costs {
            name: TABLE.name,
            by: "areas",
            columns: &[
                "map",
                "map anywhere",
                "unmap",
                "unmap all at once",
                "map + unmap through /dev/iommu",
                "map + unmap",
                "as n log n",
            ],
            lines,
            note: "for each area of 4 KiB, a device attached; the last column is what n log n makes of the first line"
                .into(),
        })
    },
};

fn sums(one: &[f64], other: &[f64]) -> Vec<f64> {
    one.iter().zip(other).map(|(one, other)| one + other).collect()
}

#[derive(Default)]
struct Library {
    map: Vec<f64>,
    anywhere: Vec<f64>,
    unmap: Vec<f64>,
    at_once: Vec<f64>,
}

/// Samples of calls of the library, in nanoseconds for each area.
fn library(count: u32) -> Result<Library> {
    const PAGE: u64 = 4096;
    let layout = Layout::permuted(count, 12);
    let (memory, space) = (Memory::of(&layout)?, Space::new()?);
    let each = |work: &dyn Fn(u64) -> Result<()>| {
        Ok::<_, anyhow::Error>(time(|| (0..u64::from(count)).try_for_each(work))? / f64::from(count))
    };
    let mut all = Library::default();
    for round in 0..=SAMPLES {
        let map = each(&|n| space.map(BASE + n * PAGE, memory.segment(n * PAGE, PAGE)))?;
        let unmap = each(&|n| space.unmap(BASE + n * PAGE, PAGE))?;
        let anywhere = each(&|n| {
            let placement = Placement::Automatic { like: PAGE };
            space.map_placed(placement, memory.segment(n * PAGE, PAGE))
        })?;
        let (areas, bytes) = space.ioas().size();
        ensure!((areas as u32, bytes) == (count, u64::from(count) * PAGE), "{areas} areas are mapped");
        let at_once = time(|| space.unmap_all())? / f64::from(count);
        if round > 0 {
            for (samples, taken) in [
                (&mut all.map, map),
                (&mut all.unmap, unmap),
                (&mut all.anywhere, anywhere),
                (&mut all.at_once, at_once),
            ] {
                samples.push(taken);
            }
        }
    }
    Ok(all)
}
