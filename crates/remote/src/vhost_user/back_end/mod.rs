//! A virtio device here, whose queues are a front end's: a VMM's, or another process's.
//!
//! ```text
//!   front end ── SET_MEM_TABLE, IOTLB_MSG ──► Client ──► Ioas ◄── attached ── Endpoint ◄── the device's DMA
//!             ── SET_VRING_…, GET_VRING_BASE ► Client ──► Device::start, Device::stop
//!             ◄─ BACKEND_IOTLB_MSG ─────────── Misses ◄──────────── page requests of the device
//! ```
//! What the front end lets the device reach is an address space of the engine's, so each access is translated and
//! checked. Where addresses are translated, it has what the front end has said of them so far, the device asks for the
//! rest, and an invalidation is acknowledged when no access through it is in flight.

mod client;
mod memory;
mod misses;
mod rings;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ioasid::{AttachError, BindError, Endpoint, HwptError, Machine};
use ioasid_vfio::EventFd;
use thiserror::Error;

use crate::Ended;
use crate::socket::bounded;
use client::Client;
pub use misses::Misses;

/// A ring that a device serves.
#[derive(Debug)]
pub struct ServedRing {
    /// Which one.
    pub index: u16,
    /// Its entries.
    pub size: u16,
    /// The IOVA of its descriptors.
    pub descriptors: u64,
    /// That of the driver's ring.
    pub driver: u64,
    /// That of the device's ring.
    pub device: u64,
    /// How many of those that the driver has offered were taken.
    pub base: u16,
    /// Is signalled when there is something to do.
    pub kick: Arc<EventFd>,
    /// Is signalled when something is done, if the driver wants to know.
    pub call: Option<Arc<EventFd>>,
}

/// A virtio device, without a bus.
pub trait Device: std::fmt::Debug + Send + Sync {
    /// What it offers of virtio's features.
    fn features(&self) -> u64;

    /// How many queues it has, as the protocol counts them: an interface's in pairs.
    fn queues(&self) -> u16;

    /// How many rings these are.
    fn rings(&self) -> u16;

    /// Its configuration.
    fn config(&self) -> Vec<u8>;

    /// Begins to serve rings, with what the driver has agreed on. It serves none now.
    fn start(&self, features: u64, rings: Vec<ServedRing>);

    /// Is signalled when it cannot go on, as it does not reach a ring, or finds nonsense there.
    fn trouble(&self) -> &EventFd;

    /// Ends that. When this returns, the device is out of the rings and of all memory. It calls `between` when it has
    /// begun to end: whatever it waits for is given up then. Returns how many each ring has taken by now, by its index.
    fn stop(&self, between: &dyn Fn()) -> Vec<(u16, u16)>;
}

/// A device that front ends can have.
pub struct BackEnd {
    machine: Arc<Machine>,
    endpoint: Arc<Endpoint>,
    device: Arc<dyn Device>,
    misses: Arc<Misses>,
    patience: Duration,
}

impl std::fmt::Debug for BackEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackEnd").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Why a front end did not get the device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another has it.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// It cannot be given an address space.
    #[error(transparent)]
    Table(#[from] HwptError),
    /// It cannot be given an address space.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl BackEnd {
    /// Offers `device`, whose DMA is `endpoint`'s, a requester of `machine`'s, and which asks `misses` for pages. A front
    /// end that does not answer for `patience` (a millisecond to an hour, or what is nearest to that) is given up.
    #[must_use]
    pub fn new(
        machine: &Arc<Machine>,
        endpoint: Arc<Endpoint>,
        device: Arc<dyn Device>,
        misses: Arc<Misses>,
        patience: Duration,
    ) -> Self {
        Self { machine: machine.clone(), endpoint, device, misses, patience: bounded(patience) }
    }

    /// Serves one front end, over a stream socket (`AF_UNIX`), until it goes. Returns why it went; the device serves
    /// nothing then.
    ///
    /// # Errors
    /// [`ServeError`], if it never had the device.
    pub fn serve(&self, socket: OwnedFd) -> Result<Ended, ServeError> {
        Ok(Client::new(self, socket)?.serve())
    }
}
