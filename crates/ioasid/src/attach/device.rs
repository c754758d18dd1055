//! A device bound to a context: the right to decide what it reaches.

use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, mem};

use thiserror::Error;

use super::{AttachError, attach, detach};
use crate::base::callback;
use crate::base::ids::ObjectId;
use crate::base::observe::Leftover;
use crate::base::sync::Ordering;
use crate::base::types::{Pasid, WouldDeadlock};
use crate::bus::{BEING_BOUND, Endpoint};
use crate::context::{Afterwards, Context, Object, Target};
use crate::gate::check_may_wait;
use crate::hwpt::Table;

/// Why a device was not bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
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
    /// The device belongs to another [`Machine`](crate::Machine) than the context.
    #[error("the device belongs to another machine than the context")]
    OtherMachine,
    /// The context has 2^31 objects.
    #[error("the context has no free ids")]
    NoIds,
}

/// An endpoint bound to a context. Dropping it detaches and unbinds, and returns when no DMA is in flight.
///
/// If the thread that drops it holds slices, or is inside an access of a port, it might have to wait for itself. Then
/// another thread detaches, as soon as it can, and what the device can reach stays until it has.
pub struct Device(Option<Bound>);

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("id", &self.id()).field("rid", &self.endpoint().rid()).finish_non_exhaustive()
    }
}

/// An endpoint bound to a context.
struct Bound {
    context: Arc<Context>,
    id: ObjectId,
    claim: Claim,
    /// Whether its owner ended, and left to others what it has.
    abandoned: bool,
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
        if !endpoint.is_on(context.shared()) {
            return Err(BindError::OtherMachine);
        }
        if endpoint.bound.compare_exchange(0, BEING_BOUND, Ordering::AcqRel, Ordering::Acquire).is_err() {
            let is_there = context.machine().has_endpoint(&endpoint);
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
        Ok(Self(Some(Bound { context, id, claim, abandoned: false })))
    }

    /// It is there until the device is dropped.
    fn bound(&self) -> &Bound {
        match &self.0 {
            Some(bound) => bound,
            None => unreachable!("a device is bound until it is dropped"),
        }
    }

    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.bound().claim.endpoint
    }

    /// Its id in the context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.bound().id
    }

    /// The context that it is bound to.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.bound().context
    }

    /// Lets the device's transactions with `pasid` (or without) reach what `target` maps, an address space
    /// (`&Arc<Ioas>`) or a page table of any kind, in place of what they could reach before. Returns the id of the page
    /// table that it is attached to.
    ///
    /// When it returns, no DMA through the old translation is in flight.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(&self, pasid: Option<Pasid>, target: impl Into<Target>) -> Result<ObjectId, AttachError> {
        self.attach_if(pasid, target, |_| true)
    }

    /// As [`Device::attach`], if `confirm` says yes to the id of the page table. It is called when the device is
    /// attached already, with no lock held; if it says no, or panics, the device is attached again to what it was.
    ///
    /// # Errors
    /// See [`AttachError`]; [`AttachError::NotConfirmed`] if `confirm` says no.
    pub fn attach_if(
        &self,
        pasid: Option<Pasid>,
        target: impl Into<Target>,
        confirm: impl FnOnce(ObjectId) -> bool,
    ) -> Result<ObjectId, AttachError> {
        check_may_wait()?;
        attach(self.context(), self.endpoint(), pasid, &target.into(), confirm)
    }

    /// The page table that the device's transactions with `pasid` (or without) go to.
    #[must_use]
    pub fn attached_to(&self, pasid: Option<Pasid>) -> Option<ObjectId> {
        let (endpoint, pasid) = self.endpoint().on_bus(pasid)?;
        endpoint.with_attachment(pasid, Table::id)
    }

    /// Drops it for an owner that has ended and could not detach it any more: what it is attached to is no
    /// [`Leftover`] to tell of.
    pub fn abandon(mut self) {
        if let Some(bound) = &mut self.0 {
            bound.abandoned = true;
        }
    }

    /// Takes the translation for `pasid` away. When it returns, no DMA through it is in flight and none can start.
    /// Detaching what is not attached does nothing. Allocates nothing.
    ///
    /// # Errors
    /// [`WouldDeadlock`] if this thread holds slices; nothing is changed then.
    pub fn detach(&self, pasid: Option<Pasid>) -> Result<(), WouldDeadlock> {
        check_may_wait()?;
        self.bound().detach(pasid);
        Ok(())
    }
}

impl Bound {
    fn detach(&self, pasid: Option<Pasid>) {
        let mut after = Afterwards::default();
        let _attach = self.context.attach.lock();
        detach(&self.context, &self.claim.endpoint, pasid, &mut after);
    }

    /// One attachment that there is.
    fn first_attachment(&self) -> Option<(Option<Pasid>, Leftover)> {
        let endpoint = &self.claim.endpoint;
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

impl Drop for Bound {
    fn drop(&mut self) {
        while let Some((pasid, what)) = self.first_attachment() {
            self.detach(pasid);
            if !self.abandoned {
                callback::call_contained(|| self.context.shared().observer().left_behind(&what));
            }
        }
        self.context.ids().release_last(self.id);
        // No thread finds the device any more to make it known to a guest.
        if let Some(known) = self.context.take_virtual_device(&self.claim.endpoint)
            && self.context.ids().bury(known.id()).is_ok()
        {
            known.remove();
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let Some(bound) = self.0.take() else { return };
        if check_may_wait().is_ok() {
            return drop(bound);
        }
        let bound = Arc::new(Mutex::new(Some(bound)));
        let later = bound.clone();
        let take = |bound: &Mutex<Option<Bound>>| bound.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = std::thread::Builder::new().name("detach".to_owned());
        if thread.spawn(move || drop(take(&later))).is_err() {
            // No thread can detach it: it stays attached, and what it can reach stays, too.
            mem::forget(take(&bound));
        }
    }
}

impl Context {
    /// Binds a device to this context: from now on, what it reaches is decided through it.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(self: &Arc<Self>, endpoint: &Arc<Endpoint>) -> Result<Device, BindError> {
        Device::bind(self.clone(), endpoint.clone())
    }
}
