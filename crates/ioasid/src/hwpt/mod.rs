//! Page tables that devices can be attached to, a kind a file.
//!
//! ```text
//!                    ┌─ Hwpt ───── mirrors an address space, in our memory
//!   attachment ──►   │    ▲
//!                    └─ NestedHwpt ─ a guest's own, in the guest's memory, which is what the parent maps
//! ```

mod format;
mod nested;
mod paging;

use std::sync::{Arc, PoisonError};

use crate::endpoint::Endpoint;
use crate::fault::FaultQueue;
use crate::gate::quiesce;
use crate::ids::ObjectId;
use crate::invalidation::Invalidation;
use crate::ioas::Ioas;
use crate::sync::{Mutex, MutexGuard};

pub use format::{IommuKind, TableFormat};
pub use nested::{GuestFormat, GuestTable, InvalidateError, NestedHwpt, NestedOptions, UnalignedRoot};
pub(crate) use paging::LOWEST_SPAN_BITS;
pub use paging::{Hwpt, HwptOptions};

/// What an endpoint is attached to.
#[derive(Clone)]
pub(crate) enum Table {
    Paging(Arc<Hwpt>),
    Nested(Arc<NestedHwpt>),
}

impl Table {
    pub(crate) fn id(&self) -> ObjectId {
        match self {
            Self::Paging(hwpt) => hwpt.id(),
            Self::Nested(nested) => nested.id(),
        }
    }

    /// The table itself, or what it is nested on.
    pub(crate) fn paging(&self) -> &Arc<Hwpt> {
        match self {
            Self::Paging(hwpt) => hwpt,
            Self::Nested(nested) => nested.parent(),
        }
    }

    /// The address space behind it.
    pub(crate) fn ioas(&self) -> &Arc<Ioas> {
        self.paging().ioas()
    }

    /// Whether it can be attached to a PASID, or beside one.
    pub(crate) fn allows_pasids(&self) -> bool {
        match self {
            Self::Paging(hwpt) => hwpt.allows_pasids(),
            Self::Nested(nested) => nested.allows_pasids(),
        }
    }

    /// Where page requests go.
    pub(crate) fn fault_queue(&self) -> Option<&Arc<FaultQueue>> {
        match self {
            Self::Paging(hwpt) => hwpt.fault_queue.as_ref(),
            Self::Nested(nested) => nested.fault_queue.as_ref(),
        }
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Paging(one), Self::Paging(other)) => Arc::ptr_eq(one, other),
            (Self::Nested(one), Self::Nested(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// The endpoints that are attached to a table, once for each PASID: whose ports to wait for.
#[derive(Default)]
pub(crate) struct Users(Mutex<Vec<Arc<Endpoint>>>);

impl Users {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<Arc<Endpoint>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, endpoint: &Arc<Endpoint>) {
        self.lock().push(endpoint.clone());
    }

    /// Undoes one [`Users::add`]. Returns whether there is nobody left.
    pub(crate) fn remove(&self, endpoint: &Arc<Endpoint>) -> bool {
        let mut users = self.lock();
        if let Some(at) = users.iter().position(|other| Arc::ptr_eq(other, endpoint)) {
            users.swap_remove(at);
        }
        users.is_empty()
    }

    /// Returns when no port of theirs uses what was taken away before the call and is covered by `invalidation`. Nobody is
    /// added or removed meanwhile.
    pub(crate) fn quiesce(&self, invalidation: Invalidation) {
        let endpoint = |number: usize| self.lock().get(number).cloned();
        quiesce(|each| (0..).map_while(endpoint).for_each(|endpoint| endpoint.gates(each)), invalidation);
    }
}
