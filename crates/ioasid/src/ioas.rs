//! An I/O address space: IOVA ranges mapped to pages, mirrored in every page table that was made from it.
//!
//! The areas are the truth and page tables follow: a table made later is filled from the areas. Areas that touch are
//! not merged, as an unmap has to name whole areas.
//!
//! What is reserved is not stored: it is what the endpoints attached at this moment reserve.
//!
//! Memory is made ready (found, mapped here, brought in) without the lock, as that may take as long as its owner likes.
//! Meanwhile an area without pages keeps the range: whoever wants the range, or wants to unmap it, meets it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iopt::{Access, EmptyTables};
use thiserror::Error;

use crate::endpoint::Endpoint;
use crate::hwpt::Hwpt;
use crate::ids::ObjectId;
use crate::iommu::Iommu;
use crate::memory::{ImportError, OutOfPhysicalSpace, PAGE_SIZE, Pages, Segment};
use crate::ranges::Ranges;
use crate::types::{Iova, IovaRange};

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

struct Area {
    last: u64,
    access: Access,
    /// None while the memory is being made ready.
    pages: Option<Arc<Pages>>,
}

#[derive(Default)]
struct State {
    areas: BTreeMap<u64, Area>,
    /// The page tables that mirror the areas. All of them have endpoints attached.
    hwpts: Vec<Arc<Hwpt>>,
}

/// An I/O address space.
pub struct Ioas {
    id: ObjectId,
    serial: u64,
    iommu: Arc<Iommu>,
    state: Mutex<State>,
}

impl Ioas {
    pub(crate) fn new(id: ObjectId, iommu: Arc<Iommu>) -> Self {
        Self { id, serial: iommu.serial(), iommu, state: Mutex::default() }
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The IOVA ranges that can be mapped with the devices attached now, and the alignment that mappings need.
    #[must_use]
    pub fn iova_ranges(&self) -> (Ranges, u64) {
        (self.lock().usable(), PAGE_SIZE)
    }

    /// What is mapped, in order of IOVA.
    #[must_use]
    pub fn areas(&self) -> Vec<AreaView> {
        let view = |(&start, area): (&u64, &Area)| AreaView {
            range: IovaRange { start, last: area.last },
            access: area.access,
        };
        self.lock().mapped().map(view).collect()
    }

    /// How many areas are mapped, and how many bytes they have together.
    #[must_use]
    pub fn size(&self) -> (usize, u64) {
        let state = self.lock();
        state.mapped().fold((0, 0), |(areas, bytes), (start, area)| (areas + 1, bytes + (area.last - start) + 1))
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
        if length == 0 {
            return Err(MapError::Empty);
        }
        if access.is_empty() {
            return Err(MapError::NoAccess);
        }
        let range = {
            let mut state = self.lock();
            let range = match placement {
                Placement::Fixed(iova) => state.check_fixed(iova.0, length)?,
                Placement::Automatic { like } => state.find_free(length, like)?,
            };
            state.areas.insert(range.start, Area { last: range.last, access, pages: None });
            range
        };
        // Whatever comes of it, the range does not stay kept.
        let result =
            self.pages(memory, length, access, range.start).and_then(|pages| self.publish(range, access, pages));
        if result.is_err() {
            self.lock().areas.remove(&range.start);
        }
        result.map(|()| Iova(range.start))
    }

    fn pages(
        &self,
        memory: impl FnOnce() -> Result<Vec<Segment>, ImportError>,
        length: u64,
        access: Access,
        iova: u64,
    ) -> Result<Pages, MapError> {
        let segments = memory()?;
        let have = segments.iter().map(Segment::length).sum();
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
        let mut state = self.lock();
        for (done, hwpt) in state.hwpts.iter().enumerate() {
            if let Err((filled, error)) = fill(hwpt, range.start, access, &pages, &self.iommu) {
                let mut empty = EmptyTables::none();
                if let Some(filled) = IovaRange::new(range.start, filled) {
                    hwpt.unmap(filled, &mut empty);
                }
                state.hwpts[..done].iter().for_each(|hwpt| hwpt.unmap(range, &mut empty));
                state.hwpts[..=done].iter().for_each(|hwpt| hwpt.quiesce());
                self.iommu.arena.free(empty);
                return Err(error.into());
            }
        }
        state.areas.insert(range.start, Area { last: range.last, access, pages: Some(Arc::new(pages)) });
        Ok(())
    }

    /// Unmaps every area in `range`, which must not cut one, and returns the number of bytes that were mapped.
    ///
    /// When it returns, no DMA through these mappings is in flight and none can start. Allocates nothing.
    ///
    /// # Errors
    /// [`UnmapError::NotWhole`] if nothing is mapped in `range` or it cuts an area, [`UnmapError::Busy`] if part of it is
    /// being mapped; nothing is changed then. The whole space ([`IovaRange::ALL`]) may be empty.
    pub fn unmap(&self, range: IovaRange) -> Result<u64, UnmapError> {
        let mut state = self.lock();
        let mut bytes = 0u64;
        for area in state.overlapping(range) {
            if state.areas.get(&area.start).is_some_and(|area| area.pages.is_none()) {
                return Err(UnmapError::Busy(area));
            }
            if !range.contains(&area) {
                return Err(UnmapError::NotWhole(range));
            }
            bytes = bytes.saturating_add(area.len_minus_one() + 1);
        }
        if bytes == 0 && range != IovaRange::ALL {
            return Err(UnmapError::NotWhole(range));
        }
        let mut empty = EmptyTables::none();
        for area in state.overlapping(range) {
            state.hwpts.iter().for_each(|hwpt| hwpt.unmap(area, &mut empty));
        }
        state.hwpts.iter().for_each(|hwpt| hwpt.quiesce());
        // Nobody is walking the tables or moving bytes through the windows any more.
        self.iommu.arena.free(empty);
        while let Some(area) = state.first_overlapping(range) {
            state.areas.remove(&area.start);
            self.iommu.observer().unmapped(self.serial, area);
        }
        Ok(bytes)
    }

    /// A page table of this address space for `endpoint`, together with whether `make` was called for it, which it is
    /// when there is none yet.
    pub(crate) fn connect(
        &self,
        endpoint: &Arc<Endpoint>,
        make: impl FnOnce() -> Result<Arc<Hwpt>, iopt::MapError>,
    ) -> Result<(Arc<Hwpt>, bool), ConnectError> {
        let mut state = self.lock();
        let unusable = endpoint.reserved().iter().copied().chain(beyond_aperture());
        if let Some(area) = unusable.flat_map(|range| state.overlapping(range)).next() {
            return Err(ConnectError::Conflict(area));
        }
        if let Some(hwpt) = state.hwpts.first() {
            hwpt.endpoints().push(endpoint.clone());
            return Ok((hwpt.clone(), false));
        }
        let hwpt = make()?;
        // Dropping a half-filled table frees it: nothing is attached to it yet.
        for (&start, area) in state.mapped() {
            if let Some(pages) = &area.pages {
                fill(&hwpt, start, area.access, pages, &self.iommu).map_err(|(_, error)| error)?;
            }
        }
        hwpt.endpoints().push(endpoint.clone());
        state.hwpts.push(hwpt.clone());
        Ok((hwpt, true))
    }

    /// Undoes one [`Ioas::connect`], after the endpoint stopped using the table. Returns whether the table is gone.
    pub(crate) fn disconnect(&self, endpoint: &Arc<Endpoint>, hwpt: &Arc<Hwpt>) -> bool {
        let mut state = self.lock();
        let unused = {
            let mut endpoints = hwpt.endpoints();
            if let Some(at) = endpoints.iter().position(|other| Arc::ptr_eq(other, endpoint)) {
                endpoints.swap_remove(at);
            }
            endpoints.is_empty()
        };
        if unused {
            state.hwpts.retain(|other| !Arc::ptr_eq(other, hwpt));
        }
        unused
    }
}

/// Maps `pages` at `start` in one table; on an error, tells how many bytes of them were mapped.
fn fill(hwpt: &Hwpt, start: u64, access: Access, pages: &Pages, iommu: &Iommu) -> Result<(), (u64, iopt::MapError)> {
    let mut done = 0;
    for (pa, length) in pages.ranges() {
        let mut empty = EmptyTables::none();
        if let Err(error) = hwpt.table.map(start + done, pa, length, access, &mut empty) {
            hwpt.quiesce();
            iommu.arena.free(empty);
            return Err((done, error));
        }
        done += length;
    }
    Ok(())
}

fn beyond_aperture() -> Option<IovaRange> {
    let start = Hwpt::aperture().last.checked_add(1)?;
    Some(IovaRange { start, last: u64::MAX })
}

impl State {
    /// The areas that have pages.
    fn mapped(&self) -> impl Iterator<Item = (&u64, &Area)> + '_ {
        self.areas.iter().filter(|(_, area)| area.pages.is_some())
    }

    /// The ranges of the areas that have something in common with `range`.
    fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = IovaRange> + '_ {
        let before = self.areas.range(..range.start).next_back();
        before
            .into_iter()
            .chain(self.areas.range(range.start..=range.last))
            .map(|(&start, area)| IovaRange { start, last: area.last })
            .filter(move |area| area.overlaps(&range))
    }

    fn first_overlapping(&self, range: IovaRange) -> Option<IovaRange> {
        self.overlapping(range).next()
    }

    /// What may be mapped with the devices that are attached.
    fn usable(&self) -> Ranges {
        let mut reserved: Vec<IovaRange> = Vec::new();
        for hwpt in &self.hwpts {
            reserved.extend(beyond_aperture());
            for endpoint in &*hwpt.endpoints() {
                reserved.extend_from_slice(endpoint.reserved());
            }
        }
        Ranges::union(reserved).complement()
    }

    fn check_fixed(&self, iova: u64, length: u64) -> Result<IovaRange, MapError> {
        if (iova | length) & (PAGE_SIZE - 1) != 0 {
            return Err(MapError::Unaligned(iova, length));
        }
        let range = IovaRange::new(iova, length).ok_or(MapError::Overflow(iova, length))?;
        if !self.usable().contains(&range) {
            return Err(MapError::Reserved(range));
        }
        if self.overlapping(range).next().is_some() {
            return Err(MapError::Occupied(range));
        }
        Ok(range)
    }

    /// The lowest free range, never at 0, which programs take for "none".
    fn find_free(&self, length: u64, like: u64) -> Result<IovaRange, MapError> {
        if length & (PAGE_SIZE - 1) != 0 {
            return Err(MapError::Unaligned(like, length));
        }
        let largest = length.checked_next_power_of_two().unwrap_or(1 << 63).min(1 << 21);
        let alignment = if like == 0 { largest } else { largest.min(1 << like.trailing_zeros()) };
        if alignment < PAGE_SIZE {
            return Err(MapError::Unaligned(like, length));
        }
        for hole in self.usable().iter() {
            let mut next = hole.start.max(PAGE_SIZE);
            loop {
                let candidate = next
                    .checked_next_multiple_of(alignment)
                    .and_then(|start| IovaRange::new(start, length))
                    .filter(|range| range.last <= hole.last.min(u64::MAX - PAGE_SIZE));
                let Some(candidate) = candidate else { break };
                match self.overlapping(candidate).last() {
                    None => return Ok(candidate),
                    Some(area) => match area.last.checked_add(1) {
                        Some(after) => next = after,
                        None => break,
                    },
                }
            }
        }
        Err(MapError::NoSpace(length))
    }
}
