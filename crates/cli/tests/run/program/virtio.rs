//! A driver of a virtio disk, as small as it can be: one request at a time.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{Ordering, fence};

use ioasid_devices::virtio::registers::Register;

use crate::driver::{Engine, Memory, Space, load, open, store};

/// The BAR with its registers, and where in that it is notified.
const BAR: u32 = 4;
const NOTIFY: usize = 0x3000;
/// Where its memory is, for the device.
const IOVA: u64 = 0x10_0000;
/// In it.
const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;
const HEADER: usize = 0x3000;
const STATUS: usize = 0x3100;
const DATA: usize = 0x4000;
const LENGTH: usize = 0x6000;
const SIZE: u16 = 64;
/// Version 1, and addresses that are translated.
const FEATURES: u64 = 0b11 << 32;

struct Disk {
    _space: Space,
    engine: Engine,
    memory: Memory,
    offered: u16,
}

impl Disk {
    fn new() -> Self {
        let space = Space::new();
        let file = open("/dev/vfio/devices/vfio0").unwrap();
        Engine::bind(&file, &space.iommu).unwrap();
        let engine = Engine::with_bar(file, BAR);
        engine.attach(space.ioas);
        let memory = Memory::new(LENGTH, libc::MAP_SHARED);
        space.map_rw(&memory, IOVA);
        let disk = Self { _space: space, engine, memory, offered: 0 };
        disk.set(Register::DeviceStatus, 0u8);
        disk.set(Register::DeviceStatus, 3u8);
        for half in 0..2u32 {
            disk.set(Register::DriverFeatureSelect, half);
            disk.set(Register::DriverFeature, (FEATURES >> (32 * half)) as u32);
        }
        disk.set(Register::DeviceStatus, 11u8);
        disk.set(Register::QueueSelect, 0u16);
        disk.set(Register::QueueSize, SIZE);
        for (register, offset) in
            [(Register::QueueDesc, 0), (Register::QueueDriver, AVAILABLE), (Register::QueueDevice, USED)]
        {
            disk.set(register, IOVA + offset as u64);
        }
        disk.set(Register::QueueEnable, 1u16);
        disk.set(Register::DeviceStatus, 15u8);
        disk
    }

    fn set<T: Copy>(&self, register: Register, value: T) {
        store(&self.engine.registers, register.info().offset as usize, value);
    }

    /// Writes block `number` of 4096 bytes from [`DATA`], or reads it to behind that.
    fn request(&mut self, writes: bool, number: u64) {
        let header = [&u32::from(writes).to_le_bytes()[..], &[0; 4], &(8 * number).to_le_bytes()].concat();
        self.memory.write(HEADER, &header);
        self.memory.write(STATUS, &[0xee]);
        let (data, flags) = if writes { (DATA, 1u16) } else { (DATA + 0x1000, 3) };
        for (place, (offset, length, flags, next)) in
            [(HEADER, 16u32, 1u16, 1u16), (data, 4096, flags, 2), (STATUS, 1, 2, 0)].into_iter().enumerate()
        {
            let at = IOVA + offset as u64;
            let descriptor = [&at.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
            self.memory.write(16 * place, &descriptor.concat());
        }
        self.memory.write(AVAILABLE + 4 + 2 * usize::from(self.offered % SIZE), &[0, 0]);
        self.offered = self.offered.wrapping_add(1);
        // What is offered is there before it is counted, and that before the device is told.
        fence(Ordering::SeqCst);
        self.memory.write(AVAILABLE + 2, &self.offered.to_le_bytes());
        fence(Ordering::SeqCst);
        store(&self.engine.registers, NOTIFY, 0u16);
        while load::<u16>(&self.memory, USED + 2) != self.offered {
            assert_eq!(load::<u8>(&self.engine.registers, Register::DeviceStatus.info().offset as usize) & 64, 0);
            std::thread::yield_now();
        }
        assert_eq!(load::<u8>(&self.memory, STATUS), 0, "block {number}");
    }
}

/// Blocks that [`checks`] goes round in.
const BLOCKS: u64 = 16;

/// Writes blocks and reads them, without end. Counts in the file at `log` those that it has read as it wrote them.
pub fn checks(log: &str) {
    let log = File::options().write(true).create(true).truncate(false).open(log).unwrap();
    let mut disk = Disk::new();
    println!("checking");
    std::io::stdout().flush().unwrap();
    for sequence in 1u64.. {
        let block: Vec<u8> = (0..512u64).flat_map(|word| (512 * sequence + word).to_le_bytes()).collect();
        disk.memory.write(DATA, &block);
        disk.request(true, sequence % BLOCKS);
        disk.memory.write(DATA, &[0; 4096]);
        disk.request(false, sequence % BLOCKS);
        for word in 0..512u64 {
            assert_eq!(load::<u64>(&disk.memory, DATA + 0x1000 + 8 * word as usize), 512 * sequence + word);
        }
        log.write_all_at(&sequence.to_le_bytes(), 0).unwrap();
    }
}
