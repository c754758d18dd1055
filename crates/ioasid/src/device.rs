//! A device bound to a context: who may decide what it reaches.

use std::sync::{Arc, PoisonError};

use thiserror::Error;

use crate::context::{Context, Object};
use crate::endpoint::Endpoint;
use crate::hwpt::Hwpt;
use crate::ids::ObjectId;
use crate::ioas::ConnectError;
use crate::observe::Leftover;
use crate::types::{IovaRange, Pasid};

/// Why a device was not bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BindError {
    /// A device of the same group is bound to another context.
    #[error("the device's IOMMU group belongs to another context")]
    GroupBusy,
    /// The context has 2^31 objects.
    #[error("the context has no free ids")]
    NoIds,
}

/// Why a device was not attached. Whatever it was attached to before, it still is.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The context has no such object.
    #[error("no object {0} in the context")]
    Missing(u32),
    /// The object is neither an address space nor a page table.
    #[error("object {0} is neither an address space nor a page table")]
    WrongKind(u32),
    /// Another device of the same group is attached to something else.
    #[error("another device of IOMMU group {0} is attached to another page table")]
    GroupElsewhere(crate::GroupId),
    /// Something is mapped where the device cannot reach memory.
    #[error("IOVA {0} is mapped, but the device cannot use it for memory")]
    Conflict(IovaRange),
    /// The context has 2^31 objects.
    #[error("the context has no free ids")]
    NoIds,
    /// The page table could not be filled.
    #[error(transparent)]
    Table(#[from] iopt::MapError),
}

impl From<ConnectError> for AttachError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Conflict(range) => Self::Conflict(range),
            ConnectError::Table(error) => Self::Table(error),
        }
    }
}

/// An endpoint bound to a context. Dropping it detaches and unbinds.
pub struct Device {
    context: Arc<Context>,
    id: ObjectId,
    endpoint: Arc<Endpoint>,
}

impl Device {
    pub(crate) fn bind(context: Arc<Context>, endpoint: Arc<Endpoint>) -> Result<Self, BindError> {
        if !endpoint.group.claim(context.serial()) {
            return Err(BindError::GroupBusy);
        }
        let Some(reserved) = context.ids().reserve() else {
            endpoint.group.release();
            return Err(BindError::NoIds);
        };
        let id = reserved.finalize(Object::Device);
        // Held by this handle, so that it cannot be destroyed by its id.
        context.ids().hold(id);
        Ok(Self { context, id, endpoint })
    }

    /// Its id in the context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// The context that it is bound to.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Lets the device's transactions with `pasid` (or without) reach what the address space or page table `target`
    /// maps, in place of what they could reach before, and returns the id of the page table that it is attached to.
    ///
    /// When it returns, no DMA through the old translation is in flight.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(&self, pasid: Option<Pasid>, target: u32) -> Result<ObjectId, AttachError> {
        let _attach = self.context.attach.lock().unwrap_or_else(PoisonError::into_inner);
        let object = self.context.find(target).ok_or(AttachError::Missing(target))?;
        let ioas = match object {
            Object::Ioas(ioas) => ioas,
            Object::Hwpt(hwpt) => hwpt.ioas().clone(),
            Object::Device => return Err(AttachError::WrongKind(target)),
        };
        let group = self.endpoint.group();
        for other in self.context.iommu().view() {
            let elsewhere = |a: &crate::AttachmentView| a.pasid == pasid && a.ioas != ioas.id();
            if other.group == group && other.rid != self.endpoint.rid() && other.attachments.iter().any(elsewhere) {
                return Err(AttachError::GroupElsewhere(group));
            }
        }
        let ids = self.context.ids();
        let reserved = ids.reserve().ok_or(AttachError::NoIds)?;
        let id = reserved.id();
        let make = || Hwpt::new(id, ioas.clone(), self.context.iommu().arena.clone()).map(Arc::new);
        let (hwpt, made) = ioas.connect(&self.endpoint, make)?;
        if made {
            reserved.finalize(Object::Hwpt(hwpt.clone()));
            ids.hold(ioas.id());
        }
        ids.hold(hwpt.id());
        if let Some(before) = self.endpoint.exchange(pasid, Some(hwpt.clone())) {
            self.let_go(&before);
        }
        self.context.iommu().observer().attached(self.endpoint.rid(), group);
        Ok(hwpt.id())
    }

    /// Takes the translation for `pasid` away. When it returns, no DMA through it is in flight and none can start.
    /// Detaching what is not attached does nothing. Allocates nothing.
    pub fn detach(&self, pasid: Option<Pasid>) {
        let _attach = self.context.attach.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hwpt) = self.endpoint.exchange(pasid, None) {
            self.let_go(&hwpt);
        }
    }

    /// Drops the endpoint's claim on a page table that it no longer uses, and the table with the last claim.
    fn let_go(&self, hwpt: &Arc<Hwpt>) {
        let ids = self.context.ids();
        ids.release(hwpt.id());
        if hwpt.ioas().disconnect(&self.endpoint, hwpt) {
            let removed = ids.remove(hwpt.id());
            debug_assert!(removed.is_ok());
            ids.release(hwpt.ioas().id());
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let attached: Vec<_> = {
            let map = self.endpoint.attachments.read().unwrap_or_else(PoisonError::into_inner);
            map.iter().map(|(&pasid, hwpt)| (pasid, hwpt.id(), hwpt.ioas().id())).collect()
        };
        for (pasid, hwpt, ioas) in attached {
            self.detach(pasid);
            let what = Leftover::Attachment { rid: self.endpoint.rid(), pasid, hwpt, ioas };
            self.context.iommu().observer().left_behind(&what);
        }
        let ids = self.context.ids();
        ids.release(self.id);
        let removed = ids.remove(self.id);
        debug_assert!(removed.is_ok());
        self.endpoint.group.release();
    }
}
