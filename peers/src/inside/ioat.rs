//! The I/OAT engine, channel 0: copies, and waits for them by polling memory.
//!
//! ```text
//!  ring, mapped for the device                     descriptor, 64 bytes
//!   ┌────────────┬────────────┬───┬────────────┐    0x00 length u32 │ control u32
//!   │ 0     next─┼▶ 1    next─┼▶ …│ 255        │    0x08 source IOVA
//!   └────────────┴────────────┴───┴─────────┬──┘    0x10 destination IOVA
//!      ▲────────────────────────────────────┘       0x18 IOVA of the next descriptor
//!   then the completion word: IOVA of the descriptor that was finished last │ bits 2..0 state of the channel
//! ```
//!
//! Source: Intel, "CBDMA 3.2" register description.
#![allow(unsafe_code, reason = "descriptors are memory that is shared with a device")]

use std::hint;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::iommufd::{Ioas, Iommufd};
use super::vfio::{Bar, Register};
use crate::memory::Shared;

const VERSION: Register<u8> = Register::at(0x08);
const CHANCTRL: Register<u16> = Register::at(0x80);
const CHANCMD: Register<u8> = Register::at(0x84);
const DMACOUNT: Register<u16> = Register::at(0x86);
/// The lower half of the status.
pub const CHANSTS_LOW: Register<u32> = Register::at(0x88);
const CHAINADDR: Register<u64> = Register::at(0x90);
const CHANCMP: Register<u64> = Register::at(0x98);
const CHANERR: Register<u32> = Register::at(0xa8);

/// An error stops the channel, and the completion word says so.
const CHANCTRL_REPORT_ERRORS: u16 = 1 << 2 | 1 << 3;
const CHANCMD_RESET: u8 = 1 << 5;
const STATE: u64 = 0b111;
const STATE_HALTED: u64 = 0b011;
const CONTROL_COMPLETION: u64 = 1 << 3;

/// Bytes that one descriptor copies at most.
pub const DESCRIPTOR: usize = 1 << 20;
const SLOTS: usize = 256;
const SLOT: usize = 64;
const COMPLETION: usize = SLOTS * SLOT;
const PATIENCE: Duration = Duration::from_secs(10);

/// The engine, ready to copy.
pub struct Engine {
    registers: Bar,
    ring: Shared,
    ring_iova: u64,
    /// Descriptors handed over since the reset, modulo 2^16.
    count: u16,
}

impl Engine {
    /// Resets the channel and gives it a ring in `ioas`, which its device is attached to.
    ///
    /// # Errors
    /// If this is no such engine, or it does not come out of reset.
    pub fn new(registers: Bar, context: &Iommufd, ioas: Ioas) -> Result<Self> {
        let version = registers.read(&VERSION);
        ensure!(version == 0x32, "version {version:#x} is no I/OAT 3.2");
        let ring = Shared::anonymous(COMPLETION + 4096)?;
        let ring_iova = context.map(ioas, &ring)?;
        let engine = Self { registers, ring, ring_iova, count: 0 };
        for slot in 0..SLOTS {
            engine.put(slot, 3, engine.iova_of(slot + 1));
        }

        let Self { registers, .. } = &engine;
        registers.write(&CHANERR, registers.read(&CHANERR));
        registers.write(&CHANCMD, CHANCMD_RESET);
        let start = Instant::now();
        while registers.read(&CHANCMD) & CHANCMD_RESET != 0 {
            ensure!(start.elapsed() < PATIENCE, "the channel does not come out of reset");
        }
        registers.write(&CHANCTRL, CHANCTRL_REPORT_ERRORS);
        registers.write(&CHANCMP, ring_iova + COMPLETION as u64);
        registers.write(&CHAINADDR, ring_iova);
        Ok(engine)
    }

    /// Copies `length` bytes, a multiple of [`DESCRIPTOR`] that fits the ring, and waits for the completion.
    ///
    /// # Errors
    /// If the channel halts, or says nothing.
    pub fn copy(&mut self, from: u64, to: u64, length: usize) -> Result<()> {
        let descriptors = length / DESCRIPTOR;
        assert!(length.is_multiple_of(DESCRIPTOR) && (1..=SLOTS).contains(&descriptors));
        let first = usize::from(self.count);
        for index in 0..descriptors {
            let offset = (index * DESCRIPTOR) as u64;
            let control = if index + 1 == descriptors { CONTROL_COMPLETION } else { 0 };
            self.put(first + index, 0, control << 32 | DESCRIPTOR as u64);
            self.put(first + index, 1, from + offset);
            self.put(first + index, 2, to + offset);
        }
        self.completion().store(0, Ordering::Relaxed);
        self.count = self.count.wrapping_add(descriptors as u16);
        self.registers.write(&DMACOUNT, self.count);
        self.wait(self.iova_of(first + descriptors - 1))
    }

    /// Watches the completion word until it names the descriptor at `last`.
    fn wait(&self, last: u64) -> Result<()> {
        let start = Instant::now();
        loop {
            for _ in 0..1000 {
                let word = self.completion().load(Ordering::Acquire);
                if word & STATE == STATE_HALTED {
                    bail!("the channel halted: CHANERR {:#x}", self.registers.read(&CHANERR));
                }
                if word & !STATE == last {
                    return Ok(());
                }
                hint::spin_loop();
            }
            // Whoever does the copy may need this core.
            thread::yield_now();
            if start.elapsed() > PATIENCE {
                bail!("no completion; CHANSTS {:#x}", self.registers.read(&CHANSTS_LOW));
            }
        }
    }

    /// The registers.
    pub fn registers(&self) -> &Bar {
        &self.registers
    }

    fn iova_of(&self, slot: usize) -> u64 {
        self.ring_iova + (slot % SLOTS * SLOT) as u64
    }

    /// Writes the `word`-th 8 bytes of a descriptor.
    fn put(&self, slot: usize, word: usize, value: u64) {
        self.word(slot % SLOTS * SLOT + word * 8).store(value, Ordering::Relaxed);
    }

    fn completion(&self) -> &AtomicU64 {
        self.word(COMPLETION)
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.ring.length());
        // SAFETY: inside the ring, which is mapped as long as `self` is, and aligned. The device is the only other one
        // that touches it, and does so in single accesses of words that are aligned too.
        unsafe { AtomicU64::from_ptr(self.ring.start().add(offset).cast().as_ptr()) }
    }
}
