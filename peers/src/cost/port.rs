//! What a port pays: for a hit, for a miss, for a miss when nothing is in the processor's caches, and, the owner of the
//! address space, for a map together with an unmap.
//!
//! A round maps some pages anew, which takes them out of the IOTLB, and then translates one address in each: all of
//! these are misses. Some few of them are translated again and again: these are hits, as few fit into any IOTLB. No
//! translation depends on the one before, so the processor may overlap them: what is measured is their rate.

use anyhow::Result;
use ioasid::DmaPort;

use super::SAMPLES;
use super::eviction::Eviction;
use crate::layout::{Layout, Sweep};
use crate::ours::{self, Memory, Space};
use crate::process;
use crate::random::Random;
use crate::run::time;
use crate::table::Cell;
use crate::threads::{Meeting, together};

/// The most pages that a round maps anew.
const PAGES: u32 = 1024;
/// How many of them are translated for hits.
const FEW: usize = 64;

/// What is in a line.
pub const COLUMNS: &[&str] = &["hit", "miss", "miss, caches cold", "map + unmap", "memory for a mapping"];

/// One thread and its port.
struct Worker<'a> {
    space: &'a Space,
    memory: &'a Memory,
    layout: &'a Layout,
    port: DmaPort,
    pages: Vec<u32>,
    all: Sweep,
    few: Sweep,
    eviction: Eviction,
}

/// Nanoseconds, in the order of the columns.
type Times = [f64; 4];

/// Measures `threads` threads, with a port each, over `layout`, with pages of their own that they map anew.
///
/// # Errors
/// Of the crate, or if there are not so many processors.
pub fn line(layout: &Layout, threads: u32) -> Result<Vec<Cell>> {
    let each = PAGES.min(layout.pages() / threads) as usize;
    let pages = Random::new(4).permutation(layout.pages());
    let own: Vec<_> =
        pages.chunks(each).take(threads as usize).map(|pages| (pages, layout.addresses_in(pages))).collect();
    let memory = Memory::of(layout)?;
    let before = process::resident()?;
    let space = Space::over(layout, &memory)?;
    let grown = process::resident()?.saturating_sub(before);
    let mut workers: Vec<_> = own
        .into_iter()
        .map(|(pages, addresses)| Worker {
            space: &space,
            memory: &memory,
            layout,
            port: space.port(),
            pages: pages.to_vec(),
            few: layout.sweep(addresses[..FEW].to_vec(), memory.start()),
            all: layout.sweep(addresses, memory.start()),
            eviction: Eviction::new(),
        })
        .collect();
    let rounds = together(&mut workers, |worker, meeting| {
        worker.round(meeting)?;
        (0..SAMPLES).map(|_| worker.round(meeting)).collect::<Result<Vec<Times>>>()
    })?;
    let column = |column: usize| Cell::times(rounds.iter().flatten().map(|times| times[column]).collect());
    let mut cells: Vec<_> = (0..4).map(column).collect();
    cells.push(Cell::memory(grown as f64 / f64::from(layout.pages())));
    Ok(cells)
}

impl Worker<'_> {
    /// What each thing takes while the other threads do the same.
    fn round(&mut self, meeting: &Meeting) -> Result<Times> {
        meeting.meet()?;
        let remap = time(|| self.remap())? / self.pages.len() as f64;
        meeting.meet()?;
        let miss = self.all.time_once(|iova| ours::translate(&mut self.port, iova))?;
        meeting.meet()?;
        self.remap()?;
        self.eviction.fill_caches();
        meeting.meet()?;
        let cold = self.all.time_once(|iova| ours::translate(&mut self.port, iova))?;
        self.few.time_once(|iova| ours::translate(&mut self.port, iova))?;
        meeting.meet()?;
        let hit = self.few.time(|iova| ours::translate(&mut self.port, iova))?;
        Ok([hit, miss, cold, remap])
    }

    fn remap(&self) -> Result<()> {
        let length = self.layout.page_length();
        self.pages.iter().try_for_each(|&page| {
            let iova = self.layout.iova(page);
            self.space.unmap(iova, length)?;
            self.space.map(iova, self.memory.segment(self.layout.target(iova), length))
        })
    }
}
