//! VFIO_DEVICE_FEATURE: what some devices can do, and others not.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, constants, layout};
use crate::{TYPE, io};

constants! {
    /// `VFIO_DEVICE_FEATURE`: [`DeviceFeature`]
    pub const DEVICE_FEATURE: u32 = io(TYPE, 117);

    /// `VFIO_DEVICE_FEATURE_MASK`: which feature.
    pub const MASK: u32 = 0xffff;
    /// `VFIO_DEVICE_FEATURE_GET`
    pub const GET: u32 = 1 << 16;
    /// `VFIO_DEVICE_FEATURE_SET`
    pub const SET: u32 = 1 << 17;
    /// `VFIO_DEVICE_FEATURE_PROBE`: only tells whether it is there.
    pub const PROBE: u32 = 1 << 18;

    /// `VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY`
    pub const LOW_POWER_ENTRY: u32 = 3;
    /// `VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP`: [`LowPowerEntryWithWakeup`]
    pub const LOW_POWER_ENTRY_WITH_WAKEUP: u32 = 4;
    /// `VFIO_DEVICE_FEATURE_LOW_POWER_EXIT`
    pub const LOW_POWER_EXIT: u32 = 5;
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`: [`DmaLoggingControl`]
    pub const DMA_LOGGING_START: u32 = 6;
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP`
    pub const DMA_LOGGING_STOP: u32 = 7;
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT`: [`DmaLoggingReport`]
    pub const DMA_LOGGING_REPORT: u32 = 8;
    /// `VFIO_DEVICE_FEATURE_DMA_BUF`: [`DmaBuf`]
    pub const DMA_BUF: u32 = 11;
    /// `VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2`
    pub const MIG_PRECOPY_INFO_V2: u32 = 12;
}

/// `struct vfio_device_feature`, without its data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DeviceFeature {
    /// Bytes set aside, data included.
    pub argsz: u32,
    /// Which feature, and what is to be done.
    pub flags: u32,
}
layout!(DeviceFeature = "vfio_device_feature", 8, { argsz: 0, flags: 4 });

/// `struct vfio_device_low_power_entry_with_wakeup`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct LowPowerEntryWithWakeup {
    /// Signalled when the device wakes.
    pub wakeup_eventfd: i32,
    /// 0
    pub reserved: u32,
}
layout!(LowPowerEntryWithWakeup = "vfio_device_low_power_entry_with_wakeup", 8, { wakeup_eventfd: 0, reserved: 4 });

/// `struct vfio_device_feature_dma_logging_control`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DmaLoggingControl {
    /// Bytes of a page that is logged; out: as the device logs them.
    pub page_size: u64,
    /// Number of ranges.
    pub num_ranges: u32,
    /// 0
    pub reserved: u32,
    /// Address of the ranges ([`DmaLoggingRange`]).
    pub ranges: u64,
}
layout!(DmaLoggingControl = "vfio_device_feature_dma_logging_control", 24, {
    page_size: 0, num_ranges: 8, reserved: 12, ranges: 16,
});

/// `struct vfio_device_feature_dma_logging_range`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DmaLoggingRange {
    /// Where it begins.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}
layout!(DmaLoggingRange = "vfio_device_feature_dma_logging_range", 16, { iova: 0, length: 8 });

/// `struct vfio_device_feature_dma_logging_report`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DmaLoggingReport {
    /// Where it begins.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes of a page that a bit stands for.
    pub page_size: u64,
    /// Address of the bits.
    pub bitmap: u64,
}
layout!(DmaLoggingReport = "vfio_device_feature_dma_logging_report", 32, {
    iova: 0, length: 8, page_size: 16, bitmap: 24,
});

/// `struct vfio_region_dma_range`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct RegionDmaRange {
    /// In the region.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}
layout!(RegionDmaRange = "vfio_region_dma_range", 16, { offset: 0, length: 8 });

/// `struct vfio_device_feature_dma_buf`; its ranges ([`RegionDmaRange`]) follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DmaBuf {
    /// Which BAR.
    pub region_index: u32,
    /// As of open(2).
    pub open_flags: u32,
    /// 0
    pub flags: u32,
    /// Number of ranges.
    pub nr_ranges: u32,
}
layout!(DmaBuf = "vfio_device_feature_dma_buf", 16, { region_index: 0, open_flags: 4, flags: 8, nr_ranges: 12 });

pub(super) const LAYOUTS: &[Layout] = &[
    DeviceFeature::LAYOUT,
    LowPowerEntryWithWakeup::LAYOUT,
    DmaLoggingControl::LAYOUT,
    DmaLoggingRange::LAYOUT,
    DmaLoggingReport::LAYOUT,
    RegionDmaRange::LAYOUT,
    DmaBuf::LAYOUT,
];
