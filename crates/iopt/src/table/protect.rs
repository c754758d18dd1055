//! Change what pages allow.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{PageTable, RangeError, Span};
use crate::arena::{TableAddr, TableMemory};
use crate::format::{Access, Entry, Format};

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Makes all pages in a range allow `access`, one after the other; what is not mapped in between stays so. That a
    /// page was accessed or written to is kept, whatever walks do meanwhile.
    ///
    /// Until walks that began before have ended, and nothing cached from them is in use, what was allowed may still be
    /// done.
    ///
    /// # Errors
    /// See [`RangeError`]; after any of them the table is as it was before.
    pub fn protect(&self, iova: u64, length: u64, access: Access) -> Result<(), RangeError> {
        let span = Span::of_pages::<F>(iova, length)?;
        if access.is_empty() {
            return Err(RangeError::NoAccess);
        }
        let _inside = self.arena.enter();
        self.ends_between_pages(span)?;
        self.protect_table(self.root, F::LEVELS - 1, 0, span, access);
        Ok(())
    }

    fn protect_table(&self, table: TableAddr, level: u8, base: u64, span: Span, access: Access) {
        let (mut start, slots) = self.touched(table, level, base, span);
        for slot in slots {
            if let Some(below) = protect_entry::<F>(slot, level, start, access) {
                self.protect_table(below, level - 1, start, span, access);
            }
            start += 1 << F::shift(level);
        }
    }
}

/// Changes the entry that begins at `start` if it is a leaf, and returns the table if it is one.
#[inline]
fn protect_entry<F: Format>(slot: &AtomicU64, level: u8, start: u64, access: Access) -> Option<TableAddr> {
    let mut bits = slot.load(Ordering::Acquire);
    loop {
        let (pa, page_shift) = match F::decode(bits, level) {
            Entry::Empty => return None,
            Entry::Table(below, _) => return Some(below),
            Entry::Leaf { pa, page_shift, .. } => (pa | (start & !(!0 << page_shift)), page_shift),
        };
        let marks = bits & (F::ACCESSED | F::DIRTY);
        let changed = F::leaf(pa, page_shift, access, level) | marks;
        if changed == bits {
            return None;
        }
        // A walk may mark it meanwhile.
        match slot.compare_exchange_weak(bits, changed, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return None,
            Err(now) => bits = now,
        }
    }
}
