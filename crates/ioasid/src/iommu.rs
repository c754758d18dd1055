//! One machine's IOMMU: its stream table, its physical address space, its memory for page tables.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use iopt::Arena;

use crate::context::Context;
use crate::endpoint::{BEING_BOUND, Endpoint, EndpointOptions};
use crate::fault::Deadlines;
use crate::group::Group;
use crate::hwpt::Table;
use crate::ids::ObjectId;
use crate::ioas::AreaView;
use crate::mediate::Part;
use crate::memory::{PhysSpace, Pinned, TableSpace};
use crate::observe::Observer;
use crate::pasid::PasidSpace;
use crate::sync::RwLock;
use crate::types::{GroupId, Pasid, Rid};

/// Bytes of address space reserved for page tables, and the fewest worth trying.
const MOST_TABLES: usize = 8 << 30;
const LEAST_TABLES: usize = 2 << 20;

/// The software IOMMU of one machine.
pub struct Iommu {
    observer: Arc<dyn Observer>,
    pub(crate) arena: Arc<Arena<TableSpace>>,
    pub(crate) phys: Arc<PhysSpace>,
    endpoints: RwLock<BTreeMap<Rid, Arc<Endpoint>>>,
    groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
    serial: AtomicU64,
    /// Of page requests.
    pub(crate) deadlines: Deadlines,
    pub(crate) pasids: Arc<PasidSpace>,
}

/// A picture of one endpoint: see [`Iommu::view`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointView {
    /// Its requester id.
    pub rid: Rid,
    /// Its group.
    pub group: GroupId,
    /// Bytes that it read and wrote by DMA.
    pub traffic: (u64, u64),
    /// What it is attached to.
    pub attachments: Vec<AttachmentView>,
}

/// A picture of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentView {
    /// For this PASID, or for transactions without.
    pub pasid: Option<Pasid>,
    /// The page table.
    pub hwpt: ObjectId,
    /// The address space, if it is of one.
    pub ioas: Option<ObjectId>,
    /// What is mapped in it, in order of IOVA; for a nested table, of the guest's physical address.
    pub areas: Vec<AreaView>,
}

impl Iommu {
    /// A machine without devices, with as much room for page tables as the address space allows, up to 8 GiB: enough for
    /// 4 TiB in pages of 4 KiB.
    ///
    /// # Panics
    /// If there is no address space for a single chunk of tables.
    #[must_use]
    pub fn new(observer: Arc<dyn Observer>) -> Arc<Self> {
        let sizes = std::iter::successors(Some(MOST_TABLES), |bytes| (*bytes > LEAST_TABLES).then_some(bytes / 2));
        let tables = sizes.filter_map(|bytes| TableSpace::private(bytes).ok()).next();
        Self::with_tables(observer, tables.expect("no address space for page tables"))
    }

    /// A machine without devices, whose page tables live in `tables`.
    #[must_use]
    pub fn with_tables(observer: Arc<dyn Observer>, tables: TableSpace) -> Arc<Self> {
        Arc::new(Self {
            observer,
            arena: Arc::new(Arena::with_memory(tables)),
            phys: Arc::new(PhysSpace::new()),
            endpoints: RwLock::default(),
            groups: RwLock::default(),
            serial: AtomicU64::new(1),
            deadlines: Deadlines::default(),
            pasids: Arc::default(),
        })
    }

    /// Puts a requester on the bus, or returns `None` if `rid` is taken.
    pub fn add_endpoint(self: &Arc<Self>, rid: Rid, group: GroupId) -> Option<Arc<Endpoint>> {
        self.add_endpoint_with(rid, group, EndpointOptions::default())
    }

    /// As [`Iommu::add_endpoint`], for other endpoints than most.
    pub fn add_endpoint_with(
        self: &Arc<Self>,
        rid: Rid,
        group: GroupId,
        options: EndpointOptions,
    ) -> Option<Arc<Endpoint>> {
        self.add_requester(rid, group, options, None)
    }

    pub(crate) fn add_requester(
        self: &Arc<Self>,
        rid: Rid,
        group: GroupId,
        options: EndpointOptions,
        part: Option<Part>,
    ) -> Option<Arc<Endpoint>> {
        let mut endpoints = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        if endpoints.contains_key(&rid) {
            return None;
        }
        let group = {
            let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
            groups.entry(group).or_insert_with(|| Arc::new(Group::new(group))).clone()
        };
        let endpoint = Arc::new(Endpoint::new(rid, self, group, options, part));
        endpoints.insert(rid, endpoint.clone());
        Some(endpoint)
    }

    /// Whether another endpoint of the same group is attached, for `pasid`, to something else than `table`.
    pub(crate) fn is_group_elsewhere(&self, endpoint: &Endpoint, pasid: Option<Pasid>, table: Option<&Table>) -> bool {
        let endpoints = self.endpoints.read().unwrap_or_else(PoisonError::into_inner);
        let others =
            endpoints.values().filter(|other| other.group() == endpoint.group() && other.rid() != endpoint.rid());
        let is_same = |other: &Table| table.is_some_and(|table| table.is(other));
        // What is parked translates nothing.
        let elsewhere = |other: &Table| !matches!(other, Table::Parked(_)) && !is_same(other);
        others.into_iter().any(|other| other.with_attachment(pasid, elsewhere) == Some(true))
    }

    /// A new, empty context.
    #[must_use]
    pub fn context(self: &Arc<Self>) -> Arc<Context> {
        Context::new(self.clone())
    }

    /// A picture of who can reach what, for people to look at.
    #[must_use]
    pub fn view(&self) -> Vec<EndpointView> {
        let endpoints: Vec<_> =
            self.endpoints.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        endpoints
            .iter()
            .map(|endpoint| {
                // The areas are read after the attachments were let go, as their lock is the outer one.
                let mut attached = Vec::new();
                endpoint.find_attachment(|(pasid, table)| {
                    attached.push((*pasid, table.clone()));
                    None::<()>
                });
                EndpointView {
                    rid: endpoint.rid(),
                    group: endpoint.group(),
                    traffic: endpoint.traffic(),
                    attachments: attached
                        .into_iter()
                        .map(|(pasid, table)| AttachmentView {
                            pasid,
                            hwpt: table.id(),
                            ioas: table.ioas().map(|ioas| ioas.id()),
                            areas: table.ioas().map(|ioas| ioas.areas()).unwrap_or_default(),
                        })
                        .collect(),
                }
            })
            .collect()
    }

    /// Number of windows in the physical space and of page-table pages in use: zero when everything is torn down.
    #[must_use]
    pub fn resources(&self) -> (usize, usize) {
        (self.phys.windows(), self.arena.in_use())
    }

    /// Number of PASIDs that are not free: allocated, parked, or chosen for a device that is attached with one.
    #[must_use]
    pub fn pasids_in_use(&self) -> usize {
        self.pasids.in_use()
    }

    pub(crate) fn has_endpoint(&self, endpoint: &Arc<Endpoint>) -> bool {
        let endpoints = self.endpoints.read().unwrap_or_else(PoisonError::into_inner);
        endpoints.get(&endpoint.rid()).is_some_and(|there| Arc::ptr_eq(there, endpoint))
    }

    /// Everything that is pinned for devices at this moment.
    #[must_use]
    pub fn pinned(&self) -> Pinned {
        self.phys.pinned()
    }

    /// Takes a requester off the bus, if it is there and not bound. Its ports reach nothing from then on.
    pub fn remove_endpoint(&self, endpoint: &Arc<Endpoint>) -> bool {
        if !self.has_endpoint(endpoint) {
            return false;
        }
        let mut endpoints = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        // Who is taken cannot be bound any more.
        if endpoint.bound.swap(BEING_BOUND, Ordering::AcqRel) != 0 {
            return false;
        }
        endpoints.remove(&endpoint.rid());
        let group = endpoint.group();
        if endpoints.values().all(|other| other.group() != group) {
            self.groups.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
        }
        true
    }

    pub(crate) fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// A number that no other object of this machine has or had.
    pub(crate) fn serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }
}
