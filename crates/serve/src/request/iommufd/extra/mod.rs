//! Requests that Linux does not have: `docs/uapi.md`.

mod enqcmd;
mod faults;
mod memory;
mod pasid;
mod tables;

use ioasid_uapi::ioasid as uapi;
use rustix::io::Errno;

use super::{Call, Handler, ToErrno};

/// Number, shortest argument, handler.
pub(super) const REQUESTS: &[(u32, usize, Handler)] = &[
    (uapi::PASID_ALLOC, size_of::<uapi::PasidAlloc>(), pasid::alloc),
    (uapi::PASID_FREE, size_of::<uapi::PasidFree>(), pasid::free),
    (uapi::PARK, size_of::<uapi::Park>(), tables::park),
    (uapi::HWPT_ALLOC, size_of::<uapi::HwptAlloc>(), tables::alloc),
    (uapi::HWPT_INVALIDATE, size_of::<uapi::HwptInvalidate>(), tables::invalidate),
    (uapi::FAULT_QUEUE_ALLOC, size_of::<uapi::FaultQueueAlloc>(), faults::alloc),
    (uapi::FAULT_QUEUE_GET, size_of::<uapi::FaultQueueGet>(), faults::get),
    (uapi::IOAS_PRESENCE, size_of::<uapi::IoasPresence>(), memory::presence),
    (uapi::COPY, size_of::<uapi::Copy>(), memory::copy),
    (uapi::ENQCMD, size_of::<uapi::Enqcmd>(), enqcmd::enqcmd),
];

/// Fails with `EOPNOTSUPP` if there are flags that are not `known`, or what has to be 0 is not.
fn check(flags: u32, known: u32, reserved: u32) -> Result<(), Errno> {
    if flags & !known != 0 || reserved != 0 { Err(Errno::OPNOTSUPP) } else { Ok(()) }
}

/// A PASID of 20 bits.
fn pasid_of(number: u32) -> Result<ioasid::Pasid, Errno> {
    ioasid::Pasid::new(number).ok_or(Errno::INVAL)
}
