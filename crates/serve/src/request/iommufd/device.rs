//! What the IOMMU behind a device can do.

use ioasid::Recovery;
use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;

use super::Call;
use crate::request::hardware;

/// Bytes that are cleared in one go.
const CLEARED: usize = 4096;

pub(super) fn get_hw_info(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::HwInfo = call.get()?;
    if request.flags & !uapi::HW_INFO_FLAG_INPUT_TYPE != 0 || request.reserved != [0; 3] {
        return Err(Errno::OPNOTSUPP);
    }
    let wanted = if request.flags == 0 { uapi::HW_INFO_TYPE_DEFAULT } else { request.data_type };
    let endpoint = call.context().endpoint(request.dev_id).ok_or(Errno::NOENT)?;
    let (kind, info) = hardware::of(&endpoint).info();
    if wanted != uapi::HW_INFO_TYPE_DEFAULT && wanted != kind {
        return Err(Errno::OPNOTSUPP);
    }
    let room = request.data_len as usize;
    let known = room.min(info.len());
    call.caller.write(request.data_uptr, &info[..known])?;
    let mut at = known;
    while at < room {
        let zeros = &[0; CLEARED][..(room - at).min(CLEARED)];
        call.caller.write(request.data_uptr.wrapping_add(at as u64), zeros)?;
        at += zeros.len();
    }
    request.data_type = kind;
    request.data_len = info.len() as u32;
    // What makes page requests does so by ATS.
    let has_ats = endpoint.recovery() == Recovery::PageRequests;
    request.out_capabilities = if has_ats { 0 } else { uapi::HW_CAP_PCI_ATS_NOT_SUPPORTED };
    if endpoint.tracks_dirty() {
        request.out_capabilities |= uapi::HW_CAP_DIRTY_TRACKING;
    }
    request.out_max_pasid_log2 = endpoint.pasid_bits() as u8;
    call.put(&request)
}
