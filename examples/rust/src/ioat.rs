// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver for channel 0 of an Intel I/OAT engine (CBDMA 3.2 and 3.3), after Intel's register description.
//!
//! ```text
//!   BAR 0                            a descriptor, 64 bytes of memory that the engine can reach
//!   0x000 ┌ device ─────────────┐    0x00 size u32 │ control u32: bit 0 interrupt, bit 3 completion write, 24.. op
//!         │ XFERCAP  VER        │    0x08 source IOVA
//!   0x080 ├ channel 0 ──────────┤    0x10 destination IOVA
//!         │ CHANCTRL CHANSTS    │    0x18 IOVA of the next descriptor
//!         │ CHANCMD  CHAINADDR  │
//!         │ DMACOUNT CHANCMP    │    the completion word, u64 at the IOVA in CHANCMP, written by the engine:
//!         │ CHANERR             │    IOVA of the descriptor that was finished last │ bits 2..0 channel status
//!         └─────────────────────┘
//! ```
//!
//! DMACOUNT is the number of descriptors handed over since CHAINADDR was set (modulo 65536). The engine runs from
//! where it stopped until it has done that many, so the ring is linked once and CHAINADDR written once.

use std::error::Error;
use std::fmt::{self, Display};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;
use vfio_ioctls::VfioDevice;

use crate::Result;
use crate::host::{Interrupt, Mapping, Memory, Registers};

/// Intel.
pub(crate) const VENDOR: u16 = 0x8086;
/// I/OAT as in Skylake-X servers.
pub(crate) const DEVICE: u16 = 0x2021;

/// u8: log2 of the largest transfer of one descriptor, in bits 4..0.
const XFERCAP: usize = 0x01;
/// u8.
const INTRCTRL: usize = 0x03;
/// u8: major and minor version, four bits each.
const VER: usize = 0x08;
/// u16.
const CHANCTRL: usize = 0x80;
/// u8.
const CHANCMD: usize = 0x84;
/// u16.
const DMACOUNT: usize = 0x86;
/// u64.
const CHANSTS: usize = 0x88;
/// u64.
const CHAINADDR: usize = 0x90;
/// u64.
const CHANCMP: usize = 0x98;
/// u32, write 1 to clear, as are the two registers in configuration space.
const CHANERR: usize = 0xa8;
/// CHANERR: the data could not be written.
pub(crate) const CHANERR_WRITE_DATA: u32 = 1 << 9;
const CONFIG_CHANERR_INT: u64 = 0x180;
const CONFIG_DMAUNCERRSTS: u64 = 0x148;

/// Master enable, and each channel by its MSI-X vector.
const INTRCTRL_MSIX: u8 = 0x01 | 0x08;
/// Interrupt armed (it disarms itself), errors stop the channel and are told by interrupt and completion word.
const CHANCTRL_RUN: u16 = 0x01 | 0x04 | 0x08 | 0x10;
const CHANCMD_RESET: u8 = 0x20;
const CHANSTS_STATUS: u64 = 0x7;
const CHANSTS_HALTED: u64 = 0x3;
const CONTROL_INTERRUPT: u64 = 1 << 0;
const CONTROL_COMPLETION_WRITE: u64 = 1 << 3;

const DESCRIPTOR: usize = 64;
const RING: usize = 1024;
const COMPLETION: usize = RING * DESCRIPTOR;

/// The channel stopped at an error; this is CHANERR.
#[derive(Debug)]
pub(crate) struct Halted(pub(crate) u32);

impl Display for Halted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the channel halted: its DMA was refused, or made no sense: CHANERR {:#x}", self.0)
    }
}

impl Error for Halted {}

/// Channel 0. Dropping it stops the channel.
pub(crate) struct Ioat<'a> {
    device: &'a VfioDevice,
    registers: &'a Registers,
    interrupt: &'a Interrupt<'a>,
    ring: &'a Mapping,
    timeout: Duration,
    max_transfer: usize,
    /// Descriptors handed over since the last reset.
    count: usize,
}

impl<'a> Ioat<'a> {
    /// Bytes of memory for the ring and the completion word.
    pub(crate) const MEMORY: usize = COMPLETION + 64;

    /// Resets the channel and links the ring. `timeout` is for each wait.
    pub(crate) fn new(
        device: &'a VfioDevice,
        registers: &'a Registers,
        interrupt: &'a Interrupt<'a>,
        ring: &'a Mapping,
        timeout: Duration,
    ) -> Result<Self> {
        let version = registers.read::<u8>(VER);
        if !matches!(version, 0x32 | 0x33) {
            return Err(format!("I/OAT version {version:#x} is not 3.2 or 3.3").into());
        }
        let max_transfer = 1 << (registers.read::<u8>(XFERCAP) & 0x1f);
        let mut ioat = Self { device, registers, interrupt, ring, timeout, max_transfer, count: 0 };
        for slot in 0..RING {
            ioat.memory().set(slot * DESCRIPTOR + 0x18, ioat.iova_of(slot + 1));
        }
        ioat.reset()?;
        registers.write(INTRCTRL, INTRCTRL_MSIX);
        Ok(ioat)
    }

    /// Version of the engine: 0x32 for 3.2.
    pub(crate) fn version(&self) -> u8 {
        self.registers.read(VER)
    }

    /// Descriptors handed over since the last reset.
    pub(crate) fn descriptors(&self) -> usize {
        self.count
    }

    fn memory(&self) -> &Memory {
        self.ring.memory()
    }

    fn iova_of(&self, slot: usize) -> u64 {
        self.ring.iova() + (slot % RING * DESCRIPTOR) as u64
    }

    /// Stops the channel, clears its errors, and points it at the first descriptor.
    pub(crate) fn reset(&mut self) -> Result<()> {
        for offset in [CONFIG_CHANERR_INT, CONFIG_DMAUNCERRSTS] {
            let mut errors = [0; 4];
            self.device.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut errors, offset);
            self.device.region_write(VFIO_PCI_CONFIG_REGION_INDEX, &errors, offset);
        }
        self.registers.write::<u32>(CHANERR, self.registers.read(CHANERR));
        self.registers.write(CHANCMD, CHANCMD_RESET);
        let deadline = Instant::now() + self.timeout;
        while self.registers.read::<u8>(CHANCMD) & CHANCMD_RESET != 0 {
            if Instant::now() > deadline {
                return Err(format!("the channel was still in reset after {:?}", self.timeout).into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.count = 0;
        self.memory().set(COMPLETION, 0);
        self.registers.write(CHANCMP, self.ring.iova() + COMPLETION as u64);
        self.registers.write(CHAINADDR, self.iova_of(0));
        Ok(())
    }

    /// Copies `length` bytes from one IOVA to another, and sleeps until that is done. The error is [`Halted`] if the
    /// channel did.
    pub(crate) fn copy(&mut self, source: u64, destination: u64, length: usize) -> Result<()> {
        let batch = (RING - 1) * self.max_transfer;
        for done in (0..length).step_by(batch) {
            self.start(source + done as u64, destination + done as u64, batch.min(length - done));
            self.wait()?;
        }
        Ok(())
    }

    /// Hands over a chain of descriptors, of which the last one interrupts. It fits the ring.
    fn start(&mut self, source: u64, destination: u64, length: usize) {
        for done in (0..length).step_by(self.max_transfer) {
            let size = self.max_transfer.min(length - done);
            let control = match done + size == length {
                true => CONTROL_INTERRUPT | CONTROL_COMPLETION_WRITE,
                false => 0,
            };
            let at = self.count % RING * DESCRIPTOR;
            self.memory().set(at, size as u64 | control << 32);
            self.memory().set(at + 0x08, source + done as u64);
            self.memory().set(at + 0x10, destination + done as u64);
            self.count += 1;
        }
        // The descriptors must be in memory before the engine is told of them.
        fence(Ordering::SeqCst);
        self.registers.write(CHANCTRL, CHANCTRL_RUN);
        self.registers.write(DMACOUNT, self.count as u16);
    }

    /// Waits for the descriptor that was handed over last.
    fn wait(&self) -> Result<()> {
        let last = self.iova_of(self.count - 1);
        let deadline = Instant::now() + self.timeout;
        while Instant::now() < deadline {
            // In slices, so that a channel that halted without an interrupt is an error soon, not a time-out.
            if self.interrupt.wait(Duration::from_millis(250))? && self.memory().get(COMPLETION) & !0x3f == last {
                fence(Ordering::SeqCst);
                return Ok(());
            }
            if self.registers.read::<u64>(CHANSTS) & CHANSTS_STATUS == CHANSTS_HALTED {
                return Err(Halted(self.registers.read(CHANERR)).into());
            }
        }
        Err(format!(
            "no completion interrupt in {:?}: CHANSTS {:#x}, completion word {:#x}, last descriptor {last:#x}",
            self.timeout,
            self.registers.read::<u64>(CHANSTS),
            self.memory().get(COMPLETION),
        )
        .into())
    }
}

impl Drop for Ioat<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.reset() {
            eprintln!("{error}");
        }
    }
}
