//! Requests on a container (`/dev/vfio/vfio`), which an open `/dev/iommu` can stand for.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::CapHeader;
use crate::description::{Layout, constants, layout};
use crate::{TYPE, io};

constants! {
    /// `VFIO_API_VERSION`: what [`GET_API_VERSION`] answers.
    pub const API_VERSION: u32 = 0;
    /// `VFIO_GET_API_VERSION`
    pub const GET_API_VERSION: u32 = io(TYPE, 100);
    /// `VFIO_CHECK_EXTENSION`
    pub const CHECK_EXTENSION: u32 = io(TYPE, 101);
    /// `VFIO_SET_IOMMU`
    pub const SET_IOMMU: u32 = io(TYPE, 102);
    /// `VFIO_IOMMU_GET_INFO`: [`Type1Info`]
    pub const IOMMU_GET_INFO: u32 = io(TYPE, 112);
    /// `VFIO_IOMMU_MAP_DMA`: [`Type1DmaMap`]
    pub const IOMMU_MAP_DMA: u32 = io(TYPE, 113);
    /// `VFIO_IOMMU_UNMAP_DMA`: [`Type1DmaUnmap`]
    pub const IOMMU_UNMAP_DMA: u32 = io(TYPE, 114);

    /// `VFIO_IOMMU_DIRTY_PAGES`: [`DirtyBitmap`]
    pub const IOMMU_DIRTY_PAGES: u32 = io(TYPE, 117);

    /// `VFIO_TYPE1_IOMMU`: an unmapping may name parts of what was mapped, or more.
    pub const TYPE1_IOMMU: u32 = 1;
    /// `VFIO_TYPE1v2_IOMMU`: an unmapping has whole mappings.
    pub const TYPE1V2_IOMMU: u32 = 3;
    /// `VFIO_DMA_CC_IOMMU`: DMA is coherent whatever the device says.
    pub const DMA_CC_IOMMU: u32 = 4;
    /// `VFIO_UNMAP_ALL`: [`DMA_UNMAP_FLAG_ALL`] is known.
    pub const UNMAP_ALL: u32 = 9;
    /// `VFIO_UPDATE_VADDR`: [`DMA_UNMAP_FLAG_VADDR`] and [`DMA_MAP_FLAG_VADDR`] are known.
    pub const UPDATE_VADDR: u32 = 10;

    /// `VFIO_IOMMU_INFO_PGSIZES`
    pub const IOMMU_INFO_PGSIZES: u32 = 1 << 0;
    /// `VFIO_IOMMU_INFO_CAPS`
    pub const IOMMU_INFO_CAPS: u32 = 1 << 1;
    /// `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`: [`Type1InfoCapIovaRange`]
    pub const TYPE1_INFO_CAP_IOVA_RANGE: u16 = 1;
    /// `VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION`: [`Type1InfoCapMigration`]
    pub const TYPE1_INFO_CAP_MIGRATION: u16 = 2;
    /// `VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL`: [`Type1InfoDmaAvail`]
    pub const TYPE1_INFO_DMA_AVAIL: u16 = 3;

    /// `VFIO_DMA_MAP_FLAG_READ`
    pub const DMA_MAP_FLAG_READ: u32 = 1 << 0;
    /// `VFIO_DMA_MAP_FLAG_WRITE`
    pub const DMA_MAP_FLAG_WRITE: u32 = 1 << 1;
    /// `VFIO_DMA_MAP_FLAG_VADDR`: gives what is mapped another address.
    pub const DMA_MAP_FLAG_VADDR: u32 = 1 << 2;
    /// `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`: [`Bitmap`] follows.
    pub const DMA_UNMAP_FLAG_GET_DIRTY_BITMAP: u32 = 1 << 0;
    /// `VFIO_DMA_UNMAP_FLAG_ALL`
    pub const DMA_UNMAP_FLAG_ALL: u32 = 1 << 1;
    /// `VFIO_DMA_UNMAP_FLAG_VADDR`: takes the address away, and leaves what is mapped.
    pub const DMA_UNMAP_FLAG_VADDR: u32 = 1 << 2;

    /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_START`
    pub const DIRTY_PAGES_FLAG_START: u32 = 1 << 0;
    /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP`
    pub const DIRTY_PAGES_FLAG_STOP: u32 = 1 << 1;
    /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP`: [`DirtyBitmapGet`] follows.
    pub const DIRTY_PAGES_FLAG_GET_BITMAP: u32 = 1 << 2;
}

/// `struct vfio_iommu_type1_info`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Type1Info {
    /// In: bytes set aside. Out: bytes that everything takes.
    pub argsz: u32,
    /// Out: `IOMMU_INFO_*`.
    pub flags: u32,
    /// Out: a bit for each size of a page.
    pub iova_pgsizes: u64,
    /// Out: offset of the first capability, or 0.
    pub cap_offset: u32,
    /// Nothing.
    pub pad: u32,
}
layout!(Type1Info = "vfio_iommu_type1_info", 24, { argsz: 0, flags: 4, iova_pgsizes: 8, cap_offset: 16, pad: 20 });

/// `struct vfio_iova_range`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IovaRange {
    /// First address.
    pub start: u64,
    /// Last address.
    pub end: u64,
}
layout!(IovaRange = "vfio_iova_range", 16, { start: 0, end: 8 });

/// `struct vfio_iommu_type1_info_cap_iova_range`; the ranges follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Type1InfoCapIovaRange {
    /// [`TYPE1_INFO_CAP_IOVA_RANGE`], version 1.
    pub header: CapHeader,
    /// Number of ranges.
    pub nr_iovas: u32,
    /// Nothing.
    pub reserved: u32,
}
layout!(Type1InfoCapIovaRange = "vfio_iommu_type1_info_cap_iova_range", 16, { header: 0, nr_iovas: 8, reserved: 12 });

/// `struct vfio_iommu_type1_info_cap_migration`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Type1InfoCapMigration {
    /// [`TYPE1_INFO_CAP_MIGRATION`], version 1.
    pub header: CapHeader,
    /// Nothing.
    pub flags: u32,
    /// Nothing.
    pub pad: u32,
    /// A bit for each size of a page that can be asked about.
    pub pgsize_bitmap: u64,
    /// Bytes of the largest bitmap.
    pub max_dirty_bitmap_size: u64,
}
layout!(Type1InfoCapMigration = "vfio_iommu_type1_info_cap_migration", 32, {
    header: 0, flags: 8, pad: 12, pgsize_bitmap: 16, max_dirty_bitmap_size: 24,
});

/// `struct vfio_iommu_type1_info_dma_avail`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Type1InfoDmaAvail {
    /// [`TYPE1_INFO_DMA_AVAIL`], version 1.
    pub header: CapHeader,
    /// How many more mappings there can be.
    pub avail: u32,
}
layout!(Type1InfoDmaAvail = "vfio_iommu_type1_info_dma_avail", 12, { header: 0, avail: 8 });

/// `struct vfio_iommu_type1_dma_map`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Type1DmaMap {
    /// Bytes set aside.
    pub argsz: u32,
    /// `DMA_MAP_FLAG_*`.
    pub flags: u32,
    /// Address of the memory.
    pub vaddr: u64,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
}
layout!(Type1DmaMap = "vfio_iommu_type1_dma_map", 32, { argsz: 0, flags: 4, vaddr: 8, iova: 16, size: 24 });

/// `struct vfio_bitmap`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Bitmap {
    /// Bytes of a page, each of which is a bit.
    pub pgsize: u64,
    /// Bytes of the bitmap.
    pub size: u64,
    /// Address of the bitmap.
    pub data: u64,
}
layout!(Bitmap = "vfio_bitmap", 24, { pgsize: 0, size: 8, data: 16 });

/// `struct vfio_iommu_type1_dirty_bitmap`, without the data that may follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DirtyBitmap {
    /// Bytes set aside.
    pub argsz: u32,
    /// `DIRTY_PAGES_FLAG_*`, one of them.
    pub flags: u32,
}
layout!(DirtyBitmap = "vfio_iommu_type1_dirty_bitmap", 8, { argsz: 0, flags: 4 });

/// `struct vfio_iommu_type1_dirty_bitmap_get`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DirtyBitmapGet {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// Where the answer goes.
    pub bitmap: Bitmap,
}
layout!(DirtyBitmapGet = "vfio_iommu_type1_dirty_bitmap_get", 40, { iova: 0, size: 8, bitmap: 16 });

/// `struct vfio_iommu_type1_dma_unmap`, without the data that may follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Type1DmaUnmap {
    /// Bytes set aside.
    pub argsz: u32,
    /// `DMA_UNMAP_FLAG_*`.
    pub flags: u32,
    /// First IOVA.
    pub iova: u64,
    /// Bytes. Out: bytes that were unmapped.
    pub size: u64,
}
layout!(Type1DmaUnmap = "vfio_iommu_type1_dma_unmap", 24, { argsz: 0, flags: 4, iova: 8, size: 16 });

pub(super) const LAYOUTS: &[Layout] = &[
    Type1Info::LAYOUT,
    IovaRange::LAYOUT,
    Type1InfoCapIovaRange::LAYOUT,
    Type1InfoCapMigration::LAYOUT,
    Type1InfoDmaAvail::LAYOUT,
    Bitmap::LAYOUT,
    DirtyBitmap::LAYOUT,
    DirtyBitmapGet::LAYOUT,
    Type1DmaMap::LAYOUT,
    Type1DmaUnmap::LAYOUT,
];
