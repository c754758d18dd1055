//! A machine: its IOMMUs, its requesters, its physical address space, its memory for page tables.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::endpoint::{BEING_BOUND, Endpoint, EndpointError, EndpointOptions};
use super::group::Group;
use super::iommu::Iommu;
use super::part::Part;
use crate::base::lock::RwLock;
use crate::base::observe::Observer;
use crate::base::rank;
use crate::base::sync::Ordering;
use crate::base::types::{GroupId, Pasid, Rid};
use crate::hwpt::Table;
use crate::memory::{Pinned, TableSpace};
use crate::shared::Shared;

/// Bytes of address space reserved for page tables, and the fewest worth trying.
const MOST_TABLES: usize = 8 << 30;
const LEAST_TABLES: usize = 2 << 20;

/// Bits of the widest PASID (PCIe 6.20).
const MOST_PASID_BITS: u32 = 20;

/// A machine: its IOMMUs, the requesters behind them, the physical space and the memory for page tables that they
/// share.
pub struct Machine {
    shared: Arc<Shared>,
    endpoints: RwLock<BTreeMap<Rid, Arc<Endpoint>>, rank::Endpoints>,
    groups: RwLock<BTreeMap<GroupId, Arc<Group>>, rank::Groups>,
    pub(super) iommus: RwLock<Vec<Arc<Iommu>>, rank::Iommus>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("endpoints", &self.endpoints()).finish_non_exhaustive()
    }
}

impl Machine {
    /// A machine without devices, with as much room for page tables as the address space allows, up to 8 GiB: enough
    /// for 4 TiB in pages of 4 KiB.
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
            shared: Arc::new(Shared::new(observer, tables)),
            endpoints: RwLock::default(),
            groups: RwLock::default(),
            iommus: RwLock::default(),
        })
    }

    /// What its parts share.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// All of its endpoints, in order of requester id.
    pub(crate) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.read().values().cloned().collect()
    }

    /// Puts a requester on the bus.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub fn add_endpoint(self: &Arc<Self>, rid: Rid, group: GroupId) -> Result<Arc<Endpoint>, EndpointError> {
        self.add_endpoint_with(rid, group, EndpointOptions::default())
    }

    /// As [`Machine::add_endpoint`], for other endpoints than most.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub fn add_endpoint_with(
        self: &Arc<Self>,
        rid: Rid,
        group: GroupId,
        options: EndpointOptions,
    ) -> Result<Arc<Endpoint>, EndpointError> {
        if options.pasid_bits > MOST_PASID_BITS {
            return Err(EndpointError::PasidBits(options.pasid_bits));
        }
        let iommu = options.iommu.clone().unwrap_or_else(|| self.first_iommu());
        if !iommu.is_on(&self.shared) {
            return Err(EndpointError::OtherMachine);
        }
        let reserved = [iommu.kind().reserved(), &options.reserved].concat();
        self.add_requester(rid, group, iommu, EndpointOptions { reserved, ..options }, None)
    }

    pub(crate) fn add_requester(
        self: &Arc<Self>,
        rid: Rid,
        group: GroupId,
        iommu: Arc<Iommu>,
        options: EndpointOptions,
        part: Option<Part>,
    ) -> Result<Arc<Endpoint>, EndpointError> {
        let mut endpoints = self.endpoints.write();
        if endpoints.contains_key(&rid) {
            return Err(EndpointError::Taken(rid));
        }
        let group = {
            let mut groups = self.groups.write();
            groups.entry(group).or_insert_with(|| Arc::new(Group::new(group))).clone()
        };
        let endpoint = Arc::new(Endpoint::new(rid, &self.shared, iommu, group, options, part));
        endpoints.insert(rid, endpoint.clone());
        Ok(endpoint)
    }

    /// Whether another endpoint of the same group is attached, for `pasid`, to something else than `table`.
    pub(crate) fn is_group_elsewhere(&self, endpoint: &Endpoint, pasid: Option<Pasid>, table: Option<&Table>) -> bool {
        let endpoints = self.endpoints.read();
        let others =
            endpoints.values().filter(|other| other.group() == endpoint.group() && other.rid() != endpoint.rid());
        let is_same = |other: &Table| table.is_some_and(|table| table.is(other));
        // What is parked translates nothing.
        let elsewhere = |other: &Table| !matches!(other, Table::Parked(_)) && !is_same(other);
        others.into_iter().any(|other| other.with_attachment(pasid, elsewhere) == Some(true))
    }

    /// Number of windows in the physical space and of page-table pages in use: zero when everything is torn down.
    #[must_use]
    pub fn resources(&self) -> (usize, usize) {
        (self.shared.phys.windows(), self.shared.arena.in_use())
    }

    /// Number of PASIDs that are not free: allocated, parked, or chosen for a device that is attached with one.
    #[must_use]
    pub fn pasids_in_use(&self) -> usize {
        self.shared.pasids.in_use()
    }

    pub(crate) fn has_endpoint(&self, endpoint: &Arc<Endpoint>) -> bool {
        let endpoints = self.endpoints.read();
        endpoints.get(&endpoint.rid()).is_some_and(|there| Arc::ptr_eq(there, endpoint))
    }

    /// Everything that is pinned for devices at this moment.
    #[must_use]
    pub fn pinned(&self) -> Pinned {
        self.shared.phys.pinned()
    }

    /// Takes a requester off the bus, if it is there and not bound. Its ports reach nothing from then on.
    pub fn remove_endpoint(&self, endpoint: &Arc<Endpoint>) -> bool {
        if !self.has_endpoint(endpoint) {
            return false;
        }
        let mut endpoints = self.endpoints.write();
        // A requester that is taken cannot be bound any more.
        if endpoint.bound.compare_exchange(0, BEING_BOUND, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        endpoints.remove(&endpoint.rid());
        let group = endpoint.group();
        if endpoints.values().all(|other| other.group() != group) {
            self.groups.write().remove(&group);
        }
        true
    }
}
