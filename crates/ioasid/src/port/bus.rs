//! What a port is on the bus: who asks, and whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iopt::Access;

use crate::endpoint::Endpoint;
use crate::gate::Gate;
use crate::iommu::Iommu;
use crate::observe::{Fault, FaultReason};

use super::DmaError;

/// What others see of a port.
#[derive(Debug)]
pub(crate) struct Requester {
    pub(crate) gate: Arc<Gate>,
    /// Bytes that the port moved; only the port writes them. Statistics: nothing is ordered by them.
    read: AtomicU64,
    written: AtomicU64,
}

impl Requester {
    pub(crate) fn new() -> Self {
        Self { gate: Arc::new(Gate::new()), read: AtomicU64::new(0), written: AtomicU64::new(0) }
    }

    /// Bytes read and written so far.
    pub(crate) fn traffic(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    /// Counts an access as what it was for.
    #[inline(always)]
    pub(crate) fn count(&self, access: Access, bytes: u64) {
        if access.contains(Access::WRITE) {
            self.count_written(bytes);
        } else {
            self.count_read(bytes);
        }
    }

    #[inline]
    pub(crate) fn count_read(&self, bytes: u64) {
        self.read.store(self.read.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn count_written(&self, bytes: u64) {
        self.written.store(self.written.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
    }
}

/// A port's place on the bus.
#[derive(Clone)]
pub(crate) struct Bus {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) iommu: Arc<Iommu>,
    pub(crate) requester: Arc<Requester>,
}

impl Bus {
    /// Tells the observer; where slices are held, inside the gate.
    #[cold]
    pub(crate) fn fault(&self, error: DmaError) -> DmaError {
        let DmaError { at, write, reason, .. } = error;
        if reason == FaultReason::Parked {
            self.endpoint.count_parked_fault();
            return error;
        }
        if self.endpoint.is_software() {
            return error;
        }
        let ioas = self.endpoint.with_attachment(at.pasid, |table| table.ioas().map(|ioas| ioas.serial())).flatten();
        let (owner, pasid) = self.endpoint.owner(at.pasid);
        self.iommu.observer().fault(&Fault { rid: owner.rid(), pasid, iova: at.iova, write, reason, ioas });
        error
    }
}
