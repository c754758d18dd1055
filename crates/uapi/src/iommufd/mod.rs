//! `include/uapi/linux/iommufd.h`: requests on `/dev/iommu`.
//!
//! Every structure of a request begins with its size, as the program knows it. A smaller one than the kernel's is
//! filled up with zeros down to a minimum; of a larger one the rest has to be zero. Structures that a request points
//! to, and those that are read from a queue, have their size elsewhere.
//!
//! The files are no modules for who uses them: all but [`selftest`] have their names here.

mod fault;
mod hw_info;
mod hwpt;
mod invalidate;
mod ioas;
mod option;
pub mod selftest;
mod veventq;
mod viommu;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Header, Layout, constants, layout};
use crate::{TYPE, io};

pub use fault::*;
pub use hw_info::*;
pub use hwpt::*;
pub use invalidate::*;
pub use ioas::*;
pub use option::*;
pub use veventq::*;
pub use viommu::*;

constants! {
    /// `IOMMU_DESTROY`: [`Destroy`]
    pub const DESTROY: u32 = io(TYPE, 0x80);
    /// `IOMMU_IOAS_ALLOC`: [`IoasAlloc`]
    pub const IOAS_ALLOC: u32 = io(TYPE, 0x81);
    /// `IOMMU_IOAS_ALLOW_IOVAS`: [`IoasAllowIovas`]
    pub const IOAS_ALLOW_IOVAS: u32 = io(TYPE, 0x82);
    /// `IOMMU_IOAS_COPY`: [`IoasCopy`]
    pub const IOAS_COPY: u32 = io(TYPE, 0x83);
    /// `IOMMU_IOAS_IOVA_RANGES`: [`IoasIovaRanges`]
    pub const IOAS_IOVA_RANGES: u32 = io(TYPE, 0x84);
    /// `IOMMU_IOAS_MAP`: [`IoasMap`]
    pub const IOAS_MAP: u32 = io(TYPE, 0x85);
    /// `IOMMU_IOAS_UNMAP`: [`IoasUnmap`]
    pub const IOAS_UNMAP: u32 = io(TYPE, 0x86);
    /// `IOMMU_OPTION`: [`IommuOption`]
    pub const OPTION: u32 = io(TYPE, 0x87);
    /// `IOMMU_VFIO_IOAS`: [`VfioIoas`]
    pub const VFIO_IOAS: u32 = io(TYPE, 0x88);
    /// `IOMMU_HWPT_ALLOC`: [`HwptAlloc`]
    pub const HWPT_ALLOC: u32 = io(TYPE, 0x89);
    /// `IOMMU_GET_HW_INFO`: [`HwInfo`]
    pub const GET_HW_INFO: u32 = io(TYPE, 0x8a);
    /// `IOMMU_HWPT_SET_DIRTY_TRACKING`: [`HwptSetDirtyTracking`]
    pub const HWPT_SET_DIRTY_TRACKING: u32 = io(TYPE, 0x8b);
    /// `IOMMU_HWPT_GET_DIRTY_BITMAP`: [`HwptGetDirtyBitmap`]
    pub const HWPT_GET_DIRTY_BITMAP: u32 = io(TYPE, 0x8c);
    /// `IOMMU_HWPT_INVALIDATE`: [`HwptInvalidate`]
    pub const HWPT_INVALIDATE: u32 = io(TYPE, 0x8d);
    /// `IOMMU_FAULT_QUEUE_ALLOC`: [`FaultAlloc`]
    pub const FAULT_QUEUE_ALLOC: u32 = io(TYPE, 0x8e);
    /// `IOMMU_IOAS_MAP_FILE`: [`IoasMapFile`]
    pub const IOAS_MAP_FILE: u32 = io(TYPE, 0x8f);
    /// `IOMMU_VIOMMU_ALLOC`: [`ViommuAlloc`]
    pub const VIOMMU_ALLOC: u32 = io(TYPE, 0x90);
    /// `IOMMU_VDEVICE_ALLOC`: [`VdeviceAlloc`]
    pub const VDEVICE_ALLOC: u32 = io(TYPE, 0x91);
    /// `IOMMU_IOAS_CHANGE_PROCESS`: [`IoasChangeProcess`]
    pub const IOAS_CHANGE_PROCESS: u32 = io(TYPE, 0x92);
    /// `IOMMU_VEVENTQ_ALLOC`: [`VeventqAlloc`]
    pub const VEVENTQ_ALLOC: u32 = io(TYPE, 0x93);
    /// `IOMMU_HW_QUEUE_ALLOC`: [`HwQueueAlloc`]
    pub const HW_QUEUE_ALLOC: u32 = io(TYPE, 0x94);
    /// `IOMMU_IOAS_NOIOMMU_GET_PA`: [`IoasNoiommuGetPa`]
    pub const IOAS_NOIOMMU_GET_PA: u32 = io(TYPE, 0x95);
}

/// `struct iommu_destroy`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Destroy {
    /// Size of this structure.
    pub size: u32,
    /// The object.
    pub id: u32,
}
layout!(Destroy = "iommu_destroy", 8, { size: 0, id: 4 });

const LAYOUTS: &[Layout] = &[Destroy::LAYOUT];

/// What of the header is here.
pub(crate) const HEADER: Header = Header {
    path: "linux/iommufd.h",
    layouts: &[
        LAYOUTS,
        fault::LAYOUTS,
        hw_info::LAYOUTS,
        hwpt::LAYOUTS,
        invalidate::LAYOUTS,
        ioas::LAYOUTS,
        option::LAYOUTS,
        veventq::LAYOUTS,
        viommu::LAYOUTS,
    ],
    constants: &[
        CONSTANTS,
        fault::CONSTANTS,
        hw_info::CONSTANTS,
        hwpt::CONSTANTS,
        invalidate::CONSTANTS,
        ioas::CONSTANTS,
        option::CONSTANTS,
        veventq::CONSTANTS,
        viommu::CONSTANTS,
    ],
};
