//! What keeps a borrowed slice's bytes where they are.

use std::cell::Cell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use iopt::Access;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::gate::requester::Requester;
use crate::gate::{Held, Inside};

/// How many hold the port's access in progress. One thread has it, as it is not `Sync`.
///
/// Whether anybody does is in the gate already. So the most common case, one who holds, writes nothing here.
pub(super) struct Holds {
    requester: Arc<Requester>,
    /// Those who hold, less one. Zero, too, if nobody does.
    others: Cell<usize>,
}

impl Holds {
    pub(super) fn new(requester: Arc<Requester>) -> Self {
        Self { requester, others: Cell::new(0) }
    }

    /// Counts `bytes` as moved.
    #[inline]
    pub(super) fn count(&self, access: Access, bytes: u64) {
        self.requester.count(access, bytes);
    }

    /// Holds the access in progress, or, if there is none, begins one and calls `refresh` in it.
    #[inline(always)]
    pub(super) fn hold(&self, refresh: impl FnOnce(&Inside<'_>)) -> Hold<'_> {
        if self.requester.gate.is_held() {
            // Not for each clone: it is in the thread that has what it is a clone of.
            self.requester.gate.take_over();
            return self.one_more();
        }
        let held = self.requester.gate.hold();
        refresh(held.inside());
        held.suspend();
        Hold { holds: self }
    }

    #[inline]
    fn one_more(&self) -> Hold<'_> {
        self.others.set(self.others.get() + 1);
        Hold { holds: self }
    }
}

impl Drop for Holds {
    /// Whoever leaked a hold cannot use what it held any more.
    fn drop(&mut self) {
        if self.requester.gate.is_held() {
            drop(self.requester.gate.enter());
        }
    }
}

/// Keeps the bytes of a [`VolatileSlice`](vm_memory::VolatileSlice) where they are: whoever unmaps waits until it and all
/// of its clones are dropped.
///
/// It has the place of a dirty bitmap in the slice, and marks nothing: a page was marked as written, where that is asked
/// for, when it was translated for writing.
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
