//! What is done to a device while its DMA is in flight.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ioasid_uapi::vfio::container::TYPE1V2_IOMMU;
use ioasid_uapi::vfio::{self, Ioeventfd, IrqSet, PciHotReset};

use super::modes::{device, group_of, map, number, open, set_container, unmap};
use super::{RING, SOURCE, TARGET};
use crate::driver::{CHAINADDR, CHANCMP, CHANCTRL, DMACOUNT, Engine, Memory, ioctl, load, store};

/// Registers of `edu`, its own memory, and what starts a transfer.
mod edu {
    pub(super) const INTERRUPT_STATUS: usize = 0x24;
    pub(super) const ACKNOWLEDGE: usize = 0x64;
    pub(super) const FROM: usize = 0x80;
    pub(super) const TO: usize = 0x88;
    pub(super) const COUNT: usize = 0x90;
    pub(super) const COMMAND: usize = 0x98;
    pub(super) const BUFFER: u64 = 0x4_0000;
    pub(super) const START: u32 = 1;
    pub(super) const TO_MEMORY: u32 = 2;
    pub(super) const INTERRUPT: u32 = 4;
}

const PAGE: usize = 4096;
/// How much an endless copy moves at once.
const PIECE: usize = 256 << 10;

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed().as_secs() < 20, "never: {what}");
    }
}

/// Devices by their groups, in one container.
struct Together {
    container: OwnedFd,
    groups: Vec<OwnedFd>,
    engines: Vec<Engine>,
}

impl Together {
    fn new(names: &[&str]) -> Self {
        let container = open("/dev/vfio/vfio").unwrap();
        let opened = names.iter().map(|name| {
            let group = open(&group_of(name)).unwrap();
            set_container(&group, &container).unwrap();
            group
        });
        let groups: Vec<_> = opened.collect();
        number(&container, vfio::container::SET_IOMMU, TYPE1V2_IOMMU.into()).unwrap();
        let engines = groups.iter().zip(names).map(|(group, name)| Engine::of(device(group, name).unwrap())).collect();
        Self { container, groups, engines }
    }
}

fn hot_reset(device: &OwnedFd, groups: &[&OwnedFd]) -> Result<i32, i32> {
    #[repr(C)]
    struct Request {
        head: PciHotReset,
        groups: [i32; 4],
    }
    let head = PciHotReset { argsz: size_of::<Request>() as u32, flags: 0, count: groups.len() as u32 };
    let mut request = Request { head, groups: [-1; 4] };
    groups.iter().zip(&mut request.groups).for_each(|(group, number)| *number = group.as_raw_fd());
    ioctl(device, vfio::DEVICE_PCI_HOT_RESET, &mut request)
}

/// Two engines behind one bridge copy without an end, and are reset together; a third, behind another, goes on.
pub fn reset_together() {
    let names = ["0001:01:00.0", "0001:01:00.1", "0001:02:00.0"];
    let together = Together::new(&names);
    let source = Memory::new(PIECE, libc::MAP_SHARED);
    map(&together.container, source.address, SOURCE, PIECE as u64).unwrap();
    let places: Vec<(Memory, Memory, u64, u64)> = (0..3)
        .map(|n| {
            let (ring, target) = (Memory::new(PAGE, libc::MAP_SHARED), Memory::new(PIECE, libc::MAP_SHARED));
            let (at, to) = (RING + n * PAGE as u64, TARGET + n * 0x10_0000);
            map(&together.container, ring.address, at, PAGE as u64).unwrap();
            map(&together.container, target.address, to, PIECE as u64).unwrap();
            (ring, target, at, to)
        })
        .collect();
    let start = |n: usize| {
        let (ring, _, at, to) = &places[n];
        let engine = &together.engines[n];
        engine.start(ring, *at, SOURCE, *to, PIECE);
        // Its one descriptor is its own successor, so this many copies follow.
        store(&engine.registers, DMACOUNT, u16::MAX);
    };
    let in_flight = |n: usize, seed| {
        places[n].1.fill(seed + 1);
        wait_until("a copy", || places[n].1.holds(seed));
    };
    let (one, two) = (&together.groups[0], &together.groups[1]);
    let device = &together.engines[0].file;
    for seed in 0..20u64 {
        source.fill(seed);
        (0..3).for_each(start);
        (0..3).for_each(|n| in_flight(n, seed));
        // A caller that has only a part of the bus may not reset it.
        assert_eq!(hot_reset(device, &[one]), Err(libc::EINVAL));
        assert_eq!(hot_reset(device, &[one, &together.groups[2]]), Err(libc::EINVAL));
        in_flight(1, seed);
        hot_reset(device, &[two, one]).unwrap();
        for (engine, (_, target, ..)) in together.engines.iter().zip(&places).take(2) {
            target.fill(seed + 7);
            assert_eq!(load::<u64>(&engine.registers, CHAINADDR), 0);
            assert_eq!(load::<u16>(&engine.registers, CHANCTRL), 0);
        }
        in_flight(2, seed);
        assert!(places[0].1.holds(seed + 7) && places[1].1.holds(seed + 7), "DMA after a reset");
        together.engines[2].reset();
        // What was set up is gone, what is set up anew works.
        assert_eq!(load::<u64>(&together.engines[1].registers, CHANCMP), 0);
    }
}

/// An `edu` device with memory at SOURCE.
struct Edu {
    together: Together,
    memory: Memory,
}

impl Edu {
    fn new() -> Self {
        let together = Together::new(&["0001:00:01.0"]);
        let memory = Memory::new(4 * PAGE, libc::MAP_SHARED);
        map(&together.container, memory.address, SOURCE, 4 * PAGE as u64).unwrap();
        let edu = Self { together, memory };
        // With INTx, which the engine's registers were opened without.
        let mut info = vfio::RegionInfo { argsz: 32, index: 7, ..Default::default() };
        ioctl(edu.file(), vfio::DEVICE_GET_REGION_INFO, &mut info).unwrap();
        // SAFETY: two bytes of ours.
        let written =
            unsafe { libc::pwrite(edu.file().as_raw_fd(), [6u8, 0].as_ptr().cast(), 2, info.offset as i64 + 4) };
        assert_eq!(written, 2);
        edu
    }

    fn file(&self) -> &OwnedFd {
        &self.together.engines[0].file
    }

    fn registers(&self) -> &Memory {
        &self.together.engines[0].registers
    }

    /// Sets a transfer up, which a command then starts.
    fn prepare(&self, from: u64, to: u64) {
        store(self.registers(), edu::FROM, from);
        store(self.registers(), edu::TO, to);
        store(self.registers(), edu::COUNT, PAGE as u64);
    }

    fn is_idle(&self) -> bool {
        load::<u64>(self.registers(), edu::COMMAND) & u64::from(edu::START) == 0
    }

    fn set_irqs(&self, flags: u32, eventfd: &OwnedFd) {
        #[repr(C)]
        struct Request {
            head: IrqSet,
            file: i32,
        }
        let head = IrqSet { argsz: 24, flags, index: 0, start: 0, count: 1 };
        ioctl(self.file(), vfio::DEVICE_SET_IRQS, &mut Request { head, file: eventfd.as_raw_fd() }).unwrap();
    }
}

fn eventfd() -> OwnedFd {
    // SAFETY: takes numbers, and gives a descriptor.
    unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) }
}

fn signal(eventfd: &OwnedFd) {
    // SAFETY: eight bytes of ours.
    let written = unsafe { libc::write(eventfd.as_raw_fd(), 1u64.to_ne_bytes().as_ptr().cast(), 8) };
    assert_eq!(written, 8);
}

fn wait_for(eventfd: &OwnedFd) {
    let mut poll = libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, and room for a counter.
    unsafe {
        assert_eq!(libc::poll(&mut poll, 1, 20_000), 1, "an interrupt was lost");
        assert_eq!(libc::read(eventfd.as_raw_fd(), [0u8; 8].as_mut_ptr().cast(), 8), 8);
    }
}

/// INTx with its mask and an eventfd that unmasks it, as QEMU has it for KVM: no interrupt of a transfer is lost,
/// whether the next one ends before the line is unmasked or after.
pub fn interrupts_resample() {
    let edu = Edu::new();
    let (trigger, resample) = (eventfd(), eventfd());
    let (data, mask_off, triggers) = (vfio::IRQ_SET_DATA_EVENTFD, 1 << 4, 1 << 5);
    edu.set_irqs(data | triggers, &trigger);
    edu.set_irqs(data | mask_off, &resample);
    let start = |round: u64| {
        edu.memory.fill(round);
        edu.prepare(SOURCE, edu::BUFFER);
        store(edu.registers(), edu::COMMAND, edu::START | edu::INTERRUPT);
    };
    start(0);
    for round in 1..2000u64 {
        wait_for(&trigger);
        assert_eq!(load::<u32>(edu.registers(), edu::INTERRUPT_STATUS), 0x100);
        store(edu.registers(), edu::ACKNOWLEDGE, 0x100u32);
        // In flight while the line is unmasked.
        start(round);
        if round % 2 == 0 {
            wait_until("a transfer", || edu.is_idle());
        }
        signal(&resample);
    }
    wait_for(&trigger);
    store(edu.registers(), edu::ACKNOWLEDGE, u32::MAX);
}

/// An eventfd in place of a store to a doorbell: each signal starts a transfer, of which none is made any more when
/// what it reaches is unmapped.
pub fn doorbell_by_eventfd() {
    let edu = Edu::new();
    let doorbell = eventfd();
    let mut set = Ioeventfd {
        argsz: 32,
        flags: 4,
        offset: edu::COMMAND as u64,
        data: (edu::START | edu::TO_MEMORY).into(),
        fd: doorbell.as_raw_fd(),
        reserved: 0,
    };
    ioctl(edu.file(), vfio::DEVICE_IOEVENTFD, &mut set).unwrap();
    let target = SOURCE + PAGE as u64;
    let word = |at: usize| edu.memory.word(at).load(Ordering::Relaxed);
    for round in 1..500u64 {
        edu.memory.fill(round);
        edu.prepare(SOURCE, edu::BUFFER);
        store(edu.registers(), edu::COMMAND, edu::START);
        wait_until("a transfer", || edu.is_idle());
        edu.memory.word(2 * PAGE - 8).store(u64::MAX, Ordering::Relaxed);
        edu.prepare(edu::BUFFER, target);
        signal(&doorbell);
        wait_until("a transfer by an eventfd", || word(2 * PAGE - 8) == word(PAGE - 8));
        wait_until("its end", || edu.is_idle());
    }
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                signal(&doorbell);
            }
        });
        for _ in 0..200 {
            edu.memory.word(PAGE).store(u64::MAX, Ordering::Relaxed);
            wait_until("a transfer", || word(PAGE) != u64::MAX);
            assert_eq!(unmap(&edu.together.container, SOURCE, 4 * PAGE as u64), Ok(4 * PAGE as u64));
            edu.memory.word(PAGE).store(u64::MAX, Ordering::Relaxed);
            wait_until("a transfer's end", || edu.is_idle());
            assert_eq!(word(PAGE), u64::MAX, "DMA after an unmap");
            map(&edu.together.container, edu.memory.address, SOURCE, 4 * PAGE as u64).unwrap();
        }
        ends.store(true, Ordering::Relaxed);
    });
}
