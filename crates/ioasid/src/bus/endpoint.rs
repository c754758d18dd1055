//! An endpoint: one requester id as the IOMMU sees it, with what it is attached to.
//!
//! The endpoints of an [`crate::Machine`] are its stream table. As in hardware it has two steps, requester id and then
//! PASID, and a transaction without PASID is looked up like one with: its key is `None`.
//!
//! ```text
//!   RID ──► Endpoint ──► attachments: None      ──► Hwpt
//!                                     PASID 17  ──► Hwpt
//!                    └─► its ports, each with a gate and a cache of translations
//! ```

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use thiserror::Error;

use super::follow::Follows;
use super::group::Group;
use super::iommu::Iommu;
use super::part::{Part, Parts};
use super::write_log::WriteLog;
use crate::base::lock::RwLock;
use crate::base::rank;
use crate::base::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::base::types::{GroupId, IovaRange, Pasid, Rid, WouldDeadlock};
use crate::fault::{Dismissed, OnMiss, Recovery};
use crate::gate::invalidation::Invalidation;
use crate::gate::walker::{Ports, Walker};
use crate::gate::{check_may_wait, quiesce};
use crate::hwpt::Table;
use crate::kind::IommuKind;
use crate::mirror::Mirror;
use crate::pasid::PartPasidTable;
use crate::shared::Shared;

/// In [`Endpoint::bound`]: a context is about to have it, or it is gone for good.
pub(crate) const BEING_BOUND: u32 = u32::MAX;

/// What an endpoint is to its IOMMU.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EndpointOptions {
    /// Which IOMMU it is behind; if none is named, the machine's first, and a VT-d where there is none yet.
    pub iommu: Option<Arc<Iommu>>,
    /// IOVAs that it cannot use for memory, beside those that its IOMMU reserves.
    pub reserved: Vec<IovaRange>,
    /// Bits of a PASID, up to 20; 0 if it has none. More are refused ([`EndpointError::PasidBits`]).
    pub pasid_bits: u32,
    /// Whether its IOMMU can track what it writes.
    pub dirty_tracking: bool,
    /// What it can do about a page that is not there.
    pub recovery: Recovery,
    /// Where the device is elsewhere, what it has of the address space that it is attached to: a mirror that is added
    /// to that as it is attached, and emptied and taken away as it is detached. It reaches by that what is mapped, and
    /// by its ports besides.
    pub mirror: Option<Arc<dyn Mirror>>,
}

impl Default for EndpointOptions {
    /// A PCI function with PASIDs of 20 bits, whose writes can be tracked and whose transactions can wait for a page.
    fn default() -> Self {
        let (reserved, recovery) = (Vec::new(), Recovery::Stall);
        Self { iommu: None, reserved, pasid_bits: 20, dirty_tracking: true, recovery, mirror: None }
    }
}

impl EndpointOptions {
    /// As by default, behind this IOMMU.
    #[must_use]
    pub fn behind(iommu: &Arc<Iommu>) -> Self {
        Self { iommu: Some(iommu.clone()), ..Self::default() }
    }

    /// It cannot use these IOVAs for memory, either.
    #[must_use]
    pub fn reserve(mut self, range: IovaRange) -> Self {
        self.reserved.push(range);
        self
    }

    /// Bits of a PASID, up to 20; 0 if it has none.
    #[must_use]
    pub fn pasid_bits(self, pasid_bits: u32) -> Self {
        Self { pasid_bits, ..self }
    }

    /// Whether its IOMMU can track what it writes.
    #[must_use]
    pub fn dirty_tracking(self, dirty_tracking: bool) -> Self {
        Self { dirty_tracking, ..self }
    }

    /// What it can do about a page that is not there.
    #[must_use]
    pub fn recovery(self, recovery: Recovery) -> Self {
        Self { recovery, ..self }
    }

    /// What the device, which is elsewhere, has of the address space that it is attached to.
    #[must_use]
    pub fn mirrored(self, mirror: Arc<dyn Mirror>) -> Self {
        Self { mirror: Some(mirror), ..self }
    }
}

/// Why a requester was not put on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// There is one with this requester id.
    #[error("{0} is taken by another requester")]
    Taken(Rid),
    /// The IOMMU belongs to another [`Machine`](crate::Machine).
    #[error("the IOMMU belongs to another machine")]
    OtherMachine,
    /// There are no PASIDs that wide (PCIe 6.20).
    #[error("PASIDs have 20 bits at the most, and not {0}")]
    PasidBits(u32),
}

/// A requester on the bus.
pub struct Endpoint {
    rid: Rid,
    shared: Arc<Shared>,
    iommu: Arc<Iommu>,
    pub(crate) group: Arc<Group>,
    /// With all that is reserved.
    pub(super) options: EndpointOptions,
    bus_master: AtomicBool,
    /// The id of the [`crate::Device`] that has it in its context, [`BEING_BOUND`], or 0 if none has.
    pub(crate) bound: AtomicU32,
    /// Whether it is on no bus: its refusals are its maker's affair, and not the observer's.
    software: bool,
    /// If it is a part of another: its transactions are the other's.
    pub(crate) part: Option<Part>,
    /// If others are parts of it.
    pub(crate) parts: Parts,
    /// Whether any were: it is bound as a whole no more.
    pub(crate) mediated: AtomicBool,
    /// Accesses that were refused because what they went to had been destroyed.
    parked_faults: AtomicU64,
    attachments: RwLock<Attachments, rank::Attachments>,
    /// What it writes, while that is logged.
    pub(super) write_log: WriteLog,
    ports: Ports,
    pub(super) follows: Follows,
    extension: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// In order of PASID.
type Attachments = Vec<(Option<Pasid>, Table)>;

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("rid", &format_args!("{}", self.rid))
            .field("group", &self.group())
            .field("bus_master", &self.is_bus_master())
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(crate) fn new(
        rid: Rid,
        shared: &Arc<Shared>,
        iommu: Arc<Iommu>,
        group: Arc<Group>,
        options: EndpointOptions,
        part: Option<Part>,
    ) -> Self {
        Self {
            rid,
            shared: shared.clone(),
            iommu,
            group,
            options,
            bus_master: AtomicBool::new(false),
            bound: AtomicU32::new(0),
            software: false,
            part,
            parts: Parts::default(),
            mediated: AtomicBool::new(false),
            parked_faults: AtomicU64::new(0),
            attachments: RwLock::default(),
            write_log: WriteLog::default(),
            ports: Ports::default(),
            follows: Follows::default(),
            extension: OnceLock::new(),
        }
    }

    /// A requester that is on no bus, for what software does in the name of the device with the id `bound`.
    pub(crate) fn software(shared: &Arc<Shared>, bound: u32) -> Self {
        let iommu = Iommu::new(IommuKind::default(), u32::MAX, shared);
        let group = Arc::new(Group::new(GroupId(u32::MAX)));
        let endpoint = Self::new(Rid::SOFTWARE, shared, iommu, group, EndpointOptions::default(), None);
        let endpoint = Self { software: true, ..endpoint };
        endpoint.bound.store(bound, Ordering::Relaxed);
        endpoint.bus_master.store(true, Ordering::Release);
        endpoint
    }

    /// Whether it is on no bus.
    pub(crate) fn is_software(&self) -> bool {
        self.software
    }

    /// What it shares with the rest of its machine.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What it can do about a page that is not there.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        self.options.recovery
    }

    /// How many of its accesses were refused because what they went to had been destroyed, or the PASID freed.
    #[must_use]
    pub fn parked_faults(&self) -> u64 {
        self.parked_faults.load(Ordering::Relaxed)
    }

    pub(crate) fn count_parked_fault(&self) {
        self.parked_faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps something with it, for the caller that made it. Only the first call counts.
    pub fn extend(&self, extension: impl Any + Send + Sync) {
        let _ = self.extension.set(Box::new(extension));
    }

    /// What is kept with it, if that is a `T`.
    #[must_use]
    pub fn extension<T: 'static>(&self) -> Option<&T> {
        self.extension.get()?.downcast_ref()
    }

    /// Its requester id.
    #[must_use]
    pub fn rid(&self) -> Rid {
        self.rid
    }

    /// Its group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group.id()
    }

    /// IOVAs that it cannot use for memory.
    #[must_use]
    pub fn reserved(&self) -> &[IovaRange] {
        &self.options.reserved
    }

    /// Which IOMMU it is behind.
    #[must_use]
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// Bits of a PASID, or 0 if it has none.
    #[must_use]
    pub fn pasid_bits(&self) -> u32 {
        self.options.pasid_bits
    }

    /// Whether the device is elsewhere, and has a mirror of its own.
    pub(crate) fn has_mirror(&self) -> bool {
        self.options.mirror.is_some()
    }

    /// Whether its IOMMU can track what it writes.
    #[must_use]
    pub fn tracks_dirty(&self) -> bool {
        self.options.dirty_tracking
    }

    /// Its id in the context that it is bound to, or 0.
    pub(crate) fn bound_as(&self) -> u32 {
        self.bound.load(Ordering::Acquire)
    }

    /// Whether it is a requester of this machine.
    pub(crate) fn is_on(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// Lets the device do DMA, or stops it: with `false` this returns when none is in flight any more.
    ///
    /// # Errors
    /// [`WouldDeadlock`] if this thread holds slices; nothing is changed then. Not with `true`.
    pub fn set_bus_master(&self, enabled: bool) -> Result<(), WouldDeadlock> {
        if enabled {
            self.bus_master.store(true, Ordering::Release);
            return Ok(());
        }
        check_may_wait()?;
        self.bus_master.store(false, Ordering::Release);
        match &self.part {
            None => {
                self.cancel_requests();
                self.quiesce(Invalidation::All);
            }
            Some(part) => part.stop(),
        }
        Ok(())
    }

    /// Whether the device may do DMA.
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }

    /// The endpoint that owns transactions with `pasid`, and its own number for that PASID: a part, if it was given
    /// this one.
    pub(crate) fn owner(self: &Arc<Self>, pasid: Option<Pasid>) -> (Arc<Self>, Option<Pasid>) {
        self.parts.find(pasid).unwrap_or_else(|| (self.clone(), pasid))
    }

    /// Whether transactions with `pasid` may be made: the device may do DMA, and so may the part of it that they belong
    /// to.
    pub(crate) fn may_dma(&self, pasid: Option<Pasid>) -> bool {
        let part = || self.mediated.load(Ordering::Acquire).then(|| self.parts.find(pasid)).flatten();
        self.is_bus_master() && part().is_none_or(|(part, _)| part.is_bus_master())
    }

    /// What its numbers for PASIDs mean on the bus, if it is a part of another.
    #[must_use]
    pub fn virtual_pasids(&self) -> Option<PartPasidTable> {
        self.part.as_ref().map(|part| PartPasidTable::new(part.table.clone()))
    }

    /// The endpoint that makes its transactions.
    pub(crate) fn requester(self: &Arc<Self>) -> &Arc<Self> {
        self.part.as_ref().map_or(self, |part| &part.parent)
    }

    /// The endpoint that makes its transactions with `pasid`, and the PASID on the bus; `None` if it has none there.
    pub(crate) fn on_bus(self: &Arc<Self>, pasid: Option<Pasid>) -> Option<(Arc<Self>, Option<Pasid>)> {
        match &self.part {
            None => Some((self.clone(), pasid)),
            Some(part) => Some((part.parent.clone(), Some(part.physical(pasid)?))),
        }
    }

    /// Bytes read and written by DMA so far.
    #[must_use]
    pub fn traffic(&self) -> (u64, u64) {
        self.ports.traffic()
    }

    /// Returns when no port of its own uses what was taken away before the call and is covered by `invalidation`.
    pub(crate) fn quiesce(&self, invalidation: Invalidation) {
        quiesce(|each| self.ports.gates(each), invalidation);
    }

    /// The page table that a transaction goes to.
    pub(crate) fn with_attachment<T>(&self, pasid: Option<Pasid>, use_it: impl FnOnce(&Table) -> T) -> Option<T> {
        let attachments = self.attachments.read();
        find(&attachments, pasid).ok().map(|at| use_it(&attachments[at].1))
    }

    /// The attachment that a transaction goes by: that of its PASID, or that without one, where a guest owns the
    /// PASIDs.
    pub(crate) fn route(&self, pasid: Option<Pasid>) -> Option<(Option<Pasid>, Table)> {
        self.route_or(pasid, Table::owns_pasids)
    }

    /// As [`Endpoint::route`], for a page request, which a guest may make of any PASID where a table is its own.
    pub(crate) fn route_request(&self, pasid: Option<Pasid>) -> Option<(Option<Pasid>, Table)> {
        self.route_or(pasid, |table| matches!(table, Table::Nested(_)))
    }

    fn route_or(&self, pasid: Option<Pasid>, shared: fn(&Table) -> bool) -> Option<(Option<Pasid>, Table)> {
        let attachments = self.attachments.read();
        let by = |key: Option<Pasid>| find(&attachments, key).ok().map(|at| (key, attachments[at].1.clone()));
        by(pasid).or_else(|| by(None).filter(|(_, table)| shared(table)))
    }

    /// Goes through all attachments, in order of PASID, as long as `each` gives nothing.
    pub(crate) fn find_attachment<T>(&self, each: impl FnMut(&(Option<Pasid>, Table)) -> Option<T>) -> Option<T> {
        self.attachments.read().iter().find_map(each)
    }

    /// Gives up on everything that the device asked for.
    pub(crate) fn cancel_requests(&self) {
        let mut queues = Vec::new();
        self.find_attachment(|(_, table)| {
            queues.extend(table.on_misses().filter_map(OnMiss::queue).cloned());
            None::<()>
        });
        let mut dismissed = Dismissed::default();
        queues.iter().for_each(|queue| queue.dismiss_walker(self, &mut dismissed));
    }

    /// Attaches, in place of what is returned, which no port uses any more. Only one thread attaches or detaches at a
    /// time.
    pub(crate) fn attach(&self, pasid: Option<Pasid>, table: Table) -> Option<Table> {
        let used = self.attachments.read().len();
        // Ports take this lock, and threads that unmap wait for ports: nothing is allocated while it is held.
        let mut room = Attachments::with_capacity((used + 1).next_power_of_two());
        let before = {
            let mut attachments = self.attachments.write();
            match find(&attachments, pasid) {
                Ok(at) => Some(std::mem::replace(&mut attachments[at].1, table)),
                Err(at) => {
                    if attachments.len() == attachments.capacity() {
                        room.append(&mut attachments);
                        std::mem::swap(&mut room, &mut attachments);
                    }
                    attachments.insert(at, (pasid, table));
                    None
                }
            }
        };
        self.quiesce(Invalidation::Attachment(pasid));
        before
    }

    /// Detaches, and returns what was there, which no port uses any more. Allocates nothing.
    pub(crate) fn detach(&self, pasid: Option<Pasid>) -> Option<Table> {
        let before = {
            let mut attachments = self.attachments.write();
            find(&attachments, pasid).ok().map(|at| attachments.remove(at).1)
        };
        self.quiesce(Invalidation::Attachment(pasid));
        before
    }
}

impl Walker for Endpoint {
    fn ports(&self) -> &Ports {
        &self.ports
    }
}

/// Gives up what an attachment asked for: no device waits for it.
pub(crate) fn dismiss(endpoint: &Endpoint, pasid: Option<Pasid>, table: &Table, dismissed: &mut Dismissed) {
    for queue in table.on_misses().filter_map(OnMiss::queue) {
        queue.dismiss_attachment(endpoint, pasid, dismissed);
    }
}

/// Where the attachment is, or where it would be.
fn find(attachments: &Attachments, pasid: Option<Pasid>) -> Result<usize, usize> {
    attachments.binary_search_by_key(&pasid, |(pasid, _)| *pasid)
}
