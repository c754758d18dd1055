//! The memory that tables live in.
//!
//! It is one contiguous slice of entries ([`TableMemory`]), and a table's address is its byte offset in it: it fits the
//! address field of any format, and following one is arithmetic and one comparison. Tables come from chunks of 2 MiB. A
//! table of 2^n pages of 4 KiB is aligned to its own size, as every format demands; all tables of a chunk have the size
//! that the first one asked for:
//!
//! ```text
//!  TableAddr   63          21 20        12+n 11+n       0
//!             │    chunk     │    table     │     0      │
//! ```
//!
//! What is known of a table is kept beside it and not inside it, as others may be walking it: how many of its entries are
//! used, the next table of the chain it is in, and which entries were written to since somebody last asked. For the same
//! reason nothing is allocated on the way to freeing a table: a chain of emptied tables ([`EmptyTables`]) is built from
//! those words alone.
//!
//! # Who waits for whom
//!
//! Chunks are taken into use one after the other, each made resident first, which may take long. Whoever does that holds
//! `grow` and is not *inside* (see [`Inside`]): those who need no new chunk do not notice. `free` and `limbo` are held
//! for a few instructions a table. They are taken in the order `grow`, `limbo`, `free`.

mod chunk;
mod grace;
mod memory;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

pub use chunk::TableAddr;
pub(crate) use chunk::TableSize;
use chunk::{CHUNK_BYTES, Chunk, END, PAGES};
use grace::{Generation, Grace};
pub use memory::{Heap, TableMemory};

/// Most chunks of an arena, so that pages can be numbered in 32 bits.
const MOST_CHUNKS: usize = (1 << 31) / PAGES as usize;

/// Tables that were emptied and unlinked. They go back with [`Arena::free`], once no walk can be inside them.
#[derive(Debug)]
#[must_use = "the tables stay allocated until they are given to Arena::free"]
pub struct EmptyTables {
    first: u32,
    last: u32,
}

impl EmptyTables {
    /// No tables: what an unmap adds to.
    pub const fn none() -> Self {
        Self { first: END, last: END }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first == END
    }

    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::none())
    }
}

/// The tables of one size.
#[derive(Clone, Copy)]
struct Pool {
    /// Ever made.
    made: usize,
    /// Of those, free now.
    free: usize,
    /// The chain of the free ones.
    first: u32,
}

/// Tables that their owner gave back, while somebody who changes tables may still be inside.
struct Limbo {
    /// Unlinked before the last turn of [`Grace`]: wait for the earlier generation.
    waiting: EmptyTables,
    /// Unlinked after it: wait for the next turn.
    next: EmptyTables,
}

/// Memory for page tables, shared by any number of tables of any format.
pub struct Arena<M: TableMemory = Heap> {
    memory: M,
    /// Those in use come first.
    chunks: Box<[OnceLock<Chunk>]>,
    /// How many are in use. Held while another is made ready.
    grow: Mutex<usize>,
    /// By size.
    free: Mutex<[Pool; TableSize::COUNT]>,
    grace: Grace,
    limbo: Mutex<Limbo>,
    /// Whether chunks have logs. Written by who holds `grow`.
    tracking: AtomicBool,
}

impl Arena {
    /// An arena of at most `max_tables` tables of 4 KiB (rounded up to a multiple of 512, at most 2^31), on the heap.
    ///
    /// Larger tables count as their number of 4 KiB pages, and each 2 MiB holds tables of one size. Address space is taken
    /// at once (less, if there is not as much), memory as tables are needed.
    #[must_use]
    pub fn new(max_tables: u32) -> Self {
        let chunks = (max_tables.div_ceil(PAGES) as usize).min(MOST_CHUNKS);
        let memory = Heap::new(chunks * CHUNK_BYTES);
        Self::of_chunks(memory, chunks)
    }
}

impl<M: TableMemory> Arena<M> {
    /// An arena in `memory`, as many whole chunks of 2 MiB as there are (at most 4 TiB).
    #[must_use]
    pub fn with_memory(memory: M) -> Self {
        Self::of_chunks(memory, MOST_CHUNKS)
    }

    fn of_chunks(memory: M, most: usize) -> Self {
        let chunks = (size_of_val(memory.entries()) / CHUNK_BYTES).min(most);
        Self {
            memory,
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            grow: Mutex::new(0),
            free: Mutex::new([Pool { made: 0, free: 0, first: END }; TableSize::COUNT]),
            grace: Grace::new(),
            limbo: Mutex::new(Limbo { waiting: EmptyTables::none(), next: EmptyTables::none() }),
            tracking: AtomicBool::new(false),
        }
    }

    /// What the tables live in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Number of tables handed out and not given back.
    #[must_use]
    pub fn in_use(&self) -> usize {
        lock(&self.free).iter().map(|pool| pool.made - pool.free).sum()
    }

    /// Gives tables back, those of any number of page tables of this arena together. No walk that began before they were
    /// emptied may still be running. Waits for nobody and allocates nothing.
    ///
    /// If another thread is in the middle of changing a table of this arena, they can be used again when it is done.
    pub fn free(&self, tables: EmptyTables) {
        if tables.is_empty() {
            return;
        }
        let mut limbo = lock(&self.limbo);
        if let Some(link) = self.next(tables.last) {
            link.store(limbo.next.first, Ordering::Relaxed);
        }
        let last = if limbo.next.is_empty() { tables.last } else { limbo.next.last };
        limbo.next = EmptyTables { first: tables.first, last };
        self.settle(&mut limbo);
    }

    /// Frees what nobody can be inside of any more.
    fn settle(&self, limbo: &mut Limbo) {
        while self.grace.earlier_left() {
            self.give_back(limbo.waiting.take());
            if limbo.next.is_empty() {
                break;
            }
            limbo.waiting = limbo.next.take();
            self.grace.turn();
        }
    }

    /// Puts tables, all zero, on their free chains at once: nobody can be inside them.
    pub(crate) fn give_back(&self, tables: EmptyTables) {
        let mut number = tables.first;
        if number == END {
            return;
        }
        let mut pools = lock(&self.free);
        while let Some(chunk) = self.chunk(TableAddr::of(number)) {
            let table = TableAddr::of(number);
            chunk.clear_log(table);
            let pool = &mut pools[chunk.size().order()];
            let next = chunk.next(table).swap(pool.first, Ordering::Relaxed);
            pool.first = number;
            pool.free += 1;
            number = next;
        }
    }

    /// Adds `table` to the chain.
    pub(crate) fn chain(&self, tables: &mut EmptyTables, table: TableAddr) {
        let number = table.number();
        if let Some(link) = self.next(number) {
            link.store(tables.first, Ordering::Relaxed);
            if tables.is_empty() {
                tables.last = number;
            }
            tables.first = number;
        }
    }

    /// A table whose entries are all zero, for who is not inside; `None` if the cap is reached or memory cannot be had.
    pub(crate) fn allocate(&self, size: TableSize) -> Option<TableAddr> {
        for round in 0..PATIENCE {
            if let Some(table) = self.take(size) {
                return Some(table);
            }
            if !self.grow(size, round) {
                break;
            }
        }
        None
    }

    /// The first free table of this size.
    fn take(&self, size: TableSize) -> Option<TableAddr> {
        let mut pools = lock(&self.free);
        let pool = &mut pools[size.order()];
        let number = pool.first;
        pool.first = self.next(number)?.load(Ordering::Relaxed);
        pool.free -= 1;
        let table = TableAddr::of(number);
        Some(table)
    }

    /// Sees to it that there are free tables of this size; `false` if that cannot be.
    ///
    /// It may wait for those that are on their way back, longer from round to round.
    fn grow(&self, size: TableSize, round: u32) -> bool {
        let mut made = lock(&self.grow);
        // Looked at first: what leaves limbo then is found free.
        let on_their_way = !lock(&self.limbo).waiting.is_empty();
        if lock(&self.free)[size.order()].first != END {
            // Another thread was faster.
            return true;
        }
        let number = *made;
        let Some(slot) = self.chunks.get(number) else {
            if on_their_way {
                // Nobody stays inside for long, except for those who iterate.
                drop(made);
                if round < PATIENCE / 2 {
                    std::thread::yield_now();
                } else {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            return on_their_way;
        };
        if !self.memory.populate(number * CHUNK_BYTES..(number + 1) * CHUNK_BYTES) {
            return false;
        }
        let Some(chunk) = Chunk::new(size) else { return false };
        if self.tracking.load(Ordering::Relaxed) && !chunk.make_log() {
            return false;
        }
        let chunk = slot.get_or_init(|| chunk);
        *made += 1;
        // Within MOST_CHUNKS.
        let start = number as u32 * PAGES;
        let mut pools = lock(&self.free);
        let pool = &mut pools[size.order()];
        // The lowest comes to be the first.
        for page in (0..PAGES).step_by(size.pages() as usize).rev() {
            chunk.next(TableAddr::of(start + page)).store(pool.first, Ordering::Relaxed);
            pool.first = start + page;
            pool.made += 1;
            pool.free += 1;
        }
        true
    }

    /// Enters: until the guard goes, no table that is linked now is used for something else.
    pub(crate) fn enter(&self) -> Inside<'_, M> {
        Inside { arena: self, generation: Some(self.grace.enter()) }
    }

    /// The 2^`index_bits` entries of the table at `addr`, or `None` where the arena has none.
    #[inline]
    pub(crate) fn table(&self, addr: TableAddr, index_bits: u32) -> Option<&[AtomicU64]> {
        let first = addr.first_entry();
        self.memory.entries().get(first..first + (1 << index_bits))
    }

    /// Brings a table that was just allocated to life, with `used` entries spoken for.
    pub(crate) fn begin(&self, table: TableAddr, used: u32) {
        if let Some(chunk) = self.chunk(table) {
            chunk.begin(table, used);
        }
    }

    /// Gives back a table, all zero, that was never linked.
    pub(crate) fn discard(&self, table: TableAddr) {
        if let Some(chunk) = self.chunk(table) {
            chunk.end(table);
        }
        let mut tables = EmptyTables::none();
        self.chain(&mut tables, table);
        self.give_back(tables);
    }

    /// Speaks for `more` entries of a table; `false` if it is dead, so that nothing may be added.
    pub(crate) fn reserve(&self, table: TableAddr, more: u32) -> bool {
        self.chunk(table).is_some_and(|chunk| chunk.reserve(table, more))
    }

    /// Takes `fewer` entries off a table's count. `true`: it is dead, and the caller must unlink it.
    pub(crate) fn release(&self, table: TableAddr, fewer: u32) -> bool {
        self.chunk(table).is_some_and(|chunk| chunk.release(table, fewer))
    }

    /// Makes the log of writes for all tables, those to come included. `false`: no memory.
    pub(crate) fn track(&self) -> bool {
        let made = lock(&self.grow);
        self.tracking.store(true, Ordering::Relaxed);
        self.chunks[..*made].iter().filter_map(OnceLock::get).all(Chunk::make_log)
    }

    /// The words of the log for some entries of a table, if there is a log. Bit n of a word is for the entry whose number in
    /// the table is n more than a multiple of 64.
    #[inline]
    pub(crate) fn log(&self, table: TableAddr, entries: Range<usize>) -> Option<&[AtomicU64]> {
        self.chunk(table)?.log(table, entries)
    }

    #[inline]
    fn chunk(&self, table: TableAddr) -> Option<&Chunk> {
        self.chunks.get(table.chunk())?.get()
    }

    fn next(&self, number: u32) -> Option<&AtomicU32> {
        let table = TableAddr::of(number);
        Some(self.chunk(table)?.next(table))
    }
}

/// The right to be in tables that others may unlink meanwhile: they are not used for something else until this goes.
///
/// Nobody waits for memory while inside, or all that is given back would wait as well.
pub(crate) struct Inside<'a, M: TableMemory> {
    arena: &'a Arena<M>,
    /// `None` while it waits for memory.
    generation: Option<Generation>,
}

impl<M: TableMemory> Inside<'_, M> {
    /// A table whose entries are all zero, or `None` if the cap is reached or memory cannot be had.
    ///
    /// This may leave and enter again: the caller must not be in any table that can go meanwhile, which is to say that it
    /// has an entry, or has reserved one, in the table that it will go on with.
    pub(crate) fn allocate(&mut self, size: TableSize) -> Option<TableAddr> {
        for round in 0..PATIENCE {
            if let Some(table) = self.arena.take(size) {
                return Some(table);
            }
            self.leave();
            let grown = self.arena.grow(size, round);
            self.generation = Some(self.arena.grace.enter());
            if !grown {
                break;
            }
        }
        None
    }

    fn leave(&mut self) {
        if self.generation.take().is_some_and(|generation| self.arena.grace.leave(generation)) {
            self.arena.settle(&mut lock(&self.arena.limbo));
        }
    }
}

impl<M: TableMemory> Drop for Inside<'_, M> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// How often somebody without a table looks again for those that are on their way back, before it is an error: for
/// a tenth of a second or so, which is as long as somebody who is inside may not be running.
const PATIENCE: u32 = 1000;

/// Nothing in here is left half done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
