//! Mediated devices: parts of a device, each with an owner of its own, that share its requester id.
//!
//! A part is an endpoint like any other: it is bound, attached and detached, and has a group. On the bus it has PASIDs
//! of its parent: one for what it does without a PASID, and one for each PASID that it is attached with. The parent's
//! driver translates what the part's owner names ([`VirtualPasids`]), so that the owner can name nothing else.
//!
//! ```text
//!   part, no PASID  ──attach──►  parent, PASID 17 ──► page table
//!   part, PASID 5   ──attach──►  parent, PASID 18 ──► page table      virtual 5 is physical 18: translated
//!   part, PASID 42  ──attach──►  parent, PASID 42 ──► page table      its context allocated 42: identity
//! ```
//! The parent itself belongs to no context: it cannot be bound, and what it does without a PASID is attached to
//! nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use thiserror::Error;

use super::endpoint::{BEING_BOUND, Endpoint, EndpointOptions, dismiss};
use super::machine::Machine;
use crate::base::lock::{Mutex, MutexGuard, RwLock};
use crate::base::rank;
use crate::base::sync::Ordering;
use crate::base::types::{GroupId, Pasid, Rid};
use crate::fault::Dismissed;
use crate::gate::invalidation::Invalidation;
use crate::hwpt::Table;
use crate::pasid::{PasidError, PasidHold, VirtualPasids};
use crate::shared::Shared;

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
#[non_exhaustive]
pub enum MediateError {
    /// The parent is bound to a context as a whole, or has left the bus.
    #[error("the device is in use as a whole")]
    InUse,
    /// The parent is of another machine.
    #[error("the device belongs to another machine")]
    OtherMachine,
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

/// Why a part has no PASID on the bus for one of its owner's.
pub(crate) enum PartPasidError {
    /// Parts of this kind have no PASIDs.
    None(Pasid),
    /// It is another context's, another part's, or parked.
    Elsewhere(Pasid),
    /// All of the parent's are taken.
    AllTaken,
}

/// A share in a parent that is mediated, and bound as a whole no more; the last one gives it back.
struct Share {
    parent: Arc<Endpoint>,
}

impl Share {
    /// One share more, unless the parent is in use as a whole.
    fn of(parent: &Arc<Endpoint>) -> Option<Self> {
        let mut shares = parent.parts.shares();
        if *shares == 0 {
            parent.bound.compare_exchange(0, BEING_BOUND, Ordering::AcqRel, Ordering::Acquire).ok()?;
            parent.mediated.store(true, Ordering::Release);
        }
        *shares += 1;
        Some(Self { parent: parent.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut shares = self.parent.parts.shares();
        *shares -= 1;
        if *shares == 0 {
            self.parent.mediated.store(false, Ordering::Release);
            self.parent.bound.store(0, Ordering::Release);
        }
    }
}

/// What a part is of its parent.
pub(crate) struct Part {
    pub(crate) parent: Arc<Endpoint>,
    _share: Share,
    pasids: PartPasids,
    /// What the owner's numbers mean on the bus.
    pub(crate) table: Arc<VirtualPasids>,
    /// Owns the PASIDs that the part was given: a number that no context has, so that none can attach with them.
    owner: u64,
    /// Of the owner's own numbers, those that its context has allocated: they end with that.
    named: Mutex<Vec<PasidHold>, rank::Named>,
}

/// The parts of a parent, by physical PASID: the part that it belongs to, and the part's own number for it.
#[derive(Default)]
pub(crate) struct Parts {
    owned: RwLock<BTreeMap<Pasid, Owned>, rank::Parts>,
    /// How many parts there are.
    shares: Mutex<usize, rank::Shares>,
}

/// What a PASID on the bus belongs to.
struct Owned {
    part: Weak<Endpoint>,
    /// What that calls it.
    own: Option<Pasid>,
}

impl Parts {
    /// The part that a PASID on the bus belongs to, and what it is to its owner.
    pub(crate) fn find(&self, pasid: Option<Pasid>) -> Option<(Arc<Endpoint>, Option<Pasid>)> {
        let parts = self.owned.read();
        let found = parts.get(&pasid?)?;
        Some((found.part.upgrade()?, found.own))
    }

    fn shares(&self) -> MutexGuard<'_, usize, rank::Shares> {
        self.shares.lock()
    }

    fn has(&self, physical: Pasid) -> bool {
        self.owned.read().contains_key(&physical)
    }

    fn add(&self, physical: Pasid, part: &Arc<Endpoint>, own: Option<Pasid>) {
        let owned = Owned { part: Arc::downgrade(part), own };
        self.owned.write().insert(physical, owned);
    }

    fn remove(&self, physical: Pasid) {
        self.owned.write().remove(&physical);
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
        context: u64,
    ) -> Result<bool, PartPasidError> {
        let shared = part.shared();
        let pasids = &shared.pasids;
        if self.physical(pasid).is_some() {
            // What was freed is not revived by a part that has it still.
            let named = self.named();
            let freed = named.iter().find(|named| Some(named.pasid()) == pasid && named.is_parked());
            return freed.map_or(Ok(false), |freed| Err(PartPasidError::Elsewhere(freed.pasid())));
        }
        let hold = match (pasid, self.pasids) {
            (Some(own), PartPasids::None) => return Err(PartPasidError::None(own)),
            (Some(own), PartPasids::Identity) => {
                // It is the same on the bus for every part, and leads to one page table there.
                if self.parent.parts.has(own) {
                    return Err(PartPasidError::Elsewhere(own));
                }
                pasids.hold_allocated(own, context).map_err(|_| PartPasidError::Elsewhere(own))?
            }
            _ => allocate(shared, self.owner, &self.parent).map_err(|_| PartPasidError::AllTaken)?,
        };
        self.parent.parts.add(hold.pasid(), part, pasid);
        self.table.set(pasid, hold);
        let named = pasid.and_then(|own| pasids.hold_allocated(own, context).ok());
        self.named().extend(named);
        Ok(true)
    }

    /// Undoes [`Part::prepare`]: nothing is attached with it any more.
    pub(crate) fn forget(&self, pasid: Option<Pasid>) {
        self.named().retain(|named| Some(named.pasid()) != pasid);
        if let Some(hold) = self.table.remove(pasid) {
            self.parent.parts.remove(hold.pasid());
            // It is used again when the parent's driver has let go as well.
            self.parent.shared().pasids.free(hold.pasid(), self.owner);
        }
    }

    fn named(&self) -> MutexGuard<'_, Vec<PasidHold>, rank::Named> {
        self.named.lock()
    }

    /// The part does no DMA from now on, or does again.
    pub(crate) fn stop(&self) {
        let mut dismissed = Dismissed::default();
        for physical in self.table.numbers().into_iter().filter_map(|number| self.physical(number)) {
            if let Some(table) = self.parent.with_attachment(Some(physical), Table::clone) {
                dismiss(&self.parent, Some(physical), &table, &mut dismissed);
            }
            self.parent.quiesce(Invalidation::Attachment(Some(physical)));
        }
    }
}

fn allocate(shared: &Shared, owner: u64, parent: &Endpoint) -> Result<PasidHold, PasidError> {
    // 0 is for what has none.
    let pasid = shared.pasids.alloc(owner, 1, (1 << parent.pasid_bits()) - 1)?;
    shared.pasids.hold_allocated(pasid, owner)
}

impl Machine {
    /// Makes an endpoint of a part of `parent`, which from then on cannot be bound as a whole: what belongs to it does
    /// DMA in the parent's name, with the PASIDs that its [`VirtualPasids`] say.
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
        if !parent.is_on(self.shared()) {
            return Err(MediateError::OtherMachine);
        }
        if parent.pasid_bits() == 0 {
            return Err(MediateError::NoPasids);
        }
        // From here on, dropping it undoes what was done.
        let share = Share::of(parent).ok_or(MediateError::InUse)?;
        let options = EndpointOptions {
            iommu: Some(parent.iommu().clone()),
            reserved: parent.reserved().to_vec(),
            pasid_bits: if pasids == PartPasids::None { 0 } else { parent.pasid_bits() },
            dirty_tracking: parent.tracks_dirty(),
            recovery: parent.recovery(),
            mirror: None,
        };
        let (table, named) = (Arc::default(), Mutex::default());
        let part = Part { parent: parent.clone(), _share: share, pasids, table, owner: self.shared().serial(), named };
        self.add_requester(rid, group, parent.iommu().clone(), options, Some(part))
            .map_err(|_| MediateError::Taken(rid))
    }
}
