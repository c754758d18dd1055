//! Where an address space can map: what its page tables, the devices attached and its owner leave.

use std::sync::Arc;

use crate::hwpt::Hwpt;
use crate::memory::PAGE_SIZE;
use crate::ranges::Ranges;
use crate::types::{Iova, IovaRange};

use super::areas::Areas;
use super::holes::Want;
use super::{Accessor, MapError, Placement};

/// The largest page that an automatic IOVA is aligned for.
const LARGE_PAGE: u64 = 1 << 21;

/// The page tables of an address space, and the rules that its owner made.
pub(crate) struct Space {
    /// Those that mirror the areas.
    pub(super) tables: Vec<Arc<Hwpt>>,
    /// Where mappings without an IOVA of their own may go; anywhere if it is empty.
    pub(super) allowed: Ranges,
    /// What the owner reserved.
    pub(super) reserved: Vec<IovaRange>,
    /// Software that reads and writes without DMA.
    pub(super) accessors: Vec<Arc<Accessor>>,
    /// Whether mappings may be made of other pages than the processor's.
    pub(super) large_pages: bool,
}

impl Space {
    pub(super) fn new() -> Self {
        Self {
            tables: Vec::new(),
            allowed: Ranges::default(),
            reserved: Vec::new(),
            accessors: Vec::new(),
            large_pages: true,
        }
    }

    /// What mappings have to be made of, in bytes.
    pub(super) fn alignment(&self) -> u64 {
        let pages = if self.large_pages { 1 } else { PAGE_SIZE };
        let tables = self.tables.iter().map(|hwpt| hwpt.page_size());
        tables.chain(self.accessors.iter().map(|accessor| accessor.page_size())).fold(pages, u64::max)
    }

    /// log2 of the largest page that mappings may be made of.
    pub(super) fn largest_page(&self) -> u32 {
        if self.large_pages { u32::MAX } else { PAGE_SIZE.ilog2() }
    }

    /// What nothing can be mapped at.
    fn reserved(&self) -> Ranges {
        let mut reserved = self.reserved.clone();
        for hwpt in &self.tables {
            reserved.extend(hwpt.beyond_aperture());
            for endpoint in &*hwpt.users.lock() {
                reserved.extend_from_slice(endpoint.reserved());
            }
        }
        Ranges::union(reserved)
    }

    /// What can be mapped.
    pub(super) fn usable(&self) -> Ranges {
        self.reserved().complement()
    }

    /// Where in `allowed` something is reserved.
    pub(super) fn reserved_in(&self, allowed: &Ranges) -> Option<IovaRange> {
        self.reserved().iter().find(|reserved| allowed.iter().any(|range| range.overlaps(reserved)))
    }

    /// A free range of `length` bytes for memory that begins `offset` bytes into a page.
    pub(super) fn place(
        &self,
        areas: &mut Areas,
        placement: Placement,
        length: u64,
        offset: u64,
    ) -> Result<IovaRange, MapError> {
        let alignment = self.alignment();
        if !length.is_multiple_of(alignment) {
            return Err(MapError::Unaligned(length, alignment));
        }
        let range = match placement {
            Placement::Fixed(iova) => self.check(areas, iova, length)?,
            Placement::Automatic { like } => self.find(areas, length, like)?,
        };
        if !(offset % PAGE_SIZE).is_multiple_of(alignment) {
            return Err(MapError::Unaligned(offset, alignment));
        }
        Ok(range)
    }

    fn check(&self, areas: &Areas, Iova(iova): Iova, length: u64) -> Result<IovaRange, MapError> {
        if !iova.is_multiple_of(self.alignment()) {
            return Err(MapError::Unaligned(iova, self.alignment()));
        }
        let range = IovaRange::new(iova, length).ok_or(MapError::Overflow(iova, length))?;
        if !self.usable().contains(&range) {
            return Err(MapError::Reserved(range));
        }
        match areas.overlapping(range).next() {
            Some(_) => Err(MapError::Occupied(range)),
            None => Ok(range),
        }
    }

    /// The lowest free range, never at 0, which programs take for "none", and with the offset in its page that `like` has.
    fn find(&self, areas: &mut Areas, length: u64, like: u64) -> Result<IovaRange, MapError> {
        let size = length.checked_next_power_of_two().filter(|_| length < u64::MAX / 2);
        let size = size.ok_or(MapError::Overflow(0, length))?;
        let natural = if like == 0 { size } else { size.min(1 << like.trailing_zeros()) };
        let alignment = natural.min(LARGE_PAGE);
        if alignment < self.alignment() {
            return Err(MapError::Unaligned(like, self.alignment()));
        }
        let ends = IovaRange { start: PAGE_SIZE, last: u64::MAX - PAGE_SIZE };
        let allowed = if self.allowed.is_empty() { Ranges::union([ends]) } else { self.allowed.clone() };
        // What begins inside a page of memory begins inside a page there.
        let offset = like % PAGE_SIZE;
        let want = Want { length, alignment: if offset == 0 { alignment } else { PAGE_SIZE }, offset };
        let from = areas.holes.search_from(&want);
        for usable in self.usable().intersection(&allowed).intersection(&Ranges::union([ends])).iter() {
            let mut next = usable.start.max(from);
            loop {
                let candidate = want.first_at(next).filter(|range| range.last <= usable.last);
                let Some(candidate) = candidate else { break };
                match areas.overlapping(candidate).last() {
                    None => {
                        areas.holes.searched(want, candidate.start);
                        return Ok(candidate);
                    }
                    Some(area) => match area.last.checked_add(1) {
                        Some(after) => next = after,
                        None => break,
                    },
                }
            }
        }
        areas.holes.searched(want, u64::MAX);
        Err(MapError::NoSpace(length))
    }
}
