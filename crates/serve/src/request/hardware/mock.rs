//! The mock IOMMU of Linux's own tests.
//!
//! Its nested page tables translate nothing. What a guest would have cached is four numbers, which a test sets when it makes
//! the table, and finds to be zero when it has invalidated them.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};

use ioasid::{GuestFormat, GuestTable, NestedHwpt, NestedOptions, TableFormat};
use ioasid_uapi::iommufd::selftest::{self as uapi, data};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{Data, Entries, Hardware};

pub(super) struct Mock;

/// What is cached of a nested page table.
pub(in crate::request) struct Iotlb([AtomicU32; uapi::MOCK_NESTED_DOMAIN_IOTLB_NUM as usize]);

impl Iotlb {
    /// Entry `n`, if there is one.
    pub(in crate::request) fn entry(&self, n: u32) -> Option<u32> {
        Some(self.0.get(n as usize)?.load(Ordering::Relaxed))
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

    fn nested(&self, data: &Data<'_>) -> Result<NestedOptions, Errno> {
        let request = Self::data(data)?;
        let iotlb = Iotlb([request.iotlb; uapi::MOCK_NESTED_DOMAIN_IOTLB_NUM as usize].map(AtomicU32::new));
        let table = GuestTable { format: GuestFormat::Mock, root: 0 };
        Ok(NestedOptions { extension: Some(Box::new(iotlb)), ..table.into() })
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
            let one = iotlb.0.get(entry.iotlb_id as usize).ok_or(Errno::INVAL)?;
            match entry.flags {
                0 => one.store(0, Ordering::Relaxed),
                _ => iotlb.0.iter().for_each(|each| each.store(0, Ordering::Relaxed)),
            }
            *done += 1;
        }
        Ok(())
    }
}
