//! Requests on `/dev/iommu`.
//!
//! Source: `include/uapi/linux/iommufd.h` and `Documentation/userspace-api/iommufd.rst` of Linux 7.3.

use std::mem::offset_of;
use std::sync::Arc;

use ioasid::memory::PAGE_SIZE;
use ioasid::{Access, Context, Iova, IovaRange, Placement};
use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::argument::Argument;
use super::{Caller, ToErrno};

type Handler = fn(&Arc<Context>, &Argument<'_>, &dyn Caller, minimum: usize) -> Result<(), Errno>;

/// The end of a field: the shortest form of a structure that a request accepts.
macro_rules! through {
    ($structure:ident . $field:ident: $kind:ty) => {
        offset_of!(uapi::$structure, $field) + size_of::<$kind>()
    };
}

/// Number, shortest argument, handler.
const REQUESTS: &[(u32, usize, Handler)] = &[
    (uapi::DESTROY, through!(Destroy.id: u32), destroy),
    (uapi::IOAS_ALLOC, through!(IoasAlloc.out_ioas_id: u32), ioas_alloc),
    (uapi::IOAS_IOVA_RANGES, through!(IoasIovaRanges.out_iova_alignment: u64), ioas_iova_ranges),
    (uapi::IOAS_MAP, through!(IoasMap.iova: u64), ioas_map),
    (uapi::IOAS_UNMAP, through!(IoasUnmap.length: u64), ioas_unmap),
];

/// Performs request `number` with its argument at `address`.
///
/// # Errors
/// As Linux: `ENOTTY` for an unknown number, `EFAULT` for a bad address, `EINVAL` for a short argument, `E2BIG` for a
/// long one, `EOPNOTSUPP` for unknown flags, and each request's own.
pub fn ioctl(context: &Arc<Context>, number: u32, address: u64, caller: &dyn Caller) -> Result<i64, Errno> {
    let (_, minimum, handler) = REQUESTS.iter().find(|(known, ..)| *known == number).ok_or(Errno::NOTTY)?;
    let argument = Argument::new(caller, address)?;
    handler(context, &argument, caller, *minimum)?;
    Ok(0)
}

fn destroy(context: &Arc<Context>, argument: &Argument<'_>, _: &dyn Caller, minimum: usize) -> Result<(), Errno> {
    let request: uapi::Destroy = argument.get(minimum)?;
    context.destroy(request.id).map_err(|error| error.errno())
}

fn ioas_alloc(context: &Arc<Context>, argument: &Argument<'_>, _: &dyn Caller, minimum: usize) -> Result<(), Errno> {
    let mut request: uapi::IoasAlloc = argument.get(minimum)?;
    if request.flags != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let ioas = context.ioas_alloc().ok_or(Errno::NOMEM)?;
    request.out_ioas_id = ioas.id().0.get();
    argument.put(&request).inspect_err(|_| {
        // The program cannot know the id, so nobody else can have used it.
        let _ = context.destroy(ioas.id().0.get());
    })
}

fn ioas_iova_ranges(
    context: &Arc<Context>,
    argument: &Argument<'_>,
    caller: &dyn Caller,
    minimum: usize,
) -> Result<(), Errno> {
    let mut request: uapi::IoasIovaRanges = argument.get(minimum)?;
    if request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let ioas = context.ioas(request.ioas_id).ok_or(Errno::NOENT)?;
    let (ranges, alignment) = ioas.iova_ranges();
    let places = request.num_iovas;
    request.num_iovas = 0;
    request.out_iova_alignment = alignment;
    for range in ranges.iter() {
        if request.num_iovas < places {
            let at = u64::from(request.num_iovas) * size_of::<uapi::IovaRange>() as u64;
            let range = uapi::IovaRange { start: range.start, last: range.last };
            caller.write(request.allowed_iovas.wrapping_add(at), range.as_bytes())?;
        }
        request.num_iovas += 1;
    }
    argument.put(&request)?;
    if request.num_iovas > places { Err(Errno::MSGSIZE) } else { Ok(()) }
}

fn ioas_map(context: &Arc<Context>, argument: &Argument<'_>, caller: &dyn Caller, minimum: usize) -> Result<(), Errno> {
    let mut request: uapi::IoasMap = argument.get(minimum)?;
    let known = uapi::MAP_FIXED_IOVA | uapi::MAP_WRITEABLE | uapi::MAP_READABLE;
    if request.flags & !known != 0 || request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    if request.iova == u64::MAX || request.length == u64::MAX {
        return Err(Errno::OVERFLOW);
    }
    let mut access = Access::empty();
    access.set(Access::READ, request.flags & uapi::MAP_READABLE != 0);
    access.set(Access::WRITE, request.flags & uapi::MAP_WRITEABLE != 0);
    if access.is_empty() {
        return Err(Errno::INVAL);
    }
    let ioas = context.ioas(request.ioas_id).ok_or(Errno::NOENT)?;
    request.user_va.checked_add(request.length).ok_or(Errno::OVERFLOW)?;
    // What devices see is made of pages.
    if !request.user_va.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::INVAL);
    }
    let placement = if request.flags & uapi::MAP_FIXED_IOVA != 0 {
        Placement::Fixed(Iova(request.iova))
    } else {
        Placement::Automatic { like: request.user_va }
    };
    let memory = || caller.memory(request.user_va, request.length, access);
    let iova = ioas.map(placement, request.length, access, memory).map_err(|error| error.errno())?;
    request.iova = iova.0;
    argument.put(&request).inspect_err(|_| {
        if let Some(range) = IovaRange::new(iova.0, request.length) {
            let _ = ioas.unmap(range);
        }
    })
}

fn ioas_unmap(context: &Arc<Context>, argument: &Argument<'_>, _: &dyn Caller, minimum: usize) -> Result<(), Errno> {
    let mut request: uapi::IoasUnmap = argument.get(minimum)?;
    let ioas = context.ioas(request.ioas_id).ok_or(Errno::NOENT)?;
    let range = if request.iova == 0 && request.length == u64::MAX {
        IovaRange::ALL
    } else if request.iova == u64::MAX || request.length == u64::MAX {
        return Err(Errno::OVERFLOW);
    } else if request.length == 0 {
        return Err(Errno::INVAL);
    } else {
        IovaRange::new(request.iova, request.length).ok_or(Errno::OVERFLOW)?
    };
    request.length = ioas.unmap(range).map_err(|error| error.errno())?;
    argument.put(&request)
}
