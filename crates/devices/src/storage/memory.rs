//! Blocks in memory, which take room as they are written.
#![allow(unsafe_code, reason = "anonymous memory")]

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

const PAGE: u64 = 4096;

/// Bytes that are zero before they are written.
#[derive(Debug)]
pub(crate) struct MemoryBlocks {
    at: NonNull<u8>,
    length: usize,
}

// SAFETY: it owns the mapping, and hands out references that borrow it.
unsafe impl Send for MemoryBlocks {}
// SAFETY: as above; nothing changes through a shared reference.
unsafe impl Sync for MemoryBlocks {}

impl MemoryBlocks {
    pub(crate) fn new(length: u64) -> io::Result<Self> {
        let bytes = usize::try_from(length).ok().filter(|bytes| isize::try_from(*bytes).is_ok());
        let bytes = bytes.ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, wherever there is room.
        let at = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { at, length: bytes })
    }

    pub(crate) fn length(&self) -> u64 {
        self.length as u64
    }

    fn all(&self) -> &[u8] {
        // SAFETY: the mapping is as long as this, initialised, and changes by `&mut self` only.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.length) }
    }

    fn all_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.length) }
    }

    /// `length` bytes from `offset` on, which are there.
    pub(crate) fn slice(&self, offset: u64, length: usize) -> &[u8] {
        &self.all()[offset as usize..][..length]
    }

    pub(crate) fn slice_mut(&mut self, offset: u64, length: usize) -> &mut [u8] {
        &mut self.all_mut()[offset as usize..][..length]
    }

    /// Makes bytes zero. Whole pages take no room then.
    pub(crate) fn zero(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let first = offset.next_multiple_of(PAGE).min(end);
        let last = (end - end % PAGE).max(first);
        self.slice_mut(offset, (first - offset) as usize).fill(0);
        self.slice_mut(last, (end - last) as usize).fill(0);
        let whole = self.slice_mut(first, (last - first) as usize);
        if whole.is_empty() {
            return;
        }
        // SAFETY: whole pages of a private anonymous mapping that is borrowed exclusively: they read as zeroes then.
        if unsafe { madvise(whole.as_mut_ptr().cast(), whole.len(), Advice::LinuxDontNeed) }.is_err() {
            whole.fill(0);
        }
    }
}

impl Drop for MemoryBlocks {
    fn drop(&mut self) {
        // SAFETY: made by `mmap_anonymous`, of this length, and references into it end with this.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.length) };
    }
}
