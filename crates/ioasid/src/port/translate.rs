//! From an address on the bus to bytes: by what the port has cached, or by a walk.
//!
//! ```text
//!   PASID, IOVA ─► context cache ─► IOTLB ─► pointer                       a hit
//!                    │ miss           │ miss
//!                    ▼                ▼
//!               stream table    upper-level cache ─► page table ─► window ─► pointer, or another process
//! ```
//!
//! A miss under a nested table walks that first, and comes by here for each address in it (see [`super::nested`]).
//!
//! What is cached is forgotten when the gate says so ([`Translator::refresh`]), and when memory behind any mapping of
//! this process turned out to be gone, which is so rare that everything is looked up anew. So a hit looks at nothing
//! but the cache: whether the device is bus master, what it is attached to and whether the memory is there was found
//! out when the translation was cached, and each of them posts to the gate, or counts, when it changes.
#![allow(unsafe_code, reason = "follows pointers that the gate protocol keeps alive")]

use iopt::{Access, Translation, Upper};

use crate::base::observe::FaultReason;
use crate::base::types::{IovaRange, Pasid};
use crate::bus::Endpoint;
use crate::gate::invalidation::Invalidation;
use crate::gate::{Gate, Inside};
use crate::hwpt::{Hwpt, LOWEST_SPAN_BITS, NestedHwpt, SvaHwpt};
use crate::memory::{Backing, RemoteMemory, Window, lost_at, memory_lost};

use super::BusAddress;
use super::bus::Bus;
use super::context::{Attached, Context, Contexts};
use super::iotlb::{Iotlb, Page, Probe};
use super::upper::UpperCache;

/// Where a translation leads. Valid inside the gate.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// Bytes of this process.
    Here(*mut u8),
    /// Bytes elsewhere, from an address on.
    Elsewhere(&'a dyn RemoteMemory, u64),
}

/// Why an access was refused, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: FaultReason,
    /// The address that the parent of a nested table has nothing for, if it was not the table itself.
    pub(crate) below: Option<u64>,
}

impl From<FaultReason> for Refused {
    fn from(reason: FaultReason) -> Self {
        Self { reason, below: None }
    }
}

/// A place, and how many bytes from there on it goes on.
#[derive(Clone, Copy)]
pub(super) struct Span<'a> {
    pub(super) place: Place<'a>,
    pub(super) length: u64,
}

impl Span<'_> {
    #[inline]
    pub(super) fn here(start: *mut u8, length: u64) -> Self {
        Self { place: Place::Here(start), length }
    }
}

pub(super) struct Translator {
    pub(super) iotlb: Iotlb,
    pub(super) contexts: Contexts,
    uppers: UpperCache<Upper>,
    /// How much of what was posted at the gate is dealt with.
    posted: u64,
    /// What [`memory_lost`] said when everything cached was there.
    lost: u64,
}

impl Translator {
    pub(super) fn new() -> Self {
        Self {
            iotlb: Iotlb::new(),
            contexts: Contexts::default(),
            uppers: UpperCache::new(LOWEST_SPAN_BITS),
            posted: 0,
            lost: memory_lost(),
        }
    }

    /// Gets memory for the access that follows. Outside the gate: a thread that waits there must not wait for memory.
    #[inline(always)]
    pub(super) fn prepare(&mut self, pasid: Option<Pasid>) {
        if pasid.is_some() {
            self.contexts.prepare();
        }
        if self.iotlb.is_crowded() {
            self.iotlb.grow();
        }
    }

    /// Whether the last accesses have shown that [`Translator::prepare`] has something to do.
    #[cfg(feature = "vm-memory")]
    pub(super) fn is_crowded(&self) -> bool {
        self.iotlb.is_crowded()
    }

    /// Forgets what was taken away since the last access.
    #[inline(always)]
    pub(super) fn refresh(&mut self, inside: &Inside<'_>) {
        let (posted, lost) = (inside.posted(), memory_lost());
        if posted != self.posted || lost != self.lost {
            self.forget(inside.gate(), posted, lost);
        }
    }

    #[cold]
    fn forget(&mut self, gate: &Gate, posted: u64, lost: u64) {
        let Self { iotlb, contexts, uppers, .. } = self;
        gate.drain(|invalidation| match invalidation {
            // The next access finds a new domain: what is cached in the old one does not have to be looked for.
            Invalidation::Range(table, IovaRange::ALL) => contexts.forget_table(table),
            Invalidation::Range(table, range) => {
                contexts.forget_over(table);
                for (domain, range) in contexts.domains_of(table, range) {
                    iotlb.invalidate(domain, range);
                    uppers.invalidate(domain, range);
                }
            }
            Invalidation::Pasid(table, pasid) => contexts.forget_pasid(table, pasid),
            Invalidation::Attachment(pasid) => contexts.forget(pasid),
            Invalidation::All => contexts.clear(),
        });
        if lost != self.lost {
            contexts.clear();
        }
        (self.posted, self.lost) = (posted, lost);
    }

    /// Where in this process `at` leads, and how far, if that is cached, in a page as large as the last, and `access`
    /// is allowed. The caller has refreshed the translator inside the gate.
    #[inline(always)]
    pub(super) fn hit(&self, at: BusAddress, access: Access) -> Option<(*mut u8, u64)> {
        self.probe(at.pasid)?.find(at.iova.0, access)
    }

    /// What finds the hits of a PASID, if there are any, for a caller that looks many up.
    #[inline(always)]
    pub(super) fn probe(&self, pasid: Option<Pasid>) -> Option<Probe<'_>> {
        Some(self.iotlb.recent(self.contexts.find(pasid)?.domain))
    }

    /// Where `at` leads, if `access` is allowed there. The caller has refreshed the translator with `inside`.
    #[inline(never)]
    pub(super) fn translate<'a>(
        &mut self,
        bus: &Bus,
        inside: &'a Inside<'_>,
        at: BusAddress,
        access: Access,
    ) -> Result<Span<'a>, Refused> {
        let hit = match self.contexts.find(at.pasid) {
            Some(context) => self.iotlb.lookup(context.domain, at.iova.0, access),
            None => None,
        };
        match hit {
            Some((start, length)) => Ok(Span::here(start, length)),
            None => self.miss(bus, inside, at, access),
        }
    }

    /// As [`Translator::translate`], for a caller that can use only memory of this process.
    pub(super) fn translate_here(
        &mut self,
        bus: &Bus,
        inside: &Inside<'_>,
        at: BusAddress,
        access: Access,
    ) -> Result<(*mut u8, u64), Refused> {
        match self.translate(bus, inside, at, access)? {
            Span { place: Place::Here(start), length } => Ok((start, length)),
            Span { place: Place::Elsewhere(..), .. } => Err(FaultReason::NotLocal.into()),
        }
    }

    fn miss<'a>(
        &mut self,
        bus: &Bus,
        inside: &'a Inside<'_>,
        at: BusAddress,
        access: Access,
    ) -> Result<Span<'a>, Refused> {
        let mut span = self.find(bus, inside, at, access)?;
        let log = bus.endpoint.write_log();
        if log.is_on() && access.contains(Access::WRITE) && at.pasid.is_none() {
            span.length = log.mark(at.iova.0, span.length);
        }
        Ok(span)
    }

    fn find<'a>(
        &mut self,
        bus: &Bus,
        inside: &'a Inside<'_>,
        at: BusAddress,
        access: Access,
    ) -> Result<Span<'a>, Refused> {
        if !bus.endpoint.may_dma(at.pasid) {
            return Err(FaultReason::NotBusMaster.into());
        }
        let context = match self.contexts.find(at.pasid) {
            Some(context) => context,
            None if inside.gate().is_shut() => return Err(FaultReason::NotAttached.into()),
            None => self.attach(&bus.endpoint, at.pasid)?,
        };
        match context.table {
            Attached::Paging(hwpt) => {
                // SAFETY: attached when the context was cached. A thread that detaches posts that and waits at the gate
                // before the page table can go; the context was found after this port had gone in and looked at what
                // was posted.
                let hwpt: &'a Hwpt = unsafe { hwpt.as_ref() };
                Ok(self.walk(bus, inside, hwpt, context.domain, at.iova.0, access)?)
            }
            Attached::Nested { table, .. } => {
                // SAFETY: as above.
                let nested: &'a NestedHwpt = unsafe { table.as_ref() };
                self.walk_nested(bus, inside, nested, context, at, access)
            }
            Attached::Sva(sva) => {
                // SAFETY: as above.
                let sva: &'a SvaHwpt = unsafe { sva.as_ref() };
                let length = sva.translate(at.iova.0, access)?;
                Ok(Span { place: Place::Elsewhere(sva.memory(), at.iova.0), length })
            }
        }
    }

    /// Where `iova` leads by the page table `hwpt`, whose translations are cached with the tag `domain`.
    pub(super) fn walk<'a>(
        &mut self,
        bus: &Bus,
        inside: &'a Inside<'_>,
        hwpt: &Hwpt,
        domain: u64,
        iova: u64,
        access: Access,
    ) -> Result<Span<'a>, FaultReason> {
        let upper = match self.uppers.find(domain, iova) {
            Some(upper) => upper,
            None => {
                let upper = hwpt.upper(iova).ok_or(FaultReason::NotMapped)?;
                if upper.span_bits() == LOWEST_SPAN_BITS {
                    self.uppers.insert(domain, iova, upper);
                }
                upper
            }
        };
        let (found, cachable) = hwpt.walk(upper, iova, access).ok_or(FaultReason::NotMapped)?;
        if !found.access.contains(access) {
            return Err(FaultReason::NotPermitted);
        }
        let window = bus.shared.phys.resolve(found.pa, inside).ok_or(FaultReason::MemoryGone)?;
        let block = Block::of(&found, window);
        let length = (1 << block.shift) - (found.pa - block.pa);
        let place = match window.backing() {
            backing if backing.is_gone(block.pa - window.base(), 1 << block.shift) => {
                return Err(FaultReason::MemoryGone);
            }
            Backing::Local { start, .. } => {
                let start = start.as_ptr().wrapping_add((block.pa - window.base()) as usize);
                let access = bus.cachable(cachable);
                self.iotlb.insert(domain, iova, Page { start, shift: block.shift, access });
                Place::Here(start.wrapping_add((found.pa - block.pa) as usize))
            }
            // The system call that follows costs a hundred times the walk, so this is not worth a place in the cache.
            Backing::Remote { memory, address } => Place::Elsewhere(&**memory, address + (found.pa - window.base())),
        };
        Ok(Span { place, length })
    }

    /// Looks an attachment up in the stream table.
    fn attach(&mut self, endpoint: &Endpoint, pasid: Option<Pasid>) -> Result<Context, FaultReason> {
        let own = endpoint.with_attachment(pasid, Attached::to);
        let inherited = own.is_none();
        let shared = || endpoint.with_attachment(None, |table| table.owns_pasids().then(|| Attached::to(table)))?;
        let table = own.or_else(shared).ok_or(FaultReason::NotAttached)?.ok_or(FaultReason::Parked)?;
        if let Some(context) = self.contexts.insert(pasid, table, inherited) {
            return Ok(context);
        }
        // Two thousand attachments later, the domains have to be given out again.
        self.iotlb.flush();
        self.uppers.flush();
        self.contexts.restart();
        self.contexts.insert(pasid, table, inherited).ok_or(FaultReason::NotAttached)
    }

    /// After bytes were moved: whether memory of any mapping was lost meanwhile. [`Place::check`] tells of which.
    #[inline]
    pub(super) fn lost_memory(&self) -> bool {
        memory_lost() != self.lost
    }
}

impl Place<'_> {
    /// Fails if some of the `length` bytes there were lost.
    #[inline]
    pub(super) fn check(self, length: u64) -> Result<(), FaultReason> {
        match self {
            Self::Here(start) if lost_at(start.addr(), length as usize) => Err(FaultReason::MemoryGone),
            _ => Ok(()),
        }
    }
}

/// An aligned block of physical addresses inside of one window.
struct Block {
    pa: u64,
    shift: u32,
}

impl Block {
    /// As large as the page, where the window is not smaller. A page lies in one window, as each window is mapped by a
    /// call of its own; but pages that are coalesced may belong to neighbours.
    fn of(found: &Translation, window: &Window) -> Self {
        let window = IovaRange { start: window.base(), last: window.base() + (window.length() - 1) };
        let mut shift = found.page_shift;
        loop {
            let pa = found.pa & (!0 << shift);
            if shift == 0 || window.contains(&IovaRange { start: pa, last: pa | ((1 << shift) - 1) }) {
                return Self { pa, shift };
            }
            shift -= 1;
        }
    }
}
