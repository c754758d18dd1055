//! Options of the whole context and of address spaces.

use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;

use super::{Call, ToErrno};
use crate::request::Capability;
use crate::request::object;

pub(super) fn option(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::IommuOption = call.get()?;
    if request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    match request.option_id {
        uapi::OPTION_RLIMIT_MODE => rlimit_mode(call, request),
        uapi::OPTION_HUGE_PAGES => huge_pages(call, request),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// The answer to somebody who asks how an option is; who sets it gets none.
fn tell(call: &Call<'_>, request: uapi::IommuOption, value: bool) -> Result<(), Errno> {
    call.put(&uapi::IommuOption { val64: value.into(), ..request })
}

/// Whether pinned memory is counted for each process, or for each user.
fn rlimit_mode(call: &Call<'_>, request: uapi::IommuOption) -> Result<(), Errno> {
    if request.object_id != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    match request.op {
        uapi::OPTION_OP_GET => tell(call, request, call.file.is_counted_by_process()),
        uapi::OPTION_OP_SET if !call.caller.is_capable(Capability::SysResource) => Err(Errno::PERM),
        uapi::OPTION_OP_SET if !call.context().is_empty() => Err(Errno::BUSY),
        uapi::OPTION_OP_SET => match request.val64 {
            by_process @ 0..=1 => {
                call.file.count_by_process(by_process == 1);
                Ok(())
            }
            _ => Err(Errno::INVAL),
        },
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// Whether page tables of an address space may have other pages than the processor's.
fn huge_pages(call: &Call<'_>, request: uapi::IommuOption) -> Result<(), Errno> {
    let ioas = object::ioas(call.context(), request.object_id)?;
    match (request.op, request.val64) {
        (uapi::OPTION_OP_GET, _) => tell(call, request, ioas.has_large_pages()),
        (uapi::OPTION_OP_SET, large @ 0..=1) => ioas.set_large_pages(large == 1).map_err(|error| error.errno()),
        (uapi::OPTION_OP_SET, _) => Err(Errno::INVAL),
        _ => Err(Errno::OPNOTSUPP),
    }
}
