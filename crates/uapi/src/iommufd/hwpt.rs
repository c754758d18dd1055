//! Page tables of hardware, and the dirty bits in them.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, constants, layout};

constants! {
    /// `IOMMU_HWPT_ALLOC_NEST_PARENT`: others can be nested in it.
    pub const HWPT_ALLOC_NEST_PARENT: u32 = 1 << 0;
    /// `IOMMU_HWPT_ALLOC_DIRTY_TRACKING`: only devices that keep dirty bits can be attached.
    pub const HWPT_ALLOC_DIRTY_TRACKING: u32 = 1 << 1;
    /// `IOMMU_HWPT_FAULT_ID_VALID`: `fault_id` is given.
    pub const HWPT_FAULT_ID_VALID: u32 = 1 << 2;
    /// `IOMMU_HWPT_ALLOC_PASID`: it can be attached to a PASID.
    pub const HWPT_ALLOC_PASID: u32 = 1 << 3;

    /// `IOMMU_HWPT_DATA_NONE`
    pub const HWPT_DATA_NONE: u32 = 0;
    /// `IOMMU_HWPT_DATA_VTD_S1`: [`HwptVtdS1`]
    pub const HWPT_DATA_VTD_S1: u32 = 1;
    /// `IOMMU_HWPT_DATA_ARM_SMMUV3`: [`HwptArmSmmuv3`]
    pub const HWPT_DATA_ARM_SMMUV3: u32 = 2;
    /// `IOMMU_HWPT_DATA_AMD_GUEST`: [`HwptAmdGuest`]
    pub const HWPT_DATA_AMD_GUEST: u32 = 3;

    /// `IOMMU_VTD_S1_SRE`: requests of supervisors are allowed.
    pub const VTD_S1_SRE: u64 = 1 << 0;
    /// `IOMMU_VTD_S1_EAFE`: extended access bits are kept.
    pub const VTD_S1_EAFE: u64 = 1 << 1;
    /// `IOMMU_VTD_S1_WPE`: write protection holds for supervisors.
    pub const VTD_S1_WPE: u64 = 1 << 2;

    /// `IOMMU_HWPT_DIRTY_TRACKING_ENABLE`
    pub const HWPT_DIRTY_TRACKING_ENABLE: u32 = 1;

    /// `IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR`: the bits stay set in the page table.
    pub const HWPT_GET_DIRTY_BITMAP_NO_CLEAR: u32 = 1;
}

/// `struct iommu_hwpt_alloc`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptAlloc {
    /// Size of this structure.
    pub size: u32,
    /// `HWPT_ALLOC_*`, [`HWPT_FAULT_ID_VALID`].
    pub flags: u32,
    /// The device that it is for.
    pub dev_id: u32,
    /// The address space that it shows, or the page table or virtual IOMMU that it is nested in.
    pub pt_id: u32,
    /// Out: the page table.
    pub out_hwpt_id: u32,
    /// Must be 0.
    pub reserved: u32,
    /// `HWPT_DATA_*`.
    pub data_type: u32,
    /// Bytes of data.
    pub data_len: u32,
    /// Address of the data, a structure of that type.
    pub data_uptr: u64,
    /// With the flag: where its faults go.
    pub fault_id: u32,
    /// Must be 0.
    pub reserved2: u32,
}
layout!(HwptAlloc = "iommu_hwpt_alloc", 48, {
    size: 0, flags: 4, dev_id: 8, pt_id: 12, out_hwpt_id: 16, reserved: 20, data_type: 24, data_len: 28, data_uptr: 32,
    fault_id: 40, reserved2: 44,
});

/// `struct iommu_hwpt_vtd_s1`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptVtdS1 {
    /// [`VTD_S1_SRE`], [`VTD_S1_EAFE`], [`VTD_S1_WPE`].
    pub flags: u64,
    /// Guest physical address of the page table.
    pub pgtbl_addr: u64,
    /// Bits of an address that it translates.
    pub addr_width: u32,
    /// Must be 0.
    pub reserved: u32,
}
layout!(HwptVtdS1 = "iommu_hwpt_vtd_s1", 24, { flags: 0, pgtbl_addr: 8, addr_width: 16, reserved: 20 });

/// `struct iommu_hwpt_arm_smmuv3`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptArmSmmuv3 {
    /// The first 16 bytes of the guest's stream table entry, little-endian.
    pub ste: [u64; 2],
}
layout!(HwptArmSmmuv3 = "iommu_hwpt_arm_smmuv3", 16, { ste: 0 });

/// `struct iommu_hwpt_amd_guest`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptAmdGuest {
    /// The guest's device table entry.
    pub dte: [u64; 4],
}
layout!(HwptAmdGuest = "iommu_hwpt_amd_guest", 32, { dte: 0 });

/// `struct iommu_hwpt_set_dirty_tracking`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptSetDirtyTracking {
    /// Size of this structure.
    pub size: u32,
    /// [`HWPT_DIRTY_TRACKING_ENABLE`], or 0 to stop.
    pub flags: u32,
    /// The page table.
    pub hwpt_id: u32,
    /// Must be 0.
    pub reserved: u32,
}
layout!(HwptSetDirtyTracking = "iommu_hwpt_set_dirty_tracking", 16, { size: 0, flags: 4, hwpt_id: 8, reserved: 12 });

/// `struct iommu_hwpt_get_dirty_bitmap`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptGetDirtyBitmap {
    /// Size of this structure.
    pub size: u32,
    /// The page table.
    pub hwpt_id: u32,
    /// [`HWPT_GET_DIRTY_BITMAP_NO_CLEAR`]
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// First IOVA; the first bit is its.
    pub iova: u64,
    /// Bytes of the IOVA range.
    pub length: u64,
    /// Bytes for each bit.
    pub page_size: u64,
    /// Address of the bitmap, in units of 64 bits.
    pub data: u64,
}
layout!(HwptGetDirtyBitmap = "iommu_hwpt_get_dirty_bitmap", 48, {
    size: 0, hwpt_id: 4, flags: 8, reserved: 12, iova: 16, length: 24, page_size: 32, data: 40,
});

pub(crate) const LAYOUTS: &[Layout] = &[
    HwptAlloc::LAYOUT,
    HwptVtdS1::LAYOUT,
    HwptArmSmmuv3::LAYOUT,
    HwptAmdGuest::LAYOUT,
    HwptSetDirtyTracking::LAYOUT,
    HwptGetDirtyBitmap::LAYOUT,
];
