//! What the tests of the engine are set up with.

#![allow(unreachable_pub, reason = "other files of the test use it")]
#![allow(dead_code, reason = "each test program uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};

use ioasid::memory::Segment;
use ioasid::{
    Access, Device, DmaPort, Endpoint, Fault, GroupId, HwptOptions, Ioas, Iova, IovaRange, Leftover, Machine, MapError,
    Observer, Placement, Rid,
};

pub const PAGE: u64 = 4096;

/// A page table that nested ones can be made on, and attached to PASIDs too.
pub fn parent() -> HwptOptions {
    HwptOptions::default().nest_parent(true).pasids(true)
}

#[derive(Default)]
pub struct Log {
    pub faults: Mutex<Vec<Fault>>,
    pub left: Mutex<Vec<Leftover>>,
}

impl Observer for Log {
    fn fault(&self, fault: &Fault) {
        self.faults.lock().unwrap().push(*fault);
    }
    fn left_behind(&self, what: &Leftover) {
        self.left.lock().unwrap().push(what.clone());
    }
}

pub struct Bench {
    pub log: Arc<Log>,
    pub machine: Arc<Machine>,
}

impl Bench {
    pub fn new() -> Self {
        let log = Arc::new(Log::default());
        Self { machine: Machine::new(log.clone()), log }
    }

    /// A device that is bound to a context with one address space, and not attached.
    pub fn one_device(&self) -> OneDevice {
        let endpoint = self.endpoint(1, 1);
        let (port, context) = (endpoint.port(), self.machine.context());
        let (ioas, device) = (context.ioas_alloc().unwrap(), context.bind(&endpoint).unwrap());
        (endpoint, port, ioas, device)
    }

    pub fn endpoint(&self, slot: u8, group: u32) -> Arc<Endpoint> {
        let endpoint = self.machine.add_endpoint(Rid::new(0, 0, slot, 0).unwrap(), GroupId(group)).unwrap();
        endpoint.set_bus_master(true).unwrap();
        endpoint
    }
}

pub type OneDevice = (Arc<Endpoint>, DmaPort, Arc<Ioas>, Device);

pub fn map(ioas: &Ioas, iova: u64, pages: u64) -> Result<Iova, MapError> {
    let memory = || Ok(vec![Segment::memfd(pages * PAGE).unwrap().0]);
    ioas.map(Placement::Fixed(Iova(iova)), pages * PAGE, Access::all(), memory)
}

pub fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).unwrap()
}
