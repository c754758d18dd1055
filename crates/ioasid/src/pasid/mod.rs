//! PASIDs: which context has which, on the whole machine.
//!
//! A context allocates a PASID, and no other context gets the number before its last holder has let go: the attachments
//! made with it, and what keeps a [`PasidHold`] (a driver that wrote it into a device, a table that translates to it).
//! What is freed while it has a holder is *parked*: DMA with it has stopped, and the number waits.
//!
//! ```text
//!   free ──alloc──► allocated ──free, without a holder───────────────────► free
//!                       └──────free, with a holder──► parked ──last lets go──┘
//! ```
//! A consumer that owns a whole device may choose PASIDs for it, without allocating them. Numbers that are allocated in
//! another context, or parked, it cannot choose.

mod virtual_pasids;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::base::lock::{Mutex, MutexGuard};
use crate::base::rank;
use crate::base::types::{Pasid, WouldDeadlock};

pub use virtual_pasids::{PartPasidTable, VirtualPasids};

/// Why a PASID was not allocated, held or freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PasidError {
    /// All numbers in the range are taken.
    #[error("all PASIDs from {0} to {1} are taken")]
    Full(u32, u32),
    /// The range has no PASID: it is empty, or begins above 20 bits.
    #[error("there are no PASIDs from {0} to {1}")]
    Range(u32, u32),
    /// The context has not allocated it.
    #[error("PASID {0} was not allocated in this context")]
    NotAllocated(Pasid),
    /// It belongs to another context, or is parked.
    #[error("PASID {0} belongs to another context, or is parked")]
    Elsewhere(Pasid),
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// By the context with this serial number.
    Allocated(u64),
    /// No context allocated it.
    Chosen,
    Parked,
}

struct Entry {
    state: State,
    holders: usize,
}

/// The PASIDs of a machine.
#[derive(Default)]
pub(crate) struct PasidSpace(Mutex<BTreeMap<Pasid, Entry>, rank::Space>);

/// Keeps a PASID from being used for something else. Dropping it lets it go.
pub struct PasidHold {
    space: Arc<PasidSpace>,
    pasid: Pasid,
}

impl fmt::Debug for PasidHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasidHold").field("pasid", &self.pasid).finish_non_exhaustive()
    }
}

impl PasidHold {
    /// The number.
    #[must_use]
    pub fn pasid(&self) -> Pasid {
        self.pasid
    }

    /// Whether it was freed: DMA with it has stopped.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.space.lock().get(&self.pasid).is_none_or(|entry| entry.state == State::Parked)
    }
}

impl Clone for PasidHold {
    /// Another one, which has to be let go as well.
    fn clone(&self) -> Self {
        self.space.hold_again(self.pasid);
        Self { space: self.space.clone(), pasid: self.pasid }
    }
}

impl Drop for PasidHold {
    fn drop(&mut self) {
        self.space.release(self.pasid);
    }
}

impl PasidSpace {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Pasid, Entry>, rank::Space> {
        self.0.lock()
    }

    /// Takes the lowest free number from `first` to `last` for the context `owner`.
    pub(crate) fn alloc(&self, owner: u64, first: u32, last: u32) -> Result<Pasid, PasidError> {
        let range = PasidError::Range(first, last);
        let start = Pasid::new(first).filter(|_| first <= last).ok_or(range)?;
        let mut entries = self.lock();
        let taken = entries.range(start..).map(|(pasid, _)| pasid.get());
        let free =
            (first..).zip(taken.map(Some).chain(std::iter::repeat(None))).find(|(want, have)| Some(*want) != *have);
        let free = free.and_then(|(free, _)| Pasid::new(free)).filter(|free| free.get() <= last);
        let free = free.ok_or(PasidError::Full(first, last))?;
        entries.insert(free, Entry { state: State::Allocated(owner), holders: 0 });
        Ok(free)
    }

    /// Keeps a PASID for the context `who`, which has allocated it, or chooses it.
    pub(crate) fn hold(self: &Arc<Self>, pasid: Pasid, who: u64) -> Result<PasidHold, PasidError> {
        let mut entries = self.lock();
        let entry = entries.entry(pasid).or_insert(Entry { state: State::Chosen, holders: 0 });
        if entry.state != State::Allocated(who) && entry.state != State::Chosen {
            return Err(PasidError::Elsewhere(pasid));
        }
        entry.holders += 1;
        Ok(PasidHold { space: self.clone(), pasid })
    }

    /// As [`PasidSpace::hold`], but only if `who` has allocated it.
    pub(crate) fn hold_allocated(self: &Arc<Self>, pasid: Pasid, who: u64) -> Result<PasidHold, PasidError> {
        let mut entries = self.lock();
        let entry = entries.get_mut(&pasid).filter(|entry| entry.state == State::Allocated(who));
        entry.ok_or(PasidError::NotAllocated(pasid))?.holders += 1;
        Ok(PasidHold { space: self.clone(), pasid })
    }

    /// One hold more of what is held, allocated or parked.
    fn hold_again(&self, pasid: Pasid) {
        if let Some(entry) = self.lock().get_mut(&pasid) {
            entry.holders += 1;
        }
    }

    /// Undoes one hold: of a [`PasidHold`] that is dropped, or one that an attachment forgot on purpose.
    pub(crate) fn release(&self, pasid: Pasid) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&pasid) else { return };
        entry.holders -= 1;
        if entry.holders == 0 && !matches!(entry.state, State::Allocated(_)) {
            entries.remove(&pasid);
        }
    }

    /// Whether `owner` has allocated it.
    pub(crate) fn is_of(&self, pasid: Pasid, owner: u64) -> bool {
        self.lock().get(&pasid).is_some_and(|entry| entry.state == State::Allocated(owner))
    }

    /// Frees what `owner` has allocated, or parks it if it has a holder.
    pub(crate) fn free(&self, pasid: Pasid, owner: u64) {
        let mut entries = self.lock();
        match entries.get_mut(&pasid) {
            Some(Entry { state, holders: 1.. }) if *state == State::Allocated(owner) => *state = State::Parked,
            Some(Entry { state, .. }) if *state == State::Allocated(owner) => drop(entries.remove(&pasid)),
            _ => {}
        }
    }

    /// What `owner` has allocated.
    pub(crate) fn all_of(&self, owner: u64) -> Vec<Pasid> {
        let entries = self.lock();
        entries.iter().filter(|(_, entry)| entry.state == State::Allocated(owner)).map(|(pasid, _)| *pasid).collect()
    }

    /// How many numbers are not free.
    pub(crate) fn in_use(&self) -> usize {
        self.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pasid(number: u32) -> Pasid {
        Pasid::new(number).unwrap()
    }

    #[test]
    fn a_number_is_used_again_when_the_last_has_let_go_and_not_before() {
        let space = Arc::new(PasidSpace::default());
        assert_eq!(space.alloc(1, 5, 6), Ok(pasid(5)));
        assert_eq!(space.alloc(2, 5, 6), Ok(pasid(6)));
        assert_eq!(space.alloc(1, 5, 6), Err(PasidError::Full(5, 6)));
        let holds = [space.hold(pasid(5), 1).unwrap(), space.hold_allocated(pasid(5), 1).unwrap()];
        space.free(pasid(5), 2);
        assert!(!holds[0].is_parked(), "another context cannot free it");
        space.free(pasid(5), 1);
        assert!(holds[0].is_parked());
        assert_eq!(space.hold(pasid(5), 1).err(), Some(PasidError::Elsewhere(pasid(5))));
        let [first, last] = holds;
        let again = last.clone();
        drop((first, last));
        assert_eq!(space.alloc(1, 5, 5), Err(PasidError::Full(5, 5)));
        drop(again);
        assert_eq!(space.alloc(1, 5, 5), Ok(pasid(5)));
        space.free(pasid(6), 2);
        assert_eq!(space.in_use(), 1);
    }

    #[test]
    fn what_somebody_chose_is_not_allocated_and_what_is_allocated_not_chosen_elsewhere() {
        let space = Arc::new(PasidSpace::default());
        let chosen = [space.hold(pasid(1), 1).unwrap(), space.hold(pasid(1), 2).unwrap()];
        assert_eq!(space.alloc(3, 1, 9), Ok(pasid(2)));
        assert_eq!(space.hold(pasid(2), 1).err(), Some(PasidError::Elsewhere(pasid(2))));
        assert_eq!(space.hold_allocated(pasid(1), 1).err(), Some(PasidError::NotAllocated(pasid(1))));
        drop(chosen);
        assert_eq!(space.alloc(3, 1, 9), Ok(pasid(1)));
        for (first, last) in [(9, 8), (1 << 20, 1 << 21)] {
            assert_eq!(space.alloc(3, first, last), Err(PasidError::Range(first, last)));
        }
        assert_eq!(space.alloc(3, (1 << 20) - 1, u32::MAX), Ok(pasid((1 << 20) - 1)));
        assert_eq!(space.alloc(3, (1 << 20) - 1, u32::MAX), Err(PasidError::Full((1 << 20) - 1, u32::MAX)));
        assert_eq!(space.all_of(3).len(), 3);
    }
}
