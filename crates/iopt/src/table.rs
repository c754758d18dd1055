//! One algorithm for map, unmap and walk, over every format.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::arena::{Arena, EmptyTables, TableAddr, TableSize};
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
    pub(crate) root: TableAddr,
    format: PhantomData<F>,
}

impl<F: Format> PageTable<F> {
    /// An empty table in `arena`.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`].
    pub fn new(arena: Arc<Arena>) -> Result<Self, MapError> {
        let root = arena.allocate(table_size::<F>(F::LEVELS - 1)).ok_or(MapError::OutOfTables)?;
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
            let run = Run::first::<F>(iova + done, pa + done, length - done);
            if let Err(error) = self.map_run(iova + done, pa + done, &run, access) {
                // Up to where it failed all leaves are this call's. If it lacked a table, the page there is unmapped,
                // but tables on the way to it may be new, so that page is cleared as well.
                let end = if error == MapError::OutOfTables { done + page } else { done };
                if end > 0 {
                    self.clear(self.root, F::LEVELS - 1, 0, iova, iova + (end - 1), empty);
                }
                return Err(error);
            }
            done += run.bytes;
        }
        Ok(())
    }

    /// Fills one run of entries of one table, all or, on an error, none.
    fn map_run(&self, iova: u64, pa: u64, run: &Run, access: Access) -> Result<(), MapError> {
        let mut level = F::LEVELS - 1;
        let mut table = self.root;
        while level > run.level {
            let slot = self.arena.entry(table, index::<F>(iova, level)).ok_or(MapError::OutOfTables)?;
            table = match F::decode(slot.load(Ordering::Relaxed), level) {
                Entry::Table(next, _) => next,
                Entry::Leaf { .. } => return Err(MapError::Occupied(iova)),
                Entry::Empty => {
                    let next = self.arena.allocate(table_size::<F>(level - 1)).ok_or(MapError::OutOfTables)?;
                    slot.store(F::table(next, level), Ordering::Release);
                    next
                }
            };
            level -= 1;
        }
        let shift = F::shift(level);
        let entries = self.table(table, level).ok_or(MapError::OutOfTables)?;
        let first = index::<F>(iova, level);
        let slots = &entries[first..first + (run.bytes >> shift) as usize];
        if !are_zero(slots) {
            let number = slots.iter().position(|slot| slot.load(Ordering::Relaxed) != 0).unwrap_or(0);
            let start = iova + ((number as u64) << shift);
            return Err(MapError::Occupied(self.first_mapped(&slots[number], level, start)));
        }
        for (number, slot) in (0u64..).zip(slots) {
            slot.store(F::leaf(pa + (number << shift), run.page_shift, access, level), Ordering::Release);
        }
        Ok(())
    }

    /// The lowest address that is mapped below `slot`, of `level`, which begins at `start` and is not empty.
    fn first_mapped(&self, slot: &AtomicU64, level: u8, start: u64) -> u64 {
        let Entry::Table(table, _) = F::decode(slot.load(Ordering::Relaxed), level) else { return start };
        let below = level - 1;
        // No table but the root is ever left empty.
        self.table(table, below)
            .and_then(|entries| {
                (0u64..)
                    .zip(entries)
                    .find(|(_, slot)| slot.load(Ordering::Relaxed) != 0)
                    .map(|(number, slot)| self.first_mapped(slot, below, start + (number << F::shift(below))))
            })
            .unwrap_or(start)
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
        let Some(entries) = self.table(table, level) else { return true };
        let shift = F::shift(level);
        let first = (iova.max(base) - base) >> shift;
        let count = ((last - base) >> shift).min(entries.len() as u64 - 1) - first + 1;
        for (number, slot) in (first..).zip(&entries[first as usize..(first + count) as usize]) {
            let start = base + (number << shift);
            match F::decode(slot.load(Ordering::Relaxed), level) {
                Entry::Empty => {}
                Entry::Leaf { .. } => slot.store(0, Ordering::Release),
                Entry::Table(below, _) => {
                    if self.clear(below, level - 1, start, iova, last, empty) {
                        slot.store(0, Ordering::Release);
                        self.arena.chain(empty, below);
                    }
                }
            }
        }
        // A table in use nearly always has an entry near the front, so this seldom looks at many.
        are_zero(entries)
    }

    /// Translates one address. Takes no lock and allocates nothing.
    #[must_use]
    pub fn walk(&self, iova: u64) -> Option<Translation> {
        if iova >> F::iova_bits() != 0 {
            return None;
        }
        let mut allowed = Access::all();
        let mut table = self.root;
        for level in (0..F::LEVELS).rev() {
            let slot = self.arena.entry(table, index::<F>(iova, level))?;
            match F::decode(slot.load(Ordering::Acquire), level) {
                Entry::Empty => return None,
                Entry::Leaf { pa, page_shift, access } => {
                    let pa = pa | (iova & !(!0 << page_shift));
                    return Some(Translation { pa, page_shift, access: allowed & access });
                }
                Entry::Table(next, access) => {
                    allowed &= access;
                    table = next;
                }
            }
        }
        None
    }

    pub(crate) fn table(&self, addr: TableAddr, level: u8) -> Option<&[AtomicU64]> {
        self.arena.table(addr, F::index_bits(level))
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

/// Pages of one size, in entries of one table.
struct Run {
    level: u8,
    page_shift: u32,
    /// What they cover together.
    bytes: u64,
}

impl Run {
    /// The largest pages that can begin the range, as many as fit before the table ends or larger ones can follow.
    fn first<F: Format>(iova: u64, pa: u64, length: u64) -> Self {
        let most = (iova | pa).trailing_zeros().min(length.ilog2());
        let (level, page_shift) = (0..F::LEVELS)
            .rev()
            .find_map(|level| {
                let fitting = F::page_sizes(level) & (u64::MAX >> (63 - most));
                fitting.checked_ilog2().map(|page_shift| (level, page_shift))
            })
            .unwrap_or((0, F::PAGE_SHIFT));
        let larger = F::page_sizes(level) & (!1 << page_shift);
        let mut end_shift = F::shift(level + 1);
        if larger != 0 && (iova ^ pa).trailing_zeros() >= larger.trailing_zeros() {
            end_shift = larger.trailing_zeros();
        }
        let to_end = (1u64 << end_shift) - (iova & ((1 << end_shift) - 1));
        let bytes = length.min(to_end) & (!0 << page_shift);
        Self { level, page_shift, bytes }
    }
}

/// Whether all of `slots` are empty; eight at a time, as loads of atomics are not vectorised.
fn are_zero(slots: &[AtomicU64]) -> bool {
    let (eights, rest) = slots.as_chunks::<8>();
    let none = |slots: &[AtomicU64]| slots.iter().fold(0, |bits, slot| bits | slot.load(Ordering::Relaxed)) == 0;
    eights.iter().all(|slots| none(slots)) && none(rest)
}

fn index<F: Format>(iova: u64, level: u8) -> usize {
    (iova >> F::shift(level)) as usize & ((1 << F::index_bits(level)) - 1)
}

/// What a table of `level` takes in the arena. A root that is smaller than the other tables takes as much as they do, so
/// that it comes from the same chunks.
fn table_size<F: Format>(level: u8) -> TableSize {
    TableSize::of_entries(F::index_bits(level).max(F::INDEX_BITS))
}

fn in_range<F: Format>(iova: u64, length: u64) -> bool {
    fits(iova, length, F::iova_bits())
}

fn fits(start: u64, length: u64, bits: u32) -> bool {
    length != 0 && start.checked_add(length - 1).is_some_and(|last| last >> bits == 0)
}
