//! Pages of a BAR that are memory, not registers: only what was stored last matters, as of a doorbell, or they hold
//! data.
//!
//! A program maps them as the memory that they are, so its loads and stores cost nothing, and raise no event: a model
//! looks when it wants to. Each session has memory of its own, so what a program keeps mapped of a former one leads
//! nowhere.
#![allow(unsafe_code, reason = "shared memory")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::lock;
use crate::pci::config::aligned_pieces;

/// Memory is mapped in whole pages.
const PAGE: u64 = 4096;

/// Pages of a BAR that are memory. See [`Model::memory`](crate::Model::memory).
#[derive(Debug, Clone)]
pub struct BarPages {
    /// The BAR's index.
    pub bar: u8,
    /// Where in it, in bytes: a multiple of 4096.
    pub offset: u64,
    /// The memory, all of it.
    pub memory: Arc<BarMemory>,
}

/// Memory that a program maps and a model looks at.
///
/// The program may write anything at any time. Accesses of 1, 2, 4 or 8 aligned bytes are not torn; longer ones are
/// made of such.
///
/// ```
/// use ioasid_vfio::BarMemory;
///
/// let doorbells = BarMemory::new(4096)?;
/// // As the program does, in another thread:
/// doorbells.write(8, &7u32.to_le_bytes());
/// let rung = doorbells.wait(|doorbells| {
///     let mut tail = [0; 4];
///     doorbells.read(8, &mut tail);
///     (tail != [0; 4]).then_some(tail)
/// });
/// assert_eq!(rung, Some([7, 0, 0, 0]));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct BarMemory {
    length: u64,
    /// Resets and other sessions leave it as it is.
    lasts: bool,
    current: RwLock<Arc<Mapped>>,
    /// Counts changes of `current`.
    generation: AtomicU64,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Counts what is known to be news.
    news: u64,
    ended: bool,
}

/// The memory of one session.
#[derive(Debug)]
struct Mapped {
    file: OwnedFd,
    /// Device and inode number of the file.
    identity: (u64, u64),
    at: NonNull<u8>,
    length: usize,
}

// SAFETY: what it points to is shared memory, and every access to it is atomic.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    fn new(length: u64) -> io::Result<Self> {
        let bytes = usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let file = memfd_create(c"BAR", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, length)?;
        // The program gets it, and must not be able to take it from us.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, wherever there is room.
        let at = unsafe { mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, &file, 0)? };
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let stat = fstat(&file)?;
        Ok(Self { file, identity: (stat.st_dev, stat.st_ino), at, length: bytes })
    }

    /// The place of an aligned piece within the mapping.
    fn place(&self, offset: usize, length: usize) -> *mut u8 {
        debug_assert!(offset + length <= self.length && offset.is_multiple_of(length));
        self.at.as_ptr().wrapping_add(offset)
    }

    fn load(&self, offset: usize, data: &mut [u8]) {
        let place = self.place(offset, data.len());
        // SAFETY: `place` is aligned to the length and within the mapping, which is there as long as this is; other
        // accesses are other processes', or atomic.
        unsafe {
            match data.len() {
                1 => data.copy_from_slice(&(*place.cast::<AtomicU8>()).load(Ordering::Acquire).to_ne_bytes()),
                2 => data.copy_from_slice(&(*place.cast::<AtomicU16>()).load(Ordering::Acquire).to_ne_bytes()),
                4 => data.copy_from_slice(&(*place.cast::<AtomicU32>()).load(Ordering::Acquire).to_ne_bytes()),
                _ => data.copy_from_slice(&(*place.cast::<AtomicU64>()).load(Ordering::Acquire).to_ne_bytes()),
            }
        }
    }

    fn store(&self, offset: usize, data: &[u8]) {
        let place = self.place(offset, data.len());
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(value);
        // SAFETY: as for loading.
        unsafe {
            match data.len() {
                1 => (*place.cast::<AtomicU8>()).store(value as u8, Ordering::Release),
                2 => (*place.cast::<AtomicU16>()).store(value as u16, Ordering::Release),
                4 => (*place.cast::<AtomicU32>()).store(value as u32, Ordering::Release),
                _ => (*place.cast::<AtomicU64>()).store(value, Ordering::Release),
            }
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: made by `mmap`, of this length, and pointers into it end with this.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.length) };
    }
}

/// How long [`BarMemory::wait`] looks without a pause.
const SPIN: Duration = Duration::from_micros(50);
/// Its longest pause: what a look costs then is nothing that can be measured.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

impl BarMemory {
    /// Memory of `length` bytes, all zero. `length` is a multiple of 4096, and not 0.
    ///
    /// # Errors
    /// `InvalidInput` for another length; those of memfd_create(2), ftruncate(2) and mmap(2).
    pub fn new(length: u64) -> io::Result<Arc<Self>> {
        Self::make(length, false)
    }

    /// Memory as of [`BarMemory::new`], but one that is not the device's alone: it stays as it is when the device is
    /// reset or opened again.
    ///
    /// # Errors
    /// As [`BarMemory::new`].
    pub fn lasting(length: u64) -> io::Result<Arc<Self>> {
        Self::make(length, true)
    }

    fn make(length: u64, lasts: bool) -> io::Result<Arc<Self>> {
        if length == 0 || !length.is_multiple_of(PAGE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let current = RwLock::new(Arc::new(Mapped::new(length)?));
        Ok(Arc::new(Self {
            length,
            lasts,
            current,
            generation: AtomicU64::new(0),
            waiting: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads `data.len()` bytes from byte `offset` on. What is beyond the end reads as ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let (inside, beyond) = data.split_at_mut(self.inside(offset, data.len()));
        beyond.fill(0xff);
        let memory = self.current();
        for (at, range) in aligned_pieces(offset, inside.len()) {
            memory.load(at as usize, &mut inside[range]);
        }
    }

    /// Writes `data` from byte `offset` on. What is beyond the end is dropped.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let data = &data[..self.inside(offset, data.len())];
        let memory = self.current();
        for (at, range) in aligned_pieces(offset, data.len()) {
            memory.store(at as usize, &data[range]);
        }
        self.wake();
    }

    /// A look at the memory of this session that costs no more than a load, for a model that looks often.
    pub fn view(self: &Arc<Self>) -> BarView {
        let generation = self.generation.load(Ordering::Acquire);
        BarView { memory: self.clone(), mapped: self.current(), generation }
    }

    /// The memory of this session, for a program to map from offset 0; with `writable`, also for writing.
    ///
    /// # Errors
    /// Of open(2): `EMFILE` and the like, and `ENOENT` where there is no /proc.
    pub fn file(&self, writable: bool) -> io::Result<OwnedFd> {
        // A duplicate could be written as the original can.
        let path = format!("/proc/self/fd/{}", self.current().file.as_raw_fd());
        Ok(File::options().read(true).write(writable).open(path)?.into())
    }

    /// Device and inode number of that file.
    pub fn identity(&self) -> (u64, u64) {
        self.current().identity
    }

    /// Waits until `look` finds something, and returns that; or until [`BarMemory::end`], and returns `None`.
    ///
    /// It looks without a pause for 50 µs, and then with pauses that grow to 10 ms. A write that did not come by a
    /// mapping, and a reset, end a pause.
    pub fn wait<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        let began = Instant::now();
        let mut pause = SPIN;
        loop {
            let seen = {
                let waiting = lock(&self.waiting);
                if waiting.ended {
                    return None;
                }
                waiting.news
            };
            if let Some(found) = look(self) {
                return Some(found);
            }
            if began.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            let no_news = |waiting: &mut Waiting| waiting.news == seen && !waiting.ended;
            let waited = self.changed.wait_timeout_while(lock(&self.waiting), pause, no_news);
            let timed_out = waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
            pause = if timed_out { (2 * pause).min(LONGEST_PAUSE) } else { SPIN };
        }
    }

    /// Ends every [`BarMemory::wait`], for good: the model has no thread any more that looks.
    pub fn end(&self) {
        lock(&self.waiting).ended = true;
        self.changed.notify_all();
    }

    /// Makes every byte zero, also in the mappings of programs: a reset.
    pub(crate) fn clear(&self) {
        if self.lasts {
            return;
        }
        let memory = self.current();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&memory.file, flags, 0, self.length).is_err() {
            // Where the kernel cannot do it at once.
            (0..self.length as usize).step_by(8).for_each(|at| memory.store(at, &[0; 8]));
        }
        self.wake();
    }

    /// Takes new memory, all zero. A program that has mapped the former keeps it to itself.
    ///
    /// # Errors
    /// As [`BarMemory::new`]; the former stays.
    pub(crate) fn renew(&self) -> io::Result<()> {
        if self.lasts {
            return Ok(());
        }
        let new = Arc::new(Mapped::new(self.length)?);
        let former = std::mem::replace(&mut *self.current.write().unwrap_or_else(PoisonError::into_inner), new);
        drop(former);
        self.generation.fetch_add(1, Ordering::Release);
        self.wake();
        Ok(())
    }

    fn current(&self) -> Arc<Mapped> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn inside(&self, offset: u64, length: usize) -> usize {
        usize::try_from(self.length.saturating_sub(offset)).map_or(length, |left| left.min(length))
    }

    fn wake(&self) {
        lock(&self.waiting).news += 1;
        self.changed.notify_all();
    }
}

/// A look at a [`BarMemory`]. Once that has other memory, a look takes longer and sees the other.
#[derive(Debug)]
pub struct BarView {
    memory: Arc<BarMemory>,
    mapped: Arc<Mapped>,
    generation: u64,
}

impl BarView {
    /// The word at `offset`, a multiple of 4; all ones beyond the end.
    #[inline]
    pub fn load(&self, offset: u64) -> u32 {
        let mut word = [0xff; 4];
        let is_current = self.memory.generation.load(Ordering::Acquire) == self.generation;
        if is_current && offset.is_multiple_of(4) && offset < self.memory.length {
            self.mapped.load(offset as usize, &mut word);
        } else {
            self.memory.read(offset, &mut word);
        }
        u32::from_le_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(memory: &BarMemory, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        memory.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// As a program maps it.
    fn mapped(memory: &BarMemory) -> Mapped {
        let file = memory.file(true).unwrap();
        let length = memory.length() as usize;
        // SAFETY: a new mapping.
        let at = unsafe {
            mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0).unwrap()
        };
        Mapped { file, identity: (0, 0), at: NonNull::new(at.cast()).unwrap(), length }
    }

    #[test]
    fn a_view_sees_what_is_written_and_other_memory() {
        let memory = BarMemory::new(4096).unwrap();
        let view = memory.view();
        memory.write(8, &7u32.to_le_bytes());
        assert_eq!((view.load(8), view.load(4092), view.load(4096), view.load(u64::MAX)), (7, 0, u32::MAX, u32::MAX));
        memory.renew().unwrap();
        assert_eq!((view.load(8), memory.view().load(8)), (0, 0));
        memory.write(8, &9u32.to_le_bytes());
        assert_eq!((view.load(8), memory.view().load(8)), (9, 9));
    }

    #[test]
    fn it_has_whole_pages() {
        for length in [0, 1, 4095, 4097] {
            assert_eq!(BarMemory::new(length).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert!(BarMemory::new(u64::MAX - 4095).is_err());
        assert_eq!(BarMemory::new(8192).unwrap().length(), 8192);
    }

    #[test]
    fn what_is_written_is_read_at_any_place() {
        let memory = BarMemory::new(4096).unwrap();
        let data: Vec<u8> = (1..=64).collect();
        for offset in 0..9 {
            memory.write(offset, &data);
            let mut read = vec![0; 64];
            memory.read(offset, &mut read);
            assert_eq!(read, data);
        }
        let mut beyond = [0; 8];
        memory.read(4092, &mut beyond);
        assert_eq!(beyond, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        memory.write(4092, &[9; 8]);
        memory.write(u64::MAX, &[9; 8]);
        memory.read(u64::MAX, &mut beyond);
        assert_eq!(beyond, [0xff; 8]);
    }

    #[test]
    fn a_program_and_the_model_see_the_same() {
        let memory = BarMemory::new(4096).unwrap();
        let program = mapped(&memory);
        program.store(8, &7u64.to_le_bytes());
        assert_eq!(word(&memory, 8), 7);
        memory.clear();
        let mut there = [1; 8];
        program.load(8, &mut there);
        assert_eq!(there, [0; 8]);
        assert!(ftruncate(&program.file, 0).is_err(), "it cannot be shortened");
        let mut to_read = File::from(memory.file(false).unwrap());
        assert!(io::Write::write(&mut to_read, &[1]).is_err(), "nor writes what was given to be read");
    }

    #[test]
    fn a_session_sees_nothing_of_the_one_before() {
        let memory = BarMemory::new(4096).unwrap();
        let former = mapped(&memory);
        former.store(0, &1u64.to_le_bytes());
        memory.renew().unwrap();
        assert_eq!(word(&memory, 0), 0);
        former.store(0, &2u64.to_le_bytes());
        assert_eq!(word(&memory, 0), 0);
    }

    #[test]
    fn what_lasts_stays_as_it_is() {
        let memory = BarMemory::lasting(4096).unwrap();
        let program = mapped(&memory);
        memory.write(0, &[1; 8]);
        memory.clear();
        memory.renew().unwrap();
        let mut there = [0; 8];
        program.load(0, &mut there);
        assert_eq!(there, [1; 8]);
    }

    #[test]
    fn a_model_that_waits_finds_what_a_program_stores_and_ends() {
        let memory = BarMemory::new(4096).unwrap();
        let program = mapped(&memory);
        let rung = |memory: &BarMemory| Some(word(memory, 0)).filter(|value| *value != 0);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| memory.wait(rung));
            std::thread::sleep(Duration::from_millis(5));
            program.store(0, &3u64.to_le_bytes());
            assert_eq!(waits.join().unwrap(), Some(3));
            memory.clear();
            let ends = scope.spawn(|| memory.wait(rung));
            memory.end();
            assert_eq!(ends.join().unwrap(), None);
        });
    }
}
