//! Address spaces, and what is mapped into them.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, constants, layout};

constants! {
    /// `IOMMU_IOAS_MAP_FIXED_IOVA`
    pub const MAP_FIXED_IOVA: u32 = 1 << 0;
    /// `IOMMU_IOAS_MAP_WRITEABLE`
    pub const MAP_WRITEABLE: u32 = 1 << 1;
    /// `IOMMU_IOAS_MAP_READABLE`
    pub const MAP_READABLE: u32 = 1 << 2;
}

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
layout!(IoasAlloc = "iommu_ioas_alloc", 12, { size: 0, flags: 4, out_ioas_id: 8 });

/// `struct iommu_iova_range`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IovaRange {
    /// First IOVA.
    pub start: u64,
    /// Last IOVA, inclusive.
    pub last: u64,
}
layout!(IovaRange = "iommu_iova_range", 16, { start: 0, last: 8 });

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
layout!(IoasIovaRanges = "iommu_ioas_iova_ranges", 32, {
    size: 0, ioas_id: 4, num_iovas: 8, reserved: 12, allowed_iovas: 16, out_iova_alignment: 24,
});

/// `struct iommu_ioas_allow_iovas`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoasAllowIovas {
    /// Size of this structure.
    pub size: u32,
    /// The address space.
    pub ioas_id: u32,
    /// Number of ranges.
    pub num_iovas: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Address of an array of [`IovaRange`], which takes the place of the one before.
    pub allowed_iovas: u64,
}
layout!(IoasAllowIovas = "iommu_ioas_allow_iovas", 24, {
    size: 0, ioas_id: 4, num_iovas: 8, reserved: 12, allowed_iovas: 16,
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
layout!(IoasMap = "iommu_ioas_map", 40, {
    size: 0, flags: 4, ioas_id: 8, reserved: 12, user_va: 16, length: 24, iova: 32,
});

/// `struct iommu_ioas_map_file`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoasMapFile {
    /// Size of this structure.
    pub size: u32,
    /// [`MAP_FIXED_IOVA`], [`MAP_WRITEABLE`], [`MAP_READABLE`].
    pub flags: u32,
    /// The address space.
    pub ioas_id: u32,
    /// Descriptor of a memfd or a DMA buffer.
    pub fd: i32,
    /// Offset in the file.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// In with [`MAP_FIXED_IOVA`], out otherwise: where it is mapped.
    pub iova: u64,
}
layout!(IoasMapFile = "iommu_ioas_map_file", 40, {
    size: 0, flags: 4, ioas_id: 8, fd: 12, start: 16, length: 24, iova: 32,
});

/// `struct iommu_ioas_copy`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoasCopy {
    /// Size of this structure.
    pub size: u32,
    /// [`MAP_FIXED_IOVA`], [`MAP_WRITEABLE`], [`MAP_READABLE`].
    pub flags: u32,
    /// The address space to map into.
    pub dst_ioas_id: u32,
    /// The address space where it is mapped.
    pub src_ioas_id: u32,
    /// Bytes.
    pub length: u64,
    /// In with [`MAP_FIXED_IOVA`], out otherwise: where it is mapped.
    pub dst_iova: u64,
    /// Where it is mapped in the source.
    pub src_iova: u64,
}
layout!(IoasCopy = "iommu_ioas_copy", 40, {
    size: 0, flags: 4, dst_ioas_id: 8, src_ioas_id: 12, length: 16, dst_iova: 24, src_iova: 32,
});

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
layout!(IoasUnmap = "iommu_ioas_unmap", 24, { size: 0, ioas_id: 4, iova: 8, length: 16 });

/// `struct iommu_ioas_change_process`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoasChangeProcess {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub reserved: u32,
}
layout!(IoasChangeProcess = "iommu_ioas_change_process", 8, { size: 0, reserved: 4 });

/// `struct iommu_ioas_noiommu_get_pa`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoasNoiommuGetPa {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The address space.
    pub ioas_id: u32,
    /// Must be 0.
    pub reserved: u32,
    /// First IOVA.
    pub iova: u64,
    /// In: bytes to look at, at most. Out: bytes of these that are contiguous.
    pub length: u64,
    /// Out: the physical address of the first.
    pub out_phys: u64,
}
layout!(IoasNoiommuGetPa = "iommu_ioas_noiommu_get_pa", 40, {
    size: 0, flags: 4, ioas_id: 8, reserved: 12, iova: 16, length: 24, out_phys: 32,
});

pub(crate) const LAYOUTS: &[Layout] = &[
    IoasAlloc::LAYOUT,
    IovaRange::LAYOUT,
    IoasIovaRanges::LAYOUT,
    IoasAllowIovas::LAYOUT,
    IoasMap::LAYOUT,
    IoasMapFile::LAYOUT,
    IoasCopy::LAYOUT,
    IoasUnmap::LAYOUT,
    IoasChangeProcess::LAYOUT,
    IoasNoiommuGetPa::LAYOUT,
];
