//! Words in a file that two processes have.
#![cfg_attr(not(any(loom, shuttle)), allow(unsafe_code, reason = "mmap"))]

#[cfg(not(any(loom, shuttle)))]
pub(super) use mapped::Words;
#[cfg(any(loom, shuttle))]
pub(crate) use model::Words;

/// What the other process may do with the words.
#[cfg(not(any(loom, shuttle)))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// It reads them.
    Read,
    /// It reads and writes them.
    Write,
}

#[cfg(not(any(loom, shuttle)))]
mod mapped {
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
    use std::ptr::{self, NonNull};

    use rustix::fs::{MemfdFlags, SealFlags};
    use rustix::mm::{MapFlags, ProtFlags};

    use super::Others;
    use crate::base::sync::AtomicU64;

    /// A mapping of a memfd that cannot be cut short.
    #[derive(Debug)]
    pub(in super::super) struct Words {
        start: NonNull<AtomicU64>,
        count: usize,
    }

    // SAFETY: the mapping belongs to no thread, and its words are only used as atomics.
    unsafe impl Send for Words {}
    // SAFETY: as above.
    unsafe impl Sync for Words {}

    impl Words {
        /// New words, all zero, and the file for the others.
        pub(in super::super) fn create(count: usize, others: Others) -> io::Result<(Self, OwnedFd)> {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(rustix::fs::memfd_create(c"ioasid-gate", flags)?);
            file.set_len(bytes(count) as u64)?;
            let words = Self::map(file.as_fd(), count, ProtFlags::READ | ProtFlags::WRITE)?;
            let mut seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            if others == Others::Write {
                rustix::fs::fcntl_add_seals(&file, seals)?;
                return Ok((words, file.into()));
            }
            // The mapping that there is stays writable, and there will be no other.
            seals |= SealFlags::FUTURE_WRITE;
            rustix::fs::fcntl_add_seals(&file, seals)?;
            let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
            Ok((words, file.into()))
        }

        /// Those of another process, to be read or to be written.
        ///
        /// # Errors
        /// `InvalidInput` if there are not so many, or the file could be cut short or has large pages; of `mmap`.
        pub(in super::super) fn open(file: BorrowedFd<'_>, count: usize, others: Others) -> io::Result<Self> {
            let seals = rustix::fs::fcntl_get_seals(file).map_err(|_| io::ErrorKind::InvalidInput)?;
            let about = rustix::fs::fstat(file)?;
            // Of a file with larger pages, a hole would be an error, and could not be unmapped in part.
            let is_plain = about.st_blksize == 4096;
            if !is_plain || !seals.contains(SealFlags::SHRINK) || (about.st_size as u64) < bytes(count) as u64 {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let write = if others == Others::Write { ProtFlags::WRITE } else { ProtFlags::empty() };
            Self::map(file, count, ProtFlags::READ | write)
        }

        fn map(file: BorrowedFd<'_>, count: usize, access: ProtFlags) -> io::Result<Self> {
            // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
            let start = unsafe { rustix::mm::mmap(ptr::null_mut(), bytes(count), access, MapFlags::SHARED, file, 0) }?;
            let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(Self { start, count })
        }

        /// One of them, which is to be there.
        #[inline]
        pub(in super::super) fn at(&self, index: usize) -> &AtomicU64 {
            assert!(index < self.count);
            // SAFETY: the mapping has so many words as long as this lives, and the file cannot be cut short; all code
            // that uses them uses atomics. Those that are to be read only, nothing here writes.
            unsafe { self.start.add(index).as_ref() }
        }
    }

    impl Drop for Words {
        fn drop(&mut self) {
            // SAFETY: the mapping is ours, and all borrows of it have ended.
            let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), bytes(self.count)) };
            debug_assert!(unmapped.is_ok());
        }
    }

    fn bytes(count: usize) -> usize {
        (count * size_of::<AtomicU64>()).next_multiple_of(4096)
    }
}

/// For model checkers, which know no memory but their own.
#[cfg(any(loom, shuttle))]
mod model {
    use std::sync::Arc;

    use crate::base::sync::AtomicU64;

    #[derive(Debug, Clone)]
    pub(crate) struct Words(Arc<Vec<AtomicU64>>);

    impl Words {
        pub(crate) fn new(count: usize) -> Self {
            Self(Arc::new((0..count).map(|_| AtomicU64::new(0)).collect()))
        }

        pub(in super::super) fn at(&self, index: usize) -> &AtomicU64 {
            &self.0[index]
        }
    }
}
