//! What an open file of the tree is.
//!
//! A kind of device file says what it can do; what it does not say, it leaves to the kernel, as for a regular file.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use ioasid::memory::RemoteMemory;
use ioasid_vfio::BarMemory;
use rustix::io::Errno;

use super::Caller;
use super::given::GivenFile;
use crate::watch::Watcher;

/// A mapping that a program asks for.
#[derive(Debug, Clone, Copy)]
pub struct Mapping {
    /// Where in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Whether others see what is stored.
    pub shared: bool,
    /// Whether it is to be executed.
    pub execute: bool,
}

/// Part of a file that is memory: a program shall map that memory in place of it.
#[derive(Debug)]
pub struct MappedMemory {
    /// Where in the file.
    pub place: Range<u64>,
    /// The memory, from its beginning.
    pub memory: Arc<BarMemory>,
    /// Whether the program may write it.
    pub writable: bool,
}

/// Who closes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closer {
    /// A program that has used it, and lives: what it has not undone before, it forgot.
    Program,
    /// The end of all programs that have used it, or of the run: nothing could be undone any more.
    End,
}

/// An open file: of a device file, or one that a request gave a descriptor of.
pub trait OpenFile: Any + Send + Sync {
    /// Performs request `number` with its argument at `address`; `None` if it has no requests.
    ///
    /// # Errors
    /// Each request's own.
    fn ioctl(&self, _number: u32, _address: u64, _caller: &dyn Caller) -> Option<Result<i64, Errno>> {
        None
    }

    /// What its requests fail with, and change nothing, where something is in use.
    fn in_use(&self) -> &'static [Errno] {
        &[]
    }

    /// Whether a request is about what other files are open, so that those that were closed before must be closed here,
    /// too.
    fn is_about_others(&self, _number: u32) -> bool {
        false
    }

    /// Checks a request to map part of it; `None` if there is nothing to be mapped.
    ///
    /// # Errors
    /// `EINVAL` and the like.
    fn check_mmap(&self, _mapping: Mapping) -> Option<Result<(), Errno>> {
        None
    }

    /// Whether reads and writes of it are reads and writes of regions.
    fn has_regions(&self) -> bool {
        false
    }

    /// Reads from a region, and returns how many bytes.
    ///
    /// # Errors
    /// `EINVAL` and the like.
    fn read(&self, _offset: u64, _data: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::INVAL)
    }

    /// Writes to a region, and returns how many bytes.
    ///
    /// # Errors
    /// `EINVAL` and the like.
    fn write(&self, _offset: u64, _data: &[u8]) -> Result<usize, Errno> {
        Err(Errno::INVAL)
    }

    /// One load from what is mapped of it, at a file offset.
    ///
    /// # Errors
    /// `EIO` and the like, if nothing is there.
    fn load(&self, _offset: u64, _data: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::IO)
    }

    /// One store to what is mapped of it, at a file offset.
    ///
    /// # Errors
    /// As [`OpenFile::load`].
    fn store(&self, _offset: u64, _data: &[u8]) -> Result<(), Errno> {
        Err(Errno::IO)
    }

    /// The memory that a byte of it is, if it is no register.
    fn memory(&self, _offset: u64) -> Option<MappedMemory> {
        None
    }

    /// One deferrable write to what is mapped of it, at a file offset: whether it was accepted, or `None` where nothing
    /// takes such writes.
    ///
    /// # Errors
    /// As [`OpenFile::load`].
    fn enqueue(&self, _offset: u64, _command: &[u8; 64]) -> Result<Option<bool>, Errno> {
        Ok(None)
    }

    /// What other devices' DMA reaches by a mapping of it, by file offsets.
    fn peer(&self) -> Option<Arc<dyn RemoteMemory>> {
        None
    }

    /// Whether [`OpenFile::close`] has to be told which program closes it.
    fn is_closed_by_somebody(&self) -> bool {
        false
    }

    /// The file that a request gave, if it is one.
    fn given(&self) -> Option<&Arc<dyn GivenFile>> {
        None
    }

    /// The last descriptor and mapping of it are gone. May wait for devices.
    fn close(&self, _by: Closer, _watcher: &dyn Watcher) {}
}

/// The file as one of a kind, if it is.
pub(super) fn of_kind<T: OpenFile>(file: Arc<dyn OpenFile>) -> Option<Arc<T>> {
    let file: Arc<dyn Any + Send + Sync> = file;
    file.downcast().ok()
}

/// A file that a request gave a descriptor of.
pub struct Given(pub Arc<dyn GivenFile>);

impl OpenFile for Given {
    fn given(&self) -> Option<&Arc<dyn GivenFile>> {
        Some(&self.0)
    }
}
