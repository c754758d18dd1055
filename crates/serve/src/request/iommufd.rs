//! Requests on `/dev/iommu`.
//!
//! Source: `include/uapi/linux/iommufd.h` and `Documentation/userspace-api/iommufd.rst` of Linux 7.3.

use std::fs::File;
use std::mem::offset_of;
use std::sync::Arc;

use ioasid::memory::{PAGE_SIZE, Pages};
use ioasid::{Access, Context, Ioas, Iova, IovaRange};
use ioasid_uapi::iommufd as uapi;
use rustix::fs::OFlags;
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
    (uapi::IOAS_ALLOW_IOVAS, through!(IoasAllowIovas.allowed_iovas: u64), ioas_allow_iovas),
    (uapi::IOAS_COPY, through!(IoasCopy.src_iova: u64), ioas_copy),
    (uapi::OPTION, through!(IommuOption.val64: u64), option),
    (uapi::IOAS_MAP, through!(IoasMap.iova: u64), ioas_map),
    (uapi::IOAS_MAP_FILE, through!(IoasMapFile.iova: u64), ioas_map_file),
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
    let (ranges, alignment) = ioas.iova_ranges().map_err(|error| error.errno())?;
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

/// What the flags of a request that maps ask for: the access, and whether the IOVA is the program's choice.
fn map_flags(flags: u32) -> Result<(Access, bool), Errno> {
    let known = uapi::MAP_FIXED_IOVA | uapi::MAP_WRITEABLE | uapi::MAP_READABLE;
    if flags & !known != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let mut access = Access::empty();
    access.set(Access::READ, flags & uapi::MAP_READABLE != 0);
    access.set(Access::WRITE, flags & uapi::MAP_WRITEABLE != 0);
    Ok((access, flags & uapi::MAP_FIXED_IOVA != 0))
}

fn ioas_map(context: &Arc<Context>, argument: &Argument<'_>, caller: &dyn Caller, minimum: usize) -> Result<(), Errno> {
    let mut request: uapi::IoasMap = argument.get(minimum)?;
    let (access, fixed) = map_flags(request.flags)?;
    if request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    if request.iova == u64::MAX || request.length == u64::MAX {
        return Err(Errno::OVERFLOW);
    }
    if access.is_empty() {
        return Err(Errno::INVAL);
    }
    let ioas = context.ioas(request.ioas_id).ok_or(Errno::NOENT)?;
    let (start, whole) = pages_around(request.user_va, request.length)?;
    let pages = caller.pages(start, whole, access.contains(Access::WRITE)).map_err(|error| error.errno())?;
    let iova = fixed.then_some(Iova(request.iova));
    let mapped = ioas.map_pages(iova, &pages, request.user_va - start, request.length, access);
    request.iova = mapped.map_err(|error| error.errno())?.0;
    argument.put(&request).inspect_err(|_| take_back(&ioas, request.iova, request.length))
}

fn ioas_map_file(
    context: &Arc<Context>,
    argument: &Argument<'_>,
    caller: &dyn Caller,
    minimum: usize,
) -> Result<(), Errno> {
    let mut request: uapi::IoasMapFile = argument.get(minimum)?;
    let (access, fixed) = map_flags(request.flags)?;
    if request.iova == u64::MAX || request.length == u64::MAX {
        return Err(Errno::OVERFLOW);
    }
    if access.is_empty() {
        return Err(Errno::INVAL);
    }
    let ioas = context.ioas(request.ioas_id).ok_or(Errno::NOENT)?;
    if request.length == 0 {
        return Err(Errno::INVAL);
    }
    let (start, whole) = pages_around(request.start, request.length)?;
    let file = File::from(caller.descriptor(request.fd)?);
    let writable = access.contains(Access::WRITE);
    if writable && rustix::fs::fcntl_getfl(&file)? & OFlags::RWMODE != OFlags::RDWR {
        return Err(Errno::PERM);
    }
    let pages = Pages::of_file(file, start, whole, writable);
    let iova = fixed.then_some(Iova(request.iova));
    let mapped = ioas.map_pages(iova, &pages, request.start - start, request.length, access);
    request.iova = mapped.map_err(|error| error.errno())?.0;
    argument.put(&request).inspect_err(|_| take_back(&ioas, request.iova, request.length))
}

/// The whole pages that `length` bytes from `start` on lie in: where they begin, and how many bytes they have.
fn pages_around(start: u64, length: u64) -> Result<(u64, u64), Errno> {
    let end = start.checked_add(length).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
    let start = start & !(PAGE_SIZE - 1);
    Ok((start, end.ok_or(Errno::OVERFLOW)? - start))
}

/// Undoes a mapping whose place the program could not be told.
fn take_back(ioas: &Ioas, iova: u64, length: u64) {
    if let Some(range) = IovaRange::new(iova, length) {
        let _ = ioas.unmap(range);
    }
}

fn ioas_copy(context: &Arc<Context>, argument: &Argument<'_>, _: &dyn Caller, minimum: usize) -> Result<(), Errno> {
    let mut request: uapi::IoasCopy = argument.get(minimum)?;
    let (access, fixed) = map_flags(request.flags)?;
    if [request.length, request.src_iova, request.dst_iova].contains(&u64::MAX) {
        return Err(Errno::OVERFLOW);
    }
    if access.is_empty() {
        return Err(Errno::INVAL);
    }
    let source = context.ioas(request.src_ioas_id).ok_or(Errno::NOENT)?;
    let last = request.length.checked_sub(1).ok_or(Errno::INVAL)?;
    request.src_iova.checked_add(last).ok_or(Errno::OVERFLOW)?;
    let target = context.ioas(request.dst_ioas_id).ok_or(Errno::NOENT)?;
    let (to, from) = (fixed.then_some(Iova(request.dst_iova)), Iova(request.src_iova));
    let copied = target.copy(to, &source, from, request.length, access);
    request.dst_iova = copied.map_err(|error| error.errno())?.0;
    argument.put(&request).inspect_err(|_| take_back(&target, request.dst_iova, request.length))
}

fn ioas_allow_iovas(
    context: &Arc<Context>,
    argument: &Argument<'_>,
    caller: &dyn Caller,
    minimum: usize,
) -> Result<(), Errno> {
    let request: uapi::IoasAllowIovas = argument.get(minimum)?;
    if request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let ioas = context.ioas(request.ioas_id).ok_or(Errno::NOENT)?;
    // The program says how many there are, so room is made as they arrive.
    let mut ranges = Vec::new();
    for n in 0..u64::from(request.num_iovas) {
        let mut range = uapi::IovaRange::default();
        let at = n.wrapping_mul(size_of::<uapi::IovaRange>() as u64);
        caller.read(request.allowed_iovas.wrapping_add(at), range.as_mut_bytes())?;
        if range.start >= range.last {
            return Err(Errno::INVAL);
        }
        ranges.push(IovaRange { start: range.start, last: range.last });
    }
    ioas.allow_iovas(&ranges).map_err(|error| error.errno())
}

fn option(context: &Arc<Context>, argument: &Argument<'_>, _: &dyn Caller, minimum: usize) -> Result<(), Errno> {
    let mut request: uapi::IommuOption = argument.get(minimum)?;
    if request.reserved != 0 || request.option_id != uapi::OPTION_HUGE_PAGES {
        return Err(Errno::OPNOTSUPP);
    }
    let ioas = context.ioas(request.object_id).ok_or(Errno::NOENT)?;
    match (request.op, request.val64) {
        (uapi::OPTION_OP_GET, _) => {
            request.val64 = u64::from(ioas.has_large_pages().map_err(|error| error.errno())?);
            argument.put(&request)
        }
        (uapi::OPTION_OP_SET, large @ 0..=1) => ioas.set_large_pages(large == 1).map_err(|error| error.errno()),
        (uapi::OPTION_OP_SET, _) => Err(Errno::INVAL),
        _ => Err(Errno::OPNOTSUPP),
    }
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
