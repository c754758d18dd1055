//! Page faults that a program answers: what it reads from a fault queue, and what it writes to it.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, constants, layout};

constants! {
    /// `IOMMU_PGFAULT_FLAGS_PASID_VALID`: `pasid` is given.
    pub const PGFAULT_FLAGS_PASID_VALID: u32 = 1 << 0;
    /// `IOMMU_PGFAULT_FLAGS_LAST_PAGE`: the last of its group, which is to be answered.
    pub const PGFAULT_FLAGS_LAST_PAGE: u32 = 1 << 1;

    /// `IOMMU_PGFAULT_PERM_READ`
    pub const PGFAULT_PERM_READ: u32 = 1 << 0;
    /// `IOMMU_PGFAULT_PERM_WRITE`
    pub const PGFAULT_PERM_WRITE: u32 = 1 << 1;
    /// `IOMMU_PGFAULT_PERM_EXEC`
    pub const PGFAULT_PERM_EXEC: u32 = 1 << 2;
    /// `IOMMU_PGFAULT_PERM_PRIV`
    pub const PGFAULT_PERM_PRIV: u32 = 1 << 3;

    /// `IOMMUFD_PAGE_RESP_SUCCESS`: the device shall try again.
    pub const PAGE_RESP_SUCCESS: u32 = 0;
    /// `IOMMUFD_PAGE_RESP_INVALID`: the device shall give up.
    pub const PAGE_RESP_INVALID: u32 = 1;
}

/// `struct iommu_fault_alloc`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct FaultAlloc {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Out: the fault queue.
    pub out_fault_id: u32,
    /// Out: its descriptor.
    pub out_fault_fd: u32,
}
layout!(FaultAlloc = "iommu_fault_alloc", 16, { size: 0, flags: 4, out_fault_id: 8, out_fault_fd: 12 });

/// `struct iommu_hwpt_pgfault`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptPgfault {
    /// [`PGFAULT_FLAGS_PASID_VALID`], [`PGFAULT_FLAGS_LAST_PAGE`].
    pub flags: u32,
    /// The device.
    pub dev_id: u32,
    /// With the flag: the PASID.
    pub pasid: u32,
    /// The device's number for the group.
    pub grpid: u32,
    /// `PGFAULT_PERM_*`: what it needs.
    pub perm: u32,
    /// Must be 0.
    pub reserved: u32,
    /// The IOVA.
    pub addr: u64,
    /// Bytes that it will need, or 0 if it does not say.
    pub length: u32,
    /// What the answer has to repeat.
    pub cookie: u32,
}
layout!(HwptPgfault = "iommu_hwpt_pgfault", 40, {
    flags: 0, dev_id: 4, pasid: 8, grpid: 12, perm: 16, reserved: 20, addr: 24, length: 32, cookie: 36,
});

/// `struct iommu_hwpt_page_response`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptPageResponse {
    /// That of the group's last fault.
    pub cookie: u32,
    /// [`PAGE_RESP_SUCCESS`] or [`PAGE_RESP_INVALID`].
    pub code: u32,
}
layout!(HwptPageResponse = "iommu_hwpt_page_response", 8, { cookie: 0, code: 4 });

pub(crate) const LAYOUTS: &[Layout] = &[FaultAlloc::LAYOUT, HwptPgfault::LAYOUT, HwptPageResponse::LAYOUT];
