//! Memory that a process unmaps, replaces, drops or moves while devices can reach it.

#![allow(unsafe_code, reason = "maps memory, and takes it away")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ioasid::memory::{LostMemory, Mapped, Process};
use ioasid::{Access, DmaPort, FaultReason, Ioas, Iova, IovaRange, Placement};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use common::{Bench, PAGE};

const AT: u64 = 0x10_0000;

fn new_userfaultfd() -> OwnedFd {
    let flags = libc::O_CLOEXEC | 1;
    // SAFETY: takes flags (UFFD_USER_MODE_ONLY among them), and makes a descriptor.
    unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_userfaultfd, flags) as i32) }
}

/// This process, followed by a thread of it; and what devices have lost.
struct Followed {
    _alone: MutexGuard<'static, ()>,
    process: Arc<Process>,
    lost: Arc<Mutex<Vec<LostMemory>>>,
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A mapping is followed by one userfaultfd only, and mappings become one, so one test runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Followed {
    /// `None` if the kernel cannot do it, and says so.
    fn new() -> Option<Self> {
        Self::of(alone(), Arc::new(Process::open(std::process::id()).unwrap()))
    }

    fn of(_alone: MutexGuard<'static, ()>, process: Arc<Process>) -> Option<Self> {
        let lost: Arc<Mutex<Vec<LostMemory>>> = Arc::default();
        let told = lost.clone();
        if let Err(error) = process.follow(new_userfaultfd(), move |one| told.lock().unwrap().push(one)) {
            assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
            return None;
        }
        let ends: Arc<AtomicBool> = Arc::default();
        let thread = std::thread::spawn({
            let (process, ends) = (process.clone(), ends.clone());
            move || {
                while !ends.load(Ordering::Relaxed) {
                    let news = process.news().unwrap();
                    let mut news = [PollFd::new(&news, PollFlags::IN)];
                    poll(&mut news, Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 })).unwrap();
                    process.take_news();
                }
            }
        });
        Some(Self { _alone, process, lost, ends, thread: Some(thread) })
    }

    /// Has devices reach memory at an IOVA.
    fn give(&self, ioas: &Ioas, memory: &Memory, iova: u64) {
        give(&self.process, ioas, memory, iova);
    }

    /// What was lost since this was last called, when so many are told.
    fn lost(&self, count: usize) -> Vec<LostMemory> {
        let begin = Instant::now();
        while self.lost.lock().unwrap().len() < count {
            assert!(begin.elapsed().as_secs() < 10, "fewer than {count} were told");
            std::thread::yield_now();
        }
        std::mem::take(&mut *self.lost.lock().unwrap())
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn give(process: &Arc<Process>, ioas: &Ioas, memory: &Memory, iova: u64) {
    let import = || Ok(process.import(memory.start, memory.length, Access::all(), |_| Mapped::Memory).unwrap());
    ioas.map(Placement::Fixed(Iova(iova)), memory.length, Access::all(), import).unwrap();
}

/// Private memory, apart from all other, so that no other mapping becomes one with it.
struct Memory {
    start: u64,
    length: u64,
}

impl Memory {
    fn new(pages: u64, value: u64) -> Self {
        let length = pages * PAGE;
        let around = Self::map(None, length + 2 * PAGE, libc::PROT_NONE);
        let memory = Self { start: Self::map(Some(around + PAGE), length, libc::PROT_READ | libc::PROT_WRITE), length };
        memory.fill(value);
        memory
    }

    /// As mmap(2).
    fn map(at: Option<u64>, length: u64, protection: i32) -> u64 {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | if at.is_some() { libc::MAP_FIXED } else { 0 };
        let at = at.unwrap_or(0) as *mut libc::c_void;
        // SAFETY: a new mapping, or one in the place of memory that has no references.
        let mapped = unsafe { libc::mmap(at, length as usize, protection, flags, -1, 0) };
        assert_ne!(mapped, libc::MAP_FAILED);
        mapped as u64
    }

    fn fill(&self, value: u64) {
        for at in (self.start..self.start + self.length).step_by(8) {
            // SAFETY: memory of this, written by no other thread.
            unsafe { AtomicU64::from_ptr(at as *mut u64) }.store(value, Ordering::Relaxed);
        }
    }

    /// Puts other memory in the place of some pages.
    fn replace(&self, first: u64, pages: u64, value: u64) {
        let (start, length) = (self.start + first * PAGE, pages * PAGE);
        let start = Self::map(Some(start), length, libc::PROT_READ | libc::PROT_WRITE);
        Self { start, length }.fill(value);
    }
}

fn word(port: &mut DmaPort, iova: u64) -> Result<u64, FaultReason> {
    let mut word = [0; 8];
    port.read(Iova(iova), &mut word).map_err(|error| error.reason)?;
    Ok(u64::from_ne_bytes(word))
}

fn range(iova: u64, length: u64) -> IovaRange {
    IovaRange::new(iova, length).unwrap()
}

#[test]
fn what_comes_in_the_place_of_memory_is_not_reached() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let Some(followed) = Followed::new() else { return };
    device.attach(None, &ioas).unwrap();
    let memory = Memory::new(4, 1);
    followed.give(&ioas, &memory, AT);
    assert_eq!(word(&mut port, AT + PAGE), Ok(1));
    memory.replace(1, 2, 2);
    assert_eq!(word(&mut port, AT + PAGE), Err(FaultReason::MemoryGone));
    assert_eq!(port.write(Iova(AT + 2 * PAGE), &[9; 8]).unwrap_err().reason, FaultReason::MemoryGone);
    assert_eq!((word(&mut port, AT), word(&mut port, AT + 3 * PAGE)), (Ok(1), Ok(1)));
    let mut across = vec![0; 2 * PAGE as usize];
    assert!(port.read(Iova(AT), &mut across).is_err());
    let lost = LostMemory { address: memory.start + PAGE, length: 2 * PAGE, iova: AT + PAGE };
    assert_eq!(followed.lost(1), [lost]);
    // What is mapped now is what is there now.
    ioas.unmap(range(AT, 4 * PAGE)).unwrap();
    followed.give(&ioas, &memory, AT);
    assert_eq!((word(&mut port, AT), word(&mut port, AT + PAGE)), (Ok(1), Ok(2)));
    assert_eq!(followed.lost(0), []);
}

#[test]
fn memory_is_followed_as_long_as_it_is_mapped_attached_or_not() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let Some(followed) = Followed::new() else { return };
    let memory = Memory::new(4, 1);
    followed.give(&ioas, &memory, AT);
    for _ in 0..2 {
        device.attach(None, &ioas).unwrap();
        // A part of it is mapped a second time, and no more.
        let (first, second) = (Iova(AT + PAGE), Iova(AT + 16 * PAGE));
        ioas.copy(Some(second), &ioas, first, PAGE, Access::all()).unwrap();
        assert_eq!((word(&mut port, AT), word(&mut port, AT + 16 * PAGE)), (Ok(1), Ok(1)));
        ioas.unmap(range(AT + 16 * PAGE, PAGE)).unwrap();
        device.detach(None).unwrap();
    }
    memory.replace(2, 1, 2);
    assert_eq!(followed.lost(1).len(), 1);
    device.attach(None, &ioas).unwrap();
    let seen = [0, 1, 2, 3].map(|page| word(&mut port, AT + page * PAGE));
    assert_eq!(seen, [Ok(1), Ok(1), Err(FaultReason::MemoryGone), Ok(1)]);
}

#[test]
fn memory_that_is_dropped_or_unmapped_is_lost() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let (alone, process) = (alone(), Arc::new(Process::open(std::process::id()).unwrap()));
    device.attach(None, &ioas).unwrap();
    let memory = Memory::new(3, 1);
    // Also of what was imported before.
    give(&process, &ioas, &memory, AT);
    let Some(followed) = Followed::of(alone, process) else { return };
    // SAFETY: memory that has no references.
    unsafe {
        assert_eq!(libc::madvise(memory.start as *mut libc::c_void, PAGE as usize, libc::MADV_DONTNEED), 0);
        assert_eq!(libc::munmap((memory.start + PAGE) as *mut libc::c_void, PAGE as usize), 0);
    }
    assert_eq!(word(&mut port, AT), Err(FaultReason::MemoryGone));
    assert_eq!(word(&mut port, AT + PAGE), Err(FaultReason::MemoryGone));
    assert_eq!(word(&mut port, AT + 2 * PAGE), Ok(1));
    let lost = |page: u64| LostMemory { address: memory.start + page * PAGE, length: PAGE, iova: AT + page * PAGE };
    assert_eq!(followed.lost(2), [lost(0), lost(1)]);
    // It is told once.
    memory.replace(0, 2, 3);
    assert_eq!(followed.lost(0), []);
    assert_eq!(word(&mut port, AT + PAGE), Err(FaultReason::MemoryGone));
}

#[test]
fn memory_that_moves_is_followed() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let Some(followed) = Followed::new() else { return };
    device.attach(None, &ioas).unwrap();
    let (memory, target) = (Memory::new(3, 1), Memory::new(8, 7));
    followed.give(&ioas, &memory, AT);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let page = PAGE as usize;
    let go = |from: u64, to: u64| {
        let (from, to) = (from as *mut libc::c_void, to as *mut libc::c_void);
        // SAFETY: memory that has no references, to memory that has none.
        assert_eq!(unsafe { libc::mremap(from, page, page, flags, to) }, to);
    };
    go(memory.start + PAGE, target.start + 5 * PAGE);
    Memory { start: target.start + 5 * PAGE, length: PAGE }.fill(2);
    memory.replace(1, 1, 9);
    assert_eq!([0, 1, 2].map(|page| word(&mut port, AT + page * PAGE)), [Ok(1), Ok(2), Ok(1)]);
    let mut across = vec![0; 3 * PAGE as usize];
    port.read(Iova(AT), &mut across).unwrap();
    port.write(Iova(AT + PAGE - 8), &[5; 16]).unwrap();
    assert_eq!(word(&mut port, AT + PAGE), Ok(0x0505_0505_0505_0505));
    // And further, and away.
    go(target.start + 5 * PAGE, target.start);
    assert_eq!(word(&mut port, AT + PAGE), Ok(0x0505_0505_0505_0505));
    assert_eq!(followed.lost(0), []);
    target.replace(0, 8, 8);
    assert_eq!(word(&mut port, AT + PAGE), Err(FaultReason::MemoryGone));
    assert_eq!(followed.lost(1), [LostMemory { address: target.start, length: PAGE, iova: AT + PAGE }]);
    ioas.unmap(range(AT, 3 * PAGE)).unwrap();
}

#[test]
fn only_a_userfaultfd_that_is_new_can_be_followed() {
    let process = Process::open(std::process::id()).unwrap();
    let error = |file: OwnedFd| process.follow(file, |_| ()).unwrap_err().raw_os_error();
    assert_eq!(error(File::open("/dev/null").unwrap().into()), Some(libc::EINVAL));
    if Followed::new().is_none() {
        return;
    }
    let _alone = alone();
    let enabled = new_userfaultfd();
    let again = enabled.as_fd().try_clone_to_owned().unwrap();
    process.follow(enabled, |_| ()).unwrap();
    assert_eq!(error(again), Some(libc::EINVAL));
    assert_eq!(error(new_userfaultfd()), Some(libc::EBUSY));
}

#[test]
fn a_notice_that_panics_hurts_nobody() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let (_alone, process) = (alone(), Arc::new(Process::open(std::process::id()).unwrap()));
    device.attach(None, &ioas).unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let counts = told.clone();
    let notice = move |_| {
        counts.fetch_add(1, Ordering::Relaxed);
        panic!("a caller's bug");
    };
    if process.follow(new_userfaultfd(), notice).is_err() {
        return;
    }
    let memory = Memory::new(2, 1);
    give(&process, &ioas, &memory, AT);
    std::thread::scope(|scope| {
        let replaces = scope.spawn(|| memory.replace(0, 2, 2));
        while !replaces.is_finished() {
            process.take_news();
        }
    });
    assert_eq!(word(&mut port, AT), Err(FaultReason::MemoryGone));
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

/// Threads map memory, give it to a device, and take it away rightly, or wrongly and at once put a secret in its place.
#[test]
fn a_device_sees_no_memory_that_it_was_not_given_and_all_that_it_was() {
    const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
    let bench = Bench::new();
    let (endpoint, _port, ioas, device) = bench.one_device();
    let Some(followed) = Followed::new() else { return };
    device.attach(None, &ioas).unwrap();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut port = endpoint.port();
            while !ends.load(Ordering::Relaxed) {
                for slot in 0..3 {
                    assert_ne!(word(&mut port, AT + slot * PAGE), Ok(SECRET));
                }
            }
        });
        let threads: Vec<_> = (0..3u64)
            .map(|slot| {
                let (followed, ioas, endpoint) = (&followed, &ioas, &endpoint);
                scope.spawn(move || {
                    let mut port = endpoint.port();
                    let iova = AT + slot * PAGE;
                    for round in 0..300u64 {
                        // In no place of its own: it comes where another thread's memory was just now.
                        let start = Memory::map(None, PAGE, libc::PROT_READ | libc::PROT_WRITE);
                        let memory = Memory { start, length: PAGE };
                        memory.fill(round);
                        followed.give(ioas, &memory, iova);
                        assert_eq!(word(&mut port, iova), Ok(round), "memory that is there is reached");
                        let unmap = || {
                            // SAFETY: memory that has no references.
                            assert_eq!(unsafe { libc::munmap(start as *mut libc::c_void, PAGE as usize) }, 0);
                        };
                        if (round + slot).is_multiple_of(2) {
                            ioas.unmap(range(iova, PAGE)).unwrap();
                            unmap();
                        } else {
                            unmap();
                            let secret = Memory::map(None, PAGE, libc::PROT_READ | libc::PROT_WRITE);
                            Memory { start: secret, length: PAGE }.fill(SECRET);
                            assert_eq!(word(&mut port, iova), Err(FaultReason::MemoryGone));
                            ioas.unmap(range(iova, PAGE)).unwrap();
                            // SAFETY: as above.
                            assert_eq!(unsafe { libc::munmap(secret as *mut libc::c_void, PAGE as usize) }, 0);
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        ends.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|thread| thread.unwrap());
    });
    assert_eq!(followed.lost(450).len(), 450);
}
