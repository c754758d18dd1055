//! A driver of QEMU's `edu`, in all five modes: it computes, moves bytes by DMA, faults, interrupts, and is reset.

use std::time::{Duration, Instant};

use ioasid_uapi::iommufd::{self, IoasMap, IoasUnmap};
use ioasid_uapi::vfio::container::{DMA_MAP_FLAG_READ, DMA_MAP_FLAG_WRITE};
use ioasid_uapi::vfio::{self, IrqSet};

use crate::cdev::{attach, bind, new_ioas, path_of};
use crate::container::{MODES, device, do_map, do_unmap, in_container};
use crate::sys::{File, Memory, Outcome, Rows, ask, number, open, read, write};

const PAGE: u64 = 4096;
const CONFIG: u64 = 7 << 40;
/// Where memory is mapped, and where nothing is.
const IOVA: u64 = 0x10_0000;
const NOWHERE: u64 = 0x90_0000;
/// The device's own memory.
const BUFFER: u64 = 0x4_0000;
/// How much is moved at once: QEMU 7.2's `edu` takes its last byte to be beyond the end, and ends the guest.
const MOVED: u32 = PAGE as u32 - 8;

/// A device in an address space.
struct Attached {
    device: File,
    space: Space,
    _group: Option<File>,
}

enum Space {
    Container(File),
    Ioas { iommu: File, id: u32 },
}

impl Attached {
    fn by_group(name: &str, container: &str, kind: u32) -> Self {
        let (group, container) = in_container(name, container, kind);
        let device = device(&group, name).expect("the device");
        Self { device, space: Space::Container(container), _group: Some(group) }
    }

    fn by_cdev(name: &str) -> Self {
        let (iommu, device) = (open("/dev/iommu").expect("/dev/iommu"), open(&path_of(name)).expect("the device"));
        bind(&device, iommu.0).expect("BIND");
        let id = new_ioas(&iommu);
        attach(&device, id).expect("ATTACH");
        Self { device, space: Space::Ioas { iommu, id }, _group: None }
    }

    fn map(&self, address: u64, iova: u64, length: u64) -> Outcome {
        match &self.space {
            Space::Container(container) => {
                do_map(container, DMA_MAP_FLAG_READ | DMA_MAP_FLAG_WRITE, address, iova, length)
            }
            Space::Ioas { iommu, id } => {
                let mut map = IoasMap { size: 40, flags: 7, ioas_id: *id, reserved: 0, user_va: address, length, iova };
                ask(iommu, iommufd::IOAS_MAP, &mut map)
            }
        }
    }

    fn unmap(&self, iova: u64, length: u64) -> Outcome {
        match &self.space {
            Space::Container(container) => do_unmap(container, 0, iova, length),
            Space::Ioas { iommu, id } => {
                let mut unmap = IoasUnmap { size: 24, ioas_id: *id, iova, length };
                ask(iommu, iommufd::IOAS_UNMAP, &mut unmap).map(|_| unmap.length as i64)
            }
        }
    }
}

/// The registers, mapped.
struct Registers(*mut u32);

impl Registers {
    fn of(device: &File) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 1 << 20, protection, libc::MAP_SHARED, device.0, 0) };
        assert!(at != libc::MAP_FAILED, "the registers cannot be mapped");
        Self(at.cast())
    }

    fn load(&self, offset: u64) -> u32 {
        // SAFETY: within the mapping, aligned.
        unsafe { self.0.byte_add(offset as usize).read_volatile() }
    }

    fn store(&self, offset: u64, value: u32) {
        // SAFETY: as for a load.
        unsafe { self.0.byte_add(offset as usize).write_volatile(value) };
    }

    /// Whether the bits of a register become zero soon.
    fn settles(&self, offset: u64, bits: u32) -> Outcome {
        let begun = Instant::now();
        while self.load(offset) & bits != 0 {
            // The guest's clock may run fast.
            if begun.elapsed() > Duration::from_secs(60) {
                return Err(libc::ETIMEDOUT);
            }
        }
        Ok(0)
    }

    /// A transfer of so many bytes. Returns when it has ended.
    fn transfer(&self, from: u64, to: u64, bytes: u32, command: u32) -> Outcome {
        self.store(0x80, from as u32);
        self.store(0x88, to as u32);
        self.store(0x90, bytes);
        self.store(0x98, command | 1);
        self.settles(0x98, 1)
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: this one's own.
        unsafe { libc::munmap(self.0.cast(), 1 << 20) };
    }
}

#[repr(C)]
struct WithEventfd {
    head: IrqSet,
    file: i32,
}

fn set_irqs(device: &File, flags: u32, index: u32, count: u32, file: i32) -> Outcome {
    let head = IrqSet { argsz: 24, flags, index, start: 0, count };
    ask(device, vfio::DEVICE_SET_IRQS, &mut WithEventfd { head, file })
}

/// How often an eventfd is signalled within some time; waits for the first.
fn signals(event: &File, wanted: bool) -> Outcome {
    let mut poll = libc::pollfd { fd: event.0, events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor.
    if unsafe { libc::poll(&mut poll, 1, if wanted { 20_000 } else { 200 }) } == 0 {
        return Ok(0);
    }
    let mut count = 0u64;
    // SAFETY: room for a counter.
    let got = unsafe { libc::read(event.0, (&raw mut count).cast(), 8) };
    if got == 8 { Ok(count as i64) } else { Err(libc::EIO) }
}

pub(crate) fn rows(name: &str, rows: &mut Rows) {
    for (mode, container, kind) in MODES {
        drive(mode, &Attached::by_group(name, container, kind), rows);
    }
    drive("cdev", &Attached::by_cdev(name), rows);
}

fn drive(mode: &str, attached: &Attached, rows: &mut Rows) {
    let device = &attached.device;
    let mut row = |what: &str, outcome| rows.row(&format!("{mode} edu: {what}"), outcome);
    // Memory space and bus master.
    row("command", write(device, &[6, 0], CONFIG + 4));
    let registers = Registers::of(device);
    row("identification", Ok(registers.load(0).into()));
    registers.store(4, 0x1234_5678);
    row("liveness", Ok(registers.load(4).into()));
    for of in [0, 5, 12, 20, 33, 34] {
        registers.store(8, of);
        let settled = registers.settles(0x20, 1);
        row(&format!("factorial of {of}"), settled.map(|_| registers.load(8).into()));
    }
    let memory = Memory::new(2 * PAGE as usize);
    let bytes = memory.bytes();
    let fill = |bytes: &[std::cell::Cell<u8>]| {
        bytes.iter().enumerate().for_each(|(at, byte)| byte.set(if at < PAGE as usize { (at * 7) as u8 } else { 0 }));
    };
    let equal = || i64::from((0..MOVED as usize).all(|at| bytes[at].get() == bytes[at + PAGE as usize].get()));
    let zero = || i64::from((0..MOVED as usize).all(|at| bytes[at + PAGE as usize].get() == 0));
    fill(bytes);
    row("map", attached.map(memory.address, IOVA, 2 * PAGE));
    row("to the device", registers.transfer(IOVA, BUFFER, MOVED, 0));
    row("to memory", registers.transfer(BUFFER, IOVA + PAGE, MOVED, 2));
    row("equal", Ok(equal()));
    fill(bytes);
    row("to where nothing is", registers.transfer(BUFFER, NOWHERE, MOVED, 2));
    row("memory as before", Ok(zero()));
    row("command, no bus master", write(device, &[2, 0], CONFIG + 4));
    row("to memory, no bus master", registers.transfer(BUFFER, IOVA + PAGE, MOVED, 2));
    row("memory as before, no bus master", Ok(zero()));
    row("command, bus master", write(device, &[6, 0], CONFIG + 4));
    row("unmap", attached.unmap(IOVA, 2 * PAGE));
    row("to memory, unmapped", registers.transfer(BUFFER, IOVA + PAGE, MOVED, 2));
    row("memory as before, unmapped", Ok(zero()));
    row("map again", attached.map(memory.address, IOVA, 2 * PAGE));
    row("to memory again", registers.transfer(BUFFER, IOVA + PAGE, MOVED, 2));
    row("equal again", Ok(equal()));
    // SAFETY: takes numbers.
    let event = File(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) });
    let (none, eventfd, mask, unmask, trigger) = (1, 4, 8, 16, 32);
    for (index, of) in [(1, "MSI"), (0, "INTx")] {
        let mut row = |what: &str, outcome| row(&format!("{of} {what}"), outcome);
        row("enable", set_irqs(device, eventfd | trigger, index, 1, event.0));
        registers.store(0x60, 0x11);
        row("signals", signals(&event, true));
        row("status", Ok(registers.load(0x24).into()));
        registers.store(0x64, 0x11);
        if index == 0 {
            registers.store(0x60, 2);
            row("signals, masked by the last", signals(&event, false));
            row("unmask", set_irqs(device, none | unmask, index, 1, -1));
            row("signals, unmasked", signals(&event, true));
            registers.store(0x64, 2);
            row("unmask, deasserted", set_irqs(device, none | unmask, index, 1, -1));
            row("mask", set_irqs(device, none | mask, index, 1, -1));
        }
        row("trigger", set_irqs(device, none | trigger, index, 1, -1));
        row("signals by trigger", signals(&event, true));
        row("disable", set_irqs(device, none | trigger, index, 0, -1));
        registers.store(0x60, 4);
        row("signals, disabled", signals(&event, false));
        registers.store(0x64, 4);
    }
    registers.store(0x60, 8);
    row("reset", number(device, vfio::DEVICE_RESET, 0));
    // QEMU's device keeps its registers over a reset.
    registers.store(0x64, u32::MAX);
    row("command after reset", {
        let word = read_word(device, CONFIG + 4);
        word.map(|word| word & 7)
    });
}

fn read_word(device: &File, offset: u64) -> Outcome {
    read(device, 4, offset)?;
    let mut word = [0u8; 4];
    // SAFETY: room for as many bytes.
    let got = unsafe { libc::pread(device.0, word.as_mut_ptr().cast(), 4, offset as i64) };
    if got == 4 { Ok(u32::from_le_bytes(word).into()) } else { Err(libc::EIO) }
}
