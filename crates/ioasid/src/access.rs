//! Access of software: reads, writes and pins what an address space maps, without DMA.
//!
//! Who mediates a device, or emulates one outside of any bus, gets at memory by IOVA here. What is pinned stays as long as
//! it is needed; when somebody wants to unmap it, the access is told, and lets it go before the unmap returns:
//!
//! ```text
//!   unmap ──► told: let go of IOVA a..=b ──► Pinned dropped ──► unmap goes on
//! ```

use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError};

use iopt::Access;
use thiserror::Error;

use crate::context::{Context, Object};
use crate::gate::check_holds_nothing;
use crate::ids::ObjectId;
use crate::ioas::{AccessError, Accessor, ConnectError, Hold, Ioas, Piece};
use crate::memory::{Identity, Pin};
use crate::sync::{Mutex, MutexGuard};
use crate::types::{HoldsSlices, Iova, IovaRange};

/// Why an access was not attached. What it was attached to before, it still is.
#[derive(Debug, Error)]
pub enum AccessAttachError {
    /// The context has no such address space.
    #[error("no address space {0} in the context")]
    Missing(u32),
    /// It is attached already, or is to be replaced and is not.
    #[error("the access is attached already, or not at all")]
    State,
    /// Something is mapped that is not made of whole pages, which can be pinned.
    #[error("IOVA {0} is mapped, and is not made of pages of {1:#x} bytes")]
    Misaligned(IovaRange, u64),
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
}

/// Software's access to an address space. Dropping it detaches it.
pub struct IoasAccess {
    context: Arc<Context>,
    id: ObjectId,
    accessor: Arc<Accessor>,
    /// Held while something is pinned.
    ioas: Mutex<Option<Arc<Ioas>>>,
    /// Held while that changes. Locked before it.
    change: Mutex<()>,
}

/// Memory that an access has pinned. Dropping it lets it go.
///
/// It must not outlive what the access was told about it: an unmap waits for it, and fails if it is kept.
pub struct PinnedRange {
    ioas: Arc<Ioas>,
    range: IovaRange,
    hold: Hold,
    pieces: Vec<(Pin, Piece)>,
}

impl PinnedRange {
    /// Pins what `ioas` maps in `range`.
    pub(crate) fn new(ioas: &Arc<Ioas>, range: IovaRange, access: Access, hold: Hold) -> Result<Self, AccessError> {
        let pieces = ioas.pin(range, access, hold)?;
        Ok(Self { ioas: ioas.clone(), range, hold, pieces })
    }

    /// What is pinned.
    #[must_use]
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// Whether it is one piece of memory.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        let mut at = 0;
        let piece = |piece: &Piece| {
            let start = at;
            at += piece.length;
            start
        };
        let starts: Vec<u64> = self.pieces.iter().map(|(_, each)| each).map(piece).collect();
        let first = self.identity(0);
        first.is_some_and(|first| starts.iter().all(|&start| self.identity(start) == Some(first.plus(start))))
    }

    /// Which memory is `offset` bytes from its beginning, if that can be told.
    #[must_use]
    pub fn identity(&self, mut offset: u64) -> Option<Identity> {
        for (pin, piece) in &self.pieces {
            if offset < piece.length {
                return pin.identity(piece.offset + offset);
            }
            offset -= piece.length;
        }
        None
    }
}

impl Drop for PinnedRange {
    fn drop(&mut self) {
        self.ioas.unpin(self.range, self.hold);
    }
}

fn range(Iova(iova): Iova, length: u64) -> Result<IovaRange, AccessError> {
    if length == 0 {
        return Err(AccessError::Empty);
    }
    IovaRange::new(iova, length).ok_or(AccessError::Overflow(iova, length))
}

impl Context {
    /// Makes an access for software, attached to nothing. With `unmap` it can pin pages: that is called with IOVAs in which
    /// everything pinned has to be let go, by dropping the [`PinnedRange`]s, before it returns. It may be called from any
    /// thread that unmaps, and must not call the address space or drop the access. `None` when the context has 2^31 objects.
    pub fn access(self: &Arc<Self>, unmap: Option<Box<dyn Fn(IovaRange) + Send + Sync>>) -> Option<IoasAccess> {
        let reserved = self.ids().reserve()?;
        let id = reserved.finalize(Object::Access, 1, vec![]);
        let accessor = Arc::new(Accessor::new(unmap));
        Some(IoasAccess { context: self.clone(), id, accessor, ioas: Mutex::default(), change: Mutex::default() })
    }
}

impl IoasAccess {
    /// Its id in the context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Lets it reach what address space `ioas` maps.
    ///
    /// # Errors
    /// See [`AccessAttachError`].
    pub fn attach(&self, ioas: u32) -> Result<(), AccessAttachError> {
        self.change(ioas, false)
    }

    /// Lets it reach what address space `ioas` maps, in place of what it reached before; what was pinned there is let go.
    ///
    /// # Errors
    /// See [`AccessAttachError`].
    pub fn replace(&self, ioas: u32) -> Result<(), AccessAttachError> {
        self.change(ioas, true)
    }

    fn change(&self, id: u32, attached: bool) -> Result<(), AccessAttachError> {
        check_holds_nothing()?;
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.attached().ok();
        if now.is_some() != attached {
            return Err(AccessAttachError::State);
        }
        let missing = AccessAttachError::Missing(id);
        let object_id = ObjectId(NonZeroU32::new(id).ok_or(AccessAttachError::Missing(id))?);
        let fits = |object: &Object| match object {
            Object::Ioas(ioas) => Ok(ioas.clone()),
            _ => Err(AccessAttachError::Missing(id)),
        };
        let next = self.context.ids().hold_if(object_id, fits).ok_or(missing)??;
        if now.as_ref().is_some_and(|now| Arc::ptr_eq(now, &next)) {
            self.context.ids().release(object_id);
            return Ok(());
        }
        if let Err(error) = next.add_accessor(&self.accessor) {
            self.context.ids().release(object_id);
            return Err(match error {
                ConnectError::Misaligned(range, page) => AccessAttachError::Misaligned(range, page),
                _ => AccessAttachError::State,
            });
        }
        self.leave();
        *self.locked() = Some(next);
        Ok(())
    }

    /// Lets go of everything in the address space that it is attached to, if to one, and leaves it.
    fn leave(&self) {
        // Nothing is pinned any more from here on, and who is told finds nobody who holds what is locked for that.
        let Some(ioas) = self.locked().take() else { return };
        self.accessor.notify(IovaRange::ALL);
        ioas.remove_accessor(&self.accessor);
        self.context.ids().release(ioas.id());
    }

    fn locked(&self) -> MutexGuard<'_, Option<Arc<Ioas>>> {
        self.ioas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attached(&self) -> Result<Arc<Ioas>, AccessError> {
        self.locked().clone().ok_or(AccessError::NotAttached)
    }

    /// Pins the pages that `length` bytes from `iova` on are mapped to, for `access`, until the result is dropped.
    ///
    /// Who drops it when told to has to have it in hand by then: pin under the lock that the function given to
    /// [`Context::access`] takes.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub fn pin(&self, iova: Iova, length: u64, access: Access) -> Result<PinnedRange, AccessError> {
        if !self.accessor.pins() {
            return Err(AccessError::CannotPin);
        }
        let range = range(iova, length)?;
        check_holds_nothing()?;
        let ioas = self.locked();
        PinnedRange::new(ioas.as_ref().ok_or(AccessError::NotAttached)?, range, access, Hold::Pin)
    }

    /// Reads what is mapped from `iova` on.
    ///
    /// # Errors
    /// See [`AccessError`]. If memory turns out to be gone, some of `data` may have been filled.
    pub fn read(&self, iova: Iova, data: &mut [u8]) -> Result<(), AccessError> {
        let range = range(iova, data.len() as u64)?;
        check_holds_nothing()?;
        self.attached()?.read(range, data)
    }

    /// Writes what is mapped from `iova` on. Dirty tracking does not see it.
    ///
    /// # Errors
    /// See [`AccessError`]. If memory turns out to be gone, some of `data` may have been written.
    pub fn write(&self, iova: Iova, data: &[u8]) -> Result<(), AccessError> {
        let range = range(iova, data.len() as u64)?;
        check_holds_nothing()?;
        self.attached()?.write(range, data)
    }
}

impl Drop for IoasAccess {
    fn drop(&mut self) {
        self.leave();
        self.accessor.silence();
        self.context.ids().release_last(self.id);
    }
}
