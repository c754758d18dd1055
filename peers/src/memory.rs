//! Shared memory to copy, and the proof that it was copied.
//!
//! The memory may be written from elsewhere, by a device for example, so it is only ever touched through raw pointers,
//! and no reference to its bytes exists.
#![allow(unsafe_code, reason = "mmap, and raw copies to and from shared memory")]

use std::any::Any;
use std::hint::black_box;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Result, ensure};

/// Between one word of a pattern and the next; odd and large, so that no two words of a buffer are equal.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A shared mapping.
pub struct Shared {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread.
unsafe impl Send for Shared {}

impl Shared {
    /// `length` bytes, a multiple of the page size, of no file: `MAP_SHARED | MAP_ANONYMOUS`.
    ///
    /// # Errors
    /// Of `mmap`.
    pub fn anonymous(length: usize) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        Self::mapped(start, length)
    }

    /// `length` bytes, a multiple of the page size, of this process alone: `MAP_PRIVATE | MAP_ANONYMOUS`.
    ///
    /// # Errors
    /// Of `mmap`.
    pub fn private(length: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: as above.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        Self::mapped(start, length)
    }

    /// `length` bytes of `file` at `offset`, both multiples of the page size. The file must not be cut short.
    ///
    /// # Errors
    /// Of `mmap`.
    pub fn of_file(file: impl AsFd, offset: usize, length: usize) -> io::Result<Self> {
        let (prot, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_fd().as_raw_fd());
        // SAFETY: as above.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, prot, libc::MAP_SHARED, fd, offset as libc::off_t) };
        Self::mapped(start, length)
    }

    /// The same memory, mapped once more: all of its pages have yet to be faulted in.
    ///
    /// # Errors
    /// Of `mremap`.
    pub fn again(&self) -> io::Result<Self> {
        // SAFETY: with an old size of 0 the old mapping stays as it is; see mremap(2).
        let start = unsafe { libc::mremap(self.start.as_ptr().cast(), 0, self.length, libc::MREMAP_MAYMOVE) };
        Self::mapped(start, self.length)
    }

    fn mapped(start: *mut libc::c_void, length: usize) -> io::Result<Self> {
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Self { start: start.cast(), length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Address of the first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The word at an offset, a multiple of 8.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < self.length);
        // SAFETY: inside the mapping, aligned, and there as long as this is.
        unsafe { self.start.add(offset).cast().as_ref() }
    }

    /// Number of bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Fills the memory with the pattern of `seed`. Those of two seeds differ in every word.
    pub fn fill(&self, seed: u64) {
        let mut word = seed;
        for index in 0..self.length / 8 {
            // SAFETY: inside the mapping, and aligned, as the mapping is.
            unsafe { self.start.cast::<u64>().add(index).write(word) };
            word = word.wrapping_add(STEP);
        }
    }

    /// Makes sure that the memory holds the pattern of `seed`, all of it.
    ///
    /// # Errors
    /// If it does not.
    pub fn verify(&self, seed: u64) -> Result<()> {
        let (mut word, mut wrong) = (seed, 0usize);
        for index in 0..self.length / 8 {
            // SAFETY: as above.
            let found = unsafe { self.start.cast::<u64>().add(index).read() };
            wrong += usize::from(found != word);
            word = word.wrapping_add(STEP);
        }
        ensure!(wrong == 0, "{} of {} bytes did not arrive: this measures no copy", wrong * 8, self.length);
        Ok(())
    }

    /// Something to hold instead of the mapping, which ends when it is dropped. Any thread may do that.
    pub fn keep(self) -> Arc<dyn Any + Send + Sync> {
        struct Kept(#[expect(dead_code, reason = "it is held, and dropped")] Shared);
        // SAFETY: nothing can be done with the mapping but to end it, which is a system call, and any thread's to make.
        unsafe impl Send for Kept {}
        // SAFETY: as above; shared, nothing at all can be done with it.
        unsafe impl Sync for Kept {}
        Arc::new(Kept(self))
    }

    /// memcpy of all of `from`, which has the same length, as whoever needs no IOMMU would do it.
    pub fn copy_from(&self, from: &Self) {
        assert_eq!(self.length, from.length);
        let (source, target) = black_box((from.start, self.start));
        // SAFETY: both mappings have this length, and two mappings do not overlap. That they may be mappings of the
        // same bytes is for the kernel and the processor to know; the bytes are plain data.
        unsafe { ptr::copy_nonoverlapping(source.as_ptr(), target.as_ptr(), self.length) };
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing points into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_proved_and_a_missing_one_is_noticed() {
        let (source, target) = (Shared::anonymous(8192).unwrap(), Shared::anonymous(8192).unwrap());
        source.fill(1);
        assert!(target.verify(1).unwrap_err().to_string().contains("8192 of 8192 bytes"));
        target.copy_from(&source);
        target.verify(1).unwrap();
        assert!(target.verify(2).is_err());
    }

    #[test]
    fn mapped_again_it_is_the_same_memory() {
        let memory = Shared::anonymous(8192).unwrap();
        let again = memory.again().unwrap();
        memory.fill(3);
        again.verify(3).unwrap();
        assert_ne!(memory.start(), again.start());
        drop(again);
        memory.verify(3).unwrap();
    }
}
