//! Programs with one bug each.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use ioasid_uapi::{iommufd, vfio};

use super::{LENGTH, NOWHERE, RING, SOURCE, Setup, TARGET};
use crate::driver::{CHANCTRL, Engine, Memory, ioctl, store};

/// CHANERR: a read, or a write, of data was refused.
const READ_DATA: u32 = 1 << 8;
const WRITE_DATA: u32 = 1 << 9;

pub fn never_mapped() {
    let setup = Setup::new();
    assert_eq!(setup.engine.copy(&setup.ring, RING, SOURCE, NOWHERE, 64), Err(WRITE_DATA));
    setup.copy(7);
    setup.finish();
}

pub fn use_after_unmap() {
    let setup = Setup::new();
    setup.copy(3);
    setup.space.unmap(TARGET, LENGTH);
    assert_eq!(setup.engine.copy(&setup.ring, RING, SOURCE, TARGET + 0x5000, 64), Err(WRITE_DATA));
    assert!(setup.target.holds(3));
    setup.space.map_rw(&setup.target, TARGET);
    setup.finish();
}

pub fn read_only() {
    let setup = Setup::new();
    setup.target.fill(9);
    setup.space.unmap(TARGET, LENGTH);
    setup.space.map(&setup.target, TARGET, iommufd::MAP_READABLE);
    assert_eq!(setup.engine.copy(&setup.ring, RING, SOURCE, TARGET, 64), Err(WRITE_DATA));
    assert!(setup.target.holds(9));
    // Reading it is allowed.
    setup.engine.copy(&setup.ring, RING, TARGET, SOURCE, LENGTH).unwrap();
    assert!(setup.source.holds(9));
    setup.finish();
}

fn set_command(engine: &Engine, value: u16) {
    let mut info = vfio::RegionInfo { argsz: 32, index: 7, ..Default::default() };
    ioctl(&engine.file, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
    let bytes = value.to_ne_bytes();
    // SAFETY: two bytes of ours.
    let n = unsafe { libc::pwrite(engine.file.as_raw_fd(), bytes.as_ptr().cast(), 2, info.offset as i64 + 4) };
    assert_eq!(n, 2);
}

pub fn not_bus_master() {
    let setup = Setup::new();
    set_command(&setup.engine, 0x402);
    assert!(setup.engine.copy(&setup.ring, RING, SOURCE, TARGET, 64).is_err());
    set_command(&setup.engine, 0x406);
    setup.copy(5);
    setup.finish();
}

pub fn not_attached() {
    let setup = Setup::new();
    setup.engine.detach();
    assert!(setup.engine.copy(&setup.ring, RING, SOURCE, TARGET, 64).is_err());
    setup.engine.attach(setup.space.ioas);
    setup.copy(5);
    setup.finish();
}

pub fn memory_gone() {
    let setup = Setup::with(LENGTH, |length| Memory::new(length, libc::MAP_PRIVATE));
    setup.copy(2);
    // SAFETY: a page of our own that nothing here touches again.
    unsafe { libc::munmap(setup.source.address as *mut _, 4096) };
    assert_eq!(setup.engine.copy(&setup.ring, RING, SOURCE, TARGET, 64), Err(READ_DATA));
    setup.finish();
}

/// Memory under a mapping is replaced, freed and moved, here and in a child.
pub fn memory_replaced() {
    let setup = Setup::with(LENGTH, |length| Memory::new(length, libc::MAP_PRIVATE));
    setup.copy(2);
    let page = |page: usize| (setup.source.address as usize + page * 4096) as *mut libc::c_void;
    let copied = |from: u64| setup.engine.copy(&setup.ring, RING, SOURCE + from, TARGET, 4096);
    replace(page(1));
    assert_eq!(copied(4096), Err(READ_DATA), "what came in its place is not reached");
    // SAFETY: pages of our own, that are not used but by the device.
    unsafe {
        assert_eq!(libc::madvise(page(2), 4096, libc::MADV_DONTNEED), 0);
        let elsewhere = Memory::new(4096, libc::MAP_PRIVATE).address as *mut libc::c_void;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        assert_eq!(libc::mremap(page(3), 4096, 4096, flags, elsewhere), elsewhere);
        replace(page(3));
        elsewhere.cast::<u64>().write_volatile(0x5555);
    }
    assert_eq!(copied(2 * 4096), Err(READ_DATA), "what was dropped is not reached");
    copied(3 * 4096).unwrap();
    assert_eq!(setup.target.word(0).load(Ordering::Relaxed), 0x5555, "what has moved is followed");
    // What is mapped now is what is there now.
    setup.space.unmap(SOURCE, LENGTH);
    setup.space.map_rw(&setup.source, SOURCE);
    copied(4096).unwrap();
    assert_eq!(setup.target.word(0).load(Ordering::Relaxed), 0x6666);
    // SAFETY: the child ends without returning.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let memory = Memory::new(4096, libc::MAP_PRIVATE);
        setup.space.map_rw(&memory, NOWHERE);
        replace(memory.address as *mut libc::c_void);
        setup.space.unmap(NOWHERE, 4096);
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
    let mut status = 0;
    // SAFETY: `status` is written.
    assert_eq!((unsafe { libc::waitpid(child, &mut status, 0) }, status), (child, 0));
    setup.finish();
    println!("{child}");
}

/// Puts another page in the place of one.
fn replace(page: *mut libc::c_void) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a page that has no references.
    unsafe {
        assert_eq!(libc::munmap(page, 4096), 0);
        let placed = libc::mmap(page, 4096, libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_FIXED, -1, 0);
        assert_eq!(placed, page);
        page.cast::<u64>().write_volatile(0x6666);
    }
}

pub fn file_cut_short() {
    let file = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, LENGTH as u64).unwrap();
    let setup = Setup::new();
    let memory = Memory::map(LENGTH, libc::MAP_SHARED, file.as_raw_fd(), 0);
    memory.fill(4);
    setup.space.map_rw(&memory, NOWHERE);
    setup.engine.copy(&setup.ring, RING, NOWHERE, TARGET, LENGTH).unwrap();
    assert!(setup.target.holds(4));
    rustix::fs::ftruncate(&file, 4096).unwrap();
    assert_eq!(setup.engine.copy(&setup.ring, RING, NOWHERE, TARGET, 0x1_8000), Err(READ_DATA));
    setup.copy(6);
    setup.space.unmap(NOWHERE, LENGTH);
    setup.finish();
}

pub fn leaked_object() {
    let setup = Setup::new();
    let mut alloc = iommufd::IoasAlloc { size: 12, ..Default::default() };
    ioctl(&setup.space.iommu, iommufd::IOAS_ALLOC, &mut alloc).unwrap();
    setup.finish();
}

/// Leaves everything to the end of the process, or of a child that has done the work, or to an exec.
pub fn just_exits(how: &str) {
    let work = || {
        let setup = Setup::new();
        setup.copy(1);
        setup.engine.reset();
        std::mem::forget(setup);
    };
    match how {
        "child" => {
            // SAFETY: the child runs plain code and ends without returning.
            let child = unsafe { libc::fork() };
            if child == 0 {
                work();
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) }
            }
            // SAFETY: a child of ours.
            assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        "exec" => {
            work();
            let error = std::os::unix::process::CommandExt::exec(std::process::Command::new("sleep").arg("0.05"));
            panic!("{error}");
        }
        _ => work(),
    }
}

pub fn left_attached() {
    let setup = Setup::new();
    setup.copy(1);
    setup.engine.reset();
    let Setup { engine, space, ring, source, target } = setup;
    drop(engine);
    for (iova, memory) in [(RING, ring), (SOURCE, source), (TARGET, target)] {
        space.unmap(iova, memory.length);
    }
    space.destroy();
}

pub fn interrupt_unread() {
    let setup = Setup::new();
    // SAFETY: takes no pointers; the descriptor is new.
    let eventfd = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
    set_msix(&setup.engine, Some(&eventfd));
    setup.source.fill(1);
    // INTRCTRL: MSI-X vector control. CHANCTRL: rearm. The descriptor asks for an interrupt.
    store(&setup.engine.registers, 3, 8u8);
    let words = [(1u64 << 32) | 64, SOURCE, TARGET, RING];
    words.iter().enumerate().for_each(|(n, word)| setup.ring.word(8 * n).store(*word, Ordering::Relaxed));
    setup.engine.reset();
    store(&setup.engine.registers, CHANCTRL, 0x0009u16);
    store(&setup.engine.registers, crate::driver::CHAINADDR, RING);
    store(&setup.engine.registers, crate::driver::DMACOUNT, 1u16);
    setup.engine.wait().unwrap();
    let mut poll = libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1, "the interrupt came");
    set_msix(&setup.engine, None);
    setup.finish();
}

pub fn set_msix(engine: &Engine, eventfd: Option<&OwnedFd>) {
    let mut set = [0u32; 6];
    let (flags, count) = match eventfd {
        Some(_) => (vfio::IRQ_SET_DATA_EVENTFD | 1 << 5, 1),
        None => (vfio::IRQ_SET_DATA_NONE | 1 << 5, 0),
    };
    set[..5].copy_from_slice(&[24, flags, 2, 0, count]);
    set[5] = eventfd.map_or(0, |fd| fd.as_raw_fd() as u32);
    ioctl(&engine.file, vfio::DEVICE_SET_IRQS, &mut set).unwrap();
}
