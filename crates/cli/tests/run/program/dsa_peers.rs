//! DSA copies into the memory of another device's BAR and out of it, by address and by DMA buffer, until the other is
//! reset.

use std::arch::asm;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ioasid_uapi::vfio::container::TYPE1V2_IOMMU;
use ioasid_uapi::vfio::{self, feature};
use ioasid_uapi::{iommufd, vfio::container};

use super::modes::{NAME, device, group_of, map, number, open, set_container, unmap};
use super::{RING, SOURCE};
use crate::driver::{Engine, Memory, Space, ioctl, load, store};

const OTHER: &str = "0001:00:02.0";
const BAR: u64 = 0x100_0000;
const PAGE: usize = 4096;
const LENGTH: usize = 64 << 10;

/// A DSA with one dedicated queue, whose completion record is at RING.
struct Dsa {
    engine: Engine,
    portal: Memory,
    record: Memory,
}

impl Dsa {
    fn of(engine: Engine, record: Memory) -> Self {
        let command = |command: u32| {
            store(&engine.registers, 0xa0, command);
            while load::<u32>(&engine.registers, 0xa8) >> 31 != 0 {}
            assert_eq!(load::<u32>(&engine.registers, 0xa8) & 0xff, 0, "command {command:#x}");
        };
        // Queue 0 and engine 0 in group 0; dedicated, of the highest priority.
        store(&engine.registers, 0x600, 1u32);
        store(&engine.registers, 0x620, 1u32);
        for (word, value) in [16u32, 0, 1 | 8 << 4, 31 | 10 << 5].into_iter().enumerate() {
            store(&engine.registers, 0x800 + 4 * word, value);
        }
        command(1 << 20);
        command(6 << 20);
        let mut info = vfio::RegionInfo { argsz: 32, index: 2, ..Default::default() };
        ioctl(&engine.file, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
        let portal = Memory::map(PAGE, libc::MAP_SHARED, engine.file.as_raw_fd(), info.offset);
        Self { engine, portal, record }
    }

    /// Copies, and returns the status: 1 for success.
    fn copy(&self, from: u64, to: u64, length: usize) -> u64 {
        #[repr(align(64))]
        struct Descriptor([u64; 8]);
        // A copy with a completion record, in any case.
        let descriptor = Descriptor([3 << 56 | 0b1100 << 32, RING, from, to, length as u64, 0, 0, 0]);
        self.record.word(0).store(0, Ordering::Release);
        // SAFETY: reads the descriptor, and writes to a portal. In bytes, as assemblers of old do not know it.
        unsafe {
            asm!(
                ".byte 0x66, 0x0f, 0x38, 0xf8, 0x02", // movdir64b rax, [rdx]
                in("rax") self.portal.address,
                in("rdx") &descriptor.0,
                options(nostack),
            );
        }
        let begun = Instant::now();
        loop {
            match self.record.word(0).load(Ordering::Acquire) & 0x3f {
                0 => assert!(begun.elapsed().as_secs() < 20, "the copy never ends"),
                status => return status,
            }
        }
    }
}

/// The other device's memory, and its file.
struct Other {
    file: OwnedFd,
    memory: Memory,
}

impl Other {
    fn of(file: OwnedFd) -> Self {
        let region = |index| {
            let mut info = vfio::RegionInfo { argsz: 32, index, ..Default::default() };
            ioctl(&file, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
            info.offset
        };
        File::from(file.try_clone().unwrap()).write_at(&6u16.to_ne_bytes(), region(7) + 4).unwrap();
        let memory = Memory::map(LENGTH, libc::MAP_SHARED, file.as_raw_fd(), region(2));
        Self { file, memory }
    }
}

/// In and out, compared.
fn both_ways(dsa: &Dsa, other: &Other, source: &Memory) {
    for seed in 0..20 {
        source.fill(seed);
        assert_eq!(dsa.copy(SOURCE, BAR, LENGTH), 1);
        assert!(other.memory.holds(seed));
        other.memory.fill(seed + 100);
        assert_eq!(dsa.copy(BAR, SOURCE, LENGTH), 1);
        assert!(source.holds(seed + 100));
    }
}

/// While copies go on, `stop` is done; what is copied after it does not arrive.
fn until(dsa: &Dsa, other: &Other, stop: impl FnOnce() + Send) {
    assert_eq!(dsa.copy(SOURCE, BAR, LENGTH), 1);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(stop);
        while !stopped.is_finished() {
            dsa.copy(SOURCE, BAR, LENGTH);
        }
    });
    other.memory.fill(3);
    assert_ne!(dsa.copy(SOURCE, BAR, LENGTH), 1);
    assert_ne!(dsa.copy(BAR, SOURCE, LENGTH), 1);
    assert!(other.memory.holds(3), "DMA after the end");
}

/// By address, in a container.
pub fn by_address() {
    let container = open("/dev/vfio/vfio").unwrap();
    let groups = [NAME, OTHER].map(|name| {
        let group = open(&group_of(name)).unwrap();
        set_container(&group, &container).unwrap();
        group
    });
    number(&container, container::SET_IOMMU, TYPE1V2_IOMMU.into()).unwrap();
    let (record, source) = (Memory::new(PAGE, libc::MAP_SHARED), Memory::new(LENGTH, libc::MAP_SHARED));
    map(&container, record.address, RING, PAGE as u64).unwrap();
    map(&container, source.address, SOURCE, LENGTH as u64).unwrap();
    let dsa = Dsa::of(Engine::of(device(&groups[0], NAME).unwrap()), record);
    let other = Other::of(device(&groups[1], OTHER).unwrap());
    map(&container, other.memory.address, BAR, LENGTH as u64).unwrap();
    both_ways(&dsa, &other, &source);
    // Memory Space Enable is what a reset without restoring takes away.
    let mut info = vfio::RegionInfo { argsz: 32, index: 7, ..Default::default() };
    ioctl(&other.file, vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
    let config = File::from(other.file.try_clone().unwrap());
    until(&dsa, &other, || {
        number(&other.file, vfio::DEVICE_RESET, 0).unwrap();
        config.write_at(&[0; 2], info.offset + 4).unwrap();
    });
    config.write_at(&6u16.to_ne_bytes(), info.offset + 4).unwrap();
    both_ways(&dsa, &other, &source);
    until(&dsa, &other, || assert_eq!(unmap(&container, BAR, LENGTH as u64), Ok(LENGTH as u64)));
}

/// By a DMA buffer, in an address space of iommufd's.
pub fn by_buffer() {
    let space = Space::new();
    let (record, source) = (Memory::new(PAGE, libc::MAP_SHARED), Memory::new(LENGTH, libc::MAP_SHARED));
    space.map_rw(&record, RING);
    space.map_rw(&source, SOURCE);
    let engine = Engine::open(0, &space.iommu);
    engine.attach(space.ioas);
    let dsa = Dsa::of(engine, record);
    let file = open("/dev/vfio/devices/vfio1").unwrap();
    Engine::bind(&file, &space.iommu).unwrap();
    let other = Other::of(file);
    let buffer = || {
        let mut request = [0u32; 10];
        request[..6].copy_from_slice(&[40, feature::DMA_BUF | feature::GET, 2, libc::O_RDWR as u32, 0, 1]);
        request[8] = LENGTH as u32;
        let number = ioctl(&other.file, feature::DEVICE_FEATURE, &mut request).unwrap();
        // SAFETY: the request has just made it.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    for _ in 0..3 {
        let buffer = buffer();
        let (ioas_id, fd) = (space.ioas, buffer.as_raw_fd());
        let flags = iommufd::MAP_FIXED_IOVA | iommufd::MAP_READABLE | iommufd::MAP_WRITEABLE;
        let mut map = iommufd::IoasMapFile { size: 40, flags, ioas_id, fd, start: 0, length: LENGTH as u64, iova: BAR };
        ioctl(&space.iommu, iommufd::IOAS_MAP_FILE, &mut map).unwrap();
        both_ways(&dsa, &other, &source);
        until(&dsa, &other, || assert_eq!(number(&other.file, vfio::DEVICE_RESET, 0), Ok(0)));
        space.unmap(BAR, LENGTH);
    }
    dsa.engine.detach();
    drop((dsa, other));
    space.unmap(RING, PAGE);
    space.unmap(SOURCE, LENGTH);
    space.destroy();
}
