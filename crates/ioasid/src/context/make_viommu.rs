//! How virtual IOMMUs are made, and what is made on them.

use std::any::Any;
use std::sync::Arc;

use iopt::Access;
use thiserror::Error;

use super::{Context, Object};
use crate::base::callback;
use crate::base::ids::ObjectId;
use crate::base::types::{Iova, IovaRange, WouldDeadlock};
use crate::hwpt::Table;
use crate::ioas::{AccessError, Hold, PinnedRange};
use crate::memory::PAGE_SIZE;
use crate::viommu::{EventQueue, HwQueue, Viommu, VirtualDevice};

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
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}

/// Why there is no queue. Nothing is changed.
#[derive(Debug, Error)]
pub enum HwQueueError {
    /// There is no virtual IOMMU, or there is such a queue already.
    #[error(transparent)]
    Viommu(#[from] ViommuError),
    /// A queue has to come after another one, which is not there.
    #[error("queue {0} has to be made first")]
    OutOfOrder(u32),
    /// The memory cannot be had.
    #[error(transparent)]
    Memory(#[from] AccessError),
    /// The memory is not in one piece.
    #[error("the queue's memory is not in one piece")]
    Scattered,
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}

/// What a queue is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HwQueueOptions {
    /// Which of the virtual IOMMU's.
    pub index: u32,
    /// The index of the queue that it comes after, and that cannot be destroyed before it.
    pub after: Option<u32>,
    /// Where it is: an IOVA of the parent, which is a guest-physical address.
    pub iova: Iova,
    /// Its length in bytes.
    pub length: u64,
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
    pub fn viommu_alloc<E: From<ViommuError> + From<WouldDeadlock>>(
        &self,
        device: u32,
        parent: u32,
        extend: impl FnOnce(ObjectId) -> Result<Box<dyn Any + Send + Sync>, E>,
    ) -> Result<Arc<Viommu>, E> {
        let endpoint = self.endpoint(device).ok_or(ViommuError::Missing(device))?;
        let hwpt = |object: &Object| match object {
            Object::Hwpt(Table::Paging(hwpt)) if !hwpt.is_nest_parent() => Err(ViommuError::NotAParent(parent)),
            Object::Hwpt(Table::Paging(hwpt)) if hwpt.iommu_kind() != endpoint.iommu_kind() => {
                Err(ViommuError::OtherIommu(device))
            }
            Object::Hwpt(Table::Paging(hwpt)) => Ok(hwpt.clone()),
            _ => Err(ViommuError::Missing(parent)),
        };
        self.on_held(parent, ViommuError::Missing, hwpt, |hwpt| {
            let reserved = self.ids().reserve().ok_or(ViommuError::NoIds)?;
            let (id, holds) = (reserved.id(), vec![hwpt.id()]);
            let viommu = Arc::new(Viommu::new(id, hwpt, callback::call(|| extend(id))?));
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
            if endpoint.iommu_kind() != viommu.parent().iommu_kind() {
                return Err(ViommuError::OtherIommu(device));
            }
            // Held until it is published, so that the device does not go meanwhile and leave it behind.
            let mut known = self.virtual_devices.lock();
            if self.endpoint(device).is_none() {
                return Err(ViommuError::Missing(device));
            }
            if known.iter().any(|known| Arc::ptr_eq(known.endpoint(), &endpoint)) {
                return Err(ViommuError::Exists);
            }
            let reserved = self.ids().reserve().ok_or(ViommuError::NoIds)?;
            let made = Arc::new(VirtualDevice::new(reserved.id(), virtual_id, &viommu, endpoint));
            let mut state = viommu.lock();
            if state.devices.contains_key(&virtual_id) {
                return Err(ViommuError::Exists);
            }
            state.devices.insert(virtual_id, made.clone());
            reserved.finalize(Object::VirtualDevice(made.clone()), 0, vec![viommu.id()]);
            known.push(made.clone());
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
            reserved.finalize(Object::EventQueue(queue.clone()), 0, vec![viommu.id()]);
            Ok(queue)
        })
    }

    /// Makes a queue of a virtual IOMMU, in memory that its parent maps in one piece.
    ///
    /// # Errors
    /// See [`HwQueueError`].
    pub fn hw_queue_alloc(&self, viommu_id: u32, options: HwQueueOptions) -> Result<Arc<HwQueue>, HwQueueError> {
        let HwQueueOptions { index, after, iova: Iova(start), length } = options;
        let overflow = || AccessError::Overflow(start, length);
        self.on_held(viommu_id, ViommuError::Missing, viommu(viommu_id), |viommu| {
            let range = IovaRange::new(start, length).ok_or_else(overflow)?;
            let pages = IovaRange { start: start & !(PAGE_SIZE - 1), last: range.last | (PAGE_SIZE - 1) };
            let memory = PinnedRange::new(viommu.parent().ioas(), pages, Access::READ, Hold::Lock)?;
            if !memory.is_contiguous() {
                return Err(HwQueueError::Scattered);
            }
            let mut state = viommu.lock();
            if state.queues.contains_key(&index) {
                return Err(ViommuError::Exists.into());
            }
            let mut holds = vec![viommu.id()];
            if let Some(after) = after {
                let id = *state.queues.get(&after).ok_or(HwQueueError::OutOfOrder(after))?;
                self.ids().hold(id).ok_or(HwQueueError::OutOfOrder(after))?;
                holds.push(id);
            }
            let Some(reserved) = self.ids().reserve() else {
                holds[1..].iter().for_each(|id| self.ids().release(*id));
                return Err(ViommuError::NoIds.into());
            };
            let id = reserved.id();
            let queue = Arc::new(HwQueue::new(id, index, &viommu, memory));
            state.queues.insert(index, id);
            reserved.finalize(Object::HwQueue(queue.clone()), 0, holds);
            Ok(queue)
        })
    }
}
