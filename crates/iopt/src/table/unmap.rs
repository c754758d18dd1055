//! Unmap.

use std::sync::atomic::Ordering;

use super::{PageTable, RangeError, Span, index, indices};
use crate::arena::{EmptyTables, TableAddr, TableMemory};
use crate::format::{Entry, Format};

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Unmaps `length` bytes at `iova`; what is not mapped in between stays so. The log of writes forgets the pages.
    ///
    /// Adds the tables that no longer hold anything to `empty`: give them to [`PageTable::free`] when no walk that
    /// began before can still be running. Allocates nothing.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`] and [`RangeError::SplitsPage`]; after either the table is as it was before.
    pub fn unmap(&self, iova: u64, length: u64, empty: &mut EmptyTables) -> Result<(), RangeError> {
        let span = Span::of_pages::<F>(iova, length)?;
        let _inside = self.arena.enter();
        self.ends_between_pages(span)?;
        self.clear(span, empty);
        Ok(())
    }

    /// Empties what lies in `span`. For who is inside.
    pub(super) fn clear(&self, span: Span, empty: &mut EmptyTables) {
        self.clear_table(self.root, F::LEVELS - 1, 0, span, empty);
    }

    /// Empties what lies in `span` of `table`, of `level`, which begins at `base`. `true`: the table is dead, and the
    /// caller must unlink it.
    fn clear_table(&self, table: TableAddr, level: u8, base: u64, span: Span, empty: &mut EmptyTables) -> bool {
        let (mut start, slots) = self.touched(table, level, base, span);
        let mut cleared = 0;
        if level == 0 {
            for slot in slots {
                // All that is here are leaves, so there is nothing to decode.
                cleared += u32::from(slot.load(Ordering::Relaxed) != 0);
                slot.store(0, Ordering::Relaxed);
            }
            self.forget_writes(table, indices::<F>(level, base, span));
        } else {
            for slot in slots {
                let gone = match F::decode(slot.load(Ordering::Acquire), level) {
                    Entry::Empty => false,
                    Entry::Leaf { .. } => true,
                    Entry::Table(below, _) => {
                        let dead = self.clear_table(below, level - 1, start, span, empty);
                        if dead {
                            self.arena.chain(empty, below);
                        }
                        dead
                    }
                };
                if gone {
                    slot.store(0, Ordering::Relaxed);
                    cleared += 1;
                    let own = index::<F>(start, level);
                    self.forget_writes(table, own..own + 1);
                }
                start += 1 << F::shift(level);
            }
        }
        cleared > 0 && self.arena.release(table, cleared)
    }
}
