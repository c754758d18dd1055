//! A page table that devices can be attached to, mirroring an address space.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iopt::format::VtdSecondStage;
use iopt::{Arena, EmptyTables, Format, PageTable, Translation};

use crate::endpoint::Endpoint;
use crate::ids::ObjectId;
use crate::ioas::Ioas;
use crate::types::IovaRange;

/// A paging HWPT.
pub(crate) struct Hwpt {
    id: ObjectId,
    ioas: Arc<Ioas>,
    pub(crate) table: PageTable<VtdSecondStage>,
    /// The endpoints that are attached, once for each PASID: whose ports to wait for.
    endpoints: Mutex<Vec<Arc<Endpoint>>>,
}

impl Hwpt {
    pub(crate) fn new(id: ObjectId, ioas: Arc<Ioas>, arena: Arc<Arena>) -> Result<Self, iopt::MapError> {
        Ok(Self { id, ioas, table: PageTable::new(arena)?, endpoints: Mutex::default() })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn ioas(&self) -> &Arc<Ioas> {
        &self.ioas
    }

    /// What the format can address.
    pub(crate) fn aperture() -> IovaRange {
        IovaRange { start: 0, last: (1 << VtdSecondStage::iova_bits()) - 1 }
    }

    pub(crate) fn endpoints(&self) -> MutexGuard<'_, Vec<Arc<Endpoint>>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when no port uses what was taken out of the table before the call.
    pub(crate) fn quiesce(&self) {
        for endpoint in &*self.endpoints() {
            endpoint.quiesce();
        }
    }

    pub(crate) fn walk(&self, iova: u64) -> Option<Translation> {
        self.table.walk(iova)
    }

    pub(crate) fn unmap(&self, range: IovaRange, empty: &mut EmptyTables) {
        let length = range.len_minus_one() + 1;
        let result = self.table.unmap(range.start, length, empty);
        // Areas are whole pages within the aperture, and every area was mapped by calls of its own.
        debug_assert_eq!(result, Ok(()));
    }
}
