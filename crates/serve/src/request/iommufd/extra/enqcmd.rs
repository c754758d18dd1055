//! What a process's ENQCMD puts on the bus: off until the process asks for it, and apart from what any device may.

use ioasid_uapi::ioasid as uapi;
use rustix::io::Errno;

use super::{Call, ToErrno, check, pasid_of};

pub(super) fn enqcmd(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::Enqcmd = call.get()?;
    check(request.flags, uapi::ENQCMD_UNBIND, 0)?;
    if request.flags & uapi::ENQCMD_UNBIND != 0 {
        if request.number != 0 || request.pasid != 0 {
            return Err(Errno::INVAL);
        }
        return call.caller.bind_enqcmd(None);
    }
    let (number, pasid) = (pasid_of(request.number)?, pasid_of(request.pasid)?);
    let hold = call.context().hold_pasid(pasid).map_err(|error| error.errno())?;
    call.caller.bind_enqcmd(Some((number, hold)))
}
