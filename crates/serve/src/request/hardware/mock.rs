//! The mock IOMMU of Linux's own tests.
//!
//! Its nested page tables translate nothing. What a guest would have cached is four numbers, which a test sets when it
//! makes the table, and finds to be zero when it has invalidated them.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ioasid::memory::PAGE_SIZE;
use ioasid::{GuestFormat, GuestTable, NestedHwpt, NestedOptions, TableFormat, Viommu};
use ioasid_uapi::iommufd::selftest::{self as uapi, data};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{AddRegion, Data, Entries, Extension, Hardware, Registers};

pub(super) struct Mock;

/// What is cached of a nested page table.
pub(in crate::request) struct Iotlb([AtomicU32; uapi::MOCK_NESTED_DOMAIN_IOTLB_NUM as usize]);

impl Iotlb {
    /// Entry `n`, if there is one.
    pub(in crate::request) fn entry(&self, n: u32) -> Option<u32> {
        Some(self.0.get(n as usize)?.load(Ordering::Relaxed))
    }
}

/// What a mock device has cached: four numbers, as of a page table.
pub(in crate::request) struct DeviceCache([AtomicU32; uapi::MOCK_DEV_CACHE_NUM as usize]);

impl DeviceCache {
    pub(in crate::request) fn new() -> Self {
        Self([data::TEST_DEV_CACHE_DEFAULT; uapi::MOCK_DEV_CACHE_NUM as usize].map(AtomicU32::new))
    }

    /// Entry `n`, if there is one.
    pub(in crate::request) fn entry(&self, n: u32) -> Option<u32> {
        Some(self.0.get(n as usize)?.load(Ordering::Relaxed))
    }
}

/// Makes one of the numbers zero, or all.
fn forget(cached: &[AtomicU32], one: u32, all: bool) -> Result<(), Errno> {
    let one = cached.get(one as usize).ok_or(Errno::INVAL)?;
    if all {
        cached.iter().for_each(|each| each.store(0, Ordering::Relaxed));
    } else {
        one.store(0, Ordering::Relaxed);
    }
    Ok(())
}

/// Two pages of registers without an effect, which begin with the number that a virtual IOMMU was made with.
struct Scratch(Mutex<Box<[u8]>>);

impl Registers for Scratch {
    fn length(&self) -> u64 {
        2 * PAGE_SIZE
    }

    fn load(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        data.copy_from_slice(&bytes[offset as usize..][..data.len()]);
    }

    fn store(&self, offset: u64, data: &[u8]) {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bytes[offset as usize..][..data.len()].copy_from_slice(data);
    }
}

impl Mock {
    fn data(data: &Data<'_>) -> Result<data::Hwpt, Errno> {
        if data.kind != data::HWPT_DATA_SELFTEST {
            return Err(Errno::OPNOTSUPP);
        }
        data.get(offset_of!(data::Hwpt, iotlb) + size_of::<u32>())
    }
}

impl Hardware for Mock {
    fn info(&self) -> (u32, Vec<u8>) {
        let info = data::HwInfo { flags: 0, test_reg: data::HW_INFO_SELFTEST_REGVAL };
        (data::HW_INFO_TYPE_SELFTEST, info.as_bytes().to_vec())
    }

    fn table(&self, data: &Data<'_>) -> Result<TableFormat, Errno> {
        match Self::data(data)?.pagetable_type {
            data::MOCK_IOMMUPT_DEFAULT => Ok(TableFormat::Mock),
            data::MOCK_IOMMUPT_HUGE => Ok(TableFormat::MockHuge),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn has_nested(&self) -> bool {
        true
    }

    fn nested(&self, data: &Data<'_>) -> Result<NestedOptions, Errno> {
        let request = Self::data(data)?;
        let iotlb = Iotlb([request.iotlb; uapi::MOCK_NESTED_DOMAIN_IOTLB_NUM as usize].map(AtomicU32::new));
        let table = GuestTable { format: GuestFormat::Mock, root: 0 };
        Ok(NestedOptions::from(table).extension(iotlb))
    }

    fn invalidate(&self, nested: &NestedHwpt, entries: &Entries<'_>, done: &mut u32) -> Result<(), Errno> {
        let iotlb = nested.extension::<Iotlb>().ok_or(Errno::INVAL)?;
        if entries.kind != data::HWPT_INVALIDATE_DATA_SELFTEST {
            return Err(Errno::INVAL);
        }
        for n in 0..entries.count {
            let minimum = offset_of!(data::HwptInvalidate, iotlb_id) + size_of::<u32>();
            let entry: data::HwptInvalidate = entries.at(n).get(minimum)?;
            if entry.flags & !data::TEST_INVALIDATE_FLAG_ALL != 0 {
                return Err(Errno::OPNOTSUPP);
            }
            forget(&iotlb.0, entry.iotlb_id, entry.flags != 0)?;
            *done += 1;
        }
        Ok(())
    }

    fn has_viommu(&self, kind: u32) -> bool {
        kind == data::VIOMMU_TYPE_SELFTEST
    }

    fn viommu(&self, data: Option<&Data<'_>>, add_region: AddRegion<'_>) -> Result<Extension, Errno> {
        let Some(data) = data else { return Ok(Box::new(())) };
        let mut request: data::Viommu = data.get(offset_of!(data::Viommu, out_data) + size_of::<u32>())?;
        let scratch = Scratch(Mutex::new(vec![0; 2 * PAGE_SIZE as usize].into()));
        scratch.store(0, request.in_data.as_bytes());
        request.out_mmap_length = scratch.length();
        let hold = add_region(Arc::new(scratch));
        request.out_data = request.in_data;
        request.out_mmap_offset = hold.offset();
        data.put(&request)?;
        Ok(Box::new(hold))
    }

    fn invalidate_viommu(&self, viommu: &Viommu, entries: &Entries<'_>, done: &mut u32) -> Result<(), Errno> {
        if entries.kind != data::VIOMMU_INVALIDATE_DATA_SELFTEST {
            return Err(Errno::INVAL);
        }
        let commands: Vec<data::ViommuInvalidate> =
            (0..entries.count).map(|n| entries.at(n).get_any()).collect::<Result<_, _>>()?;
        for command in commands {
            if command.flags & !data::TEST_INVALIDATE_FLAG_ALL != 0 {
                return Err(Errno::OPNOTSUPP);
            }
            let device = viommu.device(command.vdev_id.into()).ok_or(Errno::INVAL)?;
            let cache = device.endpoint().extension::<DeviceCache>().ok_or(Errno::INVAL)?;
            forget(&cache.0, command.cache_id, command.flags != 0)?;
            *done += 1;
        }
        Ok(())
    }

    fn hw_queue(&self, kind: u32, index: u32) -> Result<Option<u32>, Errno> {
        if kind != data::HW_QUEUE_TYPE_SELFTEST {
            return Err(Errno::OPNOTSUPP);
        }
        if index >= data::TEST_HW_QUEUE_MAX { Err(Errno::INVAL) } else { Ok(index.checked_sub(1)) }
    }
}
