//! The pages of a range, in order.

use std::sync::atomic::Ordering;

use super::{MOST_LEVELS, PageTable, Translation, index};
use crate::arena::{Inside, TableAddr, TableMemory};
use crate::format::{Access, Entry, Format};

/// The pages that lie in a range, or stick out of it: see [`PageTable::iter`].
pub struct Iter<'a, F: Format, M: TableMemory> {
    table: &'a PageTable<F, M>,
    /// The table of each level on the way to `next`, down to `level`, and what is allowed below it.
    path: [(TableAddr, Access); MOST_LEVELS],
    level: u8,
    next: u64,
    /// Beyond the range.
    end: u64,
    _inside: Inside<'a, M>,
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// The pages that touch `length` bytes at `iova`, in order: where each begins, and what that translates to. A page
    /// of several entries comes once. What lies beyond the format's range has no pages.
    ///
    /// What is mapped or unmapped meanwhile is found, or not. While this lives, no table of the arena that is given
    /// back is used again.
    pub fn iter(&self, iova: u64, length: u64) -> Iter<'_, F, M> {
        let end = iova.saturating_add(length).min(1 << F::iova_bits());
        Iter {
            table: self,
            path: [(self.root, Access::all()); MOST_LEVELS],
            level: F::LEVELS - 1,
            next: iova,
            end,
            _inside: self.arena.enter(),
        }
    }
}

impl<F: Format, M: TableMemory> Iterator for Iter<'_, F, M> {
    type Item = (u64, Translation);

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.end {
            let (table, allowed) = self.path[usize::from(self.level)];
            let slot = self.table.entries(table, self.level)?.get(index::<F>(self.next, self.level))?;
            match F::decode(slot.load(Ordering::Acquire), self.level) {
                Entry::Table(below, access) => {
                    self.level -= 1;
                    self.path[usize::from(self.level)] = (below, allowed & access);
                }
                Entry::Empty => self.go_beyond(F::shift(self.level)),
                Entry::Leaf { pa, page_shift, access } => {
                    let start = self.next & (!0 << page_shift);
                    self.go_beyond(page_shift);
                    return Some((start, Translation { pa, page_shift, access: allowed & access }));
                }
            }
        }
        None
    }
}

impl<F: Format, M: TableMemory> Iter<'_, F, M> {
    /// Goes on behind the 2^`shift` bytes that this is in, and up where the tables end there.
    fn go_beyond(&mut self, shift: u32) {
        self.next = (self.next | !(!0 << shift)) + 1;
        while self.level + 1 < F::LEVELS && self.next.trailing_zeros() >= F::shift(self.level + 1) {
            self.level += 1;
        }
    }
}
