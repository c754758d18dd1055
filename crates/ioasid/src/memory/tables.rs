//! Where page tables live: a reservation of address space that becomes memory as tables are made.
//!
//! It can be a memfd, so that another process may map it and walk the tables in it (see [`iopt::View`]).
#![allow(unsafe_code, reason = "mmap")]

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::{io, slice};

use iopt::TableMemory;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::guard::GuardedMap;

/// What a huge page of the processor holds, and tables come in.
const HUGE_PAGE: usize = 2 << 20;

/// Memory for page tables.
pub struct TableSpace {
    /// The mapping.
    start: NonNull<u8>,
    length: usize,
    /// Which of its bytes tables live in; they begin where huge pages do.
    used: Range<usize>,
    file: Option<File>,
}

// SAFETY: the mapping belongs to no thread, and its bytes are only used as atomics.
unsafe impl Send for TableSpace {}
// SAFETY: as above.
unsafe impl Sync for TableSpace {}

impl std::fmt::Debug for TableSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableSpace").field("bytes", &self.used.len()).field("file", &self.file).finish_non_exhaustive()
    }
}

impl TableSpace {
    /// Room for `bytes` of tables (rounded up to 2 MiB), private to this process.
    ///
    /// # Errors
    /// Of `mmap`: the address space is limited.
    pub fn private(bytes: usize) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(HUGE_PAGE);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), bytes + HUGE_PAGE, Self::PROT, flags) }?;
        Self::new(start, bytes + HUGE_PAGE, bytes, None)
    }

    /// Room for `bytes` of tables (rounded up to 2 MiB) in a memfd, which [`TableSpace::file`] gives. A process that is
    /// given it can read all tables in it, and can neither write them nor change the file's length: it is sealed.
    ///
    /// # Errors
    /// Of `memfd_create`, `ftruncate` and `mmap`.
    pub fn shared(bytes: usize) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(HUGE_PAGE);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create(c"ioasid-tables", flags)?);
        file.set_len(bytes as u64)?;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: as above. The file keeps its length, as it is sealed before any other code has it.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, Self::PROT, flags, file.as_fd(), 0) }?;
        let mut space = Self::new(start, bytes, bytes, None)?;
        // The mapping that there is stays writable, and there will be no other.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        // A descriptor of its own, which is for reading.
        let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        space.file = Some(file);
        Ok(space)
    }

    const PROT: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

    fn new(start: *mut libc::c_void, length: usize, bytes: usize, file: Option<File>) -> io::Result<Self> {
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // A file's offsets are the tables' addresses, so nothing is left out of one.
        let first = start.as_ptr().align_offset(HUGE_PAGE).min(length - bytes);
        // SAFETY: this advice changes no bytes; where it is not taken, pages are small.
        let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), length, Advice::LinuxHugepage) };
        Ok(Self { start, length, used: first..first + bytes, file })
    }

    /// The memfd, open for reading, if it is in one. An entry's offset in it is its address in the tables.
    #[must_use]
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }
}

impl TableMemory for TableSpace {
    #[inline]
    fn entries(&self) -> &[AtomicU64] {
        let count = self.used.len() / size_of::<AtomicU64>();
        // SAFETY: the mapping is as long, aligned to pages, readable and writable as long as this lives, and zero where
        // nothing was written; all code that uses it uses atomics.
        unsafe { slice::from_raw_parts(self.start.add(self.used.start).cast().as_ptr(), count) }
    }

    fn populate(&self, bytes: Range<usize>) -> bool {
        // SAFETY: the range lies in the mapping, and this advice changes no bytes.
        let done = unsafe {
            libc::madvise(
                self.start.as_ptr().add(self.used.start + bytes.start).cast(),
                bytes.len(),
                libc::MADV_POPULATE_WRITE,
            )
        };
        // Before Linux 5.14 pages come in as they are touched.
        done == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
    }
}

impl Drop for TableSpace {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and all borrows of it have ended.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Memory in which a guest's own page tables are built by the crate [`iopt`], and which is the guest's memory, too: a
/// file that devices are given as any other. The guest may write it whenever it likes, and even cut it short.
pub struct GuestTables {
    map: GuardedMap,
    length: usize,
    file: Arc<File>,
}

impl std::fmt::Debug for GuestTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestTables").field("length", &self.length).finish_non_exhaustive()
    }
}

impl GuestTables {
    /// `bytes` (rounded up to 2 MiB) of a new memfd.
    ///
    /// # Errors
    /// Of `memfd_create`, `ftruncate` and `mmap`.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let length = bytes.next_multiple_of(HUGE_PAGE);
        let file = Arc::new(File::from(rustix::fs::memfd_create(c"guest-tables", MemfdFlags::CLOEXEC)?));
        file.set_len(length as u64)?;
        Ok(Self { map: GuardedMap::new(file.as_fd(), 0, length as u64, true)?, length, file })
    }

    /// The memfd. An entry's offset in it is its address in the tables.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }
}

impl TableMemory for GuestTables {
    fn entries(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is as long, aligned to pages, readable and writable as long as this lives, whatever
        // becomes of the file; every other user of its bytes is another process, or uses raw copies and atomics.
        unsafe { slice::from_raw_parts(self.map.start().cast().as_ptr(), self.length / size_of::<AtomicU64>()) }
    }

    fn populate(&self, _bytes: Range<usize>) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use iopt::format::VtdSecondStage;
    use iopt::{Access, Arena, EmptyTables, PageTable, View};

    use super::*;

    #[test]
    fn another_mapping_of_the_file_is_enough_to_walk() {
        let arena = Arc::new(Arena::with_memory(TableSpace::shared(8 << 20).unwrap()));
        let table = PageTable::<VtdSecondStage, _>::new(arena.clone()).unwrap();
        let mut empty = EmptyTables::none();
        table.map(0x20_0000, 0x4000_0000, 0x20_3000, Access::READ, &mut empty).unwrap();

        let file = arena.memory().file().unwrap();
        let length = file.metadata().unwrap().len() as usize;
        // SAFETY: a new mapping overlaps nothing.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, file.as_fd(), 0).unwrap()
        };
        // SAFETY: as long as the file, and never unmapped.
        let entries: &[AtomicU64] = unsafe { slice::from_raw_parts(start.cast(), length / 8) };
        let view = View::<VtdSecondStage>::new(entries, table.root());
        for iova in [0x20_0000, 0x3f_ffff, 0x40_2fff, 0x40_3000, 0x1f_ffff] {
            assert_eq!(view.walk(iova), table.walk(iova), "{iova:#x}");
        }
        assert!(view.walk(0x40_2fff).is_some());
    }

    #[test]
    fn a_chunk_that_is_populated_is_resident_and_zero() {
        let space = TableSpace::private(4 << 20).unwrap();
        assert!(space.populate(HUGE_PAGE..2 * HUGE_PAGE));
        let first = space.entries()[HUGE_PAGE / 8..].as_ptr();
        assert!(first.addr().is_multiple_of(HUGE_PAGE), "a huge page fits");
        let mut resident = [0u8; HUGE_PAGE / 4096];
        // SAFETY: the range lies in the mapping, and `resident` has a byte for each of its pages.
        let asked = unsafe { libc::mincore(first.cast_mut().cast(), HUGE_PAGE, resident.as_mut_ptr()) };
        assert!(asked == 0 && resident.iter().all(|&page| page & 1 == 1));
        assert!(space.entries().iter().all(|entry| entry.load(std::sync::atomic::Ordering::Relaxed) == 0));
    }
}
