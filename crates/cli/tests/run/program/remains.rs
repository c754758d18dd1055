//! What requests leave behind in the runner: nothing.

use std::fs;
use std::os::fd::AsRawFd;

use ioasid_uapi::{iommufd, vfio};

use super::{RING, SOURCE};
use crate::driver::{Engine, Memory, Space, ioctl, open};

const PAGE: u64 = 4096;
/// Bytes by which the runner may grow in a round.
const ENOUGH: u64 = 32 << 10;
/// Unmaps that the report remembers, and some.
const REMEMBERED: u64 = 70_000;

/// The runner: the parent of this process's parent, which ends with it.
pub fn runner() -> String {
    let parent = std::os::unix::process::parent_id();
    let status = fs::read_to_string(format!("/proc/{parent}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned()
}

/// Bytes of memory that the runner has.
pub fn memory_of(runner: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{runner}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// Makes and destroys each kind of thing again and again.
pub fn nothing() {
    let space = Space::new();
    let device = open("/dev/vfio/devices/vfio0").unwrap();
    Engine::bind(&device, &space.iommu).unwrap();
    let engine = Engine::open(1, &space.iommu);
    engine.attach(space.ioas);
    let private = Memory::new(8192, libc::MAP_PRIVATE);
    let shared = Memory::new(8192, libc::MAP_SHARED);
    let faults = fault_queue(&space);
    let cycles: &[(&str, usize, &dyn Fn())] = &[
        ("mappings of private memory", 2000, &|| {
            space.map_rw(&private, SOURCE);
            space.unmap(SOURCE, 8192);
        }),
        ("mappings of shared memory", 2000, &|| {
            space.map_rw(&shared, SOURCE);
            space.unmap(SOURCE, 8192);
        }),
        ("address spaces", 2000, &|| Space::new().destroy()),
        ("attachments", 1000, &|| {
            engine.detach();
            engine.attach(space.ioas);
        }),
        ("opens of /dev/iommu", 500, &|| drop(open("/dev/iommu").unwrap())),
        ("looks at the tree", 500, &|| assert!(fs::metadata("/dev/vfio/devices/vfio1").is_ok())),
        ("resets", 500, &|| assert_eq!(ioctl(&engine.file, vfio::DEVICE_RESET, &mut 0u32), Ok(0))),
        ("mappings of registers", 500, &|| {
            let registers = Memory::map(8192, libc::MAP_SHARED, device.as_raw_fd(), 0);
            let _: u8 = crate::driver::load(&registers, 8);
        }),
        ("fault queues", 500, &|| {
            let (id, file) = fault_queue(&space);
            drop(file);
            ioctl(&space.iommu, iommufd::DESTROY, &mut iommufd::Destroy { size: 8, id }).unwrap();
        }),
        ("polls of a fault queue", 2000, &|| {
            let mut poll = libc::pollfd { fd: faults.1.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure.
            assert_eq!(unsafe { libc::poll(&mut poll, 1, 0) }, 0);
        }),
        ("children with registers", 100, &|| {
            // SAFETY: the child runs plain code and ends without returning.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let _: u8 = crate::driver::load(&engine.registers, 8);
                let _: u8 = crate::driver::load(&engine.registers, 8);
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) }
            }
            // SAFETY: waits for the child, and wants nothing.
            assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
        }),
    ];
    let runner = runner();
    // The report remembers so many unmaps, to tell a use after one.
    (0..REMEMBERED).for_each(|_| cycles[0].2());
    for (what, count, cycle) in cycles {
        let round = || (0..*count).for_each(|_| cycle());
        round();
        let growth = || {
            let before = memory_of(&runner);
            (0..3).for_each(|_| round());
            memory_of(&runner).saturating_sub(before)
        };
        // A thread that starts meanwhile has memory of its own; what remains of each request would remain every time.
        let stays = (0..5).any(|_| growth() < ENOUGH);
        assert!(stays, "{what}: {} make the runner grow by {ENOUGH} bytes and more, each time", 3 * count);
    }
    engine.detach();
    drop(faults.1);
    ioctl(&space.iommu, iommufd::DESTROY, &mut iommufd::Destroy { size: 8, id: faults.0 }).unwrap();
    space.destroy();
}

fn fault_queue(space: &Space) -> (u32, std::os::fd::OwnedFd) {
    use std::os::fd::{FromRawFd, OwnedFd};

    let mut alloc = iommufd::FaultAlloc { size: 16, ..Default::default() };
    ioctl(&space.iommu, iommufd::FAULT_QUEUE_ALLOC, &mut alloc).unwrap();
    // SAFETY: a descriptor that was just opened for us.
    (alloc.out_fault_id, unsafe { OwnedFd::from_raw_fd(alloc.out_fault_fd as i32) })
}

/// Maps every other page of a file, which costs the runner few mappings; then registers and files can be mapped still.
pub fn few_mappings() {
    const AREAS: u64 = 20_000;
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    engine.attach(space.ioas);
    let file = rustix::fs::memfd_create(c"areas", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, AREAS * 2 * PAGE).unwrap();
    let memory = Memory::map((AREAS * 2 * PAGE) as usize, libc::MAP_SHARED, file.as_raw_fd(), 0);
    for area in 0..AREAS {
        let start = (area * 2 * PAGE) as usize;
        space.map_part(&memory, start..start + PAGE as usize, 0x1_0000_0000 + area * 2 * PAGE);
    }
    let mappings = fs::read_to_string(format!("/proc/{}/maps", runner())).unwrap().lines().count();
    assert!(mappings < 300, "the runner has {mappings} mappings");
    // The last of them is as good as the first.
    let last = (AREAS - 1) * 2 * PAGE;
    let ring = Memory::new(PAGE as usize, libc::MAP_SHARED);
    space.map_rw(&ring, RING);
    memory.word(0).store(0x1234, std::sync::atomic::Ordering::Relaxed);
    engine.copy(&ring, RING, 0x1_0000_0000, 0x1_0000_0000 + last, 8).unwrap();
    assert_eq!(memory.word(last as usize).load(std::sync::atomic::Ordering::Relaxed), 0x1234);
    space.unmap(0x1_0000_0000, (AREAS * 2 * PAGE) as usize);
    space.unmap(RING, PAGE as usize);
    engine.detach();
    space.destroy();
}

/// Maps memory of terabytes in pages of 4 KiB, which takes longer than a test may wait.
pub fn endless_map() {
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    engine.attach(space.ioas);
    let (length, flags) = (8usize << 40, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    let memory = Memory::new(length, flags);
    let mut pages = iommufd::IommuOption {
        size: 24,
        option_id: iommufd::OPTION_HUGE_PAGES,
        op: iommufd::OPTION_OP_SET,
        object_id: space.ioas,
        ..Default::default()
    };
    ioctl(&space.iommu, iommufd::OPTION, &mut pages).unwrap();
    println!("mapping");
    space.map_part(&memory, PAGE as usize..length - PAGE as usize, 0x10_0000_0000);
    println!("mapped");
}
