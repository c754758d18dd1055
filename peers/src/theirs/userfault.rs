//! Linux's userfaultfd: pages of this process that are missing until somebody gives them.
//!
//! Source: `include/uapi/linux/userfaultfd.h`, `ioctl_userfaultfd(2)`.
#![allow(unsafe_code, reason = "ioctl, mmap, and reads of memory that comes from elsewhere")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail, ensure};
use rustix::mm::{Advice, UserfaultfdFlags};

use crate::memory::Shared;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// What is in a page.
pub type Content = [u64; PAGE / 8];

/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFDIO_API`, of 24 bytes.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `UFFDIO_REGISTER`, of 32 bytes.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `UFFDIO_UNREGISTER`, of 16 bytes.
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
/// `UFFDIO_COPY`, of 40 bytes.
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MODE_MISSING: u64 = 1;
/// `UFFD_EVENT_PAGEFAULT`.
const EVENT_PAGEFAULT: u8 = 0x12;
/// Bytes of a `struct uffd_msg`, and where the address is in one.
const MESSAGE: usize = 32;
const ADDRESS: usize = 16;

/// Memory with pages that are missing.
pub struct Userfault {
    file: File,
    memory: Shared,
}

// SAFETY: the mapping belongs to no thread, and its bytes are only read one word at a time.
unsafe impl Sync for Userfault {}

impl Userfault {
    /// So many `pages`, all missing. With `polled`, [`Userfault::next`] does not wait.
    ///
    /// # Errors
    /// If the kernel does not let this user have a userfaultfd, or of the calls.
    pub fn new(pages: u32, polled: bool) -> Result<Self> {
        let mut flags = UserfaultfdFlags::CLOEXEC;
        flags.set(UserfaultfdFlags::NONBLOCK, polled);
        // SAFETY: nothing can be done by it to memory that is not registered below.
        let file = match unsafe { rustix::mm::userfaultfd(flags) } {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::PERM) => {
                bail!("userfaultfd is not allowed: be root, or `sysctl vm.unprivileged_userfaultfd=1`")
            }
            Err(rustix::io::Errno::NOSYS) => {
                bail!("this kernel has no userfaultfd: use one with CONFIG_USERFAULTFD")
            }
            Err(error) => return Err(error).context("userfaultfd"),
        };
        let memory = Shared::private(pages as usize * PAGE)?;
        let this = Self { file, memory };
        this.ioctl("UFFDIO_API", UFFDIO_API, &mut [API, 0, 0])?;
        let [start, length] = this.range();
        this.ioctl("UFFDIO_REGISTER", UFFDIO_REGISTER, &mut [start, length, MODE_MISSING, 0])?;
        Ok(this)
    }

    fn range(&self) -> [u64; 2] {
        [self.memory.start().addr().get() as u64, self.memory.length() as u64]
    }

    /// A request whose structure is nothing but words.
    fn ioctl<const N: usize>(&self, name: &'static str, request: libc::c_ulong, words: &mut [u64; N]) -> Result<()> {
        // SAFETY: the structure is as long as the request says, and what it names is this mapping, of which nobody
        // expects anything else, and for a copy a page that is borrowed.
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), request, words.as_mut_ptr()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()).context(name) }
    }

    /// Makes all pages missing.
    ///
    /// # Errors
    /// Of `madvise`.
    pub fn forget(&self) -> Result<()> {
        let (start, length) = (self.memory.start().as_ptr(), self.memory.length());
        // SAFETY: the mapping is ours, and nobody has references into it.
        Ok(unsafe { rustix::mm::madvise(start.cast(), length, Advice::LinuxDontNeed) }?)
    }

    /// The first word of `page`, when it is there.
    #[inline]
    pub fn touch(&self, page: u32) -> u64 {
        assert!((page as usize) < self.memory.length() / PAGE);
        // SAFETY: inside the mapping, and aligned, as pages are. Volatile, as it is to be read now.
        unsafe { self.memory.start().cast::<u64>().add(page as usize * (PAGE / 8)).read_volatile() }
    }

    /// The next page that is waited for; `None` if there is none yet, or a signal came.
    ///
    /// # Errors
    /// Of `read`, or if there is something else to be read.
    #[inline]
    pub fn next(&self) -> Result<Option<u32>> {
        let mut message = [0; MESSAGE];
        match (&self.file).read(&mut message) {
            Ok(MESSAGE) => {}
            Ok(length) => bail!("a message of {length} bytes"),
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) => {
                return Ok(None);
            }
            Err(error) => return Err(error).context("userfaultfd"),
        }
        let (event, [start, _]) = (message[0], self.range());
        ensure!(event == EVENT_PAGEFAULT, "event {event:#x}, which was not asked for");
        let address = message[ADDRESS..].first_chunk().copied().map_or(0, u64::from_ne_bytes);
        Ok(Some(((address - start) / PAGE as u64) as u32))
    }

    /// Gives `content` to whoever waits for `page`.
    ///
    /// # Errors
    /// Of the request; also if the page was there already.
    #[inline]
    pub fn give(&self, page: u32, content: &Content) -> Result<()> {
        let to = self.range()[0] + u64::from(page) * PAGE as u64;
        let from = content.as_ptr().expose_provenance() as u64;
        self.ioctl("UFFDIO_COPY", UFFDIO_COPY, &mut [to, from, PAGE as u64, 0, 0])
    }

    /// Has the kernel fill whatever is missing with zeros, for good: nobody waits any more.
    pub fn give_up(&self) {
        // If even that fails, there is nothing else to try.
        let _ = self.ioctl("UFFDIO_UNREGISTER", UFFDIO_UNREGISTER, &mut self.range());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_waited_for_until_it_is_given_and_missing_again_when_it_is_forgotten() {
        // Where it is not allowed, there is nothing to be measured either.
        let Ok(userfault) = Userfault::new(2, false) else { return };
        for content in [[5; PAGE / 8], [6; PAGE / 8]] {
            userfault.forget().unwrap();
            std::thread::scope(|scope| {
                let touched = scope.spawn(|| userfault.touch(1));
                assert_eq!(userfault.next().unwrap(), Some(1));
                userfault.give(1, &content).unwrap();
                assert_eq!(touched.join().unwrap(), content[0]);
            });
        }
        userfault.give_up();
        assert_eq!((userfault.touch(0), userfault.touch(1)), (0, 6));
    }
}
