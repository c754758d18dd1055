//! Signalling an eventfd that belongs to a program.
//!
//! The descriptor is a duplicate of the program's, so its flags are the program's too: a write could block when the
//! counter is at its maximum, as it would for the program itself. Linux's own signal saturates instead, and so does
//! ours: an eventfd that is not writable is left as it is, since it is readable already.
//!
//! Between looking and writing, a program that means to can fill the counter up, and the write then blocks until the
//! program reads. User space has no write that cannot: `RWF_NOWAIT` is refused for eventfds.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The most that an eventfd's counter can hold (eventfd(2)).
const COUNTER_MAX: u64 = u64::MAX - 1;

/// A descriptor that is known to be an eventfd.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Takes a descriptor, if it is an eventfd.
    ///
    /// # Errors
    /// `InvalidInput` (EINVAL, as in Linux) if it is something else; the error of `/proc` if it cannot be told.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if link.as_os_str() != "anon_inode:[eventfd]" {
            return Err(Errno::INVAL.into());
        }
        Ok(Self(fd))
    }

    /// Adds 1 to the counter. Never blocks on a program that lets the counter fill up.
    pub(crate) fn signal(&self) {
        if self.is_ready(PollFlags::OUT) {
            // Nobody is there to be told of an error, and there is none that another attempt would mend.
            let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
        }
    }

    /// The counter's value, without consuming it: how many signals the program has not read.
    pub(crate) fn unread(&self) -> u64 {
        if !self.is_ready(PollFlags::IN) {
            return 0;
        }
        // Without /proc, what poll said is all that is known: at least one.
        self.counter().unwrap_or(1).min(COUNTER_MAX)
    }

    /// The counter as /proc/PID/fdinfo shows it, in hexadecimal (proc_pid_fdinfo(5)).
    fn counter(&self) -> Option<u64> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd())).ok()?;
        let value = info.lines().find_map(|line| line.strip_prefix("eventfd-count:"))?;
        u64::from_str_radix(value.trim(), 16).ok()
    }

    fn is_ready(&self, what: PollFlags) -> bool {
        let mut fds = [PollFd::new(&self.0, what)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{eventfd, read_eventfd};

    #[test]
    fn unread_signals_are_counted_without_consuming_them() {
        let (ours, theirs) = eventfd();
        ours.signal();
        ours.signal();
        assert_eq!(ours.unread(), 2);
        assert_eq!(read_eventfd(&theirs), 2);
        assert_eq!(ours.unread(), 0);
    }

    #[test]
    fn a_full_counter_neither_blocks_nor_changes() {
        let (ours, theirs) = eventfd();
        rustix::io::write(&theirs, &COUNTER_MAX.to_ne_bytes()).unwrap();
        ours.signal();
        assert_eq!(read_eventfd(&theirs), COUNTER_MAX);
    }

    #[test]
    fn a_file_that_is_no_eventfd_is_refused() {
        let error = EventFd::new(fs::File::open("/dev/null").unwrap().into()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    }
}
