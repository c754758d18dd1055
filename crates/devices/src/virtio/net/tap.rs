//! A tap of the kernel's (Documentation/networking/tuntap.rst).
#![allow(unsafe_code, reason = "an ioctl that no crate knows")]

use std::ffi::{c_char, c_short};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open as open_file};

/// What TUNSETIFF takes.
#[repr(C)]
struct Request {
    name: [c_char; libc::IFNAMSIZ],
    flags: c_short,
    rest: [u8; 22],
}

/// Opens the tap with this name, or makes it.
///
/// # Errors
/// Of the kernel: without CAP_NET_ADMIN there has to be one that is this user's.
pub(super) fn open(name: &str) -> io::Result<OwnedFd> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name has 15 bytes at the most"));
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap = open_file("/dev/net/tun", flags, Mode::empty())?;
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as c_short;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    request.name.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte.cast_signed());
    // SAFETY: the structure is the one that the request takes, and outlives the call.
    match unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(tap),
        _ => Err(io::Error::last_os_error()),
    }
}
