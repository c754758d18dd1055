//! What a server is told at the start: its devices, its options, and what it tells of what only it can see.

use std::sync::Arc;

use ioasid::memory::{LostMemory, OverLimit};
use ioasid::{Endpoint, Rid};
use ioasid_vfio::{Unconsumed, VfioDevice};

use crate::bus::Bus;
use crate::driver::Driver;

/// A PCI device that programs find.
pub struct PciDevice {
    /// Where it is on the bus.
    pub rid: Rid,
    /// As the IOMMU sees it.
    pub endpoint: Arc<Endpoint>,
    /// As VFIO offers it.
    pub vfio: Arc<VfioDevice>,
    /// Whether VFIO offers it.
    pub driver: Arc<Driver>,
    /// The bus behind a bridge that it is on, unless it is inside the root complex.
    pub bus: Option<Arc<Bus>>,
}

impl PciDevice {
    /// A device at this place, inside the root complex, which VFIO offers.
    #[must_use]
    pub fn new(rid: Rid, endpoint: Arc<Endpoint>, vfio: Arc<VfioDevice>) -> Self {
        Self { rid, endpoint, vfio, driver: Arc::default(), bus: None }
    }

    /// Puts it on a bus behind a bridge.
    #[must_use]
    pub fn on(self, bus: &Arc<Bus>) -> Self {
        bus.add(self.rid, self.endpoint.group(), self.driver.clone());
        Self { bus: Some(bus.clone()), ..self }
    }
}

/// Is told what only the server can see.
pub trait Watcher: Send + Sync {
    /// A device was closed, or gave up an eventfd, with interrupts that the program had not read.
    fn interrupts_unread(&self, _rid: Rid, _unread: &[Unconsumed]) {}

    /// A program wanted to pin more memory than its user, or itself, may.
    fn memory_refused(&self, _error: OverLimit) {}

    /// A process has unmapped, replaced or dropped memory that a device could reach.
    fn memory_lost(&self, _pid: u32, _lost: LostMemory) {}
}

/// How programs are served, beside what with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// They can make mock devices, as on a kernel that is built for its own tests.
    pub selftest: bool,
    /// Bytes that each user, or process, may pin, in place of its RLIMIT_MEMLOCK.
    pub memlock: Option<u64>,
}
