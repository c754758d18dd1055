//! Options of the whole context and of address spaces.

use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;

use super::{Call, ToErrno};

pub(super) fn option(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::IommuOption = call.get()?;
    if request.reserved != 0 || request.option_id != uapi::OPTION_HUGE_PAGES {
        return Err(Errno::OPNOTSUPP);
    }
    let ioas = call.context().ioas(request.object_id).ok_or(Errno::NOENT)?;
    match (request.op, request.val64) {
        (uapi::OPTION_OP_GET, _) => {
            request.val64 = u64::from(ioas.has_large_pages().map_err(|error| error.errno())?);
            call.put(&request)
        }
        (uapi::OPTION_OP_SET, large @ 0..=1) => ioas.set_large_pages(large == 1).map_err(|error| error.errno()),
        (uapi::OPTION_OP_SET, _) => Err(Errno::INVAL),
        _ => Err(Errno::OPNOTSUPP),
    }
}
