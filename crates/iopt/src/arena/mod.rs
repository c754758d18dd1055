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
//! What is known of a table is kept beside it and not inside it, as others may be walking it: how many of its entries
//! are used, the next table of the chain it is in, and which entries were written to since somebody last asked. For the
//! same reason nothing is allocated on the way to freeing a table: chains of emptied tables ([`EmptyTables`], one for
//! each size) are built from those words alone.
//!
//! # Who waits for whom
//!
//! Chunks are taken into use one after the other, each made resident first, which may take long. Whoever does that
//! holds `grow` and is not *inside* (see [`Inside`]): those who need no new chunk do not notice. `tracking` is held for
//! a moment to put the chunk among the others, and to give those in use their logs. `free` and `limbo` are held for a
//! few instructions, however many tables go back: what moves is a whole chain, of which only the ends are touched. They
//! are taken in the order `grow`, `limbo`, `free`; none is taken under `tracking`.

mod chunk;
mod grace;
mod memory;

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

pub use chunk::TableAddr;
pub(crate) use chunk::TableSize;
use chunk::{CHUNK_BYTES, Chunk, END, PAGES};
use grace::{Generation, Grace};
pub use memory::{Heap, TableMemory};

/// Most chunks of an arena, so that pages can be numbered in 32 bits.
const MOST_CHUNKS: usize = (1 << 31) / PAGES as usize;

/// Tables of one size, one after the other.
#[derive(Debug, Clone, Copy)]
struct Chain {
    first: u32,
    last: u32,
    count: u32,
}

impl Chain {
    const EMPTY: Self = Self { first: END, last: END, count: 0 };
}

/// Tables that were emptied and unlinked. They go back with [`Arena::free`], once no walk can be inside them.
#[derive(Debug)]
#[must_use = "the tables stay allocated until they are given to Arena::free"]
pub struct EmptyTables {
    /// By size.
    chains: [Chain; TableSize::COUNT],
}

impl EmptyTables {
    /// No tables: what an unmap adds to.
    pub const fn none() -> Self {
        Self { chains: [Chain::EMPTY; TableSize::COUNT] }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.iter().all(|chain| chain.count == 0)
    }

    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::none())
    }
}

/// What there is for who needs a table.
struct Free {
    /// Ever made, by size.
    made: [usize; TableSize::COUNT],
    /// Of those, free now.
    tables: EmptyTables,
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
    free: Mutex<Free>,
    grace: Grace,
    limbo: Mutex<Limbo>,
    /// Whether chunks have logs. Held while it begins, and while a chunk that is ready comes into use.
    tracking: Mutex<bool>,
}

impl Arena {
    /// An arena of at most `max_tables` tables of 4 KiB (rounded up to a multiple of 512, at most 2^31), on the heap.
    ///
    /// Larger tables count as their number of 4 KiB pages, and each 2 MiB holds tables of one size. Address space is
    /// taken at once (less, if there is not as much), memory as tables are needed.
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
            free: Mutex::new(Free { made: [0; TableSize::COUNT], tables: EmptyTables::none() }),
            grace: Grace::new(),
            limbo: Mutex::new(Limbo { waiting: EmptyTables::none(), next: EmptyTables::none() }),
            tracking: Mutex::new(false),
        }
    }

    /// What the tables live in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Bytes of the memory that tables have been made in so far, from its beginning on. It grows by 2 MiB.
    #[must_use]
    pub fn extent(&self) -> usize {
        *lock(&self.grow) * CHUNK_BYTES
    }

    /// Number of tables handed out and not given back.
    #[must_use]
    pub fn in_use(&self) -> usize {
        let free = lock(&self.free);
        free.made.iter().zip(&free.tables.chains).map(|(made, chain)| made - chain.count as usize).sum()
    }

    /// Gives tables back, those of any number of page tables of this arena together. No walk that began before they
    /// were emptied may still be running. Waits for nobody, allocates nothing, and takes as long for one table as for
    /// all.
    ///
    /// If another thread is in the middle of changing a table of this arena, they can be used again when it is done.
    pub fn free(&self, tables: EmptyTables) {
        if tables.is_empty() {
            return;
        }
        let mut limbo = lock(&self.limbo);
        self.splice(&mut limbo.next, tables);
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
        self.splice(&mut lock(&self.free).tables, tables);
    }

    /// Puts `more` before `tables`. Touches only the last table of each size.
    fn splice(&self, tables: &mut EmptyTables, more: EmptyTables) {
        for (chain, more) in tables.chains.iter_mut().zip(more.chains) {
            if let Some(link) = self.next(more.last) {
                link.store(chain.first, Ordering::Relaxed);
                let last = if chain.count == 0 { more.last } else { chain.last };
                *chain = Chain { first: more.first, last, count: chain.count + more.count };
            }
        }
    }

    /// Adds `table` to the chain of its size, at the end: what is unmapped in order is used again in order.
    pub(crate) fn chain(&self, tables: &mut EmptyTables, table: TableAddr) {
        let Some(chunk) = self.chunk(table) else { return };
        let number = table.number();
        chunk.next(table).store(END, Ordering::Relaxed);
        let chain = &mut tables.chains[chunk.size().order()];
        match self.next(chain.last) {
            Some(link) => link.store(number, Ordering::Relaxed),
            None => chain.first = number,
        }
        chain.last = number;
        chain.count += 1;
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
        let mut free = lock(&self.free);
        let chain = &mut free.tables.chains[size.order()];
        let table = TableAddr::of(chain.first);
        let chunk = self.chunk(table)?;
        chain.first = chunk.next(table).load(Ordering::Relaxed);
        chain.count -= 1;
        if chain.count == 0 {
            chain.last = END;
        }
        drop(free);
        // Not where it goes back, as others would wait for all of a long chain.
        chunk.clear_log(table);
        Some(table)
    }

    /// Sees to it that there are free tables of this size; `false` if that cannot be.
    ///
    /// It may wait for those that are on their way back, longer from round to round.
    fn grow(&self, size: TableSize, round: u32) -> bool {
        let mut made = lock(&self.grow);
        // Looked at first: what leaves limbo then is found free.
        let on_their_way = !lock(&self.limbo).waiting.is_empty();
        if lock(&self.free).tables.chains[size.order()].count != 0 {
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
        let tracking = lock(&self.tracking);
        if *tracking && !chunk.make_log() {
            return false;
        }
        slot.get_or_init(|| chunk);
        drop(tracking);
        *made += 1;
        // Within MOST_CHUNKS.
        let start = number as u32 * PAGES;
        let mut tables = EmptyTables::none();
        for page in (0..PAGES).step_by(size.pages() as usize) {
            self.chain(&mut tables, TableAddr::of(start + page));
        }
        let mut free = lock(&self.free);
        free.made[size.order()] += tables.chains[size.order()].count as usize;
        self.splice(&mut free.tables, tables);
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
        // Not `grow`, whose holder may be waiting for memory.
        let mut tracking = lock(&self.tracking);
        *tracking = true;
        self.chunks.iter().map_while(OnceLock::get).all(Chunk::make_log)
    }

    /// The words of the log for some entries of a table, if there is a log. Bit n of a word is for the entry whose
    /// number in the table is n more than a multiple of 64.
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
    /// This may leave and enter again: the caller must not be in any table that can go meanwhile, which is to say that
    /// it has an entry, or has reserved one, in the table that it will go on with.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Arena, EmptyTables, PAGES, TableAddr, TableSize};
    use std::sync::atomic::Ordering;

    /// At most `count` tables.
    fn taken(arena: &Arena, size: TableSize, count: usize) -> Vec<TableAddr> {
        std::iter::from_fn(|| arena.allocate(size)).take(count).collect()
    }

    #[test]
    fn to_free_many_tables_takes_no_longer_than_to_free_two() {
        let count = if cfg!(miri) { 24 } else { 1 << 17 };
        let arena = Arena::new(count);
        let size = TableSize::of_entries(9);
        let tables = taken(&arena, size, count as usize);
        let mut empty = EmptyTables::none();
        tables.iter().for_each(|&table| arena.chain(&mut empty, table));
        // Whoever followed the chain would end at the first link, and take what is behind it for lost.
        let link = arena.next(tables[0].number()).unwrap();
        let behind = link.swap(super::END, Ordering::Relaxed);
        let inside = arena.enter();
        arena.free(empty);
        assert_eq!(arena.in_use(), tables.len(), "somebody is inside");
        drop(inside);
        assert_eq!(arena.in_use(), 0);
        link.store(behind, Ordering::Relaxed);
        assert_eq!(taken(&arena, size, tables.len()), tables, "the same, in order");
    }

    #[test]
    fn tables_of_two_sizes_go_back_together_each_to_its_own() {
        let arena = Arena::new(2 * PAGES);
        let sizes = [(9, 20), (13, 10)].map(|(index_bits, count)| (TableSize::of_entries(index_bits), count));
        let take = || sizes.map(|(size, count)| taken(&arena, size, count));
        let tables = take();
        let mut empty = EmptyTables::none();
        // In turn, as far as there are both.
        for n in 0..20 {
            tables.iter().filter_map(|tables| tables.get(n)).for_each(|&table| arena.chain(&mut empty, table));
        }
        arena.free(empty);
        assert_eq!(arena.in_use(), 0);
        assert_eq!(take(), tables);
        assert_eq!(arena.in_use(), 30);
    }

    #[test]
    fn what_goes_back_later_goes_before_what_is_there() {
        let arena = Arena::new(PAGES);
        let size = TableSize::of_entries(16);
        // All that there are.
        let tables = taken(&arena, size, 100);
        assert_eq!(tables.len(), 4);
        for part in tables.chunks(3) {
            let mut empty = EmptyTables::none();
            part.iter().for_each(|&table| arena.chain(&mut empty, table));
            arena.free(empty);
        }
        assert_eq!(taken(&arena, size, 100), [tables[3], tables[0], tables[1], tables[2]]);
        // The chain was used up, and begins anew.
        arena.discard(tables[1]);
        assert_eq!(taken(&arena, size, 100), [tables[1]]);
    }
}
