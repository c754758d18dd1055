//! `xproc-…`: a device in a process of its own, which walks page tables that are shared with it.
//!
//! - `map`: a page is mapped, the device sees it, and it is unmapped, which the device acknowledges; theirs is a
//!   DMA_MAP with a file and a DMA_UNMAP by the crate vfio_user, whose server answers when its back end has seen them.
//! - `dma-…`: the device reads by a cached translation; theirs is process_vm_readv by the same process.
//! - `growth`: one map at 1,000,000 mappings; theirs is our own at 1,000.

use anyhow::{Result, bail};
use ioasid::memory::Segment;

use crate::ours::apart::Apart;
use crate::process::{pin, processors};
use crate::run::{Benchmark, time};
use crate::statistics::{Pairs, Side, interleave};
use crate::table::{Figure, Row, Unit};
use crate::theirs::vfio_user;

/// Maps and unmaps of a sample.
const MAPS: u64 = 500;
const FEW: u64 = 1_000;
const MANY: u64 = 1_000_000;

/// A map and an unmap.
pub const MAP: Benchmark = Benchmark { name: "xproc-map", measure: |_| map() };
/// 4 KiB.
pub const DMA_PAGE: Benchmark = Benchmark { name: "xproc-dma-4k", measure: |_| dma("xproc-dma-4k", 4096, 15.0) };
/// 64 KiB.
pub const DMA_PAGES_16: Benchmark = Benchmark { name: "xproc-dma-64k", measure: |_| dma("xproc-dma-64k", 65536, 5.0) };
/// A map among few and among many.
pub const GROWTH: Benchmark = Benchmark { name: "xproc-growth", measure: |_| growth() };

/// Measures with a device on a processor of its own.
fn beside(measure: impl FnOnce(&mut Apart, usize) -> Result<Pairs> + Send) -> Result<Pairs> {
    let processors = processors()?;
    let [own, device, ..] = processors[..] else { bail!("two processors are wanted: {processors:?} are here") };
    let mut apart = Apart::start(device)?;
    // In a thread, as the others go where they like.
    std::thread::scope(|scope| {
        let measured = scope.spawn(|| {
            pin(own)?;
            measure(&mut apart, device)
        });
        measured.join().unwrap_or_else(|_| bail!("the thread that measures panicked"))
    })
}

fn map() -> Result<Row> {
    let samples = beside(|apart, device| {
        let mut theirs = vfio_user::Device::start(device)?;
        let (_, file) = Segment::memfd(MAPS * 4096)?;
        let mut number = 0;
        interleave(21, |side| {
            // A device that polls would hold up the other side's server, which has the same processor.
            if side == Side::Ours {
                apart.watch()?;
            }
            let taken = time(|| {
                (0..MAPS).try_for_each(|map| match side {
                    Side::Ours => {
                        number += 1;
                        apart.map_and_unmap(number)
                    }
                    Side::Theirs => theirs.map_and_unmap(&file, map * 4096),
                })
            })?;
            if side == Side::Ours {
                apart.stop()?;
            }
            anyhow::Ok(taken / MAPS as f64)
        })
    })?;
    Ok(Row {
        name: MAP.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least: 20.0 },
        note: "a page mapped, seen by a device process, and unmapped; DMA_MAP and DMA_UNMAP by the crate vfio_user"
            .into(),
    })
}

fn dma(name: &str, bytes: u64, at_least: f64) -> Result<Row> {
    Ok(Row {
        name: name.into(),
        samples: beside(|apart, _| apart.reads(bytes))?,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least },
        note: format!("a read of {} KiB by a device process; process_vm_readv by it", bytes >> 10),
    })
}

fn growth() -> Result<Row> {
    let samples =
        beside(|apart, _| interleave(11, |side| apart.growth(if side == Side::Ours { MANY } else { FEW }, FEW / 2)))?;
    Ok(Row {
        name: GROWTH.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least: 0.5 },
        note: "a map for a device process, the last 500 of 1,000,000; theirs: our own, the last of 1,000".into(),
    })
}
