//! Make large pages small.
//!
//! A page of one entry becomes a table at once. One of several entries is changed entry by entry, and others may be
//! doing the same for parts of it that lie in their ranges. Each does all of it, so that when a split returns no entry,
//! wherever it is, still says that it has a page that reaches into the range.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{MapError, PageTable, Span, index, table_size};
use crate::arena::{Inside, TableAddr, TableMemory};
use crate::format::{Access, Entry, Format};

/// What is being split: what lies in `span` and is larger than 2^`largest`.
#[derive(Clone, Copy)]
struct Limit {
    span: Span,
    largest: u32,
}

/// A leaf, and what was marked in it.
#[derive(Clone, Copy)]
struct Large {
    /// Where it begins.
    pa: u64,
    page_shift: u32,
    access: Access,
    marks: u64,
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Makes leaves of at most 2^`largest` bytes of all larger ones that touch the range, with the same translations,
    /// access and marks. The format's smallest page is always small enough.
    ///
    /// No more is split than must be: of a large page that the range only touches, what is outside of it becomes the
    /// largest leaves that fit beside, if nobody splits the same page for another range. At every moment walks find one
    /// or the other, which say the same; what an IOTLB keeps of the large page stays right, but is as coarse as it was.
    /// In the log of writes, what was written to the large page stays written to all of it.
    ///
    /// # Errors
    /// [`MapError::OutOfRange`], and [`MapError::OutOfTables`], after which some of the range may be split.
    pub fn split(&self, iova: u64, length: u64, largest: u32) -> Result<(), MapError> {
        let span = Span::new::<F>(iova, length);
        let span = span.ok_or(MapError::OutOfRange { iova, length, bits: F::iova_bits() })?;
        let limit = Limit { span, largest: largest.max(F::PAGE_SHIFT) };
        self.split_table(self.root, F::LEVELS - 1, 0, limit, &mut self.arena.enter())
    }

    fn split_table(
        &self,
        table: TableAddr,
        level: u8,
        base: u64,
        limit: Limit,
        inside: &mut Inside<'_, M>,
    ) -> Result<(), MapError> {
        let (mut start, slots) = self.touched(table, level, base, limit.span.to_pages::<F>(level));
        for slot in slots {
            loop {
                let bits = slot.load(Ordering::Acquire);
                match F::decode(bits, level) {
                    Entry::Table(below, _) if limit.span.touches(start, F::shift(level)) => {
                        self.split_table(below, level - 1, start, limit, inside)?;
                        break;
                    }
                    Entry::Leaf { pa, page_shift, access }
                        if page_shift > limit.largest && limit.span.touches(start, page_shift) =>
                    {
                        let marks = bits & (F::ACCESSED | F::DIRTY);
                        let large = Large { pa, page_shift, access, marks };
                        if page_shift > F::shift(level) {
                            self.split_entries(table, level, start, large, limit);
                        } else {
                            self.split_entry(slot, bits, level, large, inside)?;
                        }
                    }
                    Entry::Table(..) | Entry::Leaf { .. } | Entry::Empty => break,
                }
            }
            start += 1 << F::shift(level);
        }
        Ok(())
    }

    /// Puts a table of the largest leaves that it can have in place of `large`, whose only entry is in `slot` as
    /// `bits`. Nothing changes if that is no longer so.
    fn split_entry(
        &self,
        slot: &AtomicU64,
        bits: u64,
        level: u8,
        large: Large,
        inside: &mut Inside<'_, M>,
    ) -> Result<(), MapError> {
        let below = level - 1;
        // Its entry is in the table above, and keeps that.
        let table = inside.allocate(table_size::<F>(below)).ok_or(MapError::OutOfTables)?;
        let entries = self.entries(table, below).unwrap_or_default();
        let page_shift = F::page_sizes(below).checked_ilog2().unwrap_or(F::PAGE_SHIFT);
        let mut pa = large.pa;
        for entry in entries {
            entry.store(F::leaf(pa, page_shift, large.access, below) | large.marks, Ordering::Relaxed);
            pa += 1 << F::shift(below);
        }
        self.arena.begin(table, entries.len() as u32);
        if slot.compare_exchange(bits, F::table(table, level), Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // A walk marked it, or somebody split the same page for the part of it that lies in another range.
            for entry in entries {
                entry.store(0, Ordering::Relaxed);
            }
            self.arena.discard(table);
        }
        Ok(())
    }

    /// Makes smaller pages of `large`, which has several entries of `table`, one of which begins at `start`. If it
    /// sticks out of the range, they are the next smaller ones only: of those that lie beside it, no more is split.
    fn split_entries(&self, table: TableAddr, level: u8, start: u64, large: Large, limit: Limit) {
        let within = limit.span.contains(start, large.page_shift);
        let largest = if within { limit.largest } else { large.page_shift - 1 };
        let small_enough = F::page_sizes(level) & !(!1 << largest);
        let page_shift = small_enough.checked_ilog2().unwrap_or(F::shift(level));
        let mut start = start & (!0 << large.page_shift);
        let first = index::<F>(start, level);
        let count = 1 << (large.page_shift - F::shift(level));
        let slots =
            self.entries(table, level).and_then(|entries| entries.get(first..first + count)).unwrap_or_default();
        // A mark in one of the entries is for the whole page.
        let marks = slots.iter().fold(0, |marks, slot| marks | slot.load(Ordering::Relaxed)) & (F::ACCESSED | F::DIRTY);
        let mut part = large.pa;
        for slot in slots {
            let mut bits = slot.load(Ordering::Acquire);
            // Only entries that lead where the page led, as others may have mapped their part of it anew since. Those
            // that others have made smaller, or still have to, have another size than the page that was found.
            while let Entry::Leaf { pa, page_shift: size, access } = F::decode(bits, level)
                && size > page_shift
                && pa | (start & !(!0 << size)) == part
            {
                let own = bits & (F::ACCESSED | F::DIRTY);
                let small = F::leaf(part, page_shift, access, level) | marks | own;
                match slot.compare_exchange_weak(bits, small, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => break,
                    Err(now) => bits = now,
                }
            }
            part += 1 << F::shift(level);
            start += 1 << F::shift(level);
        }
    }
}
