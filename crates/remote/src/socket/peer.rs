//! Which process is at the other end of a socket.
#![allow(unsafe_code, reason = "a socket option that no crate knows")]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Signal, pidfd_send_signal};

use super::ready;

/// The process that listened, and has whatever it was passed until it ends.
#[derive(Debug)]
pub(crate) struct Process(OwnedFd);

impl Process {
    /// That of a socket (`SO_PEERPIDFD`, Linux 6.5); `None` if it cannot be told.
    pub(crate) fn of(socket: &OwnedFd) -> Option<Self> {
        const SO_PEERPIDFD: libc::c_int = 77;
        let (mut pidfd, mut length): (RawFd, _) = (-1, size_of::<RawFd>() as libc::socklen_t);
        // SAFETY: the kernel fills in as many bytes as it is told.
        let got = unsafe {
            let place = (&raw mut pidfd).cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, place, &mut length)
        };
        // SAFETY: a new descriptor, which is this one's.
        (got == 0 && pidfd >= 0).then(|| Self(unsafe { OwnedFd::from_raw_fd(pidfd) }))
    }

    /// Its number.
    fn number(&self) -> Option<u32> {
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd())).ok()?;
        about.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
    }

    /// Whether it may be a server of one device, which can be ended. This process's parent, and the first process, may
    /// have listened for a server that they start.
    pub(crate) fn is_of_a_device(&self) -> bool {
        self.number().is_some_and(|number| number > 1 && number != std::os::unix::process::parent_id())
    }

    /// Whether it ends in time, with all that it has mapped.
    pub(crate) fn has_exited(&self, patience: Duration) -> bool {
        ready(self.0.as_fd(), PollFlags::IN, Some(Instant::now() + patience)).unwrap_or(false)
    }

    /// Ends it, unless it is this one.
    pub(crate) fn kill(&self) {
        if self.number() != Some(std::process::id()) {
            let _ = pidfd_send_signal(&self.0, Signal::KILL);
        }
    }
}
