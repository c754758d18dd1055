//! A DMA port: how a device model reaches memory.
//!
//! Each transaction is cut into pieces that lie in one page of the page table and are no longer than [`PIECE`]. For
//! each piece the port passes its gate (see [`crate::gate`]), translates by its own IOTLB or by a walk, and moves the
//! bytes while it is inside. So no piece straddles a change of the mapping, and whoever unmaps waits for one piece at
//! the most.

mod iotlb;
mod transfer;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use iopt::Access;
use thiserror::Error;

use crate::endpoint::Endpoint;
use crate::gate::{Gate, Inside};
use crate::iommu::Iommu;
use crate::memory::Window;
use crate::observe::{Fault, FaultReason};
use crate::types::{Iova, Pasid};

use iotlb::{Entry, Iotlb};
use transfer::Place;

/// The longest piece of a transaction, in bytes: how long an unmap may have to wait.
const PIECE: u64 = 64 << 10;

/// An address on the bus: an IOVA, with a PASID or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BusAddress {
    /// The PASID in the transaction, if any.
    pub pasid: Option<Pasid>,
    /// The address.
    pub iova: Iova,
}

impl From<Iova> for BusAddress {
    fn from(iova: Iova) -> Self {
        Self { pasid: None, iova }
    }
}

impl BusAddress {
    /// `bytes` further on, if that is not beyond the end.
    fn offset(self, bytes: u64) -> Option<Self> {
        Some(Self { iova: Iova(self.iova.0.checked_add(bytes)?), ..self })
    }
}

/// A DMA that was refused, at the first address that was. What lies before it may have been moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("DMA {} at IOVA {} refused: {reason}", if *.write { "write" } else { "read" }, at.iova)]
pub struct DmaError {
    /// Where.
    pub at: BusAddress,
    /// Whether it was a write.
    pub write: bool,
    /// Why.
    pub reason: FaultReason,
}

/// What a device model holds to reach memory. One thread uses it at a time.
///
/// ```
/// use std::sync::Arc;
/// use ioasid::{Access, GroupId, Iommu, Iova, Placement, Rid, Silent, memory::Segment};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let iommu = Iommu::new(Arc::new(Silent));
/// let endpoint = iommu.add_endpoint("0000:00:01.0".parse::<Rid>()?, GroupId(0)).unwrap();
/// let mut port = endpoint.port();
///
/// let context = iommu.context();
/// let ioas = context.ioas_alloc().unwrap();
/// let (memory, _file) = Segment::memfd(8192)?;
/// ioas.map(Placement::Fixed(Iova(0x1000)), 8192, Access::all(), || Ok(vec![memory]))?;
///
/// let device = context.bind(&endpoint)?;
/// device.attach(None, ioas.id().0.get())?;
/// endpoint.set_bus_master(true);
/// port.write(Iova(0x1ffe), &[1, 2, 3, 4])?;
///
/// device.detach(None);
/// assert!(port.write(Iova(0x1ffe), &[1, 2, 3, 4]).is_err());
/// # Ok(())
/// # }
/// ```
pub struct DmaPort {
    endpoint: Arc<Endpoint>,
    iommu: Arc<Iommu>,
    gate: Arc<Gate>,
    iotlb: Iotlb,
    /// For bytes on their way to or from memory that is not mapped here.
    bounce: Vec<u8>,
}

impl DmaPort {
    pub(crate) fn new(endpoint: Arc<Endpoint>, iommu: Arc<Iommu>, gate: Arc<Gate>) -> Self {
        Self { endpoint, iommu, gate, iotlb: Iotlb::new(), bounce: Vec::new() }
    }

    /// Reads `data.len()` bytes from `at`.
    ///
    /// An aligned read of 1, 2, 4 or 8 bytes is a single access.
    ///
    /// # Errors
    /// [`DmaError`] at the first address that may not be read.
    pub fn read(&mut self, at: impl Into<BusAddress>, data: &mut [u8]) -> Result<(), DmaError> {
        let at = at.into();
        let mut done = 0;
        while done < data.len() {
            let left = &mut data[done..];
            done += self.piece(at, done as u64, Access::READ, left.len() as u64, |from, length| {
                transfer::read(from, &mut left[..length])
            })?;
        }
        self.endpoint.read.fetch_add(done as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes `data` to `at`.
    ///
    /// An aligned write of 1, 2, 4 or 8 bytes is a single access, and is seen after everything that this port wrote
    /// before.
    ///
    /// # Errors
    /// [`DmaError`] at the first address that may not be written.
    pub fn write(&mut self, at: impl Into<BusAddress>, data: &[u8]) -> Result<(), DmaError> {
        let at = at.into();
        let mut done = 0;
        while done < data.len() {
            let left = &data[done..];
            done += self.piece(at, done as u64, Access::WRITE, left.len() as u64, |to, length| {
                transfer::write(to, &left[..length])
            })?;
        }
        self.endpoint.written.fetch_add(done as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Moves `length` bytes from one address to another, upwards, in one step where both are memory of this process.
    ///
    /// # Errors
    /// [`DmaError`] at the first address that may not be read or written.
    pub fn copy(
        &mut self,
        from: impl Into<BusAddress>,
        to: impl Into<BusAddress>,
        length: u64,
    ) -> Result<(), DmaError> {
        let (from, to) = (from.into(), to.into());
        // Before the gate: who waits there must not wait for memory.
        self.bounce.resize(PIECE as usize, 0);
        let mut done = 0;
        while done < length {
            let Self { endpoint, iommu, gate, iotlb, bounce } = self;
            let piece = PIECE.min(length - done);
            let (source, target) = (address(from, done, false)?, address(to, done, true)?);
            let inside = gate.enter();
            let moved = iotlb.find(endpoint, iommu, &inside, source, Access::READ).map_err(|r| (source, false, r));
            let moved = moved.and_then(|(read, readable)| {
                let write = iotlb.find(endpoint, iommu, &inside, target, Access::WRITE);
                let (write, writable) = write.map_err(|reason| (target, true, reason))?;
                let bytes = piece.min(readable).min(writable);
                transfer::copy(read, write, bytes as usize, bounce).map_err(|fault| match fault {
                    transfer::Gone::Source => (source, false, FaultReason::MemoryGone),
                    transfer::Gone::Target => (target, true, FaultReason::MemoryGone),
                })?;
                Ok(bytes)
            });
            drop(inside);
            done += moved.map_err(|(at, write, reason)| self.fault(DmaError { at, write, reason }))?;
        }
        self.endpoint.read.fetch_add(length, Ordering::Relaxed);
        self.endpoint.written.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Does one piece of a transaction and returns its length: up to `left` bytes, `done` bytes after `at`.
    fn piece(
        &mut self,
        at: BusAddress,
        done: u64,
        access: Access,
        left: u64,
        transfer: impl FnOnce(Place<'_>, usize) -> Result<(), ()>,
    ) -> Result<usize, DmaError> {
        let write = access == Access::WRITE;
        let at = address(at, done, write)?;
        let Self { endpoint, iommu, gate, iotlb, .. } = self;
        let inside = gate.enter();
        let result = iotlb.find(endpoint, iommu, &inside, at, access).and_then(|(place, contiguous)| {
            let length = PIECE.min(left).min(contiguous) as usize;
            transfer(place, length).map_err(|()| FaultReason::MemoryGone)?;
            Ok(length)
        });
        drop(inside);
        result.map_err(|reason| self.fault(DmaError { at, write, reason }))
    }

    /// Tells the observer, outside the gate.
    fn fault(&self, error: DmaError) -> DmaError {
        let DmaError { at, write, reason } = error;
        let ioas = self.endpoint.with_attachment(at.pasid, |hwpt| hwpt.ioas().serial());
        let rid = self.endpoint.rid();
        self.iommu.observer().fault(&Fault { rid, pasid: at.pasid, iova: at.iova, write, reason, ioas });
        error
    }
}

/// `done` bytes after `at`; a transaction that wraps ends at the top of the space, where nothing is mapped.
fn address(at: BusAddress, done: u64, write: bool) -> Result<BusAddress, DmaError> {
    at.offset(done).ok_or(DmaError { at, write, reason: FaultReason::NotMapped })
}

impl Drop for DmaPort {
    fn drop(&mut self) {
        self.endpoint.close_port(&self.gate);
    }
}

impl Iotlb {
    /// Where `at` leads, and how many bytes from there on lead on. Valid while the port is inside its gate.
    fn find<'a>(
        &mut self,
        endpoint: &Endpoint,
        iommu: &Iommu,
        inside: &'a Inside<'_>,
        at: BusAddress,
        access: Access,
    ) -> Result<(Place<'a>, u64), FaultReason> {
        if !endpoint.is_bus_master() {
            return Err(FaultReason::NotBusMaster);
        }
        self.refresh(inside.posted());
        if let Some(hit) = self.lookup(inside, at, access) {
            return Ok(hit);
        }
        let walked = endpoint.with_attachment(at.pasid, |hwpt| hwpt.walk(at.iova.0));
        let translation = walked.ok_or(FaultReason::NotAttached)?.ok_or(FaultReason::NotMapped)?;
        if !translation.access.contains(access) {
            return Err(FaultReason::NotPermitted);
        }
        let entry = |window: &Window| Entry::new(at, &translation, window);
        let entry = iommu.phys.resolve(translation.pa, entry).ok_or(FaultReason::MemoryGone)?;
        self.insert(at, entry);
        self.lookup(inside, at, access).ok_or(FaultReason::MemoryGone)
    }
}
