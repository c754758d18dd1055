//! The request that a kernel built for its own tests has: it makes mock devices, and looks behind the other requests.
//!
//! Mock devices are devices like any other to the engine, behind an IOMMU of their own kind. What is done here is what
//! a driver or a device does on a real machine, and no request does.
//!
//! Source: `drivers/iommu/iommufd/iommufd_test.h` and `tools/testing/selftests/iommu` of Linux 7.3.

mod access;
mod buffer;
mod check;
mod device;
mod failures;
mod status;

use std::sync::Arc;

use ioasid::memory::PAGE_SIZE;
use ioasid::{IovaRange, RuleError};
use ioasid_uapi::iommufd::selftest::{self as uapi, TestCmd, command};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::ToErrno;
use super::iommufd::Call;
use crate::program::accounts::Accounts;
use crate::request::given::GivenFile;
use crate::request::object;

pub(super) use device::MockDevices;
pub(crate) use failures::Failures;

/// A request of this kind.
struct Test<'a> {
    mock: &'a Arc<MockDevices>,
    call: &'a Call<'a>,
    request: TestCmd,
}

impl Test<'_> {
    /// What the operation is about.
    fn body<T: FromBytes>(&self) -> Result<T, Errno> {
        T::read_from_prefix(self.request.body.as_bytes()).map(|(body, _)| body).map_err(|_| Errno::INVAL)
    }

    /// Gives the request back to the caller, with another body.
    fn put(&self, body: &(impl IntoBytes + Immutable)) -> Result<(), Errno> {
        let mut request = self.request;
        request.body.as_mut_bytes()[..size_of_val(body)].copy_from_slice(body.as_bytes());
        self.call.put(&request)
    }
}

/// What a thread finds at a path in /proc that Linux's own tests look for, and that is not as they expect it.
pub(crate) fn proc_file(path: &str, tid: u32, failures: &Failures, accounts: &Accounts) -> Option<Arc<dyn GivenFile>> {
    let fail_nth = || Some(failures.file(failures::thread_of(path, tid)?));
    fail_nth().or_else(|| status::file(status::process_of(path)?, accounts))
}

/// Performs it.
///
/// # Errors
/// As Linux, where Linux has it.
pub(super) fn perform(mock: &Arc<MockDevices>, call: &Call<'_>) -> Result<i64, Errno> {
    let test = Test { mock, call, request: call.get()? };
    match test.request.op {
        uapi::TEST_OP_ADD_RESERVED => add_reserved(&test),
        uapi::TEST_OP_MOCK_DOMAIN | uapi::TEST_OP_MOCK_DOMAIN_FLAGS => device::make(&test),
        uapi::TEST_OP_MOCK_DOMAIN_REPLACE => device::replace(&test),
        uapi::TEST_OP_MD_CHECK_MAP => check::map(&test),
        uapi::TEST_OP_MD_CHECK_REFS => check::pins(&test),
        uapi::TEST_OP_DMABUF_GET => return buffer::make(&test),
        uapi::TEST_OP_DMABUF_REVOKE => buffer::revoke(&test),
        uapi::TEST_OP_CREATE_ACCESS => access::create(&test),
        uapi::TEST_OP_ACCESS_REPLACE_IOAS => access::replace(&test),
        uapi::TEST_OP_ACCESS_PAGES => access::pin(&test),
        uapi::TEST_OP_DESTROY_ACCESS_PAGES => access::unpin(&test),
        uapi::TEST_OP_ACCESS_RW => access::read_or_write(&test),
        uapi::TEST_OP_DIRTY => check::set_dirty(&test),
        uapi::TEST_OP_MD_CHECK_IOTLB => check::iotlb(&test),
        uapi::TEST_OP_DEV_CHECK_CACHE => device::check_cache(&test),
        uapi::TEST_OP_PASID_ATTACH => device::attach_pasid(&test),
        uapi::TEST_OP_PASID_REPLACE => device::replace_pasid(&test),
        uapi::TEST_OP_PASID_DETACH => device::detach_pasid(&test),
        uapi::TEST_OP_PASID_CHECK_HWPT => device::check_pasid(&test),
        uapi::TEST_OP_TRIGGER_IOPF => device::request_page(&test),
        uapi::TEST_OP_TRIGGER_VEVENT => device::report_event(&test),
        uapi::TEST_OP_SET_TEMP_MEMORY_LIMIT => set_memory_limit(&test),
        _ => Err(Errno::OPNOTSUPP),
    }
    .map(|()| 0)
}

fn add_reserved(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::AddReserved = test.body()?;
    if body.length == 0 {
        return Err(Errno::INVAL);
    }
    let range = IovaRange::new(body.start, body.length).ok_or(Errno::OVERFLOW)?;
    let ioas = object::ioas(test.call.context(), test.request.id)?;
    ioas.reserve(range).map_err(|error: RuleError| error.errno())
}

/// Of the memory that a kernel takes at a time for lists of pages. There are no such lists here.
fn set_memory_limit(test: &Test<'_>) -> Result<(), Errno> {
    const LEAST: u32 = 12;
    let body: command::MemoryLimit = test.body()?;
    if body.limit < LEAST { Err(Errno::INVAL) } else { Ok(()) }
}

/// Fails if a range of the caller's memory is not made of pages of so many bytes.
fn check_range(address: u64, length: u64, page: u64) -> Result<(), Errno> {
    let aligned = address.is_multiple_of(page) && length.is_multiple_of(page);
    if aligned && address.checked_add(length).is_some() { Ok(()) } else { Err(Errno::INVAL) }
}

/// The addresses of the pages in a range.
fn pages(address: u64, length: u64) -> impl Iterator<Item = u64> {
    (0..length / PAGE_SIZE).map(move |n| address + n * PAGE_SIZE)
}
