//! `drivers/iommu/iommufd/iommufd_test.h`: the mock device that a kernel built for its own tests has.
//!
//! One request, [`TEST_CMD`], does everything that such a test needs beside the requests of [`super`]. Its operation
//! says which structure of [`command`] its body holds. [`data`] is what the mock device's type of hardware puts into
//! the structures of other requests.

pub mod command;
pub mod data;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Header, Layout, constants, layout};
use crate::{TYPE, io};

constants! {
    /// `IOMMU_TEST_CMD`
    pub const TEST_CMD: u32 = io(TYPE, 0xa0);

    /// `IOMMU_TEST_OP_ADD_RESERVED`: [`command::AddReserved`]
    pub const TEST_OP_ADD_RESERVED: u32 = 1;
    /// `IOMMU_TEST_OP_MOCK_DOMAIN`: [`command::MockDomain`]
    pub const TEST_OP_MOCK_DOMAIN: u32 = 2;
    /// `IOMMU_TEST_OP_MD_CHECK_MAP`: [`command::CheckMap`]
    pub const TEST_OP_MD_CHECK_MAP: u32 = 3;
    /// `IOMMU_TEST_OP_MD_CHECK_REFS`: [`command::CheckRefs`]
    pub const TEST_OP_MD_CHECK_REFS: u32 = 4;
    /// `IOMMU_TEST_OP_CREATE_ACCESS`: [`command::CreateAccess`]
    pub const TEST_OP_CREATE_ACCESS: u32 = 5;
    /// `IOMMU_TEST_OP_DESTROY_ACCESS_PAGES`: [`command::DestroyAccessPages`]
    pub const TEST_OP_DESTROY_ACCESS_PAGES: u32 = 6;
    /// `IOMMU_TEST_OP_ACCESS_PAGES`: [`command::AccessPages`]
    pub const TEST_OP_ACCESS_PAGES: u32 = 7;
    /// `IOMMU_TEST_OP_ACCESS_RW`: [`command::AccessRw`]
    pub const TEST_OP_ACCESS_RW: u32 = 8;
    /// `IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT`: [`command::MemoryLimit`]
    pub const TEST_OP_SET_TEMP_MEMORY_LIMIT: u32 = 9;
    /// `IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE`: [`command::MockDomainReplace`]
    pub const TEST_OP_MOCK_DOMAIN_REPLACE: u32 = 10;
    /// `IOMMU_TEST_OP_ACCESS_REPLACE_IOAS`: [`command::AccessReplaceIoas`]
    pub const TEST_OP_ACCESS_REPLACE_IOAS: u32 = 11;
    /// `IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS`: [`command::MockDomainFlags`]
    pub const TEST_OP_MOCK_DOMAIN_FLAGS: u32 = 12;
    /// `IOMMU_TEST_OP_DIRTY`: [`command::Dirty`]
    pub const TEST_OP_DIRTY: u32 = 13;
    /// `IOMMU_TEST_OP_MD_CHECK_IOTLB`: [`command::CheckIotlb`]
    pub const TEST_OP_MD_CHECK_IOTLB: u32 = 14;
    /// `IOMMU_TEST_OP_TRIGGER_IOPF`: [`command::TriggerIopf`]
    pub const TEST_OP_TRIGGER_IOPF: u32 = 15;
    /// `IOMMU_TEST_OP_DEV_CHECK_CACHE`: [`command::CheckDevCache`]
    pub const TEST_OP_DEV_CHECK_CACHE: u32 = 16;
    /// `IOMMU_TEST_OP_TRIGGER_VEVENT`: [`command::TriggerVevent`]
    pub const TEST_OP_TRIGGER_VEVENT: u32 = 17;
    /// `IOMMU_TEST_OP_PASID_ATTACH`: [`command::PasidAttach`]
    pub const TEST_OP_PASID_ATTACH: u32 = 18;
    /// `IOMMU_TEST_OP_PASID_REPLACE`: [`command::PasidReplace`]
    pub const TEST_OP_PASID_REPLACE: u32 = 19;
    /// `IOMMU_TEST_OP_PASID_DETACH`: [`command::PasidDetach`]
    pub const TEST_OP_PASID_DETACH: u32 = 20;
    /// `IOMMU_TEST_OP_PASID_CHECK_HWPT`: [`command::PasidCheck`]
    pub const TEST_OP_PASID_CHECK_HWPT: u32 = 21;
    /// `IOMMU_TEST_OP_DMABUF_GET`: [`command::DmabufGet`]
    pub const TEST_OP_DMABUF_GET: u32 = 22;
    /// `IOMMU_TEST_OP_DMABUF_REVOKE`: [`command::DmabufRevoke`]
    pub const TEST_OP_DMABUF_REVOKE: u32 = 23;

    /// `MOCK_FLAGS_DEVICE_NO_DIRTY`: page tables keep no dirty bits.
    pub const MOCK_FLAGS_DEVICE_NO_DIRTY: u32 = 1 << 0;
    /// `MOCK_FLAGS_DEVICE_PASID`: the device has PASIDs.
    pub const MOCK_FLAGS_DEVICE_PASID: u32 = 1 << 2;

    /// `MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES`: an access that pins pages.
    pub const MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES: u32 = 1 << 0;
    /// `MOCK_FLAGS_ACCESS_WRITE`: pages are pinned to be written.
    pub const MOCK_FLAGS_ACCESS_WRITE: u32 = 1 << 0;
    /// `MOCK_FLAGS_ACCESS_SYZ`: the IOVA is a mapping's number and an offset in it.
    pub const MOCK_FLAGS_ACCESS_SYZ: u32 = 1 << 16;
    /// `MOCK_ACCESS_RW_WRITE`: into the address space, not out of it.
    pub const MOCK_ACCESS_RW_WRITE: u32 = 1 << 0;
    /// `MOCK_ACCESS_RW_SLOW_PATH`: never as the process's own memory.
    pub const MOCK_ACCESS_RW_SLOW_PATH: u32 = 1 << 2;

    /// `MOCK_APERTURE_START`: first IOVA of [`data::MOCK_IOMMUPT_DEFAULT`].
    pub const MOCK_APERTURE_START: u64 = 1 << 24;
    /// `MOCK_APERTURE_LAST`: last IOVA of it, inclusive.
    pub const MOCK_APERTURE_LAST: u64 = (1 << 31) - 1;
    /// `MOCK_PAGE_SIZE`
    pub const MOCK_PAGE_SIZE: u64 = 2048;
    /// `MOCK_HUGE_PAGE_SIZE`
    pub const MOCK_HUGE_PAGE_SIZE: u64 = 512 * MOCK_PAGE_SIZE;

    /// `MOCK_NESTED_DOMAIN_IOTLB_ID_MAX`
    pub const MOCK_NESTED_DOMAIN_IOTLB_ID_MAX: u32 = 3;
    /// `MOCK_NESTED_DOMAIN_IOTLB_NUM`
    pub const MOCK_NESTED_DOMAIN_IOTLB_NUM: u32 = 4;
    /// `MOCK_DEV_CACHE_ID_MAX`
    pub const MOCK_DEV_CACHE_ID_MAX: u32 = 3;
    /// `MOCK_DEV_CACHE_NUM`
    pub const MOCK_DEV_CACHE_NUM: u32 = 4;

    /// `IOMMU_TEST_PASID_RESERVED`: kept for a test that replaces.
    pub const TEST_PASID_RESERVED: u32 = 1024;
    /// `MOCK_PASID_WIDTH`: bits of a PASID.
    pub const MOCK_PASID_WIDTH: u32 = 20;
}

/// `struct iommu_test_cmd`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct TestCmd {
    /// Size of this structure.
    pub size: u32,
    /// `TEST_OP_*`.
    pub op: u32,
    /// The object that it is about, if there is one: mock device, page table, address space or access.
    pub id: u32,
    /// Must be 0.
    pub reserved: u32,
    /// A structure of [`command`], and what is left of the longest.
    pub body: [u64; 6],
    /// Nothing: its place is that of the body's end.
    pub last: u32,
    /// Nothing.
    pub padding: u32,
}
layout!(TestCmd = "iommu_test_cmd", 72, { size: 0, op: 4, id: 8, reserved: 12, body: 16, last: 64, padding: 68 });

const LAYOUTS: &[Layout] = &[TestCmd::LAYOUT];

/// What of the header is here.
pub(crate) const HEADER: Header = Header {
    path: "drivers/iommu/iommufd/iommufd_test.h",
    layouts: &[LAYOUTS, command::LAYOUTS, data::LAYOUTS],
    constants: &[CONSTANTS, data::CONSTANTS],
};
