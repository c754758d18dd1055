//! Requests on what devices wrote.

use std::sync::Arc;

use ioasid::{Hwpt, IovaRange};
use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;

use super::{Call, ToErrno};
use crate::request::bitmap::tell_written;

/// The page table, if it was made for this.
fn tracked(call: &Call<'_>, id: u32) -> Result<Arc<Hwpt>, Errno> {
    let hwpt = call.context().hwpt(id).ok_or(Errno::NOENT)?;
    if hwpt.options().is_some_and(|options| options.dirty_tracking) { Ok(hwpt) } else { Err(Errno::OPNOTSUPP) }
}

pub(super) fn set_tracking(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::HwptSetDirtyTracking = call.get()?;
    // Linux ignores the reserved word, too.
    if request.flags & !uapi::HWPT_DIRTY_TRACKING_ENABLE != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let hwpt = tracked(call, request.hwpt_id)?;
    if request.flags == 0 {
        hwpt.stop_dirty_tracking();
        return Ok(());
    }
    // Large pages stay: who wants to know more exactly maps small ones.
    hwpt.start_dirty_tracking(u64::MAX).map_err(|error| error.errno())
}

pub(super) fn get_bitmap(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::HwptGetDirtyBitmap = call.get()?;
    if request.flags & !uapi::HWPT_GET_DIRTY_BITMAP_NO_CLEAR != 0 || request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let hwpt = tracked(call, request.hwpt_id)?;
    if request.length == 0 {
        return Err(Errno::INVAL);
    }
    let range = IovaRange::new(request.iova, request.length).ok_or(Errno::OVERFLOW)?;
    let (_, alignment) = hwpt.ioas().iova_ranges();
    let page = request.page_size;
    let aligned = |to| (range.start() | range.last().wrapping_add(1)).is_multiple_of(to);
    if !page.is_power_of_two() || !aligned(alignment) || !aligned(page) {
        return Err(Errno::INVAL);
    }
    let clear = request.flags & uapi::HWPT_GET_DIRTY_BITMAP_NO_CLEAR == 0;
    // Bits that are set stay set.
    let read =
        |range, clear, words: &mut [u64]| hwpt.read_dirty(range, page, clear, words).map_err(|error| error.errno());
    tell_written(call.caller, range, page, request.data, clear, |_, _| {}, read)
}
