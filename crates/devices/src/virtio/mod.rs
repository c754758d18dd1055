//! Virtio devices on PCI: a disk ([`blk`]) and a network interface ([`net`]).
//!
//! ```text
//!   driver ── common, device configuration ──▶ Registers ── orders ──▶ worker ── Device: blk, net
//!          ── notifications ─────────────────▶ kicks, bell ──────────▶   │  ▲
//!          ◀─ MSI-X, or the line and ISR ──────────────────────────────  │  │ Queue
//!                                                                        ▼  │
//!                                                                     Dma: translated, and checked
//! ```
//! The transport is the same for all; a `Device` says what it is, and does what is in its queues. It offers
//! VIRTIO_F_ACCESS_PLATFORM: its addresses are IOVAs, as those of a device behind an IOMMU are. There is no legacy
//! interface.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, 2 and 4.1.

use std::os::fd::BorrowedFd;

use ioasid_vfio::{BarKind, BarSpec, MsixSpec, Spec, VendorCapability};
use queue::{Broken, Queue};
use service::Here;

use crate::Dma;
use crate::registry::{BuildError, Built, Context, Site};

pub mod blk;
mod elsewhere;
pub mod net;
mod offered;
mod queue;
pub mod registers;
mod service;
mod transport;
mod worker;

pub(crate) use elsewhere::is_meant as is_elsewhere;
pub use offered::Offer;
pub use transport::Virtio;

/// PCI vendor of all virtio devices.
pub const VENDOR: u16 = 0x1af4;
/// PCI device of a virtio device of type 0.
pub const DEVICE: u16 = 0x1040;

/// Features that are the transport's.
pub mod feature {
    /// Descriptors may be in a table of their own (VIRTIO_F_INDIRECT_DESC).
    pub const INDIRECT: u64 = 1 << 28;
    /// Each side says when it wants to be told (VIRTIO_F_EVENT_IDX).
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// No legacy driver (VIRTIO_F_VERSION_1).
    pub const VERSION_1: u64 = 1 << 32;
    /// Addresses are the platform's, translated (VIRTIO_F_ACCESS_PLATFORM).
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// All of them.
    pub const ALL: u64 = INDIRECT | EVENT_INDEX | VERSION_1 | ACCESS_PLATFORM;
}

/// Entries of a queue, at the most.
pub const QUEUE_SIZE: u16 = 256;

/// The queues of a device, as the driver has set them up.
type Queues = [Option<Queue>];

/// Chains of a queue that are served before the others, and before the driver is interrupted.
const TURN: usize = 64;

/// What a turn has come to, a bit for each queue.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    /// Those whose driver is to be interrupted.
    interrupts: u64,
    /// Those that may have more to do.
    more: u64,
}

/// What a virtio device is, and does.
trait Device: Send {
    /// A driver has set it up, with these features.
    fn begin(&mut self, features: u64);

    /// Does some of what there is to do, as long as it `goes_on`: in the queues with a bit in `kicked`, and of its own.
    ///
    /// # Errors
    /// If a queue cannot be reached, or makes no sense.
    fn serve(
        &mut self,
        queues: &mut Queues,
        kicked: u64,
        dma: &mut dyn Dma,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Served, Broken>;

    /// Is readable when it has something of its own to do.
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What the transport shows of a device.
#[derive(Clone, Debug)]
struct Identity {
    /// Its type (5).
    kind: u16,
    /// PCI class.
    class: u32,
    /// What it offers, the transport's among it.
    features: u64,
    /// How many queues it has.
    queues: u16,
    /// How many vhost-user counts as one.
    together: u16,
    /// Its configuration, as it is at first; only the device changes it.
    configuration: Vec<u8>,
}

/// A device here, before it is on a bus or a socket.
type Parts = (Identity, Box<dyn Device>);

/// A device here, as a function on the bus.
fn function((identity, device): Parts, site: Site, context: &Context<'_>) -> Result<Vec<Built>, BuildError> {
    context.plain(site, spec(&identity), |endpoint, interrupts| {
        let here = Here::new(device, Box::new(endpoint.port()));
        Virtio::new(identity.clone(), Box::new(here), interrupts, site)
    })
}

/// What the function of a device looks like on the bus.
fn spec(identity: &Identity) -> Spec {
    use registers::{BAR, COMMON, CONFIGURATION, ISR, NOTIFY, NOTIFY_MULTIPLIER, PART, SIZE, Structure};

    let capability = |structure: Structure, offset: u64, length: u64, more: &[u8]| {
        let mut body = vec![structure as u8, BAR, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((length as u32).to_le_bytes());
        body.extend(more);
        VendorCapability { body, is_window: structure == Structure::Window }
    };
    Spec {
        subsystem_vendor: VENDOR,
        subsystem_device: 0x1100,
        revision: 1,
        bars: vec![
            BarSpec { index: 1, size: 4096, kind: BarKind::Memory32, prefetchable: false },
            BarSpec { index: BAR, size: SIZE, kind: BarKind::Memory64, prefetchable: true },
        ],
        msix: Some(MsixSpec {
            vectors: identity.queues + 1,
            table_bar: 1,
            table_offset: 0,
            pba_bar: 1,
            pba_offset: 0x800,
        }),
        interrupt_pin: 1,
        vendor_capabilities: vec![
            capability(Structure::Common, COMMON, 0x40, &[]),
            capability(Structure::Isr, ISR, 4, &[]),
            capability(Structure::Device, CONFIGURATION, PART, &[]),
            capability(Structure::Notify, NOTIFY, PART, &NOTIFY_MULTIPLIER.to_le_bytes()),
            capability(Structure::Window, 0, 0, &[0; 4]),
        ],
        ..Spec::new(VENDOR, DEVICE + identity.kind, identity.class)
    }
}
