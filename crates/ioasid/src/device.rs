//! A device bound to a context: who may decide what it reaches.

use std::sync::{Arc, PoisonError};

use thiserror::Error;

use crate::attach::{AttachError, attach, detach};
use crate::context::{Context, Object};
use crate::endpoint::{BEING_BOUND, Endpoint};
use crate::gate::check_holds_nothing;
use crate::hwpt::Table;
use crate::ids::ObjectId;
use crate::observe::Leftover;
use crate::sync::Ordering;
use crate::types::{HoldsSlices, Pasid};

/// Why a device was not bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BindError {
    /// A device of the same group is bound to another context.
    #[error("the device's IOMMU group belongs to another context")]
    GroupBusy,
    /// It is bound already.
    #[error("the device is bound already")]
    AlreadyBound,
    /// It was taken off the bus.
    #[error("the device is not on the bus any more")]
    Removed,
    /// The device belongs to another [`Iommu`](crate::Iommu) than the context.
    #[error("the device belongs to another machine than the context")]
    OtherMachine,
    /// The context has 2^31 objects.
    #[error("the context has no free ids")]
    NoIds,
}

/// An endpoint bound to a context. Dropping it detaches and unbinds.
///
/// To drop it while the same thread holds [`Slices`](crate::Slices) ends the process: the slices would
/// outlive what they lead to.
pub struct Device {
    context: Arc<Context>,
    id: ObjectId,
    claim: Claim,
}

/// An endpoint that is taken, and its group with it.
struct Claim {
    endpoint: Arc<Endpoint>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.endpoint.bound.store(0, Ordering::Release);
        self.endpoint.group.release();
    }
}

impl Device {
    pub(crate) fn bind(context: Arc<Context>, endpoint: Arc<Endpoint>) -> Result<Self, BindError> {
        if !endpoint.is_on(context.iommu()) {
            return Err(BindError::OtherMachine);
        }
        if endpoint.bound.swap(BEING_BOUND, Ordering::AcqRel) != 0 {
            let is_there = context.iommu().has_endpoint(&endpoint);
            return Err(if is_there { BindError::AlreadyBound } else { BindError::Removed });
        }
        if !endpoint.group.claim(context.serial()) {
            endpoint.bound.store(0, Ordering::Release);
            return Err(BindError::GroupBusy);
        }
        // From here on, dropping the claim undoes it.
        let claim = Claim { endpoint };
        let reserved = context.ids().reserve().ok_or(BindError::NoIds)?;
        claim.endpoint.bound.store(reserved.id().into(), Ordering::Release);
        let id = reserved.finalize(Object::Device(claim.endpoint.clone()), 1, vec![]);
        Ok(Self { context, id, claim })
    }

    fn endpoint(&self) -> &Arc<Endpoint> {
        &self.claim.endpoint
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
        self.attach_if(pasid, target, |_| true)
    }

    /// As [`Device::attach`], if `confirm` says yes to the id of the page table; it is called when nothing else can fail any
    /// more, and must not attach or detach.
    ///
    /// # Errors
    /// See [`AttachError`]; [`AttachError::NotConfirmed`] if `confirm` says no.
    pub fn attach_if(
        &self,
        pasid: Option<Pasid>,
        target: u32,
        confirm: impl FnOnce(ObjectId) -> bool,
    ) -> Result<ObjectId, AttachError> {
        check_holds_nothing()?;
        let _attach = self.context.attach.lock().unwrap_or_else(PoisonError::into_inner);
        attach(&self.context, self.endpoint(), pasid, target, confirm)
    }

    /// The page table that the device's transactions with `pasid` (or without) go to.
    #[must_use]
    pub fn attached_to(&self, pasid: Option<Pasid>) -> Option<ObjectId> {
        let (endpoint, pasid) = self.endpoint().on_bus(pasid)?;
        endpoint.with_attachment(pasid, Table::id)
    }

    /// Takes the translation for `pasid` away. When it returns, no DMA through it is in flight and none can start.
    /// Detaching what is not attached does nothing. Allocates nothing.
    ///
    /// # Errors
    /// [`HoldsSlices`] if this thread holds slices; nothing is changed then.
    pub fn detach(&self, pasid: Option<Pasid>) -> Result<(), HoldsSlices> {
        check_holds_nothing()?;
        let _attach = self.context.attach.lock().unwrap_or_else(PoisonError::into_inner);
        detach(&self.context, self.endpoint(), pasid);
        Ok(())
    }

    /// One attachment that there is.
    fn first_attachment(&self) -> Option<(Option<Pasid>, Leftover)> {
        let endpoint = self.endpoint();
        let rid = endpoint.rid();
        let leftover = |pasid: Option<Pasid>, table: &Table| {
            let ioas = table.ioas().map(|ioas| ioas.id());
            (pasid, Leftover::Attachment { rid, pasid, hwpt: table.id(), ioas })
        };
        match endpoint.virtual_pasids() {
            None => endpoint.find_attachment(|(pasid, table)| Some(leftover(*pasid, table))),
            Some(numbers) => numbers.numbers().into_iter().find_map(|own| {
                let (bus, pasid) = endpoint.on_bus(own)?;
                bus.with_attachment(pasid, |table| leftover(own, table))
            }),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        while let Some((pasid, what)) = self.first_attachment() {
            if let Err(error) = self.detach(pasid) {
                // Dropping cannot fail, and must not go on: the slices would outlive what they lead to.
                eprintln!("ioasid: {} was dropped, but {error}", self.endpoint().rid());
                std::process::abort();
            }
            self.context.iommu().observer().left_behind(&what);
        }
        self.context.ids().release_last(self.id);
        // Nobody finds the device any more who could make it known to a guest.
        let known = self.endpoint().virtual_device().take();
        if let Some(known) = known
            && self.context.ids().bury(known.id()).is_ok()
        {
            known.remove();
        }
    }
}
