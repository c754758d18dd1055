//! Requests on address spaces.

use std::fs::File;
use std::sync::Arc;

use ioasid::memory::Pages;
use ioasid::{Access, Ioas, Iova, IovaRange};
use ioasid_uapi::iommufd as uapi;
use rustix::fs::OFlags;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{Call, ToErrno};
use crate::request::given::given;
use crate::request::mapping::{Memory, map_memory, pages_around, unmap_telling};
use crate::request::object;

pub(super) fn alloc(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::IoasAlloc = call.get()?;
    if request.flags != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let ioas = call.context().ioas_alloc().ok_or(Errno::NOMEM)?;
    request.out_ioas_id = ioas.id().0.get();
    call.put(&request).inspect_err(|_| {
        // The program cannot know the id, so nobody else can have used it.
        let _ = call.context().destroy(ioas.id());
    })
}

pub(super) fn iova_ranges(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::IoasIovaRanges = call.get()?;
    if request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let ioas = object::ioas(call.context(), request.ioas_id)?;
    let (ranges, alignment) = ioas.iova_ranges();
    let places = request.num_iovas;
    request.num_iovas = 0;
    request.out_iova_alignment = alignment;
    for range in ranges.iter() {
        if request.num_iovas < places {
            let at = u64::from(request.num_iovas) * size_of::<uapi::IovaRange>() as u64;
            let range = uapi::IovaRange { start: range.start(), last: range.last() };
            call.caller.write(request.allowed_iovas.wrapping_add(at), range.as_bytes())?;
        }
        request.num_iovas += 1;
    }
    call.put(&request)?;
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

pub(super) fn map(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::IoasMap = call.get()?;
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
    let ioas = object::ioas(call.context(), request.ioas_id)?;
    let iova = fixed.then_some(Iova(request.iova));
    let (address, length) = (request.user_va, request.length);
    let memory = Memory { address, length, peers: false, account: call.file.account(call.caller) };
    request.iova = map_memory(call.caller, &ioas, memory, iova, access)?;
    call.put(&request).inspect_err(|_| take_back(&ioas, request.iova, request.length))
}

pub(super) fn map_file(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::IoasMapFile = call.get()?;
    let (access, fixed) = map_flags(request.flags)?;
    if request.iova == u64::MAX || request.length == u64::MAX {
        return Err(Errno::OVERFLOW);
    }
    if access.is_empty() {
        return Err(Errno::INVAL);
    }
    let ioas = object::ioas(call.context(), request.ioas_id)?;
    if request.length == 0 {
        return Err(Errno::INVAL);
    }
    let (start, whole) = pages_around(request.start, request.length)?;
    let writable = access.contains(Access::WRITE);
    let of_given = given(call.caller, request.fd).and_then(|given| given.pages(start, whole));
    let pages = if let Some(pages) = of_given {
        pages?
    } else {
        let file = File::from(call.caller.descriptor(request.fd)?);
        if writable && rustix::fs::fcntl_getfl(&file)? & OFlags::RWMODE != OFlags::RDWR {
            return Err(Errno::PERM);
        }
        let pages = Pages::of_file(file, start, whole, writable);
        pages.charge_to(call.file.account(call.caller)).map_err(|_| Errno::NOMEM)?;
        pages
    };
    let iova = fixed.then_some(Iova(request.iova));
    let mapped = ioas.map_pages(iova, &pages, request.start - start, request.length, access);
    request.iova = mapped.map_err(|error| error.errno())?.0;
    call.put(&request).inspect_err(|_| take_back(&ioas, request.iova, request.length))
}

/// Undoes a mapping whose place the program could not be told.
fn take_back(ioas: &Ioas, iova: u64, length: u64) {
    if let Some(range) = IovaRange::new(iova, length) {
        let _ = ioas.unmap(range);
    }
}

pub(super) fn copy(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: uapi::IoasCopy = call.get()?;
    let (access, fixed) = map_flags(request.flags)?;
    if [request.length, request.src_iova, request.dst_iova].contains(&u64::MAX) {
        return Err(Errno::OVERFLOW);
    }
    if access.is_empty() {
        return Err(Errno::INVAL);
    }
    let source = object::ioas(call.context(), request.src_ioas_id)?;
    let last = request.length.checked_sub(1).ok_or(Errno::INVAL)?;
    request.src_iova.checked_add(last).ok_or(Errno::OVERFLOW)?;
    let target = object::ioas(call.context(), request.dst_ioas_id)?;
    let (to, from) = (fixed.then_some(Iova(request.dst_iova)), Iova(request.src_iova));
    let copied = target.copy(to, &source, from, request.length, access);
    request.dst_iova = copied.map_err(|error| error.errno())?.0;
    call.put(&request).inspect_err(|_| take_back(&target, request.dst_iova, request.length))
}

pub(super) fn allow_iovas(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::IoasAllowIovas = call.get()?;
    if request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let ioas = object::ioas(call.context(), request.ioas_id)?;
    // The program says how many there are, so room is made as they arrive.
    let mut ranges = Vec::new();
    for n in 0..u64::from(request.num_iovas) {
        let mut range = uapi::IovaRange::default();
        let at = n.wrapping_mul(size_of::<uapi::IovaRange>() as u64);
        call.caller.read(request.allowed_iovas.wrapping_add(at), range.as_mut_bytes())?;
        if range.start >= range.last {
            return Err(Errno::INVAL);
        }
        ranges.push(IovaRange::inclusive(range.start, range.last).ok_or(Errno::INVAL)?);
    }
    ioas.allow_iovas(&ranges).map_err(|error| error.errno())
}

pub(super) fn unmap(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::IoasUnmap = call.get()?;
    let ioas = object::ioas(call.context(), request.ioas_id)?;
    let range = if request.iova == 0 && request.length == u64::MAX {
        IovaRange::ALL
    } else if request.iova == u64::MAX || request.length == u64::MAX {
        return Err(Errno::OVERFLOW);
    } else if request.length == 0 {
        return Err(Errno::INVAL);
    } else {
        IovaRange::new(request.iova, request.length).ok_or(Errno::OVERFLOW)?
    };
    let said = request.length;
    let tell = |length| call.put(&uapi::IoasUnmap { length, ..request });
    unmap_telling(&ioas, range, said, tell, || ioas.unmap(range).map_err(|error| error.errno()))
}

/// Has the caller, who may be another process than the one that mapped it, answer for all memory of the context.
pub(super) fn change_process(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::IoasChangeProcess = call.get()?;
    if request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let mut pages: Vec<_> = call.context().all_ioas().iter().flat_map(|ioas| ioas.pages_in(IovaRange::ALL)).collect();
    // What is a process's own stays that process's.
    if pages.iter().any(|pages| !pages.is_of_file()) {
        return Err(Errno::INVAL);
    }
    pages.sort_by_key(Arc::as_ptr);
    pages.dedup_by(|one, other| Arc::ptr_eq(one, other));
    let account = call.file.account(call.caller);
    let mut done = Vec::with_capacity(pages.len());
    for pages in &pages {
        match pages.charge_to(account.clone()) {
            Ok(before) => done.push((pages, before)),
            Err(_) => {
                // Who answered before may again, unless others have pinned more meanwhile.
                done.into_iter().for_each(|(pages, before)| drop(pages.charge_to(before)));
                return Err(Errno::NOMEM);
            }
        }
    }
    Ok(())
}

/// As a kernel that has no devices without an IOMMU.
pub(super) fn noiommu_get_pa(call: &Call<'_>) -> Result<(), Errno> {
    call.get::<uapi::IoasNoiommuGetPa>()?;
    Err(Errno::OPNOTSUPP)
}
