//! Queues that an IOMMU works on by itself, in the guest's memory.

use std::fmt;
use std::sync::{Arc, Weak};

use super::Viommu;
use crate::base::ids::ObjectId;
use crate::ioas::PinnedRange;

/// A queue. Its memory stays mapped as long as it is there.
pub struct HwQueue {
    index: u32,
    viommu: Weak<Viommu>,
    id: ObjectId,
    memory: PinnedRange,
}

impl fmt::Debug for HwQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HwQueue")
            .field("id", &self.id)
            .field("index", &self.index)
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

impl HwQueue {
    pub(crate) fn new(id: ObjectId, index: u32, viommu: &Arc<Viommu>, memory: PinnedRange) -> Self {
        Self { index, viommu: Arc::downgrade(viommu), id, memory }
    }

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
