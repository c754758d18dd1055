//! A device here, for front ends of vhost-user: its queues are in their memory, and it has no registers.

use std::sync::{Arc, Mutex, PoisonError};

use ioasid::{BusAddress, DmaError, DmaPort, Endpoint, EndpointOptions, Recovery, Work};
use ioasid_remote::vhost_user::{self, Misses, ServedRing};
use ioasid_vfio::EventFd;
use rustix::event::{EventfdFlags, eventfd};

use super::service::Here;
use super::transport::{QueueSetup, Shared, Virtio};
use super::{Identity, Parts};
use crate::registry::{BuildError, Context, Site};
use crate::{Dma, Interrupts};

/// A device for front ends.
#[derive(Debug)]
pub struct Offer {
    /// Its way to memory.
    pub endpoint: Arc<Endpoint>,
    /// Where it asks for pages.
    pub misses: Arc<Misses>,
    /// What it does.
    pub device: Arc<dyn vhost_user::Device>,
}

impl Offer {
    pub(super) fn new((identity, device): Parts, site: Site, context: &Context<'_>) -> Result<Self, BuildError> {
        let options = EndpointOptions::behind(context.iommu).pasid_bits(0).recovery(Recovery::PageRequests);
        let (endpoint, misses) = (context.endpoint(site, options)?, Misses::new());
        // There is nothing that would switch it.
        let _ = endpoint.set_bus_master(true);
        let dma = Asking { port: endpoint.port(), endpoint: endpoint.clone(), misses: misses.clone() };
        let calls = Calls::new().map_err(|error| BuildError::NoMemory(site.rid, error.to_string()))?;
        let calls = Arc::new(calls);
        let here = Here::new(device, Box::new(dma));
        let device = Virtio::new(identity.clone(), Box::new(here), calls.clone(), site)?;
        Ok(Self { endpoint, misses, device: Arc::new(Offered { identity, device, calls }) })
    }
}

/// What a front end is told by, for each queue, and what says that the device cannot go on.
struct Calls {
    calls: Mutex<Vec<Option<Arc<EventFd>>>>,
    trouble: EventFd,
}

/// What interrupts when the device cannot go on, as a change of its configuration.
const TROUBLE: u16 = 0xfffe;

impl Calls {
    fn new() -> std::io::Result<Self> {
        let trouble = EventFd::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)?;
        Ok(Self { calls: Mutex::default(), trouble })
    }

    fn set(&self, calls: Vec<Option<Arc<EventFd>>>) {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner) = calls;
    }
}

impl Interrupts for Calls {
    fn raise(&self, vector: u16) {
        if vector == TROUBLE {
            return self.trouble.signal();
        }
        let call = self.calls.lock().unwrap_or_else(PoisonError::into_inner).get(usize::from(vector)).cloned();
        if let Some(Some(call)) = call {
            call.signal();
        }
    }

    fn sends_messages(&self) -> bool {
        true
    }
}

struct Offered {
    identity: Identity,
    device: Arc<Virtio>,
    calls: Arc<Calls>,
}

impl Offered {
    fn shared(&self) -> &Shared {
        self.device.shared()
    }
}

impl std::fmt::Debug for Offered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offered").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl vhost_user::Device for Offered {
    fn features(&self) -> u64 {
        self.shared().offered()
    }

    fn queues(&self) -> u16 {
        self.identity.queues / self.identity.together
    }

    fn rings(&self) -> u16 {
        self.identity.queues
    }

    fn config(&self) -> Vec<u8> {
        self.identity.configuration.clone()
    }

    fn start(&self, features: u64, rings: Vec<ServedRing>) {
        let mut calls = vec![None; self.identity.queues.into()];
        let mut queues = vec![QueueSetup::NONE; self.identity.queues.into()];
        for ring in rings {
            let ServedRing { index, size, descriptors, driver, device, base, kick, call } = ring;
            let (Some(queue), Some(place)) = (queues.get_mut(usize::from(index)), calls.get_mut(usize::from(index)))
            else {
                continue;
            };
            let (base, kick) = (Some(base), Some(kick));
            *queue = QueueSetup { size, vector: index, is_enabled: true, descriptors, driver, device, base, kick };
            *place = call;
        }
        self.calls.set(calls);
        self.device.begin(features, queues, TROUBLE);
    }

    fn trouble(&self) -> &EventFd {
        &self.calls.trouble
    }

    fn stop(&self, between: &dyn Fn()) -> Vec<(u16, u16)> {
        let bases = self.shared().stop(between);
        self.calls.set(Vec::new());
        bases
    }
}

/// A port that asks for pages that are not there, and waits for them.
struct Asking {
    port: DmaPort,
    endpoint: Arc<Endpoint>,
    misses: Arc<Misses>,
}

/// So often an access asks for one page: a front end that has given it may take it back before it is used.
const TRIES: usize = 8;

impl Asking {
    fn access(&mut self, mut access: impl FnMut(&mut DmaPort) -> Result<(), DmaError>) -> Result<(), DmaError> {
        let (mut missed, mut tries) = (None, 0);
        loop {
            let Err(error) = access(&mut self.port) else { return Ok(()) };
            tries = if missed == Some(error.at) { tries + 1 } else { 0 };
            if tries == TRIES || !self.misses.bring_in(&self.endpoint, &error) {
                return Err(error);
            }
            missed = Some(error.at);
        }
    }
}

impl Dma for Asking {
    fn read(&mut self, at: BusAddress, data: &mut [u8]) -> Result<(), DmaError> {
        self.access(|port| port.read(at, data))
    }

    fn write(&mut self, at: BusAddress, data: &[u8]) -> Result<(), DmaError> {
        self.access(|port| port.write(at, data))
    }

    fn copy(&mut self, from: BusAddress, to: BusAddress, len: u64) -> Result<(), DmaError> {
        self.access(|port| port.copy(from, to, len))
    }

    fn set_work(&mut self, work: Option<Work>) {
        self.port.set_work(work);
    }
}
