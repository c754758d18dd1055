//! Requests on VFIO's files, and reads, writes and mappings of devices.
//!
//! ```text
//!   /dev/vfio/devices/vfioN   cdev ─────┐
//!                                       ├──► device: information, interrupts, regions, reset
//!   /dev/vfio/G               group ────┘
//!     │ SET_CONTAINER
//!     ▼
//!   /dev/vfio/vfio            container ──► type1, dirty: an address space of the old rules
//! ```
//! Source: `include/uapi/linux/vfio.h` and `Documentation/driver-api/vfio.rst` of Linux 7.3.

mod capability;
mod cdev;
pub mod container;
mod device;
mod dirty;
mod dma_buf;
mod dma_logging;
mod feature;
mod file;
pub mod group;
mod hot_reset;
mod peer;
mod type1;
pub(super) mod type1_info;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ioasid::Access;
use ioasid_uapi::vfio::container as uapi;
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Caller;
use super::argument::get_part;
use super::file::{OpenFile, of_kind};
pub use file::VfioFile;

/// The end of a field: the shortest form of a structure that a request accepts.
macro_rules! through {
    ($structure:path, $field:ident: $kind:ty) => {
        std::mem::offset_of!($structure, $field) + size_of::<$kind>()
    };
}
use through;

/// A panic of whoever had the lock has left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a file is a device or a group.
pub(crate) fn is_vfio(file: &Arc<dyn OpenFile>) -> bool {
    of_kind::<VfioFile>(file.clone()).is_some() || of_kind::<group::GroupFile>(file.clone()).is_some()
}

/// What the flags of MAP_DMA let devices do.
pub(super) fn map_access(flags: u32) -> Access {
    let mut access = Access::empty();
    access.set(Access::READ, flags & uapi::DMA_MAP_FLAG_READ != 0);
    access.set(Access::WRITE, flags & uapi::DMA_MAP_FLAG_WRITE != 0);
    access
}

/// Reads a structure with `argsz`, of which the caller must have set aside `minimum` bytes.
fn get<T>(address: u64, caller: &dyn Caller, minimum: usize) -> Result<(T, u32), Errno>
where
    T: FromBytes + IntoBytes + Immutable,
{
    let value: T = get_part(caller, address, minimum)?;
    let argsz = u32::read_from_prefix(value.as_bytes()).map_or(0, |(argsz, _)| argsz);
    if (argsz as usize) < minimum { Err(Errno::INVAL) } else { Ok((value, argsz)) }
}
