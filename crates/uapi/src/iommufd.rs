//! `include/uapi/linux/iommufd.h`: requests on `/dev/iommu`.
//!
//! Every structure begins with its size, as the program knows it. A smaller one than the kernel's is filled up with
//! zeros down to a minimum; of a larger one the rest has to be zero.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{TYPE, io, layout};

/// `IOMMU_DESTROY`
pub const DESTROY: u32 = io(TYPE, 0x80);
/// `IOMMU_IOAS_ALLOC`
pub const IOAS_ALLOC: u32 = io(TYPE, 0x81);
/// `IOMMU_IOAS_IOVA_RANGES`
pub const IOAS_IOVA_RANGES: u32 = io(TYPE, 0x84);
/// `IOMMU_IOAS_MAP`
pub const IOAS_MAP: u32 = io(TYPE, 0x85);
/// `IOMMU_IOAS_UNMAP`
pub const IOAS_UNMAP: u32 = io(TYPE, 0x86);

/// `IOMMU_IOAS_MAP_FIXED_IOVA`
pub const MAP_FIXED_IOVA: u32 = 1 << 0;
/// `IOMMU_IOAS_MAP_WRITEABLE`
pub const MAP_WRITEABLE: u32 = 1 << 1;
/// `IOMMU_IOAS_MAP_READABLE`
pub const MAP_READABLE: u32 = 1 << 2;

/// `struct iommu_destroy`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Destroy {
    /// Size of this structure.
    pub size: u32,
    /// The object.
    pub id: u32,
}
layout!(Destroy, 8, { size: 0, id: 4 });

/// `struct iommu_ioas_alloc`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoasAlloc {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Out: the address space.
    pub out_ioas_id: u32,
}
layout!(IoasAlloc, 12, { size: 0, flags: 4, out_ioas_id: 8 });

/// `struct iommu_iova_range`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IovaRange {
    /// First IOVA.
    pub start: u64,
    /// Last IOVA, inclusive.
    pub last: u64,
}
layout!(IovaRange, 16, { start: 0, last: 8 });

/// `struct iommu_ioas_iova_ranges`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoasIovaRanges {
    /// Size of this structure.
    pub size: u32,
    /// The address space.
    pub ioas_id: u32,
    /// In: places in the array. Out: number of ranges there are.
    pub num_iovas: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Address of an array of [`IovaRange`].
    pub allowed_iovas: u64,
    /// Out: the alignment that mappings need.
    pub out_iova_alignment: u64,
}
layout!(IoasIovaRanges, 32, {
    size: 0, ioas_id: 4, num_iovas: 8, reserved: 12, allowed_iovas: 16, out_iova_alignment: 24,
});

/// `struct iommu_ioas_map`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoasMap {
    /// Size of this structure.
    pub size: u32,
    /// [`MAP_FIXED_IOVA`], [`MAP_WRITEABLE`], [`MAP_READABLE`].
    pub flags: u32,
    /// The address space.
    pub ioas_id: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Address of the program's memory.
    pub user_va: u64,
    /// Bytes.
    pub length: u64,
    /// In with [`MAP_FIXED_IOVA`], out otherwise: where it is mapped.
    pub iova: u64,
}
layout!(IoasMap, 40, { size: 0, flags: 4, ioas_id: 8, reserved: 12, user_va: 16, length: 24, iova: 32 });

/// `struct iommu_ioas_unmap`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoasUnmap {
    /// Size of this structure.
    pub size: u32,
    /// The address space.
    pub ioas_id: u32,
    /// First IOVA.
    pub iova: u64,
    /// In: bytes; with `iova` 0, all ones mean everything. Out: bytes that were mapped.
    pub length: u64,
}
layout!(IoasUnmap, 24, { size: 0, ioas_id: 4, iova: 8, length: 16 });
