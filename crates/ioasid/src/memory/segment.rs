//! What a run of bytes is made of.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::PAGE_SIZE;
use super::file_map::{FileMap, Part};
use super::guard::{Entry, GuardedMap};
use super::identity::Identity;
use crate::base::callback;

/// Memory that cannot be mapped here and is copied to and from.
pub trait RemoteMemory: Send + Sync {
    /// Copies `data.len()` bytes from `address` there.
    ///
    /// # Errors
    /// Of the system call, and `UnexpectedEof` if the memory is gone. Some bytes may have been copied.
    fn read(&self, address: u64, data: &mut [u8]) -> io::Result<()>;

    /// Copies `data` to `address` there.
    ///
    /// # Errors
    /// As [`RemoteMemory::read`].
    fn write(&self, address: u64, data: &[u8]) -> io::Result<()>;

    /// Devices are to find its first byte at `iova`, and perhaps elsewhere: for messages about it.
    fn mapped_at(&self, _iova: u64) {}

    /// Devices no longer need `length` bytes at `address` there, both multiples of the page size, nor will they.
    fn given_back(&self, _address: u64, _length: u64) {}

    /// Which memory is at `address` there, if that can be told.
    fn identity(&self, _address: u64) -> Option<Identity> {
        None
    }
}

/// Where bytes begin in a file, so that another process can map them.
#[derive(Debug, Clone)]
pub struct FileRange {
    /// The file.
    pub file: Arc<File>,
    /// The first byte.
    pub offset: u64,
}

/// What the bytes of a window are.
#[derive(Clone)]
pub(crate) enum Backing {
    /// Bytes in this process; `keep` holds them there.
    Local {
        start: NonNull<u8>,
        guard: Option<&'static Entry>,
        writable: bool,
        /// Where else they are.
        file: Option<FileRange>,
        keep: Arc<dyn Any + Send + Sync>,
    },
    /// Bytes elsewhere.
    Remote { memory: Arc<dyn RemoteMemory>, address: u64 },
}

#[allow(unsafe_code, reason = "memory that is shared by design: a pointer, and copies")]
mod shared {
    use std::io;
    use std::ptr::{self, NonNull};

    use super::super::lost_at;
    use super::Backing;

    /// Copies from what is `offset` bytes behind the start of a backing, which goes on for as long.
    pub(super) fn copy_from(start: NonNull<u8>, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let source = start.as_ptr().wrapping_add(offset as usize);
        // SAFETY: the bytes are there as long as the backing is, and no code has a reference to them.
        unsafe { ptr::copy(source, data.as_mut_ptr(), data.len()) };
        check(source, data.len())
    }

    /// What is `offset` bytes behind the start of a backing, which goes on for as long.
    pub(super) fn after(start: NonNull<u8>, offset: u64) -> NonNull<u8> {
        // SAFETY: within what `start` is the start of.
        unsafe { start.add(offset as usize) }
    }

    /// Copies to what is `offset` bytes behind the start of a backing, which goes on for as long and can be written.
    pub(super) fn copy_to(start: NonNull<u8>, offset: u64, data: &[u8]) -> io::Result<()> {
        let target = start.as_ptr().wrapping_add(offset as usize);
        // SAFETY: as above.
        unsafe { ptr::copy(data.as_ptr(), target, data.len()) };
        check(target, data.len())
    }

    fn check(start: *mut u8, length: usize) -> io::Result<()> {
        if lost_at(start.addr(), length) { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    // SAFETY: the pointer is only ever used for copies of plain bytes, which may race with any other user of the same
    // memory as a device's DMA may; `Segment::local` makes its caller promise that the memory stays, and `keep` does
    // so for the rest.
    unsafe impl Send for Backing {}
    // SAFETY: as above.
    unsafe impl Sync for Backing {}
}

impl Backing {
    /// Copies from `offset` bytes on.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Local { start, .. } => shared::copy_from(*start, offset, data),
            Self::Remote { memory, address } => callback::call(|| memory.read(address + offset, data)),
        }
    }

    /// Copies to `offset` bytes on.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Local { writable: false, .. } => Err(io::ErrorKind::PermissionDenied.into()),
            Self::Local { start, .. } => shared::copy_to(*start, offset, data),
            Self::Remote { memory, address } => callback::call(|| memory.write(address + offset, data)),
        }
    }

    /// No pin needs `length` bytes from `offset` on any more, both multiples of the page size. With `stays`, others of
    /// the backing are needed; with `comes_anew`, these are asked for again before they are needed again.
    pub(super) fn give_back(&self, offset: u64, length: u64, stays: bool, comes_anew: bool) {
        if comes_anew && let Self::Remote { memory, address } = self {
            callback::call_contained(|| memory.given_back(address + offset, length));
        }
        if stays
            && let Self::Local { start, keep, guard: Some(_), .. } = self
            // No other backing has the mapping, and none can come to have it but through this.
            && Arc::strong_count(keep) == 1
            && let Some(map) = (&**keep as &dyn Any).downcast_ref::<GuardedMap>()
        {
            map.give_back(shared::after(*start, offset), length as usize);
        }
    }

    /// Where in a file the byte at `offset` is, if it is in one.
    pub(super) fn file(&self, offset: u64) -> Option<FileRange> {
        match self {
            Self::Local { file: Some(range), .. } => {
                Some(FileRange { file: range.file.clone(), offset: range.offset + offset })
            }
            _ => None,
        }
    }

    /// Whether the memory behind `length` bytes from `offset` on turned out not to exist any more (a file that was cut
    /// short).
    pub(crate) fn is_gone(&self, offset: u64, length: u64) -> bool {
        match self {
            Self::Local { start, guard: Some(guard), .. } => {
                guard.has_lost(shared::after(*start, offset), length as usize)
            }
            _ => false,
        }
    }
}

/// A run of bytes that can be given to devices. Its length is a multiple of the page size.
#[derive(Clone)]
pub struct Segment {
    pub(crate) backing: Backing,
    pub(crate) length: u64,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("length", &format_args!("{:#x}", self.length))
            .field("writable", &self.is_writable())
            .finish_non_exhaustive()
    }
}

impl Segment {
    /// `length` bytes of this process at `start`, a multiple of the page size; `keep` is dropped when no device can
    /// reach them any more, with no lock held.
    ///
    /// # Safety
    /// The memory must stay valid for reads and writes until `keep` is dropped. Everything else that uses it must be
    /// prepared for it to change at any time, as with memory that a device writes: no Rust reference to it may exist
    /// while a device can reach it.
    ///
    /// # Panics
    /// If `start` is not a multiple of the page size.
    #[must_use]
    #[allow(unsafe_code, reason = "only the caller can know that the memory stays")]
    pub unsafe fn local(start: NonNull<u8>, length: u64, keep: Arc<dyn Any + Send + Sync>) -> Self {
        assert!((start.addr().get() as u64).is_multiple_of(PAGE_SIZE), "{start:?} is not the start of a page");
        Self { backing: Backing::Local { start, guard: None, writable: true, file: None, keep }, length }
    }

    /// [`Segment::local`], perhaps for reading only, of memory that is known to stay as long as `keep`.
    #[cfg(feature = "vm-memory")]
    pub(crate) fn kept(
        start: NonNull<u8>,
        length: u64,
        writable: bool,
        file: Option<FileRange>,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { backing: Backing::Local { start, guard: None, writable, file, keep }, length }
    }

    /// `length` bytes of `file` at `offset`, both multiples of the page size, mapped here.
    ///
    /// The file may be cut short at any time: DMA to what is gone is refused, and nothing else happens.
    ///
    /// # Errors
    /// Of `mmap`.
    pub fn file(file: &Arc<File>, offset: u64, length: u64, writable: bool) -> io::Result<Self> {
        let map = GuardedMap::new(file.as_fd(), offset, length, writable)?;
        Ok(Self::guarded(map, file, offset, length, writable))
    }

    /// `length` bytes of `file` at `offset`, both multiples of the page size, with every page brought in; in mappings
    /// that all have who need the same parts of the file.
    ///
    /// # Errors
    /// Of `mmap`; `EFAULT` if a page does not exist.
    pub(crate) fn of_file(file: &Arc<File>, offset: u64, length: u64, writable: bool) -> io::Result<Vec<Self>> {
        let mut at = offset;
        let segment = |part: Part| {
            let file = Some(FileRange { file: part.map.file().clone(), offset: at });
            at += part.length;
            let guard = Some(part.map.map().entry());
            let backing = Backing::Local { start: part.start, guard, writable, file, keep: part.map };
            Self { backing, length: part.length }
        };
        Ok(FileMap::parts(file, offset, length, writable)?.into_iter().map(segment).collect())
    }

    fn guarded(map: GuardedMap, file: &Arc<File>, offset: u64, length: u64, writable: bool) -> Self {
        let map = Arc::new(map);
        let (start, guard) = (map.start(), Some(map.entry()));
        let file = Some(FileRange { file: file.clone(), offset });
        Self { backing: Backing::Local { start, guard, writable, file, keep: map }, length }
    }

    /// `length` bytes, a multiple of the page size, at `address` of `memory`.
    #[must_use]
    pub fn remote(memory: Arc<dyn RemoteMemory>, address: u64, length: u64) -> Self {
        Self { backing: Backing::Remote { memory, address }, length }
    }

    /// `length` bytes, a multiple of the page size, of new zeroed shared memory, and the file it is in.
    ///
    /// # Errors
    /// Of `memfd_create`, `ftruncate` and `mmap`.
    pub fn memfd(length: u64) -> io::Result<(Self, Arc<File>)> {
        let file = Arc::new(File::from(rustix::fs::memfd_create(c"ioasid", rustix::fs::MemfdFlags::CLOEXEC)?));
        file.set_len(length)?;
        Ok((Self::file(&file, 0, length, true)?, file))
    }

    /// Whether it is made of whole pages and lies within its address space.
    pub(crate) fn is_pages(&self) -> bool {
        let last = self.length.checked_sub(1).filter(|_| self.length.is_multiple_of(PAGE_SIZE));
        last.is_some_and(|last| match self.backing {
            Backing::Local { .. } => true,
            Backing::Remote { address, .. } => address.checked_add(last).is_some(),
        })
    }

    /// `length` of its bytes, from `offset` on.
    pub(crate) fn part(&self, offset: u64, length: u64) -> Self {
        let backing = match self.backing.clone() {
            Backing::Local { start, guard, writable, file, keep } => {
                let file = file.map(|range| FileRange { offset: range.offset + offset, ..range });
                Backing::Local { start: shared::after(start, offset), guard, writable, file, keep }
            }
            Backing::Remote { memory, address } => Backing::Remote { memory, address: address + offset },
        };
        Self { backing, length }
    }

    /// Number of bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether devices may be allowed to write it.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        match self.backing {
            Backing::Local { writable, .. } => writable,
            // Whether it is shows when it is written.
            Backing::Remote { .. } => true,
        }
    }
}
