//! A driver of a virtio device, on a bus of its own with an address space.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasid::memory::Segment;
use ioasid::{Access, Context, Device, GroupId, Ioas, IommuKind, Iova, Machine, Placement, Silent};
use ioasid_devices::registry::{self, Built, ModelInfo, Options, Shared, Site};
use ioasid_devices::virtio::registers::Register;

/// Where memory is, for the device.
pub const MEMORY: u64 = 0x100_0000;
pub const LENGTH: u64 = 4 << 20;
/// The structures of BAR 4.
pub const ISR: u64 = 0x1000;
pub const CONFIGURATION: u64 = 0x2000;
pub const NOTIFY: u64 = 0x3000;

pub const VERSION_1: u64 = 1 << 32;
pub const ACCESS_PLATFORM: u64 = 1 << 33;
pub const EVENT_INDEX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

pub struct Bench {
    pub built: Built,
    pub ioas: Arc<Ioas>,
    _device: Device,
    pub memory: Arc<File>,
    _context: Arc<Context>,
}

/// A split queue, as the driver has it.
pub struct Ring {
    number: u16,
    pub at: u64,
    size: u16,
    next: u16,
    offered: u16,
    taken: u16,
}

impl Bench {
    pub fn new(model: &str, options: &[&str]) -> Self {
        let machine = Machine::new(Arc::new(Silent));
        let iommu = machine.iommu(IommuKind::Vtd);
        let info = ModelInfo::find(model).unwrap();
        let mut parsed = Options::default();
        options.iter().for_each(|option| info.parse(option, &mut parsed).unwrap());
        info.check(&parsed).unwrap();
        let site = Site { rid: "0000:00:01.0".parse().unwrap(), group: GroupId(0) };
        let place = registry::Context {
            machine: &machine,
            iommu: &iommu,
            number: 0,
            shared: &mut Shared::default(),
            notice: Arc::new(|rid, words| eprintln!("{rid}: {words}")),
        };
        let built = info.build(&parsed, &[site], place).unwrap().remove(0);
        let context = machine.context();
        let ioas = context.ioas_alloc().unwrap();
        let (segment, memory) = Segment::memfd(LENGTH).unwrap();
        ioas.map(Placement::Fixed(Iova(MEMORY)), LENGTH, Access::all(), || Ok(vec![segment])).unwrap();
        let device = context.bind(&built.endpoint).unwrap();
        device.attach(None, &ioas).unwrap();
        built.bus_master.set_bus_master(true);
        Self { built, ioas, _device: device, memory, _context: context }
    }

    pub fn load(&self, offset: u64, length: usize) -> u64 {
        let mut data = [0; 8];
        self.built.model.read(4, offset, &mut data[..length]);
        u64::from_le_bytes(data)
    }

    pub fn store(&self, offset: u64, length: usize, value: u64) {
        self.built.model.write(4, offset, &value.to_le_bytes()[..length]);
    }

    pub fn get(&self, register: Register) -> u64 {
        self.load(register.info().offset, register.info().width.into())
    }

    pub fn set(&self, register: Register, value: u64) {
        self.store(register.info().offset, register.info().width.into(), value);
    }

    pub fn offered(&self) -> u64 {
        (0..2).fold(0, |all, half| {
            self.set(Register::DeviceFeatureSelect, half);
            all | self.get(Register::DeviceFeature) << (32 * half)
        })
    }

    /// Sets the device up with these features and queues.
    pub fn begin(&self, features: u64, queues: u16) -> Vec<Ring> {
        self.set(Register::DeviceStatus, 0);
        assert_eq!(self.get(Register::DeviceStatus), 0);
        self.set(Register::DeviceStatus, 3);
        for half in 0..2 {
            self.set(Register::DriverFeatureSelect, half);
            self.set(Register::DriverFeature, features >> (32 * half) & 0xffff_ffff);
        }
        self.set(Register::DeviceStatus, 11);
        assert_eq!(self.get(Register::DeviceStatus), 11, "features {features:#x}");
        let rings = (0..queues).map(|number| self.ring(number)).collect();
        self.set(Register::DeviceStatus, 15);
        rings
    }

    pub fn ring(&self, number: u16) -> Ring {
        let (at, size) = (MEMORY + u64::from(number) * 0x1_0000, 64);
        self.memory.write_all_at(&[0; 0x1_0000], at - MEMORY).unwrap();
        self.set(Register::QueueSelect, number.into());
        self.set(Register::QueueSize, size);
        self.set(Register::QueueDesc, at);
        self.set(Register::QueueDriver, at + 0x1000);
        // In halves, as Linux writes it.
        let device = at + 0x2000;
        self.store(Register::QueueDevice.info().offset, 4, device & 0xffff_ffff);
        self.store(Register::QueueDevice.info().offset + 4, 4, device >> 32);
        self.set(Register::QueueMsixVector, u64::from(number) + 1);
        self.set(Register::QueueEnable, 1);
        Ring { number, at, size: size as u16, next: 0, offered: 0, taken: 0 }
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at - MEMORY).unwrap();
    }

    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_exact_at(&mut bytes, at - MEMORY).unwrap();
        bytes
    }

    fn word(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at, 2).try_into().unwrap())
    }

    /// Offers a chain of descriptors: address, bytes, and whether the device writes it.
    pub fn offer(&self, ring: &mut Ring, chain: &[(u64, u32, bool)]) -> u16 {
        let head = ring.next;
        for (index, (address, length, writes)) in chain.iter().enumerate() {
            let this = ring.next % ring.size;
            ring.next = (ring.next + 1) % ring.size;
            let mut flags = if *writes { WRITE } else { 0 };
            if index + 1 < chain.len() {
                flags |= NEXT;
            }
            let mut descriptor = address.to_le_bytes().to_vec();
            descriptor.extend(length.to_le_bytes());
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend(ring.next.to_le_bytes());
            self.write(ring.at + 16 * u64::from(this), &descriptor);
        }
        self.publish(ring, head);
        head
    }

    /// Offers a chain that is in a table of its own, of so many bytes.
    pub fn offer_table(&self, ring: &mut Ring, table: u64, length: u32) {
        let head = ring.next % ring.size;
        ring.next = (ring.next + 1) % ring.size;
        let parts = [&table.to_le_bytes()[..], &length.to_le_bytes(), &4u16.to_le_bytes(), &[0; 2]];
        self.write(ring.at + 16 * u64::from(head), &parts.concat());
        self.publish(ring, head);
    }

    pub fn publish(&self, ring: &mut Ring, head: u16) {
        let slot = u64::from(ring.offered % ring.size);
        self.write(ring.at + 0x1000 + 4 + 2 * slot, &head.to_le_bytes());
        ring.offered = ring.offered.wrapping_add(1);
        self.write(ring.at + 0x1000 + 2, &ring.offered.to_le_bytes());
    }

    pub fn notify(&self, ring: &Ring) {
        self.store(NOTIFY + 4 * u64::from(ring.number), 2, ring.number.into());
    }

    /// The next that the device is done with: which, and how many bytes it wrote.
    pub fn used(&self, ring: &mut Ring) -> Option<(u32, u32)> {
        if self.word(ring.at + 0x2000 + 2) == ring.taken {
            return None;
        }
        let entry = self.read(ring.at + 0x2000 + 4 + 8 * u64::from(ring.taken % ring.size), 8);
        ring.taken = ring.taken.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        Some((word(0), word(4)))
    }

    pub fn wait(&self, ring: &mut Ring) -> (u32, u32) {
        let mut found = None;
        wait_until("it is done", || {
            found = self.used(ring);
            found.is_some()
        });
        found.unwrap()
    }

    pub fn needs_reset(&self) -> bool {
        self.get(Register::DeviceStatus) & 64 != 0
    }
}

pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(20), "it never came to be that {what}");
        std::thread::yield_now();
    }
}
