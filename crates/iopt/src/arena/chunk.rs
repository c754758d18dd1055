//! A chunk of 2 MiB: which tables it has, and what is kept beside each of them.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zerocopy::FromZeros;

/// Pages of 4 KiB in a chunk.
pub(super) const PAGES: u32 = 512;
/// Entries in a page of 4 KiB.
pub(super) const PAGE_ENTRIES: usize = 512;
/// log2 of the bytes of a page.
const PAGE_SHIFT: u32 = 12;
/// log2 of the bytes of a chunk.
const CHUNK_SHIFT: u32 = PAGE_SHIFT + PAGES.ilog2();
/// Entries in a chunk.
const ENTRIES: usize = PAGES as usize * PAGE_ENTRIES;
/// Bytes of a chunk.
pub(super) const CHUNK_BYTES: usize = 1 << CHUNK_SHIFT;
/// Ends a chain of tables. No page has this number, as an arena's size is capped below it.
pub(super) const END: u32 = u32::MAX;
/// The count of a table that is linked nowhere, or is about to be.
const DEAD: u32 = u32::MAX;

/// The address of a table inside its [`Arena`](crate::Arena), in bytes; a multiple of the table's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TableAddr(pub u64);

impl TableAddr {
    pub(super) fn of(number: u32) -> Self {
        Self(u64::from(number) << PAGE_SHIFT)
    }

    /// The number of the page that it begins at.
    pub(super) fn number(self) -> u32 {
        // A forged address becomes a number that no chunk has, never another table's.
        u32::try_from(self.0 >> PAGE_SHIFT).unwrap_or(END)
    }

    /// The number of its chunk.
    pub(super) fn chunk(self) -> usize {
        usize::try_from(self.0 >> CHUNK_SHIFT).unwrap_or(usize::MAX)
    }

    /// Where its entries begin among all of an arena's.
    #[inline]
    pub(crate) fn first_entry(self) -> usize {
        (self.0 / size_of::<AtomicU64>() as u64) as usize
    }
}

/// How many pages of 4 KiB a table has, as a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableSize {
    order: u32,
}

impl TableSize {
    /// Sizes that there are: 4 KiB to a whole chunk.
    pub(super) const COUNT: usize = PAGES.ilog2() as usize + 1;

    /// The smallest that holds 2^`index_bits` entries of 8 bytes.
    pub(crate) const fn of_entries(index_bits: u32) -> Self {
        Self { order: index_bits.saturating_sub(PAGE_ENTRIES.ilog2()) }
    }

    pub(super) fn order(self) -> usize {
        self.order as usize
    }

    pub(super) fn pages(self) -> u32 {
        1 << self.order
    }

    fn entries(self) -> usize {
        PAGE_ENTRIES << self.order
    }
}

/// What is kept beside a table, at its first page.
#[derive(FromZeros)]
struct Beside {
    /// The next table in the chain that this one is in. Written only by who owns that chain.
    next: AtomicU32,
    /// Its used entries, or [`DEAD`].
    used: AtomicU32,
}

pub(super) struct Chunk {
    size: TableSize,
    tables: Box<[Beside]>,
    /// A bit for each entry: written to since last read. Made when somebody begins to track.
    log: OnceLock<Box<[AtomicU64]>>,
}

impl Chunk {
    /// All its tables dead. `None`: no memory.
    pub(super) fn new(size: TableSize) -> Option<Self> {
        let tables = <[Beside]>::new_box_zeroed_with_elems(PAGES as usize).ok()?;
        for table in &tables {
            table.used.store(DEAD, Ordering::Relaxed);
        }
        Some(Self { size, tables, log: OnceLock::new() })
    }

    pub(super) fn size(&self) -> TableSize {
        self.size
    }

    fn table(&self, table: TableAddr) -> &Beside {
        &self.tables[(table.number() % PAGES) as usize]
    }

    /// The link that is kept beside `table`.
    pub(super) fn next(&self, table: TableAddr) -> &AtomicU32 {
        &self.table(table).next
    }

    /// Brings a table to life, with `used` entries (at least one) spoken for.
    pub(super) fn begin(&self, table: TableAddr, used: u32) {
        self.table(table).used.store(used, Ordering::Release);
    }

    /// Ends a table that nobody else has met.
    pub(super) fn end(&self, table: TableAddr) {
        self.table(table).used.store(DEAD, Ordering::Relaxed);
    }

    /// Speaks for `more` entries; `false` if the table is dead.
    pub(super) fn reserve(&self, table: TableAddr, more: u32) -> bool {
        let add = |used| if used == DEAD { None } else { Some(used + more) };
        self.table(table).used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, add).is_ok()
    }

    /// Takes `fewer` entries off the count. `true`: they were the last, and the table is dead.
    pub(super) fn release(&self, table: TableAddr, fewer: u32) -> bool {
        let take = |used| match used {
            DEAD => None,
            _ if used <= fewer => Some(DEAD),
            _ => Some(used - fewer),
        };
        let before = self.table(table).used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take);
        before.is_ok_and(|used| used <= fewer)
    }

    /// Makes the log if there is none. `false`: no memory.
    pub(super) fn make_log(&self) -> bool {
        self.log.get().is_some()
            || <[AtomicU64]>::new_box_zeroed_with_elems(ENTRIES / 64).is_ok_and(|log| self.log.set(log).is_ok())
    }

    /// The words of the log for entries in `entries`, counted from the beginning of `table`, if there is a log.
    #[inline]
    pub(super) fn log(&self, table: TableAddr, entries: Range<usize>) -> Option<&[AtomicU64]> {
        let first = table.first_entry() % ENTRIES;
        self.log.get()?.get((first + entries.start) / 64..(first + entries.end).div_ceil(64))
    }

    /// Forgets what the log says of `table`.
    pub(super) fn clear_log(&self, table: TableAddr) {
        for word in self.log(table, 0..self.size.entries()).unwrap_or_default() {
            word.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Chunk, TableAddr, TableSize};

    #[test]
    fn nothing_is_added_to_a_table_that_is_dead() {
        let chunk = Chunk::new(TableSize::of_entries(9)).unwrap();
        let (table, other) = (TableAddr(0x1000), TableAddr(0x2000));
        assert!(!chunk.reserve(table, 1), "it was not begun");
        chunk.begin(table, 1);
        chunk.begin(other, 3);
        assert!(chunk.reserve(table, 2));
        assert!(!chunk.release(table, 2));
        assert!(chunk.release(table, 1), "the last");
        assert!(!chunk.reserve(table, 1));
        assert!(!chunk.release(table, 1), "it goes once");
        assert!(chunk.release(other, 3));
    }
}
