//! Software that reads and writes what an address space maps, without DMA.

use std::io;
use std::sync::{Arc, PoisonError};

use iopt::Access;
use thiserror::Error;

use super::{ConnectError, Hold, Ioas, Piece};
use crate::memory::{PAGE_SIZE, Pin, PinError};
use crate::sync::Mutex;
use crate::types::{HoldsSlices, IovaRange};

/// Why software cannot get at what is mapped. Nothing is changed.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The length is zero.
    #[error("nothing cannot be read, written or pinned")]
    Empty,
    /// The range wraps around the end of the address space.
    #[error("IOVA {0:#x} and length {1:#x} reach beyond the end of the address space")]
    Overflow(u64, u64),
    /// The access was made for reading and writing only.
    #[error("this access cannot pin pages")]
    CannotPin,
    /// It is attached to no address space.
    #[error("the access is attached to no address space")]
    NotAttached,
    /// Part of the range is not mapped.
    #[error("IOVA {0} is not mapped as a whole")]
    NotMapped(IovaRange),
    /// The mapping does not allow it.
    #[error("the mapping of IOVA {0} does not allow it")]
    NotPermitted(IovaRange),
    /// What is mapped there does not begin, or end, with a page of the memory.
    #[error("IOVA {0} is not mapped to whole pages")]
    Unaligned(IovaRange),
    /// It is being unmapped.
    #[error("IOVA {0} is being unmapped")]
    Unmapping(IovaRange),
    /// The memory cannot be had.
    #[error(transparent)]
    Pages(#[from] PinError),
    /// The memory is gone.
    #[error("the memory behind the mapping is gone: {0}")]
    Gone(#[from] io::Error),
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
}

/// What to do when something is to be unmapped.
type Unmap = Box<dyn Fn(IovaRange) + Send + Sync>;

/// Who reads and writes: an access, as far as its address space knows it.
pub(crate) struct Accessor {
    /// Whether it pins pages.
    pins: bool,
    /// Called under the lock, so that nobody calls it any more when it has been taken away.
    unmap: Mutex<Option<Unmap>>,
}

impl Accessor {
    pub(crate) fn new(unmap: Option<Unmap>) -> Self {
        Self { pins: unmap.is_some(), unmap: Mutex::new(unmap) }
    }

    pub(crate) fn pins(&self) -> bool {
        self.pins
    }

    /// What mappings have to be made of, in bytes.
    pub(super) fn page_size(&self) -> u64 {
        if self.pins { PAGE_SIZE } else { 1 }
    }

    /// Tells it to let go what it pinned in `range`.
    pub(crate) fn notify(&self, range: IovaRange) {
        if let Some(unmap) = &*self.unmap.lock().unwrap_or_else(PoisonError::into_inner) {
            unmap(range);
        }
    }

    /// Returns when it is told nothing any more.
    pub(crate) fn silence(&self) {
        *self.unmap.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Ioas {
    /// Lets software read and write what is mapped, and pin it.
    pub(crate) fn add_accessor(&self, accessor: &Arc<Accessor>) -> Result<(), ConnectError> {
        let mut space = self.exclusive();
        self.locked_areas().check_alignment(space.alignment().max(accessor.page_size()))?;
        space.accessors.push(accessor.clone());
        Ok(())
    }

    /// Undoes [`Ioas::add_accessor`].
    pub(crate) fn remove_accessor(&self, accessor: &Arc<Accessor>) {
        self.exclusive().accessors.retain(|other| !Arc::ptr_eq(other, accessor));
    }

    /// Tells all who may have something pinned in `range` to let it go.
    pub(super) fn notify(&self, range: IovaRange) {
        let accessors = self.space().accessors.clone();
        accessors.iter().for_each(|accessor| accessor.notify(range));
    }

    /// Pins what is mapped in `range`, and keeps it from being unmapped until [`Ioas::unpin`].
    pub(crate) fn pin(&self, range: IovaRange, access: Access, hold: Hold) -> Result<Vec<(Pin, Piece)>, AccessError> {
        let pieces = self.locked_areas().pieces(range, access, Some(hold))?;
        let pinned: Result<Vec<_>, _> = pieces
            .into_iter()
            .map(|piece| Ok((piece.pages.pin_part(&self.iommu.phys, piece.offset, piece.length)?, piece)))
            .collect();
        pinned.inspect_err(|_| self.unpin(range, hold))
    }

    /// Undoes [`Ioas::pin`] of the same range.
    pub(crate) fn unpin(&self, range: IovaRange, hold: Hold) {
        self.locked_areas().release(range, hold);
    }

    /// Reads what is mapped from `range` on.
    pub(crate) fn read(&self, range: IovaRange, mut data: &mut [u8]) -> Result<(), AccessError> {
        let pieces = self.locked_areas().pieces(range, Access::READ, None)?;
        for piece in pieces {
            let pin = piece.pages.pin_part(&self.iommu.phys, piece.offset, piece.length)?;
            let (now, rest) = data.split_at_mut(piece.length as usize);
            pin.read(piece.offset, now)?;
            data = rest;
        }
        Ok(())
    }

    /// Writes what is mapped from `range` on.
    pub(crate) fn write(&self, range: IovaRange, mut data: &[u8]) -> Result<(), AccessError> {
        let pieces = self.locked_areas().pieces(range, Access::WRITE, None)?;
        for piece in pieces {
            let pin = piece.pages.pin_part(&self.iommu.phys, piece.offset, piece.length)?;
            let (now, rest) = data.split_at(piece.length as usize);
            pin.write(piece.offset, now)?;
            data = rest;
        }
        Ok(())
    }
}
