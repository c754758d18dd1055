//! `ioctl-requests`: the commonest requests of iommufd, one by one.
//!
//! A program under `ioasid run` makes them on `/dev/iommu`, where another process answers; a VMM makes them with a call
//! of the library; and a system call that the kernel answers at once is what the program's request cannot be faster
//! than.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use ioasid::{Access, Iova};

use super::Table;
use crate::inside::{REQUESTS, Requests, Task};
use crate::layout::{BASE, Layout};
use crate::ours::{Memory, Space};
use crate::run::time;
use crate::table::{Cell, Costs, Line};

/// Its one line.
pub const TABLE: Table = Table {
    name: "ioctl-requests",
    measure: |bench| {
        let inside: Requests = bench.runner()?.answer(Task::Requests)?;
        let library = library()?;
        let lines = REQUESTS.map(|name| {
            let cell = |samples: &BTreeMap<String, Vec<f64>>| {
                samples.get(name).cloned().map(Cell::times).with_context(|| format!("{name} was not measured"))
            };
            let cells = vec![cell(&inside.requests)?, cell(&library)?, Cell::times(inside.system_call.clone())];
            Ok(Line { label: name.into(), cells })
        });
        Ok(Costs {
            name: TABLE.name,
            by: "request",
            columns: &["through /dev/iommu", "in the library", "a system call"],
            lines: lines.into_iter().collect::<Result<_>>()?,
            note: "a device attached; maps, copies and unmaps of 4 KiB; the system call is a getppid, under the runner too"
                .into(),
        })
    },
};

const SAMPLES: usize = 21;
/// Requests of a batch.
const BATCH: u32 = 200;
const PAGE: u64 = 4096;

/// The same requests as calls. Of both kinds of memory a library knows only one: it is given where the bytes are.
fn library() -> Result<BTreeMap<String, Vec<f64>>> {
    let layout = Layout::permuted(BATCH, 12);
    let (memory, space) = (Memory::of(&layout)?, Space::new()?);
    let (ioas, context) = (space.ioas(), space.context());
    let [iova, copies] = [BASE, BASE + (1 << 30)];
    let mut all = BTreeMap::<String, Vec<f64>>::new();
    for round in 0..=SAMPLES {
        let mut note = |name: &str, work: &mut dyn FnMut(u64) -> Result<()>| {
            let taken = time(|| (0..u64::from(BATCH)).try_for_each(work))? / f64::from(BATCH);
            if round > 0 {
                all.entry(name.into()).or_default().push(taken);
            }
            anyhow::Ok(())
        };
        let [alloc, destroy, ranges, map_shared, map_private, copy, unmap] = REQUESTS;
        let mut spaces = Vec::new();
        note(alloc, &mut |_| {
            spaces.push(context.ioas_alloc().context("no ids")?.id().0.get());
            Ok(())
        })?;
        note(destroy, &mut |_| spaces.pop().map_or(Ok(()), |id| Ok(context.destroy(id)?)))?;
        note(ranges, &mut |_| {
            let (ranges, alignment) = ioas.iova_ranges();
            ensure!(alignment == PAGE && ranges.iter().next().is_some());
            Ok(())
        })?;
        for name in [map_private, map_shared] {
            if name == map_shared {
                space.unmap(iova, u64::from(BATCH) * PAGE)?;
            }
            note(name, &mut |n| space.map(iova + n * PAGE, memory.segment(n * PAGE, PAGE)))?;
        }
        note(copy, &mut |n| {
            let (from, to) = (Iova(iova + n * PAGE), Iova(copies + n * PAGE));
            ioas.copy(Some(to), ioas, from, PAGE, Access::all())?;
            Ok(())
        })?;
        note(unmap, &mut |n| space.unmap(copies + n * PAGE, PAGE))?;
        space.unmap(iova, u64::from(BATCH) * PAGE)?;
    }
    ensure!(ioas.areas().is_empty(), "something is still mapped");
    Ok(all)
}
