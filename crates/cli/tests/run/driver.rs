//! A driver for the I/OAT engine on plain system calls, as small as it can be.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ioasid_uapi::{iommufd, vfio};

/// Registers of the channel, from the start of the BAR.
pub const CHANCTRL: usize = 0x80;
pub const DMACOUNT: usize = 0x86;
pub const CHANSTS: usize = 0x88;
pub const CHAINADDR: usize = 0x90;
pub const CHANCMP: usize = 0x98;
pub const CHANERR: usize = 0xa8;
pub const CHANCMD: usize = 0x84;
pub const CBVER: usize = 0x08;

pub const RESET: u8 = 1 << 5;
const HALTED: u64 = 3;
const DONE: u64 = 1;

pub fn open(path: &str) -> io::Result<OwnedFd> {
    let path = CString::new(path).unwrap();
    // SAFETY: a terminated string.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    // SAFETY: a descriptor that was just opened for us.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// An ioctl whose argument is `argument`; the error is the errno.
pub fn ioctl<T>(fd: &impl AsRawFd, number: u32, argument: &mut T) -> Result<i32, i32> {
    ioctl_at(fd.as_raw_fd(), number, std::ptr::from_mut(argument) as u64)
}

pub fn ioctl_at(fd: RawFd, number: u32, address: u64) -> Result<i32, i32> {
    // SAFETY: whatever the kernel, or who answers in its place, does with a bad address, it does no harm here: callers
    // pass structures that they own, or addresses where nothing is.
    let result = unsafe { libc::ioctl(fd, libc::c_ulong::from(number), address) };
    if result < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(result) }
}

/// Memory that is mapped until it is dropped.
pub struct Memory {
    pub address: u64,
    pub length: usize,
}

impl Memory {
    pub fn new(length: usize, flags: i32) -> Self {
        Self::map(length, flags | libc::MAP_ANONYMOUS, -1, 0)
    }

    pub fn map(length: usize, flags: i32, fd: RawFd, offset: u64) -> Self {
        Self::try_map(length, flags, fd, offset).unwrap()
    }

    pub fn try_map(length: usize, flags: i32, fd: RawFd, offset: u64) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, prot, flags, fd, offset as i64) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address: at as u64, length })
    }

    /// The 64-bit word at `offset`.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset + 8 <= self.length && offset.is_multiple_of(8));
        // SAFETY: inside the mapping and aligned; shared with the device, so atomic.
        unsafe { AtomicU64::from_ptr((self.address as usize + offset) as *mut u64) }
    }

    pub fn fill(&self, seed: u64) {
        for at in (0..self.length).step_by(8) {
            self.word(at).store(seed.wrapping_mul(at as u64 | 1), Ordering::Relaxed);
        }
    }

    pub fn holds(&self, seed: u64) -> bool {
        (0..self.length).step_by(8).all(|at| self.word(at).load(Ordering::Relaxed) == seed.wrapping_mul(at as u64 | 1))
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        // SAFETY: inside the mapping.
        unsafe { std::ptr::copy(bytes.as_ptr(), (self.address as usize + offset) as *mut u8, bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: a mapping of our own that nobody uses any more.
        unsafe { libc::munmap(self.address as *mut libc::c_void, self.length) };
    }
}

/// A load of one register.
pub fn load<T: Copy>(registers: &Memory, offset: usize) -> T {
    assert!(offset + size_of::<T>() <= registers.length);
    // SAFETY: inside the mapping.
    unsafe { ((registers.address as usize + offset) as *const T).read_volatile() }
}

/// A store to one register.
pub fn store<T: Copy>(registers: &Memory, offset: usize, value: T) {
    assert!(offset + size_of::<T>() <= registers.length);
    // SAFETY: inside the mapping.
    unsafe { ((registers.address as usize + offset) as *mut T).write_volatile(value) };
}

/// A context with one address space.
pub struct Space {
    pub iommu: OwnedFd,
    pub ioas: u32,
}

impl Space {
    pub fn new() -> Self {
        let iommu = open("/dev/iommu").unwrap();
        let mut alloc = iommufd::IoasAlloc { size: 12, ..Default::default() };
        ioctl(&iommu, iommufd::IOAS_ALLOC, &mut alloc).unwrap();
        Self { iommu, ioas: alloc.out_ioas_id }
    }

    pub fn map(&self, memory: &Memory, iova: u64, flags: u32) {
        self.map_bytes(memory.address, memory.length, iova, flags);
    }

    pub fn map_part(&self, memory: &Memory, bytes: std::ops::Range<usize>, iova: u64) {
        let flags = iommufd::MAP_READABLE | iommufd::MAP_WRITEABLE;
        self.map_bytes(memory.address + bytes.start as u64, bytes.len(), iova, flags);
    }

    fn map_bytes(&self, user_va: u64, length: usize, iova: u64, flags: u32) {
        let (flags, length) = (flags | iommufd::MAP_FIXED_IOVA, length as u64);
        let mut map = iommufd::IoasMap { size: 40, flags, ioas_id: self.ioas, user_va, length, iova, reserved: 0 };
        ioctl(&self.iommu, iommufd::IOAS_MAP, &mut map).unwrap();
    }

    pub fn map_rw(&self, memory: &Memory, iova: u64) {
        self.map(memory, iova, iommufd::MAP_READABLE | iommufd::MAP_WRITEABLE);
    }

    pub fn unmap(&self, iova: u64, length: usize) {
        let mut unmap = iommufd::IoasUnmap { size: 24, ioas_id: self.ioas, iova, length: length as u64 };
        ioctl(&self.iommu, iommufd::IOAS_UNMAP, &mut unmap).unwrap();
    }

    pub fn destroy(self) {
        ioctl(&self.iommu, iommufd::DESTROY, &mut iommufd::Destroy { size: 8, id: self.ioas }).unwrap();
    }
}

/// An engine, bound and with its registers mapped, not attached.
pub struct Engine {
    pub file: OwnedFd,
    pub registers: Memory,
}

impl Engine {
    pub fn open(number: u32, iommu: &OwnedFd) -> Self {
        let file = open(&format!("/dev/vfio/devices/vfio{number}")).unwrap();
        Self::bind(&file, iommu).unwrap();
        Self::of(file)
    }

    /// That which an opened device is.
    pub fn of(file: OwnedFd) -> Self {
        Self::with_bar(file, 0)
    }

    /// As [`Engine::of`], for a device whose registers are in BAR `bar`.
    pub fn with_bar(file: OwnedFd, bar: u32) -> Self {
        let region = |index| {
            let mut info = vfio::RegionInfo { argsz: 32, index, ..Default::default() };
            ioctl(&file, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
            info
        };
        let (bar, config) = (region(bar), region(7));
        let command = 0x406u16.to_ne_bytes();
        // SAFETY: two bytes of ours.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), command.as_ptr().cast(), 2, config.offset as i64 + 4) };
        assert_eq!(written, 2);
        let registers = Memory::map(bar.size as usize, libc::MAP_SHARED, file.as_raw_fd(), bar.offset);
        Self { file, registers }
    }

    pub fn bind(file: &OwnedFd, iommu: &OwnedFd) -> Result<i32, i32> {
        let mut bind = vfio::BindIommufd { argsz: 24, iommufd: iommu.as_raw_fd(), ..Default::default() };
        ioctl(file, vfio::DEVICE_BIND_IOMMUFD, &mut bind)
    }

    pub fn attach(&self, ioas: u32) {
        let mut attach = vfio::AttachIommufdPt { argsz: 16, pt_id: ioas, ..Default::default() };
        ioctl(&self.file, vfio::DEVICE_ATTACH_IOMMUFD_PT, &mut attach).unwrap();
    }

    pub fn detach(&self) {
        let mut detach = vfio::DetachIommufdPt { argsz: 12, ..Default::default() };
        ioctl(&self.file, vfio::DEVICE_DETACH_IOMMUFD_PT, &mut detach).unwrap();
    }

    pub fn reset(&self) {
        store(&self.registers, CHANERR, load::<u32>(&self.registers, CHANERR));
        store(&self.registers, CHANCMD, RESET);
        while load::<u8>(&self.registers, CHANCMD) & RESET != 0 {}
    }

    /// Starts one copy, with its descriptor at `ring` (mapped at `ring_iova`). `next` is the descriptor after it.
    pub fn start(&self, ring: &Memory, ring_iova: u64, from: u64, to: u64, length: usize) {
        let words = [length as u64, from, to, ring_iova];
        words.iter().enumerate().for_each(|(n, word)| ring.word(8 * n).store(*word, Ordering::Relaxed));
        self.reset();
        store(&self.registers, CHANCTRL, 0x0008u16);
        store(&self.registers, CHAINADDR, ring_iova);
        store(&self.registers, DMACOUNT, 1u16);
    }

    /// Waits for the channel: Ok if it is done, the error bits if it halted.
    pub fn wait(&self) -> Result<(), u32> {
        let begin = Instant::now();
        loop {
            match load::<u64>(&self.registers, CHANSTS) & 7 {
                DONE => return Ok(()),
                HALTED => return Err(load(&self.registers, CHANERR)),
                _ => assert!(begin.elapsed() < Duration::from_secs(20), "the channel never finished"),
            }
        }
    }

    pub fn copy(&self, ring: &Memory, ring_iova: u64, from: u64, to: u64, length: usize) -> Result<(), u32> {
        self.start(ring, ring_iova, from, to, length);
        self.wait()
    }
}
