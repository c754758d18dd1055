//! Descriptors that a request gives the thread that makes it.
#![allow(unsafe_code, reason = "seccomp's ioctls have no safe wrappers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;

/// Sets a descriptor of the thread aside whose system call has this `id` on `listener`, and returns its number. What is
/// there until a file is given can do nothing.
///
/// # Errors
/// `EMFILE` and the like.
pub(super) fn reserve(listener: &OwnedFd, id: u64) -> Result<i32, Errno> {
    // A set of nothing to wait for: it cannot be read or written.
    let nothing = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    add(listener, id, nothing)
}

/// Gives the thread a descriptor of a file, closed on exec, and returns the number.
///
/// # Errors
/// `EMFILE` and the like.
pub(super) fn add(listener: &OwnedFd, id: u64, file: impl AsFd) -> Result<i32, Errno> {
    install(listener, id, file, None)
}

/// Puts `file` in place of the descriptor `number`, which was set aside.
///
/// # Errors
/// Of the system call.
pub(super) fn give(listener: &OwnedFd, id: u64, file: impl AsFd, number: i32) -> Result<(), Errno> {
    install(listener, id, file, Some(number)).map(drop)
}

fn install(listener: &OwnedFd, id: u64, file: impl AsFd, in_place_of: Option<i32>) -> Result<i32, Errno> {
    let add = libc::seccomp_notif_addfd {
        id,
        flags: if in_place_of.is_some() { libc::SECCOMP_ADDFD_FLAG_SETFD as u32 } else { 0 },
        srcfd: file.as_fd().as_raw_fd() as u32,
        newfd: in_place_of.unwrap_or(0) as u32,
        newfd_flags: libc::O_CLOEXEC as u32,
    };
    // SAFETY: the structure is the one that the request number was made from, and outlives the call.
    let number = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const add) };
    if number < 0 { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::MFILE)) } else { Ok(number) }
}
