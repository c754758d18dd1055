//! `nested-walk`: what a nested table costs, in each format that a guest's can have.
//!
//! - All cold: a port knows nothing, as after its device was attached. It looks the attachment up, and has the parent
//!   translate the address of each of the guest's tables, and in the end of the page, by walks of the parent's table.
//! - Parent cached: it knows these, as after the guest has invalidated its own pages, and reads the guest's tables.
//! - A hit: it knows where the page is.
//!
//! One stage is the format that address spaces are mirrored in, VT-d's second stage, whatever the guest's is. Each page
//! is mapped by a call there, and so is memory that is looked up by itself when it is cold, while the parent has all of
//! the guest's memory in one piece. Cold things are measured one on each of some ports, as the clock would cost as much
//! as one of them.

use anyhow::{Context, Result, ensure};
use ioasid::IovaRange;

use super::{SAMPLES, Table};
use crate::layout::Layout;
use crate::ours::{Memory, Stages, TableKind, translate};
use crate::random::Random;
use crate::run::time;
use crate::table::{Cell, Costs, Line};

/// Pages that are mapped.
const PAGES: u32 = 1024;
/// Ports that are asked in turn, each for a page of its own, before they forget again.
const PORTS: usize = 16;

/// Its one line.
pub const TABLE: Table = Table {
    name: "nested-walk",
    measure: |_| {
        Ok(Costs {
            name: TABLE.name,
            by: "guest's table",
            columns: &["all cold", "parent cached", "hit", "one stage: all cold", "one stage: hit"],
            lines: TableKind::ALL.iter().map(line).collect::<Result<_>>()?,
            note:
                "a translation by a guest's table over its parent, 1024 of its smallest pages; by a table of one stage"
                    .into(),
        })
    },
};

fn line(tables: &TableKind) -> Result<Line> {
    let layout = Layout::permuted(PAGES, tables.shift);
    let memory = Memory::of(&layout)?;
    let (two, one) = (Stages::two(tables, &layout, &memory)?, Stages::one(&layout, &memory)?);
    let pages = Random::new(7).permutation(PAGES);
    let once = layout.addresses_in(&pages);
    let targets: Vec<_> = once.iter().map(|&iova| (iova, memory.start() + layout.target(iova))).collect();
    let hits = layout.sweep(layout.addresses(), memory.start());
    let each_once = layout.sweep(once.clone(), memory.start());
    let all = IovaRange::new(layout.iova(0), u64::from(PAGES) * layout.page_length()).context("the range wraps")?;

    let mut times: [Vec<f64>; 5] = Default::default();
    for round in 0..=SAMPLES {
        let (mut in_two, mut in_one) = (two.port(), one.port());
        let hit = hits.time(|iova| translate(&mut in_two, iova))?;
        two.forget_guests(all)?;
        // That it has to forget, it notices now.
        translate(&mut in_two, once[0]).context("the first page was not translated")?;
        let parent_cached = each_once.time_once(|iova| translate(&mut in_two, iova))?;
        let hit_in_one = hits.time(|iova| translate(&mut in_one, iova))?;
        let sample = [cold(&two, &targets)?, parent_cached, hit, cold(&one, &targets)?, hit_in_one];
        if round > 0 {
            times.iter_mut().zip(sample).for_each(|(times, taken)| times.push(taken));
        }
    }
    Ok(Line { label: tables.name.into(), cells: times.map(Cell::times).into() })
}

/// What a translation takes that a port knows nothing for; `targets` has addresses, and what they lead to.
fn cold(stages: &Stages, targets: &[(u64, u64)]) -> Result<f64> {
    // New ones, whose caches have not grown.
    let mut ports: Vec<_> = (0..PORTS).map(|_| stages.port()).collect();
    let mut pass = |targets: &[(u64, u64)]| {
        stages.forget_all()?;
        time(|| {
            for (port, &(iova, target)) in ports.iter_mut().zip(targets) {
                ensure!(translate(port, iova) == Some(target), "IOVA {iova:#x} was translated to something else");
            }
            Ok(())
        })
    };
    // Their first access has more to do.
    pass(targets)?;
    let taken: f64 = targets.chunks(PORTS).map(pass).sum::<Result<_>>()?;
    Ok(taken / targets.len() as f64)
}
