//! Models of PCI devices that do DMA.
//!
//! A model knows three things and nothing else: its registers, its memory (a [`Dma`] port) and its interrupts (an
//! [`Interrupts`] sink). It never sees a page table, a file descriptor or an ioctl, so the same model runs behind a
//! VFIO function, in a VMM and in a unit test.
//!
//! ```text
//!   driver ── loads, stores ──▶ model ── Dma ────────▶ one I/O address space (refused where not mapped)
//!                                 │
//!                                 └───── Interrupts ─▶ the function's MSI-X table, or its INTx line
//! ```
//!
//! What is the function's and not the model's: the configuration header, BAR sizing, the MSI-X table and its masks,
//! bus-master enable (a port that is not bus master refuses every access). The model says what these look like, as
//! data: an [`ioasid_vfio::Spec`].
//!
//! Models: [`ioat::Ioat`], Intel I/OAT CBDMA 3.2; [`dsa::Dsa`], Intel DSA 1.0;
//! [`ivshmem::Ivshmem`], shared memory; [`edu::Edu`], QEMU's educational device; [`nvme::Nvme`], an NVMe controller;
//! [`virtio::Virtio`], a virtio disk or network interface.

use std::sync::Arc;

use ioasid::{BusAddress, DmaPort, Endpoint, PageGroup};
use ioasid_vfio::IrqIndex;

mod bell;
mod dif;
pub mod dsa;
pub mod edu;
pub mod ioat;
pub mod ivshmem;
pub mod nvme;
mod registers;
pub mod registry;
mod storage;
mod thread;
mod vfio_user;
pub mod virtio;

pub use ioasid::{DmaError, Work};
pub use registers::{RegisterAccess, RegisterInfo};

/// A device's way to memory, addressed as transactions on the bus are: by IOVA, with a PASID or without.
///
/// Ranges are `[iova, iova + length)` and never wrap: a range that passes the end of the address space is refused. An
/// access may span any number of pages. One that is refused may have moved a part of its bytes, as on a real bus.
/// Implementations do not panic; they may block (on a page request, say), and the models hold no lock meanwhile.
pub trait Dma: Send {
    /// Reads `data.len()` bytes at `at`.
    ///
    /// # Errors
    /// The first address of the range that may not be read.
    fn read(&mut self, at: BusAddress, data: &mut [u8]) -> Result<(), DmaError>;

    /// Writes `data` at `at`. Eight aligned bytes are written at once: no reader sees half of them.
    ///
    /// # Errors
    /// The first address of the range that may not be written.
    fn write(&mut self, at: BusAddress, data: &[u8]) -> Result<(), DmaError>;

    /// Moves `len` bytes from one address to another: forward, page by page, in one step where the memory allows it.
    ///
    /// # Errors
    /// The first address that was refused. [`DmaError::write`] tells source from destination.
    fn copy(&mut self, from: BusAddress, to: BusAddress, len: u64) -> Result<(), DmaError>;

    /// Says what the accesses from now on are for, in the words that the driver knows.
    fn set_work(&mut self, work: Option<Work>) {
        let _ = work;
    }
}

/// Where a device asks for pages (PCIe Base Specification 6.0, 10.4), if it can wait for them.
///
/// Called with no lock of the model held. The answer comes once, from any thread, perhaps before the call returns.
pub trait PageRequests: Send + Sync {
    /// Asks for pages; the group says who is told the answer.
    fn request(&self, group: PageGroup);
}

/// Where a device's interrupts go.
///
/// Called from the device's own threads and from within register accesses, never with a lock of the model held.
/// Implementations do not wait for the device.
pub trait Interrupts: Send + Sync {
    /// Sends the message of MSI-X `vector`. The function masks it, pends it, or drops it while MSI-X is off.
    fn raise(&self, vector: u16);

    /// Drives the legacy interrupt line. The function ignores it while MSI-X is on or INTx is disabled.
    fn set_intx(&self, asserted: bool) {
        let _ = asserted;
    }

    /// Whether messages are sent, by MSI-X or MSI, rather than the line driven.
    fn sends_messages(&self) -> bool {
        false
    }
}

impl Dma for DmaPort {
    fn read(&mut self, at: BusAddress, data: &mut [u8]) -> Result<(), DmaError> {
        DmaPort::read(self, at, data)
    }

    fn write(&mut self, at: BusAddress, data: &[u8]) -> Result<(), DmaError> {
        DmaPort::write(self, at, data)
    }

    fn copy(&mut self, from: BusAddress, to: BusAddress, len: u64) -> Result<(), DmaError> {
        DmaPort::copy(self, from, to, len)
    }

    fn set_work(&mut self, work: Option<Work>) {
        DmaPort::set_work(self, work);
    }
}

impl PageRequests for Arc<Endpoint> {
    fn request(&self, group: PageGroup) {
        self.request_pages(group);
    }
}

impl Interrupts for ioasid_vfio::Interrupts {
    fn raise(&self, vector: u16) {
        ioasid_vfio::Interrupts::raise(self, vector);
    }

    fn set_intx(&self, asserted: bool) {
        ioasid_vfio::Interrupts::set_intx(self, asserted);
    }

    fn sends_messages(&self) -> bool {
        matches!(self.enabled(), Some(IrqIndex::Msi | IrqIndex::Msix))
    }
}
