//! Page tables that devices can be attached to, a kind a file.
//!
//! ```text
//!                    ┌─ Hwpt ─────── mirrors an address space, in our memory
//!   attachment ──►   │    ▲
//!                    ├─ NestedHwpt ─ a guest's own, in the guest's memory, which is what the parent maps
//!                    ├─ SvaHwpt ──── a process's address space
//!                    └─ parked ───── one that was, and is no more: the attachment keeps its id from being used again
//! ```

mod format;
mod guest;
mod guest_pasids;
mod nested;
mod paging;
mod sva;

use std::sync::{Arc, PoisonError};

use crate::endpoint::Endpoint;
use crate::fault::Disposition;
use crate::gate::quiesce;
use crate::ids::ObjectId;
use crate::invalidation::Invalidation;
use crate::ioas::{ConnectError, Ioas};
use crate::sync::{Mutex, MutexGuard};

pub use format::{IommuKind, TableFormat};
pub use guest::{GuestFormat, GuestTable, UnalignedRoot};
pub(crate) use guest_pasids::Stage1;
pub use guest_pasids::{BadPasidTable, GuestPasidFormat, GuestPasidTable, WithoutPasid};
pub use nested::{BadGuestStage, GuestStage, InvalidateError, NestedHwpt, NestedOptions};
pub(crate) use paging::LOWEST_SPAN_BITS;
pub use paging::{Hwpt, HwptOptions};
pub use sva::{SvaError, SvaHwpt};

/// What an endpoint is attached to.
#[derive(Clone)]
pub(crate) enum Table {
    Paging(Arc<Hwpt>),
    Nested(Arc<NestedHwpt>),
    Sva(Arc<SvaHwpt>),
    /// Nothing: what had this id, or the PASID of the attachment, is gone.
    Parked(ObjectId),
}

impl Table {
    pub(crate) fn id(&self) -> ObjectId {
        match self {
            Self::Paging(hwpt) => hwpt.id(),
            Self::Nested(nested) => nested.id(),
            Self::Sva(sva) => sva.id(),
            Self::Parked(id) => *id,
        }
    }

    /// The table itself, or what it is nested on, if it mirrors an address space in the end.
    pub(crate) fn paging(&self) -> Option<&Arc<Hwpt>> {
        match self {
            Self::Paging(hwpt) => Some(hwpt),
            Self::Nested(nested) => Some(nested.parent()),
            Self::Sva(_) | Self::Parked(_) => None,
        }
    }

    /// The address space behind it.
    pub(crate) fn ioas(&self) -> Option<&Arc<Ioas>> {
        Some(self.paging()?.ioas())
    }

    /// Whether it can be attached to a PASID, or beside one.
    pub(crate) fn allows_pasids(&self) -> bool {
        match self {
            Self::Paging(hwpt) => hwpt.allows_pasids(),
            Self::Nested(nested) => nested.allows_pasids(),
            Self::Sva(_) | Self::Parked(_) => true,
        }
    }

    /// Whether transactions with any PASID go to it where it is attached without one: a guest's own table of PASIDs.
    pub(crate) fn owns_pasids(&self) -> bool {
        matches!(self, Self::Nested(nested) if nested.stage().owns_pasids())
    }

    /// What happens on a miss in the table itself.
    pub(crate) fn on_miss(&self) -> &Disposition {
        match self {
            Self::Paging(hwpt) => &hwpt.on_miss,
            Self::Nested(nested) => &nested.on_miss,
            Self::Sva(_) => &Disposition::Resolve,
            Self::Parked(_) => &Disposition::Abort,
        }
    }

    /// Everybody who may be asked about a miss, in the table or below it.
    pub(crate) fn dispositions(&self) -> impl Iterator<Item = &Disposition> {
        let below = match self {
            Self::Nested(nested) => Some(&nested.parent().on_miss),
            _ => None,
        };
        std::iter::once(self.on_miss()).chain(below)
    }

    /// Lets `endpoint` use it: from now on, what the endpoint reserves is nobody's.
    pub(crate) fn connect(&self, endpoint: &Arc<Endpoint>) -> Result<(), ConnectError> {
        if let Some(hwpt) = self.paging() {
            hwpt.ioas().connect(endpoint, hwpt)?;
        }
        match self {
            Self::Nested(nested) => nested.connect(endpoint),
            Self::Sva(sva) => sva.users.add(endpoint),
            Self::Paging(_) | Self::Parked(_) => {}
        }
        Ok(())
    }

    /// Undoes one [`Table::connect`], after the endpoint stopped using the table. Returns whether nobody uses the one that
    /// mirrors an address space any more.
    pub(crate) fn disconnect(&self, endpoint: &Arc<Endpoint>) -> bool {
        match self {
            Self::Nested(nested) => nested.disconnect(endpoint),
            Self::Sva(sva) => drop(sva.users.remove(endpoint)),
            Self::Paging(_) | Self::Parked(_) => {}
        }
        self.paging().is_some_and(|hwpt| hwpt.ioas().disconnect(endpoint, hwpt))
    }

    /// Who is attached to it, each once; of a parent, those that are attached to what is nested on it, too.
    pub(crate) fn attached(&self) -> Vec<Arc<Endpoint>> {
        let users = match self {
            Self::Paging(hwpt) => &hwpt.users,
            Self::Nested(nested) => &nested.users,
            Self::Sva(sva) => &sva.users,
            Self::Parked(_) => return Vec::new(),
        };
        let mut attached = users.lock().clone();
        attached.sort_by_key(Arc::as_ptr);
        attached.dedup_by(|one, other| Arc::ptr_eq(one, other));
        attached
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Paging(one), Self::Paging(other)) => Arc::ptr_eq(one, other),
            (Self::Nested(one), Self::Nested(other)) => Arc::ptr_eq(one, other),
            (Self::Sva(one), Self::Sva(other)) => Arc::ptr_eq(one, other),
            (Self::Parked(one), Self::Parked(other)) => one == other,
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
