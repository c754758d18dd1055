//! What software has pinned of an address space.

use std::ops::Deref;
use std::sync::Arc;

use iopt::Access;

use super::{AccessError, Hold, Ioas};
use crate::base::types::{Iova, IovaRange};
use crate::memory::PinnedMemory;

/// Memory of an address space that software has pinned: its bytes can be read and written ([`PinnedMemory::read`]) or
/// passed on as ranges of files ([`PinnedMemory::chunks`]), from any thread and for as long as it takes. Dropping it
/// lets it go.
///
/// An unmap takes it back by notice ([`Context::access`](crate::Context::access)), and fails if it is kept.
#[derive(Debug)]
pub struct PinnedRange {
    ioas: Arc<Ioas>,
    range: IovaRange,
    hold: Hold,
    memory: PinnedMemory,
}

impl PinnedRange {
    /// Pins what `ioas` maps in `range`.
    pub(crate) fn new(ioas: &Arc<Ioas>, range: IovaRange, access: Access, hold: Hold) -> Result<Self, AccessError> {
        let memory = ioas.pin(range, access, hold)?;
        Ok(Self { ioas: ioas.clone(), range, hold, memory })
    }

    /// What is pinned.
    #[must_use]
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// Whether it is one piece of memory.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        let first = self.identity(0);
        first.is_some_and(|first| {
            self.memory.starts().all(|start| self.memory.identity(start) == Some(first.plus(start)))
        })
    }
}

impl Deref for PinnedRange {
    type Target = PinnedMemory;

    fn deref(&self) -> &PinnedMemory {
        &self.memory
    }
}

impl Drop for PinnedRange {
    fn drop(&mut self) {
        self.ioas.unpin(self.range, self.hold);
    }
}

/// `length` bytes from `iova` on.
pub(crate) fn range_of(Iova(iova): Iova, length: u64) -> Result<IovaRange, AccessError> {
    if length == 0 {
        return Err(AccessError::Empty);
    }
    IovaRange::new(iova, length).ok_or(AccessError::Overflow(iova, length))
}
