//! Requests on a group (`/dev/vfio/N`).

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, constants, layout};
use crate::{TYPE, io};

constants! {
    /// `VFIO_GROUP_GET_STATUS`: [`GroupStatus`]
    pub const GET_STATUS: u32 = io(TYPE, 103);
    /// `VFIO_GROUP_SET_CONTAINER`: address of a descriptor of a container, or of `/dev/iommu`.
    pub const SET_CONTAINER: u32 = io(TYPE, 104);
    /// `VFIO_GROUP_UNSET_CONTAINER`
    pub const UNSET_CONTAINER: u32 = io(TYPE, 105);
    /// `VFIO_GROUP_GET_DEVICE_FD`: address of a device's name, with options behind it.
    pub const GET_DEVICE_FD: u32 = io(TYPE, 106);

    /// `VFIO_GROUP_FLAGS_VIABLE`: nobody but VFIO uses a device of it.
    pub const FLAGS_VIABLE: u32 = 1 << 0;
    /// `VFIO_GROUP_FLAGS_CONTAINER_SET`
    pub const FLAGS_CONTAINER_SET: u32 = 1 << 1;
}

/// `struct vfio_group_status`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct GroupStatus {
    /// Bytes set aside.
    pub argsz: u32,
    /// Out: `FLAGS_*`.
    pub flags: u32,
}
layout!(GroupStatus = "vfio_group_status", 8, { argsz: 0, flags: 4 });

pub(super) const LAYOUTS: &[Layout] = &[GroupStatus::LAYOUT];
