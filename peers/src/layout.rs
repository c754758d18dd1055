//! What is mapped where, and which addresses are translated: the same for ours and for theirs.
//!
//! ```text
//!  IOVA   BASE │ page 0 │ page 1 │ page 2 │ page 3 │ …        each page a mapping of its own
//!                   ╰────────╮ ╭──────╯ ╭───╯
//!  memory    0 │ page 0 │ page 1 │ page 2 │ page 3 │ …        at most MEMORY bytes, again and again if need be
//! ```
//!
//! The pages lie in memory in a random order, so that no side can join neighbours. The addresses visit every page
//! equally often, in a random order that is too long for a branch predictor to learn, and at a random word of the page.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::random::Random;

/// The first IOVA; above the window of interrupts.
pub const BASE: u64 = 1 << 32;
/// The most bytes of memory that pages lie in.
const MEMORY: u64 = 1 << 30;
/// The fewest addresses that are translated in turn.
const FEWEST_ADDRESSES: usize = 1 << 16;
/// How long a sample takes, at least.
const SAMPLE: Duration = Duration::from_millis(2);

/// Pages at IOVAs in a row, and where each lies in memory.
pub struct Layout {
    shift: u32,
    /// For each page, in order of IOVA, its page in memory.
    places: Vec<u32>,
}

impl Layout {
    /// So many `pages`, of 2^`shift` bytes each.
    pub fn permuted(pages: u32, shift: u32) -> Self {
        let room = (MEMORY >> shift) as u32;
        let places = Random::new(u64::from(pages)).permutation(pages).iter().map(|place| place % room).collect();
        Self { shift, places }
    }

    /// How many pages.
    pub fn pages(&self) -> u32 {
        self.places.len() as u32
    }

    /// Bytes of a page.
    pub fn page_length(&self) -> u64 {
        1 << self.shift
    }

    /// Bytes of memory that the pages lie in.
    pub fn memory(&self) -> u64 {
        MEMORY.min(u64::from(self.pages()) << self.shift)
    }

    /// Where page number `page` begins.
    pub fn iova(&self, page: u32) -> u64 {
        BASE + (u64::from(page) << self.shift)
    }

    /// What `iova` is mapped to, from the beginning of the memory.
    pub fn target(&self, iova: u64) -> u64 {
        let offset = iova - BASE;
        let place = self.places[(offset >> self.shift) as usize];
        (u64::from(place) << self.shift) + (offset & (self.page_length() - 1))
    }

    /// Each page's IOVA, and what it is mapped to from the beginning of the memory.
    pub fn mappings(&self) -> impl Iterator<Item = (u64, u64)> {
        (0..self.pages()).map(|page| (self.iova(page), self.target(self.iova(page))))
    }

    /// One address in each of `pages`.
    pub fn addresses_in(&self, pages: &[u32]) -> Vec<u64> {
        let mut random = Random::new(2);
        pages.iter().map(|&page| self.iova(page) + random.below(self.page_length() / 8) * 8).collect()
    }

    /// Addresses in all pages.
    pub fn addresses(&self) -> Vec<u64> {
        let rounds = FEWEST_ADDRESSES.div_ceil(self.places.len());
        let mut pages: Vec<u32> = (0..rounds).flat_map(|_| 0..self.pages()).collect();
        Random::new(3).shuffle(&mut pages);
        self.addresses_in(&pages)
    }

    /// `addresses`, and what they translate to if the memory begins at `memory`.
    pub fn sweep(&self, addresses: Vec<u64>, memory: u64) -> Sweep {
        let sum = addresses.iter().fold(0u64, |sum, &iova| sum.wrapping_add(memory + self.target(iova)));
        Sweep { addresses, sum }
    }
}

/// Addresses to translate in turn, and the sum of what they translate to.
pub struct Sweep {
    addresses: Vec<u64>,
    sum: u64,
}

impl Sweep {
    /// How many addresses.
    pub fn length(&self) -> usize {
        self.addresses.len()
    }

    /// Goes over all of them once.
    ///
    /// # Errors
    /// If an address is not translated, or to something else.
    #[inline]
    pub fn pass(&self, translate: &mut impl FnMut(u64) -> Option<u64>) -> Result<()> {
        let mut sum = 0u64;
        for &iova in &self.addresses {
            let target = translate(iova).with_context(|| format!("IOVA {iova:#x} was not translated"))?;
            sum = sum.wrapping_add(target);
        }
        self.check(sum)
    }

    /// What `translate` takes for an address, in nanoseconds, if it gets `burst` of them at a time and returns the sum
    /// of what they translate to; going over all of them until it has taken long enough.
    ///
    /// # Errors
    /// As [`Sweep::pass`].
    pub fn time_bursts(&self, burst: usize, mut translate: impl FnMut(&[u64]) -> Option<u64>) -> Result<f64> {
        self.time_passes(SAMPLE, || {
            let mut sum = 0u64;
            for addresses in self.addresses.chunks(burst) {
                sum = sum.wrapping_add(translate(addresses).context("a burst was not translated")?);
            }
            self.check(sum)
        })
    }

    fn check(&self, sum: u64) -> Result<()> {
        ensure!(sum == self.sum, "addresses were translated to something else");
        Ok(())
    }

    /// What `translate` takes for an address, in nanoseconds, going over all of them once.
    ///
    /// # Errors
    /// As [`Sweep::pass`].
    pub fn time_once(&self, translate: impl FnMut(u64) -> Option<u64>) -> Result<f64> {
        self.time_for(Duration::ZERO, translate)
    }

    /// The same, going over them until it has taken long enough.
    ///
    /// # Errors
    /// As [`Sweep::pass`].
    pub fn time(&self, translate: impl FnMut(u64) -> Option<u64>) -> Result<f64> {
        self.time_for(SAMPLE, translate)
    }

    fn time_for(&self, least: Duration, mut translate: impl FnMut(u64) -> Option<u64>) -> Result<f64> {
        self.time_passes(least, || self.pass(&mut translate))
    }

    fn time_passes(&self, least: Duration, mut pass: impl FnMut() -> Result<()>) -> Result<f64> {
        if !least.is_zero() {
            // What is to be measured is warm: the other side had the caches.
            pass()?;
        }
        let mut passes = 0;
        let start = Instant::now();
        let taken = loop {
            pass()?;
            passes += 1;
            let taken = start.elapsed();
            if taken >= least {
                break taken;
            }
        };
        Ok(taken.as_secs_f64() * 1e9 / (f64::from(passes) * self.length() as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_mapped_to_a_page_of_its_own() {
        let layout = Layout::permuted(1024, 12);
        let mut targets: Vec<_> = layout.mappings().map(|(_, target)| target).collect();
        assert!(!targets.is_sorted());
        targets.sort_unstable();
        assert!(targets.into_iter().eq((0..1024).map(|page| page << 12)));
    }

    #[test]
    fn memory_is_mapped_again_if_there_are_more_pages() {
        let layout = Layout::permuted(4, 30);
        assert_eq!(layout.memory(), 1 << 30);
        assert!(layout.mappings().all(|(_, target)| target == 0));
    }

    #[test]
    fn addresses_visit_every_page_equally_often() {
        let layout = Layout::permuted(1 << 10, 12);
        let mut visits = vec![0; 1 << 10];
        layout.addresses().iter().for_each(|iova| visits[((iova - BASE) >> 12) as usize] += 1);
        assert!(visits.iter().all(|&count| count == 64));
    }

    #[test]
    fn a_sweep_notices_what_was_not_translated() {
        let layout = Layout::permuted(16, 12);
        let sweep = layout.sweep(layout.addresses(), 0x1000);
        assert!(sweep.time_once(|iova| Some(0x1000 + layout.target(iova))).is_ok());
        assert!(sweep.time(|iova| Some(layout.target(iova))).is_err());
        assert!(sweep.time(|_| None).is_err());
    }
}
