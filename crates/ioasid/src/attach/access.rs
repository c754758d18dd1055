//! Access of software: reads, writes and pins what an address space maps, without DMA.
//!
//! A mediator, or a device model outside of any bus, gets at memory by IOVA here. What it pins stays until it lets go.
//! An unmap of pinned memory tells the access first, which lets it go before the unmap returns:
//!
//! ```text
//!   unmap ──► told: let go of IOVA a..=b ──► PinnedRange dropped ──► unmap goes on
//! ```

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use iopt::Access;
use thiserror::Error;

use crate::base::ids::ObjectId;
use crate::base::lock::{Mutex, MutexGuard};
use crate::base::rank;
use crate::base::types::{Iova, IovaRange, WouldDeadlock};
use crate::context::{Context, Object};
use crate::gate::check_may_wait;
use crate::ioas::{AccessError, Accessor, ConnectError, Hold, Ioas, PinnedRange, range_of};

/// Why an access was not attached. What it was attached to before, it still is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AccessAttachError {
    /// The address space was destroyed, or is another context's.
    #[error("address space {0} is not in this context: it was destroyed, or another context has it")]
    Missing(ObjectId),
    /// It is attached already, or is to be replaced and is not.
    #[error("the access is attached already, or not at all")]
    State,
    /// Something is mapped that is not made of whole pages, which can be pinned.
    #[error("IOVA {0} is mapped, and is not made of pages of {1:#x} bytes")]
    Misaligned(IovaRange, u64),
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}

/// Software's access to an address space. Dropping it detaches it.
pub struct IoasAccess {
    context: Arc<Context>,
    id: ObjectId,
    accessor: Arc<Accessor>,
    ioas: Mutex<Option<Arc<Ioas>>, rank::AccessIoas>,
}

impl Context {
    /// Makes an access for software, attached to nothing. With `unmap` it can pin pages: that is called with IOVAs in
    /// which everything pinned has to be let go, by dropping the [`PinnedRange`]s, before it returns. It may be called
    /// from any thread that unmaps, with no lock held; to unmap the same IOVAs from there is an error. `None` when the
    /// context has 2^31 objects.
    pub fn access(self: &Arc<Self>, unmap: Option<Box<dyn Fn(IovaRange) + Send + Sync>>) -> Option<IoasAccess> {
        let reserved = self.ids().reserve()?;
        let id = reserved.finalize(Object::Access, 1, vec![]);
        let accessor = Arc::new(Accessor::new(unmap));
        Some(IoasAccess { context: self.clone(), id, accessor, ioas: Mutex::default() })
    }
}

impl fmt::Debug for IoasAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoasAccess")
            .field("id", &self.id)
            .field("attached", &self.attached().ok().map(|ioas| ioas.id()))
            .finish_non_exhaustive()
    }
}

impl IoasAccess {
    /// Its id in the context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Lets it reach what an address space of its context maps.
    ///
    /// # Errors
    /// See [`AccessAttachError`].
    pub fn attach(&self, ioas: &Arc<Ioas>) -> Result<(), AccessAttachError> {
        self.change(ioas, false)
    }

    /// Lets it reach what an address space of its context maps, in place of what it reached before; what was pinned
    /// there is let go.
    ///
    /// # Errors
    /// See [`AccessAttachError`].
    pub fn replace(&self, ioas: &Arc<Ioas>) -> Result<(), AccessAttachError> {
        self.change(ioas, true)
    }

    fn change(&self, next: &Arc<Ioas>, attached: bool) -> Result<(), AccessAttachError> {
        check_may_wait()?;
        let before = {
            let mut now = self.locked();
            if now.is_some() != attached {
                return Err(AccessAttachError::State);
            }
            let held = self.context.hold_ioas(next).ok_or(AccessAttachError::Missing(next.id()))?;
            if now.as_ref().is_some_and(|now| Arc::ptr_eq(now, next)) {
                return Ok(());
            }
            next.add_accessor(&self.accessor).map_err(|error| match error {
                ConnectError::Misaligned(range, page) => AccessAttachError::Misaligned(range, page),
                _ => AccessAttachError::State,
            })?;
            held.keep();
            now.replace(next.clone())
        };
        before.into_iter().for_each(|before| self.leave(&before));
        Ok(())
    }

    /// Lets go of everything in an address space that it is not attached to any more.
    fn leave(&self, ioas: &Arc<Ioas>) {
        // If the notice panics, the rest is done all the same.
        let _left = Left { access: self, ioas };
        self.accessor.notify(IovaRange::ALL);
    }

    fn locked(&self) -> MutexGuard<'_, Option<Arc<Ioas>>, rank::AccessIoas> {
        self.ioas.lock()
    }

    fn attached(&self) -> Result<Arc<Ioas>, AccessError> {
        self.locked().clone().ok_or(AccessError::NotAttached)
    }

    /// Pins the pages that `length` bytes from `iova` on are mapped to, for `access`, until the result is dropped.
    ///
    /// To drop it when told to, the caller must have it in hand by then: pin under the lock that the function given to
    /// [`Context::access`] takes.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub fn pin(&self, iova: Iova, length: u64, access: Access) -> Result<PinnedRange, AccessError> {
        if !self.accessor.pins() {
            return Err(AccessError::CannotPin);
        }
        let range = range_of(iova, length)?;
        check_may_wait()?;
        PinnedRange::new(&self.attached()?, range, access, Hold::Pin)
    }

    /// Reads what is mapped from `iova` on.
    ///
    /// # Errors
    /// See [`AccessError`]. If memory turns out to be gone, some of `data` may have been filled.
    pub fn read(&self, iova: Iova, data: &mut [u8]) -> Result<(), AccessError> {
        let range = range_of(iova, data.len() as u64)?;
        check_may_wait()?;
        self.attached()?.read(range, data)
    }

    /// Writes what is mapped from `iova` on. Dirty tracking does not see it.
    ///
    /// # Errors
    /// See [`AccessError`]. If memory turns out to be gone, some of `data` may have been written.
    pub fn write(&self, iova: Iova, data: &[u8]) -> Result<(), AccessError> {
        let range = range_of(iova, data.len() as u64)?;
        check_may_wait()?;
        self.attached()?.write(range, data)
    }
}

/// An access that has left an address space, but for what is done when this is dropped.
struct Left<'a> {
    access: &'a IoasAccess,
    ioas: &'a Arc<Ioas>,
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.ioas.remove_accessor(&self.access.accessor);
        self.access.context.ids().release(self.ioas.id());
    }
}

impl Drop for IoasAccess {
    /// Waits for notices that are under way, but not for one that this is dropped from.
    fn drop(&mut self) {
        let before = self.locked().take();
        if let Some(ioas) = before {
            // A panic goes no further from a drop.
            let _ = catch_unwind(AssertUnwindSafe(|| self.leave(&ioas)));
        }
        self.accessor.silence();
        self.context.ids().release_last(self.id);
    }
}
