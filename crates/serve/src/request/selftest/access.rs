//! Accesses of a test: what a driver that mediates a device does with an address space.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ioasid::memory::PAGE_SIZE;
use ioasid::{Access, IoasAccess, Iova, IovaRange, PinnedRange};
use ioasid_uapi::iommufd::selftest::{self as uapi, command};
use rustix::io::Errno;

use super::{Test, pages};
use crate::request::ToErrno;
use crate::request::file::Given;
use crate::request::given::{GivenFile, given, of_kind};
use crate::request::object;

/// The most that is read, written or pinned in one request.
const MOST: u64 = 16 << 20;

/// An access, which lives as long as its descriptor.
struct TestAccess {
    access: IoasAccess,
    pins: bool,
    items: Arc<Mutex<Items>>,
}

impl GivenFile for TestAccess {}

/// What it has pinned, by the numbers that the test knows it by.
#[derive(Default)]
struct Items {
    pinned: BTreeMap<u32, PinnedRange>,
    next: u32,
}

impl TestAccess {
    /// That which a descriptor of the caller is.
    fn of(test: &Test<'_>) -> Result<Arc<Self>, Errno> {
        let file = given(test.call.caller, test.request.id as i32).ok_or(Errno::BADFD)?;
        of_kind(file).ok_or(Errno::BADFD)
    }
}

pub(super) fn create(test: &Test<'_>) -> Result<(), Errno> {
    let mut body: command::CreateAccess = test.body()?;
    if body.flags & !uapi::MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let (pins, items) = (body.flags != 0, Arc::new(Mutex::new(Items::default())));
    let told = items.clone();
    let unmap = move |range: IovaRange| {
        let mut items = told.lock().unwrap_or_else(PoisonError::into_inner);
        items.pinned.retain(|_, pinned| !pinned.range().overlaps(&range));
    };
    let unmap: Option<Box<dyn Fn(IovaRange) + Send + Sync>> = if pins { Some(Box::new(unmap)) } else { None };
    let access = test.call.context().access(unmap).ok_or(Errno::NOMEM)?;
    access.attach(&object::ioas(test.call.context(), test.request.id)?).map_err(|error| error.errno())?;
    let number = test.call.caller.reserve()?;
    body.out_access_fd = number as u32;
    test.put(&body)?;
    test.call.caller.install(number, Arc::new(Given(Arc::new(TestAccess { access, pins, items }))))
}

pub(super) fn replace(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::AccessReplaceIoas = test.body()?;
    let access = TestAccess::of(test)?;
    access.access.replace(&object::ioas(test.call.context(), body.ioas_id)?).map_err(|error| error.errno())
}

pub(super) fn pin(test: &Test<'_>) -> Result<(), Errno> {
    let mut body: command::AccessPages = test.body()?;
    if body.length > MOST {
        return Err(Errno::NOMEM);
    }
    if body.flags & !uapi::MOCK_FLAGS_ACCESS_WRITE != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let access = TestAccess::of(test)?;
    if !access.pins {
        return Err(Errno::OPNOTSUPP);
    }
    let wanted = if body.flags & uapi::MOCK_FLAGS_ACCESS_WRITE != 0 { Access::WRITE } else { Access::READ };
    // Who is told to let go finds it in hand.
    let mut items = access.items.lock().unwrap_or_else(PoisonError::into_inner);
    let pinned = access.access.pin(Iova(body.iova), body.length, wanted).map_err(|error| error.errno())?;
    if body.uptr != 0 {
        let start = body.uptr.wrapping_sub(body.iova % PAGE_SIZE);
        for page in pages(start, body.length.next_multiple_of(PAGE_SIZE)) {
            let identity = test.call.caller.identity(page).ok_or(Errno::FAULT)?;
            if pinned.identity(page - start) != Some(identity) {
                return Err(Errno::BADE);
            }
        }
    }
    body.out_access_pages_id = items.next;
    test.put(&body)?;
    items.next += 1;
    items.pinned.insert(body.out_access_pages_id, pinned);
    Ok(())
}

pub(super) fn unpin(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::DestroyAccessPages = test.body()?;
    let access = TestAccess::of(test)?;
    let mut items = access.items.lock().unwrap_or_else(PoisonError::into_inner);
    items.pinned.remove(&body.access_pages_id).map(drop).ok_or(Errno::NOENT)
}

pub(super) fn read_or_write(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::AccessRw = test.body()?;
    if body.length > MOST {
        return Err(Errno::NOMEM);
    }
    // Here is no other path than the slow one.
    if body.flags & !(uapi::MOCK_ACCESS_RW_WRITE | uapi::MOCK_ACCESS_RW_SLOW_PATH) != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let access = TestAccess::of(test)?;
    let mut data = vec![0; body.length as usize];
    let (iova, caller) = (Iova(body.iova), test.call.caller);
    if body.flags & uapi::MOCK_ACCESS_RW_WRITE != 0 {
        caller.read(body.uptr, &mut data)?;
        return access.access.write(iova, &data).map_err(|error| error.errno());
    }
    access.access.read(iova, &mut data).map_err(|error| error.errno())?;
    caller.write(body.uptr, &data)
}
