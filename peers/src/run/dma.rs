//! `dma-…`: `DmaPort::copy` in the process that has the memory; beside it, memcpy of the same bytes.
//!
//! Both go over and over the same bytes, which stay in the caches as far as they fit. Each side has its own mapping of
//! them, at the same offset in its page. The memory is too small for large leaves, so that the port needs a translation
//! for every 4 KiB: this is the hard case.

use anyhow::Result;
use ioasid::Iova;
use ioasid::memory::Segment;

use crate::memory::Shared;
use crate::ours::Space;
use crate::run::{Benchmark, time};
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};

const PAIRS: usize = 51;
/// Bytes that one sample moves, however many copies that takes.
const SAMPLE: usize = 256 << 20;
/// Where the memory is in the address space.
const BASE: u64 = 0x4000_0000;

/// One page.
pub const PAGE: Benchmark =
    Benchmark { name: "dma-4k", measure: |_| measure(PAGE.name, 4 << 10, Figure::Ratio { at_least: 0.80 }) };
/// Sixteen pages, each with a translation of its own.
pub const PAGES_16: Benchmark =
    Benchmark { name: "dma-64k", measure: |_| measure(PAGES_16.name, 64 << 10, Figure::Ratio { at_least: 0.97 }) };
/// Two times 256 pages, more than an IOTLB need hold.
pub const MEGABYTE: Benchmark =
    Benchmark { name: "dma-1m", measure: |_| measure(MEGABYTE.name, 1 << 20, Figure::None) };

fn measure(name: &str, length: usize, figure: Figure) -> Result<Row> {
    let (memory, file) = Segment::memfd(2 * length as u64)?;
    let (source, target) = (Shared::of_file(&file, 0, length)?, Shared::of_file(&file, length, length)?);
    let (from, to) = (Iova(BASE), Iova(BASE + length as u64));
    let space = Space::new()?;
    space.map(BASE, memory)?;
    let mut port = space.port();

    let mut seed = 0;
    let samples = interleave(PAIRS, |side| {
        seed += 1;
        source.fill(seed);
        // Fetches translations and cache lines, for either side.
        port.copy(from, to, length as u64)?;
        target.copy_from(&source);
        target.fill(0);
        let sample = time(|| {
            for _ in 0..SAMPLE / length {
                match side {
                    Side::Ours => port.copy(from, to, length as u64)?,
                    Side::Theirs => target.copy_from(&source),
                }
            }
            Ok(())
        })?;
        target.verify(seed)?;
        Ok::<_, anyhow::Error>(sample / (SAMPLE / length) as f64)
    })?;
    Ok(Row {
        name: name.into(),
        samples,
        unit: Unit::Time,
        figure,
        note: format!("DmaPort::copy of {} KiB in one process, warm; memcpy of the same bytes", length >> 10),
    })
}
