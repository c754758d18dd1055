//! A userfaultfd(2) of a process, which tells of memory that the process unmaps, moves or drops.
//!
//! The system call by which the process does so returns when the news of it has been read. Nothing else of the process
//! changes: the memory is registered for write protection, and no page is ever protected.
//!
//! Source: `Documentation/admin-guide/mm/userfaultfd.rst` and `include/uapi/linux/userfaultfd.h` of Linux 6.18.
#![allow(unsafe_code, reason = "ioctls with structures, and a read that does not wait")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::memory::Vma;

/// What has become of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It was unmapped, or its content was dropped: first address, and one past the last.
    Gone(u64, u64),
    /// It is at another address now: from, to, and number of bytes.
    Moved(u64, u64, u64),
}

const API: libc::Ioctl = request(0x3f, size_of::<ApiArgument>(), 3);
const REGISTER: libc::Ioctl = request(0x00, size_of::<RegisterArgument>(), 3);
const UNREGISTER: libc::Ioctl = request(0x01, size_of::<RangeArgument>(), 2);
const ZEROPAGE: libc::Ioctl = request(0x04, size_of::<ZeropageArgument>(), 3);

const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;

/// Events of mremap(2), madvise(2) and munmap(2); and write protection of any memory, which needs no handler.
const FEATURES: u64 = 1 << 2 | 1 << 3 | 1 << 6 | 1 << 15;
const MODE_WP: u64 = 1 << 1;

#[repr(C)]
struct ApiArgument {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct RangeArgument {
    start: u64,
    length: u64,
}

#[repr(C)]
struct RegisterArgument {
    range: RangeArgument,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct ZeropageArgument {
    range: RangeArgument,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    arguments: [u64; 3],
}

/// The number of an ioctl: 1 says that the argument is read here, 2 that it is written, 3 both.
const fn request(number: u32, length: usize, direction: u32) -> libc::Ioctl {
    (direction << 30 | (length as u32) << 16 | 0xaa << 8 | number) as libc::Ioctl
}

/// One that was enabled here.
pub(super) struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// Enables a userfaultfd that its process has not enabled.
    ///
    /// # Errors
    /// `EINVAL` if it is none, or enabled already, or if the kernel cannot tell what is needed; `EOPNOTSUPP` if it
    /// cannot be read without waiting, as before Linux 6.10: a process that kept it could have this one wait for ever.
    pub(super) fn enable(file: OwnedFd) -> io::Result<Self> {
        let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if name.as_os_str() != "anon_inode:[userfaultfd]" {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let this = Self(file);
        this.ioctl(API, &mut ApiArgument { api: 0xaa, features: FEATURES, ioctls: 0 })?;
        match this.read() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(this),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// Follows a mapping from now on.
    ///
    /// # Errors
    /// Of the system call: `EBUSY` if the process follows it by a userfaultfd of its own.
    pub(super) fn follow(&self, vma: &Vma) -> io::Result<()> {
        let range = RangeArgument { start: vma.start, length: vma.end - vma.start };
        self.ioctl(REGISTER, &mut RegisterArgument { range, mode: MODE_WP, ioctls: 0 })
    }

    /// Follows a mapping no longer.
    pub(super) fn forget(&self, vma: &Vma) {
        let mut range = RangeArgument { start: vma.start, length: vma.end - vma.start };
        // What is not there any more is not followed either.
        let _ = self.ioctl(UNREGISTER, &mut range);
    }

    /// Whether a system call is under way that changes what is followed, and of which the news has not been read.
    pub(super) fn is_changing(&self) -> bool {
        // The kernel looks at that first, and refuses a length of 0 then.
        let range = RangeArgument { start: 0, length: 0 };
        let refused = self.ioctl(ZEROPAGE, &mut ZeropageArgument { range, mode: 0, done: 0 });
        refused.is_err_and(|error| error.raw_os_error() == Some(libc::EAGAIN))
    }

    /// The next news, if there is some. The system call that it is of returns.
    pub(super) fn next(&self) -> Option<Change> {
        loop {
            let Message { event, arguments: [first, second, third], .. } = self.read().ok()?;
            match event {
                EVENT_REMOVE | EVENT_UNMAP => return Some(Change::Gone(first, second)),
                EVENT_REMAP => return Some(Change::Moved(first, second, third)),
                // No other was asked for.
                _ => {}
            }
        }
    }

    fn read(&self) -> io::Result<Message> {
        let mut message = Message { event: 0, reserved: [0; 7], arguments: [0; 3] };
        let into = libc::iovec { iov_base: (&raw mut message).cast(), iov_len: size_of::<Message>() };
        // The process may have made reads of it wait, or read the news itself.
        // SAFETY: one buffer of plain integers, of that length.
        let read = unsafe { libc::preadv2(self.0.as_raw_fd(), &into, 1, -1, libc::RWF_NOWAIT) };
        match usize::try_from(read) {
            Ok(length) if length == size_of::<Message>() => Ok(message),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    fn ioctl<T>(&self, number: libc::Ioctl, argument: &mut T) -> io::Result<()> {
        // SAFETY: each number goes with the structure that it was made from, of plain integers.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), number, argument) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
