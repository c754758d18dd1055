//! Attaching: what a device's transactions reach, with a PASID or without.
//!
//! It is decided by (context, device, PASID), and done on the bus: to the requester that makes the transactions, and
//! the PASID that is in them, which for a part of a device are others (see [`crate::bus`]). What changes an attachment
//! holds the context's lock on attachments.

mod access;
mod device;
mod parking;
mod software;

use std::sync::Arc;

use thiserror::Error;

use crate::base::callback;
use crate::base::ids::ObjectId;
use crate::base::types::{GroupId, IovaRange, Pasid, WouldDeadlock};
use crate::bus::{Endpoint, PartPasidError, dismiss};
use crate::context::{Afterwards, Context, Object, Target, TargetKind};
use crate::fault::Recovery;
use crate::gate::shared::JoinError;
use crate::gate::walker::Walker;
use crate::hwpt::{Hwpt, NotConnected, Table};
use crate::ioas::{ConnectError, Ioas};
use crate::memory::PinError;
use crate::mirror::MirrorError;

pub use access::{AccessAttachError, IoasAccess};
pub use device::{BindError, Device};
pub use software::CopyError;

/// Why a device was not attached. Whatever it was attached to before, it still is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The address space or page table was destroyed, or is another context's.
    #[error("object {0} is not in this context: it was destroyed, or another context has it")]
    Missing(ObjectId),
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
    /// The PASID was allocated in another context, or was freed and is still held, or another part of the same
    /// device is attached with it and has it on the bus.
    #[error("PASID {0} belongs to another context or to another part of the device, or is parked")]
    PasidElsewhere(Pasid),
    /// The page table is of a virtual IOMMU that does not know the device.
    #[error("page table {0} is of a virtual IOMMU that does not know this device")]
    NoVirtualDevice(ObjectId),
    /// Another device of the same group is attached to something else.
    #[error("another device of IOMMU group {0} is attached to another page table")]
    GroupElsewhere(GroupId),
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
    /// The caller's `confirm` said no.
    #[error("the attachment was not confirmed")]
    NotConfirmed,
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
    /// There is no room for a page table.
    #[error(transparent)]
    Table(#[from] iopt::MapError),
    /// A page table could not be filled.
    #[error(transparent)]
    Mirror(MirrorError),
    /// The page table is another process's, and the device cannot pass its gate.
    #[error(transparent)]
    Shared(JoinError),
}

impl From<PartPasidError> for AttachError {
    fn from(error: PartPasidError) -> Self {
        match error {
            PartPasidError::None(own) => Self::PasidTooWide(own, 0),
            PartPasidError::Elsewhere(pasid) => Self::PasidElsewhere(pasid),
            PartPasidError::AllTaken => Self::NoPasids,
        }
    }
}

impl From<NotConnected> for AttachError {
    fn from(error: NotConnected) -> Self {
        match error {
            NotConnected::Shared(error) => Self::Shared(error),
            NotConnected::Ioas(error) => error.into(),
        }
    }
}

impl From<ConnectError> for AttachError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Conflict(range) => Self::Conflict(range),
            ConnectError::Misaligned(range, page) => Self::Misaligned(range, page),
            ConnectError::Pages(error) => Self::Pages(error),
            ConnectError::Mirror(error) => Self::Mirror(error),
            ConnectError::WouldDeadlock(error) => Self::WouldDeadlock(error),
        }
    }
}

/// Attaches transactions of `device` with `own`, or without, to `target`, if `confirm` says yes to the id of the page
/// table. It is asked when they are attached already, with no lock held; if it says no, or panics, they are attached
/// again to what they were.
pub(crate) fn attach(
    context: &Arc<Context>,
    device: &Arc<Endpoint>,
    own: Option<Pasid>,
    target: &Target,
    confirm: impl FnOnce(ObjectId) -> bool,
) -> Result<ObjectId, AttachError> {
    // No thread destroys it meanwhile.
    let is_it = |object: &Object| match (&target.0, object) {
        (TargetKind::Ioas(ioas), Object::Ioas(there)) => Arc::ptr_eq(ioas, there),
        (TargetKind::Table(table), object) => object.is_table(table),
        _ => false,
    };
    let _target = context.hold_object(target.id(), is_it).ok_or(AttachError::Missing(target.id()))?;
    let unconfirmed = loop {
        // A page table that is made for this may be gone again, with the last of others that used it meanwhile.
        match &target.0 {
            TargetKind::Table(table) => break attach_to_table(context, device, own, table)?,
            TargetKind::Ioas(ioas) => {
                let automatic = Automatic::of(context, device, own, ioas)?;
                if let Some(attached) = automatic.attach(device, own)? {
                    break attached;
                }
            }
        }
    };
    device.requester().follow()?;
    let id = unconfirmed.table.id();
    if !callback::call(|| confirm(id)) {
        return Err(AttachError::NotConfirmed);
    }
    unconfirmed.confirm();
    Ok(id)
}

fn attach_to_table<'a>(
    context: &'a Arc<Context>,
    device: &'a Arc<Endpoint>,
    own: Option<Pasid>,
    table: &Table,
) -> Result<Unconfirmed<'a>, AttachError> {
    let _attach = context.attach.lock();
    attach_locked(context, device, own, table)
}

/// A page table of an address space for devices that are attached to that itself: one that there is, or a new one. It
/// is held, and dropping it takes it away if no device uses it.
struct Automatic<'a> {
    context: &'a Arc<Context>,
    hwpt: Arc<Hwpt>,
}

impl<'a> Automatic<'a> {
    fn of(
        context: &'a Arc<Context>,
        device: &Arc<Endpoint>,
        own: Option<Pasid>,
        ioas: &Arc<Ioas>,
    ) -> Result<Self, AttachError> {
        let (ids, kind) = (context.ids(), device.iommu().kind());
        if let Some(hwpt) = Hwpt::automatic_of(ioas, kind)
            && ids.hold_if(hwpt.id(), |object| if object.is_hwpt(&hwpt) { Ok(()) } else { Err(()) }) == Some(Ok(()))
        {
            return Ok(Self { context, hwpt });
        }
        {
            // What can be refused is, before memory is brought in.
            let _attach = context.attach.lock();
            check_device(context, device, own)?;
            let endpoint = device.requester();
            let attachment = Attachment { context, device, endpoint, pasid: own };
            attachment.check_pasid(own.is_some() || device.part.is_some(), kind.automatic_for_pasids())?;
            if device.part.is_none() {
                attachment.check_group(None)?;
            }
            ioas.connect(endpoint.reserved())?;
            ioas.disconnect(endpoint.reserved());
        }
        let reserved = ids.reserve().ok_or(AttachError::NoIds)?;
        let arena = context.shared().arena.clone();
        let hwpt = Arc::new(Hwpt::automatic(reserved.id(), kind, ioas.clone(), arena)?);
        ioas.add_mirror(hwpt.clone())?;
        // The table holds its address space, and is held by this.
        let held = ids.hold(ioas.id());
        debug_assert!(held.is_some());
        reserved.finalize(Object::Hwpt(Table::Paging(hwpt.clone())), 1, vec![ioas.id()]);
        Ok(Self { context, hwpt })
    }

    /// Attaches to it; `None` if another thread has made one at the same time, or has taken this one away.
    fn attach<'d>(&self, device: &'d Arc<Endpoint>, own: Option<Pasid>) -> Result<Option<Unconfirmed<'d>>, AttachError>
    where
        'a: 'd,
    {
        let _attach = self.context.attach.lock();
        let first = Hwpt::automatic_of(self.hwpt.ioas(), self.hwpt.iommu_kind());
        let table = Table::Paging(self.hwpt.clone());
        let is_it = first.is_some_and(|first| Arc::ptr_eq(&first, &self.hwpt));
        if !is_it || !self.context.get(table.id().0.get()).is_some_and(|object| object.is_table(&table)) {
            return Ok(None);
        }
        attach_locked(self.context, device, own, &table).map(Some)
    }
}

impl Drop for Automatic<'_> {
    fn drop(&mut self) {
        let mut after = Afterwards::default();
        let _attach = self.context.attach.lock();
        let table = Table::Paging(self.hwpt.clone());
        let is_there = self.context.get(table.id().0.get()).is_some_and(|object| object.is_table(&table));
        drop_automatic(self.context, &table, is_there && self.hwpt.users.is_empty(), &mut after);
        self.context.ids().release(self.hwpt.id());
    }
}

/// Fails if the device cannot have an attachment for `own`.
fn check_device(context: &Context, device: &Endpoint, own: Option<Pasid>) -> Result<(), AttachError> {
    if context.is_closed() {
        return Err(AttachError::Closed);
    }
    match own.filter(|pasid| pasid.get().checked_shr(device.pasid_bits()).unwrap_or(0) != 0 || device.pasid_bits() == 0)
    {
        Some(pasid) => Err(AttachError::PasidTooWide(pasid, device.pasid_bits())),
        None => Ok(()),
    }
}

/// [`attach`] to a page table, for a caller that holds the lock on attachments.
fn attach_locked<'a>(
    context: &'a Arc<Context>,
    device: &'a Arc<Endpoint>,
    own: Option<Pasid>,
    table: &Table,
) -> Result<Unconfirmed<'a>, AttachError> {
    check_device(context, device, own)?;
    let before = match &device.part {
        // One attachment holds its PASID once.
        None => {
            let hold = |pasid| {
                let hold = context.shared().pasids.hold(pasid, context.serial());
                hold.map_err(|_| AttachError::PasidElsewhere(pasid))
            };
            let hold = own.map(hold).transpose()?;
            let is_new = device.with_attachment(own, |_| ()).is_none();
            let before = Attachment { context, device, endpoint: device, pasid: own }.attach(table)?;
            if is_new {
                std::mem::forget(hold);
            }
            before
        }
        Some(part) => {
            let is_new = part.prepare(device, own, context.serial())?;
            let pasid = part.physical(own);
            let result = Attachment { context, device, endpoint: &part.parent, pasid }.attach(table);
            if result.is_err() && is_new {
                part.forget(own);
            }
            result?
        }
    };
    Ok(Unconfirmed { context, device, own, table: table.clone(), before, confirmed: false })
}

/// An attachment that is not confirmed, and what was attached before. Dropping it goes back to that.
struct Unconfirmed<'a> {
    context: &'a Arc<Context>,
    device: &'a Arc<Endpoint>,
    own: Option<Pasid>,
    table: Table,
    before: Option<Table>,
    confirmed: bool,
}

impl Unconfirmed<'_> {
    fn confirm(mut self) {
        self.confirmed = true;
    }
}

impl Drop for Unconfirmed<'_> {
    fn drop(&mut self) {
        let (context, device, own) = (self.context, self.device, self.own);
        let mut after = Afterwards::default();
        let _attach = context.attach.lock();
        let bus = device.on_bus(own);
        // Another thread may have attached, detached or parked meanwhile, and then that holds.
        let is_still = bus
            .as_ref()
            .is_some_and(|(bus, pasid)| bus.with_attachment(*pasid, |now| now.is(&self.table)) == Some(true));
        match (bus, self.before.take()) {
            (Some(_), None) if !self.confirmed && is_still => detach(context, device, own, &mut after),
            (Some((bus, pasid)), Some(before)) if !self.confirmed && is_still => {
                let attachment = Attachment { context, device, endpoint: &bus, pasid };
                if let Some(table) = bus.attach(pasid, before) {
                    attachment.end(&table, &mut after);
                }
            }
            (Some((bus, pasid)), Some(before)) => {
                Attachment { context, device, endpoint: &bus, pasid }.end(&before, &mut after);
            }
            (None, Some(before)) => let_go(context, device.requester(), &before, &mut after),
            (_, None) => {}
        }
        if !self.confirmed {
            after.follow(device.requester());
        }
    }
}

/// Undoes [`attach`], for a caller that holds the lock on attachments. Allocates nothing.
pub(crate) fn detach(context: &Arc<Context>, device: &Arc<Endpoint>, own: Option<Pasid>, after: &mut Afterwards) {
    let Some((endpoint, pasid)) = device.on_bus(own) else { return };
    let Some(table) = endpoint.detach(pasid) else { return };
    Attachment { context, device, endpoint: &endpoint, pasid }.end(&table, after);
    match &device.part {
        None => own.into_iter().for_each(|pasid| context.shared().pasids.release(pasid)),
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
    /// Attaches to a page table that there is, in place of what is returned, which nothing uses any more.
    fn attach(&self, table: &Table) -> Result<Option<Table>, AttachError> {
        if let Some(hwpt) = table.paging() {
            if !self.endpoint.iommu().kind().walks(hwpt.format()) {
                return Err(AttachError::WrongFormat(table.id()));
            }
            if hwpt.options().is_some_and(|options| options.dirty_tracking) && !self.endpoint.tracks_dirty() {
                return Err(AttachError::NoDirtyTracking(table.id()));
            }
        }
        if table.on_misses().any(|on_miss| !on_miss.is_abort()) && self.endpoint.recovery() == Recovery::None {
            return Err(AttachError::CannotWait(table.id()));
        }
        if self.pasid.is_some() && table.owns_pasids() {
            return Err(AttachError::OwnsPasids(table.id()));
        }
        self.check_pasid(self.pasid.is_some(), table.allows_pasids())?;
        if let Table::Nested(nested) = table
            && let Some(viommu) = nested.viommu()
            && self.context.viommu(viommu).is_none_or(|viommu| viommu.virtual_id(self.device).is_none())
        {
            return Err(AttachError::NoVirtualDevice(table.id()));
        }
        self.check_group(Some(table))?;
        // It may have been parked since it was found.
        let id = table.id();
        self.context.ids().hold(id).ok_or(AttachError::Missing(id))?;
        table.connect(self.walker(), self.endpoint.reserved()).inspect_err(|_| self.context.ids().release(id))?;
        Ok(self.endpoint.attach(self.pasid, table.clone()))
    }

    fn walker(&self) -> Arc<dyn Walker> {
        self.endpoint.clone()
    }

    /// Fails if with this attachment the requester would have PASIDs and a table that is not made for them.
    fn check_pasid(&self, with_pasid: bool, table_allows: bool) -> Result<(), AttachError> {
        let beside_allows = match with_pasid {
            true => self.endpoint.with_attachment(None, Table::allows_pasids).unwrap_or(true),
            false => true,
        };
        let has_pasids = with_pasid || self.endpoint.find_attachment(|(pasid, _)| *pasid).is_some();
        if has_pasids && !(table_allows && beside_allows) {
            return Err(AttachError::NotForPasids);
        }
        Ok(())
    }

    /// Fails if another device of the group is attached to something else.
    fn check_group(&self, table: Option<&Table>) -> Result<(), AttachError> {
        if self.context.machine().is_group_elsewhere(self.device, self.pasid, table) {
            return Err(AttachError::GroupElsewhere(self.device.group()));
        }
        Ok(())
    }

    /// Ends an attachment that no transaction uses any more, and what it asked for.
    fn end(&self, table: &Table, after: &mut Afterwards) {
        dismiss(self.endpoint, self.pasid, table, &mut after.dismissed);
        after.follow(self.endpoint);
        let_go(self.context, self.endpoint, table, after);
    }
}

/// Drops one claim of an endpoint on a page table, and an automatic table with the last claim of a user. (An attachment
/// that is parked has a claim on the id alone.)
fn let_go(context: &Context, endpoint: &Arc<Endpoint>, table: &Table, after: &mut Afterwards) {
    let walker: Arc<dyn Walker> = endpoint.clone();
    let unused = table.disconnect(&walker, endpoint.reserved());
    drop_automatic(context, table, unused, after);
    context.ids().release(table.id());
}

/// Takes an automatic table away that is `unused`; its id stays as long as it is held.
fn drop_automatic(context: &Context, table: &Table, unused: bool, after: &mut Afterwards) {
    if let Some(hwpt) = table.paging().filter(|hwpt| unused && hwpt.is_automatic()) {
        hwpt.ioas().remove_table(&**hwpt);
        after.unpin(hwpt.ioas());
        // It may have been parked by another thread.
        let parked = context.ids().park(hwpt.id(), |object| object.is_table(table));
        parked.into_iter().flat_map(|(_, holds)| holds).for_each(|held| context.ids().release(held));
    }
}
