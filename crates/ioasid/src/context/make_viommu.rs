//! How virtual IOMMUs are made, and what is made on them.

use std::any::Any;
use std::sync::{Arc, Weak};

use iopt::Access;
use thiserror::Error;

use super::{Context, NotBound, Object, finalize_over, kept};
use crate::base::callback;
use crate::base::ids::ObjectId;
use crate::base::types::{IovaRange, Rid, WouldDeadlock};
use crate::bus::Endpoint;
use crate::gate::check_may_wait;
use crate::hwpt::Hwpt;
use crate::ioas::{AccessError, Hold, PinnedRange};
use crate::memory::PAGE_SIZE;
use crate::viommu::{EventQueue, HwQueue, Viommu, VirtualDevice};

/// Why there is no virtual IOMMU, device or queue. Nothing is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ViommuError {
    /// What it is to be made on was destroyed, or is another context's.
    #[error("object {0} is not in this context: it was destroyed, or another context has it")]
    Missing(ObjectId),
    /// The device is not bound to the context.
    #[error(transparent)]
    NotBound(#[from] NotBound),
    /// The page table was not made to be a parent.
    #[error("page table {0} was not made to be a parent")]
    NotAParent(ObjectId),
    /// The device is behind another IOMMU: the page table is of another kind's, or the virtual IOMMU a part of another.
    #[error("device {0} is behind another IOMMU")]
    OtherIommu(Rid),
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
#[non_exhaustive]
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
#[non_exhaustive]
pub struct HwQueueOptions {
    /// Which of the virtual IOMMU's.
    pub index: u32,
    /// Where it is: IOVAs of the parent, which are guest-physical addresses.
    pub memory: IovaRange,
    /// The index of the queue that it comes after, and that cannot be destroyed before it.
    pub after: Option<u32>,
}

impl HwQueueOptions {
    /// The queue with this index, at these IOVAs of the parent; it comes after no other.
    #[must_use]
    pub fn new(index: u32, memory: IovaRange) -> Self {
        Self { index, memory, after: None }
    }

    /// It comes after the queue with the index `after`, if with any.
    #[must_use]
    pub fn after(self, after: Option<u32>) -> Self {
        Self { after, ..self }
    }
}

impl Context {
    /// Makes a virtual IOMMU over the page table `parent`, of the IOMMU that `device` is behind. `extend` makes what is
    /// kept with it, and is told its id.
    ///
    /// # Errors
    /// See [`ViommuError`], and that of `extend`.
    pub fn viommu_alloc<E: From<ViommuError>>(
        &self,
        device: &Arc<Endpoint>,
        parent: &Arc<Hwpt>,
        extend: impl FnOnce(ObjectId) -> Result<Box<dyn Any + Send + Sync>, E>,
    ) -> Result<Arc<Viommu>, E> {
        self.check_viommu(device, parent)?;
        let missing = ViommuError::Missing(parent.id());
        let holds = vec![self.hold_hwpt(parent).ok_or(missing)?];
        let reserved = self.ids().reserve().ok_or(ViommuError::NoIds)?;
        let id = reserved.id();
        let viommu = Arc::new(Viommu::new(id, device.iommu().clone(), parent.clone(), callback::call(|| extend(id))?));
        // The parent may have been parked meanwhile.
        finalize_over(reserved, Object::Viommu(viommu.clone()), holds).ok_or(missing)?;
        Ok(viommu)
    }

    fn check_viommu(&self, device: &Arc<Endpoint>, parent: &Arc<Hwpt>) -> Result<(), ViommuError> {
        check_may_wait()?;
        self.check_bound(device)?;
        if !parent.is_nest_parent() {
            return Err(ViommuError::NotAParent(parent.id()));
        }
        if parent.iommu_kind() != device.iommu().kind() {
            return Err(ViommuError::OtherIommu(device.rid()));
        }
        Ok(())
    }

    /// The virtual IOMMU with this id.
    #[must_use]
    pub fn viommu(&self, id: impl Into<u32>) -> Option<Arc<Viommu>> {
        match self.get(id.into())? {
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
        viommu: &Arc<Viommu>,
        device: &Arc<Endpoint>,
        virtual_id: u64,
    ) -> Result<Arc<VirtualDevice>, ViommuError> {
        check_may_wait()?;
        let holds = vec![self.hold_viommu(viommu).ok_or(ViommuError::Missing(viommu.id()))?];
        if !Arc::ptr_eq(device.iommu(), viommu.iommu()) {
            return Err(ViommuError::OtherIommu(device.rid()));
        }
        // Held until it is published, so that the device does not go meanwhile and leave it behind.
        let mut known = self.virtual_devices.lock();
        self.check_bound(device)?;
        if known.iter().any(|known| Arc::ptr_eq(known.endpoint(), device)) {
            return Err(ViommuError::Exists);
        }
        let reserved = self.ids().reserve().ok_or(ViommuError::NoIds)?;
        let made = Arc::new(VirtualDevice::new(reserved.id(), virtual_id, viommu, device.clone()));
        let mut state = viommu.lock();
        if state.devices.contains_key(&virtual_id) {
            return Err(ViommuError::Exists);
        }
        state.devices.insert(virtual_id, made.clone());
        reserved.finalize(Object::VirtualDevice(made.clone()), 0, kept(holds));
        known.push(made.clone());
        Ok(made)
    }

    /// Makes a queue for the events of one kind that the guest of a virtual IOMMU is to be told, with room for `depth`
    /// of them.
    ///
    /// # Errors
    /// See [`ViommuError`].
    pub fn event_queue_alloc(
        &self,
        viommu: &Arc<Viommu>,
        kind: u32,
        depth: usize,
    ) -> Result<Arc<EventQueue>, ViommuError> {
        check_may_wait()?;
        if depth == 0 {
            return Err(ViommuError::NoRoom);
        }
        let holds = vec![self.hold_viommu(viommu).ok_or(ViommuError::Missing(viommu.id()))?];
        let mut state = viommu.lock();
        if state.events.contains_key(&kind) {
            return Err(ViommuError::Exists);
        }
        let reserved = self.ids().reserve().ok_or(ViommuError::NoIds)?;
        let queue = Arc::new(EventQueue::new(reserved.id(), kind, depth, viommu));
        state.events.insert(kind, queue.clone());
        reserved.finalize(Object::EventQueue(queue.clone()), 0, kept(holds));
        Ok(queue)
    }

    /// Makes a queue of a virtual IOMMU, in memory that its parent maps in one piece.
    ///
    /// # Errors
    /// See [`HwQueueError`].
    pub fn hw_queue_alloc(&self, viommu: &Arc<Viommu>, options: HwQueueOptions) -> Result<Arc<HwQueue>, HwQueueError> {
        check_may_wait()?;
        let HwQueueOptions { index, after, memory: IovaRange { start, last } } = options;
        let mut holds = vec![self.hold_viommu(viommu).ok_or(ViommuError::Missing(viommu.id()))?];
        let pages = IovaRange { start: start & !(PAGE_SIZE - 1), last: last | (PAGE_SIZE - 1) };
        let memory = PinnedRange::new(viommu.parent().ioas(), pages, Access::READ, Hold::Lock)?;
        if !memory.is_contiguous() {
            return Err(HwQueueError::Scattered);
        }
        // Let go after the lock, as the memory of a queue that goes is a caller's affair.
        let mut before = None;
        let mut state = viommu.lock();
        if state.queues.contains_key(&index) {
            return Err(ViommuError::Exists.into());
        }
        if let Some(after) = after {
            let found = state.queues.get(&after).and_then(Weak::upgrade);
            let before = before.insert(found.ok_or(HwQueueError::OutOfOrder(after))?);
            let is_it = |object: &Object| matches!(object, Object::HwQueue(there) if Arc::ptr_eq(there, before));
            holds.push(self.hold_object(before.id(), is_it).ok_or(HwQueueError::OutOfOrder(after))?);
        }
        let reserved = self.ids().reserve().ok_or(ViommuError::NoIds)?;
        let queue = Arc::new(HwQueue::new(reserved.id(), index, viommu, memory));
        state.queues.insert(index, Arc::downgrade(&queue));
        reserved.finalize(Object::HwQueue(queue.clone()), 0, kept(holds));
        Ok(queue)
    }
}
