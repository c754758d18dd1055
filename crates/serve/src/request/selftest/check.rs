//! What a test looks at behind the requests: where page tables lead, what is pinned, what is cached.

use ioasid::{Iova, TableFormat};
use ioasid_uapi::iommufd::selftest::{self as uapi, command};
use rustix::io::Errno;

use super::{Test, check_range, pages};
use crate::request::ToErrno;
use crate::request::hardware::Iotlb;

/// Whether every page of a page table leads to the memory that the caller has at an address.
pub(super) fn map(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::CheckMap = test.body()?;
    let hwpt = test.call.context().hwpt(test.request.id).ok_or(Errno::NOENT)?;
    let page = match hwpt.format() {
        TableFormat::Mock => uapi::MOCK_PAGE_SIZE,
        _ => ioasid::memory::PAGE_SIZE,
    };
    check_range(body.uptr, body.length, page)?;
    if !body.iova.is_multiple_of(page) {
        return Err(Errno::INVAL);
    }
    for at in (0..body.length).step_by(page as usize) {
        let wanted = test.call.caller.identity(body.uptr + at).ok_or(Errno::FAULT)?;
        let found = hwpt.memory_at(Iova(body.iova.wrapping_add(at))).map_err(|error| error.errno())?;
        if found != Some(wanted) {
            return Err(Errno::INVAL);
        }
    }
    Ok(())
}

/// Whether every page of the caller's memory is pinned as often as it says.
pub(super) fn pins(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::CheckRefs = test.body()?;
    check_range(body.uptr, body.length, ioasid::memory::PAGE_SIZE)?;
    let pinned = test.call.context().machine().pinned();
    for page in pages(body.uptr, body.length) {
        let page = test.call.caller.identity(page).ok_or(Errno::FAULT)?;
        if pinned.count(page) != body.refs as usize {
            return Err(Errno::IO);
        }
    }
    Ok(())
}

/// Whether an entry of what is cached of a nested page table has the value that it should.
pub(super) fn iotlb(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::CheckIotlb = test.body()?;
    let nested = test.call.context().nested_hwpt(test.request.id).ok_or(Errno::NOENT)?;
    let iotlb = nested.extension::<Iotlb>().ok_or(Errno::INVAL)?;
    if iotlb.entry(body.id) == Some(body.iotlb) { Ok(()) } else { Err(Errno::INVAL) }
}

/// Marks pages as a device does that writes them.
pub(super) fn set_dirty(test: &Test<'_>) -> Result<(), Errno> {
    const MOST_PAGES: u64 = 8 << 24;
    let mut body: command::Dirty = test.body()?;
    let page = body.page_size;
    let whole = page != 0 && body.iova.is_multiple_of(page) && body.length.is_multiple_of(page);
    if !whole || body.length == 0 || body.uptr == 0 {
        return Err(Errno::INVAL);
    }
    let pages = body.length / page;
    if pages > MOST_PAGES {
        return Err(Errno::OVERFLOW);
    }
    let hwpt = test.call.context().hwpt(test.request.id).ok_or(Errno::NOENT)?;
    let mut bitmap = vec![0u8; pages.div_ceil(8) as usize];
    test.call.caller.read(body.uptr, &mut bitmap)?;
    body.out_nr_dirty = 0;
    for n in (0..pages).filter(|n| bitmap[(n / 8) as usize] >> (n % 8) & 1 != 0) {
        if !hwpt.mark_dirty(Iova(body.iova.wrapping_add(n * page))).map_err(|error| error.errno())? {
            return Err(Errno::INVAL);
        }
        body.out_nr_dirty += 1;
    }
    test.put(&body)
}
