//! Another process's memory.
//!
//! For each mapping the first way that works is taken:
//!
//! 1. a shared mapping of what lies in memory is mapped here too, through `/proc/PID/map_files` (privileged) or through
//!    a descriptor that the process has open on the same file;
//! 2. everything else is copied through `/proc/PID/mem`.
//!
//! What Linux does not pin is refused as it is there: memory without the access that is asked for, pages of a file that
//! may have to be written back, for writing, and what belongs to the kernel or is kept secret from it.
//!
//! A userfaultfd of the process tells when memory of the second kind goes away or moves ([`Process::follow`],
//! `changes`).
//!
//! `/proc/PID/mem` rather than `process_vm_readv`: an open file of it stays with the address space it was opened on, so
//! that after an exec, or after the process number went to another process, DMA fails instead of reaching other memory.

mod changes;
mod id;
mod import;
mod userfaultfd;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Weak};

use iopt::Access;
use thiserror::Error;

use super::PAGE_SIZE;
use super::file_systems::FileSystems;
use super::identity::Identity;
use super::segment::{RemoteMemory, Segment};
use super::vma::{Vma, VmaQuery};
use crate::base::lock::Mutex;
use crate::base::rank;
use changes::Changes;
pub use changes::LostMemory;
use id::ProcessId;

/// Why memory of a process cannot be given to devices.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// Part of the range is not mapped, or not with the access that is asked for.
    #[error("address {0:#x} of the process is not mapped, or not with the access asked for")]
    BadAddress(u64),
    /// The file is not a memfd or the like, or ends before.
    #[error("the file does not lie in memory, or ends before what is to be mapped")]
    NotInFile,
    /// The process has ended, or became another program.
    #[error("the process has ended")]
    Gone,
    /// A system call failed.
    #[error("cannot reach the memory of the process: {0}")]
    System(#[from] io::Error),
}

/// The address space of a process, as it was when this was opened: an exec gives the process another one.
pub struct Process(Arc<ProcessMemory>);

struct ProcessMemory {
    /// The thread that it was opened by.
    tid: u32,
    id: ProcessId,
    memory: File,
    vmas: VmaQuery,
    /// `/proc/PID/pagemap`, for a caller that wants to know which pages are present.
    pages: Option<File>,
    /// Files that its shared mappings are of and that are open here, by device and inode number, and whether for
    /// writing: a descriptor for each, and not for each mapping.
    files: Mutex<Files, rank::Files>,
    systems: FileSystems,
    changes: Changes,
}

type Files = BTreeMap<(u64, u64, bool), Weak<File>>;

/// In `/proc/PID/pagemap`: the page is in memory (Linux `Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;

impl ProcessMemory {
    fn is_current(&self) -> bool {
        // No process has a page at 0 that an ordinary user could read, but a dead address space says "end of file"
        // where a living one says EIO.
        !matches!(self.memory.read_at(&mut [0], 0), Ok(0))
    }
}

impl Drop for ProcessMemory {
    fn drop(&mut self) {
        self.changes.stop(&self.vmas);
    }
}

impl RemoteMemory for ProcessMemory {
    fn read(&self, address: u64, data: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(data, address)
    }

    fn write(&self, address: u64, data: &[u8]) -> io::Result<()> {
        self.memory.write_all_at(data, address)
    }

    fn identity(&self, address: u64) -> Option<Identity> {
        self.is_current().then(|| Identity::in_process(self.id.pid(), &self.vmas, address))?
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("pid", &self.pid()).finish_non_exhaustive()
    }
}

/// What a mapping of a process is to devices.
pub enum Mapped {
    /// Memory, of the process's own or of a file.
    Memory,
    /// This in place of it, from this address on.
    Remote(Arc<dyn RemoteMemory>, u64),
    /// Nothing that they reach.
    Nothing,
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("Memory"),
            Self::Remote(_, address) => write!(f, "Remote({address:#x})"),
            Self::Nothing => f.write_str("Nothing"),
        }
    }
}

impl Process {
    /// Opens the address space of `pid`, a process or any thread of it.
    ///
    /// # Errors
    /// If there is no such process, or this one may not trace it (ptrace(2), "access mode checking").
    pub fn open(pid: u32) -> io::Result<Self> {
        Self::open_with(pid, None)
    }

    /// As [`Process::open`], for a page table that is the address space itself: which pages are present can be told,
    /// too.
    ///
    /// # Errors
    /// As [`Process::open`].
    pub fn open_for_sva(pid: u32) -> io::Result<Self> {
        Self::open_with(pid, Some(File::open(format!("/proc/{pid}/pagemap"))?))
    }

    fn open_with(tid: u32, pages: Option<File>) -> io::Result<Self> {
        let id = ProcessId::of(tid)?;
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{tid}/mem"))?;
        let vmas = VmaQuery::new(tid)?;
        let (files, systems, changes) = (Mutex::default(), FileSystems::default(), Changes::default());
        Ok(Self(Arc::new(ProcessMemory { tid, id, memory, vmas, pages, files, systems, changes })))
    }

    /// Whether the thread `tid` belongs to the process that was opened, and that is still the same program. Reads the
    /// memory of both, which may wait for it.
    #[must_use]
    pub fn is_of(&self, tid: u32) -> bool {
        self.0.id.is_of(tid, |address, data| self.0.read(address, data))
    }

    /// Follows what becomes of its memory, by a userfaultfd(2) of it that was not enabled yet: from now on, a device
    /// no longer reaches memory that was imported (and could not be mapped here) when the process has unmapped,
    /// replaced or dropped it, whatever the process puts in its place; and goes on to reach memory that the process
    /// has moved. `notice` is told of what devices lose so.
    ///
    /// The process waits in each such system call on a mapping that it has imported memory in, until the caller of this
    /// has called [`Process::take_news`]. It goes on when this is dropped.
    ///
    /// # Errors
    /// `EINVAL` if it is no such userfaultfd, `EOPNOTSUPP` before Linux 6.10, `EBUSY` if there is one already.
    pub fn follow(&self, userfaultfd: OwnedFd, notice: impl Fn(LostMemory) + Send + Sync + 'static) -> io::Result<()> {
        self.0.changes.follow(&self.0, userfaultfd, Box::new(notice))
    }

    /// Becomes readable when [`Process::take_news`] has something to do; `None` if its memory is not followed.
    #[must_use]
    pub fn news(&self) -> Option<BorrowedFd<'_>> {
        self.0.changes.news()
    }

    /// Applies what has become of its memory. Waits for copies from and to its memory, for a tenth of a second at the
    /// most.
    pub fn take_news(&self) {
        self.0.changes.take_news(&self.0);
    }

    pub(crate) fn shows_presence(&self) -> bool {
        self.0.pages.is_some()
    }

    /// Whether the page at `address` is in memory.
    pub(crate) fn is_present(&self, address: u64) -> io::Result<bool> {
        let pages = self.0.pages.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let mut entry = [0; 8];
        pages.read_exact_at(&mut entry, address / PAGE_SIZE * 8)?;
        Ok(u64::from_ne_bytes(entry) & PRESENT != 0)
    }

    /// Its memory, by address.
    pub(crate) fn memory(&self) -> &dyn RemoteMemory {
        &*self.0
    }

    /// Whether the process still has the address space that was opened.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.0.is_current()
    }

    /// Which memory it has at `address`; `None` if it has none there.
    #[must_use]
    pub fn identity(&self, address: u64) -> Option<Identity> {
        self.0.identity(address)
    }

    /// The process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id.pid()
    }

    /// Its mappings.
    #[must_use]
    pub fn vmas(&self) -> &VmaQuery {
        &self.0.vmas
    }

    /// Its memory at `start`, `length` bytes (both multiples of the page size), for devices with `access`: of each
    /// mapping, what `mapped` says it is.
    ///
    /// # Errors
    /// [`ImportError::BadAddress`] if part of it is not mapped, is no memory, or is not writable where `access` has
    /// [`Access::WRITE`]; nothing is held then.
    pub fn import(
        &self,
        start: u64,
        length: u64,
        access: Access,
        mapped: impl Fn(&Vma) -> Mapped,
    ) -> Result<Vec<Segment>, ImportError> {
        let end = start.checked_add(length).ok_or(ImportError::BadAddress(start))?;
        if !self.is_current() {
            return Err(ImportError::Gone);
        }
        let mut segments = Vec::new();
        let mut at = start;
        while at < end {
            let vma = self.0.vmas.at(at)?.ok_or(ImportError::BadAddress(at))?;
            let stop = vma.end.min(end);
            match mapped(&vma) {
                Mapped::Memory => self.segments(&vma, at, stop - at, access, &mut segments)?,
                Mapped::Remote(memory, address) => {
                    let allowed = if access.contains(Access::WRITE) { vma.writable } else { vma.readable };
                    // What is written to a private mapping does not get there.
                    if !allowed || !vma.shared {
                        return Err(ImportError::BadAddress(at));
                    }
                    segments.push(Segment::remote(memory, address + (at - vma.start), stop - at));
                }
                Mapped::Nothing => return Err(ImportError::BadAddress(at)),
            }
            at = stop;
        }
        Ok(segments)
    }

    /// Part of one mapping. What is mapped here has its pages brought in, as pinning does.
    fn segments(
        &self,
        vma: &Vma,
        at: u64,
        length: u64,
        access: Access,
        segments: &mut Vec<Segment>,
    ) -> Result<(), ImportError> {
        let write = access.contains(Access::WRITE);
        let is_file = vma.shared && vma.inode != 0;
        let in_memory = is_file && self.0.systems.is_in_memory(vma.dev, self.0.tid);
        let allowed = if write { vma.writable } else { vma.readable };
        if !allowed || (is_file && write && !in_memory) {
            return Err(ImportError::BadAddress(at));
        }
        if in_memory && let Some(file) = self.shared_file(vma) {
            let offset = vma.offset + (at - vma.start);
            match Segment::of_file(&file, offset, length, vma.writable) {
                Ok(parts) => {
                    segments.extend(parts);
                    return Ok(());
                }
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => return Err(ImportError::BadAddress(at)),
                // What cannot be mapped here can still be copied from and to.
                Err(_) => {}
            }
        }
        // What no process can write may be the kernel's, and a file may be one that is kept from it. (Where a process
        // can write, a look costs more than it tells.)
        if (is_file || !vma.writable) && self.0.memory.read_at(&mut [0], at).is_err() {
            return Err(ImportError::BadAddress(at));
        }
        segments.push(Segment::remote(self.0.changes.import(&self.0, vma, at, length), at, length));
        Ok(())
    }

    /// The file that is mapped there, opened here.
    fn shared_file(&self, vma: &Vma) -> Option<Arc<File>> {
        let key = (vma.dev, vma.inode, vma.writable);
        if let Some(file) = self.0.files.lock().get(&key).and_then(Weak::upgrade) {
            return Some(file);
        }
        let file = Arc::new(self.open_shared(vma)?);
        let mut files = self.0.files.lock();
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(key, Arc::downgrade(&file));
        Some(file)
    }

    fn open_shared(&self, vma: &Vma) -> Option<File> {
        let open = |path: &str| {
            let file = OpenOptions::new().read(true).write(vma.writable).open(path).ok()?;
            let found = file.metadata().ok()?;
            // A path may have come to mean another file since.
            (found.is_file() && (found.ino(), found.dev()) == (vma.inode, vma.dev)).then_some(file)
        };
        let pid = self.0.tid;
        let map = format!("{:x}-{:x}", vma.start, vma.end);
        if let Some(file) = open(&format!("/proc/{pid}/map_files/{map}")) {
            return Some(file);
        }
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
            let path = entry.path();
            let same = fs::metadata(&path).is_ok_and(|m| m.is_file() && (m.ino(), m.dev()) == (vma.inode, vma.dev));
            if same && let Some(file) = path.to_str().and_then(open) {
                return Some(file);
            }
        }
        None
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "maps memory to import it again")]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::ptr;

    use rustix::mm::{MapFlags, ProtFlags};

    use super::*;
    use crate::memory::Backing;

    fn this_process() -> Process {
        Process::open(std::process::id()).unwrap()
    }

    fn map(length: usize, prot: ProtFlags, flags: MapFlags) -> u64 {
        // SAFETY: a new mapping, leaked.
        unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), length, prot, flags).unwrap() as u64 }
    }

    #[test]
    fn private_memory_is_copied_and_a_memfd_is_mapped() {
        let process = this_process();
        let private = map(8192, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        let segments = process.import(private, 8192, Access::all(), |_| Mapped::Memory).unwrap();
        assert!(segments.iter().all(|s| matches!(s.backing, Backing::Remote { .. })));

        let file = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 8192).unwrap();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, leaked.
        let shared = unsafe { rustix::mm::mmap(ptr::null_mut(), 8192, prot, MapFlags::SHARED, &file, 0).unwrap() };
        let segments = process.import(shared as u64, 8192, Access::all(), |_| Mapped::Memory).unwrap();
        assert!(matches!(segments[..], [Segment { backing: Backing::Local { .. }, length: 8192 }]));
    }

    #[test]
    fn part_of_a_mapping_of_part_of_a_file_is_the_right_part_of_the_file() {
        let file = File::from(rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(5 * 4096).unwrap();
        (0..5).for_each(|page| file.write_all_at(&[page as u8], page * 4096).unwrap());
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, leaked.
        let mapped =
            unsafe { rustix::mm::mmap(ptr::null_mut(), 4 * 4096, prot, MapFlags::SHARED, &file, 4096).unwrap() };
        for page in 0..4 {
            let at = mapped as u64 + page * 4096;
            let segments = this_process().import(at, 4096, Access::all(), |_| Mapped::Memory).unwrap();
            let [Segment { backing: backing @ Backing::Local { .. }, .. }] = &segments[..] else {
                panic!("{segments:?}")
            };
            let mut byte = [0xff];
            backing.read(0, &mut byte).unwrap();
            assert_eq!(u64::from(byte[0]), page + 1);
        }
    }

    #[test]
    fn holes_and_read_only_memory_are_refused() {
        let process = this_process();
        let start = map(3 * 4096, ProtFlags::READ, MapFlags::PRIVATE);
        assert!(process.import(start, 3 * 4096, Access::READ, |_| Mapped::Memory).is_ok());
        assert!(matches!(
            process.import(start, 4096, Access::all(), |_| Mapped::Memory),
            Err(ImportError::BadAddress(_))
        ));
        // SAFETY: unmaps a page of the leaked mapping.
        unsafe { rustix::mm::munmap((start + 4096) as *mut _, 4096).unwrap() };
        let hole = process.import(start, 3 * 4096, Access::READ, |_| Mapped::Memory);
        assert!(matches!(hole, Err(ImportError::BadAddress(at)) if at == start + 4096));
        assert!(process.import(!4095, 8192, Access::READ, |_| Mapped::Memory).is_err());
    }

    #[test]
    fn a_process_that_ended_is_noticed() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(process.is_current());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_current());
        assert!(matches!(process.import(0x1000, 4096, Access::READ, |_| Mapped::Memory), Err(ImportError::Gone)));
    }
}
