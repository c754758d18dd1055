//! Requests on page tables.

use ioasid::{HwptOptions, OnMiss};
use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;

use super::{Call, ToErrno};
use crate::request::argument::{Data, Entries};
use crate::request::hardware;
use crate::request::object;

/// The most entries that one invalidation may have, and the bytes of each.
const MOST_ENTRIES: u32 = 1 << 19;
const LONGEST_ENTRY: u32 = 4096;

pub(super) fn alloc(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::HwptAlloc = call.get()?;
    // Linux ignores the second reserved word, too.
    if request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    if (request.data_type == uapi::HWPT_DATA_NONE) != (request.data_len == 0) {
        return Err(Errno::INVAL);
    }
    let context = call.context();
    let endpoint = object::endpoint(context, request.dev_id)?;
    let hardware = hardware::of(&endpoint);
    let data =
        Data { caller: call.caller, kind: request.data_type, address: request.data_uptr, length: request.data_len };
    let has = |flag| request.flags & flag != 0;
    // Linux looks for the fault queue when the table is made, so that whatever else is wrong comes first.
    let queue = has(uapi::HWPT_FAULT_ID_VALID).then(|| object::fault_queue(context, request.fault_id));
    let on_miss = || match &queue {
        Some(Ok(queue)) => OnMiss::Queue(queue.clone()),
        Some(Err(_)) | None => OnMiss::Abort,
    };
    let id = if let Some(ioas) = context.ioas(request.pt_id) {
        let known = uapi::HWPT_ALLOC_NEST_PARENT
            | uapi::HWPT_ALLOC_DIRTY_TRACKING
            | uapi::HWPT_ALLOC_PASID
            | uapi::HWPT_FAULT_ID_VALID;
        let faulting_parent = has(uapi::HWPT_ALLOC_NEST_PARENT) && has(uapi::HWPT_FAULT_ID_VALID);
        if request.flags & !known != 0 || faulting_parent {
            return Err(Errno::OPNOTSUPP);
        }
        let mut options = HwptOptions::default()
            .nest_parent(has(uapi::HWPT_ALLOC_NEST_PARENT))
            .dirty_tracking(has(uapi::HWPT_ALLOC_DIRTY_TRACKING))
            .pasids(has(uapi::HWPT_ALLOC_PASID));
        if request.data_len != 0 {
            options = options.format(hardware.table(&data)?);
        }
        let made = context.hwpt_alloc(&endpoint, &ioas, options.on_miss(on_miss()));
        made.map_err(|error| error.errno())?.id()
    } else if let Some(parent) = context.nest_parent(request.pt_id) {
        let known = uapi::HWPT_ALLOC_PASID | uapi::HWPT_FAULT_ID_VALID;
        if request.flags & !known != 0 || request.data_len == 0 || !hardware.has_nested() {
            return Err(Errno::OPNOTSUPP);
        }
        let of_another_kind = parent.hwpt().iommu_kind() != endpoint.iommu().kind();
        if of_another_kind || !parent.hwpt().is_nest_parent() {
            return Err(Errno::INVAL);
        }
        let options = hardware.nested(&data)?.pasids(has(uapi::HWPT_ALLOC_PASID)).on_miss(on_miss());
        let made = context.hwpt_alloc_nested(parent, options);
        made.map_err(|error| error.errno())?.id()
    } else {
        // Also if there is nothing.
        return Err(Errno::INVAL);
    };
    request.out_hwpt_id = id.0.get();
    let told = queue.transpose().and_then(|_| call.put(&request));
    told.inspect_err(|_| {
        // The program cannot know the id, so nobody else can have used it.
        let _ = context.destroy(id);
    })
}

pub(super) fn invalidate(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::HwptInvalidate = call.get()?;
    let mut done = 0;
    let result = invalidate_entries(call, &request, &mut done);
    request.entry_num = done;
    call.put(&request)?;
    result
}

/// Performs the invalidations one after the other, and counts them.
fn invalidate_entries(call: &Call<'_>, request: &uapi::HwptInvalidate, done: &mut u32) -> Result<(), Errno> {
    if request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let fits =
        request.data_uptr != 0 && (1..=LONGEST_ENTRY).contains(&request.entry_len) && request.entry_num <= MOST_ENTRIES;
    if request.entry_num != 0 && !fits {
        return Err(Errno::INVAL);
    }
    let entries = Entries {
        caller: call.caller,
        kind: request.data_type,
        address: request.data_uptr,
        length: request.entry_len,
        count: request.entry_num,
    };
    if !call.context().has(request.hwpt_id) {
        return Err(Errno::NOENT);
    }
    if let Some(viommu) = call.context().viommu(request.hwpt_id) {
        let hardware = hardware::of_kind(viommu.iommu().kind());
        return hardware.invalidate_viommu(&viommu, &entries, done);
    }
    let nested = call.context().nested_hwpt(request.hwpt_id).ok_or(Errno::INVAL)?;
    hardware::of_kind(nested.parent().iommu_kind()).invalidate(&nested, &entries, done)
}
