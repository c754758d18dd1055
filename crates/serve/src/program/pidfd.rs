//! A thread by a descriptor, which goes on to mean it when its number means another.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::status::process_of;

/// Lets `pidfd_open` take any thread's number (Linux 6.9); before, only that of a process.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// The pidfd of a thread, or of its process.
///
/// # Errors
/// `ESRCH` if there is none; those of pidfd_open(2).
pub(crate) fn pidfd_of(tid: u32) -> Result<OwnedFd, Errno> {
    let thread = Pid::from_raw(tid as i32).ok_or(Errno::SRCH)?;
    pidfd_open(thread, PidfdFlags::empty())
        .or_else(|_| pidfd_open(thread, PidfdFlags::from_bits_retain(PIDFD_THREAD)))
        .or_else(|_| {
            let process = process_of(tid).and_then(|pid| Pid::from_raw(pid as i32));
            pidfd_open(process.ok_or(Errno::SRCH)?, PidfdFlags::empty())
        })
}
