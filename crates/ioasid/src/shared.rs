//! What all of one machine share, whichever part of it they belong to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iopt::Arena;

use crate::base::observe::Observer;
use crate::fault::Deadlines;
use crate::memory::{PhysSpace, TableSpace};
use crate::pasid::PasidSpace;

/// The physical space of a machine, its memory for page tables, its PASIDs, and its observer.
pub(crate) struct Shared {
    observer: Arc<dyn Observer>,
    pub(crate) arena: Arc<Arena<TableSpace>>,
    pub(crate) phys: Arc<PhysSpace>,
    serial: AtomicU64,
    /// Of page requests.
    pub(crate) deadlines: Deadlines,
    pub(crate) pasids: Arc<PasidSpace>,
}

impl Shared {
    pub(crate) fn new(observer: Arc<dyn Observer>, tables: TableSpace) -> Self {
        Self {
            observer,
            arena: Arc::new(Arena::with_memory(tables)),
            phys: Arc::new(PhysSpace::new()),
            serial: AtomicU64::new(1),
            deadlines: Deadlines::default(),
            pasids: Arc::default(),
        }
    }

    pub(crate) fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// A number that no other object of this machine has or had.
    pub(crate) fn serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }
}
