//! Object ids of one context.
//!
//! ```text
//!   reserve ──► Reserved ──finalize──► Ready (users = n) ──remove, users = 0──► gone
//!                   │ dropped
//!                   └──► gone
//! ```
//! An id is reserved before its object is built and published when it is whole, so that no thread can find a half-built
//! object and a failure leaves no trace. An object that others refer to counts them, and is not removed until the count
//! is zero. What it refers to itself stands beside it and is released in the step that removes it, so the graph of
//! which object holds which is here, and changes under one lock.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

use crate::base::lock::{Mutex, MutexGuard};
use crate::base::rank;

/// The id of an object, within its context. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub NonZeroU32);

impl From<ObjectId> for u32 {
    fn from(ObjectId(id): ObjectId) -> Self {
        id.get()
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

enum Slot<T> {
    Reserved,
    Ready {
        object: T,
        users: usize,
        holds: Vec<ObjectId>,
    },
    /// The object went with another, and its maker may not know: the id is not used again.
    Buried,
    /// The object is gone, and so many know its id still: it is free when they have let go.
    Parked(usize),
}

/// Why an object was not removed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RemoveError {
    Missing,
    InUse,
}

/// The ids of one context and what they stand for.
pub(crate) struct Ids<T> {
    slots: Mutex<Slots<T>, rank::Ids>,
}

/// An id that is taken and stands for nothing yet; given back when dropped.
pub(crate) struct Reserved<'a, T> {
    ids: &'a Ids<T>,
    id: ObjectId,
    finalized: bool,
}

impl<T: Clone> Ids<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Mutex::new(BTreeMap::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, Slots<T>, rank::Ids> {
        self.slots.lock()
    }

    /// Takes the lowest free id; `None` when all 2^31 are taken.
    pub(crate) fn reserve(&self) -> Option<Reserved<'_, T>> {
        if ioasid_inject::fails() {
            return None;
        }
        let mut slots = self.lock();
        // Ids are dense from 1 nearly always, and then the count is the last one.
        let count = u32::try_from(slots.len()).ok()?;
        let dense = slots.last_key_value().is_none_or(|(&last, _)| last == count);
        let free = if dense {
            count + 1
        } else {
            (1..).zip(slots.keys()).find(|(want, have)| want != *have).map_or(count + 1, |(want, _)| want)
        };
        let id = NonZeroU32::new(free).filter(|id| id.get() < 1 << 31)?;
        slots.insert(free, Slot::Reserved);
        Some(Reserved { ids: self, id: ObjectId(id), finalized: false })
    }

    pub(crate) fn get(&self, id: ObjectId) -> Option<T> {
        match self.lock().get(&id.0.get())? {
            Slot::Ready { object, .. } => Some(object.clone()),
            Slot::Reserved | Slot::Buried | Slot::Parked(_) => None,
        }
    }

    /// What `of_each` says of the objects, in order of their ids.
    pub(crate) fn all<R>(&self, of_each: impl Fn(&T) -> Option<R>) -> Vec<R> {
        let ready = |slot: &Slot<T>| match slot {
            Slot::Ready { object, .. } => of_each(object),
            Slot::Reserved | Slot::Buried | Slot::Parked(_) => None,
        };
        self.lock().values().filter_map(ready).collect()
    }

    /// Whether no id is taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Finds an object and counts one more user of it, so that it stays until [`Ids::release`].
    pub(crate) fn hold(&self, id: ObjectId) -> Option<T> {
        let held: Result<T, ()> = self.hold_if(id, |object| Ok(object.clone()))?;
        held.ok()
    }

    /// As [`Ids::hold`], but only of an object that `fits`; what it says instead of others. So no thread comes to hold
    /// what another counts on being the last to hold.
    pub(crate) fn hold_if<R, E>(&self, id: ObjectId, fits: impl FnOnce(&T) -> Result<R, E>) -> Option<Result<R, E>> {
        match self.lock().get_mut(&id.0.get())? {
            Slot::Ready { object, users, .. } => Some(fits(object).inspect(|_| *users += 1)),
            Slot::Reserved | Slot::Buried | Slot::Parked(_) => None,
        }
    }

    /// Counts one user less of an object that the caller holds.
    pub(crate) fn release(&self, id: ObjectId) {
        release(&mut self.lock(), id);
    }

    /// Removes an object that only the caller holds, in one step: no other thread can come to hold or remove it in
    /// between.
    pub(crate) fn release_last(&self, id: ObjectId) {
        let mut slots = self.lock();
        debug_assert!(matches!(slots.get(&id.0.get()), Some(Slot::Ready { users: 1, .. })), "{id} has other users");
        take(&mut slots, id);
    }

    /// Removes `id` if it has no users.
    pub(crate) fn remove(&self, id: ObjectId) -> Result<T, RemoveError> {
        self.remove_leaving(id, None)
    }

    fn remove_leaving(&self, id: ObjectId, left: Option<Slot<T>>) -> Result<T, RemoveError> {
        let mut slots = self.lock();
        match slots.get(&id.0.get()) {
            None | Some(Slot::Reserved | Slot::Buried | Slot::Parked(_)) => Err(RemoveError::Missing),
            Some(Slot::Ready { users: 1.., .. }) => Err(RemoveError::InUse),
            Some(Slot::Ready { users: 0, .. }) => {
                let object = take(&mut slots, id).ok_or(RemoveError::Missing)?;
                left.into_iter().for_each(|left| drop(slots.insert(id.0.get(), left)));
                Ok(object)
            }
        }
    }

    /// Takes the object of `id` out if it is the one that is meant, although others may hold it, and keeps the id from
    /// being used again until they have let go. An object that another was made on stays. What it holds is the caller's
    /// to release, when no device gets there by way of the object any more.
    pub(crate) fn park(
        &self,
        id: ObjectId,
        is_meant: impl FnOnce(&T) -> bool,
    ) -> Result<(T, Vec<ObjectId>), RemoveError> {
        let mut slots = self.lock();
        let users = match slots.get(&id.0.get()) {
            Some(Slot::Ready { users, object, .. }) if is_meant(object) => *users,
            _ => return Err(RemoveError::Missing),
        };
        if slots.values().any(|slot| matches!(slot, Slot::Ready { holds, .. } if holds.contains(&id))) {
            return Err(RemoveError::InUse);
        }
        let left = if users > 0 { slots.insert(id.0.get(), Slot::Parked(users)) } else { slots.remove(&id.0.get()) };
        match left {
            Some(Slot::Ready { object, holds, .. }) => Ok((object, holds)),
            _ => Err(RemoveError::Missing),
        }
    }

    /// Removes `id` if it has no users, and keeps the id from being used again.
    pub(crate) fn bury(&self, id: ObjectId) -> Result<T, RemoveError> {
        self.remove_leaving(id, Some(Slot::Buried))
    }

    /// Takes an object out that no other refers to; what is left when there is none has been leaked by its holder, and
    /// is taken out too.
    pub(crate) fn take_leaf(&self) -> Option<(ObjectId, T)> {
        let mut slots = self.lock();
        let mut ready = slots.iter().filter_map(|(id, slot)| match slot {
            Slot::Ready { users, .. } => Some((*users, *id)),
            Slot::Reserved | Slot::Buried | Slot::Parked(_) => None,
        });
        let first = ready.next()?;
        let (_, id) = if first.0 == 0 { first } else { ready.find(|(users, _)| *users == 0).unwrap_or(first) };
        let id = ObjectId(NonZeroU32::new(id)?);
        take(&mut slots, id).map(|object| (id, object))
    }
}

type Slots<T> = BTreeMap<u32, Slot<T>>;

fn release<T>(slots: &mut Slots<T>, id: ObjectId) {
    match slots.get_mut(&id.0.get()) {
        Some(Slot::Ready { users: users @ 1.., .. } | Slot::Parked(users @ 2..)) => *users -= 1,
        Some(Slot::Parked(1)) => drop(slots.remove(&id.0.get())),
        _ => debug_assert!(false, "object {id} was not held"),
    }
}

/// Takes an object out, and releases what it holds.
fn take<T>(slots: &mut Slots<T>, id: ObjectId) -> Option<T> {
    match slots.remove(&id.0.get())? {
        Slot::Ready { object, holds, .. } => {
            holds.into_iter().for_each(|held| release(slots, held));
            Some(object)
        }
        Slot::Reserved | Slot::Buried | Slot::Parked(_) => None,
    }
}

impl<T> Reserved<'_, T> {
    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    /// Publishes the object with so many users from the start: one that the caller means to hold cannot be removed
    /// before it does. What it `holds` is held already, and is released with it.
    pub(crate) fn finalize(mut self, object: T, users: usize, holds: Vec<ObjectId>) -> ObjectId {
        let mut slots = self.ids.slots.lock();
        self.publish(&mut slots, Slot::Ready { object, users, holds });
        self.id
    }

    /// As [`Reserved::finalize`], unless what it holds was parked meanwhile: then there is no object, and what is held
    /// is the caller's to release.
    pub(crate) fn finalize_over(mut self, object: T, holds: Vec<ObjectId>) -> Option<ObjectId> {
        let mut slots = self.ids.slots.lock();
        let is_there = |id: &ObjectId| matches!(slots.get(&id.0.get()), Some(Slot::Ready { .. }));
        if !holds.iter().all(is_there) {
            return None;
        }
        self.publish(&mut slots, Slot::Ready { object, users: 0, holds });
        Some(self.id)
    }

    fn publish(&mut self, slots: &mut Slots<T>, slot: Slot<T>) {
        self.finalized = true;
        slots.insert(self.id.0.get(), slot);
    }
}

impl<T> Drop for Reserved<'_, T> {
    fn drop(&mut self) {
        if !self.finalized {
            self.ids.slots.lock().remove(&self.id.0.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_id_is_not_found_and_goes_back_when_dropped() {
        let ids = Ids::<&str>::new();
        let reserved = ids.reserve().unwrap();
        let id = reserved.id();
        assert_eq!(ids.get(id), None);
        assert_eq!(ids.remove(id), Err(RemoveError::Missing));
        drop(reserved);
        assert_eq!(ids.reserve().unwrap().id(), id);
    }

    #[test]
    fn the_lowest_free_id_is_taken() {
        let ids = Ids::new();
        let all: Vec<_> = (0..5).map(|n| ids.reserve().unwrap().finalize(n, 0, vec![])).collect();
        ids.remove(all[2]).unwrap();
        assert_eq!(ids.reserve().unwrap().finalize(9, 0, vec![]), all[2]);
        assert_eq!(ids.reserve().unwrap().finalize(9, 0, vec![]).0.get(), 6);
    }

    #[test]
    fn what_is_held_is_not_removed() {
        let ids = Ids::new();
        let id = ids.reserve().unwrap().finalize("ioas", 0, vec![]);
        assert_eq!(ids.hold(id), Some("ioas"));
        assert_eq!(ids.remove(id), Err(RemoveError::InUse));
        ids.release(id);
        assert_eq!(ids.remove(id), Ok("ioas"));
        assert_eq!(ids.hold(id), None);
    }

    #[test]
    fn what_is_born_held_is_not_removed() {
        let ids = Ids::new();
        let id = ids.reserve().unwrap().finalize("device", 1, vec![]);
        assert_eq!(ids.remove(id), Err(RemoveError::InUse));
        ids.release_last(id);
        assert_eq!(ids.get(id), None);
    }

    #[test]
    fn what_an_object_holds_is_released_with_it() {
        let ids = Ids::new();
        let ioas = ids.reserve().unwrap().finalize("ioas", 0, vec![]);
        ids.hold(ioas).unwrap();
        let hwpt = ids.reserve().unwrap().finalize("hwpt", 0, vec![ioas]);
        ids.hold(hwpt).unwrap();
        let nested = ids.reserve().unwrap().finalize("nested", 0, vec![hwpt]);
        assert_eq!(ids.remove(ioas), Err(RemoveError::InUse));
        assert_eq!(ids.remove(hwpt), Err(RemoveError::InUse));
        assert_eq!(ids.take_leaf(), Some((nested, "nested")));
        assert_eq!(ids.remove(hwpt), Ok("hwpt"));
        assert_eq!(ids.take_leaf(), Some((ioas, "ioas")));
        assert_eq!(ids.take_leaf(), None);
    }

    #[test]
    fn the_id_of_what_is_parked_is_free_when_the_last_has_let_go() {
        let ids = Ids::new();
        let parent = ids.reserve().unwrap().finalize("parent", 0, vec![]);
        ids.hold(parent).unwrap();
        let nested = ids.reserve().unwrap().finalize("nested", 0, vec![parent]);
        ids.hold(nested).unwrap();
        ids.hold(nested).unwrap();
        assert_eq!(ids.park(parent, |_| true), Err(RemoveError::InUse));
        assert_eq!(ids.park(nested, |_| true), Ok(("nested", vec![parent])));
        assert_eq!(ids.remove(parent), Err(RemoveError::InUse), "it leads there still");
        ids.release(parent);
        assert_eq!((ids.get(nested), ids.hold(nested), ids.remove(nested)), (None, None, Err(RemoveError::Missing)));
        assert_eq!(ids.park(nested, |_| true), Err(RemoveError::Missing));
        assert_eq!(ids.park(parent, |_| true), Ok(("parent", vec![])));
        assert_eq!(ids.reserve().unwrap().id(), parent);
        ids.release(nested);
        assert_ne!(ids.reserve().unwrap().finalize("other", 0, vec![]), nested);
        assert_ne!(ids.reserve().unwrap().id(), nested);
        ids.release(nested);
        assert_eq!(ids.reserve().unwrap().id(), nested);
    }

    #[test]
    fn what_has_the_id_meanwhile_is_not_parked_in_the_stead_of_what_was_meant() {
        let ids = Ids::new();
        let id = ids.reserve().unwrap().finalize("table", 0, vec![]);
        ids.remove(id).unwrap();
        assert_eq!(ids.reserve().unwrap().finalize("ioas", 0, vec![]), id);
        assert_eq!(ids.park(id, |object| *object == "table"), Err(RemoveError::Missing));
        assert_eq!(ids.park(id, |object| *object == "ioas"), Ok(("ioas", vec![])));
    }

    #[test]
    fn nothing_is_made_on_what_was_parked_meanwhile() {
        let ids = Ids::new();
        let parent = ids.reserve().unwrap().finalize("parent", 0, vec![]);
        ids.hold(parent).unwrap();
        let reserved = ids.reserve().unwrap();
        let nested = reserved.id();
        ids.park(parent, |_| true).unwrap();
        assert_eq!(reserved.finalize_over("nested", vec![parent]), None);
        assert_eq!((ids.get(nested), ids.get(parent)), (None, None));
        ids.release(parent);
        assert!(ids.is_empty());
    }

    #[test]
    fn the_id_of_what_is_buried_is_not_used_again() {
        let ids = Ids::new();
        let id = ids.reserve().unwrap().finalize("virtual device", 0, vec![]);
        ids.hold(id).unwrap();
        assert_eq!(ids.bury(id), Err(RemoveError::InUse));
        ids.release(id);
        assert_eq!(ids.bury(id), Ok("virtual device"));
        assert_eq!(ids.remove(id), Err(RemoveError::Missing));
        assert_eq!(ids.get(id), None);
        assert_ne!(ids.reserve().unwrap().id(), id);
        assert_eq!(ids.take_leaf(), None);
    }
}
