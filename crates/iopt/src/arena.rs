//! The memory that tables live in.
//!
//! Tables come from chunks of 2 MiB, and a table's address is its byte offset in the arena, so that it fits the
//! address field of any format and following one is an index, not a search. A table of 2^n pages of 4 KiB is aligned to
//! its own size, as every format demands; all tables of a chunk have the size that the first one asked for:
//!
//! ```text
//!  TableAddr   63          21 20        12+n 11+n       0
//!             │    chunk     │    table     │     0      │
//! ```
//!
//! Chunks are made on demand and kept until the arena goes; the cap on their number is what turns a hostile amount of
//! mapping into an error. Free tables are linked through words beside them, not inside them, as a walk that began
//! before may still be reading the table. For the same reason nothing is allocated on the way to freeing a table:
//! a chain of emptied tables ([`EmptyTables`]) is built from those words alone.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use zerocopy::FromZeros;

/// Pages of 4 KiB in a chunk.
const CHUNK: u32 = 512;
/// Entries in a page of 4 KiB.
const PAGE_ENTRIES: usize = 512;
/// log2 of the bytes of a page.
const PAGE_SHIFT: u32 = 12;
/// log2 of the bytes of a chunk.
const CHUNK_SHIFT: u32 = PAGE_SHIFT + CHUNK.ilog2();
/// Ends a chain of tables. No page has this number, as [`Arena::new`] caps the count below it.
const END: u32 = u32::MAX;

/// The address of a table inside its [`Arena`], in bytes; a multiple of the table's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TableAddr(pub u64);

impl TableAddr {
    fn of(number: u32) -> Self {
        Self(u64::from(number) << PAGE_SHIFT)
    }

    /// The number of the page that it begins at.
    fn number(self) -> u32 {
        // A forged address becomes a number that no chunk has, never another table's.
        u32::try_from(self.0 >> PAGE_SHIFT).unwrap_or(END)
    }

    /// Where its entries begin in its chunk.
    fn first_entry(self) -> usize {
        (self.0 >> PAGE_SHIFT) as usize % CHUNK as usize * PAGE_ENTRIES
    }
}

/// How many pages of 4 KiB a table has, as a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableSize {
    order: u32,
}

impl TableSize {
    /// Sizes that there are: 4 KiB to a whole chunk.
    const COUNT: usize = CHUNK.ilog2() as usize + 1;

    /// The smallest that holds 2^`index_bits` entries of 8 bytes.
    pub(crate) const fn of_entries(index_bits: u32) -> Self {
        Self { order: index_bits.saturating_sub(PAGE_ENTRIES.ilog2()) }
    }

    fn pages(self) -> u32 {
        1 << self.order
    }
}

/// The entries of a chunk's tables: 2 MiB, aligned so that one huge page can hold them.
#[derive(FromZeros)]
#[repr(C, align(0x20_0000))]
struct Entries([AtomicU64; CHUNK as usize * PAGE_ENTRIES]);

struct Chunk {
    size: TableSize,
    entries: Box<Entries>,
    /// For the first page of each table, the next table in the chain it is in. Written only by who owns that chain.
    links: Box<[AtomicU32]>,
}

/// Tables that an unmap emptied and unlinked. They go back with [`Arena::free`], once no walk can be inside them.
#[derive(Debug)]
#[must_use = "the tables stay allocated until they are given to Arena::free"]
pub struct EmptyTables {
    first: u32,
}

impl EmptyTables {
    /// No tables: what an unmap adds to.
    pub const fn none() -> Self {
        Self { first: END }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first == END
    }
}

/// Memory for page tables, shared by any number of tables of any format.
pub struct Arena {
    /// Made in order, so those that are there come first.
    chunks: Box<[OnceLock<Chunk>]>,
    /// For each size, the first table of the chain of free ones.
    free: Mutex<[u32; TableSize::COUNT]>,
}

impl Arena {
    /// An arena of at most `max_tables` tables of 4 KiB (rounded up to a multiple of 512, at most 2^31).
    ///
    /// Larger tables count as their number of 4 KiB pages, and each 2 MiB holds tables of one size. Nothing is
    /// allocated for tables until they are needed.
    #[must_use]
    pub fn new(max_tables: u32) -> Self {
        let chunks = max_tables.min(1 << 31).div_ceil(CHUNK);
        Self { chunks: (0..chunks).map(|_| OnceLock::new()).collect(), free: Mutex::new([END; TableSize::COUNT]) }
    }

    /// A table whose entries are all zero, or `None` if the cap is reached or memory cannot be had.
    pub(crate) fn allocate(&self, size: TableSize) -> Option<TableAddr> {
        loop {
            if let Some(table) = self.take(size) {
                return Some(table);
            }
            self.next_chunk().1?;
            // Without the lock, as those who free must not wait for memory.
            self.add(Chunk {
                size,
                entries: Entries::new_box_zeroed().ok()?,
                links: <[AtomicU32]>::new_box_zeroed_with_elems(CHUNK as usize).ok()?,
            });
        }
    }

    /// The first free table of this size.
    fn take(&self, size: TableSize) -> Option<TableAddr> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let first = free.get_mut(size.order as usize)?;
        let number = *first;
        *first = self.link(number)?.load(Ordering::Relaxed);
        Some(TableAddr::of(number))
    }

    /// Puts `chunk` in its place and its tables on the free chain, the lowest first.
    fn add(&self, chunk: Chunk) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let size = chunk.size;
        let (number, slot) = self.next_chunk();
        let (Some(slot), Some(first)) = (slot, free.get_mut(size.order as usize)) else { return };
        if *first != END {
            // Another thread was faster, and what it added serves as well.
            return;
        }
        let start = number as u32 * CHUNK;
        for page in (0..CHUNK).step_by(size.pages() as usize).rev() {
            chunk.links[page as usize].store(*first, Ordering::Relaxed);
            *first = start + page;
        }
        let _ = slot.set(chunk);
    }

    /// Where the next chunk goes, if the cap lets there be one.
    fn next_chunk(&self) -> (usize, Option<&OnceLock<Chunk>>) {
        let number = self.chunks.partition_point(|chunk| chunk.get().is_some());
        (number, self.chunks.get(number))
    }

    /// Gives tables back. They must be all zero, and no walk may be inside them any more.
    pub fn free(&self, mut tables: EmptyTables) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(chunk) = self.chunk(TableAddr::of(tables.first)) {
            let first = &mut free[chunk.size.order as usize];
            let next = chunk.links[(tables.first % CHUNK) as usize].swap(*first, Ordering::Relaxed);
            *first = tables.first;
            tables.first = next;
        }
    }

    /// Adds `table` to the chain.
    pub(crate) fn chain(&self, tables: &mut EmptyTables, table: TableAddr) {
        if let Some(link) = self.link(table.number()) {
            link.store(tables.first, Ordering::Relaxed);
            tables.first = table.number();
        }
    }

    /// The 2^`index_bits` entries of the table at `addr`, or `None` where the arena has none.
    pub(crate) fn table(&self, addr: TableAddr, index_bits: u32) -> Option<&[AtomicU64]> {
        let first = addr.first_entry();
        self.chunk(addr)?.entries.0.get(first..first + (1 << index_bits))
    }

    /// One entry of the table at `addr`, or `None` where the arena has none.
    #[inline]
    pub(crate) fn entry(&self, addr: TableAddr, index: usize) -> Option<&AtomicU64> {
        self.chunk(addr)?.entries.0.get(addr.first_entry() + index)
    }

    #[inline]
    fn chunk(&self, addr: TableAddr) -> Option<&Chunk> {
        self.chunks.get(usize::try_from(addr.0 >> CHUNK_SHIFT).ok()?)?.get()
    }

    fn link(&self, number: u32) -> Option<&AtomicU32> {
        self.chunk(TableAddr::of(number))?.links.get((number % CHUNK) as usize)
    }

    /// Number of tables handed out and not given back.
    #[must_use]
    pub fn in_use(&self) -> usize {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let made = self.chunks.iter().map_while(OnceLock::get).map(|chunk| (CHUNK / chunk.size.pages()) as usize).sum();
        free.iter().fold(made, |mut count: usize, &first| {
            let mut next = first;
            while let Some(link) = self.link(next) {
                count -= 1;
                next = link.load(Ordering::Relaxed);
            }
            count
        })
    }
}
