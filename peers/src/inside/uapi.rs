//! The part of Linux's `include/uapi/linux/iommufd.h` and `vfio.h` that a driver of one device needs.
//!
//! Every structure begins with its size, which [`call`] fills in.
#![allow(unsafe_code, reason = "ioctls")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};

/// A structure that is the argument of one request.
///
/// # Safety
/// The type must be laid out as C lays out the argument of request [`Request::NUMBER`], begin with the `u32` that says
/// how large it is, and hold no addresses but of memory that the request may use as it does.
pub unsafe trait Request: Default {
    /// Name of the request, for messages.
    const NAME: &'static str;
    /// Its number.
    const NUMBER: libc::c_ulong;
}

/// Makes a request on `fd`. The answer is in `argument` afterwards.
///
/// # Errors
/// Of the ioctl.
pub fn call<T: Request>(fd: &OwnedFd, argument: &mut T) -> Result<()> {
    // SAFETY: by the promise of `Request` the structure begins with a u32, and it is large enough for the request.
    let result = unsafe {
        std::ptr::from_mut(argument).cast::<u32>().write(size_of::<T>() as u32);
        libc::ioctl(fd.as_raw_fd(), T::NUMBER, std::ptr::from_mut(argument))
    };
    if result < 0 { Err(io::Error::last_os_error()).context(T::NAME) } else { Ok(()) }
}

/// Declares structures, each with its size in the kernel's header, and their requests: `_IO(';', number)`.
macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident = $request:literal, $number:literal, $size:literal
        { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Default)]
        #[repr(C)]
        pub struct $name {
            /// Of the structure; `call` fills it in.
            pub size: u32,
            $(pub $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: the layout is that of the header, which the size is taken from. The addresses that are in any
        // of these come from `Shared`, whose memory may be written by others at any time.
        unsafe impl Request for $name {
            const NAME: &'static str = $request;
            const NUMBER: libc::c_ulong = (b';' as libc::c_ulong) << 8 | $number;
        }
    )*};
}

requests! {
    /// `struct iommu_destroy`
    Destroy = "IOMMU_DESTROY", 0x80, 8 { id: u32 }
    /// `struct iommu_ioas_alloc`
    IoasAlloc = "IOMMU_IOAS_ALLOC", 0x81, 12 { flags: u32, out_ioas_id: u32 }
    /// `struct iommu_ioas_iova_ranges`
    IoasIovaRanges = "IOMMU_IOAS_IOVA_RANGES", 0x84, 32
        { ioas_id: u32, num_iovas: u32, reserved: u32, allowed_iovas: u64, out_iova_alignment: u64 }
    /// `struct iommu_ioas_copy`
    IoasCopy = "IOMMU_IOAS_COPY", 0x83, 40
        { flags: u32, dst_ioas_id: u32, src_ioas_id: u32, length: u64, dst_iova: u64, src_iova: u64 }
    /// `struct iommu_ioas_map`
    IoasMap = "IOMMU_IOAS_MAP", 0x85, 40
        { flags: u32, ioas_id: u32, reserved: u32, user_va: u64, length: u64, iova: u64 }
    /// `struct iommu_ioas_unmap`
    IoasUnmap = "IOMMU_IOAS_UNMAP", 0x86, 24 { ioas_id: u32, iova: u64, length: u64 }
    /// `struct vfio_region_info`
    RegionInfo = "VFIO_DEVICE_GET_REGION_INFO", 108, 32
        { flags: u32, index: u32, cap_offset: u32, size_of_region: u64, offset: u64 }
    /// `struct vfio_device_bind_iommufd`
    BindIommufd = "VFIO_DEVICE_BIND_IOMMUFD", 118, 24
        { flags: u32, iommufd: i32, out_devid: u32, token_uuid_ptr: u64 }
    /// `struct vfio_device_attach_iommufd_pt`
    AttachIommufdPt = "VFIO_DEVICE_ATTACH_IOMMUFD_PT", 119, 16 { flags: u32, pt_id: u32, pasid: u32 }
}

/// `IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE`; without `IOMMU_IOAS_MAP_FIXED_IOVA` the IOVA is chosen for us.
pub const MAP_READ_WRITE: u32 = 1 << 1 | 1 << 2;
/// `IOMMU_IOAS_MAP_FIXED_IOVA`
pub const MAP_FIXED: u32 = 1 << 0;
/// `VFIO_PCI_BAR0_REGION_INDEX`
pub const BAR0: u32 = 0;
/// `VFIO_PCI_BAR2_REGION_INDEX`
pub const BAR2: u32 = 2;
/// `VFIO_PCI_CONFIG_REGION_INDEX`
pub const CONFIG: u32 = 7;
