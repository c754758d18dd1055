//! A device bound to a context: who may decide what it reaches.

use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError};

use thiserror::Error;

use crate::context::{Context, Object};
use crate::endpoint::{BEING_BOUND, Endpoint};
use crate::gate::check_holds_nothing;
use crate::hwpt::{Hwpt, Table};
use crate::ids::ObjectId;
use crate::ioas::{ConnectError, Ioas};
use crate::memory::PinError;
use crate::observe::Leftover;
use crate::sync::Ordering;
use crate::types::{HoldsSlices, IovaRange, Pasid};

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

/// Why a device was not attached. Whatever it was attached to before, it still is.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The context has no such object.
    #[error("no object {0} in the context")]
    Missing(u32),
    /// The object is neither an address space nor a page table.
    #[error("object {0} is neither an address space nor a page table")]
    WrongKind(u32),
    /// The page table is in a format that the IOMMU of this device does not walk.
    #[error("page table {0} is of another format than this device's IOMMU walks")]
    WrongFormat(ObjectId),
    /// The page table is for devices whose IOMMU tracks what they write, and this one's does not.
    #[error("page table {0} is for devices whose writes are tracked, which this one's are not")]
    NoDirtyTracking(ObjectId),
    /// The device has PASIDs of fewer bits, or none.
    #[error("PASID {0} is not one of this device's, which have {1} bits")]
    PasidTooWide(Pasid, u32),
    /// PASIDs would be attached, and a page table that was not made for that.
    #[error("a device that has PASIDs attached needs page tables that were made for it")]
    NotForPasids,
    /// The page table is of a virtual IOMMU that does not know the device.
    #[error("page table {0} is of a virtual IOMMU that does not know this device")]
    NoVirtualDevice(ObjectId),
    /// Another device of the same group is attached to something else.
    #[error("another device of IOMMU group {0} is attached to another page table")]
    GroupElsewhere(crate::GroupId),
    /// Something is mapped where the device cannot reach memory.
    #[error("IOVA {0} is mapped, but the device cannot use it for memory")]
    Conflict(IovaRange),
    /// Something is mapped that is not made of the page table's pages.
    #[error("IOVA {0} is mapped, and is not made of pages of {1:#x} bytes")]
    Misaligned(IovaRange, u64),
    /// Memory that is mapped could not be brought in.
    #[error(transparent)]
    Pages(PinError),
    /// The context has 2^31 objects.
    #[error("the context has no free ids")]
    NoIds,
    /// Who asked for it did not confirm it.
    #[error("the attachment was not confirmed")]
    NotConfirmed,
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
    /// The page table could not be filled.
    #[error(transparent)]
    Table(#[from] iopt::MapError),
}

impl From<ConnectError> for AttachError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Conflict(range) => Self::Conflict(range),
            ConnectError::Misaligned(range, page) => Self::Misaligned(range, page),
            ConnectError::Pages(error) => Self::Pages(error),
            ConnectError::Table(error) => Self::Table(error),
        }
    }
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
        let ids = self.context.ids();
        let missing = AttachError::Missing(target);
        let target_id = ObjectId(NonZeroU32::new(target).ok_or(AttachError::Missing(target))?);
        // Held from here on, so that it cannot be destroyed under us.
        let fits = |object: &Object| match object {
            Object::Ioas(ioas) => Ok((ioas.clone(), None)),
            Object::Hwpt(table) => Ok((table.ioas().clone(), Some(table.clone()))),
            _ => Err(AttachError::WrongKind(target)),
        };
        let (ioas, table) = ids.hold_if(target_id, fits).ok_or(missing)??;
        let result = match table {
            Some(table) => self.attach_to_table(pasid, &table, confirm),
            None => self.attach_to_ioas(pasid, &ioas, confirm),
        };
        ids.release(target_id);
        result
    }

    /// Attaches to the automatic page table of `ioas`, which the caller holds, and makes it if there is none.
    fn attach_to_ioas(
        &self,
        pasid: Option<Pasid>,
        ioas: &Arc<Ioas>,
        confirm: impl FnOnce(ObjectId) -> bool,
    ) -> Result<ObjectId, AttachError> {
        let (ids, endpoint) = (self.context.ids(), self.endpoint());
        let kind = endpoint.iommu_kind();
        if let Some(hwpt) = ioas.automatic_table(kind.format()) {
            return self.attach_to_table(pasid, &Table::Paging(hwpt), confirm);
        }
        self.check_pasid(pasid, kind.automatic_for_pasids())?;
        self.check_group(pasid, None)?;
        let reserved = ids.reserve().ok_or(AttachError::NoIds)?;
        let arena = self.context.iommu().arena.clone();
        let hwpt = Arc::new(Hwpt::new(reserved.id(), kind.format(), None, None, ioas.clone(), arena)?);
        ioas.add_table(hwpt.clone(), Some(endpoint))?;
        // The table holds its address space, and is held by this attachment.
        let held = ids.hold(ioas.id());
        debug_assert!(held.is_some());
        let table = Table::Paging(hwpt);
        reserved.finalize(Object::Hwpt(table.clone()), 1, vec![ioas.id()]);
        self.replace(pasid, table, confirm)
    }

    /// Attaches to a page table that there is.
    fn attach_to_table(
        &self,
        pasid: Option<Pasid>,
        table: &Table,
        confirm: impl FnOnce(ObjectId) -> bool,
    ) -> Result<ObjectId, AttachError> {
        let hwpt = table.paging();
        if hwpt.format().iommu_kind() != self.endpoint().iommu_kind() {
            return Err(AttachError::WrongFormat(table.id()));
        }
        if hwpt.options().is_some_and(|options| options.dirty_tracking) && !self.endpoint().tracks_dirty() {
            return Err(AttachError::NoDirtyTracking(table.id()));
        }
        self.check_pasid(pasid, table.allows_pasids())?;
        if let Table::Nested(nested) = table
            && nested.viommu().is_some_and(|viommu| viommu.virtual_id(self.endpoint()).is_none())
        {
            return Err(AttachError::NoVirtualDevice(table.id()));
        }
        self.check_group(pasid, Some(table))?;
        table.ioas().connect(self.endpoint(), hwpt)?;
        if let Table::Nested(nested) = table {
            nested.connect(self.endpoint());
        }
        let held = self.context.ids().hold(table.id());
        debug_assert!(held.is_some());
        self.replace(pasid, table.clone(), confirm)
    }

    /// Fails if the device has no such PASID, or if with this attachment it would have PASIDs and a table that is not made for
    /// them.
    fn check_pasid(&self, pasid: Option<Pasid>, table_allows: bool) -> Result<(), AttachError> {
        let endpoint = self.endpoint();
        if let Some(pasid) =
            pasid.filter(|pasid| pasid.get() >> endpoint.pasid_bits() != 0 || endpoint.pasid_bits() == 0)
        {
            return Err(AttachError::PasidTooWide(pasid, endpoint.pasid_bits()));
        }
        let beside_allows = match pasid {
            Some(_) => endpoint.with_attachment(None, Table::allows_pasids).unwrap_or(true),
            None => true,
        };
        let has_pasids = pasid.is_some() || endpoint.find_attachment(|(pasid, _)| *pasid).is_some();
        if has_pasids && !(table_allows && beside_allows) {
            return Err(AttachError::NotForPasids);
        }
        Ok(())
    }

    /// Fails if another device of the group is attached to something else.
    fn check_group(&self, pasid: Option<Pasid>, table: Option<&Table>) -> Result<(), AttachError> {
        if self.context.iommu().is_group_elsewhere(self.endpoint(), pasid, table) {
            return Err(AttachError::GroupElsewhere(self.endpoint().group()));
        }
        Ok(())
    }

    /// Attaches to `table`, which knows the endpoint, in place of what it was attached to, or makes it forget the endpoint.
    fn replace(
        &self,
        pasid: Option<Pasid>,
        table: Table,
        confirm: impl FnOnce(ObjectId) -> bool,
    ) -> Result<ObjectId, AttachError> {
        let id = table.id();
        if !confirm(id) {
            self.let_go(&table);
            return Err(AttachError::NotConfirmed);
        }
        if let Some(before) = self.endpoint().attach(pasid, table) {
            self.end(pasid, &before);
        }
        Ok(id)
    }

    /// The page table that the device's transactions with `pasid` (or without) go to.
    #[must_use]
    pub fn attached_to(&self, pasid: Option<Pasid>) -> Option<ObjectId> {
        self.endpoint().with_attachment(pasid, Table::id)
    }

    /// Takes the translation for `pasid` away. When it returns, no DMA through it is in flight and none can start.
    /// Detaching what is not attached does nothing. Allocates nothing.
    ///
    /// # Errors
    /// [`HoldsSlices`] if this thread holds slices; nothing is changed then.
    pub fn detach(&self, pasid: Option<Pasid>) -> Result<(), HoldsSlices> {
        check_holds_nothing()?;
        let _attach = self.context.attach.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = self.endpoint().detach(pasid) {
            self.end(pasid, &table);
        }
        Ok(())
    }

    /// Ends an attachment that no transaction uses any more, and what it asked for.
    fn end(&self, pasid: Option<Pasid>, table: &Table) {
        if let Some(queue) = table.fault_queue() {
            queue.dismiss_attachment(self.endpoint(), pasid);
        }
        self.let_go(table);
    }

    /// Drops one claim of the endpoint on a page table, and an automatic table with the last claim.
    fn let_go(&self, table: &Table) {
        let (ids, hwpt) = (self.context.ids(), table.paging());
        if let Table::Nested(nested) = table {
            nested.disconnect(self.endpoint());
        }
        let unused = hwpt.ioas().disconnect(self.endpoint(), hwpt);
        if unused && hwpt.is_automatic() {
            hwpt.ioas().remove_table(hwpt);
            ids.release_last(hwpt.id());
        } else {
            ids.release(table.id());
        }
    }

    /// One attachment that there is.
    fn first_attachment(&self) -> Option<(Option<Pasid>, Leftover)> {
        self.endpoint().find_attachment(|(pasid, table)| {
            let (rid, pasid) = (self.endpoint().rid(), *pasid);
            Some((pasid, Leftover::Attachment { rid, pasid, hwpt: table.id(), ioas: table.ioas().id() }))
        })
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
