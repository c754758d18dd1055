//! Requests at random: all numbers, wild arguments, from four threads that also fork, execute, end, close and unmap.
//!
//! A supervisor starts one worker after the other, as each ends soon, one way or another. Between two workers the
//! runner serves no object and no file, so its memory can be compared.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ioasid_uapi::vfio::{container, group};

use crate::driver::Memory;
use crate::program::remains::{memory_of, runner};

const THREADS: u64 = 4;
/// Requests of one worker, if it lives as long.
const LIFE: u64 = 50_000;
/// Pages that arguments and data are in.
const ARENA: u64 = 64 * PAGE;
const PAGE: u64 = 4096;
/// The longest time without an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes `count` requests that follow from `seed`, and checks that the runner's memory does not grow after the first
/// tenth.
pub fn requests(seed: u64, count: u64) {
    let done = Memory::new(PAGE as usize, libc::MAP_SHARED);
    let runner = runner();
    let mut tenths = Vec::new();
    let mut generation = 0;
    while tenths.len() < 10 {
        worker(seed << 32 | generation, done.word(0));
        generation += 1;
        if done.word(0).load(Ordering::Relaxed) >= count / 10 * (tenths.len() as u64 + 1) {
            // The runner closes the worker's files by and by.
            std::thread::sleep(Duration::from_millis(300));
            tenths.push(memory_of(&runner) >> 10);
        }
    }
    let (first, last) = (tenths[0], tenths[9]);
    println!("seed {seed}: {count} requests, {generation} workers, KiB of the runner at each tenth: {tenths:?}");
    assert!(last < first + first / 4 + 2048, "the runner's memory grew from {first} to {last} KiB");
}

/// Runs one worker to its end, and ends it if it makes no request for long.
fn worker(seed: u64, done: &AtomicU64) {
    // SAFETY: the child runs plain code and ends without returning.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // Descriptors that the test's own caller left open are not for random requests.
        // SAFETY: takes numbers; nothing of this process owns a descriptor here.
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
        life(seed, done);
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
    let (mut seen, mut since) = (done.load(Ordering::Relaxed), Instant::now());
    loop {
        // SAFETY: waits for the child, and wants nothing.
        if unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) } != 0 {
            break;
        }
        let now = done.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "no request was answered for {PATIENCE:?}, with seed {seed:#x}");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Children of it may have been left behind.
    // SAFETY: as above.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

fn life(seed: u64, done: &AtomicU64) {
    let arena = Memory::new(ARENA as usize, if seed.is_multiple_of(2) { libc::MAP_SHARED } else { libc::MAP_PRIVATE });
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let address = arena.address;
            scope.spawn(move || {
                let mut random = Random((seed * THREADS + number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                let mut caller = Caller { files: Vec::new(), bars: Vec::new(), arena: address };
                for _ in 0..LIFE / THREADS {
                    caller.act(&mut random);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
}

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1 << 63)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What a thread has.
struct Caller {
    files: Vec<i32>,
    bars: Vec<(u64, u64)>,
    arena: u64,
}

const PATHS: [&std::ffi::CStr; 8] = [
    c"/dev/iommu",
    c"/dev/vfio/vfio",
    c"/dev/vfio/0",
    c"/dev/vfio/1",
    c"/dev/vfio/2",
    c"/dev/vfio/devices/vfio0",
    c"/dev/vfio/devices/vfio1",
    c"/dev/vfio/devices/vfio2",
];
/// The devices, as groups know them.
const NAMES: [&std::ffi::CStr; 4] = [c"0001:00:01.0", c"0001:00:02.0", c"0001:00:03.0", c"0001:00:01.0 vf_token=1"];

impl Caller {
    fn act(&mut self, random: &mut Random) {
        // SAFETY: every call is given what may be wrong; what it does, it does to this worker, whose memory is not
        // looked at again.
        unsafe {
            match random.below(10_000) {
                0..=7999 => self.request(random),
                8000..=8599 if self.files.len() < 60 => {
                    let file = libc::open(random.one(&PATHS).as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
                    if file >= 0 {
                        self.files.push(file);
                    }
                }
                8600..=8999 => self.transfer(random),
                9000..=9299 => self.map(random),
                9300..=9349 => self.touch(random),
                9350..=9499 => self.group(random),
                9500..=9799 => {
                    if let Some((address, length)) = self.bars.pop() {
                        libc::munmap(address as *mut libc::c_void, length as usize);
                    }
                }
                9800..=9969 => {
                    if !self.files.is_empty() {
                        let at = random.below(self.files.len() as u64) as usize;
                        libc::close(self.files.swap_remove(at));
                    }
                }
                9970..=9984 => {
                    let page = self.arena + random.below(ARENA / PAGE) * PAGE;
                    libc::madvise(page as *mut libc::c_void, PAGE as usize, libc::MADV_DONTNEED);
                }
                9985..=9996 => self.child(random),
                9997 => {
                    libc::dup(self.file(random));
                }
                9998 if random.below(8) == 0 => {
                    libc::kill(libc::getpid(), libc::SIGKILL);
                }
                _ => {
                    libc::sched_yield();
                }
            }
        }
    }

    fn file(&self, random: &mut Random) -> i32 {
        match random.below(20) {
            // None that it was given: a write somewhere in standard output would make a file of terabytes.
            0 => {
                if random.below(2) == 0 {
                    -1
                } else {
                    3 + random.below(60) as i32
                }
            }
            _ if self.files.is_empty() => -1,
            _ => random.one(&self.files),
        }
    }

    /// A word of an argument.
    fn word(&self, random: &mut Random) -> u64 {
        match random.below(12) {
            0 | 1 => 0,
            2..=4 => random.below(24),
            5 => self.file(random) as u64,
            6 => self.arena + random.below(ARENA / PAGE) * PAGE,
            7 => random.below(1 << 20) * PAGE,
            8 => random.below(16) * PAGE,
            9 => u64::MAX >> random.below(64),
            10 => 1 << random.below(64),
            _ => random.next(),
        }
    }

    unsafe fn request(&self, random: &mut Random) {
        let number = u64::from(b';') << 8
            | match random.below(4) {
                0 => 0x80 + random.below(0x20),
                1 => 0xc0 + random.below(0x20),
                2 => 100 + random.below(24),
                _ => random.below(256),
            };
        let length = random.one(&[8u64, 12, 16, 20, 24, 32, 40, 48, 56, 64, 80, 96, 0, 4, 4095]);
        let mut address = self.arena + random.below(ARENA / 8 - 64) * 8;
        for at in (0..length.min(96)).step_by(8) {
            let word = match at {
                0 => length | (self.word(random) & 0xffff_ffff) << 32,
                _ if random.below(2) == 0 => self.word(random) & 0xffff_ffff | self.word(random) << 32,
                _ => self.word(random),
            };
            // SAFETY: within the arena, which is mapped for as long as this worker lives.
            unsafe { (address as *mut u64).write_volatile(word) };
        }
        if random.below(16) == 0 {
            let end = self.arena + ARENA - random.below(64);
            let bar = self.bars.last().map_or(0, |bar| bar.0);
            address = random.one(&[0, 1, u64::MAX, 1 << 63, end, bar, 0x7fff_ffff_f000]);
        }
        // SAFETY: see `act`.
        unsafe { libc::ioctl(self.file(random), number, address) };
    }

    /// A step on the way to a device out of a group, as random numbers would hardly make it.
    unsafe fn group(&mut self, random: &mut Random) {
        let (file, other) = (self.file(random), self.file(random));
        // SAFETY: requests on whatever these are, with a number, a name that is there for ever, or one of ours.
        unsafe {
            match random.below(4) {
                0 => libc::ioctl(file, group::SET_CONTAINER.into(), &raw const other),
                1 => libc::ioctl(file, group::UNSET_CONTAINER.into(), 0),
                2 => libc::ioctl(file, container::SET_IOMMU.into(), random.one(&[1u64, 3, 3, 9])),
                _ => {
                    let device = libc::ioctl(file, group::GET_DEVICE_FD.into(), random.one(&NAMES).as_ptr());
                    if device >= 0 && self.files.len() < 60 {
                        self.files.push(device);
                    }
                    device
                }
            };
        }
    }

    unsafe fn transfer(&self, random: &mut Random) {
        let offset = random.below(10) << 40 | random.below(0x5000);
        let (file, length) = (self.file(random), random.below(5000) as usize);
        let address = (self.arena + random.below(ARENA)) as *mut libc::c_void;
        // SAFETY: see `act`.
        unsafe {
            if random.below(2) == 0 {
                libc::pread(file, address, length, offset as i64);
            } else {
                libc::pwrite(file, address, length.min(16), offset as i64);
            }
        }
    }

    unsafe fn map(&mut self, random: &mut Random) {
        let (length, protection) = (PAGE * (1 + random.below(5)), random.one(&[3, 3, 3, 3, 3, 3, 1, 2, 0]));
        let offset = ((random.below(10) << 40) | (random.below(5) * PAGE)) as i64;
        let flags = random.one(&[libc::MAP_SHARED, libc::MAP_SHARED, libc::MAP_PRIVATE]);
        let file = self.file(random);
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length as usize, protection, flags, file, offset) };
        if at != libc::MAP_FAILED {
            self.bars.push((at as u64, length));
        }
    }

    /// An access that may well end the worker, so it is mostly one that does not.
    unsafe fn touch(&self, random: &mut Random) {
        let Some(&(start, length)) = self.bars.last() else { return };
        let address = start + random.below(length / 8) * 8;
        // SAFETY: see `act`; what is not mapped for it raises a signal.
        unsafe {
            if random.below(2) == 0 {
                (address as *const u32).read_volatile();
            } else {
                (address as *mut u32).write_volatile(random.next() as u32);
            }
        }
    }

    /// A child that makes requests with what it has from here, or executes, and ends.
    unsafe fn child(&mut self, random: &mut Random) {
        // SAFETY: the child makes system calls only, and ends without returning.
        let child = unsafe { libc::fork() };
        if child == 0 {
            for _ in 0..random.below(40) {
                // SAFETY: see `act`.
                unsafe { self.request(random) };
            }
            if random.below(4) == 0 {
                let arguments = [c"true".as_ptr(), std::ptr::null()];
                // SAFETY: terminated strings, and an array that ends with null.
                unsafe { libc::execv(c"/bin/true".as_ptr(), arguments.as_ptr()) };
            }
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        if child > 0 {
            // SAFETY: waits for the child, and wants nothing.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        }
    }
}
