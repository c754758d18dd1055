//! Software that reads and writes what an address space maps, without DMA.

use std::io;
use std::sync::Arc;

use iopt::Access;
use thiserror::Error;

use super::{ConnectError, Hold, Ioas};
use crate::base::lock::{Condvar, Mutex};
use crate::base::types::{IovaRange, WouldDeadlock};
use crate::base::{callback, rank};
use crate::memory::{PAGE_SIZE, PagesSlice, PinError, PinnedMemory};

/// Why software cannot get at what is mapped. Nothing is changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The length is zero.
    #[error("the length is zero")]
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
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}

/// What to do when something is to be unmapped.
type Unmap = dyn Fn(IovaRange) + Send + Sync;

/// An access of software, as far as its address space knows it.
pub(crate) struct Accessor {
    unmap: Option<Box<Unmap>>,
    state: Mutex<Told, rank::Accessor>,
    told: Condvar,
}

#[derive(Default)]
struct Told {
    /// Notices that are under way.
    notices: usize,
    /// It is told nothing any more.
    silent: bool,
}

impl Accessor {
    pub(crate) fn new(unmap: Option<Box<Unmap>>) -> Self {
        Self { unmap, state: Mutex::default(), told: Condvar::default() }
    }

    /// Whether it pins pages.
    pub(crate) fn pins(&self) -> bool {
        self.unmap.is_some()
    }

    /// What mappings have to be made of, in bytes.
    pub(super) fn page_size(&self) -> u64 {
        if self.pins() { PAGE_SIZE } else { 1 }
    }

    /// Tells it to let go what it pinned in `range`.
    pub(crate) fn notify(&self, range: IovaRange) {
        let Some(unmap) = &self.unmap else { return };
        {
            let mut state = self.state.lock();
            if state.silent {
                return;
            }
            state.notices += 1;
        }
        let _end = EndNotice(self);
        callback::call(|| unmap(range));
    }

    /// Returns when it is told nothing any more; from a notice of its own, when no other will begin.
    pub(crate) fn silence(&self) {
        let mut state = self.state.lock();
        state.silent = true;
        while state.notices > 0 && !callback::is_in_one() {
            state = self.told.wait(state);
        }
    }
}

/// A notice is under way as long as this lives.
struct EndNotice<'a>(&'a Accessor);

impl Drop for EndNotice<'_> {
    fn drop(&mut self) {
        self.0.state.lock().notices -= 1;
        self.0.told.notify_all();
    }
}

impl Ioas {
    /// Lets software read and write what is mapped, and pin it.
    pub(crate) fn add_accessor(&self, accessor: &Arc<Accessor>) -> Result<(), ConnectError> {
        let mut state = self.lock();
        state.areas.check_alignment(state.alignment().max(accessor.page_size()))?;
        state.accessors.push(accessor.clone());
        state.limits_changed();
        Ok(())
    }

    /// Undoes [`Ioas::add_accessor`].
    pub(crate) fn remove_accessor(&self, accessor: &Arc<Accessor>) {
        let mut state = self.lock();
        state.accessors.retain(|other| !Arc::ptr_eq(other, accessor));
        state.limits_changed();
    }

    /// Tells all accesses that may have something pinned in `range` to let it go.
    pub(super) fn notify(&self, range: IovaRange) {
        let accessors = self.lock().accessors.clone();
        accessors.iter().for_each(|accessor| accessor.notify(range));
    }

    /// Pins what is mapped in `range`, and keeps it from being unmapped until [`Ioas::unpin`].
    pub(super) fn pin(&self, range: IovaRange, access: Access, hold: Hold) -> Result<PinnedMemory, AccessError> {
        let slices = self.lock().areas.pieces(range, access, Some(hold))?;
        // From here on, dropping it undoes what was done.
        let held = Held { ioas: self, range, hold };
        let mut memory = PinnedMemory::new(access);
        for PagesSlice { pages, offset, length } in slices {
            memory.push(pages.pin(&self.shared.phys, offset, offset, length)?, offset, length);
        }
        std::mem::forget(held);
        Ok(memory)
    }

    /// Undoes [`Ioas::pin`] of the same range.
    pub(super) fn unpin(&self, range: IovaRange, hold: Hold) {
        self.lock().areas.release(range, hold);
    }

    /// Reads what is mapped from `range` on.
    pub(crate) fn read(&self, range: IovaRange, mut data: &mut [u8]) -> Result<(), AccessError> {
        let slices = self.lock().areas.pieces(range, Access::READ, None)?;
        for PagesSlice { pages, offset, length } in slices {
            let pin = pages.pin(&self.shared.phys, offset, offset, length)?;
            let (now, rest) = data.split_at_mut(length as usize);
            pin.read(offset, now)?;
            data = rest;
        }
        Ok(())
    }

    /// Writes what is mapped from `range` on.
    pub(crate) fn write(&self, range: IovaRange, mut data: &[u8]) -> Result<(), AccessError> {
        let slices = self.lock().areas.pieces(range, Access::WRITE, None)?;
        for PagesSlice { pages, offset, length } in slices {
            let pin = pages.pin(&self.shared.phys, offset, offset, length)?;
            let (now, rest) = data.split_at(length as usize);
            pin.write(offset, now)?;
            data = rest;
        }
        Ok(())
    }
}

/// What is held in an address space, until this is dropped.
struct Held<'a> {
    ioas: &'a Ioas,
    range: IovaRange,
    hold: Hold,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.ioas.unpin(self.range, self.hold);
    }
}
