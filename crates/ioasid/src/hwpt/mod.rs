//! Page tables that devices can be attached to, a kind a file.
//!
//! ```text
//!                    ┌─ Hwpt ─────── mirrors an address space, in our memory
//!   attachment ──►   │    ▲
//!                    ├─ NestedHwpt ─ a guest's own, in the guest's memory, which is what the parent maps
//!                    ├─ SvaHwpt ──── a process's address space
//!                    └─ parked ───── one that was, and is no more: the attachment keeps its id from being used again
//! ```

mod dirty;
mod granule;
mod nested;
mod paging;
mod sva;
mod table;

use std::sync::Arc;

use crate::base::ids::ObjectId;
use crate::base::types::IovaRange;
use crate::fault::OnMiss;
use crate::gate::invalidation::TableId;
use crate::gate::shared::JoinError;
use crate::gate::walker::Walker;
use crate::ioas::{ConnectError, Ioas};
use crate::mirror::Users;

pub use dirty::DirtyError;
pub(crate) use dirty::{page_shift, set_bits};
pub use nested::{BadGuestStage, GuestStage, NestedHwpt, NestedOptions};
pub(crate) use paging::LOWEST_SPAN_BITS;
pub use paging::{Hwpt, HwptOptions};
pub use sva::{SvaError, SvaHwpt};

/// Why a walker cannot use a table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotConnected {
    /// It cannot pass the gate of the process that the table belongs to.
    #[error(transparent)]
    Shared(#[from] JoinError),
    /// What the table maps and what the walker reserves do not fit.
    #[error(transparent)]
    Ioas(#[from] ConnectError),
}

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
    pub(crate) fn on_miss(&self) -> &OnMiss {
        match self {
            Self::Paging(hwpt) => hwpt.on_miss(),
            Self::Nested(nested) => nested.on_miss(),
            Self::Sva(_) => &OnMiss::Resolve,
            Self::Parked(_) => &OnMiss::Abort,
        }
    }

    /// What is done about a miss, in the table and below it.
    pub(crate) fn on_misses(&self) -> impl Iterator<Item = &OnMiss> {
        let below = match self {
            Self::Nested(nested) => Some(nested.parent().on_miss()),
            _ => None,
        };
        std::iter::once(self.on_miss()).chain(below)
    }

    /// Has `walker` pass the gate of the process that the table belongs to, if that is another.
    fn join(&self, walker: &dyn Walker) -> Result<(), JoinError> {
        match self {
            Self::Nested(nested) => match nested.shared() {
                Some(member) => walker.ports().join(member, TableId::of(&**nested)),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Undoes one [`Table::join`], after the walker stopped using the table.
    fn leave(&self, walker: &dyn Walker) {
        if let Self::Nested(nested) = self
            && nested.shared().is_some()
        {
            walker.ports().leave();
        }
    }

    /// Lets `walker` use it: from now on, nothing can be mapped in what it reserves.
    pub(crate) fn connect(&self, walker: Arc<dyn Walker>, reserved: &[IovaRange]) -> Result<(), NotConnected> {
        self.join(&*walker)?;
        if let Some(hwpt) = self.paging() {
            hwpt.ioas().connect(reserved).inspect_err(|_| self.leave(&*walker))?;
            hwpt.users.add(walker.clone());
        }
        match self {
            Self::Nested(nested) => nested.users.add(walker),
            Self::Sva(sva) => sva.users.add(walker),
            Self::Paging(_) | Self::Parked(_) => {}
        }
        Ok(())
    }

    /// Undoes one [`Table::connect`], after the walker stopped using the table. Returns whether no walker uses the one
    /// that mirrors an address space any more.
    pub(crate) fn disconnect(&self, walker: &Arc<dyn Walker>, reserved: &[IovaRange]) -> bool {
        self.leave(&**walker);
        match self {
            Self::Nested(nested) => drop(nested.users.remove(walker)),
            Self::Sva(sva) => drop(sva.users.remove(walker)),
            Self::Paging(_) | Self::Parked(_) => {}
        }
        self.paging().is_some_and(|hwpt| {
            hwpt.ioas().disconnect(reserved);
            hwpt.users.remove(walker)
        })
    }

    /// The walkers that are attached to it; of a parent, those that are attached to what is nested on it, too.
    pub(crate) fn users(&self) -> Option<&Users> {
        match self {
            Self::Paging(hwpt) => Some(&hwpt.users),
            Self::Nested(nested) => Some(&nested.users),
            Self::Sva(sva) => Some(&sva.users),
            Self::Parked(_) => None,
        }
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
