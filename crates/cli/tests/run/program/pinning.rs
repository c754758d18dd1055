//! What memory can be mapped for a device: what Linux pins.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use ioasid_uapi::{ioasid as extra, iommufd};

use super::SOURCE;
use crate::driver::{Memory, Space, ioctl};

const READ: u32 = iommufd::MAP_READABLE;
const BOTH: u32 = iommufd::MAP_READABLE | iommufd::MAP_WRITEABLE;

/// A space with a page table, and a place for each mapping.
struct Pinning {
    space: Space,
    next: u64,
    device: OwnedFd,
    hwpt: u32,
}

impl Pinning {
    fn new() -> Self {
        let space = Space::new();
        let device = crate::driver::open("/dev/vfio/devices/vfio0").unwrap();
        crate::driver::Engine::bind(&device, &space.iommu).unwrap();
        let mut attach = ioasid_uapi::vfio::AttachIommufdPt { argsz: 16, pt_id: space.ioas, ..Default::default() };
        ioctl(&device, ioasid_uapi::vfio::DEVICE_ATTACH_IOMMUFD_PT, &mut attach).unwrap();
        Self { space, next: SOURCE, device, hwpt: attach.pt_id }
    }

    /// Maps a page: 0, or the errno.
    fn map(&mut self, flags: u32, user_va: u64) -> i32 {
        self.next += 4096;
        let (flags, ioas_id) = (flags | iommufd::MAP_FIXED_IOVA, self.space.ioas);
        let mut map =
            iommufd::IoasMap { size: 40, flags, ioas_id, user_va, length: 4096, iova: self.next, reserved: 0 };
        ioctl(&self.space.iommu, iommufd::IOAS_MAP, &mut map).err().unwrap_or(0)
    }

    fn map_file(&mut self, file: &impl AsRawFd, start: u64, length: u64) -> i32 {
        self.next += 4096;
        let (flags, fd) = (BOTH | iommufd::MAP_FIXED_IOVA, file.as_raw_fd());
        let mut map =
            iommufd::IoasMapFile { size: 40, flags, ioas_id: self.space.ioas, fd, start, length, iova: self.next };
        ioctl(&self.space.iommu, iommufd::IOAS_MAP_FILE, &mut map).err().unwrap_or(0)
    }

    /// Reads a byte of what was mapped last, as a device: the byte, or the errno.
    fn read(&self) -> Result<u8, i32> {
        let (mut byte, size) = (0u8, size_of::<extra::Copy>() as u32);
        let (id, iova, user_va) = (self.hwpt, self.next, &raw mut byte as u64);
        let mut copy = extra::Copy { size, flags: 0, id, pasid: 0, iova, length: 1, user_va };
        ioctl(&self.space.iommu, extra::COPY, &mut copy).map(|_| byte)
    }
}

pub fn as_linux(directory: &str) {
    let mut pinning = Pinning::new();
    let file = File::options().read(true).write(true).create(true).truncate(true).open(directory).unwrap();
    file.set_len(4096).unwrap();
    std::fs::remove_file(directory).unwrap();
    let mapped = Memory::map(4096, libc::MAP_SHARED, file.as_raw_fd(), 0);
    // Unless this was built in memory.
    let refused = if rustix::fs::fcntl_get_seals(&file).is_ok() { 0 } else { libc::EFAULT };
    assert_eq!(pinning.map(BOTH, mapped.address), refused, "a page that may have to be written back");
    assert_eq!(pinning.map(READ, mapped.address), 0);
    mapped.write(0, b"x");
    assert_eq!(pinning.read(), Ok(b'x'));
    let private = Memory::map(4096, libc::MAP_PRIVATE, file.as_raw_fd(), 0);
    assert_eq!(pinning.map(BOTH, private.address), 0, "a copy of a page of a file");

    // SAFETY: takes a number.
    let secret = unsafe { libc::syscall(libc::SYS_memfd_secret, 0) } as i32;
    if secret >= 0 {
        // SAFETY: a descriptor that was just made.
        let secret = unsafe { OwnedFd::from_raw_fd(secret) };
        rustix::fs::ftruncate(&secret, 4096).unwrap();
        let mapped = Memory::map(4096, libc::MAP_SHARED, secret.as_raw_fd(), 0);
        mapped.write(0, b"x");
        assert_eq!([BOTH, READ].map(|flags| pinning.map(flags, mapped.address)), [libc::EFAULT; 2], "kept secret");
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    for line in maps.lines().filter(|line| line.ends_with("[vvar]")) {
        let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        assert_eq!(pinning.map(READ, start), libc::EFAULT, "the kernel's");
    }
    let protected = |prot: i32| {
        let memory = Memory::new(4096, libc::MAP_PRIVATE);
        memory.write(0, b"y");
        // SAFETY: memory of ours, of which nothing has a reference.
        assert_eq!(unsafe { libc::mprotect(memory.address as *mut libc::c_void, 4096, prot) }, 0);
        memory
    };
    let (written, read, none) = (protected(libc::PROT_WRITE), protected(libc::PROT_READ), protected(libc::PROT_NONE));
    assert_eq!([BOTH, READ].map(|flags| pinning.map(flags, none.address)), [libc::EFAULT; 2]);
    assert_eq!(pinning.map(BOTH, read.address), libc::EFAULT);
    assert_eq!((pinning.map(READ, read.address), pinning.read()), (0, Ok(b'y')));
    assert_eq!(pinning.map(READ, written.address), libc::EFAULT);
    assert_eq!((pinning.map(BOTH, written.address), pinning.read()), (0, Ok(b'y')), "writing is all that is asked for");

    let memfd = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memfd, 4096 + 100).unwrap();
    assert_eq!(pinning.map_file(&memfd, 0, 4096), 0);
    assert_eq!(pinning.map_file(&memfd, 4096, 4096), libc::EINVAL, "the file ends inside of the page");
    large_pages(&mut pinning);
    drop(pinning.device);
    println!("as Linux");
}

/// Parts of a large page, of a file that is cut short.
fn large_pages(pinning: &mut Pinning) {
    const SIZE: usize = 2 << 20;
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB | rustix::fs::MemfdFlags::HUGE_2MB;
    let Ok(file) = rustix::fs::memfd_create(c"test", flags) else { return };
    rustix::fs::ftruncate(&file, SIZE as u64).unwrap();
    let Ok(memory) = Memory::try_map(SIZE, libc::MAP_SHARED, file.as_raw_fd(), 0) else {
        eprintln!("left out: there is no free page of 2 MiB");
        return;
    };
    memory.write(4096, b"z");
    assert_eq!((pinning.map_file(&file, 4096, 4096), pinning.read()), (0, Ok(b'z')));
    assert_eq!((pinning.map(BOTH, memory.address + 4096), pinning.read()), (0, Ok(b'z')));
    rustix::fs::ftruncate(&file, 0).unwrap();
    assert_eq!(pinning.read(), Err(libc::EFAULT));
    let other = Memory::new(4096, libc::MAP_SHARED);
    other.write(0, b"o");
    assert_eq!((pinning.map(BOTH, other.address), pinning.read()), (0, Ok(b'o')), "nothing else is lost");
}
