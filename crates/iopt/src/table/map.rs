//! Map.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{MOST_LEVELS, MapError, PageTable, Span, index, table_size};
use crate::arena::{EmptyTables, Inside, TableAddr, TableMemory};
use crate::format::{Access, Entry, Format};

/// What the leaves of a mapping are to be like. An [`Access`] alone stands for leaves of any size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaves {
    /// What they allow.
    pub access: Access,
    /// log2 of the bytes of the largest that may be made: `u32::MAX` for no limit. The format's smallest page may
    /// always be made.
    pub largest: u32,
}

impl From<Access> for Leaves {
    fn from(access: Access) -> Self {
        Self { access, largest: u32::MAX }
    }
}

/// Why a run was not written.
enum Failed {
    /// A table on the way was just about to go, or somebody else linked one there first.
    Raced,
    For(MapError),
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Maps `length` bytes at `iova` to `pa`, with the largest pages that the alignment of both, and `leaves`, allow.
    ///
    /// # Errors
    /// See [`MapError`]; after any of them the translations are as they were before. A walk may have met what had been
    /// written up to then: treat an error as an unmap of the range, and `empty` as there.
    /// Without an error `empty` may get tables, too, which lost a race to be linked and which walks may have met.
    pub fn map(
        &self,
        iova: u64,
        pa: u64,
        length: u64,
        leaves: impl Into<Leaves>,
        empty: &mut EmptyTables,
    ) -> Result<(), MapError> {
        let Leaves { access, largest } = leaves.into();
        let page = 1u64 << F::PAGE_SHIFT;
        if (iova | pa | length) & (page - 1) != 0 {
            return Err(MapError::Unaligned { iova, pa, length, page });
        }
        if Span::new::<F>(iova, length).is_none() || !fits(pa, length, F::PA_BITS) || access.is_empty() {
            return Err(MapError::OutOfRange { iova, length, bits: F::iova_bits() });
        }
        let mut done = 0;
        while done < length {
            let run = Run::first::<F>(iova + done, pa + done, length - done, largest);
            if let Err(error) = self.map_run(&run, access, empty) {
                if done > 0 {
                    // Up to here all leaves are this call's.
                    let _inside = self.arena.enter();
                    self.clear(Span { first: iova, last: iova + (done - 1) }, empty);
                }
                return Err(error);
            }
            done += run.bytes;
        }
        Ok(())
    }

    /// Fills one run of entries of one table, all or, on an error, none.
    fn map_run(&self, run: &Run, access: Access, empty: &mut EmptyTables) -> Result<(), MapError> {
        // For each run anew, so that others' tables do not wait for all of a long range.
        let mut inside = self.arena.enter();
        loop {
            match self.try_run(run, access, &mut inside, empty) {
                Ok(()) => return Ok(()),
                Err(Failed::For(error)) => return Err(error),
                // Who kills a table unlinks it at once, unless its thread had to pause right there.
                Err(Failed::Raced) => std::thread::yield_now(),
            }
        }
    }

    fn try_run(
        &self,
        run: &Run,
        access: Access,
        inside: &mut Inside<'_, M>,
        empty: &mut EmptyTables,
    ) -> Result<(), Failed> {
        let count = (run.bytes >> F::shift(run.level)) as u32;
        let mut path = [self.root; MOST_LEVELS];
        let mut level = F::LEVELS - 1;
        // Entries reserved in the table of `level`: in those that this call made.
        let mut held = 0;
        while level > run.level {
            let table = path[usize::from(level)];
            let slot = self.entries(table, level).and_then(|entries| entries.get(index::<F>(run.iova, level)));
            let slot = slot.ok_or(Failed::For(MapError::OutOfTables))?;
            let bits = slot.load(Ordering::Acquire);
            let below = usize::from(level) - 1;
            match F::decode(bits, level) {
                Entry::Table(next, _) if held == 0 => path[below] = next,
                Entry::Leaf { .. } if held == 0 => return Err(Failed::For(MapError::Occupied(run.iova))),
                Entry::Empty => {
                    if held == 0 && !self.arena.reserve(table, 1) {
                        return Err(Failed::Raced);
                    }
                    let Some(next) = inside.allocate(table_size::<F>(level - 1)) else {
                        self.cancel(&path, level, 1, run.iova, empty);
                        return Err(Failed::For(MapError::OutOfTables));
                    };
                    held = if level - 1 == run.level { count } else { 1 };
                    self.arena.begin(next, held);
                    let entry = F::table(next, level);
                    if slot.compare_exchange(bits, entry, Ordering::Release, Ordering::Relaxed).is_err() {
                        self.arena.discard(next);
                        self.cancel(&path, level, 1, run.iova, empty);
                        return Err(Failed::Raced);
                    }
                    path[below] = next;
                }
                Entry::Table(..) | Entry::Leaf { .. } => {
                    self.cancel(&path, level, held, run.iova, empty);
                    return Err(Failed::Raced);
                }
            }
            level -= 1;
        }
        let first = index::<F>(run.iova, level);
        let table = path[usize::from(level)];
        let slots = self.entries(table, level).and_then(|entries| entries.get(first..first + count as usize));
        let slots = slots.ok_or(Failed::For(MapError::OutOfTables))?;
        if held == 0 {
            if !are_zero(slots) {
                return Err(Failed::For(MapError::Occupied(self.first_mapped(slots, level, run.iova))));
            }
            if !self.arena.reserve(table, count) {
                return Err(Failed::Raced);
            }
        }
        if level == 0 && run.page_shift == F::PAGE_SHIFT {
            // What most runs are, with constants.
            fill::<F>(slots, run.pa, F::PAGE_SHIFT, access, 0);
        } else {
            fill::<F>(slots, run.pa, run.page_shift, access, level);
        }
        Ok(())
    }

    /// Gives up `held` entries that were reserved, but not written, in the table of `level` on the way to `iova`.
    fn cancel(
        &self,
        path: &[TableAddr; MOST_LEVELS],
        mut level: u8,
        mut held: u32,
        iova: u64,
        empty: &mut EmptyTables,
    ) {
        while self.arena.release(path[usize::from(level)], held) {
            let dead = path[usize::from(level)];
            level += 1;
            let above = self.entries(path[usize::from(level)], level);
            if let Some(slot) = above.and_then(|entries| entries.get(index::<F>(iova, level))) {
                slot.store(0, Ordering::Relaxed);
            }
            self.arena.chain(empty, dead);
            held = 1;
        }
    }

    /// The lowest address that is mapped below `slots`, of `level`, the first of which begins at `iova`.
    fn first_mapped(&self, slots: &[AtomicU64], level: u8, iova: u64) -> u64 {
        let used = (0u64..).zip(slots).find(|(_, slot)| slot.load(Ordering::Relaxed) != 0);
        let Some((number, slot)) = used else { return iova };
        let start = iova + (number << F::shift(level));
        match F::decode(slot.load(Ordering::Acquire), level) {
            Entry::Table(table, _) => {
                self.first_mapped(self.entries(table, level - 1).unwrap_or_default(), level - 1, start)
            }
            Entry::Empty | Entry::Leaf { .. } => start,
        }
    }
}

#[inline(always)]
fn fill<F: Format>(slots: &[AtomicU64], pa: u64, page_shift: u32, access: Access, level: u8) {
    let mut pa = pa;
    for slot in slots {
        slot.store(F::leaf(pa, page_shift, access, level), Ordering::Release);
        pa += 1 << F::shift(level);
    }
}

/// Pages of one size, in entries of one table.
struct Run {
    iova: u64,
    pa: u64,
    level: u8,
    page_shift: u32,
    /// What they cover together.
    bytes: u64,
}

impl Run {
    /// The largest pages that can begin the range, as many as fit before the table ends or larger ones can follow.
    fn first<F: Format>(iova: u64, pa: u64, length: u64, largest: u32) -> Self {
        let allowed = u64::MAX >> (63 - largest.clamp(F::PAGE_SHIFT, 63));
        let fitting = allowed & (u64::MAX >> (63 - (iova | pa).trailing_zeros().min(length.ilog2())));
        let (level, page_shift) = (0..F::LEVELS)
            .rev()
            .find_map(|level| (F::page_sizes(level) & fitting).checked_ilog2().map(|page_shift| (level, page_shift)))
            .unwrap_or((0, F::PAGE_SHIFT));
        let larger = F::page_sizes(level) & allowed & (!1 << page_shift);
        let mut end_shift = F::shift(level + 1);
        if larger != 0 && (iova ^ pa).trailing_zeros() >= larger.trailing_zeros() {
            end_shift = larger.trailing_zeros();
        }
        let to_end = (1u64 << end_shift) - (iova & ((1 << end_shift) - 1));
        let bytes = length.min(to_end) & (!0 << page_shift);
        Self { iova, pa, level, page_shift, bytes }
    }
}

/// Whether all of `slots` are empty; eight at a time, as loads of atomics are not vectorised.
fn are_zero(slots: &[AtomicU64]) -> bool {
    let (eights, rest) = slots.as_chunks::<8>();
    let none = |slots: &[AtomicU64]| slots.iter().fold(0, |bits, slot| bits | slot.load(Ordering::Relaxed)) == 0;
    eights.iter().all(|slots| none(slots)) && none(rest)
}

fn fits(start: u64, length: u64, bits: u32) -> bool {
    start.checked_add(length - 1).is_some_and(|last| last >> bits == 0)
}
