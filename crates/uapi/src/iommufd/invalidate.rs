//! Invalidation of what hardware keeps of a guest's own tables.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, constants, layout};

constants! {
    /// `IOMMU_HWPT_INVALIDATE_DATA_VTD_S1`: [`HwptVtdS1Invalidate`]
    pub const HWPT_INVALIDATE_DATA_VTD_S1: u32 = 0;
    /// `IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3`: [`ViommuArmSmmuv3Invalidate`]
    pub const VIOMMU_INVALIDATE_DATA_ARM_SMMUV3: u32 = 1;

    /// `IOMMU_VTD_INV_FLAGS_LEAF`: only leaves have changed.
    pub const VTD_INV_FLAGS_LEAF: u32 = 1 << 0;
}

/// `struct iommu_hwpt_invalidate`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptInvalidate {
    /// Size of this structure.
    pub size: u32,
    /// The nested page table, or the virtual IOMMU.
    pub hwpt_id: u32,
    /// Address of an array of entries.
    pub data_uptr: u64,
    /// `HWPT_INVALIDATE_DATA_*`, `VIOMMU_INVALIDATE_DATA_*`.
    pub data_type: u32,
    /// Bytes of an entry.
    pub entry_len: u32,
    /// In: number of entries. Out: number of entries that were handled.
    pub entry_num: u32,
    /// Must be 0.
    pub reserved: u32,
}
layout!(HwptInvalidate = "iommu_hwpt_invalidate", 32, {
    size: 0, hwpt_id: 4, data_uptr: 8, data_type: 16, entry_len: 20, entry_num: 24, reserved: 28,
});

/// `struct iommu_hwpt_vtd_s1_invalidate`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptVtdS1Invalidate {
    /// First address.
    pub addr: u64,
    /// Number of pages of 4 KiB; with `addr` 0, all ones mean everything.
    pub npages: u64,
    /// [`VTD_INV_FLAGS_LEAF`]
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
}
layout!(HwptVtdS1Invalidate = "iommu_hwpt_vtd_s1_invalidate", 24, { addr: 0, npages: 8, flags: 16, reserved: 20 });

/// `struct iommu_viommu_arm_smmuv3_invalidate`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct ViommuArmSmmuv3Invalidate {
    /// A command as in the SMMU's command queue, little-endian.
    pub cmd: [u64; 2],
}
layout!(ViommuArmSmmuv3Invalidate = "iommu_viommu_arm_smmuv3_invalidate", 16, { cmd: 0 });

pub(crate) const LAYOUTS: &[Layout] =
    &[HwptInvalidate::LAYOUT, HwptVtdS1Invalidate::LAYOUT, ViommuArmSmmuv3Invalidate::LAYOUT];
