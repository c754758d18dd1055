//! PASIDs of a context.

use ioasid_uapi::ioasid as uapi;
use rustix::io::Errno;

use super::{Call, ToErrno, check, pasid_of};

pub(super) fn alloc(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::PasidAlloc = call.get()?;
    check(request.flags, 0, request.reserved)?;
    let context = call.context();
    let pasid = context.pasid_alloc(request.min, request.max).map_err(|error| error.errno())?;
    request.out_pasid = pasid.get();
    call.put(&request).inspect_err(|_| {
        // The program cannot know it, so nobody uses it.
        let _ = context.pasid_free(pasid);
    })
}

pub(super) fn free(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::PasidFree = call.get()?;
    let pasid = pasid_of(request.pasid).map_err(|_| Errno::NOENT)?;
    call.context().pasid_free(pasid).map_err(|error| error.errno())
}
