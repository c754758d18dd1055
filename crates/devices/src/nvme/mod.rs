//! An NVMe controller (NVM Express Base Specification 2.0), with its namespaces in files or in memory.
//!
//! ```text
//!            BAR 0                                         memory
//!   driver ───────┬─────────                                 ▲
//!                 ▼                                          │ Dma
//!               Nvme ──▶ Bar ◀── orders, doorbells ──▶ Worker (a thread) ──▶ Engine ──▶ images
//!                        (registers)                         │
//!                          └──────────────▶ MSI-X, MSI, INTx ◀
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `spec/` | registers, commands, data structures and statuses, as the specifications define them |
//! | `bar`, `bell` | what the driver sees at once; what wakes the worker |
//! | `worker` | the thread: registers obeyed, queues served in turn, sleep |
//! | `session`, `queue` | what there is while the controller is enabled |
//! | `controller`, `task` | how commands begin and end |
//! | `admin/`, `io/` | the commands |
//! | `data/`, `memory` | PRPs and SGLs; the host's memory, and the controller memory buffer in it |
//! | `subsystem`, `namespace`, `pool`, `reservation`, `features` | what lasts when the controller is reset |
//! | `storage/` | images and memory, io_uring and threads |
//! | `fail` | failures to order |
//! | `options`, `model` | what a controller is made of, and the words for it |
//!
//! All state but the registers is the worker's: commands take no lock.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use ioasid_vfio::{BarKind, BarMemory, BarPages, BarSpec, Model, MsixSpec, PcieKind, Spec};

use crate::bell::Bell;
use crate::storage;
use crate::thread::LazyThread;
use crate::{Dma, Interrupts};

mod admin;
mod bar;
mod controller;
mod data;
mod fail;
mod features;
mod io;
mod memory;
mod model;
mod namespace;
mod options;
mod pool;
mod queue;
mod reservation;
mod session;
pub mod spec;
mod subsystem;
mod task;
mod worker;

pub use crate::storage::ImageError;
use bar::{Bar, Doorbells, PAIRS};
use controller::Controller;
pub use fail::{CommandKind, Failure, Misfortune, ParseFailureError};
use memory::Memory;
pub use model::MODEL;
pub use options::{Backing, MAX_CMB, MAX_NAMESPACES, MAX_QUEUES, NamespaceOptions, NvmeError, NvmeOptions};
use spec::registers::{BAR0_SIZE, CMB_BAR, DOORBELLS, MSIX_PENDING, MSIX_TABLE};
use subsystem::Subsystem;
use worker::Worker;

/// PCI vendor: none that makes controllers.
pub const VENDOR: u16 = 0x1234;
/// PCI device.
pub const DEVICE: u16 = 0x4E56;
/// PCI subsystem vendor.
pub const SUBSYSTEM_VENDOR: u16 = 0x1AF4;

/// What the function looks like on the bus.
#[must_use]
pub fn spec(options: &NvmeOptions) -> Spec {
    let mut bars = vec![BarSpec { index: 0, size: BAR0_SIZE, kind: BarKind::Memory64, prefetchable: false }];
    if options.cmb > 0 {
        bars.push(BarSpec { index: CMB_BAR, size: options.cmb, kind: BarKind::Memory64, prefetchable: true });
    }
    Spec {
        subsystem_vendor: SUBSYSTEM_VENDOR,
        subsystem_device: 0x1100,
        revision: 1,
        bars,
        msix: Some(MsixSpec {
            vectors: options.queues.saturating_add(1),
            table_bar: 0,
            table_offset: MSIX_TABLE,
            pba_bar: 0,
            pba_offset: MSIX_PENDING,
        }),
        msi_vectors: 32,
        interrupt_pin: 1,
        pcie: PcieKind::Endpoint { speed: 3, width: 4 },
        ..Spec::new(VENDOR, DEVICE, 0x01_0802)
    }
}

/// A controller.
///
/// Every method may be called from any thread at any time, but not from within [`Dma`] or [`Interrupts`] on the
/// device's own thread. Dropping it ends that thread: no DMA happens afterwards, and what was written is in the images.
pub struct Nvme {
    bar: Arc<Bar>,
    thread: LazyThread<Worker>,
}

impl Nvme {
    /// A controller at power-on, with its images open and locked. It starts no thread before it is enabled.
    ///
    /// # Errors
    /// If an option is out of its range, or an image cannot be used.
    pub fn new(
        options: &NvmeOptions,
        dma: Box<dyn Dma>,
        interrupts: Arc<dyn Interrupts>,
    ) -> Result<Arc<Self>, NvmeError> {
        options.check()?;
        let failed = |error: std::io::Error| NvmeError::Io(error.to_string());
        let doorbells = if options.doorbells_in_memory {
            Doorbells::Memory(BarMemory::new(DOORBELLS).map_err(failed)?)
        } else {
            Doorbells::Registers(Box::new([const { AtomicU32::new(0) }; 2 * PAIRS]))
        };
        let buffer = if options.cmb > 0 { Some(BarMemory::new(options.cmb).map_err(failed)?) } else { None };
        let bell = Bell::new().map_err(failed)?;
        let bar = Arc::new(Bar::new(doorbells, buffer.clone(), interrupts, bell));
        let controller = Controller::new(
            bar.clone(),
            Memory::new(dma, buffer),
            Subsystem::new(options)?,
            storage::engine(),
            fail::Plan::new(&options.failures),
            options.queues,
        );
        Ok(Arc::new(Self { bar, thread: LazyThread::new(Worker::new(controller)) }))
    }

    /// Takes the controller out of its slot, without a word to the driver: registers read as ones. When this returns,
    /// there is no DMA and no interrupt any more. Not to be called from within [`Dma`] or [`Interrupts`].
    pub fn remove(&self) {
        self.bar.remove();
    }

    fn ensure_running(&self) -> bool {
        let runs = self.bar.begin() && self.thread.ensure_running("nvme", Worker::run);
        if !runs {
            self.bar.end();
        }
        runs
    }
}

impl Model for Nvme {
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar == 0 {
            self.bar.read(offset, data);
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar == 0 && self.bar.write(offset, data) && !self.ensure_running() {
            self.bar.fail();
        }
    }

    fn memory(&self) -> Vec<BarPages> {
        let doorbells = self.bar.doorbell_memory();
        let doorbells = doorbells.map(|memory| BarPages { bar: 0, offset: DOORBELLS, memory: memory.clone() });
        let buffer = self.bar.buffer().map(|memory| BarPages { bar: CMB_BAR, offset: 0, memory: memory.clone() });
        doorbells.into_iter().chain(buffer).collect()
    }

    fn is_present(&self) -> bool {
        !self.bar.is_gone()
    }

    fn reset(&self) {
        self.bar.reset();
    }
}

impl Drop for Nvme {
    fn drop(&mut self) {
        self.bar.order(|state| state.quits = true);
        self.thread.join();
    }
}
