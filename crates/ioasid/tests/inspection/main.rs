//! Promises that a safe caller might break: each test is an attack, and says what is right.

#![allow(clippy::unwrap_used, clippy::type_complexity, missing_docs, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "signals, and what a borrowed slice is for")]

mod callbacks;
mod guests;
mod machines;
mod memory;
mod parts;
mod port_memory;
mod signals;
mod slices;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ioasid::memory::{Pages, Segment};
use ioasid::{
    Access, Context, Device, Endpoint, FaultQueue, FaultQueueOptions, GroupId, Hwpt, HwptOptions, Ioas, Iova,
    IovaRange, Machine, OnMiss, PageGroup, PageRequest, PageResponse, Placement, RequestedAccess, Rid, Silent,
};

pub const PAGE: u64 = 4096;

pub fn machine() -> Arc<Machine> {
    Machine::new(Arc::new(Silent))
}

pub fn rid(slot: u8) -> Rid {
    Rid::new(0, 0, slot, 0).unwrap()
}

pub fn endpoint(machine: &Arc<Machine>, slot: u8) -> Arc<Endpoint> {
    machine.add_endpoint(rid(slot), GroupId(slot.into())).unwrap()
}

pub fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).unwrap()
}

/// Maps new memory.
pub fn map(ioas: &Ioas, iova: u64, length: u64) {
    let memory = || Ok(vec![Segment::memfd(length)?.0]);
    ioas.map(Placement::Fixed(Iova(iova)), length, Access::all(), memory).unwrap();
}

/// Pages of new memory, that is made when it is needed.
pub fn pages(length: u64) -> Arc<Pages> {
    Pages::new(0, length, true, |_, length| Ok(vec![Segment::memfd(length)?.0]))
}

/// One user of a machine: a context with an address space, and a device that is attached to it.
pub struct Tenant {
    pub context: Arc<Context>,
    pub ioas: Arc<Ioas>,
    pub endpoint: Arc<Endpoint>,
    pub device: Device,
}

impl Tenant {
    pub fn of(machine: &Arc<Machine>, slot: u8) -> Self {
        let tenant = Self::detached(machine, slot);
        tenant.device.attach(None, &tenant.ioas).unwrap();
        tenant
    }

    pub fn detached(machine: &Arc<Machine>, slot: u8) -> Self {
        let (context, endpoint) = (machine.context(), endpoint(machine, slot));
        let (ioas, device) = (context.ioas_alloc().unwrap(), context.bind(&endpoint).unwrap());
        endpoint.set_bus_master(true).unwrap();
        Self { context, ioas, endpoint, device }
    }

    pub fn hwpt(&self, options: HwptOptions) -> Arc<Hwpt> {
        self.context.hwpt_alloc(self.device.endpoint(), &self.ioas, options).unwrap()
    }

    /// Attaches the device to a page table that asks a queue.
    pub fn with_queue(&self, options: FaultQueueOptions) -> Arc<FaultQueue> {
        let queue = self.context.fault_queue_alloc_with(options).unwrap();
        let hwpt = self.hwpt(HwptOptions::default().on_miss(OnMiss::Queue(queue.clone())));
        self.device.attach(None, &hwpt).unwrap();
        queue
    }
}

/// A group that asks for one page.
pub fn one_page(iova: u64, answer: impl FnOnce(PageResponse) + Send + 'static) -> PageGroup {
    let request = PageRequest { pasid: None, iova, access: RequestedAccess::READ };
    PageGroup { number: 7, requests: vec![request], answer: Box::new(answer) }
}

/// What `call` returns, on a thread of its own. It is dead-locked if it takes so long.
pub fn returns<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, told) = mpsc::channel();
    let thread = std::thread::spawn(move || done.send(call()).unwrap());
    match told.recv_timeout(Duration::from_secs(20)) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Disconnected) => std::panic::resume_unwind(thread.join().unwrap_err()),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not return"),
    }
}

/// Whether `call` panics.
pub fn panics<T>(call: impl FnOnce() -> T) -> bool {
    catch_unwind(AssertUnwindSafe(call)).is_err()
}
