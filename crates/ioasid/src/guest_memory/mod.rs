//! A port as rust-vmm's guest memory: an IOMMU under existing device code by a change of type.
//!
//! Device code written against [`vm_memory::GuestMemory`] reads and writes addresses that a driver gave it; the crate
//! virtio-queue is such code. Over a `GuestMemoryMmap` these are guest-physical addresses, and the device reaches
//! everything. Over a [`PortMemory`] they are IOVAs, and it reaches what its endpoint is attached to.
//!
//! ```text
//!   virtio-queue, a device ──► GuestMemory ──► GuestMemoryMmap                     address = guest-physical
//!                                        └───► PortMemory ──► DmaPort ──► IOTLB    address = IOVA
//! ```
//!
//! # What is held, and for how long
//!
//! vm-memory hands out memory as [`VolatileSlice`]s. Each is part of the port's access in progress, so a thread that
//! unmaps waits until the last one is dropped; that is what the [`Hold`] in it is for. The gate (see the module `gate`)
//! is passed by the first slice and left with the last:
//!
//! ```text
//!   slices alive   0 ─► 1        enter the gate, forget what was taken away
//!                  n ─► n + 1    nothing: what is translated now is part of the same access
//!                  1 ─► 0        leave the gate
//! ```
//!
//! The functions of [`vm_memory::Bytes`] drop each slice before they take the next, so between the pieces of a long
//! transfer no thread has to wait. Slices that are kept hold up every unmap and detach: keep them for a moment only,
//! and not while waiting for a thread that may be unmapping. A thread that unmaps what it holds itself gets
//! [`UnmapError::WouldDeadlock`](crate::UnmapError::WouldDeadlock). A slice that is leaked holds until the
//! [`PortMemory`] is dropped.
//!
//! # What is different from guest memory without an IOMMU
//!
//! - One thread has it, as one has a port. A device with several threads takes a port for each.
//! - Dirty tracking is the page table's, not that of slices: a page counts as written when it is translated for writing.
//! - A slice for reading may be read-only memory of this process: writing it raises SIGSEGV.
//! - Memory of another process cannot be borrowed, so it is an error here ([`FaultReason::NotLocal`]).
//! - Where a file behind the memory is cut short, what is read is zeros, and the next access is refused.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use ioasid::guest_memory::PortMemory;
//! use ioasid::{Access, GroupId, Machine, Iova, Placement, Rid, Silent, memory::Segment};
//! use vm_memory::{Bytes, GuestAddress, GuestMemory};
//!
//! /// A device's code, which knows nothing of IOMMUs.
//! fn increment(memory: &impl GuestMemory, at: GuestAddress) -> vm_memory::GuestMemoryResult<()> {
//!     let value: u32 = memory.read_obj(at)?;
//!     memory.write_obj(value + 1, at)
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let machine = Machine::new(Arc::new(Silent));
//! let endpoint = machine.add_endpoint("0000:00:01.0".parse::<Rid>()?, GroupId(0)).unwrap();
//! let context = machine.context();
//! let ioas = context.ioas_alloc().unwrap();
//! let (memory, _file) = Segment::memfd(4096)?;
//! ioas.map(Placement::Fixed(Iova(0x1000)), 4096, Access::all(), || Ok(vec![memory]))?;
//! let device = context.bind(&endpoint)?;
//! device.attach(None, &ioas)?;
//! endpoint.set_bus_master(true)?;
//!
//! let memory = PortMemory::new(endpoint.port(), None);
//! increment(&memory, GuestAddress(0x1000))?;
//! assert!(increment(&memory, GuestAddress(0x2000)).is_err());
//! # Ok(())
//! # }
//! ```
#![allow(unsafe_code, reason = "makes slices of what the gate protocol keeps alive")]

mod absent;
mod hold;
mod map;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

use std::cell::{Cell, UnsafeCell};
use std::iter::FusedIterator;
use std::{fmt, io};

use iopt::Access;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryResult, Permissions, VolatileSlice};

use crate::base::observe::FaultReason;
use crate::base::types::{Iova, Pasid};
use crate::port::{Bus, BusAddress, DmaError, DmaPort, Refused};

use absent::{NoBackend, NoBitmap};
use hold::Holds;

pub use hold::Hold;
pub use map::{MapMemoryError, map_memory};

/// What a port reaches, as guest memory whose addresses are IOVAs. See the [module](self).
pub struct PortMemory {
    pasid: Option<Pasid>,
    /// Tells the observer of faults.
    bus: Bus,
    /// The last access that was refused, until it is asked for.
    refusal: Cell<Option<DmaError>>,
    /// Goes before the port: a leaked slice must not keep the port inside.
    holds: Holds,
    /// The references in [`PortMemory::place`] and the one in [`PortMemory::miss`] are the only ones to it. Neither
    /// function calls the other while it uses its own. A miss may run a caller's code, memory elsewhere that holds a
    /// guest's tables: if that gets here again, `holds` refuses it before there is a second reference. One thread has
    /// it all, as it is not `Sync`.
    port: UnsafeCell<DmaPort>,
}

impl PortMemory {
    /// The memory that `port` reaches, with `pasid` in its transactions or none.
    #[must_use]
    pub fn new(mut port: DmaPort, pasid: Option<Pasid>) -> Self {
        port.prepare(pasid);
        let bus = port.bus().clone();
        let (holds, refusal) = (Holds::new(bus.requester.clone()), Cell::new(None));
        Self { pasid, holds, bus, refusal, port: UnsafeCell::new(port) }
    }

    /// Why the last access was refused that was, with its address; `None` if none was since this was called last. The
    /// errors of vm-memory have no room for it: where nothing is mapped, they say that the address is invalid, whatever
    /// the reason.
    pub fn take_refusal(&self) -> Option<DmaError> {
        self.refusal.take()
    }

    #[inline]
    fn at(&self, iova: u64) -> BusAddress {
        BusAddress { pasid: self.pasid, iova: Iova(iova) }
    }

    /// Translates `iova`: what keeps the place there, the place, and how many bytes go on from it.
    #[inline(always)]
    fn place(&self, iova: u64, access: Access) -> Result<(Hold<'_>, *mut u8, u64), Refused> {
        let Some(hold) = self.holds.hold(|inside| {
            // SAFETY: see `port`.
            unsafe { &mut *self.port.get() }.refresh(inside);
        }) else {
            return Err(FaultReason::Recursive.into());
        };
        // SAFETY: see `port`.
        let port = unsafe { &mut *self.port.get() };
        match port.hit(self.at(iova), access) {
            Some((start, there)) => Ok((hold, start, there)),
            None => self.miss(hold, iova, access),
        }
    }

    /// [`PortMemory::place`] of what is not cached.
    #[cold]
    #[inline(never)]
    fn miss<'a>(&'a self, mut hold: Hold<'a>, iova: u64, access: Access) -> Result<(Hold<'a>, *mut u8, u64), Refused> {
        // SAFETY: see `port`.
        let port = unsafe { &mut *self.port.get() };
        if port.is_crowded() && hold.is_only() {
            drop(hold);
            port.prepare(self.pasid);
            hold = self.holds.hold(|inside| port.refresh(inside)).ok_or(FaultReason::Recursive)?;
        }
        // Memory elsewhere is a caller's code, which may get here again: it is refused as long as this lives.
        let _miss = self.holds.begin_miss();
        let (start, there) = port.place(&hold.held(), self.at(iova), access)?;
        Ok((hold, start, there))
    }

    /// Borrows up to `most` bytes at `iova`, as many as lie together.
    #[inline(always)]
    fn borrow(&self, iova: u64, most: usize, access: Access) -> GuestMemoryResult<VolatileSlice<'_, Hold<'_>>> {
        match self.place(iova, access) {
            Ok((hold, start, there)) => {
                let length = there.min(most as u64) as usize;
                self.holds.count(access, length as u64);
                // SAFETY: the translation goes on for `length` bytes. They stay as long as `hold`, for which a thread
                // that takes the translation away waits, and which every slice made of this one has a clone of. Every
                // other user of them is prepared for a device to change them (see `Segment::local`).
                Ok(unsafe { VolatileSlice::with_bitmap(start, length, hold, None) })
            }
            Err(refused) => self.recover(iova, most, access, refused),
        }
    }

    /// As [`PortMemory::borrow`], out of the way of callers that need only one piece.
    #[inline(never)]
    fn borrow_more(&self, iova: u64, most: usize, access: Access) -> GuestMemoryResult<VolatileSlice<'_, Hold<'_>>> {
        self.borrow(iova, most, access)
    }

    /// Waits for what is missing, if that can be, and borrows it then; or makes an error of it that vm-memory knows.
    #[cold]
    fn recover(
        &self,
        iova: u64,
        most: usize,
        access: Access,
        refused: Refused,
    ) -> GuestMemoryResult<VolatileSlice<'_, Hold<'_>>> {
        match self.bus.recover(self.at(iova), access, refused) {
            Ok(()) => self.borrow_more(iova, most, access),
            Err(error) => {
                self.refusal.set(Some(error));
                Err(refusal(iova, error))
            }
        }
    }
}

fn refusal(iova: u64, error: DmaError) -> GuestMemoryError {
    match error.reason {
        FaultReason::NotMapped => GuestMemoryError::InvalidGuestAddress(GuestAddress(iova)),
        FaultReason::NotPermitted => io_error(io::ErrorKind::PermissionDenied, error),
        FaultReason::NotLocal => io_error(io::ErrorKind::Unsupported, error),
        _ => io_error(io::ErrorKind::Other, error),
    }
}

fn io_error(kind: io::ErrorKind, error: DmaError) -> GuestMemoryError {
    GuestMemoryError::IOError(io::Error::new(kind, error))
}

impl fmt::Debug for PortMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortMemory").field("pasid", &self.pasid).finish_non_exhaustive()
    }
}

/// What a port has to ask for. No caller borrows bytes for nothing, so that is taken for reading.
#[inline]
fn access(permissions: Permissions) -> Access {
    match permissions {
        Permissions::No | Permissions::Read => Access::READ,
        Permissions::Write => Access::WRITE,
        Permissions::ReadWrite => Access::all(),
    }
}

impl GuestMemory for PortMemory {
    type PhysicalMemory = NoBackend;
    type Bitmap = NoBitmap;

    /// Whether all of it can be accessed so at this moment. The observer is told of no fault, as nothing was accessed.
    fn check_range(&self, addr: GuestAddress, count: usize, permissions: Permissions) -> bool {
        let (mut iova, mut left) = (addr.0, count as u64);
        while left > 0 {
            let Ok((_, _, there)) = self.place(iova, access(permissions)) else { return false };
            // What translates is far below the top of the space.
            iova += there.min(left);
            left -= there.min(left);
        }
        true
    }

    /// The bytes, piece by piece: a piece is translated when it is asked for.
    ///
    /// The items are errors where the port would refuse the access, and the observer is told:
    /// [`GuestMemoryError::InvalidGuestAddress`] with the first address where nothing is mapped, and
    /// [`GuestMemoryError::IOError`] with a [`DmaError`] inside for any other [`FaultReason`].
    #[inline]
    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        permissions: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, Hold<'a>>> {
        Ok(Pieces { memory: self, iova: addr.0, left: count, access: access(permissions) })
    }
}

/// The pieces of a range that were not borrowed yet.
struct Pieces<'a> {
    memory: &'a PortMemory,
    iova: u64,
    left: usize,
    access: Access,
}

impl<'a> Pieces<'a> {
    /// What is left once `piece` was borrowed from it.
    #[inline(always)]
    fn after(&mut self, piece: &GuestMemoryResult<VolatileSlice<'a, Hold<'a>>>) {
        match piece {
            Ok(slice) => {
                // What translates is far below the top of the space.
                self.iova += slice.len() as u64;
                self.left -= slice.len();
            }
            Err(_) => self.left = 0,
        }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = GuestMemoryResult<VolatileSlice<'a, Hold<'a>>>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let piece = self.memory.borrow(self.iova, self.left, self.access);
        self.after(&piece);
        Some(piece)
    }
}

impl FusedIterator for Pieces<'_> {}

impl<'a> GuestMemorySliceIterator<'a, Hold<'a>> for Pieces<'a> {
    /// As the trait's own, with less to move about.
    #[inline(always)]
    fn stop_on_error(mut self) -> GuestMemoryResult<impl Iterator<Item = VolatileSlice<'a, Hold<'a>>>> {
        let first = self.next().transpose()?;
        Ok(Borrowable { first, rest: self })
    }
}

/// A piece that was borrowed, and those that follow it as far as they can be.
struct Borrowable<'a> {
    first: Option<VolatileSlice<'a, Hold<'a>>>,
    rest: Pieces<'a>,
}

impl<'a> Iterator for Borrowable<'a> {
    type Item = VolatileSlice<'a, Hold<'a>>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if self.rest.left == 0 {
            return None;
        }
        let Pieces { memory, iova, left, access } = self.rest;
        let piece = memory.borrow_more(iova, left, access);
        self.rest.after(&piece);
        piece.ok()
    }
}
