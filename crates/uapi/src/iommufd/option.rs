//! Settings of a context: options, and the address space for VFIO's container interface.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, constants, layout};

constants! {
    /// `IOMMU_OPTION_RLIMIT_MODE`: of the context; 1 counts locked memory per process, 0 per user.
    pub const OPTION_RLIMIT_MODE: u32 = 0;
    /// `IOMMU_OPTION_HUGE_PAGES`: of an address space; 0 maps every page by itself.
    pub const OPTION_HUGE_PAGES: u32 = 1;

    /// `IOMMU_OPTION_OP_SET`
    pub const OPTION_OP_SET: u16 = 0;
    /// `IOMMU_OPTION_OP_GET`
    pub const OPTION_OP_GET: u16 = 1;

    /// `IOMMU_VFIO_IOAS_GET`
    pub const VFIO_IOAS_GET: u16 = 0;
    /// `IOMMU_VFIO_IOAS_SET`
    pub const VFIO_IOAS_SET: u16 = 1;
    /// `IOMMU_VFIO_IOAS_CLEAR`
    pub const VFIO_IOAS_CLEAR: u16 = 2;
}

/// `struct iommu_option`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IommuOption {
    /// Size of this structure.
    pub size: u32,
    /// [`OPTION_RLIMIT_MODE`] or [`OPTION_HUGE_PAGES`].
    pub option_id: u32,
    /// [`OPTION_OP_SET`] or [`OPTION_OP_GET`].
    pub op: u16,
    /// Must be 0.
    pub reserved: u16,
    /// Whose option it is; 0 for the context's.
    pub object_id: u32,
    /// In to set, out to get: the value.
    pub val64: u64,
}
layout!(IommuOption = "iommu_option", 24, { size: 0, option_id: 4, op: 8, reserved: 10, object_id: 12, val64: 16 });

/// `struct iommu_vfio_ioas`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct VfioIoas {
    /// Size of this structure.
    pub size: u32,
    /// In to set, out to get: the address space.
    pub ioas_id: u32,
    /// [`VFIO_IOAS_GET`], [`VFIO_IOAS_SET`] or [`VFIO_IOAS_CLEAR`].
    pub op: u16,
    /// Must be 0.
    pub reserved: u16,
}
layout!(VfioIoas = "iommu_vfio_ioas", 12, { size: 0, ioas_id: 4, op: 8, reserved: 10 });

pub(crate) const LAYOUTS: &[Layout] = &[IommuOption::LAYOUT, VfioIoas::LAYOUT];
