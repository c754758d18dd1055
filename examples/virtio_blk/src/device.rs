//! The device: virtio-blk on a disk in memory.
//!
//! This is what a VMM has already: it asks for a [`GuestMemory`] and nothing more, so it neither knows nor cares
//! whether the addresses in its queue are guest-physical or translated by an IOMMU. What it follows is Virtual I/O
//! Device 1.2,
//! 5.2.6 (device operation) and 2.7 (split virtqueues, which the crate virtio-queue does).
//!
//! ```text
//!   a request's descriptors
//!   ┌────────────────────┐   ┌──────────────────────────┐   ┌──────────┐
//!   │ type, sector (16 B)│ ► │ data, any number of these│ ► │ status 1 │
//!   └────────────────────┘   └──────────────────────────┘   └──────────┘
//!    device reads             reads or writes                device writes
//! ```

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory, Le32, Le64};

/// Bytes in a sector, the unit of addresses on the disk.
pub const SECTOR: usize = 512;
/// Descriptors in the queue.
pub const QUEUE_SIZE: u16 = 256;
/// What the device answers to [`kind::GET_ID`].
pub const ID: &[u8; 20] = b"ioasid-virtio-blk\0\0\0";

/// What a request asks for (`VIRTIO_BLK_T_…`).
pub mod kind {
    /// Read from the disk.
    pub const IN: u32 = 0;
    /// Write to the disk.
    pub const OUT: u32 = 1;
    /// Make what was written last.
    pub const FLUSH: u32 = 4;
    /// Tell the disk's name.
    pub const GET_ID: u32 = 8;
}

/// What came of a request (`VIRTIO_BLK_S_…`).
pub mod status {
    /// It was done.
    pub const OK: u8 = 0;
    /// It could not be done, or not all of it.
    pub const IOERR: u8 = 1;
    /// There is no such request.
    pub const UNSUPP: u8 = 2;
}

/// What a request begins with.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Header {
    /// One of [`kind`].
    pub kind: Le32,
    /// Nothing.
    pub reserved: Le32,
    /// Where on the disk.
    pub sector: Le64,
}

#[allow(unsafe_code, reason = "vm-memory's promise that a type is plain bytes")]
// SAFETY: integers only, in an order that leaves no padding.
unsafe impl ByteValued for Header {}

/// Where the driver put the queue: addresses as the device is to use them.
#[derive(Debug, Clone, Copy)]
pub struct Rings {
    /// The descriptor table.
    pub descriptors: GuestAddress,
    /// What the driver offers.
    pub available: GuestAddress,
    /// What the device is done with.
    pub used: GuestAddress,
}

/// The device.
pub struct Block {
    queue: Queue,
    disk: Vec<u8>,
    /// The descriptors of the request in progress; kept for its memory.
    chain: Vec<Descriptor>,
}

/// Why a request is not done. The driver is told, in one byte.
enum Refusal {
    Failed,
    Unsupported,
}

/// Whatever address the driver got wrong, to the driver it is an I/O error; the IOMMU has the details.
impl From<vm_memory::GuestMemoryError> for Refusal {
    fn from(_: vm_memory::GuestMemoryError) -> Self {
        Self::Failed
    }
}

impl Block {
    /// A disk of `sectors` sectors, all zero.
    ///
    /// # Errors
    /// Of the crate virtio-queue.
    pub fn new(sectors: usize) -> Result<Self, Error> {
        let queue = Queue::new(QUEUE_SIZE)?;
        Ok(Self { queue, disk: vec![0; sectors * SECTOR], chain: Vec::with_capacity(QUEUE_SIZE.into()) })
    }

    /// What is on the disk.
    #[must_use]
    pub fn disk(&self) -> &[u8] {
        &self.disk
    }

    /// Begins anew with a queue that the driver has set up.
    ///
    /// # Errors
    /// If an address is misaligned.
    pub fn activate(&mut self, rings: Rings) -> Result<(), Error> {
        self.queue.reset();
        self.queue.try_set_desc_table_address(rings.descriptors)?;
        self.queue.try_set_avail_ring_address(rings.available)?;
        self.queue.try_set_used_ring_address(rings.used)?;
        self.queue.set_event_idx(true);
        self.queue.set_ready(true);
        Ok(())
    }

    /// Does what the driver has offered, and returns whether it wants an interrupt for that.
    ///
    /// # Errors
    /// If the queue itself cannot be reached, or makes no sense.
    pub fn process<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Error> {
        loop {
            self.queue.disable_notification(memory)?;
            while let Some(chain) = self.queue.iter(memory)?.next() {
                let head = chain.head_index();
                let written = self.serve(memory, chain);
                self.queue.add_used(memory, head, written)?;
            }
            if !self.queue.enable_notification(memory)? {
                return self.queue.needs_notification(memory);
            }
        }
    }

    /// Does one request, and returns how many bytes of the chain were written.
    fn serve<M: GuestMemory>(&mut self, memory: &M, chain: DescriptorChain<&M>) -> u32 {
        self.chain.clear();
        self.chain.extend(chain);
        let [header, data @ .., last] = &self.chain[..] else { return 0 };
        if !last.is_write_only() || last.len() == 0 {
            return 0;
        }
        let (written, status) = match execute(&mut self.disk, memory, header, data) {
            Ok(written) => (written, status::OK),
            Err(Refusal::Failed) => (0, status::IOERR),
            Err(Refusal::Unsupported) => (0, status::UNSUPP),
        };
        // Without a status there is nothing else to tell the driver with.
        memory.write_obj(status, last.addr()).map_or(0, |()| written + 1)
    }
}

/// Does what `header` asks for with `data`, and returns how many bytes of that were written.
fn execute<M: GuestMemory>(
    disk: &mut [u8],
    memory: &M,
    header: &Descriptor,
    data: &[Descriptor],
) -> Result<u32, Refusal> {
    if header.is_write_only() || (header.len() as usize) < size_of::<Header>() {
        return Err(Refusal::Failed);
    }
    let header: Header = memory.read_obj(header.addr())?;
    match header.kind.into() {
        kind::IN => {
            let mut written = 0;
            for (descriptor, range) in placed(header, data) {
                let from = disk.get(range?).ok_or(Refusal::Failed)?;
                memory.write_slice(from, writable(descriptor)?)?;
                written += descriptor.len();
            }
            Ok(written)
        }
        kind::OUT => {
            for (descriptor, range) in placed(header, data) {
                let to = disk.get_mut(range?).ok_or(Refusal::Failed)?;
                memory.read_slice(to, readable(descriptor)?)?;
            }
            Ok(0)
        }
        // Memory is as lasting as it gets here.
        kind::FLUSH => Ok(0),
        kind::GET_ID => {
            let [descriptor] = data else { return Err(Refusal::Failed) };
            let id = &ID[..ID.len().min(descriptor.len() as usize)];
            memory.write_slice(id, writable(descriptor)?)?;
            Ok(id.len() as u32)
        }
        _ => Err(Refusal::Unsupported),
    }
}

/// Each descriptor of `data` with its place on the disk, which is refused if it is beyond every disk.
fn placed(
    header: Header,
    data: &[Descriptor],
) -> impl Iterator<Item = (&Descriptor, Result<std::ops::Range<usize>, Refusal>)> {
    let mut next = usize::try_from(u64::from(header.sector)).ok().and_then(|sector| sector.checked_mul(SECTOR));
    data.iter().map(move |descriptor| {
        let start = next;
        next = start.and_then(|start| start.checked_add(descriptor.len() as usize));
        (descriptor, start.zip(next).map(|(start, end)| start..end).ok_or(Refusal::Failed))
    })
}

/// Where the device may write.
fn writable(descriptor: &Descriptor) -> Result<GuestAddress, Refusal> {
    if descriptor.is_write_only() { Ok(descriptor.addr()) } else { Err(Refusal::Failed) }
}

/// Where the device may read.
fn readable(descriptor: &Descriptor) -> Result<GuestAddress, Refusal> {
    if descriptor.is_write_only() { Err(Refusal::Failed) } else { Ok(descriptor.addr()) }
}
