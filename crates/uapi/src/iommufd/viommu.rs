//! Virtual IOMMUs, with their devices and hardware queues.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, constants, layout};

constants! {
    /// `IOMMU_VIOMMU_TYPE_DEFAULT`
    pub const VIOMMU_TYPE_DEFAULT: u32 = 0;
    /// `IOMMU_VIOMMU_TYPE_ARM_SMMUV3`
    pub const VIOMMU_TYPE_ARM_SMMUV3: u32 = 1;
    /// `IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV`: [`ViommuTegra241Cmdqv`]
    pub const VIOMMU_TYPE_TEGRA241_CMDQV: u32 = 2;

    /// `IOMMU_HW_QUEUE_TYPE_DEFAULT`
    pub const HW_QUEUE_TYPE_DEFAULT: u32 = 0;
    /// `IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV`
    pub const HW_QUEUE_TYPE_TEGRA241_CMDQV: u32 = 1;
}

/// `struct iommu_viommu_alloc`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct ViommuAlloc {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// `VIOMMU_TYPE_*`.
    pub kind: u32,
    /// A device behind the IOMMU that it is a part of.
    pub dev_id: u32,
    /// The page table that the guest's are nested in.
    pub hwpt_id: u32,
    /// Out: the virtual IOMMU.
    pub out_viommu_id: u32,
    /// Bytes of data.
    pub data_len: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Address of the data, a structure of that type.
    pub data_uptr: u64,
}
layout!(ViommuAlloc = "iommu_viommu_alloc", 40, {
    size: 0, flags: 4, kind: 8, dev_id: 12, hwpt_id: 16, out_viommu_id: 20, data_len: 24, reserved: 28, data_uptr: 32,
});

/// `struct iommu_viommu_tegra241_cmdqv`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct ViommuTegra241Cmdqv {
    /// Out: offset of the interface's first page, for `mmap`.
    pub out_vintf_mmap_offset: u64,
    /// Out: bytes, for `mmap`.
    pub out_vintf_mmap_length: u64,
}
layout!(ViommuTegra241Cmdqv = "iommu_viommu_tegra241_cmdqv", 16, {
    out_vintf_mmap_offset: 0, out_vintf_mmap_length: 8,
});

/// `struct iommu_vdevice_alloc`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct VdeviceAlloc {
    /// Size of this structure.
    pub size: u32,
    /// The virtual IOMMU.
    pub viommu_id: u32,
    /// The device.
    pub dev_id: u32,
    /// Out: the virtual device.
    pub out_vdevice_id: u32,
    /// Its id for the guest: stream id, device id or requester id.
    pub virt_id: u64,
}
layout!(VdeviceAlloc = "iommu_vdevice_alloc", 24, {
    size: 0, viommu_id: 4, dev_id: 8, out_vdevice_id: 12, virt_id: 16,
});

/// `struct iommu_hw_queue_alloc`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwQueueAlloc {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The virtual IOMMU.
    pub viommu_id: u32,
    /// `HW_QUEUE_TYPE_*`.
    pub kind: u32,
    /// Which of its queues.
    pub index: u32,
    /// Out: the queue.
    pub out_hw_queue_id: u32,
    /// Guest physical address of the queue.
    pub nesting_parent_iova: u64,
    /// Bytes.
    pub length: u64,
}
layout!(HwQueueAlloc = "iommu_hw_queue_alloc", 40, {
    size: 0, flags: 4, viommu_id: 8, kind: 12, index: 16, out_hw_queue_id: 20, nesting_parent_iova: 24, length: 32,
});

pub(crate) const LAYOUTS: &[Layout] =
    &[ViommuAlloc::LAYOUT, ViommuTegra241Cmdqv::LAYOUT, VdeviceAlloc::LAYOUT, HwQueueAlloc::LAYOUT];
