//! Page tables of every kind.

use ioasid::{
    GuestFormat, GuestPasidFormat, GuestPasidTable, GuestStage, GuestTable, HwptOptions, IovaRange, NestedOptions,
    OnMiss, WithoutPasid,
};
use ioasid_uapi::ioasid as uapi;
use rustix::io::Errno;

use super::{Call, ToErrno, check, pasid_of};
use crate::request::object;

pub(super) fn park(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::Park = call.get()?;
    call.context().park(request.id).map_err(|error| error.errno())
}

pub(super) fn alloc(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::HwptAlloc = call.get()?;
    let known = match request.kind {
        uapi::HWPT_PAGING => uapi::HWPT_NEST_PARENT | uapi::HWPT_DIRTY_TRACKING | uapi::HWPT_PASID,
        uapi::HWPT_NESTED => uapi::HWPT_PASID,
        uapi::HWPT_GUEST_PASIDS => uapi::HWPT_ZERO_IS_NONE,
        uapi::HWPT_SVA => 0,
        _ => return Err(Errno::OPNOTSUPP),
    };
    check(request.flags, known, request.reserved)?;
    if !unused(&request) {
        return Err(Errno::INVAL);
    }
    let context = call.context();
    let id = match request.kind {
        uapi::HWPT_PAGING => {
            let has = |flag| request.flags & flag != 0;
            let on_miss = on_miss(call, &request)?;
            let device = object::endpoint(context, request.dev_id)?;
            let ioas = context.ioas(request.pt_id).ok_or_else(|| object::other_kind(context, request.pt_id))?;
            let options = HwptOptions::default()
                .nest_parent(has(uapi::HWPT_NEST_PARENT))
                .dirty_tracking(has(uapi::HWPT_DIRTY_TRACKING))
                .pasids(has(uapi::HWPT_PASID))
                .on_miss(on_miss);
            context.hwpt_alloc(&device, &ioas, options).map_err(|error| error.errno())?.id()
        }
        uapi::HWPT_SVA => {
            let process = call.caller.process(request.pidfd)?;
            context.hwpt_alloc_sva(process).map_err(|error| error.errno())?.id()
        }
        _ => {
            let stage = if request.kind == uapi::HWPT_NESTED {
                GuestStage::Table(GuestTable { format: guest_format(request.format)?, root: request.root })
            } else {
                GuestStage::Pasids(guest_pasids(&request)?)
            };
            let on_miss = on_miss(call, &request)?;
            let pasids = request.kind == uapi::HWPT_GUEST_PASIDS || request.flags & uapi::HWPT_PASID != 0;
            let parent =
                context.nest_parent(request.pt_id).ok_or_else(|| object::other_kind(context, request.pt_id))?;
            let options = NestedOptions::from(stage).pasids(pasids).on_miss(on_miss);
            context.hwpt_alloc_nested(parent, options).map_err(|error| error.errno())?.id()
        }
    };
    request.out_hwpt_id = id.0.get();
    call.put(&request).inspect_err(|_| {
        // The program cannot know the id, so nobody else can have used it.
        let _ = context.destroy(id.0.get());
    })
}

/// Whether what its kind does not use is 0.
fn unused(request: &uapi::HwptAlloc) -> bool {
    let uapi::HwptAlloc {
        dev_id,
        pt_id,
        pidfd,
        format,
        on_miss,
        fault_id,
        levels,
        root,
        pasid_bits,
        without_pasid,
        ..
    } = *request;
    let guests = [u64::from(format), root, levels.into(), pasid_bits.into(), without_pasid.into()];
    match request.kind {
        uapi::HWPT_PAGING => pidfd == 0 && guests == [0; 5],
        uapi::HWPT_NESTED => (dev_id, pidfd) == (0, 0) && guests[2..] == [0; 3],
        uapi::HWPT_GUEST_PASIDS => (dev_id, pidfd) == (0, 0),
        _ => [dev_id, pt_id, on_miss, fault_id] == [0; 4] && guests == [0; 5],
    }
}

fn on_miss(call: &Call<'_>, request: &uapi::HwptAlloc) -> Result<OnMiss, Errno> {
    match request.on_miss {
        uapi::ON_MISS_QUEUE => object::fault_queue(call.context(), request.fault_id).map(OnMiss::Queue),
        _ if request.fault_id != 0 => Err(Errno::INVAL),
        uapi::ON_MISS_ABORT => Ok(OnMiss::Abort),
        uapi::ON_MISS_RESOLVE => Ok(OnMiss::Resolve),
        _ => Err(Errno::OPNOTSUPP),
    }
}

fn guest_format(format: u32) -> Result<GuestFormat, Errno> {
    Ok(match format {
        uapi::GUEST_X86_64 => GuestFormat::X86_64,
        uapi::GUEST_X86_64_5_LEVELS => GuestFormat::X86_64FiveLevels,
        uapi::GUEST_ARMV8_4K => GuestFormat::Armv8Pages4K,
        uapi::GUEST_ARMV8_16K => GuestFormat::Armv8Pages16K,
        uapi::GUEST_ARMV8_64K => GuestFormat::Armv8Pages64K,
        uapi::GUEST_RISCV_SV39 => GuestFormat::Sv39,
        uapi::GUEST_RISCV_SV48 => GuestFormat::Sv48,
        uapi::GUEST_RISCV_SV57 => GuestFormat::Sv57,
        _ => return Err(Errno::OPNOTSUPP),
    })
}

fn guest_pasids(request: &uapi::HwptAlloc) -> Result<GuestPasidTable, Errno> {
    let levels = u8::try_from(request.levels).map_err(|_| Errno::INVAL)?;
    let format = match request.format {
        uapi::GUEST_PASIDS_AMD => GuestPasidFormat::AmdGcr3(levels, GuestFormat::X86_64),
        uapi::GUEST_PASIDS_AMD_5_LEVELS => GuestPasidFormat::AmdGcr3(levels, GuestFormat::X86_64FiveLevels),
        uapi::GUEST_PASIDS_RISCV => GuestPasidFormat::RiscVDirectory(levels),
        _ if levels != 0 => return Err(Errno::INVAL),
        uapi::GUEST_PASIDS_SMMUV3 => GuestPasidFormat::SmmuV3Linear,
        uapi::GUEST_PASIDS_SMMUV3_4K => GuestPasidFormat::SmmuV3Leaves4K,
        uapi::GUEST_PASIDS_SMMUV3_64K => GuestPasidFormat::SmmuV3Leaves64K,
        _ => return Err(Errno::OPNOTSUPP),
    };
    let without = match request.without_pasid {
        uapi::WITHOUT_PASID_REFUSED => WithoutPasid::Refused,
        uapi::WITHOUT_PASID_ENTRY_ZERO => WithoutPasid::EntryZero,
        uapi::WITHOUT_PASID_BYPASS => WithoutPasid::Bypass,
        _ => return Err(Errno::OPNOTSUPP),
    };
    let zero_is_none = request.flags & uapi::HWPT_ZERO_IS_NONE != 0;
    Ok(GuestPasidTable { format, root: request.root, pasid_bits: request.pasid_bits, without, zero_is_none })
}

pub(super) fn invalidate(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::HwptInvalidate = call.get()?;
    check(request.flags, uapi::INVALIDATE_PASID_VALID, request.reserved)?;
    if !call.context().has(request.hwpt_id) {
        return Err(Errno::NOENT);
    }
    let nested = call.context().nested_hwpt(request.hwpt_id).ok_or(Errno::INVAL)?;
    let by_pasid = request.flags & uapi::INVALIDATE_PASID_VALID != 0;
    let pasid = by_pasid.then(|| pasid_of(request.pasid)).transpose()?;
    let uapi::HwptInvalidate { start, last, .. } = request;
    let unused = (by_pasid || request.pasid == 0, (start, last) == (0, 0));
    let invalidated = match (request.scope, unused) {
        (uapi::INVALIDATE_ALL, (true, true)) if !by_pasid => nested.invalidate(IovaRange::ALL),
        (uapi::INVALIDATE_RANGE, (true, _)) if !by_pasid => {
            nested.invalidate(IovaRange::inclusive(start, last).ok_or(Errno::INVAL)?)
        }
        (uapi::INVALIDATE_PASID, (true, true)) => nested.invalidate_pasid(pasid),
        (uapi::INVALIDATE_ALL | uapi::INVALIDATE_RANGE | uapi::INVALIDATE_PASID, _) => return Err(Errno::INVAL),
        _ => return Err(Errno::OPNOTSUPP),
    };
    invalidated.map_err(|error| error.errno())
}
