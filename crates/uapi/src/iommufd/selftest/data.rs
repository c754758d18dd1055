//! What is the mock device's own in the structures of other requests.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, constants, layout};

constants! {
    /// `IOMMU_HW_INFO_TYPE_SELFTEST`: [`HwInfo`]
    pub const HW_INFO_TYPE_SELFTEST: u32 = 0xfeed_beef;
    /// `IOMMU_HW_INFO_SELFTEST_REGVAL`
    pub const HW_INFO_SELFTEST_REGVAL: u32 = 0xdead_beef;

    /// `IOMMU_HWPT_DATA_SELFTEST`: [`Hwpt`]
    pub const HWPT_DATA_SELFTEST: u32 = 0xdead;
    /// `IOMMU_TEST_IOTLB_DEFAULT`
    pub const TEST_IOTLB_DEFAULT: u32 = 0xbad_beef;
    /// `IOMMU_TEST_DEV_CACHE_DEFAULT`
    pub const TEST_DEV_CACHE_DEFAULT: u32 = 0xba_ddad;
    /// `MOCK_IOMMUPT_DEFAULT`
    pub const MOCK_IOMMUPT_DEFAULT: u32 = 0;
    /// `MOCK_IOMMUPT_HUGE`
    pub const MOCK_IOMMUPT_HUGE: u32 = 1;

    /// `IOMMU_HWPT_INVALIDATE_DATA_SELFTEST`: [`HwptInvalidate`]
    pub const HWPT_INVALIDATE_DATA_SELFTEST: u32 = 0xdead_beef;
    /// `IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID`
    pub const HWPT_INVALIDATE_DATA_SELFTEST_INVALID: u32 = 0xdad_beef;
    /// `IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST`: [`ViommuInvalidate`]
    pub const VIOMMU_INVALIDATE_DATA_SELFTEST: u32 = 0xdead_beef;
    /// `IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID`
    pub const VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID: u32 = 0xdad_beef;
    /// `IOMMU_TEST_INVALIDATE_FLAG_ALL`: every entry, whatever the id.
    pub const TEST_INVALIDATE_FLAG_ALL: u32 = 1 << 0;

    /// `IOMMU_VIOMMU_TYPE_SELFTEST`: [`Viommu`]
    pub const VIOMMU_TYPE_SELFTEST: u32 = 0xdead_beef;
    /// `IOMMU_VEVENTQ_TYPE_SELFTEST`: [`ViommuEvent`]
    pub const VEVENTQ_TYPE_SELFTEST: u32 = 0xbeef_beef;
    /// `IOMMU_HW_QUEUE_TYPE_SELFTEST`
    pub const HW_QUEUE_TYPE_SELFTEST: u32 = 0xdead_beef;
    /// `IOMMU_TEST_HW_QUEUE_MAX`: queues of a virtual IOMMU.
    pub const TEST_HW_QUEUE_MAX: u32 = 2;
}

/// `struct iommu_test_hw_info`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwInfo {
    /// Nothing.
    pub flags: u32,
    /// [`HW_INFO_SELFTEST_REGVAL`]
    pub test_reg: u32,
}
layout!(HwInfo = "iommu_test_hw_info", 8, { flags: 0, test_reg: 4 });

/// `struct iommu_hwpt_selftest`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Hwpt {
    /// What the entries of its TLB are at first.
    pub iotlb: u32,
    /// `MOCK_IOMMUPT_*`.
    pub pagetable_type: u32,
}
layout!(Hwpt = "iommu_hwpt_selftest", 8, { iotlb: 0, pagetable_type: 4 });

/// `struct iommu_hwpt_invalidate_selftest`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptInvalidate {
    /// [`TEST_INVALIDATE_FLAG_ALL`]
    pub flags: u32,
    /// Which entry.
    pub iotlb_id: u32,
}
layout!(HwptInvalidate = "iommu_hwpt_invalidate_selftest", 8, { flags: 0, iotlb_id: 4 });

/// `struct iommu_viommu_selftest`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Viommu {
    /// Any value.
    pub in_data: u32,
    /// Out: the same value.
    pub out_data: u32,
    /// Out: offset of memory that begins with the value, for `mmap`.
    pub out_mmap_offset: u64,
    /// Out: bytes, for `mmap`.
    pub out_mmap_length: u64,
}
layout!(Viommu = "iommu_viommu_selftest", 24, { in_data: 0, out_data: 4, out_mmap_offset: 8, out_mmap_length: 16 });

/// `struct iommu_viommu_invalidate_selftest`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct ViommuInvalidate {
    /// [`TEST_INVALIDATE_FLAG_ALL`]
    pub flags: u32,
    /// The device's id for the guest.
    pub vdev_id: u32,
    /// Which entry.
    pub cache_id: u32,
}
layout!(ViommuInvalidate = "iommu_viommu_invalidate_selftest", 12, { flags: 0, vdev_id: 4, cache_id: 8 });

/// `struct iommu_viommu_event_selftest`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct ViommuEvent {
    /// The device's id for the guest.
    pub virt_id: u32,
}
layout!(ViommuEvent = "iommu_viommu_event_selftest", 4, { virt_id: 0 });

pub(crate) const LAYOUTS: &[Layout] = &[
    HwInfo::LAYOUT,
    Hwpt::LAYOUT,
    HwptInvalidate::LAYOUT,
    Viommu::LAYOUT,
    ViommuInvalidate::LAYOUT,
    ViommuEvent::LAYOUT,
];
