//! `include/uapi/linux/vfio.h`: requests on a device, those on a [`group`], and those on a [`container`].
//!
//! Every structure begins with `argsz`, the bytes that the program set aside; there is a minimum for each request.

pub mod container;
pub mod feature;
pub mod group;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Header, Layout, constants, layout};
use crate::{TYPE, io};

constants! {
    /// `VFIO_DEVICE_GET_INFO`
    pub const DEVICE_GET_INFO: u32 = io(TYPE, 107);
    /// `VFIO_DEVICE_GET_REGION_INFO`
    pub const DEVICE_GET_REGION_INFO: u32 = io(TYPE, 108);
    /// `VFIO_DEVICE_GET_IRQ_INFO`
    pub const DEVICE_GET_IRQ_INFO: u32 = io(TYPE, 109);
    /// `VFIO_DEVICE_SET_IRQS`
    pub const DEVICE_SET_IRQS: u32 = io(TYPE, 110);
    /// `VFIO_DEVICE_RESET`
    pub const DEVICE_RESET: u32 = io(TYPE, 111);
    /// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`
    pub const DEVICE_GET_PCI_HOT_RESET_INFO: u32 = io(TYPE, 112);
    /// `VFIO_DEVICE_PCI_HOT_RESET`
    pub const DEVICE_PCI_HOT_RESET: u32 = io(TYPE, 113);
    /// `VFIO_DEVICE_IOEVENTFD`
    pub const DEVICE_IOEVENTFD: u32 = io(TYPE, 116);
    /// `VFIO_DEVICE_BIND_IOMMUFD`
    pub const DEVICE_BIND_IOMMUFD: u32 = io(TYPE, 118);
    /// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`
    pub const DEVICE_ATTACH_IOMMUFD_PT: u32 = io(TYPE, 119);
    /// `VFIO_DEVICE_DETACH_IOMMUFD_PT`
    pub const DEVICE_DETACH_IOMMUFD_PT: u32 = io(TYPE, 120);

    /// `VFIO_REGION_INFO_FLAG_CAPS`
    pub const REGION_INFO_FLAG_CAPS: u32 = 1 << 3;
    /// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`
    pub const REGION_INFO_CAP_SPARSE_MMAP: u16 = 1;
    /// `VFIO_REGION_INFO_CAP_MSIX_MAPPABLE`
    pub const REGION_INFO_CAP_MSIX_MAPPABLE: u16 = 3;

    /// `VFIO_IRQ_SET_DATA_NONE`
    pub const IRQ_SET_DATA_NONE: u32 = 1 << 0;
    /// `VFIO_IRQ_SET_DATA_BOOL`
    pub const IRQ_SET_DATA_BOOL: u32 = 1 << 1;
    /// `VFIO_IRQ_SET_DATA_EVENTFD`
    pub const IRQ_SET_DATA_EVENTFD: u32 = 1 << 2;
    /// `VFIO_IRQ_SET_DATA_TYPE_MASK`
    pub const IRQ_SET_DATA_TYPE_MASK: u32 = 0b111;
    /// `VFIO_IRQ_SET_ACTION_TYPE_MASK`
    pub const IRQ_SET_ACTION_TYPE_MASK: u32 = 0b111 << 3;

    /// `VFIO_DEVICE_BIND_FLAG_TOKEN`
    pub const BIND_FLAG_TOKEN: u32 = 1 << 0;
    /// `VFIO_DEVICE_ATTACH_PASID`
    pub const ATTACH_PASID: u32 = 1 << 0;
    /// `VFIO_DEVICE_DETACH_PASID`
    pub const DETACH_PASID: u32 = 1 << 0;

    /// `VFIO_PCI_HOT_RESET_FLAG_DEV_ID`: the devices' ids are those of a context, and not groups.
    pub const PCI_HOT_RESET_FLAG_DEV_ID: u32 = 1 << 0;
    /// `VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED`: all of them belong to that context.
    pub const PCI_HOT_RESET_FLAG_DEV_ID_OWNED: u32 = 1 << 1;
    /// `VFIO_PCI_DEVID_OWNED`: a device is not open, and only that context can have it.
    pub const PCI_DEVID_OWNED: u32 = 0;
    /// `VFIO_PCI_DEVID_NOT_OWNED`
    pub const PCI_DEVID_NOT_OWNED: u32 = u32::MAX;
}

/// `struct vfio_device_info`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DeviceInfo {
    /// Bytes set aside.
    pub argsz: u32,
    /// What kind of device, and what it can do.
    pub flags: u32,
    /// Number of region indices.
    pub num_regions: u32,
    /// Number of interrupt indices.
    pub num_irqs: u32,
    /// Offset of the first capability, or 0.
    pub cap_offset: u32,
    /// Nothing.
    pub pad: u32,
}
layout!(DeviceInfo = "vfio_device_info", 24, {
    argsz: 0, flags: 4, num_regions: 8, num_irqs: 12, cap_offset: 16, pad: 20,
});

/// `struct vfio_region_info`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct RegionInfo {
    /// Bytes set aside; out: bytes needed, if there are capabilities.
    pub argsz: u32,
    /// Readable, writable, mappable, with capabilities.
    pub flags: u32,
    /// Region index.
    pub index: u32,
    /// Offset of the first capability, or 0.
    pub cap_offset: u32,
    /// Bytes.
    pub size: u64,
    /// Offset in the device's file.
    pub offset: u64,
}
layout!(RegionInfo = "vfio_region_info", 32, { argsz: 0, flags: 4, index: 8, cap_offset: 12, size: 16, offset: 24 });

/// `struct vfio_info_cap_header`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CapHeader {
    /// Which capability.
    pub id: u16,
    /// Of which version.
    pub version: u16,
    /// Offset of the next one, or 0.
    pub next: u32,
}
layout!(CapHeader = "vfio_info_cap_header", 8, { id: 0, version: 2, next: 4 });

/// `struct vfio_region_info_cap_sparse_mmap`, before its areas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SparseMmap {
    /// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`
    pub header: CapHeader,
    /// How many areas follow.
    pub nr_areas: u32,
    /// 0
    pub reserved: u32,
}
layout!(SparseMmap = "vfio_region_info_cap_sparse_mmap", 16, { header: 0, nr_areas: 8, reserved: 12 });

/// `struct vfio_region_sparse_mmap_area`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SparseMmapArea {
    /// From the region's beginning.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}
layout!(SparseMmapArea = "vfio_region_sparse_mmap_area", 16, { offset: 0, size: 8 });

/// `struct vfio_irq_info`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IrqInfo {
    /// Bytes set aside.
    pub argsz: u32,
    /// What it can do.
    pub flags: u32,
    /// Interrupt index.
    pub index: u32,
    /// Number of vectors.
    pub count: u32,
}
layout!(IrqInfo = "vfio_irq_info", 16, { argsz: 0, flags: 4, index: 8, count: 12 });

/// `struct vfio_irq_set`, without its data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IrqSet {
    /// Bytes set aside, data included.
    pub argsz: u32,
    /// One kind of data and one action.
    pub flags: u32,
    /// Interrupt index.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Number of vectors.
    pub count: u32,
}
layout!(IrqSet = "vfio_irq_set", 20, { argsz: 0, flags: 4, index: 8, start: 12, count: 16 });

/// `struct vfio_device_ioeventfd`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Ioeventfd {
    /// Bytes set aside.
    pub argsz: u32,
    /// How many bytes are stored: 1, 2, 4 or 8.
    pub flags: u32,
    /// Where in the device's file.
    pub offset: u64,
    /// What is stored.
    pub data: u64,
    /// Descriptor of an eventfd, or -1 to have it stored no more.
    pub fd: i32,
    /// Nothing.
    pub reserved: u32,
}
layout!(Ioeventfd = "vfio_device_ioeventfd", 32, {
    argsz: 0, flags: 4, offset: 8, data: 16, fd: 24, reserved: 28,
});

/// `struct vfio_device_bind_iommufd`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct BindIommufd {
    /// Bytes set aside.
    pub argsz: u32,
    /// `VFIO_DEVICE_BIND_FLAG_TOKEN`
    pub flags: u32,
    /// Descriptor of `/dev/iommu`.
    pub iommufd: i32,
    /// Out: the device's id in that context.
    pub out_devid: u32,
    /// Address of a token, with the flag.
    pub token_uuid_ptr: u64,
}
layout!(BindIommufd = "vfio_device_bind_iommufd", 24, {
    argsz: 0, flags: 4, iommufd: 8, out_devid: 12, token_uuid_ptr: 16,
});

/// `struct vfio_pci_dependent_device`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct PciDependentDevice {
    /// Its group; with [`PCI_HOT_RESET_FLAG_DEV_ID`], its id in the context, or `PCI_DEVID_*`.
    pub id: u32,
    /// Segment.
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// Device and function.
    pub devfn: u8,
}
layout!(PciDependentDevice = "vfio_pci_dependent_device", 8, { id: 0, segment: 4, bus: 6, devfn: 7 });

/// `struct vfio_pci_hot_reset_info`, before its devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct PciHotResetInfo {
    /// Bytes set aside.
    pub argsz: u32,
    /// Out: `PCI_HOT_RESET_FLAG_*`.
    pub flags: u32,
    /// Out: how many devices there are.
    pub count: u32,
}
layout!(PciHotResetInfo = "vfio_pci_hot_reset_info", 12, { argsz: 0, flags: 4, count: 8 });

/// `struct vfio_pci_hot_reset`, before its descriptors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct PciHotReset {
    /// Bytes set aside.
    pub argsz: u32,
    /// Must be 0.
    pub flags: u32,
    /// How many descriptors of groups follow.
    pub count: u32,
}
layout!(PciHotReset = "vfio_pci_hot_reset", 12, { argsz: 0, flags: 4, count: 8 });

/// `struct vfio_device_attach_iommufd_pt`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct AttachIommufdPt {
    /// Bytes set aside.
    pub argsz: u32,
    /// `VFIO_DEVICE_ATTACH_PASID`
    pub flags: u32,
    /// In: address space or page table. Out: the page table.
    pub pt_id: u32,
    /// With the flag: for transactions with this PASID.
    pub pasid: u32,
}
layout!(AttachIommufdPt = "vfio_device_attach_iommufd_pt", 16, { argsz: 0, flags: 4, pt_id: 8, pasid: 12 });

/// `struct vfio_device_detach_iommufd_pt`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DetachIommufdPt {
    /// Bytes set aside.
    pub argsz: u32,
    /// `VFIO_DEVICE_DETACH_PASID`
    pub flags: u32,
    /// With the flag: for transactions with this PASID.
    pub pasid: u32,
}
layout!(DetachIommufdPt = "vfio_device_detach_iommufd_pt", 12, { argsz: 0, flags: 4, pasid: 8 });

const LAYOUTS: &[Layout] = &[
    DeviceInfo::LAYOUT,
    RegionInfo::LAYOUT,
    SparseMmap::LAYOUT,
    SparseMmapArea::LAYOUT,
    CapHeader::LAYOUT,
    IrqInfo::LAYOUT,
    IrqSet::LAYOUT,
    Ioeventfd::LAYOUT,
    BindIommufd::LAYOUT,
    PciDependentDevice::LAYOUT,
    PciHotResetInfo::LAYOUT,
    PciHotReset::LAYOUT,
    AttachIommufdPt::LAYOUT,
    DetachIommufdPt::LAYOUT,
];

/// What of the header is here.
pub(crate) const HEADER: Header = Header {
    path: "linux/vfio.h",
    layouts: &[LAYOUTS, container::LAYOUTS, feature::LAYOUTS, group::LAYOUTS],
    constants: &[CONSTANTS, container::CONSTANTS, feature::CONSTANTS, group::CONSTANTS],
};
