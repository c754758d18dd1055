//! A BAR that is memory: two devices that share one, and a third with its own.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use ioasid_uapi::{iommufd, vfio};

use crate::driver::{Engine, Memory, Space, ioctl, load, open};

const MIBIBYTE: usize = 1 << 20;
const PAGE: usize = 4096;

/// Uses them as a program does that does not ask what is memory. With `mapped`, the handler maps it.
pub fn used(mapped: bool) {
    let space = Space::new();
    let open = |number| {
        let file = open(&format!("/dev/vfio/devices/vfio{number}")).unwrap();
        Engine::bind(&file, &space.iommu).unwrap();
        file
    };
    let (one, other, third) = (open(0), open(1), open(2));
    let mut attach = vfio::AttachIommufdPt { argsz: 16, pt_id: space.ioas, ..Default::default() };
    ioctl(&one, vfio::DEVICE_ATTACH_IOMMUFD_PT, &mut attach).unwrap();
    let offset = region(&one);
    let map = |file: &OwnedFd, start: usize, length: usize| {
        Memory::map(length, libc::MAP_SHARED, file.as_raw_fd(), offset + start as u64)
    };
    let whole = map(&one, 0, MIBIBYTE);
    cannot_be_mapped_for_devices(&space, &whole);
    whole.word(0).store(1, Ordering::Relaxed);
    whole.word(MIBIBYTE - 8).store(2, Ordering::Relaxed);
    assert_eq!(is_memory(whole.address), mapped, "the runner is not asked any more");
    cannot_be_mapped_for_devices(&space, &whole);

    // A part, at another place, of the other device.
    let part = map(&other, MIBIBYTE - PAGE, PAGE);
    assert_eq!(part.word(PAGE - 8).load(Ordering::Relaxed), 2);
    let theirs = map(&third, 0, PAGE);
    assert_eq!(theirs.word(0).load(Ordering::Relaxed), 0);
    drop((part, theirs));
    let bytes: [u8; 64] = load(&whole, 0);
    assert_eq!(bytes[..9], [1, 0, 0, 0, 0, 0, 0, 0, 0]);

    // By request it is the same memory.
    let mut word = [0u8; 8];
    // SAFETY: eight bytes of ours.
    let read = unsafe { libc::pread(one.as_raw_fd(), word.as_mut_ptr().cast(), 8, offset as i64) };
    assert_eq!((read, word), (8, [1, 0, 0, 0, 0, 0, 0, 0]));
    // SAFETY: as above.
    let written = unsafe { libc::pwrite(other.as_raw_fd(), [3u8; 8].as_ptr().cast(), 8, offset as i64 + 16) };
    assert_eq!((written, whole.word(16).load(Ordering::Relaxed)), (8, 0x0303_0303_0303_0303));

    // A child has it, also what it maps itself.
    // SAFETY: the child runs plain code and ends without returning.
    let child = unsafe { libc::fork() };
    if child == 0 {
        whole.word(24).store(4, Ordering::Relaxed);
        map(&other, 0, PAGE).word(32).store(5, Ordering::Relaxed);
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
    let mut status = 0;
    // SAFETY: `status` is written.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!((status, whole.word(24).load(Ordering::Relaxed)), (0, 4));
    assert_eq!(whole.word(32).load(Ordering::Relaxed), 5);

    // Registers are none of it.
    let registers = Memory::map(PAGE, libc::MAP_SHARED, one.as_raw_fd(), 0);
    assert_eq!(load::<u32>(&registers, 8), 0);
    assert!(!is_memory(registers.address));

    let part = map(&other, 0, PAGE);
    let without = without_descriptors(|| part.word(32).load(Ordering::Relaxed));
    assert_eq!(without, 5, "each access is performed");
    assert!(!is_memory(part.address));
    drop(part);
    read_only(&one, offset);
    if mapped {
        page_by_page(&other, offset);
        not_for_writing(offset);
    }
    touched_together(&one, offset);
    ioctl(&one, vfio::DEVICE_DETACH_IOMMUFD_PT, &mut vfio::DetachIommufdPt { argsz: 12, ..Default::default() })
        .unwrap();
    space.destroy();
}

/// Where BAR 2 is. Its capabilities say that all of it is memory.
fn region(file: &OwnedFd) -> u64 {
    #[repr(C)]
    #[derive(Default)]
    struct Answer {
        info: vfio::RegionInfo,
        sparse: vfio::SparseMmap,
        area: vfio::SparseMmapArea,
    }
    let mut short = vfio::RegionInfo { argsz: 32, index: 2, ..Default::default() };
    ioctl(file, vfio::DEVICE_GET_REGION_INFO, &mut short).unwrap();
    assert_eq!((short.argsz, short.cap_offset), (size_of::<Answer>() as u32, 0));
    let info = vfio::RegionInfo { argsz: short.argsz, index: 2, ..Default::default() };
    let mut answer = Answer { info, ..Default::default() };
    ioctl(file, vfio::DEVICE_GET_REGION_INFO, &mut answer).unwrap();
    let Answer { info, sparse, area } = answer;
    assert_eq!((info.flags, info.cap_offset), (0b1111, 32));
    assert_eq!((sparse.header.id, sparse.header.next, sparse.nr_areas), (vfio::REGION_INFO_CAP_SPARSE_MMAP, 0, 1));
    assert_eq!((area.offset, area.size), (0, info.size));
    info.offset
}

/// A touch changes the page that it touches, and no other: the program may meanwhile put something else there.
fn page_by_page(file: &OwnedFd, offset: u64) {
    let memory = Memory::map(3 * PAGE, libc::MAP_SHARED, file.as_raw_fd(), offset);
    assert_eq!(memory.word(PAGE + 32).load(Ordering::Relaxed), 0);
    let pages = [0, 1, 2].map(|page| is_memory(memory.address + page * PAGE as u64));
    assert_eq!(pages, [false, true, false]);
}

/// Two threads are the first to touch a page, at the same time.
fn touched_together(file: &OwnedFd, offset: u64) {
    let registers = Memory::map(PAGE, libc::MAP_SHARED, file.as_raw_fd(), 0);
    for _ in 0..300 {
        let memory = Memory::map(PAGE, libc::MAP_SHARED, file.as_raw_fd(), offset);
        let together = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for word in [64, 72] {
                let (memory, together) = (&memory, &together);
                scope.spawn(move || {
                    together.wait();
                    memory.word(word).fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        // Neither was taken for a fault of the program's own.
        assert_eq!(load::<u32>(&registers, 8), 0);
        assert_eq!(memory.word(64).swap(0, Ordering::Relaxed), 1);
        assert_eq!(memory.word(72).swap(0, Ordering::Relaxed), 1);
    }
}

/// A program that opened the device for reading does not get its memory for writing.
fn not_for_writing(offset: u64) {
    let space = Space::new();
    let path = c"/dev/vfio/devices/vfio3";
    // SAFETY: a string that ends, and a number.
    let file = unsafe { OwnedFd::from_raw_fd(libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC)) };
    Engine::bind(&file, &space.iommu).unwrap();
    let read_only = map_to_read(&file, offset);
    // SAFETY: what was just mapped.
    assert_eq!(unsafe { read_only.cast::<u64>().read_volatile() }, 0);
    let allow = || {
        // SAFETY: as above.
        let done = unsafe { libc::mprotect(read_only, PAGE, libc::PROT_READ | libc::PROT_WRITE) };
        if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) }
    };
    assert_eq!(allow(), Err(libc::EACCES));
    // SAFETY: as above; the program has no reference into it.
    unsafe { libc::munmap(read_only, PAGE) };
    drop(file);
    space.destroy();
}

/// Whether what is mapped at an address is mapped as memory.
fn is_memory(address: u64) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| line.starts_with(&format!("{address:x}-")) && line.contains("memfd:BAR"))
}

/// As on Linux, where it is no memory.
fn cannot_be_mapped_for_devices(space: &Space, memory: &Memory) {
    let flags = iommufd::MAP_READABLE | iommufd::MAP_FIXED_IOVA;
    let (user_va, length, iova) = (memory.address, PAGE as u64, 0x10_0000);
    let mut map = iommufd::IoasMap { size: 40, flags, ioas_id: space.ioas, user_va, length, iova, reserved: 0 };
    assert_eq!(ioctl(&space.iommu, iommufd::IOAS_MAP, &mut map), Err(libc::EFAULT));
}

/// Does something when no descriptor is to be had.
fn without_descriptors<T>(does: impl FnOnce() -> T) -> T {
    // SAFETY: plain integers.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: `limit` is written, and then read.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        let none = libc::rlimit { rlim_cur: 3, ..limit };
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &none), 0);
    }
    let result = does();
    // SAFETY: reads `limit`.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    result
}

/// A page of a device, to be read.
fn map_to_read(file: &OwnedFd, offset: u64) -> *mut libc::c_void {
    // SAFETY: a new mapping.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset as i64)
    };
    assert_ne!(at, libc::MAP_FAILED);
    at
}

/// A mapping to read from stays one, until the program that may write the device wants to write it.
fn read_only(file: &OwnedFd, offset: u64) {
    let at = map_to_read(file, offset);
    // SAFETY: what was just mapped.
    assert_eq!(unsafe { at.cast::<u64>().read_volatile() }, 1);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.starts_with(&format!("{:x}-", at as u64))).unwrap();
    assert!(line.contains(" r--s "), "{line}");
    // SAFETY: as above; the program has no reference into it.
    unsafe {
        assert_eq!(libc::mprotect(at, PAGE, libc::PROT_READ | libc::PROT_WRITE), 0);
        at.cast::<u64>().add(9).write_volatile(0);
        libc::munmap(at, PAGE);
    }
}
