//! One algorithm for map, unmap and walk, over every format.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use thiserror::Error;

use crate::arena::{Arena, ENTRIES, EmptyTables, Table, TableAddr};
use crate::format::{Access, Entry, Format};

/// What [`PageTable::walk`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Physical address of the byte that was asked for.
    pub pa: u64,
    /// log2 of the bytes of the page that it is in; the whole page is mapped contiguously.
    pub page_shift: u32,
    /// What is allowed, over all levels.
    pub access: Access,
}

/// Why a range could not be mapped. The table is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MapError {
    /// An address or the length is not a multiple of the smallest page.
    #[error("IOVA {iova:#x}, address {pa:#x} and length {length:#x} must be multiples of the page size {page:#x}")]
    Unaligned {
        /// IOVA asked for.
        iova: u64,
        /// Physical address asked for.
        pa: u64,
        /// Length asked for, in bytes.
        length: u64,
        /// The smallest page, in bytes.
        page: u64,
    },
    /// The range is empty, or reaches beyond what the format can express.
    #[error("IOVA {iova:#x} and length {length:#x} must lie within {bits} bits and not be empty")]
    OutOfRange {
        /// IOVA asked for.
        iova: u64,
        /// Length asked for, in bytes.
        length: u64,
        /// Width of an IOVA of this format.
        bits: u32,
    },
    /// Something is mapped there already.
    #[error("IOVA {0:#x} is mapped already")]
    Occupied(u64),
    /// The arena is full.
    #[error("no memory for page tables: the arena's limit is reached")]
    OutOfTables,
}

/// Why a range could not be unmapped. The table is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UnmapError {
    /// The range is not made of whole pages of the format.
    #[error("IOVA {iova:#x} and length {length:#x} must be whole pages within {bits} bits")]
    OutOfRange {
        /// IOVA asked for.
        iova: u64,
        /// Length asked for, in bytes.
        length: u64,
        /// Width of an IOVA of this format.
        bits: u32,
    },
    /// The range begins or ends in the middle of a large page.
    #[error("IOVA {0:#x} lies inside a large page that the range covers only in part")]
    SplitsPage(u64),
}

/// A page table of one format. See the crate's page for who may call what at the same time.
pub struct PageTable<F: Format> {
    arena: Arc<Arena>,
    root: TableAddr,
    format: PhantomData<F>,
}

impl<F: Format> PageTable<F> {
    /// An empty table in `arena`.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`].
    pub fn new(arena: Arc<Arena>) -> Result<Self, MapError> {
        let root = arena.allocate().ok_or(MapError::OutOfTables)?;
        Ok(Self { arena, root, format: PhantomData })
    }

    /// Maps `length` bytes at `iova` to `pa`, with the largest pages that the alignment of both allows.
    ///
    /// # Errors
    /// See [`MapError`]; after any of them the table is as it was before. A walk may have met what had been written up
    /// to then: treat an error as an unmap of the range, and `empty` as there.
    pub fn map(
        &self,
        iova: u64,
        pa: u64,
        length: u64,
        access: Access,
        empty: &mut EmptyTables,
    ) -> Result<(), MapError> {
        let page = 1u64 << F::PAGE_SHIFT;
        if (iova | pa | length) & (page - 1) != 0 {
            return Err(MapError::Unaligned { iova, pa, length, page });
        }
        if !in_range::<F>(iova, length) || !fits(pa, length, F::PA_BITS) || access.is_empty() {
            return Err(MapError::OutOfRange { iova, length, bits: F::iova_bits() });
        }
        let mut done = 0;
        while done < length {
            match self.map_run(iova + done, pa + done, length - done, access) {
                Ok(bytes) => done += bytes,
                Err((bytes, error)) => {
                    // What this call wrote has the leaves this call chose, so taking it out again splits none.
                    let undone = self.unmap(iova, done + bytes, empty);
                    debug_assert_eq!(undone, Ok(()));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Fills one run of entries of one table, and returns the bytes it mapped; on an error, the bytes mapped before it.
    fn map_run(&self, iova: u64, pa: u64, length: u64, access: Access) -> Result<u64, (u64, MapError)> {
        let mut level = F::LEVELS - 1;
        let mut table = self.root;
        let target = leaf_level::<F>(iova, pa, length);
        while level > target {
            let entries = self.table(table).ok_or((0, MapError::OutOfTables))?;
            let slot = &entries.0[index::<F>(iova, level)];
            table = match F::decode(slot.load(Ordering::Relaxed), level) {
                Entry::Table(next, _) => next,
                Entry::Leaf(..) => return Err((0, MapError::Occupied(iova))),
                Entry::Empty => {
                    let next = self.arena.allocate().ok_or((0, MapError::OutOfTables))?;
                    slot.store(F::table(next), Ordering::Release);
                    next
                }
            };
            level -= 1;
        }
        let size = 1u64 << F::shift(level);
        let entries = self.table(table).ok_or((0, MapError::OutOfTables))?;
        let first = index::<F>(iova, level);
        let run = (ENTRIES - first).min(usize::try_from(length / size).unwrap_or(ENTRIES));
        let mut done = 0;
        for slot in &entries.0[first..first + run] {
            // A table below a slot that a large page could fill may hold other mappings, or be empty and left over:
            // go down into it rather than tell which.
            match F::decode(slot.load(Ordering::Relaxed), level) {
                Entry::Empty => slot.store(F::leaf(pa + done, access, level), Ordering::Release),
                Entry::Leaf(..) => return Err((done, MapError::Occupied(iova + done))),
                Entry::Table(below, _) => self
                    .map_below(below, level - 1, iova + done, pa + done, access)
                    .map_err(|(bytes, error)| (done + bytes, error))?,
            }
            done += size;
        }
        Ok(done)
    }

    /// Maps everything that `table`, of `level`, covers; `iova` is where it begins.
    fn map_below(
        &self,
        table: TableAddr,
        level: u8,
        iova: u64,
        pa: u64,
        access: Access,
    ) -> Result<(), (u64, MapError)> {
        let size = 1u64 << F::shift(level);
        let entries = self.table(table).ok_or((0, MapError::OutOfTables))?;
        let mut done = 0;
        for slot in &entries.0 {
            match F::decode(slot.load(Ordering::Relaxed), level) {
                Entry::Empty => slot.store(F::leaf(pa + done, access, level), Ordering::Release),
                Entry::Leaf(..) => return Err((done, MapError::Occupied(iova + done))),
                Entry::Table(below, _) => self
                    .map_below(below, level - 1, iova + done, pa + done, access)
                    .map_err(|(bytes, error)| (done + bytes, error))?,
            }
            done += size;
        }
        Ok(())
    }

    /// Unmaps `length` bytes at `iova`; what is not mapped in between stays so.
    ///
    /// Adds the tables that no longer hold anything to `empty`: give them to [`Arena::free`] when no walk that began
    /// before can still be running. Allocates nothing.
    ///
    /// # Errors
    /// See [`UnmapError`]; after any of them the table is as it was before.
    pub fn unmap(&self, iova: u64, length: u64, empty: &mut EmptyTables) -> Result<(), UnmapError> {
        if length == 0 {
            return Ok(());
        }
        let page = 1u64 << F::PAGE_SHIFT;
        if (iova | length) & (page - 1) != 0 || !in_range::<F>(iova, length) {
            return Err(UnmapError::OutOfRange { iova, length, bits: F::iova_bits() });
        }
        let last = iova + (length - 1);
        for edge in [iova, last] {
            if let Some(found) = self.walk(edge) {
                let start = edge & (!0 << found.page_shift);
                if start < iova || start + ((1u64 << found.page_shift) - 1) > last {
                    return Err(UnmapError::SplitsPage(edge));
                }
            }
        }
        self.clear(self.root, F::LEVELS - 1, 0, iova, last, empty);
        Ok(())
    }

    /// Empties what lies in `iova..=last` of `table`, of `level`, which begins at `base`; returns whether nothing is left
    /// in the table.
    fn clear(&self, table: TableAddr, level: u8, base: u64, iova: u64, last: u64, empty: &mut EmptyTables) -> bool {
        let Some(entries) = self.table(table) else { return true };
        let shift = F::shift(level);
        let first = (iova.max(base) - base) >> shift;
        let count = ((last - base) >> shift).min(ENTRIES as u64 - 1) - first + 1;
        for (number, slot) in (first..).zip(&entries.0[first as usize..(first + count) as usize]) {
            let start = base + (number << shift);
            match F::decode(slot.load(Ordering::Relaxed), level) {
                Entry::Empty => {}
                Entry::Leaf(..) => slot.store(0, Ordering::Release),
                Entry::Table(below, _) => {
                    if self.clear(below, level - 1, start, iova, last, empty) {
                        slot.store(0, Ordering::Release);
                        self.arena.chain(empty, below);
                    }
                }
            }
        }
        // A table in use nearly always has an entry near the front, so this seldom looks at many.
        entries.0.iter().all(|slot| slot.load(Ordering::Relaxed) == 0)
    }

    /// Translates one address. Takes no lock and allocates nothing.
    #[must_use]
    pub fn walk(&self, iova: u64) -> Option<Translation> {
        if iova >> F::iova_bits() != 0 {
            return None;
        }
        let mut allowed = Access::all();
        let mut table = self.root;
        let mut level = F::LEVELS - 1;
        loop {
            let slot = &self.table(table)?.0[index::<F>(iova, level)];
            match F::decode(slot.load(Ordering::Acquire), level) {
                Entry::Empty => return None,
                Entry::Leaf(pa, access) => {
                    let page_shift = F::shift(level);
                    let pa = pa | (iova & !(!0 << page_shift));
                    return Some(Translation { pa, page_shift, access: allowed & access });
                }
                Entry::Table(next, access) => {
                    allowed &= access;
                    table = next;
                    level = level.checked_sub(1)?;
                }
            }
        }
    }

    fn table(&self, addr: TableAddr) -> Option<&Table> {
        self.arena.table(addr)
    }
}

impl<F: Format> Drop for PageTable<F> {
    fn drop(&mut self) {
        // `&mut self`: no walk is running.
        let mut empty = EmptyTables::none();
        let last = (1u64 << F::iova_bits()) - 1;
        self.clear(self.root, F::LEVELS - 1, 0, 0, last, &mut empty);
        self.arena.chain(&mut empty, self.root);
        self.arena.free(empty);
    }
}

/// The highest level at which one entry can map the beginning of the range.
fn leaf_level<F: Format>(iova: u64, pa: u64, length: u64) -> u8 {
    (1..=F::MAX_LEAF_LEVEL)
        .rev()
        .find(|&level| {
            let size = 1u64 << F::shift(level);
            (iova | pa) & (size - 1) == 0 && length >= size
        })
        .unwrap_or(0)
}

fn index<F: Format>(iova: u64, level: u8) -> usize {
    (iova >> F::shift(level)) as usize % ENTRIES
}

fn in_range<F: Format>(iova: u64, length: u64) -> bool {
    fits(iova, length, F::iova_bits())
}

fn fits(start: u64, length: u64, bits: u32) -> bool {
    length != 0 && start.checked_add(length - 1).is_some_and(|last| last >> bits == 0)
}
