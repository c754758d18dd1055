//! Attaching: what a device's transactions reach, with a PASID or without.
//!
//! It is decided by (context, device, PASID), and done on the bus: to the requester that makes the transactions, and the PASID
//! that is in them, which for a part of a device are others (see [`crate::mediate`]). Whoever calls holds the context's lock on
//! attachments.

use std::num::NonZeroU32;
use std::sync::Arc;

use thiserror::Error;

use crate::context::{Context, Object};
use crate::endpoint::Endpoint;
use crate::fault::{Disposition, Recovery};
use crate::hwpt::{Hwpt, Table};
use crate::ids::ObjectId;
use crate::ioas::{ConnectError, Ioas};
use crate::memory::PinError;
use crate::types::{HoldsSlices, IovaRange, Pasid};

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
    /// What is missing is to be waited for, and the device cannot wait.
    #[error("page table {0} has devices wait for what is missing, and this one cannot")]
    CannotWait(ObjectId),
    /// It is a guest's own table for all PASIDs, which is attached without one.
    #[error("page table {0} is for all PASIDs, and is attached without one")]
    OwnsPasids(ObjectId),
    /// The context was closed.
    #[error("the context was closed")]
    Closed,
    /// All PASIDs of the device that this one is a part of are taken.
    #[error("all PASIDs of the device are taken")]
    NoPasids,
    /// The PASID was allocated in another context, or was freed and somebody still has it, or another part of the same device
    /// is attached with it and has it on the bus.
    #[error("PASID {0} belongs to another context or to another part of the device, or is parked")]
    PasidElsewhere(Pasid),
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

/// What a device is to be attached to.
enum Target {
    Ioas(Arc<Ioas>),
    Table(Table),
}

/// Nobody waits for what an attachment asked for.
pub(crate) fn dismiss(endpoint: &Endpoint, pasid: Option<Pasid>, table: &Table) {
    table.dispositions().filter_map(Disposition::queue).for_each(|queue| queue.dismiss_attachment(endpoint, pasid));
}

/// Attaches transactions of `device` with `own`, or without, to the address space or page table `target`, if `confirm` says yes
/// to the id of the page table.
pub(crate) fn attach(
    context: &Arc<Context>,
    device: &Arc<Endpoint>,
    own: Option<Pasid>,
    target: u32,
    confirm: impl FnOnce(ObjectId) -> bool,
) -> Result<ObjectId, AttachError> {
    if context.is_closed() {
        return Err(AttachError::Closed);
    }
    if let Some(pasid) = own.filter(|pasid| pasid.get() >> device.pasid_bits() != 0 || device.pasid_bits() == 0) {
        return Err(AttachError::PasidTooWide(pasid, device.pasid_bits()));
    }
    match &device.part {
        // One attachment holds its PASID once.
        None => {
            let hold = |pasid| {
                let hold = context.iommu().pasids.hold(pasid, context.serial());
                hold.map_err(|_| AttachError::PasidElsewhere(pasid))
            };
            let hold = own.map(hold).transpose()?;
            let is_new = device.with_attachment(own, |_| ()).is_none();
            let result = Attachment { context, device, endpoint: device, pasid: own }.attach(target, confirm);
            if result.is_ok() && is_new {
                std::mem::forget(hold);
            }
            result
        }
        Some(part) => {
            let is_new = part.prepare(device, own, context)?;
            let pasid = part.physical(own);
            let result = Attachment { context, device, endpoint: &part.parent, pasid }.attach(target, confirm);
            if result.is_err() && is_new {
                part.forget(own);
            }
            result
        }
    }
}

/// Undoes [`attach`]. Allocates nothing.
pub(crate) fn detach(context: &Arc<Context>, device: &Arc<Endpoint>, own: Option<Pasid>) {
    let Some((endpoint, pasid)) = device.on_bus(own) else { return };
    let Some(table) = endpoint.detach(pasid) else { return };
    Attachment { context, device, endpoint: &endpoint, pasid }.end(&table);
    match &device.part {
        None => own.into_iter().for_each(|pasid| context.iommu().pasids.release(pasid)),
        Some(part) => part.forget(own),
    }
}

/// One attachment, in the terms of the bus.
struct Attachment<'a> {
    context: &'a Arc<Context>,
    device: &'a Arc<Endpoint>,
    endpoint: &'a Arc<Endpoint>,
    pasid: Option<Pasid>,
}

impl Attachment<'_> {
    fn attach(&self, target: u32, confirm: impl FnOnce(ObjectId) -> bool) -> Result<ObjectId, AttachError> {
        let ids = self.context.ids();
        let target_id = ObjectId(NonZeroU32::new(target).ok_or(AttachError::Missing(target))?);
        // Held from here on, so that it cannot be destroyed under us.
        let fits = |object: &Object| match object {
            Object::Ioas(ioas) => Ok(Target::Ioas(ioas.clone())),
            Object::Hwpt(table) => Ok(Target::Table(table.clone())),
            _ => Err(AttachError::WrongKind(target)),
        };
        let result = match ids.hold_if(target_id, fits).ok_or(AttachError::Missing(target))?? {
            Target::Table(table) => self.attach_to_table(&table, confirm),
            Target::Ioas(ioas) => self.attach_to_ioas(&ioas, confirm),
        };
        ids.release(target_id);
        result
    }

    /// Attaches to the automatic page table of `ioas`, which the caller holds, and makes it if there is none.
    fn attach_to_ioas(
        &self,
        ioas: &Arc<Ioas>,
        confirm: impl FnOnce(ObjectId) -> bool,
    ) -> Result<ObjectId, AttachError> {
        let (ids, kind) = (self.context.ids(), self.endpoint.iommu_kind());
        if let Some(hwpt) = ioas.automatic_table(kind.format()) {
            return self.attach_to_table(&Table::Paging(hwpt), confirm);
        }
        self.check_pasid(kind.automatic_for_pasids())?;
        self.check_group(None)?;
        let reserved = ids.reserve().ok_or(AttachError::NoIds)?;
        let arena = self.context.iommu().arena.clone();
        let hwpt = Arc::new(Hwpt::new(reserved.id(), kind.format(), None, Disposition::Abort, ioas.clone(), arena)?);
        ioas.add_table(hwpt.clone(), Some(self.endpoint))?;
        // The table holds its address space, and is held by this attachment.
        let held = ids.hold(ioas.id());
        debug_assert!(held.is_some());
        let table = Table::Paging(hwpt);
        reserved.finalize(Object::Hwpt(table.clone()), 1, vec![ioas.id()]);
        self.replace(table, confirm)
    }

    /// Attaches to a page table that there is.
    fn attach_to_table(&self, table: &Table, confirm: impl FnOnce(ObjectId) -> bool) -> Result<ObjectId, AttachError> {
        if let Some(hwpt) = table.paging() {
            if hwpt.format().iommu_kind() != self.endpoint.iommu_kind() {
                return Err(AttachError::WrongFormat(table.id()));
            }
            if hwpt.options().is_some_and(|options| options.dirty_tracking) && !self.endpoint.tracks_dirty() {
                return Err(AttachError::NoDirtyTracking(table.id()));
            }
        }
        if table.dispositions().any(|on_miss| !on_miss.is_abort()) && self.endpoint.recovery() == Recovery::None {
            return Err(AttachError::CannotWait(table.id()));
        }
        if self.pasid.is_some() && table.owns_pasids() {
            return Err(AttachError::OwnsPasids(table.id()));
        }
        self.check_pasid(table.allows_pasids())?;
        if let Table::Nested(nested) = table
            && nested.viommu().is_some_and(|viommu| viommu.virtual_id(self.device).is_none())
        {
            return Err(AttachError::NoVirtualDevice(table.id()));
        }
        self.check_group(Some(table))?;
        table.connect(self.endpoint)?;
        let held = self.context.ids().hold(table.id());
        debug_assert!(held.is_some());
        self.replace(table.clone(), confirm)
    }

    /// Fails if with this attachment the requester would have PASIDs and a table that is not made for them.
    fn check_pasid(&self, table_allows: bool) -> Result<(), AttachError> {
        let beside_allows = match self.pasid {
            Some(_) => self.endpoint.with_attachment(None, Table::allows_pasids).unwrap_or(true),
            None => true,
        };
        let has_pasids = self.pasid.is_some() || self.endpoint.find_attachment(|(pasid, _)| *pasid).is_some();
        if has_pasids && !(table_allows && beside_allows) {
            return Err(AttachError::NotForPasids);
        }
        Ok(())
    }

    /// Fails if another device of the group is attached to something else.
    fn check_group(&self, table: Option<&Table>) -> Result<(), AttachError> {
        if self.context.iommu().is_group_elsewhere(self.device, self.pasid, table) {
            return Err(AttachError::GroupElsewhere(self.device.group()));
        }
        Ok(())
    }

    /// Attaches to `table`, which knows the endpoint, in place of what it was attached to, or makes it forget the endpoint.
    fn replace(&self, table: Table, confirm: impl FnOnce(ObjectId) -> bool) -> Result<ObjectId, AttachError> {
        let id = table.id();
        if !confirm(id) {
            self.let_go(&table);
            return Err(AttachError::NotConfirmed);
        }
        if let Some(before) = self.endpoint.attach(self.pasid, table) {
            self.end(&before);
        }
        Ok(id)
    }

    /// Ends an attachment that no transaction uses any more, and what it asked for.
    fn end(&self, table: &Table) {
        dismiss(self.endpoint, self.pasid, table);
        self.let_go(table);
    }

    fn let_go(&self, table: &Table) {
        let_go(self.context, self.endpoint, table);
    }
}

/// Drops one claim of an endpoint on a page table, and an automatic table with the last claim of somebody who uses it. (An
/// attachment that is parked has a claim on the id alone.)
pub(crate) fn let_go(context: &Context, endpoint: &Arc<Endpoint>, table: &Table) {
    let unused = table.disconnect(endpoint);
    drop_automatic(context, table, unused);
    context.ids().release(table.id());
}

/// Takes an automatic table away that is `unused`; its id stays as long as it is held.
pub(crate) fn drop_automatic(context: &Context, table: &Table, unused: bool) {
    if let Some(hwpt) = table.paging().filter(|hwpt| unused && hwpt.is_automatic()) {
        hwpt.ioas().remove_table(hwpt);
        let parked = context.ids().park(hwpt.id(), |object| object.is_table(table));
        debug_assert!(parked.is_ok(), "nothing is made on an automatic table");
        parked.into_iter().flat_map(|(_, holds)| holds).for_each(|held| context.ids().release(held));
    }
}
