//! Requests on `/dev/iommu`, a kind of object a file.
//!
//! Source: `include/uapi/linux/iommufd.h` and `Documentation/userspace-api/iommufd.rst` of Linux 7.3.

mod device;
mod dirty;
mod hwpt;
mod ioas;
mod option;

use std::mem::offset_of;
use std::sync::Arc;

use ioasid::{Context, Iommu};
use ioasid_uapi::iommufd as uapi;
use ioasid_uapi::iommufd::selftest::{TEST_CMD, TestCmd};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::Argument;
use super::selftest::{self, MockDevices};
use super::{Caller, ToErrno};

/// An open file of `/dev/iommu`.
pub struct IommuFile {
    /// In a run for Linux's own tests. Dropped first, as mock devices are bound to the context.
    mock: Option<Arc<MockDevices>>,
    context: Arc<Context>,
}

impl IommuFile {
    /// A file with a context of its own; with `selftest`, one that Linux's own tests can drive mock devices through.
    #[must_use]
    pub fn new(iommu: &Arc<Iommu>, selftest: bool) -> Self {
        let context = iommu.context();
        Self { mock: selftest.then(|| MockDevices::new(context.clone())), context }
    }

    /// Its context.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Performs request `number` with its argument at `address`.
    ///
    /// # Errors
    /// As Linux: `ENOTTY` for an unknown number, `EFAULT` for a bad address, `EINVAL` for a short argument, `E2BIG` for a
    /// long one, `EOPNOTSUPP` for unknown flags, and each request's own.
    pub fn ioctl(&self, number: u32, address: u64, caller: &dyn Caller) -> Result<i64, Errno> {
        let call = |minimum| Ok(Call { file: self, argument: Argument::new(caller, address)?, minimum, caller });
        if let Some(mock) = self.mock.as_ref().filter(|_| number == TEST_CMD) {
            return selftest::perform(mock, &call(size_of::<TestCmd>())?);
        }
        let (_, minimum, handler) = REQUESTS.iter().find(|(known, ..)| *known == number).ok_or(Errno::NOTTY)?;
        handler(&call(*minimum)?).map(|()| 0)
    }
}

/// One request.
pub(super) struct Call<'a> {
    pub(super) file: &'a IommuFile,
    argument: Argument<'a>,
    minimum: usize,
    pub(super) caller: &'a dyn Caller,
}

impl Call<'_> {
    /// The argument.
    pub(super) fn get<T: FromBytes + IntoBytes>(&self) -> Result<T, Errno> {
        self.argument.get(self.minimum)
    }

    /// Gives the argument back to the caller.
    pub(super) fn put<T: IntoBytes + Immutable>(&self, value: &T) -> Result<(), Errno> {
        self.argument.put(value)
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.file.context
    }
}

type Handler = fn(&Call<'_>) -> Result<(), Errno>;

/// The end of a field: the shortest form of a structure that a request accepts.
macro_rules! through {
    ($structure:ident . $field:ident: $kind:ty) => {
        offset_of!(uapi::$structure, $field) + size_of::<$kind>()
    };
}

/// Number, shortest argument, handler.
const REQUESTS: &[(u32, usize, Handler)] = &[
    (uapi::DESTROY, through!(Destroy.id: u32), destroy),
    (uapi::GET_HW_INFO, through!(HwInfo.reserved: [u8; 3]), device::get_hw_info),
    (uapi::HWPT_ALLOC, through!(HwptAlloc.reserved: u32), hwpt::alloc),
    (uapi::HWPT_GET_DIRTY_BITMAP, through!(HwptGetDirtyBitmap.data: u64), dirty::get_bitmap),
    (uapi::HWPT_INVALIDATE, through!(HwptInvalidate.reserved: u32), hwpt::invalidate),
    (uapi::HWPT_SET_DIRTY_TRACKING, through!(HwptSetDirtyTracking.reserved: u32), dirty::set_tracking),
    (uapi::IOAS_ALLOC, through!(IoasAlloc.out_ioas_id: u32), ioas::alloc),
    (uapi::IOAS_ALLOW_IOVAS, through!(IoasAllowIovas.allowed_iovas: u64), ioas::allow_iovas),
    (uapi::IOAS_COPY, through!(IoasCopy.src_iova: u64), ioas::copy),
    (uapi::IOAS_IOVA_RANGES, through!(IoasIovaRanges.out_iova_alignment: u64), ioas::iova_ranges),
    (uapi::IOAS_MAP, through!(IoasMap.iova: u64), ioas::map),
    (uapi::IOAS_MAP_FILE, through!(IoasMapFile.iova: u64), ioas::map_file),
    (uapi::IOAS_UNMAP, through!(IoasUnmap.length: u64), ioas::unmap),
    (uapi::OPTION, through!(IommuOption.val64: u64), option::option),
];

fn destroy(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::Destroy = call.get()?;
    call.context().destroy(request.id).map_err(|error| error.errno())
}
