//! Queues that an IOMMU works on by itself, in the guest's memory.

use std::sync::{Arc, Weak};

use iopt::Access;
use thiserror::Error;

use super::{Viommu, ViommuError, viommu};
use crate::access::PinnedRange;
use crate::context::{Context, Object};
use crate::ids::ObjectId;
use crate::ioas::{AccessError, Hold};
use crate::memory::PAGE_SIZE;
use crate::types::{HoldsSlices, Iova, IovaRange};

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
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
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

/// A queue. Its memory stays mapped as long as it is there.
pub struct HwQueue {
    index: u32,
    viommu: Weak<Viommu>,
    id: ObjectId,
    memory: PinnedRange,
}

impl HwQueue {
    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Its memory: the whole pages that it lies in.
    #[must_use]
    pub fn memory(&self) -> &PinnedRange {
        &self.memory
    }

    /// There may be another in its place.
    pub(crate) fn remove(&self) {
        if let Some(viommu) = self.viommu.upgrade() {
            viommu.lock().queues.remove(&self.index);
        }
    }
}

impl Context {
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
            let memory = PinnedRange::new(viommu.parent.ioas(), pages, Access::READ, Hold::Lock)?;
            if !memory.is_contiguous() {
                return Err(HwQueueError::Scattered);
            }
            let mut state = viommu.lock();
            if state.queues.contains_key(&index) {
                return Err(ViommuError::Exists.into());
            }
            let mut holds = vec![viommu.id];
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
            let queue = Arc::new(HwQueue { index, viommu: Arc::downgrade(&viommu), id, memory });
            state.queues.insert(index, id);
            reserved.finalize(Object::HwQueue(queue.clone()), 0, holds);
            Ok(queue)
        })
    }
}
