//! `dirty-harvest`: what was written in 64 GiB is read and cleared, as a bitmap with a bit for each 4 KiB; beside it,
//! `vm-memory`'s `AtomicBitmap`, with the same pages dirty: 1 % of them, anywhere.
//!
//! Only the harvest is measured, not the marking. What either side harvests must be the pattern, and a second harvest
//! must find nothing.

use std::hint::black_box;
use std::num::NonZeroUsize;

use anyhow::{Result, ensure};
use vm_memory::bitmap::AtomicBitmap;

use crate::ours::Tracked;
use crate::random::Random;
use crate::run::{Benchmark, time};
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};

/// 64 GiB of them.
const PAGES: u32 = 1 << 24;
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// What is no longer than this, the allocator gets from its heap once as much was freed; at most 32 MiB.
const KEPT: usize = 16 << 20;

/// Its one line.
pub const BENCHMARK: Benchmark = Benchmark { name: "dirty-harvest", measure: |_| measure() };

fn measure() -> Result<Row> {
    let (dirty, pattern) = pattern(PAGES);
    let mut ours = Tracked::new(PAGES)?;
    let mut harvested = vec![0; pattern.len()];
    let theirs = AtomicBitmap::new(PAGES as usize * PAGE.get(), PAGE);
    // Theirs returns a new bitmap each time. From now on the allocator keeps the memory of what is freed, so that no
    // page of it is faulted in, whatever was measured before.
    drop(black_box(vec![0u8; KEPT]));
    let samples = interleave(21, |side| match side {
        Side::Ours => {
            dirty.iter().try_for_each(|&page| ours.mark(page))?;
            harvested.fill(0);
            let taken = time(|| ours.harvest(&mut harvested))?;
            check(&harvested, &pattern)?;
            harvested.fill(0);
            ours.harvest(&mut harvested)?;
            check_none(&harvested)?;
            Ok::<_, anyhow::Error>(taken)
        }
        Side::Theirs => {
            dirty.iter().for_each(|&page| theirs.set_bit(page as usize));
            let mut found = Vec::new();
            let taken = time(|| {
                found = theirs.get_and_reset();
                Ok(())
            })?;
            check(&found, &pattern)?;
            check_none(&theirs.get_and_reset())?;
            Ok(taken)
        }
    })?;
    Ok(Row {
        name: BENCHMARK.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least: 1.0 },
        note: "64 GiB at 4 KiB, 1 % dirty at random, read and cleared as a bitmap; AtomicBitmap::get_and_reset".into(),
    })
}

/// The pages that are dirty, 1 % of `pages`, in the order in which they become so, and their bitmap.
fn pattern(pages: u32) -> (Vec<u32>, Vec<u64>) {
    let mut dirty = Random::new(6).permutation(pages);
    dirty.truncate(pages as usize / 100);
    let mut bitmap = vec![0; pages as usize / 64];
    dirty.iter().for_each(|page| bitmap[*page as usize / 64] |= 1 << (page % 64));
    (dirty, bitmap)
}

fn check(found: &[u64], pattern: &[u64]) -> Result<()> {
    ensure!(found == pattern, "what was harvested is not what was written");
    Ok(())
}

fn check_none(found: &[u64]) -> Result<()> {
    ensure!(found.iter().all(|&word| word == 0), "what was harvested is still dirty");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn their_bitmap_has_the_form_of_the_pattern() {
        let (dirty, pattern) = pattern(1 << 16);
        assert_eq!(pattern.iter().map(|word| word.count_ones()).sum::<u32>(), 655);
        let theirs = AtomicBitmap::new(PAGE.get() << 16, PAGE);
        dirty.iter().for_each(|&page| theirs.set_bit(page as usize));
        check(&theirs.get_and_reset(), &pattern).unwrap();
        check_none(&theirs.get_and_reset()).unwrap();
        assert!(check(&theirs.get_and_reset(), &pattern).is_err());
    }
}
