//! Intel Data Streaming Accelerator (DSA) version 1.0: the data mover of Sapphire Rapids, 8086:0b25.
//!
//! Work queues that take descriptors by 64-byte stores, engines that carry them out, a completion record in memory for
//! each. Queues are dedicated to one client or shared by several, each with its PASID; descriptors can wait for pages.
//!
//! ```text
//!          BAR 0                BAR 2 (portals)                        memory
//!   driver ──┬──────────────────────┬────────────                        ▲
//!            ▼                      ▼                                    │ Dma, one for each engine
//!        registers ──▶ command ──▶ core ◀──── tasks ────▶ engines ──▶ operation
//!                         │      (queues,                  │   └────▶ check
//!                         │       in flight) ◀── answers ──┼── page requests
//!                         └────▶ reports ◀─────────────────┘
//!                                   └──▶ interrupts
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `spec/` | registers, commands, descriptors, completion records, as the device defines them |
//! | `registers` | which word is what |
//! | `command`, `config` | commands; the checks before anything is enabled |
//! | `queue` | a work queue |
//! | `core` | what is in flight, who is next; the lock |
//! | `task`, `check` | a descriptor in flight; what is wrong with one |
//! | `engine` | the threads |
//! | `operation/` | what descriptors do to memory |
//! | `reports` | errors and interrupts |
//! | `slice` | one queue as a device of its own |
//! | `model` | the device by name, with options |
//!
//! What the host has enabled for the function beforehand (PASIDs, privileged mode, page requests) is in [`DsaOptions`]:
//! a program that gets a device from Linux finds these as the IOMMU's driver has set them, and cannot change them.

use std::sync::Arc;

use ioasid::Pasid;
use ioasid_vfio::{BarKind, BarSpec, Model, MsixSpec, PasidSpec, Spec, TranslationSpec};
use zerocopy::FromBytes;

use crate::{Dma, Interrupts, PageRequests};

mod check;
mod command;
mod config;
mod core;
mod engine;
mod model;
mod operation;
mod queue;
mod registers;
mod reports;
mod slice;
pub mod spec;
mod task;

use self::core::{Core, MAX_PAGE_REQUESTS, Submitted};
use engine::Engines;
pub use model::MODEL;
use queue::{OnBus, Selection, Way};
use reports::Reports;
pub use slice::{DsaSlice, PasidTranslation, SliceError, SliceQueue, slice_spec};
use spec::descriptor::Descriptor;
use spec::registers::{BAR0_SIZE, DUMMY_PORTAL, MSIX_PENDING, MSIX_TABLE, PORTAL_SIZE, PORTALS_SIZE};

/// Most work queues of a device.
pub const MAX_WQS: u8 = 8;
/// Most engines of a device.
pub const MAX_ENGINES: u8 = 8;
/// Most groups of a device.
pub const MAX_GROUPS: u8 = 8;

/// What a device has, and what the host has enabled for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DsaOptions {
    /// Work queues, 1 to [`MAX_WQS`]. There is a vector for each, and one for everything else.
    pub wqs: u8,
    /// Engines, 1 to [`MAX_ENGINES`].
    pub engines: u8,
    /// Groups, 1 to [`MAX_GROUPS`].
    pub groups: u8,
    /// Transactions may have a PASID. Without, there are no shared work queues.
    pub pasids: bool,
    /// Transactions with a PASID may be privileged.
    pub privileged: bool,
    /// The device may ask for pages. Without, no descriptor waits for one.
    pub page_requests: bool,
    /// Drivers ask for a handle before a descriptor can name an interrupt. Hardware wants that of guests only.
    pub interrupt_handles: bool,
}

impl Default for DsaOptions {
    fn default() -> Self {
        Self {
            wqs: 8,
            engines: 4,
            groups: 4,
            pasids: true,
            privileged: true,
            page_requests: true,
            interrupt_handles: false,
        }
    }
}

impl DsaOptions {
    /// These options with every number in its range.
    fn in_range(&self) -> Self {
        Self {
            wqs: self.wqs.clamp(1, MAX_WQS),
            engines: self.engines.clamp(1, MAX_ENGINES),
            groups: self.groups.clamp(1, MAX_GROUPS),
            ..self.clone()
        }
    }

    /// MSI-X vectors.
    fn vectors(&self) -> u16 {
        u16::from(self.wqs) + 1
    }
}

/// What the function looks like on the bus.
///
/// Source: Linux's driver for identity and BARs; the specification, 9.2 and appendix C, for places and classes.
#[must_use]
pub fn spec(options: &DsaOptions) -> Spec {
    let options = options.in_range();
    let portals = (u64::from(options.wqs) * PORTALS_SIZE).next_power_of_two();
    Spec {
        subsystem_vendor: 0x8086,
        bars: vec![
            BarSpec { index: 0, size: BAR0_SIZE, kind: BarKind::Memory64, prefetchable: true },
            BarSpec { index: 2, size: portals, kind: BarKind::Memory64, prefetchable: true },
        ],
        msix: Some(MsixSpec {
            vectors: options.vectors(),
            table_bar: 0,
            table_offset: MSIX_TABLE,
            pba_bar: 0,
            pba_offset: MSIX_PENDING,
        }),
        translation: TranslationSpec {
            ats: true,
            page_requests: options.page_requests.then_some(u32::from(options.wqs) * MAX_PAGE_REQUESTS),
            pasid: options.pasids.then_some(PasidSpec { width: 20, privileged: options.privileged }),
        },
        ..Spec::new(0x8086, 0x0B25, 0x08_8000)
    }
}

/// A device.
///
/// Every method may be called from any thread at any time, but not from within [`Dma`] or [`Interrupts`] on the
/// device's own threads. Dropping it ends those threads: no DMA happens afterwards.
pub struct Dsa {
    core: Arc<Core>,
    engines: Engines,
}

/// The device's own face among its faces.
const OWN: usize = 0;

impl Dsa {
    /// A device at power-on. `port` makes a way to memory for each engine, when that is started; pages are asked for at
    /// `pages`.
    pub fn new(
        options: DsaOptions,
        port: Box<dyn FnMut() -> Box<dyn Dma> + Send>,
        pages: Arc<dyn PageRequests>,
        interrupts: Arc<dyn Interrupts>,
    ) -> Arc<Self> {
        let options = options.in_range();
        let reports = Arc::new(Reports::new(interrupts, options.vectors(), options.interrupt_handles));
        let engines = Engines::new(port, options.engines);
        Arc::new(Self { core: Arc::new(Core::new(options, pages, reports)), engines })
    }

    /// A store to a portal of a face. `authorise` gives the PASID to use for one that the driver names.
    fn submit(
        &self,
        unit: usize,
        offset: u64,
        deferrable: bool,
        command: &[u8; 64],
        authorise: impl Fn(Option<Pasid>) -> Option<OnBus>,
    ) -> bool {
        let (page, first) = (offset / PORTAL_SIZE, self.core.lock().units[unit].queues.start);
        // Two portals of each queue are for interrupts by IMS, which there is not.
        if page % 4 >= 2 || !offset.is_multiple_of(64) {
            return false;
        }
        let Ok(descriptor) = Descriptor::read_from_bytes(command) else { return false };
        let way = if deferrable { Way::Deferrable { limited: page % 4 == 1 } } else { Way::Posted };
        match self.core.submit(unit, first + (page / 4) as usize, way, &descriptor, authorise) {
            Submitted::Accepted(group) => {
                let wanted = self.core.engines_of(group);
                if !self.engines.ensure_running(&self.core, wanted) {
                    self.core.halt();
                }
                true
            }
            Submitted::Failed => true,
            Submitted::Refused => false,
        }
    }

    /// Forgets everything that a face has: power-on values, and no DMA of its queues in flight.
    fn reset_unit(&self, unit: usize) {
        let queues = self.core.change(|control, later| {
            let queues = control.units[unit].all();
            control.power_on(unit, Selection { queues, pasid: None, before: u64::MAX }, later);
            queues
        });
        self.core.wait_until_quiet(queues);
        // After the last of what came before has told what it had to tell.
        self.core.lock().units[unit].reports.reset_function();
    }
}

/// The driver of the whole device may name any PASID.
fn authorise_all(pasid: Option<Pasid>) -> Option<OnBus> {
    Some(OnBus::named(pasid))
}

impl Model for Dsa {
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == 0 {
            registers::read(&self.core, OWN, offset, data);
        } else {
            data.fill(0xFF);
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        match (bar, <&[u8; 64]>::try_from(data)) {
            (0, _) => registers::write(&self.core, OWN, offset, data),
            (2, Ok(command)) => {
                self.submit(OWN, offset, false, command, authorise_all);
            }
            _ => {}
        }
    }

    fn enqueue(&self, bar: u8, offset: u64, command: &[u8; 64]) -> Option<bool> {
        match bar {
            0 if offset >= DUMMY_PORTAL => Some(false),
            2 => Some(self.submit(OWN, offset, true, command, authorise_all)),
            _ => None,
        }
    }

    fn reset(&self) {
        self.reset_unit(OWN);
    }
}

impl Drop for Dsa {
    fn drop(&mut self) {
        self.core.quit();
        self.engines.join();
    }
}
