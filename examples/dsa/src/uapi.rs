//! What is needed of `<linux/iommufd.h>`, `<linux/vfio.h>` and `<ioasid.h>`.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `_IO(';', n)`
const fn request(n: u32) -> u32 {
    0x3b00 | n
}

pub(crate) const VFIO_DEVICE_BIND_IOMMUFD: u32 = request(118);
pub(crate) const VFIO_DEVICE_ATTACH_IOMMUFD_PT: u32 = request(119);
pub(crate) const VFIO_DEVICE_DETACH_IOMMUFD_PT: u32 = request(120);
pub(crate) const VFIO_DEVICE_GET_REGION_INFO: u32 = request(108);
/// Of [`Attach::flags`] and [`Detach::flags`].
pub(crate) const ATTACH_PASID: u32 = 1;
/// The number of the configuration space, of those of regions.
pub(crate) const CONFIG: u32 = 7;

pub(crate) const IOASID_PASID_ALLOC: u32 = request(0xc0);
pub(crate) const IOASID_PASID_FREE: u32 = request(0xc1);
pub(crate) const IOASID_HWPT_ALLOC: u32 = request(0xc3);
pub(crate) const IOASID_ENQCMD: u32 = request(0xc9);
/// Of [`HwptAlloc::kind`].
pub(crate) const HWPT_SVA: u32 = 3;

#[repr(C)]
#[derive(Default)]
pub(crate) struct Bind {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) iommufd: i32,
    pub(crate) out_devid: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct Attach {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) pt_id: u32,
    pub(crate) pasid: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct Detach {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) pasid: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct RegionInfo {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) index: u32,
    pub(crate) cap_offset: u32,
    pub(crate) size: u64,
    pub(crate) offset: u64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct PasidAlloc {
    pub(crate) size: u32,
    pub(crate) flags: u32,
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) out_pasid: u32,
    pub(crate) reserved: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct PasidFree {
    pub(crate) size: u32,
    pub(crate) pasid: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct HwptAlloc {
    pub(crate) size: u32,
    pub(crate) flags: u32,
    pub(crate) kind: u32,
    pub(crate) dev_id: u32,
    pub(crate) pt_id: u32,
    pub(crate) pidfd: i32,
    pub(crate) format: u32,
    pub(crate) on_miss: u32,
    pub(crate) fault_id: u32,
    pub(crate) levels: u32,
    pub(crate) root: u64,
    pub(crate) pasid_bits: u32,
    pub(crate) without_pasid: u32,
    pub(crate) out_hwpt_id: u32,
    pub(crate) reserved: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct Enqcmd {
    pub(crate) size: u32,
    pub(crate) flags: u32,
    pub(crate) number: u32,
    pub(crate) pasid: u32,
}

/// The size of a structure, as the structures say it themselves.
pub(crate) const fn size_of<T>() -> u32 {
    std::mem::size_of::<T>() as u32
}

/// Makes a request.
pub(crate) fn ioctl<T>(file: &impl AsRawFd, number: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: each number goes with its structure.
    match unsafe { libc::ioctl(file.as_raw_fd(), number.into(), std::ptr::from_mut(argument)) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor of this process.
pub(crate) fn own_pidfd() -> io::Result<OwnedFd> {
    // SAFETY: takes numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    // SAFETY: the kernel has just made it for us.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }) }
}
