//! An endpoint: one requester id as the IOMMU sees it, with what it is attached to.
//!
//! The endpoints of an [`crate::Iommu`] are its stream table. As in hardware it has two steps, requester id and then
//! PASID, and a transaction without PASID is looked up like one with: its key is `None`.
//!
//! ```text
//!   RID ──► Endpoint ──► attachments: None      ──► Hwpt
//!                                     PASID 17  ──► Hwpt
//!                    └─► gates of its ports
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use crate::gate::{Gate, quiesce};
use crate::group::Group;
use crate::hwpt::Hwpt;
use crate::iommu::Iommu;
use crate::port::DmaPort;
use crate::types::{GroupId, IovaRange, Pasid, Rid};

/// A requester on the bus.
pub struct Endpoint {
    rid: Rid,
    iommu: Weak<Iommu>,
    pub(crate) group: Arc<Group>,
    reserved: Vec<IovaRange>,
    bus_master: AtomicBool,
    /// Whether a [`crate::Device`] has it.
    pub(crate) bound: AtomicBool,
    pub(crate) attachments: RwLock<BTreeMap<Option<Pasid>, Arc<Hwpt>>>,
    gates: Mutex<Vec<Arc<Gate>>>,
    /// Bytes that its ports moved. Statistics: nothing is ordered by them.
    pub(crate) read: AtomicU64,
    pub(crate) written: AtomicU64,
}

impl Endpoint {
    pub(crate) fn new(rid: Rid, iommu: &Arc<Iommu>, group: Arc<Group>, reserved: Vec<IovaRange>) -> Self {
        Self {
            rid,
            iommu: Arc::downgrade(iommu),
            group,
            reserved,
            bus_master: AtomicBool::new(false),
            bound: AtomicBool::new(false),
            attachments: RwLock::default(),
            gates: Mutex::default(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Its requester id.
    #[must_use]
    pub fn rid(&self) -> Rid {
        self.rid
    }

    /// Its group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group.id()
    }

    /// IOVAs that it cannot use for memory.
    #[must_use]
    pub fn reserved(&self) -> &[IovaRange] {
        &self.reserved
    }

    /// Whether it is a requester of this machine.
    pub(crate) fn is_on(&self, iommu: &Arc<Iommu>) -> bool {
        std::ptr::eq(self.iommu.as_ptr(), Arc::as_ptr(iommu))
    }

    /// A new port for the device model behind this endpoint. A model that does DMA from several threads takes one for
    /// each.
    ///
    /// # Panics
    /// If the [`Iommu`] is gone.
    #[must_use]
    pub fn port(self: &Arc<Self>) -> DmaPort {
        let iommu = self.iommu.upgrade().expect("an endpoint's IOMMU outlives the making of its ports");
        let gate = Arc::new(Gate::new());
        self.gates.lock().unwrap_or_else(PoisonError::into_inner).push(gate.clone());
        DmaPort::new(self.clone(), iommu, gate)
    }

    pub(crate) fn close_port(&self, gate: &Arc<Gate>) {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(other, gate));
    }

    /// Lets the device do DMA, or stops it: with `false` this returns when none is in flight any more.
    pub fn set_bus_master(&self, enabled: bool) {
        self.bus_master.store(enabled, Ordering::Release);
        if !enabled {
            self.quiesce();
        }
    }

    /// Whether the device may do DMA.
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }

    /// Bytes read and written by DMA so far.
    #[must_use]
    pub fn traffic(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    /// Returns when no DMA uses what was taken away before the call. The caller holds no lock that a port takes.
    pub(crate) fn quiesce(&self) {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        quiesce(gates.iter().map(|gate| &**gate));
    }

    /// The page table that a transaction goes to.
    pub(crate) fn with_attachment<T>(&self, pasid: Option<Pasid>, use_it: impl FnOnce(&Hwpt) -> T) -> Option<T> {
        let attachments = self.attachments.read().unwrap_or_else(PoisonError::into_inner);
        attachments.get(&pasid).map(|hwpt| use_it(hwpt))
    }

    /// Attaches (`Some`) or detaches (`None`), and returns what was there before, out of use.
    pub(crate) fn exchange(&self, pasid: Option<Pasid>, hwpt: Option<Arc<Hwpt>>) -> Option<Arc<Hwpt>> {
        let before = {
            let mut attachments = self.attachments.write().unwrap_or_else(PoisonError::into_inner);
            match hwpt {
                Some(hwpt) => attachments.insert(pasid, hwpt),
                None => attachments.remove(&pasid),
            }
        };
        self.quiesce();
        before
    }
}
