//! An I/O address space: IOVA ranges mapped to pages, mirrored in every page table that was made from it.
//!
//! The areas are the truth and page tables follow: a table made later is filled from the areas. Areas that touch are
//! not merged, as an unmap has to name whole areas.
//!
//! Memory is brought in for the first page table and let go with the last, area by area; without one, an address space is
//! a list. Where can be mapped, and in units of what, is what tables, endpoints and the owner leave at this moment (`space`).
//!
//! # Who waits for whom
//!
//! An area is kept, without pages, while its memory is made ready and written into the tables, and again while it is taken
//! out of them: whoever wants the range meanwhile, or wants to unmap it, meets it. So neither holds the lock on the
//! areas, and mappings of different ranges go on beside each other. The `space`, with the list of tables, is locked for
//! reading by those who fill or empty tables, and for writing by those who add or remove one, or change the rules.

mod areas;
mod holes;
mod presence;
mod software;
mod space;

use std::sync::{Arc, PoisonError};

use iopt::Access;
use thiserror::Error;

use crate::endpoint::Endpoint;
use crate::gate::check_holds_nothing;
use crate::hwpt::{Hwpt, TableFormat};
use crate::ids::ObjectId;
use crate::iommu::Iommu;
use crate::memory::{ImportError, PAGE_SIZE, Pages, PinError, Segment};
use crate::ranges::Ranges;
use crate::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::types::{HoldsSlices, Iova, IovaRange};

use areas::{Areas, NotNow};
pub(crate) use areas::{Backed, Hold};
pub use presence::PresenceError;
pub use software::AccessError;
pub(crate) use software::Accessor;
pub(crate) use space::Space;

/// How often who pinned something is told to let it go.
const TRIES: usize = 100;

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
    /// The IOVA, the length or the memory's offset in its page is not a multiple of what mappings are made of.
    #[error("{0:#x} is not a multiple of {1:#x}, which mappings of this address space are made of")]
    Unaligned(u64, u64),
    /// Neither reading nor writing is asked for.
    #[error("a mapping must be readable or writable")]
    NoAccess,
    /// Part of the range is reserved, by a device or the owner, or beyond what the page tables can address.
    #[error("IOVA {0} is reserved, or beyond what the devices attached can address")]
    Reserved(IovaRange),
    /// Part of the range is mapped already.
    #[error("IOVA {0} overlaps a mapping")]
    Occupied(IovaRange),
    /// No free range is large enough.
    #[error("no free range of {0:#x} bytes")]
    NoSpace(u64),
    /// What is to be mapped lies beyond the end of the pages.
    #[error("the pages have no {1:#x} bytes at {0:#x}")]
    BeyondPages(u64, u64),
    /// Writing is asked for, and the pages were given for reading only.
    #[error("the pages were given for reading only")]
    PagesReadOnly,
    /// What is to be copied is not mapped as a whole.
    #[error("IOVA {0:#x} and length {1:#x} are not mapped as a whole in the source")]
    SourceNotMapped(u64, u64),
    /// The memory cannot be had.
    #[error(transparent)]
    Pages(#[from] PinError),
    /// If it failed half-way, it would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
    /// A page table could not take the mapping.
    #[error(transparent)]
    Table(#[from] iopt::MapError),
}

/// Why the rules of an address space were not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RuleError {
    /// Two of the ranges overlap, or one is empty.
    #[error("the ranges must not overlap, and each must have more than one address")]
    BadRanges,
    /// A device, a page table or the owner reserves part of what is to be allowed, or the other way round.
    #[error("IOVA {0} is reserved by one and allowed by the other")]
    Reserved(IovaRange),
    /// Something is mapped there.
    #[error("IOVA {0} is mapped")]
    Mapped(IovaRange),
    /// A mapping is not made of pages of the processor.
    #[error("IOVA {0} is mapped, and is not made of whole pages of {1:#x} bytes")]
    Misaligned(IovaRange, u64),
    /// The page tables have large pages in them.
    #[error("something is mapped for a device already, perhaps by large pages")]
    InUse,
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
}

/// Why nothing was unmapped. The address space is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UnmapError {
    /// Nothing is mapped in the range.
    #[error("nothing is mapped at IOVA {0}")]
    Empty(IovaRange),
    /// It begins or ends inside an area.
    #[error("IOVA {0} does not consist of whole mappings")]
    NotWhole(IovaRange),
    /// Part of the range is being mapped at this moment.
    #[error("IOVA {0} is being mapped at this moment")]
    Busy(IovaRange),
    /// Something in it is needed by an object, until that is destroyed.
    #[error("IOVA {0} is needed by another object")]
    Locked(IovaRange),
    /// Something in it is pinned by an access that does not let it go, however often it is told to.
    #[error("IOVA {0} is pinned by somebody who does not let it go")]
    Pinned(IovaRange),
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
}

/// Why an area was not cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CutError {
    /// The parts would not be made of what mappings are made of.
    #[error("IOVA {0:#x} is not a multiple of {1:#x}, which mappings of this address space are made of")]
    Unaligned(u64, u64),
    /// It may be mapped by larger pages than the parts would be.
    #[error("IOVA {0:#x} may lie inside a large page")]
    LargePages(u64),
    /// It is being mapped or unmapped, or something in it is pinned.
    #[error("the mapping that IOVA {0:#x} lies in is in use")]
    Busy(u64),
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
}

/// Why an endpoint or a page table cannot use an address space.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("IOVA {0} is mapped or allowed, but the device cannot use it for memory")]
    Conflict(IovaRange),
    #[error("IOVA {0} is mapped, and is not made of pages of {1:#x} bytes")]
    Misaligned(IovaRange, u64),
    #[error(transparent)]
    Pages(#[from] PinError),
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
    /// Whether devices fault there ([`Ioas::make_fault`]).
    pub absent: bool,
}

/// Part of some pages, in bytes.
pub(crate) struct Piece {
    pub(crate) pages: Arc<Pages>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

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
    /// Locked before `areas`.
    space: RwLock<Space>,
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
            space: RwLock::new(Space::new()),
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

    pub(crate) fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// Keeps the page tables, and who is attached to them, as they are.
    pub(crate) fn space(&self) -> RwLockReadGuard<'_, Space> {
        self.space.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps everybody from filling and emptying page tables, for who changes something that mappings depend on.
    pub(crate) fn exclusive(&self) -> RwLockWriteGuard<'_, Space> {
        let space = self.space.write().unwrap_or_else(PoisonError::into_inner);
        self.locked_areas().holes.forget();
        space
    }

    fn locked_areas(&self) -> MutexGuard<'_, Areas> {
        self.areas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The IOVA ranges that can be mapped with the devices attached now, and what mappings are made of, in bytes.
    ///
    /// # Errors
    /// [`HoldsSlices`] if this thread holds slices.
    pub fn iova_ranges(&self) -> Result<(Ranges, u64), HoldsSlices> {
        check_holds_nothing()?;
        let space = self.space();
        Ok((space.usable(), space.alignment()))
    }

    /// Lets mappings with [`Placement::Automatic`] go to `ranges` only, in place of what was allowed before, and keeps devices
    /// away that cannot use all of them; without ranges, they may go anywhere.
    ///
    /// # Errors
    /// [`RuleError::BadRanges`], [`RuleError::Reserved`].
    pub fn allow_iovas(&self, ranges: &[IovaRange]) -> Result<(), RuleError> {
        let empty = ranges.iter().any(|range| range.start >= range.last);
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable_by_key(|range| range.start);
        if empty || sorted.windows(2).any(|pair| pair[0].overlaps(&pair[1])) {
            return Err(RuleError::BadRanges);
        }
        check_holds_nothing()?;
        let (mut space, allowed) = (self.exclusive(), Ranges::union(sorted));
        if let Some(reserved) = space.reserved_in(&allowed) {
            return Err(RuleError::Reserved(reserved));
        }
        space.allowed = allowed;
        Ok(())
    }

    /// Keeps everybody from mapping anything in `range` from now on.
    ///
    /// # Errors
    /// [`RuleError::Mapped`], [`RuleError::Reserved`] if some of it is allowed to be mapped by [`Ioas::allow_iovas`].
    pub fn reserve(&self, range: IovaRange) -> Result<(), RuleError> {
        check_holds_nothing()?;
        let mut space = self.exclusive();
        if let Some(area) = self.locked_areas().overlapping(range).next() {
            return Err(RuleError::Mapped(area));
        }
        if let Some(allowed) = space.allowed.iter().find(|allowed| allowed.overlaps(&range)) {
            return Err(RuleError::Reserved(allowed));
        }
        space.reserved.push(range);
        Ok(())
    }

    /// Whether page tables may have other pages than the processor's.
    ///
    /// # Errors
    /// [`HoldsSlices`] if this thread holds slices.
    pub fn has_large_pages(&self) -> Result<bool, HoldsSlices> {
        check_holds_nothing()?;
        Ok(self.space().large_pages)
    }

    /// Makes everything that is mapped from now on of pages of the processor's, and no others, or undoes that.
    ///
    /// # Errors
    /// With `false`, [`RuleError::InUse`] if something is mapped for devices, and [`RuleError::Misaligned`] if something
    /// mapped is not made of such pages.
    pub fn set_large_pages(&self, large: bool) -> Result<(), RuleError> {
        check_holds_nothing()?;
        let mut space = self.exclusive();
        let areas = self.locked_areas();
        if !large && space.large_pages {
            if !space.tables.is_empty() && areas.mapped().next().is_some() {
                return Err(RuleError::InUse);
            }
            let alignment = space.alignment().max(PAGE_SIZE);
            if let Err(ConnectError::Misaligned(range, page)) = areas.check_alignment(alignment) {
                return Err(RuleError::Misaligned(range, page));
            }
        }
        space.large_pages = large;
        Ok(())
    }

    /// What is mapped, in order of IOVA.
    #[must_use]
    pub fn areas(&self) -> Vec<AreaView> {
        self.locked_areas().all().map(|(range, access, absent)| AreaView { range, access, absent }).collect()
    }

    /// How many areas are mapped, and how many bytes they have together.
    #[must_use]
    pub fn size(&self) -> (usize, u64) {
        let areas = self.locked_areas();
        areas.all().fold((0, 0), |(areas, bytes), (range, ..)| (areas + 1, bytes + range.len_minus_one() + 1))
    }

    /// How many bytes the areas have that lie in `range` as a whole: those that [`Ioas::unmap`] would unmap.
    #[must_use]
    pub fn bytes_in(&self, range: IovaRange) -> u64 {
        let areas = self.locked_areas();
        let whole = areas.all_in(range).filter(|area| range.contains(area));
        whole.fold(0, |bytes, area| bytes.saturating_add(area.len_minus_one().saturating_add(1)))
    }

    /// Maps `length` bytes of `memory`, which begins with a page, and returns where.
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
        self.map_pieces(placement, length, access, 0, || {
            let pages = Pages::of(memory().map_err(PinError::Memory)?, length, access.contains(Access::WRITE))?;
            Ok(vec![Piece { pages, offset: 0, length }])
        })
    }

    /// Maps `length` bytes of `pages`, from `offset` on, at `iova` or anywhere, and returns where. They are brought in now if
    /// there is a page table, and otherwise when there is one.
    ///
    /// # Errors
    /// See [`MapError`]; nothing is changed then.
    pub fn map_pages(
        &self,
        iova: Option<Iova>,
        pages: &Arc<Pages>,
        offset: u64,
        length: u64,
        access: Access,
    ) -> Result<Iova, MapError> {
        if offset.checked_add(length).is_none_or(|end| end > pages.length()) {
            return Err(MapError::BeyondPages(offset, length));
        }
        let piece = Piece { pages: pages.clone(), offset, length };
        self.map_pieces(placement(iova, &piece), length, access, offset, || Ok(vec![piece]))
    }

    /// Maps what `source` (which may be this one) maps from `from` on, `length` bytes, at `iova` or anywhere, and returns
    /// where: the same memory, brought in once.
    ///
    /// # Errors
    /// See [`MapError`]; nothing is changed then.
    pub fn copy(
        &self,
        iova: Option<Iova>,
        source: &Self,
        from: Iova,
        length: u64,
        access: Access,
    ) -> Result<Iova, MapError> {
        if length == 0 {
            return Err(MapError::Empty);
        }
        let range = IovaRange::new(from.0, length).ok_or(MapError::Overflow(from.0, length))?;
        let pieces = source.locked_areas().pieces(range, Access::empty(), None);
        let pieces = pieces.map_err(|_| MapError::SourceNotMapped(from.0, length))?;
        let first = pieces.first().ok_or(MapError::Empty)?;
        self.map_pieces(placement(iova, first), length, access, first.offset, || Ok(pieces))
    }

    /// Maps pieces in a row, an area for each; they have `length` bytes together, and the first begins `offset` bytes into
    /// some page.
    fn map_pieces(
        &self,
        placement: Placement,
        length: u64,
        access: Access,
        offset: u64,
        pieces: impl FnOnce() -> Result<Vec<Piece>, MapError>,
    ) -> Result<Iova, MapError> {
        check_holds_nothing()?;
        if length == 0 {
            return Err(MapError::Empty);
        }
        if access.is_empty() {
            return Err(MapError::NoAccess);
        }
        let range = {
            let space = self.space();
            let mut areas = self.locked_areas();
            let range = space.place(&mut areas, placement, length, offset)?;
            areas.keep(range, access);
            range
        };
        let kept = Kept { ioas: self, range };
        let pieces = pieces()?;
        if access.contains(Access::WRITE) && pieces.iter().any(|piece| !piece.pages.is_writable()) {
            return Err(MapError::PagesReadOnly);
        }
        let mut start = range.start;
        let mut areas: Vec<(IovaRange, Backed)> = pieces
            .into_iter()
            .map(|Piece { pages, offset, length }| {
                let area = IovaRange { start, last: start + (length - 1) };
                start = area.last.wrapping_add(1);
                (area, Backed { pages, offset, pin: None })
            })
            .collect();
        self.publish(&mut areas, access)?;
        std::mem::forget(kept);
        Ok(Iova(range.start))
    }

    /// Puts pages into ranges that are kept for them, and into every page table.
    fn publish(&self, areas: &mut Vec<(IovaRange, Backed)>, access: Access) -> Result<(), MapError> {
        // Memory is brought in without a lock, so it is found out again afterwards whether somebody needs it.
        let mut space = self.space();
        while !space.tables.is_empty() && areas.iter().any(|(_, backed)| backed.pin.is_none()) {
            drop(space);
            for (range, backed) in &mut *areas {
                backed.pin = Some(backed.pages.pin(&self.iommu.phys, range.start, backed.offset)?);
            }
            space = self.space();
        }
        if space.tables.is_empty() {
            areas.iter_mut().for_each(|(_, backed)| backed.pin = None);
        }
        for (done, hwpt) in space.tables.iter().enumerate() {
            for (filled, (range, backed)) in areas.iter().enumerate() {
                if let Err(error) = hwpt.map(*range, access, backed, space.largest_page()) {
                    hwpt.take_back(areas[..filled].iter().map(|(range, _)| *range));
                    space.tables[..done].iter().for_each(|hwpt| hwpt.take_back(areas.iter().map(|(range, _)| *range)));
                    return Err(error.into());
                }
            }
        }
        let mut published = self.locked_areas();
        areas.drain(..).for_each(|(range, backed)| published.publish(range, access, backed));
        Ok(())
    }

    /// Makes two areas of the one that `iova` lies in, if it is not the first address of one: what is mapped stays as it is, and
    /// either part can be unmapped by itself from then on.
    ///
    /// # Errors
    /// See [`CutError`].
    pub fn cut(&self, iova: Iova) -> Result<(), CutError> {
        check_holds_nothing()?;
        let space = self.space();
        self.locked_areas().cut(iova.0, space.alignment(), space.large_pages && !space.tables.is_empty())
    }

    /// A bit for each size of pages that all page tables can have, as far as there are any; what 2^n bytes have is bit n.
    ///
    /// # Errors
    /// [`HoldsSlices`] if this thread holds slices.
    pub fn page_sizes(&self) -> Result<u64, HoldsSlices> {
        check_holds_nothing()?;
        let space = self.space();
        Ok(space.tables.iter().fold(u64::MAX, |sizes, hwpt| sizes & hwpt.format().page_sizes()))
    }

    /// The pages that are mapped, each once for every area.
    #[must_use]
    pub fn pages(&self) -> Vec<Arc<Pages>> {
        self.locked_areas().pages().cloned().collect()
    }

    /// Unmaps every area in `range`, which must not cut one, and returns the number of bytes that were mapped.
    ///
    /// When it returns, no DMA through these mappings is in flight and none can start. Software that pinned something there
    /// ([`IoasAccess`](crate::IoasAccess)) is told to let it go first. Allocates nothing if nobody did.
    ///
    /// # Errors
    /// [`UnmapError::Empty`] if nothing is mapped in `range`, [`UnmapError::NotWhole`] if it cuts an area, [`UnmapError::Busy`] if part of it is
    /// being mapped, [`UnmapError::Locked`] or [`UnmapError::Pinned`] if somebody keeps it,
    /// [`UnmapError::HoldsSlices`] if this thread holds slices;
    /// nothing is changed then. The whole space ([`IovaRange::ALL`]) may be empty.
    pub fn unmap(&self, range: IovaRange) -> Result<u64, UnmapError> {
        check_holds_nothing()?;
        if range.start > range.last {
            return Err(UnmapError::NotWhole(range));
        }
        for _ in 0..TRIES {
            match self.try_unmap(range) {
                Ok(bytes) => return Ok(bytes),
                // Without a lock, as who is told to let something go calls.
                Err(NotNow::Pinned(area)) => self.notify(area),
                Err(NotNow::Refused(error)) => {
                    self.locked_areas().allow_again(range);
                    return Err(error);
                }
            }
        }
        self.locked_areas().allow_again(range);
        Err(UnmapError::Pinned(range))
    }

    fn try_unmap(&self, range: IovaRange) -> Result<u64, NotNow> {
        let _unmap = self.unmap.lock().unwrap_or_else(PoisonError::into_inner);
        let space = self.space();
        let bytes = self.locked_areas().let_go(range)?;
        for hwpt in &space.tables {
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

    /// The table of a format that devices get which are attached to the address space itself, if there is one.
    pub(crate) fn automatic_table(&self, format: TableFormat) -> Option<Arc<Hwpt>> {
        let fits = |hwpt: &&Arc<Hwpt>| hwpt.is_automatic() && hwpt.format() == format;
        self.space().tables.iter().find(fits).cloned()
    }

    /// Fills a new page table and keeps it like the areas from now on, for `first` to use if there is one.
    pub(crate) fn add_table(&self, hwpt: Arc<Hwpt>, first: Option<&Arc<Endpoint>>) -> Result<(), ConnectError> {
        let mut space = self.exclusive();
        let mut areas = self.locked_areas();
        let reserved = first.map_or(&[][..], |endpoint| endpoint.reserved());
        check_allowed(&space, reserved)?;
        areas.check(reserved.iter().copied().chain(hwpt.beyond_aperture()))?;
        areas.check_alignment(space.alignment().max(hwpt.page_size()))?;
        let filled = areas.pin(&self.iommu.phys).map_err(ConnectError::Pages).and_then(|()| {
            // Dropping a half-filled table frees it: nothing is attached to it yet.
            areas
                .mapped()
                .try_for_each(|area| Ok(hwpt.map(area.range, area.access, area.backed, space.largest_page())?))
        });
        if filled.is_err() {
            drop(hwpt);
            if space.tables.is_empty() {
                areas.unpin();
            }
            return filled;
        }
        if let Some(endpoint) = first {
            hwpt.users.add(endpoint);
        }
        space.tables.push(hwpt);
        Ok(())
    }

    /// Undoes [`Ioas::add_table`], for a table that nobody is attached to.
    pub(crate) fn remove_table(&self, hwpt: &Arc<Hwpt>) {
        let mut space = self.exclusive();
        space.tables.retain(|other| !Arc::ptr_eq(other, hwpt));
        if space.tables.is_empty() {
            self.locked_areas().unpin();
        }
    }

    /// Lets `endpoint` use one of the page tables: from now on its reserved ranges are nobody's.
    pub(crate) fn connect(&self, endpoint: &Arc<Endpoint>, hwpt: &Hwpt) -> Result<(), ConnectError> {
        let space = self.exclusive();
        check_allowed(&space, endpoint.reserved())?;
        self.locked_areas().check(endpoint.reserved().iter().copied())?;
        hwpt.users.add(endpoint);
        Ok(())
    }

    /// Undoes one [`Ioas::connect`], after the endpoint stopped using the table. Returns whether nobody uses it any more.
    pub(crate) fn disconnect(&self, endpoint: &Arc<Endpoint>, hwpt: &Hwpt) -> bool {
        let _space = self.exclusive();
        hwpt.users.remove(endpoint)
    }
}

/// At `iova`, or where large pages fit.
fn placement(iova: Option<Iova>, first: &Piece) -> Placement {
    iova.map_or(Placement::Automatic { like: first.pages.address().wrapping_add(first.offset) }, Placement::Fixed)
}

/// Fails if some of what is allowed to be mapped is reserved.
fn check_allowed(space: &Space, reserved: &[IovaRange]) -> Result<(), ConnectError> {
    let overlaps = |range: &IovaRange| space.allowed.iter().any(|allowed| allowed.overlaps(range));
    reserved.iter().copied().find(overlaps).map_or(Ok(()), |range| Err(ConnectError::Conflict(range)))
}
