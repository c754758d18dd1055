//! Which process is at the other end of a socket.
#![allow(unsafe_code, reason = "a socket option that no crate knows")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A descriptor of the process that listened (`SO_PEERPIDFD`, Linux 6.5); `None` if it cannot be had.
pub(crate) fn process(socket: &OwnedFd) -> Option<OwnedFd> {
    const SO_PEERPIDFD: libc::c_int = 77;
    let (mut pidfd, mut length): (RawFd, _) = (-1, size_of::<RawFd>() as libc::socklen_t);
    // SAFETY: the kernel fills in as many bytes as it is told.
    let got = unsafe {
        let place = (&raw mut pidfd).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, place, &mut length)
    };
    // SAFETY: a new descriptor, which is this one's.
    (got == 0 && pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Its number.
fn number(process: &OwnedFd) -> Option<u32> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).ok()?;
    about.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}

/// Whether that process is this one.
pub(crate) fn is_this(process: &OwnedFd) -> bool {
    number(process) == Some(std::process::id())
}

/// Whether that process may be a server of one device, which can be ended: who starts others, this one among them, has
/// listened for another.
pub(crate) fn is_of_a_device(process: &OwnedFd) -> bool {
    number(process).is_some_and(|number| number > 1 && number != std::os::unix::process::parent_id())
}
