//! Which pages were written to.
//!
//! There are two answers. The *dirty bit* of a leaf, where the format has one, says that the page was written to since
//! it was mapped; nothing clears it. The *log* says what was written to since the log was last read: one bit for each
//! entry, kept beside the tables once somebody begins to track, so that reading it is reading a bitmap, 64 bytes where
//! the entries are 4096.
//!
//! ```text
//!  table of level 0    entry 0 … 63 │ 64 … 127 │ … │ 448 … 511
//!  its log               word 0     │  word 1  │ … │  word 7        a bit: 2^PAGE_SHIFT bytes
//!
//!  table of level 1    entry 0 … 63 │ …                            a bit: one large page, or what was one
//! ```
//!
//! A page of several entries has all their bits. Bits of a large page that has been split since stay where they are,
//! until all that it covered is read and cleared, or unmapped: what is mapped anew there meanwhile is told of with it,
//! as written to.
//!
//! A walk marks first and the device writes then. So who reads and clears, and then copies what was written to, must
//! make sure in between that no write goes on under an older mark: drop what IOTLBs hold, and wait for accesses in
//! flight.

use std::array;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::view::Leaf;
use super::{MapError, PageTable, RangeError, Span, Translation, Upper, index, indices};
use crate::arena::{TableAddr, TableMemory};
use crate::format::{Access, Entry, Format};

/// Words in a cache line: the log of a table of 512 entries.
const LINE: usize = 8;
/// Words that are looked at together, as many as there are bits to say which of them are used.
const GROUP: usize = 64;
/// Tables that are read together if they can be.
const RUN: usize = GROUP / LINE;
/// Words that are taken before any of them is told of. With more, they do not stay in registers.
const AT_ONCE: usize = 4;

/// Pages that were written to: see [`PageTable::read_dirty`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyWord {
    /// What bit 0 stands for, and may lie before the range that was asked for. Bit n stands for what is n pages further
    /// on.
    pub iova: u64,
    /// log2 of the bytes that a bit stands for.
    pub page_shift: u32,
    /// Not zero; only what touches the range that was asked for.
    pub bits: u64,
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// As [`PageTable::walk`], for an access that follows: if the page allows `access`, it is marked as accessed and,
    /// for [`Access::WRITE`], as dirty and in the log. Takes no lock and allocates nothing.
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

    /// Begins to log writes in all tables of the arena, and forgets what the log says of this one. What is tracked
    /// costs one 64th of the tables, and a marking walk that writes a few loads.
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

    /// Tells `visit` what was written to in a range since that was last read with `clear`, or tracking began; in no
    /// order that means anything. Of large pages that stick out of the range, the log is not cleared.
    ///
    /// Takes no lock and allocates nothing. No mark is lost: each is told of by one call with `clear`, or by a later
    /// one.
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
        let (start, slots) = self.touched(table, level, base, span);
        let step = 1 << F::shift(level);
        for (slots, start) in slots.chunks(RUN).zip((start..).step_by(RUN * step)) {
            if level == 1 && self.read_run(slots, start, span, clear, visit) {
                continue;
            }
            for (slot, start) in slots.iter().zip((start..).step_by(step)) {
                if let Entry::Table(below, _) = F::decode(slot.load(Ordering::Acquire), level) {
                    self.read_table(below, level - 1, start, span, clear, visit);
                }
            }
        }
    }

    /// Reads the tables of level 0 that `slots` lead to as one, if the span has all of them and they lie beside each
    /// other in the arena, as those do that were mapped in one go: so do their logs then. `false` if not, with nothing
    /// read.
    #[inline(always)]
    fn read_run(
        &self,
        slots: &[AtomicU64],
        base: u64,
        span: Span,
        clear: bool,
        visit: &mut impl FnMut(DirtyWord),
    ) -> bool {
        let mut tables = slots.iter().map(|slot| match F::decode(slot.load(Ordering::Acquire), 1) {
            Entry::Table(below, _) => below.0,
            // Beside nothing, and in no arena.
            Entry::Leaf { .. } | Entry::Empty => !0,
        });
        let Some(first) = tables.next() else { return false };
        let bytes = (size_of::<AtomicU64>() as u64) << F::index_bits(0);
        // To the end, as that is faster than to the first that is not.
        let apart = tables.zip(1..).fold(false, |apart, (table, n)| apart | (table.wrapping_sub(first) != n * bytes));
        let last = base + (((slots.len() as u64) << F::shift(1)) - 1);
        if apart || base < span.first || last > span.last {
            return false;
        }
        // `None`: not in one chunk, or nothing is logged.
        let Some(words) = self.arena.log(TableAddr(first), 0..slots.len() << F::index_bits(0)) else { return false };
        read_whole(words, base, F::PAGE_SHIFT, clear, visit);
        true
    }

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
        if level == 0 && (touched.start | touched.end).is_multiple_of(64) {
            return read_whole(words, iova, page_shift, clear, visit);
        }
        for ((number, word), iova) in (touched.start / 64..).zip(words).zip((iova..).step_by(64 << page_shift)) {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mask = mask(number, touched.clone());
            let within = if clear { mask & within(iova, page_shift, span) } else { 0 };
            let bits =
                if within == 0 { word.load(Ordering::Relaxed) } else { word.fetch_and(!within, Ordering::AcqRel) };
            if bits & mask != 0 {
                visit(DirtyWord { iova, page_shift, bits: bits & mask });
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

/// Reads words of a log, of which all bits are asked for; the first one's begin at `iova`.
#[inline(always)]
fn read_whole(words: &[AtomicU64], iova: u64, page_shift: u32, clear: bool, visit: &mut impl FnMut(DirtyWord)) {
    // Lengths that the compiler knows, as loops over others take half of the time.
    let (groups, others) = words.as_chunks::<GROUP>();
    let (lines, words) = others.as_chunks::<LINE>();
    let after = |words: usize| iova + (((words * 64) as u64) << page_shift);
    let (first_line, first_word) = (groups.len() * GROUP, groups.len() * GROUP + lines.len() * LINE);
    for (n, group) in groups.iter().enumerate() {
        read_group(group, after(n * GROUP), page_shift, clear, visit);
    }
    for (n, line) in lines.iter().enumerate() {
        read_group(line, after(first_line + n * LINE), page_shift, clear, visit);
    }
    for (n, word) in words.iter().enumerate() {
        read_group(array::from_ref(word), after(first_word + n), page_shift, clear, visit);
    }
}

/// [`read_whole`], of at most [`GROUP`] words.
#[inline(always)]
fn read_group<const WORDS: usize>(
    words: &[AtomicU64; WORDS],
    iova: u64,
    page_shift: u32,
    clear: bool,
    visit: &mut impl FnMut(DirtyWord),
) {
    // Which words are not zero is found without a branch for each: at random, every other would go wrong.
    let mut left = 0u64;
    for (line, shift) in words.chunks(LINE).zip((0..).step_by(LINE)) {
        let line = line.iter().rev().fold(0, |line, word| line << 1 | u64::from(word.load(Ordering::Relaxed) != 0));
        left |= line << shift;
    }
    let take = |place: u32| {
        let word = &words[place as usize];
        if clear { word.swap(0, Ordering::AcqRel) } else { word.load(Ordering::Relaxed) }
    };
    let mut tell = |place: u32, bits| {
        if bits != 0 {
            visit(DirtyWord { iova: iova + (u64::from(place * 64) << page_shift), page_shift, bits });
        }
    };
    // A swap waits until all that was written before is in the cache, what `visit` wrote too. So several go first.
    loop {
        let mut after = left;
        let places = [(); AT_ONCE - 1].map(|()| pop(&mut after));
        if after == 0 {
            break;
        }
        let last = pop(&mut after);
        left = after;
        let (bits, last_bits) = (places.map(take), take(last));
        places.into_iter().zip(bits).for_each(|(place, bits)| tell(place, bits));
        tell(last, last_bits);
    }
    while left != 0 {
        let place = pop(&mut left);
        tell(place, take(place));
    }
}

/// Takes the lowest bit out, if there is one, and returns its number.
#[inline(always)]
fn pop(bits: &mut u64) -> u32 {
    // With the highest bit set none is known to be less than 64, and nothing has to be done for zero.
    let lowest = (*bits | 1 << 63).trailing_zeros();
    *bits &= bits.wrapping_sub(1);
    lowest
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

// Miri takes minutes over tables of 512 entries; tests/small_tables.rs is for it.
#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::format::X86_64;
    use crate::{Arena, EmptyTables};

    /// More tables than there are in a chunk.
    const TABLES: u64 = 530;
    /// log2 of what a table of level 0 spans.
    const SPAN: u32 = 21;

    /// One page in each table, made in this order.
    fn table(order: impl Iterator<Item = u64>) -> PageTable<X86_64> {
        let table = PageTable::new(Arc::new(Arena::new(1024))).unwrap();
        let mut empty = EmptyTables::none();
        order.for_each(|n| table.map(page(n), 0x1000, 0x1000, Access::all(), &mut empty).unwrap());
        table.start_tracking().unwrap();
        table
    }

    /// The page of table `n`.
    fn page(n: u64) -> u64 {
        (n << SPAN) + ((n * 5 % 512) << 12)
    }

    fn read(table: &PageTable<X86_64>, span: Range<u64>, clear: bool) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let visit = |word: DirtyWord| {
            let pages = (0..64).filter(|n| word.bits >> n & 1 != 0).map(|n| word.iova + (n << word.page_shift));
            pages.for_each(|page| assert!(found.insert(page), "told of twice"));
        };
        table.read_dirty(span.start, span.end - span.start, clear, visit).unwrap();
        found
    }

    #[test]
    fn tables_beside_each_other_and_apart_are_read_alike() {
        let beside = table(0..TABLES);
        let apart = table((0..TABLES).step_by(2).chain((1..TABLES).step_by(2)));
        let ends = [0, page(8), 16 << SPAN, page(500) + 0x1000, TABLES << SPAN];
        for table in [beside, apart] {
            for (n, &start) in ends.iter().enumerate() {
                for &end in &ends[n + 1..] {
                    let dirty: BTreeSet<_> = (0..TABLES).filter(|n| n % 3 != 1).map(page).collect();
                    dirty.iter().for_each(|&page| assert!(table.walk_marking(page, Access::WRITE).is_some()));
                    let inside: BTreeSet<_> = dirty.range(start..end).copied().collect();
                    assert_eq!(read(&table, start..end, false), inside);
                    assert_eq!(read(&table, start..end, true), inside);
                    assert_eq!(read(&table, 0..TABLES << SPAN, true), &dirty - &inside);
                }
            }
        }
    }
}
