//! Options of the whole context and of address spaces.

use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;

use super::{Call, ToErrno};
use crate::request::Capability;

pub(super) fn option(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::IommuOption = call.get()?;
    if request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    match request.option_id {
        uapi::OPTION_RLIMIT_MODE => rlimit_mode(call, &mut request)?,
        uapi::OPTION_HUGE_PAGES => huge_pages(call, &mut request)?,
        _ => return Err(Errno::OPNOTSUPP),
    }
    call.put(&request)
}

/// Whether pinned memory is counted for each process, or for each user.
fn rlimit_mode(call: &Call<'_>, request: &mut uapi::IommuOption) -> Result<(), Errno> {
    if request.object_id != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    match request.op {
        uapi::OPTION_OP_GET => request.val64 = u64::from(call.file.is_counted_by_process()),
        uapi::OPTION_OP_SET if !call.caller.is_capable(Capability::SysResource) => return Err(Errno::PERM),
        uapi::OPTION_OP_SET if !call.context().is_empty() => return Err(Errno::BUSY),
        uapi::OPTION_OP_SET => match request.val64 {
            by_process @ 0..=1 => call.file.count_by_process(by_process == 1),
            _ => return Err(Errno::INVAL),
        },
        _ => return Err(Errno::OPNOTSUPP),
    }
    Ok(())
}

/// Whether page tables of an address space may have other pages than the processor's.
fn huge_pages(call: &Call<'_>, request: &mut uapi::IommuOption) -> Result<(), Errno> {
    let ioas = call.context().ioas(request.object_id).ok_or(Errno::NOENT)?;
    match (request.op, request.val64) {
        (uapi::OPTION_OP_GET, _) => {
            request.val64 = u64::from(ioas.has_large_pages().map_err(|error| error.errno())?);
            Ok(())
        }
        (uapi::OPTION_OP_SET, large @ 0..=1) => ioas.set_large_pages(large == 1).map_err(|error| error.errno()),
        (uapi::OPTION_OP_SET, _) => Err(Errno::INVAL),
        _ => Err(Errno::OPNOTSUPP),
    }
}
