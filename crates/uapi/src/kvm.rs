//! `include/uapi/linux/kvm.h`, as far as it is about VFIO: which devices a virtual machine has.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Header, Layout, constants, layout};

constants! {
    /// `KVM_SET_DEVICE_ATTR`: [`DeviceAttr`]
    pub const SET_DEVICE_ATTR: u32 = 0x4018_aee1;
    /// `KVM_DEV_VFIO_FILE`: [`DeviceAttr::group`] of a group, or a device.
    pub const DEV_VFIO_FILE: u32 = 1;
    /// `KVM_DEV_VFIO_FILE_ADD`
    pub const DEV_VFIO_FILE_ADD: u64 = 1;
    /// `KVM_DEV_VFIO_FILE_DEL`
    pub const DEV_VFIO_FILE_DEL: u64 = 2;
}

/// `struct kvm_device_attr`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DeviceAttr {
    /// Nothing.
    pub flags: u32,
    /// What it is about.
    pub group: u32,
    /// Which of that.
    pub attr: u64,
    /// Address of the value.
    pub addr: u64,
}
layout!(DeviceAttr = "kvm_device_attr", 24, { flags: 0, group: 4, attr: 8, addr: 16 });

/// What of the header is here.
pub(crate) const HEADER: Header =
    Header { path: "linux/kvm.h", layouts: &[&[DeviceAttr::LAYOUT] as &[Layout]], constants: &[CONSTANTS] };
