//! Mediated devices: parts of a device, each with an owner of its own, that share its requester id.
//!
//! A part is an endpoint like any other: it is bound, attached and detached, and has a group. On the bus it has PASIDs of its
//! parent: one for what it does without a PASID, and one for each PASID that it is attached with. Who programs the parent
//! translates what the part's owner names ([`VirtualPasids`]), so that it can name nothing else.
//!
//! ```text
//!   part, no PASID  ──attach──►  parent, PASID 17 ──► page table
//!   part, PASID 5   ──attach──►  parent, PASID 18 ──► page table      virtual 5 is physical 18: translated
//!   part, PASID 42  ──attach──►  parent, PASID 42 ──► page table      its context allocated 42: identity
//! ```
//! The parent itself is nobody's: it cannot be bound, and what it does without a PASID is attached to nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, Weak};

use thiserror::Error;

use crate::attach::{AttachError, dismiss};
use crate::context::Context;
use crate::endpoint::{BEING_BOUND, Endpoint, EndpointOptions};
use crate::gate::quiesce;
use crate::hwpt::Table;
use crate::invalidation::Invalidation;
use crate::iommu::Iommu;
use crate::pasid::{PasidError, PasidHold};
use crate::sync::{Mutex, MutexGuard, Ordering, RwLock};
use crate::types::{GroupId, Pasid, Rid};
use crate::virtual_pasids::VirtualPasids;

/// What PASIDs the owner of a part can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartPasids {
    /// None.
    None,
    /// Those that its context has allocated, which are the same on the bus.
    Identity,
    /// Any number, which is another on the bus.
    Translated,
}

/// Why there is no such part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MediateError {
    /// The parent is bound to a context as a whole, or has left the bus.
    #[error("the device is in use as a whole")]
    InUse,
    /// Without PASIDs, parts cannot be told from each other.
    #[error("the device has no PASIDs")]
    NoPasids,
    /// The requester id is taken.
    #[error("{0} is taken")]
    Taken(Rid),
    /// All PASIDs of the parent are taken.
    #[error(transparent)]
    Pasid(#[from] PasidError),
}

/// What a part is of its parent.
pub(crate) struct Part {
    pub(crate) parent: Arc<Endpoint>,
    pasids: PartPasids,
    /// What the owner's numbers mean on the bus.
    pub(crate) table: Arc<VirtualPasids>,
    /// Whose PASIDs those are that the part was given: nobody's who could attach with them.
    owner: u64,
    /// Of the owner's own numbers, those that its context has allocated: they end with that.
    named: Mutex<Vec<PasidHold>>,
}

/// The parts of a parent, by physical PASID: whose it is, and as what.
#[derive(Default)]
pub(crate) struct Parts(RwLock<BTreeMap<Pasid, Owned>>);

/// What a PASID on the bus belongs to.
struct Owned {
    part: Weak<Endpoint>,
    /// What that calls it.
    own: Option<Pasid>,
}

impl Parts {
    /// The part that a PASID on the bus belongs to, and what it is to its owner.
    pub(crate) fn find(&self, pasid: Option<Pasid>) -> Option<(Arc<Endpoint>, Option<Pasid>)> {
        let parts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let found = parts.get(&pasid?)?;
        Some((found.part.upgrade()?, found.own))
    }

    fn has(&self, physical: Pasid) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(&physical)
    }

    fn add(&self, physical: Pasid, part: &Arc<Endpoint>, own: Option<Pasid>) {
        let owned = Owned { part: Arc::downgrade(part), own };
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(physical, owned);
    }

    fn remove(&self, physical: Pasid) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&physical);
    }
}

impl Part {
    /// What `pasid` of the part is on the bus, if it is attached or about to be.
    pub(crate) fn physical(&self, pasid: Option<Pasid>) -> Option<Pasid> {
        self.table.physical(pasid)
    }

    /// Gives `pasid` of `part` a PASID on the bus, for `context`, unless it has one; returns whether it had not.
    pub(crate) fn prepare(
        &self,
        part: &Arc<Endpoint>,
        pasid: Option<Pasid>,
        context: &Context,
    ) -> Result<bool, AttachError> {
        let iommu = context.iommu();
        if self.physical(pasid).is_some() {
            // What was freed is not revived by who has it still.
            let named = self.named();
            let freed = named.iter().find(|named| Some(named.pasid()) == pasid && named.is_parked());
            return freed.map_or(Ok(false), |freed| Err(AttachError::PasidElsewhere(freed.pasid())));
        }
        let hold = match (pasid, self.pasids) {
            (Some(own), PartPasids::None) => return Err(AttachError::PasidTooWide(own, 0)),
            (Some(own), PartPasids::Identity) => {
                // It is the same on the bus for every part, and leads to one page table there.
                if self.parent.parts.has(own) {
                    return Err(AttachError::PasidElsewhere(own));
                }
                context.hold_pasid(own).map_err(|_| AttachError::PasidElsewhere(own))?
            }
            _ => allocate(iommu, self.owner, &self.parent).map_err(|_| AttachError::NoPasids)?,
        };
        self.parent.parts.add(hold.pasid(), part, pasid);
        self.table.set(pasid, hold);
        let named = pasid.and_then(|own| context.hold_pasid(own).ok());
        self.named().extend(named);
        Ok(true)
    }

    /// Undoes [`Part::prepare`]: nothing is attached with it any more.
    pub(crate) fn forget(&self, pasid: Option<Pasid>) {
        self.named().retain(|named| Some(named.pasid()) != pasid);
        if let Some(hold) = self.table.remove(pasid) {
            self.parent.parts.remove(hold.pasid());
            if let Some(iommu) = self.parent.iommu() {
                // It is used again when whoever programs the parent has let go as well.
                iommu.pasids.free(hold.pasid(), self.owner);
            }
        }
    }

    fn named(&self) -> MutexGuard<'_, Vec<PasidHold>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part does no DMA from now on, or does again.
    pub(crate) fn stop(&self) {
        for physical in self.table.numbers().into_iter().filter_map(|number| self.physical(number)) {
            if let Some(table) = self.parent.with_attachment(Some(physical), Table::clone) {
                dismiss(&self.parent, Some(physical), &table);
            }
            quiesce(|each| self.parent.gates(each), Invalidation::Attachment(Some(physical)));
        }
    }
}

fn allocate(iommu: &Arc<Iommu>, owner: u64, parent: &Endpoint) -> Result<PasidHold, PasidError> {
    // 0 is for what has none.
    let pasid = iommu.pasids.alloc(owner, 1, (1 << parent.pasid_bits()) - 1)?;
    iommu.pasids.hold_allocated(pasid, owner)
}

impl Iommu {
    /// Makes an endpoint of a part of `parent`, which from then on cannot be bound as a whole: what belongs to it does DMA in the
    /// parent's name, with the PASIDs that its [`VirtualPasids`] say.
    ///
    /// # Errors
    /// See [`MediateError`].
    pub fn add_part(
        self: &Arc<Self>,
        parent: &Arc<Endpoint>,
        rid: Rid,
        group: GroupId,
        pasids: PartPasids,
    ) -> Result<Arc<Endpoint>, MediateError> {
        if parent.pasid_bits() == 0 {
            return Err(MediateError::NoPasids);
        }
        let others = parent.bound.compare_exchange(0, BEING_BOUND, Ordering::AcqRel, Ordering::Acquire);
        if others.is_err() && !parent.mediated.load(Ordering::Acquire) {
            return Err(MediateError::InUse);
        }
        parent.mediated.store(true, Ordering::Release);
        let options = EndpointOptions {
            iommu: parent.iommu_kind(),
            reserved: parent.reserved().to_vec(),
            pasid_bits: if pasids == PartPasids::None { 0 } else { parent.pasid_bits() },
            dirty_tracking: parent.tracks_dirty(),
            recovery: parent.recovery(),
        };
        let (table, named) = (Arc::default(), Mutex::default());
        let part = Part { parent: parent.clone(), pasids, table, owner: self.serial(), named };
        self.add_requester(rid, group, options, Some(part)).ok_or(MediateError::Taken(rid))
    }
}
