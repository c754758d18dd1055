//! QEMU's educational device, `edu`: 1234:11e8, which computes factorials, interrupts, and moves bytes between memory
//! and a buffer of its own.
//!
//! ```text
//!            BAR 0                                memory
//!   driver ───────────┬─────────                     ▲
//!                     ▼                              │ Dma
//!                    Edu ──▶ engine ◀── jobs ──▶ worker (a thread)
//!                     │      (registers)             │
//!                     └────▶ MSI, INTx ◀─────────────┘
//! ```
//! It exists in QEMU, too, so a driver behaves the same there on Linux's own VFIO and here on ours. What a driver can
//! tell: here a transfer takes no tenth of a second.
//!
//! Source: QEMU, `docs/specs/edu.rst`.

use std::sync::Arc;

use ioasid_vfio::{BarKind, BarSpec, Model, Spec};

use crate::registers::registers;
use crate::registry::{ModelInfo, any, one};
use crate::{Dma, Interrupts};

mod engine;

use engine::{Engine, Thread};

/// Bytes of BAR 0.
pub const BAR0_SIZE: u64 = 1 << 20;
/// Where the device's own memory is, as a source or a destination of a transfer, and how many bytes it has.
pub const BUFFER: u64 = 0x4_0000;
/// See [`BUFFER`].
pub const BUFFER_SIZE: usize = 4096;
/// The bits of an address in memory that it has lines for.
pub const ADDRESS_MASK: u64 = (1 << 28) - 1;
registers! {
    /// A register. Those of 8 bytes may also be accessed as 4.
    pub enum Register in BAR 0 {
        /// Which device it is, and of which version.
        Identification = "identification" at 0x00, 4 bytes, ReadOnly, reset IDENTIFICATION as u64;
        /// The complement of what was written.
        Liveness = "liveness check" at 0x04, 4 bytes, ReadWrite, reset 0;
        /// The factorial of what was written, modulo 2^32, when the status says that it is there.
        Factorial = "factorial" at 0x08, 4 bytes, ReadWrite, reset 0;
        /// See [`status`].
        Status = "status" at 0x20, 4 bytes, ReadWrite, reset 0;
        /// The reasons for an interrupt.
        InterruptStatus = "interrupt status" at 0x24, 4 bytes, ReadOnly, reset 0;
        /// Adds reasons, and interrupts.
        InterruptRaise = "interrupt raise" at 0x60, 4 bytes, WriteOneToSet, reset 0;
        /// Takes reasons away.
        InterruptAcknowledge = "interrupt acknowledge" at 0x64, 4 bytes, WriteOneToClear, reset 0;
        /// Where a transfer reads.
        DmaSource = "DMA source" at 0x80, 8 bytes, ReadWrite, reset 0;
        /// Where a transfer writes.
        DmaDestination = "DMA destination" at 0x88, 8 bytes, ReadWrite, reset 0;
        /// How many bytes it moves.
        DmaCount = "DMA count" at 0x90, 8 bytes, ReadWrite, reset 0;
        /// See [`command`].
        DmaCommand = "DMA command" at 0x98, 8 bytes, ReadWrite, reset 0;
    }
}

/// What [`Register::Identification`] reads as: version 1.0.
pub const IDENTIFICATION: u32 = 0x0100_00ed;

/// Bits of [`Register::Status`].
pub mod status {
    /// A factorial is being computed; read only.
    pub const COMPUTING: u32 = 0x01;
    /// Interrupt when it is there.
    pub const INTERRUPT: u32 = 0x80;
}

/// Bits of [`Register::DmaCommand`].
pub mod command {
    /// Starts a transfer; reads as one until it has ended.
    pub const START: u64 = 0x01;
    /// From the device's own memory to the machine's, rather than the other way.
    pub const TO_MEMORY: u64 = 0x02;
    /// Interrupt when it has ended.
    pub const INTERRUPT: u64 = 0x04;
}

/// Reasons for interrupts that are the device's own.
pub mod reason {
    /// A factorial is there.
    pub const FACTORIAL: u32 = 0x01;
    /// A transfer has ended.
    pub const DMA: u32 = 0x100;
}

/// The model.
pub const MODEL: ModelInfo = ModelInfo {
    name: "edu",
    about: "QEMU's educational device: factorials and DMA (1234:11e8)",
    options: &[],
    registers: &[Register::TABLE],
    functions: one,
    check: any,
    build: |_, sites, context| {
        context.plain(sites[0], spec(), |endpoint, interrupts| Ok(Edu::new(Box::new(endpoint.port()), interrupts)))
    },
    offer: None,
};

/// What the function looks like on the bus.
#[must_use]
pub fn spec() -> Spec {
    Spec {
        subsystem_vendor: 0x1af4,
        subsystem_device: 0x1100,
        revision: 0x10,
        bars: vec![BarSpec { index: 0, size: BAR0_SIZE, kind: BarKind::Memory32, prefetchable: false }],
        msi_vectors: 1,
        interrupt_pin: 1,
        ..Spec::new(0x1234, 0x11e8, 0x00_ff00)
    }
}

/// A device.
///
/// Every method may be called from any thread at any time, but not from within [`Dma`] or [`Interrupts`] on the
/// device's own thread. Dropping it ends that thread: no DMA happens afterwards.
pub struct Edu {
    engine: Arc<Engine>,
    thread: Thread,
}

impl Edu {
    /// A device at power-on that reaches memory through `dma` and interrupts through `interrupts`. It starts no thread
    /// before its first job.
    pub fn new(dma: Box<dyn Dma>, interrupts: Arc<dyn Interrupts>) -> Arc<Self> {
        Arc::new(Self { engine: Arc::new(Engine::new(interrupts)), thread: Thread::new(dma) })
    }
}

/// The register that an access means: a whole one, in a width that it has.
fn register(bar: u8, offset: u64, length: usize) -> Option<Register> {
    let (register, _) = Register::at(offset).filter(|_| bar == 0)?;
    let info = register.info();
    (info.offset == offset && (length == 4 || length == usize::from(info.width))).then_some(register)
}

impl Model for Edu {
    /// Everything else reads as ones.
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let length = data.len();
        let value = register(bar, offset, length).and_then(|register| self.engine.read(register));
        match value {
            Some(value) => data.copy_from_slice(&value.to_le_bytes()[..length]),
            None => data.fill(0xff),
        }
    }

    /// Everything else ignores what is written.
    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        let Some(register) = register(bar, offset, data.len()) else { return };
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        if self.engine.write(register, u64::from_le_bytes(value)) && !self.thread.ensure_running(&self.engine) {
            self.engine.reset();
        }
    }

    fn reset(&self) {
        self.engine.reset();
    }
}

impl Drop for Edu {
    fn drop(&mut self) {
        self.engine.quit();
        self.thread.join();
    }
}
