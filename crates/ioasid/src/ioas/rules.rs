//! Where an address space can map, and in units of what: what its mirrors, the devices attached and its owner leave at
//! this moment.

use std::sync::Arc;

use crate::base::ranges::Ranges;
use crate::base::types::{Iova, IovaRange};
use crate::memory::PAGE_SIZE;

use super::holes::Want;
use super::links::Links;
use super::{Accessor, ConnectError, Ioas, MapError, Placement, RuleError, State};

/// The largest page that an IOVA is chosen for.
const LARGE_PAGE: u64 = 1 << 21;

/// The rules that the owner made, and what devices reserve.
pub(super) struct Rules {
    /// Where mappings without an IOVA of their own may go; anywhere if it is empty.
    allowed: Ranges,
    /// What the owner reserved.
    reserved: Vec<IovaRange>,
    /// What the devices attached reserve, once for each attachment.
    of_devices: Vec<IovaRange>,
    /// Whether mappings may be made of other pages than the processor's.
    large_pages: bool,
}

/// What mirrors and rules leave.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// What can be mapped.
    usable: Ranges,
    /// What of it may be chosen for a mapping.
    automatic: Ranges,
}

impl Rules {
    pub(super) fn new() -> Self {
        Self { allowed: Ranges::default(), reserved: Vec::new(), of_devices: Vec::new(), large_pages: true }
    }

    /// What mappings have to be made of, in bytes.
    pub(super) fn alignment(&self, links: &Links, accessors: &[Arc<Accessor>]) -> u64 {
        let pages = if self.large_pages { 1 } else { PAGE_SIZE };
        let mirrors = links.capabilities().map(|mirror| mirror.page_size());
        mirrors.chain(accessors.iter().map(|accessor| accessor.page_size())).fold(pages, u64::max)
    }

    /// log2 of the largest page that mappings may be made of.
    pub(super) fn largest_page(&self) -> u32 {
        if self.large_pages { u32::MAX } else { PAGE_SIZE.ilog2() }
    }

    pub(super) fn has_large_pages(&self) -> bool {
        self.large_pages
    }

    fn limits(&self, links: &Links) -> Limits {
        let mut unusable: Vec<IovaRange> = self.reserved.iter().chain(&self.of_devices).copied().collect();
        for mirror in links.capabilities() {
            unusable.extend(Ranges::union([mirror.aperture]).complement().iter());
            unusable.extend(&mirror.reserved);
        }
        let usable = Ranges::union(unusable).complement();
        let ends = Ranges::union([IovaRange { start: PAGE_SIZE, last: u64::MAX - PAGE_SIZE }]);
        let allowed = if self.allowed.is_empty() { &ends } else { &self.allowed };
        let automatic = usable.intersection(allowed).intersection(&ends);
        Limits { usable, automatic }
    }

    /// Fails if some of what is allowed to be mapped is `reserved`.
    pub(super) fn check_allowed(&self, reserved: &[IovaRange]) -> Result<(), ConnectError> {
        let overlaps = |range: &IovaRange| self.allowed.iter().any(|allowed| allowed.overlaps(range));
        reserved.iter().copied().find(overlaps).map_or(Ok(()), |range| Err(ConnectError::Conflict(range)))
    }
}

impl State {
    pub(super) fn alignment(&self) -> u64 {
        self.rules.alignment(&self.links, &self.accessors)
    }

    fn usable(&self) -> &Ranges {
        &self.limits().usable
    }

    fn limits(&self) -> &Limits {
        let limits = self.limits.get_or_init(|| self.rules.limits(&self.links));
        debug_assert_eq!(*limits, self.rules.limits(&self.links), "the limits changed, and nobody said so");
        limits
    }

    /// The mirrors, the rules or the accesses of software are others now: so is what can be mapped, and where there is
    /// room.
    pub(super) fn limits_changed(&mut self) {
        self.areas.holes.forget();
        self.limits.take();
    }

    /// A free range of `length` bytes for memory that begins `offset` bytes into a page.
    pub(super) fn place(&mut self, placement: Placement, length: u64, offset: u64) -> Result<IovaRange, MapError> {
        let alignment = self.alignment();
        if !length.is_multiple_of(alignment) {
            return Err(MapError::Unaligned(length, alignment));
        }
        let range = match placement {
            Placement::Fixed(iova) => self.check(iova, length)?,
            Placement::Automatic { like } => self.find(length, like)?,
        };
        if !(offset % PAGE_SIZE).is_multiple_of(alignment) {
            return Err(MapError::Unaligned(offset, alignment));
        }
        Ok(range)
    }

    fn check(&self, Iova(iova): Iova, length: u64) -> Result<IovaRange, MapError> {
        if !iova.is_multiple_of(self.alignment()) {
            return Err(MapError::Unaligned(iova, self.alignment()));
        }
        let range = IovaRange::new(iova, length).ok_or(MapError::Overflow(iova, length))?;
        if !self.usable().contains(&range) {
            return Err(MapError::Reserved(range));
        }
        match self.areas.overlapping(range).next() {
            Some(_) => Err(MapError::Occupied(range)),
            None => Ok(range),
        }
    }

    /// The lowest free range that has, in its large page, the place that `like` has in its own: so whatever page of the
    /// memory can be a large one can be one in a page table, too. What is shorter than a large page has the place in as
    /// large a block as it needs. Never at 0, which programs take for "none", nor in the last page, where addresses
    /// behind an area wrap.
    fn find(&mut self, length: u64, like: u64) -> Result<IovaRange, MapError> {
        let block = length.checked_next_power_of_two().filter(|_| length < u64::MAX / 2);
        let block = block.ok_or(MapError::Overflow(0, length))?.clamp(PAGE_SIZE, LARGE_PAGE);
        let smallest = self.alignment();
        if !like.is_multiple_of(smallest) {
            return Err(MapError::Unaligned(like, smallest));
        }
        let want = Want { length, alignment: block, offset: like & (block - 1) };
        let found = self.search(&want);
        self.areas.holes.searched(want, found.map_or(u64::MAX, |range| range.start));
        found.ok_or(MapError::NoSpace(length))
    }

    fn search(&self, want: &Want) -> Option<IovaRange> {
        let from = self.areas.holes.search_from(want);
        for usable in self.limits().automatic.iter() {
            let mut next = usable.start.max(from);
            while let Some(candidate) = want.first_at(next).filter(|range| range.last <= usable.last) {
                let Some(area) = self.areas.overlapping(candidate).last() else { return Some(candidate) };
                let Some(behind) = area.last.checked_add(1) else { break };
                next = behind;
            }
        }
        None
    }
}

impl Ioas {
    /// The IOVA ranges that can be mapped with the mirrors and devices that there are now, and what mappings are made
    /// of, in bytes.
    #[must_use]
    pub fn iova_ranges(&self) -> (Ranges, u64) {
        let state = self.lock();
        (state.usable().clone(), state.alignment())
    }

    /// Lets mappings with [`Placement::Automatic`] go to `ranges` only, in place of what was allowed before, and keeps
    /// devices away that cannot use all of them; without ranges, they may go anywhere.
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
        let (mut state, allowed) = (self.lock(), Ranges::union(sorted));
        let reserved = state.usable().complement();
        let conflict = reserved.iter().find(|reserved| allowed.iter().any(|range| range.overlaps(reserved)));
        if let Some(reserved) = conflict {
            return Err(RuleError::Reserved(reserved));
        }
        state.rules.allowed = allowed;
        state.limits_changed();
        Ok(())
    }

    /// From now on, nothing can be mapped in `range`.
    ///
    /// # Errors
    /// [`RuleError::Mapped`], [`RuleError::Reserved`] if some of it is allowed to be mapped by [`Ioas::allow_iovas`].
    pub fn reserve(&self, range: IovaRange) -> Result<(), RuleError> {
        let mut state = self.lock();
        if let Some(area) = state.areas.overlapping(range).next() {
            return Err(RuleError::Mapped(area));
        }
        if let Some(allowed) = state.rules.allowed.iter().find(|allowed| allowed.overlaps(&range)) {
            return Err(RuleError::Reserved(allowed));
        }
        state.rules.reserved.push(range);
        state.limits_changed();
        Ok(())
    }

    /// Whether mirrors may have other pages than the processor's.
    #[must_use]
    pub fn has_large_pages(&self) -> bool {
        self.lock().rules.large_pages
    }

    /// Makes everything that is mapped from now on of pages of the processor's, and no others, or undoes that.
    ///
    /// # Errors
    /// With `false`, [`RuleError::InUse`] if something is mapped for devices, and [`RuleError::Misaligned`] if
    /// something mapped is not made of such pages.
    pub fn set_large_pages(&self, large: bool) -> Result<(), RuleError> {
        let mut state = self.lock();
        if !large && state.rules.large_pages {
            if !state.links.is_empty() && !state.areas.is_empty() {
                return Err(RuleError::InUse);
            }
            let alignment = state.alignment().max(PAGE_SIZE);
            if let Err(ConnectError::Misaligned(range, page)) = state.areas.check_alignment(alignment) {
                return Err(RuleError::Misaligned(range, page));
            }
        }
        state.rules.large_pages = large;
        state.limits_changed();
        Ok(())
    }

    /// A bit for each size of pages that all mirrors can have, as far as there are any; what 2^n bytes have is bit n.
    #[must_use]
    pub fn page_sizes(&self) -> u64 {
        self.lock().links.capabilities().fold(u64::MAX, |sizes, mirror| sizes & mirror.page_sizes)
    }

    /// From now on, nothing can be mapped in what a device reserves, until [`Ioas::disconnect`].
    pub(crate) fn connect(&self, reserved: &[IovaRange]) -> Result<(), ConnectError> {
        let mut state = self.lock();
        state.rules.check_allowed(reserved)?;
        state.areas.check(reserved.iter().copied())?;
        state.rules.of_devices.extend_from_slice(reserved);
        state.limits_changed();
        Ok(())
    }

    /// Undoes one [`Ioas::connect`]. Allocates nothing.
    pub(crate) fn disconnect(&self, reserved: &[IovaRange]) {
        let mut state = self.lock();
        for range in reserved {
            if let Some(at) = state.rules.of_devices.iter().position(|other| other == range) {
                state.rules.of_devices.swap_remove(at);
            }
        }
        state.limits_changed();
    }
}
