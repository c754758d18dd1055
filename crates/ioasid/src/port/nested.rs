//! Two stages: a guest's page table, in memory that the parent maps.
//!
//! ```text
//!   IOVA ─► guest's root ─► table ─► … ─► leaf: guest-physical address ─► parent ─► pointer
//!              │ each entry's address, too, is guest-physical: ▲
//!              └─────────────────► parent ─► pointer, entry ───┘
//! ```
//!
//! What the parent translates is cached under a domain of its own, so a walk is a handful of hits; what comes out in
//! the end is cached like any other translation, in pages as large as both stages have, and a hit costs the same. The
//! guest forgets that by an invalidation of its own; when something is taken out of the parent, all of it is forgotten.
//!
//! Marks that the walk makes in the guest's tables are writes of the device: they need the right to write there, and
//! are in the parent's dirty log.

use std::sync::atomic::Ordering;

use iopt::{Access, GuestMemory, GuestTranslation};

use crate::base::observe::FaultReason;
use crate::base::types::Pasid;
use crate::gate::Inside;
use crate::hwpt::{GuestStage, Hwpt, NestedHwpt};
use crate::kind::Stage1;

use super::bus::Bus;
use super::context::Context;
use super::iotlb::Page;
use super::translate::{Place, Refused, Span, Translator};
use super::{BusAddress, transfer};

/// The guest's memory, as the parent maps it.
struct Guest<'t, 'i> {
    translator: &'t mut Translator,
    bus: &'t Bus,
    inside: &'i Inside<'i>,
    parent: &'t Hwpt,
    domain: u64,
}

impl<'i> Guest<'_, 'i> {
    /// Where a guest-physical address leads.
    fn place(&mut self, address: u64, access: Access) -> Result<Span<'i>, Refused> {
        match self.translator.iotlb.lookup(self.domain, address, access) {
            Some((start, length)) => Ok(Span::here(start, length)),
            None => {
                let found = self.translator.walk(self.bus, self.inside, self.parent, self.domain, address, access);
                found.map_err(|reason| Refused { reason, below: Some(address) })
            }
        }
    }

    /// What was just found at `place` is an entry, unless the memory it is in was lost.
    fn is_there<T>(&self, place: Place<'_>, found: T) -> Result<T, Refused> {
        if self.translator.lost_memory() {
            place.check(8)?;
        }
        Ok(found)
    }

    /// What the guest translates by, which is looked up once.
    fn stage1(&mut self, nested: &NestedHwpt, context: Context, pasid: Option<Pasid>) -> Result<Stage1, Refused> {
        if let Some(known) = context.stage1 {
            return Ok(known);
        }
        let found = match nested.stage() {
            GuestStage::Table(table) => Stage1::Root(table.into_root()),
            GuestStage::Pasids(pasids) => pasids.find(self, pasid)?.ok_or(FaultReason::NotAttached)?,
        };
        self.translator.contexts.put(pasid, Context { stage1: Some(found), ..context });
        Ok(found)
    }

    /// Where the guest keeps an entry.
    fn entry(&mut self, address: u64, access: Access) -> Result<Place<'i>, Refused> {
        match self.place(address, access) {
            // An entry is aligned, so a page has all of it.
            Ok(span) => Ok(span.place),
            Err(Refused { reason: FaultReason::NotMapped | FaultReason::NotPermitted, below }) => {
                Err(Refused { reason: FaultReason::GuestTable, below })
            }
            Err(refused) => Err(refused),
        }
    }

    /// All that may be kept of a guest-physical address that `access` was just had to.
    fn cachable(&mut self, address: u64, access: Access) -> Access {
        let all = self.translator.iotlb.lookup(self.domain, address, Access::all());
        if all.is_some() { Access::all() } else { access }
    }
}

impl GuestMemory for Guest<'_, '_> {
    type Error = Refused;

    fn load(&mut self, address: u64) -> Result<u64, Refused> {
        let mut entry = [0; 8];
        let place = self.entry(address, Access::READ)?;
        transfer::read(place, &mut entry).map_err(|()| FaultReason::MemoryGone)?;
        self.is_there(place, u64::from_le_bytes(entry))
    }

    fn compare_exchange(&mut self, address: u64, current: u64, new: u64) -> Result<bool, Refused> {
        let place = self.entry(address, Access::all())?;
        let (current, new) = (current.to_le(), new.to_le());
        let found = transfer::atomic(place, |word| {
            word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|found| found)
        });
        self.is_there(place, found.ok_or(FaultReason::NotLocal)? == current)
    }
}

impl Translator {
    /// Where `iova` leads by `nested`, the table of `context`.
    pub(super) fn walk_nested<'i>(
        &mut self,
        bus: &Bus,
        inside: &'i Inside<'i>,
        nested: &NestedHwpt,
        context: Context,
        at: BusAddress,
        access: Access,
    ) -> Result<Span<'i>, Refused> {
        let (parent, domain, iova) = (&**nested.parent(), context.parent_domain, at.iova.0);
        let mut guest = Guest { translator: self, bus, inside, parent, domain };
        let root = match guest.stage1(nested, context, at.pasid)? {
            Stage1::Root(root) => root,
            // Cached as what the parent translates.
            Stage1::Bypass => return guest.place(iova, access),
        };
        let GuestTranslation { found, cachable } =
            root.walk(&mut guest, iova, access)?.ok_or(FaultReason::NotMapped)?;
        if !found.access.contains(access) {
            return Err(FaultReason::NotPermitted.into());
        }
        let Span { place, length } = guest.place(found.pa, access)?;
        // The page of the parent's that it is in, if it is in this process: the last that was found or cached.
        let parent_shift = guest.translator.iotlb.recent_shift();
        let in_page = (1 << found.page_shift) - (found.pa & ((1 << found.page_shift) - 1));
        let length = length.min(in_page);
        if let Place::Here(start) = place {
            let shift = found.page_shift.min(parent_shift);
            let access = bus.cachable(cachable & guest.cachable(found.pa, access));
            let start = start.wrapping_sub((found.pa & ((1 << shift) - 1)) as usize);
            if shift < found.page_shift {
                self.contexts.fracture(at.pasid, found.page_shift);
            }
            // A write that is logged would push out what lets a read pass.
            if !access.is_empty() {
                self.iotlb.insert(context.domain, iova, Page { start, shift, access });
            }
        }
        Ok(Span { place, length })
    }
}
