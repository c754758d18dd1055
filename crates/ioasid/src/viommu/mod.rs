//! Virtual IOMMUs: what a guest has of a machine's IOMMU.
//!
//! ```text
//!   Viommu ── over ──► Hwpt, the parent of all nested page tables made on it
//!     ├─ VirtualDevice   a device, by the number that the guest knows it by
//!     ├─ EventQueue      what the guest is to be told, a queue for each kind
//!     └─ HwQueue         a queue in the guest's memory that the IOMMU works on by itself
//! ```

mod events;
mod queue;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use crate::base::ids::ObjectId;
use crate::base::lock::{Mutex, MutexGuard};
use crate::base::rank;
use crate::bus::{Endpoint, Iommu};
use crate::hwpt::Hwpt;

pub use events::{Event, EventQueue};
pub use queue::HwQueue;

/// A virtual IOMMU.
pub struct Viommu {
    id: ObjectId,
    iommu: Arc<Iommu>,
    parent: Arc<Hwpt>,
    extension: Box<dyn Any + Send + Sync>,
    state: Mutex<State, rank::Viommu>,
}

/// What was made on a virtual IOMMU, as long as it was not destroyed.
#[derive(Default)]
pub(crate) struct State {
    /// By the guest's numbers.
    pub(crate) devices: BTreeMap<u64, Arc<VirtualDevice>>,
    /// By their kinds.
    pub(crate) events: BTreeMap<u32, Arc<EventQueue>>,
    /// By their indices.
    pub(crate) queues: BTreeMap<u32, Weak<HwQueue>>,
}

/// A device of a virtual IOMMU.
pub struct VirtualDevice {
    id: ObjectId,
    virtual_id: u64,
    viommu: Weak<Viommu>,
    endpoint: Arc<Endpoint>,
}

impl fmt::Debug for Viommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Viommu").field("id", &self.id).field("parent", &self.parent.id()).finish_non_exhaustive()
    }
}

impl Viommu {
    pub(crate) fn new(
        id: ObjectId,
        iommu: Arc<Iommu>,
        parent: Arc<Hwpt>,
        extension: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self { id, iommu, parent, extension, state: Mutex::default() }
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// The IOMMU that it is a part of.
    #[must_use]
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// What maps the guest's physical addresses.
    #[must_use]
    pub fn parent(&self) -> &Arc<Hwpt> {
        &self.parent
    }

    /// What its maker keeps with it, if that is a `T`.
    #[must_use]
    pub fn extension<T: 'static>(&self) -> Option<&T> {
        self.extension.downcast_ref()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State, rank::Viommu> {
        self.state.lock()
    }

    /// The device that the guest knows by this number.
    #[must_use]
    pub fn device(&self, virtual_id: u64) -> Option<Arc<VirtualDevice>> {
        self.lock().devices.get(&virtual_id).cloned()
    }

    /// The number that the guest knows a device by.
    #[must_use]
    pub fn virtual_id(&self, endpoint: &Arc<Endpoint>) -> Option<u64> {
        let state = self.lock();
        state.devices.values().find(|device| Arc::ptr_eq(&device.endpoint, endpoint)).map(|device| device.virtual_id)
    }

    /// The queue for events of this kind.
    #[must_use]
    pub fn events(&self, kind: u32) -> Option<Arc<EventQueue>> {
        self.lock().events.get(&kind).cloned()
    }
}

impl fmt::Debug for VirtualDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualDevice")
            .field("id", &self.id)
            .field("virtual_id", &format_args!("{:#x}", self.virtual_id))
            .finish_non_exhaustive()
    }
}

impl VirtualDevice {
    pub(crate) fn new(id: ObjectId, virtual_id: u64, viommu: &Arc<Viommu>, endpoint: Arc<Endpoint>) -> Self {
        Self { id, virtual_id, viommu: Arc::downgrade(viommu), endpoint }
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// The number that the guest knows it by.
    #[must_use]
    pub fn virtual_id(&self) -> u64 {
        self.virtual_id
    }

    /// The device.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The guest does not know it any more.
    pub(crate) fn remove(&self) {
        if let Some(viommu) = self.viommu.upgrade() {
            viommu.lock().devices.remove(&self.virtual_id);
        }
    }
}
