//! The areas of an address space, and what each of them is going through.

use std::collections::BTreeMap;

use iopt::Access;

use crate::memory::{PAGE_SIZE, Pages};
use crate::ranges::Ranges;
use crate::types::IovaRange;

use super::{ConnectError, MapError, Placement, UnmapError};

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
    Mapped(Pages),
    /// It is being taken out of the page tables; until that is done, DMA to its pages may be in flight.
    #[allow(dead_code, reason = "the pages are kept there, and nothing else is done with them")]
    Leaving(Pages),
}

/// All areas, by their first address.
#[derive(Default)]
pub(super) struct Areas {
    areas: BTreeMap<u64, Area>,
}

impl Areas {
    /// The areas whose pages are in the page tables, in order.
    pub(super) fn mapped(&self) -> impl Iterator<Item = (IovaRange, Access, &Pages)> + '_ {
        self.areas.iter().filter_map(|(&start, area)| match &area.state {
            State::Mapped(pages) => Some((IovaRange { start, last: area.last }, area.access, pages)),
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

    /// Keeps a range of `length` bytes, inside of what is `usable`, for a mapping that is to come.
    pub(super) fn keep(
        &mut self,
        placement: Placement,
        length: u64,
        access: Access,
        usable: &Ranges,
    ) -> Result<IovaRange, MapError> {
        let range = match placement {
            Placement::Fixed(iova) => self.check_fixed(iova.0, length, usable)?,
            Placement::Automatic { like } => self.find_free(length, like, usable)?,
        };
        self.areas.insert(range.start, Area { last: range.last, access, state: State::Coming });
        Ok(range)
    }

    /// What was kept at `range` is mapped now.
    pub(super) fn publish(&mut self, range: IovaRange, pages: Pages) {
        if let Some(area) = self.areas.get_mut(&range.start) {
            area.state = State::Mapped(pages);
        }
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
            if let State::Mapped(pages) = std::mem::replace(&mut area.state, State::Coming) {
                area.state = State::Leaving(pages);
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

    fn check_fixed(&self, iova: u64, length: u64, usable: &Ranges) -> Result<IovaRange, MapError> {
        if (iova | length) & (PAGE_SIZE - 1) != 0 {
            return Err(MapError::Unaligned(iova, length));
        }
        let range = IovaRange::new(iova, length).ok_or(MapError::Overflow(iova, length))?;
        if !usable.contains(&range) {
            return Err(MapError::Reserved(range));
        }
        if self.overlapping(range).next().is_some() {
            return Err(MapError::Occupied(range));
        }
        Ok(range)
    }

    /// The lowest free range, never at 0, which programs take for "none".
    fn find_free(&self, length: u64, like: u64, usable: &Ranges) -> Result<IovaRange, MapError> {
        if length & (PAGE_SIZE - 1) != 0 {
            return Err(MapError::Unaligned(like, length));
        }
        let largest = length.checked_next_power_of_two().unwrap_or(1 << 63).min(1 << 21);
        let alignment = if like == 0 { largest } else { largest.min(1 << like.trailing_zeros()) };
        if alignment < PAGE_SIZE {
            return Err(MapError::Unaligned(like, length));
        }
        for hole in usable.iter() {
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
