//! The requesters that are attached to a page table.

use std::sync::Arc;

use crate::base::lock::Mutex;
use crate::base::rank;
use crate::gate::invalidation::Invalidation;
use crate::gate::quiesce;
use crate::gate::walker::Walker;

/// The requesters that are attached to a table, once for each PASID: whose ports to wait for.
#[derive(Default)]
pub(crate) struct Users(Mutex<State, rank::Users>);

#[derive(Default)]
struct State {
    /// In the order in which they came, each with a number, counted from 1.
    walkers: Vec<(u64, Arc<dyn Walker>)>,
    added: u64,
}

impl Users {
    pub(crate) fn add(&self, walker: Arc<dyn Walker>) {
        let mut users = self.0.lock();
        users.added += 1;
        let number = users.added;
        users.walkers.push((number, walker));
    }

    /// Undoes one [`Users::add`]. Returns whether there is none left.
    pub(crate) fn remove(&self, walker: &Arc<dyn Walker>) -> bool {
        let mut users = self.0.lock();
        let at = users.walkers.iter().position(|(_, other)| Arc::ptr_eq(other, walker));
        let removed = at.map(|at| users.walkers.remove(at));
        let none = users.walkers.is_empty();
        // Dropped without the lock, as it may be the last reference.
        drop(users);
        drop(removed);
        none
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().walkers.is_empty()
    }

    /// The one that came next after the one with this number; the first after 0.
    pub(crate) fn after(&self, number: u64) -> Option<(u64, Arc<dyn Walker>)> {
        self.0.lock().walkers.iter().find(|(other, _)| *other > number).cloned()
    }

    /// Returns when no port of theirs uses what was taken away before the call and is covered by `invalidation`.
    ///
    /// Other requesters may come and go meanwhile. One that comes has walked nothing before, and finds the table as it
    /// is now; the one that goes has waited for its ports itself.
    pub(crate) fn quiesce(&self, invalidation: Invalidation) {
        quiesce(
            |each| {
                let mut last = 0;
                while let Some((number, walker)) = self.after(last) {
                    walker.ports().gates(each);
                    last = number;
                }
            },
            invalidation,
        );
    }
}
