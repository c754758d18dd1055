//! Which pages were written to.
//!
//! There are two answers. The *dirty bit* of a leaf, where the format has one, says that the page was written to since it
//! was mapped; nothing clears it. The *log* says what was written to since the log was last read: one bit for each entry,
//! kept beside the tables once somebody begins to track, so that reading it is reading a bitmap, 64 bytes where the
//! entries are 4096.
//!
//! ```text
//!  table of level 0    entry 0 … 63 │ 64 … 127 │ … │ 448 … 511
//!  its log               word 0     │  word 1  │ … │  word 7        a bit: 2^PAGE_SHIFT bytes
//!
//!  table of level 1    entry 0 … 63 │ …                            a bit: one large page, or what was one
//! ```
//!
//! A page of several entries has all their bits. Bits of a large page that has been split since stay where they are, until
//! all that it covered is read and cleared, or unmapped: what is mapped anew there meanwhile is told of with it, as written
//! to.
//!
//! A walk marks first and the device writes then. So who reads and clears, and then copies what was written to, must make
//! sure in between that no write goes on under an older mark: drop what IOTLBs hold, and wait for accesses in flight.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::view::Leaf;
use super::{MapError, PageTable, RangeError, Span, Translation, Upper, index, indices};
use crate::arena::{TableAddr, TableMemory};
use crate::format::{Access, Entry, Format};

/// Words in a cache line.
const LINE: usize = 8;

/// Pages that were written to: see [`PageTable::read_dirty`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyWord {
    /// What bit 0 stands for, and may lie before the range that was asked for. Bit n stands for what is n pages further on.
    pub iova: u64,
    /// log2 of the bytes that a bit stands for.
    pub page_shift: u32,
    /// Not zero; only what touches the range that was asked for.
    pub bits: u64,
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// As [`PageTable::walk`], for an access that follows: if the page allows `access`, it is marked as accessed and, for
    /// [`Access::WRITE`], as dirty and in the log. Takes no lock and allocates nothing.
    #[inline]
    #[must_use]
    pub fn walk_marking(&self, iova: u64, access: Access) -> Option<Translation> {
        loop {
            let view = self.view();
            let mark = |leaf: Leaf| self.mark(&leaf, iova, access).then(|| leaf.translation(iova));
            if let Some(found) = view.descend(view.top(), iova, mark)? {
                return Some(found);
            }
        }
    }

    /// What [`PageTable::walk_marking`] does, beginning at `upper`, which was had for an address of the same span.
    #[inline]
    #[must_use]
    pub fn walk_marking_below(&self, upper: Upper, iova: u64, access: Access) -> Option<Translation> {
        loop {
            let mark = |leaf: Leaf| self.mark(&leaf, iova, access).then(|| leaf.translation(iova));
            if let Some(found) = self.view().descend_from(upper, iova, mark)? {
                return Some(found);
            }
        }
    }

    /// Marks the page if it allows `access`. `false`: the entry is not what it was.
    #[inline(always)]
    fn mark(&self, leaf: &Leaf, iova: u64, access: Access) -> bool {
        if !leaf.translation(iova).access.contains(access) {
            return true;
        }
        let writes = access.contains(Access::WRITE);
        let wanted = leaf.bits | F::ACCESSED | if writes { F::DIRTY } else { 0 };
        // Not an or: the entry may have been cleared meanwhile, and must stay so.
        if wanted != leaf.bits && !self.exchange(leaf, iova, wanted) {
            return false;
        }
        if writes {
            self.log_write(leaf, iova);
        }
        true
    }

    fn exchange(&self, leaf: &Leaf, iova: u64, wanted: u64) -> bool {
        let (table, level) = leaf.upper.table_and_level();
        let slot = self.entries(table, level).and_then(|entries| entries.get(index::<F>(iova, level)));
        slot.is_some_and(|slot| slot.compare_exchange(leaf.bits, wanted, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// Sets the bits of all entries of a page.
    #[inline(always)]
    fn log_write(&self, leaf: &Leaf, iova: u64) {
        let (table, level) = leaf.upper.table_and_level();
        let first = index::<F>(iova & (!0 << leaf.page_shift), level);
        let end = first + (1 << (leaf.page_shift - F::shift(level)));
        for (mask, word) in masks(first..end).zip(self.arena.log(table, first..end).unwrap_or_default()) {
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::AcqRel);
            }
        }
    }

    /// Begins to log writes in all tables of the arena, and forgets what the log says of this one. What is tracked costs
    /// one 64th of the tables, and a marking walk that writes a few loads.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`].
    pub fn start_tracking(&self) -> Result<(), MapError> {
        if !self.arena.track() {
            return Err(MapError::OutOfTables);
        }
        let _inside = self.arena.enter();
        let span = Span { first: 0, last: !(!0 << F::iova_bits()) };
        self.read_table(self.root, F::LEVELS - 1, 0, span, true, &mut |_| ());
        Ok(())
    }

    /// Tells `visit` what was written to in a range since that was last read with `clear`, or tracking began; in no order
    /// that means anything. Of large pages that stick out of the range, the log is not cleared.
    ///
    /// Takes no lock and allocates nothing. No mark is lost: each is told of by one call with `clear`, or by a later one.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`].
    pub fn read_dirty(
        &self,
        iova: u64,
        length: u64,
        clear: bool,
        mut visit: impl FnMut(DirtyWord),
    ) -> Result<(), RangeError> {
        let span = Span::of_pages::<F>(iova, length)?;
        let _inside = self.arena.enter();
        self.read_table(self.root, F::LEVELS - 1, 0, span, clear, &mut visit);
        Ok(())
    }

    fn read_table(
        &self,
        table: TableAddr,
        level: u8,
        base: u64,
        span: Span,
        clear: bool,
        visit: &mut impl FnMut(DirtyWord),
    ) {
        self.read_words(table, level, base, span, clear, visit);
        if level == 0 {
            return;
        }
        let (mut start, slots) = self.touched(table, level, base, span);
        for slot in slots {
            if let Entry::Table(below, _) = F::decode(slot.load(Ordering::Acquire), level) {
                if level == 1 {
                    // Not another call for each of what nearly all tables are.
                    self.read_words(below, 0, start, span, clear, visit);
                } else {
                    self.read_table(below, level - 1, start, span, clear, visit);
                }
            }
            start += 1 << F::shift(level);
        }
    }

    #[inline(always)]
    fn read_words(
        &self,
        table: TableAddr,
        level: u8,
        base: u64,
        span: Span,
        clear: bool,
        visit: &mut impl FnMut(DirtyWord),
    ) {
        let touched = indices::<F>(level, base, span);
        let Some(words) = self.arena.log(table, touched.clone()) else { return };
        let page_shift = F::shift(level);
        let iova = base + ((touched.start as u64 & !63) << page_shift);
        let first = touched.start / 64;
        // A whole table, as nearly all are, has no edges to look at.
        let whole = level == 0 && (touched.start | touched.end).is_multiple_of(64);
        for (number, line) in (0..).step_by(LINE).zip(words.chunks(LINE)) {
            // Which words are not zero is found without a branch for each: at random, every other would go wrong.
            let mut used = (0..)
                .zip(line)
                .fold(0u32, |used, (place, word)| used | u32::from(word.load(Ordering::Relaxed) != 0) << place);
            while used != 0 {
                let place = used.trailing_zeros() as usize;
                used &= used - 1;
                let word = &line[place];
                let number = number + place;
                let iova = iova + (((number * 64) as u64) << page_shift);
                let bits = if whole {
                    if clear { word.swap(0, Ordering::AcqRel) } else { word.load(Ordering::Relaxed) }
                } else {
                    let mask = mask(first + number, touched.clone());
                    let within = if clear { mask & within(iova, page_shift, span) } else { 0 };
                    let bits = if within == 0 {
                        word.load(Ordering::Relaxed)
                    } else {
                        word.fetch_and(!within, Ordering::AcqRel)
                    };
                    bits & mask
                };
                if bits != 0 {
                    visit(DirtyWord { iova, page_shift, bits });
                }
            }
        }
    }

    /// Clears the log of some entries of a table.
    pub(super) fn forget_writes(&self, table: TableAddr, entries: Range<usize>) {
        for (mask, word) in masks(entries.clone()).zip(self.arena.log(table, entries).unwrap_or_default()) {
            if word.load(Ordering::Relaxed) & mask != 0 {
                word.fetch_and(!mask, Ordering::AcqRel);
            }
        }
    }
}

/// The bits of each word for `entries`.
#[inline(always)]
fn masks(entries: Range<usize>) -> impl Iterator<Item = u64> {
    (entries.start / 64..entries.end.div_ceil(64)).map(move |word| mask(word, entries.clone()))
}

/// The bits of one word for `entries`, of which it has some.
#[inline(always)]
fn mask(word: usize, entries: Range<usize>) -> u64 {
    let from = entries.start.saturating_sub(word * 64) as u32;
    let to = (entries.end - word * 64).min(64) as u32;
    (!0 << from) & (!0 >> (64 - to))
}

/// Which of the 64 pages at `iova` lie in `span` as a whole.
fn within(iova: u64, page_shift: u32, span: Span) -> u64 {
    let inside = |n: &u64| span.contains(iova + (n << page_shift), page_shift);
    (0..64).filter(inside).fold(0, |bits, n| bits | 1 << n)
}
