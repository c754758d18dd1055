//! Where things are in BAR 4, and what the common configuration consists of (4.1.4).

use crate::registers::registers;

/// The BAR that all structures are in.
pub(super) const BAR: u8 = 4;
/// Bytes of it.
pub(super) const SIZE: u64 = 0x4000;
/// Bytes between one structure and the next.
pub(super) const PART: u64 = 0x1000;
/// The common configuration.
pub(super) const COMMON: u64 = 0;
/// The interrupt status, of a byte.
pub(super) const ISR: u64 = PART;
/// The device's own configuration.
pub(super) const CONFIGURATION: u64 = 2 * PART;
/// Where queues are notified.
pub(super) const NOTIFY: u64 = 3 * PART;
/// From the place of one queue's notifications to the next.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// No vector (VIRTIO_MSI_NO_VECTOR).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// What a capability says the place of (VIRTIO_PCI_CAP_…).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Structure {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    Window = 5,
}

registers! {
    /// A register of the common configuration.
    pub enum Register in BAR 4 {
        /// Which 32 of the device's features are shown.
        DeviceFeatureSelect = "device_feature_select" at 0x00, 4 bytes, ReadWrite, reset 0;
        /// Those.
        DeviceFeature = "device_feature" at 0x04, 4 bytes, ReadOnly, reset 0;
        /// Which 32 of the driver's features are shown.
        DriverFeatureSelect = "driver_feature_select" at 0x08, 4 bytes, ReadWrite, reset 0;
        /// Those.
        DriverFeature = "driver_feature" at 0x0c, 4 bytes, ReadWrite, reset 0;
        /// The vector for changes of the configuration.
        ConfigMsixVector = "config_msix_vector" at 0x10, 2 bytes, ReadWrite, reset NO_VECTOR as u64;
        /// How many queues there are.
        NumQueues = "num_queues" at 0x12, 2 bytes, ReadOnly, reset 0;
        /// See [`status`].
        DeviceStatus = "device_status" at 0x14, 1 bytes, ReadWrite, reset 0;
        /// Changes with the configuration.
        ConfigGeneration = "config_generation" at 0x15, 1 bytes, ReadOnly, reset 0;
        /// Which queue the registers from here on are of.
        QueueSelect = "queue_select" at 0x16, 2 bytes, ReadWrite, reset 0;
        /// Its entries; 0 if there is no such queue.
        QueueSize = "queue_size" at 0x18, 2 bytes, ReadWrite, reset 0;
        /// Its vector.
        QueueMsixVector = "queue_msix_vector" at 0x1a, 2 bytes, ReadWrite, reset NO_VECTOR as u64;
        /// Whether it is used.
        QueueEnable = "queue_enable" at 0x1c, 2 bytes, ReadWrite, reset 0;
        /// Where it is notified, in multiples.
        QueueNotifyOff = "queue_notify_off" at 0x1e, 2 bytes, ReadOnly, reset 0;
        /// Where its descriptors are.
        QueueDesc = "queue_desc" at 0x20, 8 bytes, ReadWrite, reset 0;
        /// Where the driver's ring is.
        QueueDriver = "queue_driver" at 0x28, 8 bytes, ReadWrite, reset 0;
        /// Where the device's ring is.
        QueueDevice = "queue_device" at 0x30, 8 bytes, ReadWrite, reset 0;
    }
}

/// Bits of [`Register::DeviceStatus`] (2.1).
pub mod status {
    /// The driver is done with features.
    pub const FEATURES_OK: u8 = 8;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The device is not, and has to be reset.
    pub const NEEDS_RESET: u8 = 64;
}
