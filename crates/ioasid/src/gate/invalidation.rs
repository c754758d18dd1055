//! What a port must forget, and the queue in which it is told.
//!
//! A thread that takes a translation away puts an [`Invalidation`] into the queue of every port that may have cached
//! it; the port takes them out before its next access (see [`crate::gate`]). The queue has a fixed length, so that
//! posting allocates nothing; when more is posted than fits, the port is told to forget everything.

use std::num::NonZeroUsize;

use crate::base::types::{IovaRange, Pasid};

/// Which page table: where the object is. Its address is its own as long as anything may be cached from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableId(usize);

impl TableId {
    pub(crate) fn of<T>(table: &T) -> Self {
        Self(std::ptr::from_ref(table).addr())
    }

    pub(crate) fn of_address(address: NonZeroUsize) -> Self {
        Self(address.get())
    }
}

/// What to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Invalidation {
    /// Translations of addresses in a range of one page table.
    Range(TableId, IovaRange),
    /// Where a PASID, or transactions without one, go by a guest's own table of PASIDs.
    Pasid(TableId, Option<Pasid>),
    /// What a PASID, or transactions without one, are attached to.
    Attachment(Option<Pasid>),
    /// Everything.
    All,
}

/// Invalidations that fit in a queue.
const LENGTH: usize = if cfg!(any(loom, shuttle)) { 2 } else { 32 };

/// Invalidations on their way to one port, in order.
#[derive(Debug)]
pub(crate) struct Queue {
    /// The first [`Queue::used`] of them.
    pending: [Invalidation; LENGTH],
    used: usize,
}

impl Queue {
    pub(crate) const fn new() -> Self {
        Self { pending: [Invalidation::All; LENGTH], used: 0 }
    }

    pub(crate) fn push(&mut self, invalidation: Invalidation) {
        if self.pending[..self.used].last() == Some(&invalidation) {
            // As from an endpoint that is attached with several PASIDs.
            return;
        }
        if self.used == LENGTH {
            self.pending[0] = Invalidation::All;
            self.used = 1;
        } else {
            self.pending[self.used] = invalidation;
            self.used += 1;
        }
    }

    /// Empties the queue into `forget`.
    pub(crate) fn drain(&mut self, forget: impl FnMut(Invalidation)) {
        let used = std::mem::take(&mut self.used);
        self.pending[..used].iter().copied().for_each(forget);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_becomes_everything() {
        for posted in 0..3 * LENGTH {
            let mut queue = Queue::new();
            let each = |n: usize| Invalidation::Attachment(Pasid::new(n as u32));
            (0..posted).for_each(|n| queue.push(each(n)));
            let mut drained = Vec::new();
            queue.drain(|invalidation| drained.push(invalidation));
            let told = |n| drained.contains(&each(n)) || drained.contains(&Invalidation::All);
            assert!((0..posted).all(told), "{posted} posted, {drained:?}");
            assert_eq!(drained.contains(&Invalidation::All), posted > LENGTH);
            queue.drain(|_| panic!("it was emptied"));
        }
    }
}
