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
use std::sync::{Arc, PoisonError, Weak};

use thiserror::Error;

use crate::context::{Context, Object};
use crate::endpoint::Endpoint;
use crate::hwpt::{Hwpt, Table};
use crate::ids::ObjectId;
use crate::sync::{Mutex, MutexGuard};
use crate::types::HoldsSlices;

pub use events::{Event, EventQueue};
pub use queue::{HwQueue, HwQueueError, HwQueueOptions};

/// Why there is no virtual IOMMU, device or queue. Nothing is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ViommuError {
    /// There is no object of the right kind with this id.
    #[error("no such object {0} in the context")]
    Missing(u32),
    /// The page table was not made to be a parent.
    #[error("page table {0} was not made to be a parent")]
    NotAParent(u32),
    /// The device is behind another kind of IOMMU.
    #[error("device {0} is behind another kind of IOMMU")]
    OtherIommu(u32),
    /// There is one already: of the device, of this number, or of this kind.
    #[error("there is one already")]
    Exists,
    /// A queue has to have room.
    #[error("a queue cannot have room for nothing")]
    NoRoom,
    /// The context has 2^31 objects.
    #[error("the context has no free ids")]
    NoIds,
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
}

/// A virtual IOMMU.
pub struct Viommu {
    id: ObjectId,
    parent: Arc<Hwpt>,
    extension: Box<dyn Any + Send + Sync>,
    state: Mutex<State>,
}

/// What was made on a virtual IOMMU, as long as it was not destroyed.
#[derive(Default)]
struct State {
    /// By the guest's numbers.
    devices: BTreeMap<u64, Arc<VirtualDevice>>,
    /// By their kinds.
    events: BTreeMap<u32, Arc<EventQueue>>,
    /// By their indices.
    queues: BTreeMap<u32, ObjectId>,
}

/// A device of a virtual IOMMU.
pub struct VirtualDevice {
    id: ObjectId,
    virtual_id: u64,
    viommu: Weak<Viommu>,
    endpoint: Arc<Endpoint>,
}

impl Viommu {
    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

impl VirtualDevice {
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
        *self.endpoint.virtual_device() = None;
    }
}

/// The object with this id, if it is a virtual IOMMU.
fn viommu(id: u32) -> impl FnOnce(&Object) -> Result<Arc<Viommu>, ViommuError> {
    move |object| match object {
        Object::Viommu(viommu) => Ok(viommu.clone()),
        _ => Err(ViommuError::Missing(id)),
    }
}

impl Context {
    /// Makes a virtual IOMMU over the page table `parent`, of the IOMMU that `device` is behind. `extend` makes what is kept
    /// with it, and is told its id.
    ///
    /// # Errors
    /// See [`ViommuError`], and that of `extend`.
    pub fn viommu_alloc<E: From<ViommuError> + From<HoldsSlices>>(
        &self,
        device: u32,
        parent: u32,
        extend: impl FnOnce(ObjectId) -> Result<Box<dyn Any + Send + Sync>, E>,
    ) -> Result<Arc<Viommu>, E> {
        let endpoint = self.endpoint(device).ok_or(ViommuError::Missing(device))?;
        let hwpt = |object: &Object| match object {
            Object::Hwpt(Table::Paging(hwpt)) if !hwpt.is_nest_parent() => Err(ViommuError::NotAParent(parent)),
            Object::Hwpt(Table::Paging(hwpt)) if hwpt.format().iommu_kind() != endpoint.iommu_kind() => {
                Err(ViommuError::OtherIommu(device))
            }
            Object::Hwpt(Table::Paging(hwpt)) => Ok(hwpt.clone()),
            _ => Err(ViommuError::Missing(parent)),
        };
        self.on_held(parent, ViommuError::Missing, hwpt, |hwpt| {
            let reserved = self.ids().reserve().ok_or(ViommuError::NoIds)?;
            let (id, holds) = (reserved.id(), vec![hwpt.id()]);
            let viommu = Arc::new(Viommu { id, parent: hwpt, extension: extend(id)?, state: Mutex::default() });
            // The parent may have been parked meanwhile.
            let made = reserved.finalize_over(Object::Viommu(viommu.clone()), holds);
            made.map(|_| viommu).ok_or(ViommuError::Missing(parent).into())
        })
    }

    /// The virtual IOMMU with this id.
    #[must_use]
    pub fn viommu(&self, id: u32) -> Option<Arc<Viommu>> {
        match self.get(id)? {
            Object::Viommu(viommu) => Some(viommu),
            _ => None,
        }
    }

    /// Makes `device` known to the guest of a virtual IOMMU by a number. It goes with the device.
    ///
    /// # Errors
    /// See [`ViommuError`].
    pub fn virtual_device_alloc(
        &self,
        viommu_id: u32,
        device: u32,
        virtual_id: u64,
    ) -> Result<Arc<VirtualDevice>, ViommuError> {
        self.on_held(viommu_id, ViommuError::Missing, viommu(viommu_id), |viommu| {
            let endpoint = self.endpoint(device).ok_or(ViommuError::Missing(device))?;
            if endpoint.iommu_kind() != viommu.parent.format().iommu_kind() {
                return Err(ViommuError::OtherIommu(device));
            }
            // Held until it is published, so that the device does not go meanwhile and leave it behind.
            let mut of_device = endpoint.virtual_device();
            if self.endpoint(device).is_none() {
                return Err(ViommuError::Missing(device));
            }
            if of_device.is_some() {
                return Err(ViommuError::Exists);
            }
            let reserved = self.ids().reserve().ok_or(ViommuError::NoIds)?;
            let made = Arc::new(VirtualDevice {
                id: reserved.id(),
                virtual_id,
                viommu: Arc::downgrade(&viommu),
                endpoint: endpoint.clone(),
            });
            let mut state = viommu.lock();
            if state.devices.contains_key(&virtual_id) {
                return Err(ViommuError::Exists);
            }
            state.devices.insert(virtual_id, made.clone());
            reserved.finalize(Object::VirtualDevice(made.clone()), 0, vec![viommu.id]);
            *of_device = Some(made.clone());
            Ok(made)
        })
    }

    /// Makes a queue for the events of one kind that the guest of a virtual IOMMU is to be told, with room for `depth` of them.
    ///
    /// # Errors
    /// See [`ViommuError`].
    pub fn event_queue_alloc(&self, viommu_id: u32, kind: u32, depth: usize) -> Result<Arc<EventQueue>, ViommuError> {
        if depth == 0 {
            return Err(ViommuError::NoRoom);
        }
        self.on_held(viommu_id, ViommuError::Missing, viommu(viommu_id), |viommu| {
            let mut state = viommu.lock();
            if state.events.contains_key(&kind) {
                return Err(ViommuError::Exists);
            }
            let reserved = self.ids().reserve().ok_or(ViommuError::NoIds)?;
            let queue = Arc::new(EventQueue::new(reserved.id(), kind, depth, &viommu));
            state.events.insert(kind, queue.clone());
            reserved.finalize(Object::EventQueue(queue.clone()), 0, vec![viommu.id]);
            Ok(queue)
        })
    }
}
