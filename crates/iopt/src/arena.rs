//! The memory that tables live in.
//!
//! Tables come from chunks of 2 MiB, and a table's address is its byte offset in the arena, so that it fits the
//! address field of any format and following one is an index, not a search:
//!
//! ```text
//!  TableAddr   63          21 20        12 11       0
//!             │    chunk     │   table    │    0     │
//! ```
//!
//! Chunks are made on demand and kept until the arena goes; the cap on their number is what turns a hostile amount of
//! mapping into an error. Free tables are linked through words beside them, not inside them, as a walk that began
//! before may still be reading the table. For the same reason nothing is allocated on the way to freeing a table:
//! a chain of emptied tables ([`EmptyTables`]) is built from those words alone.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use zerocopy::FromZeros;

/// Entries in a table.
pub(crate) const ENTRIES: usize = 512;
/// Tables in a chunk.
const CHUNK: u32 = 512;
/// Ends a chain of tables. No table has this number, as [`Arena::new`] caps the count below it.
const END: u32 = u32::MAX;

/// The address of a table inside its [`Arena`], in bytes; a multiple of 4,096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TableAddr(pub u64);

impl TableAddr {
    fn of(number: u32) -> Self {
        Self(u64::from(number) << 12)
    }

    fn number(self) -> u32 {
        // A forged address becomes a number that no chunk has, never another table's.
        u32::try_from(self.0 >> 12).unwrap_or(END)
    }
}

/// One table: 512 entries, 4 KiB, aligned.
#[derive(FromZeros)]
#[repr(C, align(4096))]
pub(crate) struct Table(pub(crate) [AtomicU64; ENTRIES]);

struct Chunk {
    tables: Box<[Table]>,
    /// For each table, the next one in the chain it is in. Written only by who owns that chain.
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

struct Free {
    first: u32,
    /// Tables with this number and above were never handed out.
    untouched: u32,
}

/// Memory for page tables, shared by any number of tables of any format.
pub struct Arena {
    chunks: Box<[OnceLock<Chunk>]>,
    free: Mutex<Free>,
}

impl Arena {
    /// An arena of at most `max_tables` tables of 4 KiB (rounded up to a multiple of 512, at most 2^31).
    ///
    /// Nothing is allocated for tables until they are needed.
    #[must_use]
    pub fn new(max_tables: u32) -> Self {
        let chunks = max_tables.min(1 << 31).div_ceil(CHUNK);
        Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            free: Mutex::new(Free { first: END, untouched: 0 }),
        }
    }

    /// A table whose entries are all zero, or `None` if the cap is reached or memory cannot be had.
    pub(crate) fn allocate(&self) -> Option<TableAddr> {
        loop {
            let missing = {
                let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
                if free.first != END {
                    let number = free.first;
                    free.first = self.link(number)?.load(Ordering::Relaxed);
                    return Some(TableAddr::of(number));
                }
                let slot = self.chunks.get((free.untouched / CHUNK) as usize)?;
                if slot.get().is_some() {
                    free.untouched += 1;
                    return Some(TableAddr::of(free.untouched - 1));
                }
                slot
            };
            // Without the lock, as those who free must not wait for memory.
            let chunk = Chunk {
                tables: <[Table]>::new_box_zeroed_with_elems(CHUNK as usize).ok()?,
                links: <[AtomicU32]>::new_box_zeroed_with_elems(CHUNK as usize).ok()?,
            };
            // If another thread was faster, its chunk serves as well.
            let _ = missing.set(chunk);
        }
    }

    /// Gives tables back. They must be all zero, and no walk may be inside them any more.
    pub fn free(&self, mut tables: EmptyTables) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while tables.first != END {
            let Some(link) = self.link(tables.first) else { return };
            let next = link.swap(free.first, Ordering::Relaxed);
            free.first = tables.first;
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

    /// The table at `addr`, or `None` where the arena has none.
    pub(crate) fn table(&self, addr: TableAddr) -> Option<&Table> {
        let number = addr.number();
        let chunk = self.chunks.get((number / CHUNK) as usize)?.get()?;
        chunk.tables.get((number % CHUNK) as usize)
    }

    fn link(&self, number: u32) -> Option<&AtomicU32> {
        let chunk = self.chunks.get((number / CHUNK) as usize)?.get()?;
        chunk.links.get((number % CHUNK) as usize)
    }

    /// Number of tables handed out and not given back.
    #[must_use]
    pub fn in_use(&self) -> usize {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = free.untouched as usize;
        let mut next = free.first;
        while let Some(link) = self.link(next) {
            count -= 1;
            next = link.load(Ordering::Relaxed);
        }
        count
    }
}
