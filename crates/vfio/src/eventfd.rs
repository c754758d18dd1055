//! Signalling an eventfd that belongs to a program.
//!
//! The descriptor is a duplicate of the program's, so its flags are the program's too: a write blocks when the counter
//! is at its maximum, as it would for the program itself, and a program can fill it up whenever it likes. Linux's own
//! devices signal from inside the kernel, which saturates and never waits. User space reaches that by way of
//! asynchronous I/O: a request that names an eventfd signals it when it is done (io_submit(2), `IOCB_FLAG_RESFD`), and
//! a read of no bytes from `/dev/null` is done at once.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ReadWriteFlags};

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

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

    /// Adds 1 to the counter, which saturates. Does not wait.
    pub fn signal(&self) {
        let signalled = kernel().is_some_and(|kernel| kernel.signal(&self.0).is_ok());
        if !signalled {
            // No caller takes an error, and there is none that another attempt would mend.
            let _ = self.write();
        }
    }

    /// Takes the signals that there are; returns whether there were any. Does not wait.
    #[must_use]
    pub fn take(&self) -> bool {
        let mut count = [0; 8];
        let mut parts = [IoSliceMut::new(&mut count)];
        rustix::io::preadv2(&self.0, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT).is_ok()
    }

    /// Without asynchronous I/O, or room for one more request of it. A full counter stays as it is. Between look and
    /// write, a program that means to can fill the counter up; the write then waits until the program reads.
    fn write(&self) -> io::Result<()> {
        if self.is_ready(PollFlags::OUT) {
            rustix::io::write(&self.0, &1u64.to_ne_bytes())?;
        }
        Ok(())
    }

    /// The counter's value, without consuming it: how many signals the program has not read.
    pub(crate) fn unread(&self) -> u64 {
        if !self.is_ready(PollFlags::IN) {
            return 0;
        }
        // Without /proc, what poll said is all that is known: at least one.
        self.counter().unwrap_or(1)
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

/// Asynchronous I/O of this process, if the kernel has it (`CONFIG_AIO`) and nothing forbids it.
fn kernel() -> Option<&'static Kernel> {
    static KERNEL: OnceLock<Option<Kernel>> = OnceLock::new();
    KERNEL.get_or_init(|| Kernel::open().ok()).as_ref()
}

/// A context of asynchronous I/O, through which the kernel signals eventfds.
struct Kernel {
    context: libc::c_ulong,
    null: File,
}

/// Requests that may be done and not collected, at one time: one for each thread that signals. All processes of a
/// machine have 65,536 together (`fs.aio-max-nr`).
const REQUESTS: u32 = 128;

/// `struct iocb` of Linux `include/uapi/linux/aio_abi.h`, little-endian.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

const READ: u16 = 0;
const SIGNAL: u32 = 1 << 0;

/// `struct io_event` of the same.
type Event = [u64; 4];

#[allow(unsafe_code, reason = "asynchronous I/O has no safe wrapper")]
impl Kernel {
    fn open() -> io::Result<Self> {
        let (mut context, null): (libc::c_ulong, _) = (0, File::open("/dev/null")?);
        // SAFETY: `context` is zero, as it has to be, and is written.
        match unsafe { libc::syscall(libc::SYS_io_setup, REQUESTS, &raw mut context) } {
            0 => Ok(Self { context, null }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn signal(&self, eventfd: &OwnedFd) -> io::Result<()> {
        let mut request = Request {
            opcode: READ,
            file: self.null.as_raw_fd() as u32,
            flags: SIGNAL,
            eventfd: eventfd.as_raw_fd() as u32,
            ..Request::default()
        };
        let mut requests = [&raw mut request];
        // SAFETY: one request, which reads nothing, and so is done, and not looked at any more, when this returns.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, requests.as_mut_ptr()) };
        let error = io::Error::last_os_error();
        let mut events = [Event::default(); 2];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: room for two events. Whichever there are, of this thread or another, they are not needed.
        unsafe { libc::syscall(libc::SYS_io_getevents, self.context, 0, 2, events.as_mut_ptr(), &raw const now) };
        if submitted == 1 { Ok(()) } else { Err(error) }
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

    /// The most that a program can write (eventfd(2)); the kernel adds one more.
    const FULL: u64 = u64::MAX - 1;

    #[test]
    fn a_full_counter_saturates() {
        let (ours, theirs) = eventfd();
        rustix::io::write(&theirs, &FULL.to_ne_bytes()).unwrap();
        ours.signal();
        ours.signal();
        assert_eq!(read_eventfd(&theirs), u64::MAX);
        rustix::io::write(&theirs, &FULL.to_ne_bytes()).unwrap();
        ours.write().unwrap();
        assert_eq!(read_eventfd(&theirs), FULL, "without the kernel's help");
    }

    #[test]
    fn whoever_fills_the_counter_at_any_moment_holds_up_nobody() {
        let theirs = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let ours = EventFd::new(theirs.try_clone().unwrap()).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    (0..50_000).for_each(|_| ours.signal());
                    done.store(true, std::sync::atomic::Ordering::Release);
                });
            }
            // A write would wait as soon as it came between the filling and the reading.
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                if ours.is_ready(PollFlags::IN) {
                    rustix::io::read(&theirs, &mut [0; 8]).unwrap();
                }
                let _ = kernel().map(|_| fill(&theirs));
            }
        });
    }

    /// Fills the counter up, if no other thread signals at this moment.
    fn fill(theirs: &OwnedFd) {
        use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
        let flags = fcntl_getfl(theirs).unwrap();
        fcntl_setfl(theirs, flags | OFlags::NONBLOCK).unwrap();
        let _ = rustix::io::write(theirs, &FULL.to_ne_bytes());
        fcntl_setfl(theirs, flags).unwrap();
    }

    #[test]
    fn as_many_signals_as_threads_are_counted() {
        let (ours, theirs) = eventfd();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..5_000).for_each(|_| ours.signal()));
            }
        });
        assert_eq!(read_eventfd(&theirs), 40_000);
    }

    #[test]
    fn a_file_that_is_no_eventfd_is_refused() {
        let error = EventFd::new(File::open("/dev/null").unwrap().into()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    }
}
