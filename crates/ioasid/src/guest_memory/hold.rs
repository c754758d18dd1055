//! What keeps a borrowed slice's bytes where they are.

use std::cell::Cell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use iopt::Access;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::gate::requester::Requester;
use crate::gate::{Held, Inside};

/// How many [`Hold`]s the port's access in progress has. One thread has it, as it is not `Sync`.
///
/// Whether it has any is in the gate already. So the most common case, one hold, writes nothing here.
pub(super) struct Holds {
    requester: Arc<Requester>,
    /// The holds, less one. Zero, too, if there is none.
    others: Cell<usize>,
    /// Whether a miss is being dealt with, in which a caller's code may run that gets here again.
    in_miss: Cell<bool>,
}

/// A miss is being dealt with, as long as this lives.
pub(super) struct InMiss<'a>(&'a Cell<bool>);

impl Drop for InMiss<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Holds {
    pub(super) fn new(requester: Arc<Requester>) -> Self {
        Self { requester, others: Cell::new(0), in_miss: Cell::new(false) }
    }

    /// Counts `bytes` as moved.
    #[inline]
    pub(super) fn count(&self, access: Access, bytes: u64) {
        self.requester.count(access, bytes);
    }

    /// Holds the access in progress, or, if there is none, begins one and calls `refresh` in it. `None` from within a
    /// miss.
    #[inline(always)]
    pub(super) fn hold(&self, refresh: impl FnOnce(&Inside<'_>)) -> Option<Hold<'_>> {
        if self.requester.gate.is_held() {
            // In a miss the access is held, so this is looked at only here.
            if self.in_miss.get() {
                return None;
            }
            // Not for each clone: it is in the thread that has what it is a clone of.
            self.requester.gate.take_over();
            return Some(self.one_more());
        }
        let held = self.requester.gate.hold();
        refresh(held.inside());
        held.suspend();
        Some(Hold { holds: self })
    }

    /// Begins to deal with a miss, while the access is held.
    pub(super) fn begin_miss(&self) -> InMiss<'_> {
        self.in_miss.set(true);
        InMiss(&self.in_miss)
    }

    #[inline]
    fn one_more(&self) -> Hold<'_> {
        self.others.set(self.others.get() + 1);
        Hold { holds: self }
    }
}

impl Drop for Holds {
    /// A caller that leaked a hold cannot use what it held any more.
    fn drop(&mut self) {
        if self.requester.gate.is_held() {
            drop(self.requester.gate.enter());
        }
    }
}

/// Keeps the bytes of a [`VolatileSlice`](vm_memory::VolatileSlice) where they are: a thread that unmaps waits until it
/// and all of its clones are dropped.
///
/// It has the place of a dirty bitmap in the slice, and marks nothing: a page was marked as written, where that is
/// asked for, when it was translated for writing.
pub struct Hold<'a> {
    holds: &'a Holds,
}

impl<'a> Hold<'a> {
    /// The access that is held.
    pub(super) fn held(&self) -> ManuallyDrop<Held<'a>> {
        ManuallyDrop::new(self.holds.requester.gate.resume())
    }

    /// Whether the access ends with this.
    pub(super) fn is_only(&self) -> bool {
        self.holds.others.get() == 0
    }
}

impl Clone for Hold<'_> {
    #[inline]
    fn clone(&self) -> Self {
        self.holds.one_more()
    }
}

impl Drop for Hold<'_> {
    #[inline]
    fn drop(&mut self) {
        match self.holds.others.get() {
            0 => drop(self.holds.requester.gate.resume()),
            others => self.holds.others.set(others - 1),
        }
    }
}

impl fmt::Debug for Hold<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("others", &self.holds.others.get()).finish()
    }
}

impl<'a> WithBitmapSlice<'_> for Hold<'a> {
    type S = Hold<'a>;
}

impl BitmapSlice for Hold<'_> {}

impl<'a> Bitmap for Hold<'a> {
    /// Does nothing; see [`Hold`].
    #[inline]
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    /// False; see [`Hold`].
    #[inline]
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    #[inline]
    fn slice_at(&self, _offset: usize) -> Hold<'a> {
        self.clone()
    }
}
