//! An I/O address space: IOVA ranges mapped to pages, mirrored in every page table that was made from it.
//!
//! The areas are the truth and page tables follow: a table made later is filled from the areas. Areas that touch are
//! not merged, as an unmap has to name whole areas.
//!
//! What is reserved is not stored: it is what the endpoints attached at this moment reserve.
//!
//! # Who waits for whom
//!
//! An area is kept, without pages, while its memory is made ready and written into the tables, and again while it is taken
//! out of them: whoever wants the range meanwhile, or wants to unmap it, meets it. So neither holds the lock on the
//! areas, and mappings of different ranges go on beside each other. The list of tables is locked for reading by those who
//! fill or empty tables, and for writing by those who add or remove one.

mod areas;

use std::sync::{Arc, PoisonError};

use iopt::Access;
use thiserror::Error;

use crate::endpoint::Endpoint;
use crate::gate::check_holds_nothing;
use crate::hwpt::{Hwpt, HwptKind};
use crate::ids::ObjectId;
use crate::iommu::Iommu;
use crate::memory::{ImportError, OutOfPhysicalSpace, PAGE_SIZE, Pages, Segment};
use crate::ranges::Ranges;
use crate::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use crate::types::{HoldsSlices, Iova, IovaRange};

use areas::Areas;

/// Where a mapping goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Exactly there.
    Fixed(Iova),
    /// Anywhere that is free. The IOVA gets the alignment that this address of the memory has, up to 2 MiB, so that
    /// large pages fit.
    Automatic {
        /// The address of the memory where it comes from.
        like: u64,
    },
}

/// Why nothing was mapped. The address space is as it was.
#[derive(Debug, Error)]
pub enum MapError {
    /// The length is zero.
    #[error("a mapping cannot be empty")]
    Empty,
    /// The range wraps around the end of the address space.
    #[error("IOVA {0:#x} and length {1:#x} reach beyond the end of the address space")]
    Overflow(u64, u64),
    /// An address or the length is not a multiple of the page size.
    #[error("IOVA {0:#x} and length {1:#x} must be multiples of the page size")]
    Unaligned(u64, u64),
    /// Neither reading nor writing is asked for.
    #[error("a mapping must be readable or writable")]
    NoAccess,
    /// Part of the range cannot be used for memory with the devices that are attached.
    #[error("IOVA {0} is reserved, or beyond what the devices attached can address")]
    Reserved(IovaRange),
    /// Part of the range is mapped already.
    #[error("IOVA {0} overlaps a mapping")]
    Occupied(IovaRange),
    /// No free range is large enough.
    #[error("no free range of {0:#x} bytes")]
    NoSpace(u64),
    /// The memory cannot be had.
    #[error(transparent)]
    Memory(#[from] ImportError),
    /// Writing is asked for, and the memory cannot be written.
    #[error("the memory is read-only")]
    ReadOnly,
    /// The memory has another length than the mapping.
    #[error("the memory has {0:#x} bytes, the mapping {1:#x}")]
    WrongLength(u64, u64),
    /// Memory whose length is no multiple of the page size, or which wraps.
    #[error("memory of {0:#x} bytes is not made of whole pages")]
    NotPages(u64),
    /// If it failed half-way, it would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
    /// The physical space is full.
    #[error(transparent)]
    PhysicalSpace(#[from] OutOfPhysicalSpace),
    /// A page table could not take the mapping.
    #[error(transparent)]
    Table(#[from] iopt::MapError),
}

/// Why nothing was unmapped. The address space is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UnmapError {
    /// Nothing is mapped in the range, or it begins or ends inside an area.
    #[error("IOVA {0} does not consist of whole mappings")]
    NotWhole(IovaRange),
    /// Part of the range is being mapped at this moment.
    #[error("IOVA {0} is being mapped at this moment")]
    Busy(IovaRange),
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
}

/// Why an endpoint cannot use an address space.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("IOVA {0} is mapped, but the device cannot use it for memory")]
    Conflict(IovaRange),
    #[error(transparent)]
    Table(#[from] iopt::MapError),
}

/// One area, for people to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AreaView {
    /// Its IOVAs.
    pub range: IovaRange,
    /// What devices may do.
    pub access: Access,
}

type Tables = Vec<Arc<Hwpt>>;

/// A range that is kept for a mapping to come, and given up if none does, whatever the reason.
struct Kept<'a> {
    ioas: &'a Ioas,
    range: IovaRange,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.ioas.locked_areas().remove(self.range);
    }
}

/// An I/O address space.
pub struct Ioas {
    id: ObjectId,
    serial: u64,
    iommu: Arc<Iommu>,
    /// The page tables that mirror the areas. Locked before `areas`.
    tables: RwLock<Tables>,
    areas: Mutex<Areas>,
    /// Held to unmap, as two who unmap have to wait for each other. Locked first.
    unmap: Mutex<()>,
}

impl Ioas {
    pub(crate) fn new(id: ObjectId, iommu: Arc<Iommu>) -> Self {
        Self {
            id,
            serial: iommu.serial(),
            iommu,
            tables: RwLock::default(),
            areas: Mutex::default(),
            unmap: Mutex::default(),
        }
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// A number that no other object of this [`Iommu`] has or had; what an [`crate::Observer`] knows it by.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Keeps the list of tables, and who is attached to them, as they are.
    pub(crate) fn tables(&self) -> RwLockReadGuard<'_, Vec<Arc<Hwpt>>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps everybody from filling and emptying page tables.
    pub(crate) fn exclusive(&self) -> impl Sized + '_ {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn locked_areas(&self) -> MutexGuard<'_, Areas> {
        self.areas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The IOVA ranges that can be mapped with the devices attached now, and the alignment that mappings need.
    #[must_use]
    pub fn iova_ranges(&self) -> (Ranges, u64) {
        (usable(&self.tables()), PAGE_SIZE)
    }

    /// What is mapped, in order of IOVA.
    #[must_use]
    pub fn areas(&self) -> Vec<AreaView> {
        self.locked_areas().mapped().map(|(range, access, _)| AreaView { range, access }).collect()
    }

    /// How many areas are mapped, and how many bytes they have together.
    #[must_use]
    pub fn size(&self) -> (usize, u64) {
        let areas = self.locked_areas();
        areas.mapped().fold((0, 0), |(areas, bytes), (range, ..)| (areas + 1, bytes + range.len_minus_one() + 1))
    }

    /// Maps `length` bytes of `memory` and returns where.
    ///
    /// `memory` is called after everything else was checked, without a lock, and must return segments of `length` bytes
    /// together.
    ///
    /// # Errors
    /// See [`MapError`]; nothing is changed then.
    pub fn map(
        &self,
        placement: Placement,
        length: u64,
        access: Access,
        memory: impl FnOnce() -> Result<Vec<Segment>, ImportError>,
    ) -> Result<Iova, MapError> {
        check_holds_nothing()?;
        if length == 0 {
            return Err(MapError::Empty);
        }
        if access.is_empty() {
            return Err(MapError::NoAccess);
        }
        let range = {
            let tables = self.tables();
            self.locked_areas().keep(placement, length, access, &usable(&tables))?
        };
        let kept = Kept { ioas: self, range };
        let pages = self.pages(memory, length, access, range.start)?;
        self.publish(range, access, pages)?;
        std::mem::forget(kept);
        Ok(Iova(range.start))
    }

    fn pages(
        &self,
        memory: impl FnOnce() -> Result<Vec<Segment>, ImportError>,
        length: u64,
        access: Access,
        iova: u64,
    ) -> Result<Pages, MapError> {
        let segments = memory()?;
        if let Some(odd) = segments.iter().find(|segment| !segment.is_pages()) {
            return Err(MapError::NotPages(odd.length()));
        }
        let have = segments.iter().map(Segment::length).fold(0, u64::saturating_add);
        if have != length {
            return Err(MapError::WrongLength(have, length));
        }
        if access.contains(Access::WRITE) && !segments.iter().all(Segment::is_writable) {
            return Err(MapError::ReadOnly);
        }
        Ok(Pages::new(&self.iommu.phys, segments, iova)?)
    }

    /// Puts pages into a range that is kept for them, and into every page table.
    fn publish(&self, range: IovaRange, access: Access, pages: Pages) -> Result<(), MapError> {
        let tables = self.tables();
        for (done, hwpt) in tables.iter().enumerate() {
            if let Err(error) = hwpt.map(range, access, &pages) {
                tables[..done].iter().for_each(|hwpt| hwpt.unmap(range, std::iter::once(range)));
                return Err(error.into());
            }
        }
        self.locked_areas().publish(range, pages);
        Ok(())
    }

    /// Unmaps every area in `range`, which must not cut one, and returns the number of bytes that were mapped.
    ///
    /// When it returns, no DMA through these mappings is in flight and none can start. Allocates nothing.
    ///
    /// # Errors
    /// [`UnmapError::NotWhole`] if nothing is mapped in `range` or it cuts an area, [`UnmapError::Busy`] if part of it is
    /// being mapped, [`UnmapError::HoldsSlices`] if this thread holds slices;
    /// nothing is changed then. The whole space ([`IovaRange::ALL`]) may be empty.
    pub fn unmap(&self, range: IovaRange) -> Result<u64, UnmapError> {
        check_holds_nothing()?;
        if range.start > range.last {
            return Err(UnmapError::NotWhole(range));
        }
        let _unmap = self.unmap.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = self.tables();
        let bytes = self.locked_areas().let_go(range)?;
        for hwpt in &*tables {
            let mut next = Some(range);
            let runs = std::iter::from_fn(|| {
                let run = self.locked_areas().first_run(next?)?;
                next = run
                    .last
                    .checked_add(1)
                    .filter(|&start| start <= range.last)
                    .map(|start| IovaRange { start, ..range });
                Some(run)
            });
            hwpt.unmap(range, runs);
        }
        // Nobody is walking the tables or moving bytes through the windows any more.
        loop {
            let Some((range, area)) = self.locked_areas().take_first(range) else { break };
            drop(area);
            self.iommu.observer().unmapped(self.serial, range);
        }
        Ok(bytes)
    }

    /// The table that devices get which are attached to the address space itself, if there is one.
    pub(crate) fn automatic_table(&self) -> Option<Arc<Hwpt>> {
        self.tables().iter().find(|hwpt| hwpt.kind() == HwptKind::Automatic).cloned()
    }

    /// Fills a new page table and keeps it like the areas from now on, for `first` to use if there is one.
    pub(crate) fn add_table(&self, hwpt: Arc<Hwpt>, first: Option<&Arc<Endpoint>>) -> Result<(), ConnectError> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let areas = self.locked_areas();
        let reserved = first.map_or(&[][..], |endpoint| endpoint.reserved());
        areas.check(reserved.iter().copied().chain(beyond_aperture()))?;
        // Dropping a half-filled table frees it: nothing is attached to it yet.
        for (range, access, pages) in areas.mapped() {
            hwpt.map(range, access, pages)?;
        }
        if let Some(endpoint) = first {
            hwpt.users.add(endpoint);
        }
        tables.push(hwpt);
        Ok(())
    }

    /// Undoes [`Ioas::add_table`], for a table that nobody is attached to.
    pub(crate) fn remove_table(&self, hwpt: &Arc<Hwpt>) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.retain(|other| !Arc::ptr_eq(other, hwpt));
    }

    /// Lets `endpoint` use one of the page tables: from now on its reserved ranges are nobody's.
    pub(crate) fn connect(&self, endpoint: &Arc<Endpoint>, hwpt: &Hwpt) -> Result<(), ConnectError> {
        let _tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        self.locked_areas().check(endpoint.reserved().iter().copied())?;
        hwpt.users.add(endpoint);
        Ok(())
    }

    /// Undoes one [`Ioas::connect`], after the endpoint stopped using the table. Returns whether nobody uses it any more.
    pub(crate) fn disconnect(&self, endpoint: &Arc<Endpoint>, hwpt: &Hwpt) -> bool {
        let _tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        hwpt.users.remove(endpoint)
    }
}

/// What may be mapped with the devices that are attached.
fn usable(tables: &Tables) -> Ranges {
    let mut reserved: Vec<IovaRange> = Vec::new();
    for hwpt in tables {
        reserved.extend(beyond_aperture());
        for endpoint in &*hwpt.users.lock() {
            reserved.extend_from_slice(endpoint.reserved());
        }
    }
    Ranges::union(reserved).complement()
}

fn beyond_aperture() -> Option<IovaRange> {
    let start = Hwpt::aperture().last.checked_add(1)?;
    Some(IovaRange { start, last: u64::MAX })
}
