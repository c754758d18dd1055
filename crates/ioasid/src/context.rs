//! A context: what one open of `/dev/iommu` owns.

use std::num::NonZeroU32;
use std::sync::Arc;

use thiserror::Error;

use crate::device::{BindError, Device};
use crate::endpoint::Endpoint;
use crate::hwpt::Hwpt;
use crate::ids::{Ids, ObjectId, RemoveError};
use crate::ioas::Ioas;
use crate::iommu::Iommu;
use crate::observe::Leftover;
use crate::sync::Mutex;
use crate::types::IovaRange;

/// Why an object was not destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DestroyError {
    /// There is none with this id.
    #[error("no object {0} in the context")]
    Missing(u32),
    /// Something refers to it.
    #[error("object {0} is in use")]
    Busy(u32),
}

#[derive(Clone)]
pub(crate) enum Object {
    Ioas(Arc<Ioas>),
    Hwpt(Arc<Hwpt>),
    /// Its [`Device`] is held by the consumer that bound it.
    Device,
}

/// A context, the security object: whoever holds it controls what is in it, and ids mean something only inside it.
///
/// It goes when the last reference goes, and devices bound to it hold one: then whatever is left in it is told to the
/// observer and torn down.
pub struct Context {
    iommu: Arc<Iommu>,
    serial: u64,
    ids: Ids<Object>,
    /// Held while attachments change.
    pub(crate) attach: Mutex<()>,
}

impl Context {
    pub(crate) fn new(iommu: Arc<Iommu>) -> Arc<Self> {
        let serial = iommu.serial();
        Arc::new(Self { iommu, serial, ids: Ids::new(), attach: Mutex::default() })
    }

    pub(crate) fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    pub(crate) fn ids(&self) -> &Ids<Object> {
        &self.ids
    }

    /// Makes an empty address space, or returns `None` when the context has 2^31 objects.
    pub fn ioas_alloc(&self) -> Option<Arc<Ioas>> {
        let reserved = self.ids.reserve()?;
        let ioas = Arc::new(Ioas::new(reserved.id(), self.iommu.clone()));
        reserved.finalize(Object::Ioas(ioas.clone()), 0);
        Some(ioas)
    }

    /// The address space with this id.
    #[must_use]
    pub fn ioas(&self, id: u32) -> Option<Arc<Ioas>> {
        match self.ids.get(ObjectId(NonZeroU32::new(id)?))? {
            Object::Ioas(ioas) => Some(ioas),
            Object::Hwpt(_) | Object::Device => None,
        }
    }

    /// The page table with this id.
    #[must_use]
    pub fn hwpt(&self, id: ObjectId) -> Option<Arc<Hwpt>> {
        match self.ids.get(id)? {
            Object::Hwpt(hwpt) => Some(hwpt),
            Object::Ioas(_) | Object::Device => None,
        }
    }

    /// Binds a device to this context: from now on, what it reaches is decided through it.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(self: &Arc<Self>, endpoint: &Arc<Endpoint>) -> Result<Device, BindError> {
        Device::bind(self.clone(), endpoint.clone())
    }

    /// Destroys an object that nothing refers to; what was mapped in an address space is unmapped.
    ///
    /// # Errors
    /// See [`DestroyError`]; nothing is changed then. It never fails for lack of memory.
    pub fn destroy(&self, id: u32) -> Result<(), DestroyError> {
        let object_id = ObjectId(NonZeroU32::new(id).ok_or(DestroyError::Missing(id))?);
        let object = self.ids.remove(object_id).map_err(|error| match error {
            RemoveError::Missing => DestroyError::Missing(id),
            RemoveError::InUse => DestroyError::Busy(id),
        })?;
        if let Object::Ioas(ioas) = object {
            // Only a range that cuts an area is refused.
            let _ = ioas.unmap(IovaRange::ALL);
        }
        Ok(())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Devices hold the context, so none is bound any more, and no page table is left.
        for (id, object) in self.ids.drain() {
            if let Object::Ioas(ioas) = object {
                let (areas, bytes) = ioas.size();
                self.iommu.observer().left_behind(&Leftover::Ioas { id, areas, bytes });
                let _ = ioas.unmap(IovaRange::ALL);
            }
        }
    }
}
