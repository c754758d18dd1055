//! Requests on `/dev/iommu`, a kind of object a file.
//!
//! Source: `include/uapi/linux/iommufd.h` and `Documentation/userspace-api/iommufd.rst` of Linux 7.3.

mod compat;
mod device;
mod dirty;
mod extra;
mod fault;
mod hwpt;
mod ioas;
mod option;
mod viommu;

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasid::memory::Account;
use ioasid::{Context, Machine};
use ioasid_uapi::iommufd as uapi;
use ioasid_uapi::iommufd::selftest::{TEST_CMD, TestCmd};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::Argument;
use super::file::{Closer, Given, Mapping, OpenFile};
use super::given::GivenFile;
use super::regions::{RegionHold, Regions, Registers};
use super::selftest::{self, MockDevices};
use super::{Caller, ToErrno};
use crate::watch::Watcher;
use compat::Compat;

/// An open file of `/dev/iommu`.
pub struct IommuFile {
    /// In a run for Linux's own tests. Dropped first, as mock devices are bound to the context.
    mock: Option<Arc<MockDevices>>,
    context: Arc<Context>,
    /// What can be mapped of it.
    regions: Arc<Regions>,
    /// What VFIO's requests are about.
    compat: Compat,
    /// Whether pinned memory is counted for each process, and not for each user.
    by_process: AtomicBool,
}

impl IommuFile {
    /// A file with a context of its own; with `selftest`, one that Linux's own tests can drive mock devices through.
    #[must_use]
    pub fn new(machine: &Arc<Machine>, selftest: bool) -> Self {
        let context = machine.context();
        Self {
            mock: selftest.then(|| MockDevices::new(context.clone())),
            context,
            regions: Arc::default(),
            compat: Compat::default(),
            by_process: AtomicBool::new(false),
        }
    }

    /// Its context.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    fn is_counted_by_process(&self) -> bool {
        self.by_process.load(Ordering::Relaxed)
    }

    fn count_by_process(&self, by_process: bool) {
        self.by_process.store(by_process, Ordering::Relaxed);
    }

    /// Who answers for memory that the caller maps, if anybody has to.
    fn account(&self, caller: &dyn Caller) -> Option<Arc<dyn Account>> {
        caller.account(self.is_counted_by_process())
    }

    /// Lets programs map registers that belong to object `owner`.
    fn add_region(&self, owner: u32, registers: Arc<dyn Registers>) -> RegionHold {
        self.regions.add(owner, registers)
    }

    /// Performs request `number` with its argument at `address`.
    ///
    /// # Errors
    /// As Linux: `ENOTTY` for an unknown number, `EFAULT` for a bad address, `EINVAL` for a short argument, `E2BIG` for
    /// a long one, `EOPNOTSUPP` for unknown flags, and each request's own.
    pub fn ioctl(&self, number: u32, address: u64, caller: &dyn Caller) -> Result<i64, Errno> {
        let call = |minimum| Ok(Call { file: self, argument: Argument::new(caller, address)?, minimum, caller });
        if let Some(mock) = self.mock.as_ref().filter(|_| number == TEST_CMD) {
            return selftest::perform(mock, &call(size_of::<TestCmd>())?);
        }
        let Some((_, minimum, handler)) = REQUESTS.iter().chain(extra::REQUESTS).find(|(known, ..)| *known == number)
        else {
            return compat::ioctl(self, number, address, caller);
        };
        handler(&call(*minimum)?).map(|()| 0)
    }
}

impl OpenFile for IommuFile {
    fn ioctl(&self, number: u32, address: u64, caller: &dyn Caller) -> Option<Result<i64, Errno>> {
        Some(Self::ioctl(self, number, address, caller))
    }

    /// In use, or, to a test, pinned.
    fn in_use(&self) -> &'static [Errno] {
        &[Errno::BUSY, Errno::IO]
    }

    fn is_closed_by_somebody(&self) -> bool {
        true
    }

    fn check_mmap(&self, mapping: Mapping) -> Option<Result<(), Errno>> {
        Some(match mapping {
            Mapping { shared: false, .. } => Err(Errno::INVAL),
            Mapping { execute: true, .. } => Err(Errno::PERM),
            Mapping { offset, length, .. } => self.regions.check(offset, length),
        })
    }

    fn close(&self, by: Closer, _watcher: &dyn Watcher) {
        if by == Closer::End {
            self.context.abandon();
        }
    }

    fn load(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let (registers, offset) = self.regions.find(offset, data.len())?;
        registers.load(offset, data);
        Ok(())
    }

    fn store(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let (registers, offset) = self.regions.find(offset, data.len())?;
        registers.store(offset, data);
        Ok(())
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

    /// Gives the caller a descriptor of `file`, and the argument back with its number in it.
    pub(super) fn give<T: IntoBytes + Immutable>(
        &self,
        mut value: T,
        file: Arc<dyn GivenFile>,
        set: impl FnOnce(&mut T, u32),
    ) -> Result<(), Errno> {
        // Whom nothing can be told gets no number, which it could not give back.
        self.put(&value)?;
        let number = self.caller.reserve()?;
        set(&mut value, number as u32);
        self.put(&value)?;
        self.caller.install(number, Arc::new(Given(file)))
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

/// Those that Linux has, too: number, shortest argument, handler.
const REQUESTS: &[(u32, usize, Handler)] = &[
    (uapi::DESTROY, through!(Destroy.id: u32), destroy),
    (uapi::FAULT_QUEUE_ALLOC, through!(FaultAlloc.out_fault_fd: u32), fault::alloc),
    (uapi::GET_HW_INFO, through!(HwInfo.reserved: [u8; 3]), device::get_hw_info),
    (uapi::HW_QUEUE_ALLOC, through!(HwQueueAlloc.length: u64), viommu::alloc_hw_queue),
    (uapi::HWPT_ALLOC, through!(HwptAlloc.reserved: u32), hwpt::alloc),
    (uapi::HWPT_GET_DIRTY_BITMAP, through!(HwptGetDirtyBitmap.data: u64), dirty::get_bitmap),
    (uapi::HWPT_INVALIDATE, through!(HwptInvalidate.reserved: u32), hwpt::invalidate),
    (uapi::HWPT_SET_DIRTY_TRACKING, through!(HwptSetDirtyTracking.reserved: u32), dirty::set_tracking),
    (uapi::IOAS_ALLOC, through!(IoasAlloc.out_ioas_id: u32), ioas::alloc),
    (uapi::IOAS_ALLOW_IOVAS, through!(IoasAllowIovas.allowed_iovas: u64), ioas::allow_iovas),
    (uapi::IOAS_CHANGE_PROCESS, through!(IoasChangeProcess.reserved: u32), ioas::change_process),
    (uapi::IOAS_COPY, through!(IoasCopy.src_iova: u64), ioas::copy),
    (uapi::IOAS_IOVA_RANGES, through!(IoasIovaRanges.out_iova_alignment: u64), ioas::iova_ranges),
    (uapi::IOAS_MAP, through!(IoasMap.iova: u64), ioas::map),
    (uapi::IOAS_MAP_FILE, through!(IoasMapFile.iova: u64), ioas::map_file),
    (uapi::IOAS_NOIOMMU_GET_PA, through!(IoasNoiommuGetPa.out_phys: u64), ioas::noiommu_get_pa),
    (uapi::IOAS_UNMAP, through!(IoasUnmap.length: u64), ioas::unmap),
    (uapi::OPTION, through!(IommuOption.val64: u64), option::option),
    (uapi::VDEVICE_ALLOC, through!(VdeviceAlloc.virt_id: u64), viommu::alloc_device),
    (uapi::VEVENTQ_ALLOC, through!(VeventqAlloc.out_veventq_fd: u32), viommu::alloc_event_queue),
    (uapi::VFIO_IOAS, through!(VfioIoas.reserved: u16), compat::vfio_ioas),
    (uapi::VIOMMU_ALLOC, through!(ViommuAlloc.out_viommu_id: u32), viommu::alloc),
];

fn destroy(call: &Call<'_>) -> Result<(), Errno> {
    let request: uapi::Destroy = call.get()?;
    if call.file.regions.of(request.id).into_iter().any(|(offset, length)| call.caller.has_mapped(offset, length)) {
        return Err(Errno::BUSY);
    }
    call.context().destroy(request.id).map_err(|error| error.errno())
}
