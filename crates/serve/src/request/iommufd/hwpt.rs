//! Requests on page tables.

use ioasid::{HwptOptions, IommuKind, OnMiss};
use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;

use super::{Call, ToErrno};
use crate::request::argument::{Data, Entries};
use crate::request::hardware;

/// The most entries that one invalidation may have, and the bytes of each.
const MOST_ENTRIES: u32 = 1 << 19;
const LONGEST_ENTRY: u32 = 4096;

pub(super) fn alloc(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::HwptAlloc = call.get()?;
    if request.reserved != 0 || request.reserved2 != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    if (request.data_type == uapi::HWPT_DATA_NONE) != (request.data_len == 0) {
        return Err(Errno::INVAL);
    }
    let context = call.context();
    let endpoint = context.endpoint(request.dev_id).ok_or(Errno::NOENT)?;
    let hardware = hardware::of(&endpoint);
    let data =
        Data { caller: call.caller, kind: request.data_type, address: request.data_uptr, length: request.data_len };
    let has = |flag| request.flags & flag != 0;
    let on_miss = if has(uapi::HWPT_FAULT_ID_VALID) { OnMiss::Queue(request.fault_id) } else { OnMiss::Abort };
    let id = if context.ioas(request.pt_id).is_some() {
        let known = uapi::HWPT_ALLOC_NEST_PARENT
            | uapi::HWPT_ALLOC_DIRTY_TRACKING
            | uapi::HWPT_ALLOC_PASID
            | uapi::HWPT_FAULT_ID_VALID;
        let faulting_parent = has(uapi::HWPT_ALLOC_NEST_PARENT) && has(uapi::HWPT_FAULT_ID_VALID);
        if request.flags & !known != 0 || faulting_parent {
            return Err(Errno::OPNOTSUPP);
        }
        let options = HwptOptions {
            format: if request.data_len == 0 { None } else { Some(hardware.table(&data)?) },
            nest_parent: has(uapi::HWPT_ALLOC_NEST_PARENT),
            dirty_tracking: has(uapi::HWPT_ALLOC_DIRTY_TRACKING),
            pasids: has(uapi::HWPT_ALLOC_PASID),
            on_miss,
        };
        let made = context.hwpt_alloc(request.dev_id, request.pt_id, options);
        made.map_err(|error| error.errno())?.id()
    } else if let Some(kind) = nested_in(call, request.pt_id) {
        let known = uapi::HWPT_ALLOC_PASID | uapi::HWPT_FAULT_ID_VALID;
        if request.flags & !known != 0 || request.data_len == 0 {
            return Err(Errno::OPNOTSUPP);
        }
        if kind != endpoint.iommu_kind() {
            return Err(Errno::INVAL);
        }
        let mut options = hardware.nested(&data)?;
        options.pasids = has(uapi::HWPT_ALLOC_PASID);
        options.on_miss = on_miss;
        let made = context.hwpt_alloc_nested(request.pt_id, options);
        made.map_err(|error| error.errno())?.id()
    } else {
        // Also if there is nothing.
        return Err(Errno::INVAL);
    };
    request.out_hwpt_id = id.0.get();
    call.put(&request).inspect_err(|_| {
        // The program cannot know the id, so nobody else can have used it.
        let _ = context.destroy(id.0.get());
    })
}

/// The kind of IOMMU of what a nested page table can be asked for on.
fn nested_in(call: &Call<'_>, id: u32) -> Option<IommuKind> {
    let context = call.context();
    let parent = context.hwpt(id).or_else(|| Some(context.viommu(id)?.parent().clone()))?;
    Some(parent.iommu_kind())
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
        let hardware = hardware::of_kind(viommu.parent().iommu_kind());
        return hardware.invalidate_viommu(&viommu, &entries, done);
    }
    let nested = call.context().nested_hwpt(request.hwpt_id).ok_or(Errno::INVAL)?;
    hardware::of_kind(nested.parent().iommu_kind()).invalidate(&nested, &entries, done)
}
