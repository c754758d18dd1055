//! The areas of an address space, and what each of them is going through.

use std::collections::BTreeMap;
use std::sync::Arc;

use iopt::Access;

use crate::memory::{Pages, PhysSpace, Pin, PinError};
use crate::types::IovaRange;

use super::{ConnectError, UnmapError};

/// One area. Its range is its own from the first state to the end of the last.
pub(super) struct Area {
    last: u64,
    access: Access,
    state: State,
}

enum State {
    /// Its memory is being made ready, and written into the page tables.
    Coming,
    /// Its pages are in every page table.
    Mapped(Backed),
    /// It is being taken out of the page tables; until that is done, DMA to its pages may be in flight.
    #[allow(dead_code, reason = "the pages are kept there, and nothing else is done with them")]
    Leaving(Backed),
}

/// What an area is backed by.
#[derive(Clone)]
pub(crate) struct Backed {
    pub(crate) pages: Arc<Pages>,
    /// Where in the pages the area begins, in bytes.
    pub(crate) offset: u64,
    /// As long as there is a page table.
    pub(crate) pin: Option<Pin>,
}

/// An area whose pages are in the page tables, as far as there are any.
pub(super) struct Mapped<'a> {
    pub(super) range: IovaRange,
    pub(super) access: Access,
    pub(super) backed: &'a Backed,
}

impl Mapped<'_> {
    /// Whether the area, in IOVA space and in memory, is made of pages of so many bytes.
    fn is_aligned(&self, alignment: u64) -> bool {
        (self.range.start | self.range.last.wrapping_add(1) | self.backed.offset).is_multiple_of(alignment)
    }
}

/// All areas, by their first address.
#[derive(Default)]
pub(super) struct Areas {
    areas: BTreeMap<u64, Area>,
}

impl Areas {
    /// The areas whose pages are in the page tables, in order.
    pub(super) fn mapped(&self) -> impl Iterator<Item = Mapped<'_>> + '_ {
        self.mapped_in(IovaRange::ALL)
    }

    /// Those of [`Areas::mapped`] that have something in common with `range`.
    pub(super) fn mapped_in(&self, range: IovaRange) -> impl Iterator<Item = Mapped<'_>> + '_ {
        self.in_or_around(range).filter_map(|(range, area)| match &area.state {
            State::Mapped(backed) => Some(Mapped { range, access: area.access, backed }),
            State::Coming | State::Leaving(_) => None,
        })
    }

    fn in_or_around(&self, range: IovaRange) -> impl Iterator<Item = (IovaRange, &Area)> + '_ {
        let before = self.areas.range(..range.start).next_back();
        before
            .into_iter()
            .chain(self.areas.range(range.start..=range.last))
            .map(|(&start, area)| (IovaRange { start, last: area.last }, area))
            .filter(move |(area, _)| area.overlaps(&range))
    }

    /// The ranges of the areas that have something in common with `range`.
    pub(super) fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = IovaRange> + '_ {
        self.in_or_around(range).map(|(area, _)| area)
    }

    /// Fails if some area lies in what is `unusable`.
    pub(super) fn check(&self, mut unusable: impl Iterator<Item = IovaRange>) -> Result<(), ConnectError> {
        match unusable.find_map(|range| self.overlapping(range).next()) {
            Some(area) => Err(ConnectError::Conflict(area)),
            None => Ok(()),
        }
    }

    /// Fails if some area is not made of pages of `alignment` bytes.
    pub(super) fn check_alignment(&self, alignment: u64) -> Result<(), ConnectError> {
        match self.mapped().find(|area| !area.is_aligned(alignment)) {
            Some(area) => Err(ConnectError::Misaligned(area.range, alignment)),
            None => Ok(()),
        }
    }

    /// Brings in the memory of all areas. On an error, some of it is.
    pub(super) fn pin(&mut self, space: &Arc<PhysSpace>) -> Result<(), PinError> {
        for (&start, area) in &mut self.areas {
            if let State::Mapped(backed @ Backed { pin: None, .. }) = &mut area.state {
                backed.pin = Some(backed.pages.pin(space, start, backed.offset)?);
            }
        }
        Ok(())
    }

    /// Lets the memory of all areas go. There is no page table.
    pub(super) fn unpin(&mut self) {
        for area in self.areas.values_mut() {
            if let State::Mapped(backed) = &mut area.state {
                backed.pin = None;
            }
        }
    }

    /// Keeps a range, which is free, for a mapping that is to come.
    pub(super) fn keep(&mut self, range: IovaRange, access: Access) {
        self.areas.insert(range.start, Area { last: range.last, access, state: State::Coming });
    }

    /// What was kept from `range.start` on is mapped now; `range` may be a part, as what is kept may become several areas.
    pub(super) fn publish(&mut self, range: IovaRange, access: Access, backed: Backed) {
        self.areas.insert(range.start, Area { last: range.last, access, state: State::Mapped(backed) });
    }

    /// Gives a range that was kept up.
    pub(super) fn remove(&mut self, range: IovaRange) {
        self.areas.remove(&range.start);
    }

    /// Begins to unmap all areas in `range`, which must not cut one, and returns how many bytes they have.
    pub(super) fn let_go(&mut self, range: IovaRange) -> Result<u64, UnmapError> {
        let mut bytes = 0u64;
        for (area, Area { state, .. }) in self.in_or_around(range) {
            if !matches!(state, State::Mapped(_)) {
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
        for (_, area) in self.areas.range_mut(range.start..=range.last) {
            if let State::Mapped(backed) = std::mem::replace(&mut area.state, State::Coming) {
                area.state = State::Leaving(backed);
            }
        }
        Ok(bytes)
    }

    /// The first areas in `range` that are being unmapped, as one range as far as they touch.
    pub(super) fn first_run(&self, range: IovaRange) -> Option<IovaRange> {
        let mut leaving = self
            .areas
            .range(range.start..=range.last)
            .filter(|(_, area)| matches!(area.state, State::Leaving(_)))
            .map(|(&start, area)| IovaRange { start, last: area.last });
        let mut run = leaving.next()?;
        for area in leaving {
            if run.last.checked_add(1) != Some(area.start) {
                break;
            }
            run.last = area.last;
        }
        Some(run)
    }

    /// Takes the first area in `range` out that is being unmapped, and now is.
    pub(super) fn take_first(&mut self, range: IovaRange) -> Option<(IovaRange, Area)> {
        let leaving = |(_, area): &(&u64, &Area)| matches!(area.state, State::Leaving(_));
        let (&start, _) = self.areas.range(range.start..=range.last).find(leaving)?;
        let area = self.areas.remove(&start)?;
        Some((IovaRange { start, last: area.last }, area))
    }
}
