//! Events of virtual IOMMUs: a header, and what follows it, as a program reads them.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, constants, layout};

constants! {
    /// `IOMMU_VEVENTQ_FLAG_LOST_EVENTS`: events were lost, and nothing follows the header.
    pub const VEVENTQ_FLAG_LOST_EVENTS: u32 = 1 << 0;

    /// `IOMMU_VEVENTQ_TYPE_DEFAULT`
    pub const VEVENTQ_TYPE_DEFAULT: u32 = 0;
    /// `IOMMU_VEVENTQ_TYPE_ARM_SMMUV3`: [`VeventArmSmmuv3`]
    pub const VEVENTQ_TYPE_ARM_SMMUV3: u32 = 1;
    /// `IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV`: [`VeventTegra241Cmdqv`]
    pub const VEVENTQ_TYPE_TEGRA241_CMDQV: u32 = 2;
}

/// `struct iommu_veventq_alloc`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct VeventqAlloc {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The virtual IOMMU.
    pub viommu_id: u32,
    /// `VEVENTQ_TYPE_*`.
    pub kind: u32,
    /// Events that it can hold.
    pub veventq_depth: u32,
    /// Out: the queue.
    pub out_veventq_id: u32,
    /// Out: its descriptor.
    pub out_veventq_fd: u32,
    /// Must be 0.
    pub reserved: u32,
}
layout!(VeventqAlloc = "iommu_veventq_alloc", 32, {
    size: 0, flags: 4, viommu_id: 8, kind: 12, veventq_depth: 16, out_veventq_id: 20, out_veventq_fd: 24, reserved: 28,
});

/// `struct iommufd_vevent_header`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct VeventHeader {
    /// [`VEVENTQ_FLAG_LOST_EVENTS`]
    pub flags: u32,
    /// Number of the event, from 0 to `i32::MAX` and round.
    pub sequence: u32,
}
layout!(VeventHeader = "iommufd_vevent_header", 8, { flags: 0, sequence: 4 });

/// `struct iommu_vevent_arm_smmuv3`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct VeventArmSmmuv3 {
    /// An event record, little-endian, with the guest's stream id.
    pub evt: [u64; 4],
}
layout!(VeventArmSmmuv3 = "iommu_vevent_arm_smmuv3", 32, { evt: 0 });

/// `struct iommu_vevent_tegra241_cmdqv`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct VeventTegra241Cmdqv {
    /// A bit for each command queue with an error, little-endian.
    pub lvcmdq_err_map: [u64; 2],
}
layout!(VeventTegra241Cmdqv = "iommu_vevent_tegra241_cmdqv", 16, { lvcmdq_err_map: 0 });

pub(crate) const LAYOUTS: &[Layout] =
    &[VeventqAlloc::LAYOUT, VeventHeader::LAYOUT, VeventArmSmmuv3::LAYOUT, VeventTegra241Cmdqv::LAYOUT];
