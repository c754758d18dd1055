//! Nested page tables: stage 1, owned by a guest, in memory that the parent maps.
//!
//! The guest writes its tables whenever it likes, and says what it changed by an invalidation; the port walks them as
//! hardware does (see `port::nested`). The addresses in them, and that of the root, are the guest's physical addresses,
//! which are IOVAs of the parent: so a guest reaches what its parent maps, and nothing else.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::Hwpt;
use crate::base::ids::ObjectId;
use crate::base::types::{IovaRange, Pasid, WouldDeadlock};
use crate::fault::OnMiss;
use crate::gate::check_may_wait;
use crate::gate::invalidation::{Invalidation, TableId};
use crate::gate::shared::GateMember;
use crate::kind::{BadPasidTable, GuestPasidTable, GuestTable, UnalignedRoot, WithoutPasid};
use crate::mirror::Users;

/// What is the guest's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestStage {
    /// One page table, for every attachment.
    Table(GuestTable),
    /// A table of PASIDs, with a page table for each: attached once, without a PASID.
    Pasids(GuestPasidTable),
}

impl From<GuestTable> for GuestStage {
    fn from(table: GuestTable) -> Self {
        Self::Table(table)
    }
}

impl From<GuestPasidTable> for GuestStage {
    fn from(table: GuestPasidTable) -> Self {
        Self::Pasids(table)
    }
}

/// What is the guest's own is not as hardware could read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadGuestStage {
    /// Its page table.
    #[error(transparent)]
    Root(#[from] UnalignedRoot),
    /// Its table of PASIDs.
    #[error(transparent)]
    Pasids(#[from] BadPasidTable),
}

impl GuestStage {
    pub(crate) fn check(&self) -> Result<(), BadGuestStage> {
        match self {
            Self::Table(table) => Ok(table.check()?),
            Self::Pasids(pasids) => Ok(pasids.check()?),
        }
    }

    pub(crate) fn owns_pasids(&self) -> bool {
        matches!(self, Self::Pasids(_))
    }
}

/// What a nested page table is to be. It is made of a [`GuestTable`](crate::GuestTable) or a
/// [`GuestPasidTable`](crate::GuestPasidTable) by `into()`, and then allows PASIDs, refuses what is missing, and
/// extends nothing.
#[non_exhaustive]
pub struct NestedOptions {
    /// What is the guest's own.
    pub stage: GuestStage,
    /// It can be attached to PASIDs, and to a device that has PASIDs attached.
    pub pasids: bool,
    /// What happens when a device finds nothing in the guest's table. What it then finds missing in the parent is the
    /// parent's affair.
    pub on_miss: OnMiss,
    /// What its maker wants to find with it.
    pub extension: Option<Box<dyn Any + Send + Sync>>,
    /// If it is another process's: the gate by which that invalidates it.
    pub shared: Option<Arc<GateMember>>,
}

impl fmt::Debug for NestedOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NestedOptions")
            .field("stage", &self.stage)
            .field("pasids", &self.pasids)
            .field("on_miss", &self.on_miss)
            .finish_non_exhaustive()
    }
}

impl NestedOptions {
    /// Whether it can be attached to PASIDs, and to a device that has PASIDs attached.
    #[must_use]
    pub fn pasids(self, pasids: bool) -> Self {
        Self { pasids, ..self }
    }

    /// What happens when a device finds nothing in the guest's table.
    #[must_use]
    pub fn on_miss(self, on_miss: OnMiss) -> Self {
        Self { on_miss, ..self }
    }

    /// What its maker wants to find with it.
    #[must_use]
    pub fn extension(self, extension: impl Any + Send + Sync) -> Self {
        Self { extension: Some(Box::new(extension)), ..self }
    }

    /// It is another process's, which invalidates it by this gate: ports that are attached to it pass that. A device is
    /// attached to the tables of one such process at a time.
    #[must_use]
    pub fn shared(self, member: Arc<GateMember>) -> Self {
        Self { shared: Some(member), ..self }
    }
}

impl<T: Into<GuestStage>> From<T> for NestedOptions {
    fn from(stage: T) -> Self {
        Self { stage: stage.into(), pasids: true, on_miss: OnMiss::Abort, extension: None, shared: None }
    }
}

/// A nested HWPT: a guest's page table on top of what its parent maps. It is made by
/// [`Context::hwpt_alloc_nested`](crate::Context::hwpt_alloc_nested).
///
/// What a device reserves is kept out of the parent. In the guest's own table nothing is reserved: a page that a guest
/// puts where interrupts would go is memory like any other.
pub struct NestedHwpt {
    id: ObjectId,
    parent: Arc<Hwpt>,
    viommu: Option<ObjectId>,
    options: NestedOptions,
    pub(super) users: Users,
}

impl fmt::Debug for NestedHwpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NestedHwpt")
            .field("id", &self.id)
            .field("parent", &self.parent.id())
            .field("stage", self.stage())
            .finish_non_exhaustive()
    }
}

impl NestedHwpt {
    pub(crate) fn new(id: ObjectId, parent: Arc<Hwpt>, viommu: Option<ObjectId>, options: NestedOptions) -> Self {
        Self { id, parent, viommu, options, users: Users::default() }
    }

    pub(crate) fn on_miss(&self) -> &OnMiss {
        &self.options.on_miss
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// What maps the guest's physical addresses.
    #[must_use]
    pub fn parent(&self) -> &Arc<Hwpt> {
        &self.parent
    }

    /// The id of the virtual IOMMU that it was made on, if on one. It stays as long as this has its id.
    #[must_use]
    pub fn viommu(&self) -> Option<ObjectId> {
        self.viommu
    }

    /// What is the guest's own.
    #[must_use]
    pub fn stage(&self) -> &GuestStage {
        &self.options.stage
    }

    /// What its maker keeps with it, if that is a `T`.
    #[must_use]
    pub fn extension<T: 'static>(&self) -> Option<&T> {
        self.options.extension.as_ref()?.downcast_ref()
    }

    pub(crate) fn allows_pasids(&self) -> bool {
        self.options.pasids
    }

    /// The gate of the process that it belongs to, if that is another.
    pub(crate) fn shared(&self) -> Option<&Arc<GateMember>> {
        self.options.shared.as_ref()
    }

    /// Forgets what ports have cached of `range`, for a guest that changed its table there: when it returns, no DMA
    /// through an older translation is in flight and none can start. [`IovaRange::ALL`] takes no longer than a single
    /// page.
    ///
    /// # Errors
    /// [`WouldDeadlock`] if this thread holds slices.
    pub fn invalidate(&self, range: IovaRange) -> Result<(), WouldDeadlock> {
        check_may_wait()?;
        self.users.quiesce(Invalidation::Range(TableId::of(self), range));
        Ok(())
    }

    /// As [`NestedHwpt::invalidate`], for a guest that changed which table `pasid`, or transactions without one, go to:
    /// all of that is forgotten, and nothing else.
    ///
    /// # Errors
    /// [`WouldDeadlock`] if this thread holds slices.
    pub fn invalidate_pasid(&self, pasid: Option<Pasid>) -> Result<(), WouldDeadlock> {
        check_may_wait()?;
        self.users.quiesce(Invalidation::Pasid(TableId::of(self), pasid));
        // One entry says what both mean, and they are cached each by itself.
        let is_zero = |pasid: &Pasid| pasid.get() == 0;
        let shares_entry =
            matches!(self.stage(), GuestStage::Pasids(pasids) if pasids.without == WithoutPasid::EntryZero);
        if shares_entry && pasid.as_ref().is_none_or(is_zero) {
            let other = if pasid.is_none() { Pasid::new(0) } else { None };
            self.users.quiesce(Invalidation::Pasid(TableId::of(self), other));
        }
        Ok(())
    }
}
