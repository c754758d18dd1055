//! The driver: what a guest's kernel does, on the other side of the queue.
//!
//! It sees guest memory as the guest's processor does, untranslated. What it writes into descriptors are addresses for
//! the device: `gpa + bus`, where `bus` is 0 without an IOMMU, and otherwise where the guest has mapped its memory.
//!
//! ```text
//!   guest-physical
//!   0x1000  descriptor table    three to a request
//!   0x2000  available ring
//!   0x3000  used ring
//!   0x4000  headers             16 bytes to a request
//!   0x5000  status bytes
//!   1 MiB   buffers             4 KiB each
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::device::{Header, QUEUE_SIZE, Rings};

/// Bytes in a buffer, and of the data of a request.
pub const BUFFER: usize = 4096;
/// Buffers that there are.
pub const BUFFERS: usize = 512;
/// Bytes of guest memory.
pub const MEMORY: usize = FIRST_BUFFER as usize + BUFFERS * BUFFER;
/// Requests that fit in the queue.
pub const MOST: usize = QUEUE_SIZE as usize / 3;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADERS: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const FIRST_BUFFER: u64 = 1 << 20;

/// A descriptor goes on with the next (`VIRTQ_DESC_F_NEXT`).
const NEXT: u16 = 1;
/// The device writes it (`VIRTQ_DESC_F_WRITE`).
const WRITE: u16 = 2;
/// No status: the device has not answered.
const UNANSWERED: u8 = 0xff;

/// Something for the device to do.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// One of [`crate::device::kind`].
    pub kind: u32,
    /// Where on the disk.
    pub sector: u64,
    /// Where the data is or goes, an address for the device; see [`Driver::bus_address`].
    pub data: u64,
    /// Whether the device writes it.
    pub device_writes: bool,
}

/// The driver of one queue.
pub struct Driver {
    memory: Arc<GuestMemoryMmap>,
    bus: u64,
    offered: u16,
    done: u16,
}

/// The guest-physical address of a buffer.
#[must_use]
pub fn buffer(index: usize) -> GuestAddress {
    GuestAddress(FIRST_BUFFER + (index % BUFFERS * BUFFER) as u64)
}

impl Driver {
    /// Sets up an empty queue in `memory`, which the device reaches at `bus`.
    ///
    /// # Errors
    /// If the memory is smaller than [`MEMORY`].
    pub fn new(memory: Arc<GuestMemoryMmap>, bus: u64) -> Result<Self> {
        for ring in [DESCRIPTORS, AVAILABLE, USED] {
            memory.write_slice(&[0; 4096], GuestAddress(ring))?;
        }
        Ok(Self { memory, bus, offered: 0, done: 0 })
    }

    /// Where the device finds the queue.
    #[must_use]
    pub fn rings(&self) -> Rings {
        let [descriptors, available, used] =
            [DESCRIPTORS, AVAILABLE, USED].map(|ring| GuestAddress(self.bus_address(GuestAddress(ring))));
        Rings { descriptors, available, used }
    }

    /// The address at which the device reaches `gpa`.
    #[must_use]
    pub fn bus_address(&self, gpa: GuestAddress) -> u64 {
        gpa.0 + self.bus
    }

    /// Offers requests to the device; the queue is empty.
    ///
    /// # Errors
    /// If there are more than [`MOST`].
    pub fn submit(&mut self, requests: &[Request]) -> Result<()> {
        ensure!(requests.len() <= MOST, "{} requests do not fit in a queue of {QUEUE_SIZE}", requests.len());
        ensure!(self.offered == self.done, "the last requests are not completed");
        for (index, request) in requests.iter().enumerate() {
            let (header, status) = (GuestAddress(HEADERS + index as u64 * 16), GuestAddress(STATUS + index as u64));
            self.memory.write_obj(
                Header { kind: request.kind.into(), sector: request.sector.into(), ..Header::default() },
                header,
            )?;
            self.memory.write_obj(UNANSWERED, status)?;
            let first = index as u16 * 3;
            let write = if request.device_writes { WRITE } else { 0 };
            self.describe(first, Descriptor::new(self.bus_address(header), 16, NEXT, first + 1))?;
            self.describe(first + 1, Descriptor::new(request.data, BUFFER as u32, NEXT | write, first + 2))?;
            self.describe(first + 2, Descriptor::new(self.bus_address(status), 1, WRITE, 0))?;
            let slot = u64::from(self.offered % QUEUE_SIZE);
            self.memory.write_obj(first.to_le(), GuestAddress(AVAILABLE + 4 + 2 * slot))?;
            self.offered = self.offered.wrapping_add(1);
        }
        // After all of the above is there to be seen.
        self.memory.store(self.offered.to_le(), GuestAddress(AVAILABLE + 2), Ordering::Release)?;
        Ok(())
    }

    fn describe(&self, index: u16, descriptor: Descriptor) -> Result<()> {
        let at = GuestAddress(DESCRIPTORS + 16 * u64::from(index));
        Ok(self.memory.write_obj(RawDescriptor::from(descriptor), at)?)
    }

    /// Takes back what was offered: the status of each request, in order.
    ///
    /// # Errors
    /// If the device has not done them all, or returns others.
    pub fn complete(&mut self) -> Result<Vec<u8>> {
        let used = u16::from_le(self.memory.load(GuestAddress(USED + 2), Ordering::Acquire)?);
        let requests = self.offered.wrapping_sub(self.done);
        ensure!(used == self.offered, "{} of {requests} requests are done", used.wrapping_sub(self.done));
        let mut answers = Vec::with_capacity(requests.into());
        for index in 0..requests {
            let slot = u64::from(self.done % QUEUE_SIZE);
            let head: u32 = self.memory.read_obj(GuestAddress(USED + 4 + 8 * slot))?;
            ensure!(u32::from_le(head) == u32::from(index) * 3, "request {index} came back as {head}");
            answers.push(self.memory.read_obj(GuestAddress(STATUS + u64::from(index)))?);
            self.done = self.done.wrapping_add(1);
        }
        Ok(answers)
    }
}
