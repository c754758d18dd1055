//! The areas of an address space, and what each of them is going through.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use iopt::Access;

use crate::base::types::IovaRange;
use crate::memory::{PAGE_SIZE, Pages, PagesSlice, Pin};

use super::holes::Holes;
use super::{AccessError, ConnectError, CutError, ProtectError, UnmapError};

/// One area. Its range is its own from the first state to the end of the last.
pub(super) struct Area {
    last: u64,
    access: Access,
    state: State,
    holds: Holds,
    /// Mirrors are being changed because of it, and it stays as it is meanwhile.
    busy: bool,
    /// A mirror that broke its contract may still reach it.
    pub(super) exposed: bool,
}

impl Area {
    /// Whether it can be cut at `iova`, which lies in it and not at its `start`.
    fn check_cut(&self, start: u64, iova: u64, alignment: u64, large_pages: bool) -> Result<(), CutError> {
        let holds = &self.holds;
        let Some(backed) = self.state.backed() else { return Err(CutError::Busy(iova)) };
        if holds.pins > 0 || holds.locks > 0 || holds.told {
            return Err(CutError::Busy(iova));
        }
        let offset = backed.offset + (iova - start);
        if !(iova | offset).is_multiple_of(alignment) {
            return Err(CutError::Unaligned(iova, alignment));
        }
        // What is in no table is in no large page.
        if large_pages && matches!(self.state, State::Mapped(_)) {
            return Err(CutError::LargePages(iova));
        }
        Ok(())
    }
}

/// A part of an area that devices do not find, and that is to be brought in.
pub(super) struct Wanted {
    pub(super) part: IovaRange,
    /// All of the area.
    pub(super) area: IovaRange,
    pub(super) access: Access,
    /// Of the part.
    pub(super) backed: Backed,
}

impl Wanted {
    /// Where the area has to be cut, so that the part is one of its own.
    pub(super) fn cuts(&self) -> impl Iterator<Item = u64> + use<> {
        let Self { part, area, .. } = *self;
        let low = (part.start > area.start).then_some(part.start);
        let high = (part.last < area.last).then(|| part.last + 1);
        low.into_iter().chain(high)
    }
}

/// What keeps an area from being unmapped.
#[derive(Default)]
struct Holds {
    /// Accesses that have something in it, and let it go when they are told.
    pins: usize,
    /// Holders that keep it, told or not.
    locks: usize,
    /// Whether the accesses have been told: from then on none may get anything more in it.
    told: bool,
}

/// How something in an area is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Until the area is to be unmapped.
    Pin,
    /// Until the holder lets it go.
    Lock,
}

impl Holds {
    fn count(&mut self, hold: Hold) -> &mut usize {
        match hold {
            Hold::Pin => &mut self.pins,
            Hold::Lock => &mut self.locks,
        }
    }
}

/// Why areas cannot be unmapped now.
pub(super) enum NotNow {
    /// For good.
    Refused(UnmapError),
    /// Until what is pinned there has been let go.
    Pinned,
}

impl From<UnmapError> for NotNow {
    fn from(error: UnmapError) -> Self {
        Self::Refused(error)
    }
}

enum State {
    /// Its memory is being made ready, and written into the page tables.
    Coming,
    /// Its pages are in every page table.
    Mapped(Backed),
    /// It is mapped, and its pages are in no page table: a device that finds that faults.
    Absent(Backed),
    /// It is being taken out of the page tables; until that is done, DMA to its pages may be in flight.
    Leaving(Backed),
}

impl State {
    /// Of what is mapped, and not being mapped or unmapped at this moment.
    fn backed(&self) -> Option<&Backed> {
        match self {
            Self::Mapped(backed) | Self::Absent(backed) => Some(backed),
            Self::Coming | Self::Leaving(_) => None,
        }
    }
}

/// What an area is backed by.
#[derive(Clone)]
pub(super) struct Backed {
    pub(super) pages: Arc<Pages>,
    /// Where in the pages the area begins, in bytes.
    pub(super) offset: u64,
    /// Of the area's bytes, as long as there is a mirror.
    pub(super) pin: Option<Pin>,
}

impl Backed {
    /// What is left is `length` bytes, and the rest is returned.
    fn split_off(&mut self, length: u64) -> Self {
        let offset = self.offset + length;
        Self { pages: self.pages.clone(), offset, pin: self.pin.as_mut().map(|pin| pin.split_off(offset)) }
    }
}

/// Whether devices find what is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Present,
    Absent,
}

/// All areas, by their first address.
#[derive(Default)]
pub(super) struct Areas {
    areas: BTreeMap<u64, Area>,
    /// What is known about the space between them.
    pub(super) holes: Holes,
}

impl Areas {
    /// Whether something in `range` is being unmapped or changed, and will soon be settled.
    pub(super) fn is_changing(&self, range: IovaRange) -> bool {
        self.in_or_around(range).any(|(_, area)| area.busy || matches!(area.state, State::Leaving(_)))
    }

    /// Whether mirrors are being changed because of what lies in `range`.
    pub(super) fn set_busy(&mut self, range: IovaRange, busy: bool) {
        self.for_each_in(range, |area| area.busy = busy);
    }

    /// The first area from `start` on that a mirror has to be filled with: its range, access and backing. `Some(None)`
    /// if it is being changed, `None` if there is none.
    pub(super) fn next_to_fill(&self, start: u64) -> Option<Option<(IovaRange, Access, &Backed)>> {
        self.areas.range(start..).find_map(|(&start, area)| match &area.state {
            _ if area.busy => Some(None),
            State::Mapped(backed) => Some(Some((IovaRange { start, last: area.last }, area.access, backed))),
            State::Coming | State::Absent(_) | State::Leaving(_) => None,
        })
    }

    /// The areas that begin below `end` and that mirrors have, or may have still.
    pub(super) fn filled_below(&self, end: u64) -> Vec<IovaRange> {
        let is_filled = |area: &Area| matches!(area.state, State::Mapped(_) | State::Leaving(_));
        let filled = self.areas.range(..end).filter(|(_, area)| is_filled(area));
        filled.map(|(&start, area)| IovaRange { start, last: area.last }).collect()
    }

    /// Has what is mapped in `range`, an area, hold its memory, and returns what is one pin too many.
    pub(super) fn set_pin(&mut self, range: IovaRange, pin: Option<Pin>) -> Option<Pin> {
        match self.areas.get_mut(&range.start).map(|area| &mut area.state) {
            Some(State::Mapped(backed)) if backed.pin.is_none() => std::mem::replace(&mut backed.pin, pin),
            _ => pin,
        }
    }

    /// Takes the first pin out that an area from `start` on has, and says where to go on.
    pub(super) fn take_pin(&mut self, start: u64) -> Option<(Option<u64>, Pin)> {
        self.areas.range_mut(start..).find_map(|(_, area)| match &mut area.state {
            State::Mapped(backed) => backed.pin.take().map(|pin| (area.last.checked_add(1), pin)),
            State::Coming | State::Absent(_) | State::Leaving(_) => None,
        })
    }

    /// A mirror that broke its contract may reach all that is mapped now, for as long as it is mapped.
    pub(super) fn expose(&mut self) {
        let has_been_mapped = |area: &&mut Area| matches!(area.state, State::Mapped(_) | State::Leaving(_));
        self.areas.values_mut().filter(has_been_mapped).for_each(|area| area.exposed = true);
    }

    /// One pin more of all that is pinned.
    pub(super) fn pins(&self) -> Vec<Pin> {
        let pin = |area: &Area| match &area.state {
            State::Mapped(backed) | State::Leaving(backed) => backed.pin.clone(),
            State::Coming | State::Absent(_) => None,
        };
        self.areas.values().filter_map(pin).collect()
    }

    /// The areas in `range` that devices find, as a whole: range, access, backing.
    pub(super) fn mapped_in(&self, range: IovaRange) -> impl Iterator<Item = (IovaRange, Access, &Backed)> + '_ {
        self.in_or_around(range).filter_map(|(range, area)| match &area.state {
            State::Mapped(backed) => Some((range, area.access, backed)),
            State::Coming | State::Absent(_) | State::Leaving(_) => None,
        })
    }

    /// What is mapped and has something in common with `range`, whether devices find it or fault, in order: its range
    /// and access, and whether it is absent.
    pub(super) fn all_in(&self, range: IovaRange) -> impl Iterator<Item = (IovaRange, Access, bool)> + '_ {
        self.in_or_around(range).filter_map(|(range, area)| {
            area.state.backed().map(|_| (range, area.access, matches!(area.state, State::Absent(_))))
        })
    }

    /// The pages of [`Areas::all_in`].
    pub(super) fn pages_in(&self, range: IovaRange) -> impl Iterator<Item = &Arc<Pages>> + '_ {
        self.in_or_around(range).filter_map(|(_, area)| Some(&area.state.backed()?.pages))
    }

    /// How many there are, in whatever state.
    pub(super) fn count(&self) -> usize {
        self.areas.len()
    }

    /// What is absent in `range`, as far as it lies there, and that allows `access`.
    pub(super) fn absent_in(&self, range: IovaRange, access: Access) -> Vec<Wanted> {
        let absent = self.in_or_around(range).filter_map(|(area, each)| match &each.state {
            State::Absent(backed) if each.access.contains(access) => {
                let part = IovaRange { start: area.start.max(range.start), last: area.last.min(range.last) };
                let backed = Backed { offset: backed.offset + (part.start - area.start), ..backed.clone() };
                Some(Wanted { part, area, access: each.access, backed })
            }
            _ => None,
        });
        absent.collect()
    }

    /// Whether something is absent still as [`Areas::absent_in`] said, and allows `access`. The area that it is a part
    /// of may be another by now, as what was beside it was brought in.
    pub(super) fn is_absent_still(&self, wanted: &mut Wanted, access: Access) -> bool {
        let Some((area, each)) = self.in_or_around(wanted.part).next() else { return false };
        let State::Absent(now) = &each.state else { return false };
        let same = area.contains(&wanted.part)
            && each.access.contains(access)
            && Arc::ptr_eq(&now.pages, &wanted.backed.pages)
            && now.offset + (wanted.part.start - area.start) == wanted.backed.offset;
        (wanted.area, wanted.access) = (area, each.access);
        same
    }

    /// What devices find at `iova`.
    pub(super) fn presence(&self, iova: u64) -> Option<(Access, Presence)> {
        let (_, area) = self.in_or_around(IovaRange { start: iova, last: iova }).next()?;
        match area.state {
            State::Mapped(_) => Some((area.access, Presence::Present)),
            State::Absent(_) => Some((area.access, Presence::Absent)),
            State::Coming | State::Leaving(_) => None,
        }
    }

    /// Fails if something in `range` is being mapped.
    pub(super) fn check_not_coming(&self, range: IovaRange) -> Result<(), IovaRange> {
        let coming = self.in_or_around(range).find(|(_, area)| matches!(area.state, State::Coming));
        coming.map_or(Ok(()), |(area, _)| Err(area))
    }

    /// Whether there are any, in whatever state.
    pub(super) fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }

    /// What software has pinned in `range`: how often, and from where to where.
    pub(super) fn pinned_in(&self, range: IovaRange) -> (usize, Option<IovaRange>) {
        let pinned = self.in_or_around(range).filter(|(_, area)| area.holds.pins > 0);
        pinned.fold((0, None), |(pins, hull): (usize, Option<IovaRange>), (area, each)| {
            let hull = hull.map_or(area, |hull| IovaRange { last: area.last, ..hull });
            (pins + each.holds.pins, Some(hull))
        })
    }

    /// Whether pins in `range` were told to be let go.
    pub(super) fn is_told(&self, range: IovaRange) -> bool {
        self.in_or_around(range).any(|(_, area)| area.holds.told)
    }

    /// Allows `access` in `range`, which consists of areas.
    pub(super) fn set_access(&mut self, range: IovaRange, access: Access) {
        self.for_each_in(range, |area| area.access = access);
    }

    /// Fails if an area in `range` cannot be allowed `access`, or there is none; returns whether all allow exactly
    /// that.
    pub(super) fn check_protect(&self, range: IovaRange, access: Access) -> Result<bool, ProtectError> {
        let (mut any, mut same) = (false, true);
        for (area, Area { access: now, state, holds, .. }) in self.in_or_around(range) {
            let Some(backed) = state.backed() else { return Err(ProtectError::Busy(area)) };
            if !range.contains(&area) {
                return Err(ProtectError::NotWhole(range));
            }
            if holds.pins > 0 || holds.locks > 0 || holds.told {
                return Err(ProtectError::Pinned(area));
            }
            if access.contains(Access::WRITE) && !backed.pages.is_writable() {
                return Err(ProtectError::PagesReadOnly(area));
            }
            (any, same) = (true, same && *now == access);
        }
        if any { Ok(same) } else { Err(ProtectError::Empty(range)) }
    }

    /// Makes absent what lies in `range`, which cuts no area and is in no mirror any more.
    pub(super) fn make_absent(&mut self, range: IovaRange) -> Vec<Pin> {
        let mut pins = Vec::new();
        for (_, area) in self.areas.range_mut(range.start..=range.last) {
            match std::mem::replace(&mut area.state, State::Coming) {
                State::Mapped(Backed { pages, offset, pin }) => {
                    pins.extend(pin);
                    area.state = State::Absent(Backed { pages, offset, pin: None });
                }
                other => area.state = other,
            }
        }
        pins
    }

    /// Makes present what is absent in `range`, which is an area as a whole and now is in every mirror; and in one that
    /// was cut off, if it is `exposed`.
    pub(super) fn make_present(&mut self, range: IovaRange, pin: Option<Pin>, exposed: bool) {
        if let Some(area) = self.areas.get_mut(&range.start) {
            area.exposed |= exposed;
            match std::mem::replace(&mut area.state, State::Coming) {
                State::Absent(Backed { pages, offset, .. }) => {
                    area.state = State::Mapped(Backed { pages, offset, pin });
                }
                other => area.state = other,
            }
        }
    }

    /// The areas that have something in common with `range`, in order.
    fn in_or_around(&self, range: IovaRange) -> impl Iterator<Item = (IovaRange, &Area)> + '_ {
        let first = self.areas.range(..=range.start).next_back().filter(|(_, area)| area.last >= range.start);
        // Nearly always that is all there is, and a second search costs as much as the first.
        let goes_on = first.is_none_or(|(_, area)| area.last < range.last);
        let behind = (Bound::Excluded(range.start), Bound::Included(range.last));
        let more = (goes_on && range.start < range.last).then(|| self.areas.range(behind));
        let all = first.into_iter().chain(more.into_iter().flatten());
        all.map(|(&start, area)| (IovaRange { start, last: area.last }, area))
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
        let is_aligned = |(range, area): &(IovaRange, &Area)| {
            let offset = area.state.backed().map_or(0, |backed| backed.offset);
            (range.start | range.last.wrapping_add(1) | offset).is_multiple_of(alignment)
        };
        match self.in_or_around(IovaRange::ALL).find(|area| !is_aligned(area)) {
            Some((range, _)) => Err(ConnectError::Misaligned(range, alignment)),
            None => Ok(()),
        }
    }

    /// Keeps a range, which is free, for a mapping that is to come.
    pub(super) fn keep(&mut self, range: IovaRange, access: Access) {
        self.insert(range, access, State::Coming, false);
    }

    /// What was kept from `range.start` on is mapped now; `range` may be a part, as what is kept may become several
    /// areas.
    pub(super) fn publish(&mut self, range: IovaRange, access: Access, backed: Backed, exposed: bool) {
        self.insert(range, access, State::Mapped(backed), exposed);
    }

    fn insert(&mut self, range: IovaRange, access: Access, state: State, exposed: bool) {
        self.areas.insert(
            range.start,
            Area { last: range.last, access, state, holds: Holds::default(), busy: false, exposed },
        );
    }

    /// What lies in `range`, which has to be mapped as a whole, for `access` by software; with `hold`, so that it
    /// stays. A holder gets it in whole pages.
    pub(super) fn pieces(
        &mut self,
        range: IovaRange,
        access: Access,
        hold: Option<Hold>,
    ) -> Result<Vec<PagesSlice>, AccessError> {
        let mut pieces = Vec::new();
        let mut next = Some(range.start);
        for (area, Area { access: allowed, state, holds, .. }) in self.in_or_around(range) {
            let Some(backed) = state.backed() else { break };
            let Some(start) = next.filter(|&start| area.start <= start) else { break };
            let last = area.last.min(range.last);
            next = last.checked_add(1).filter(|_| last < range.last);
            let (offset, length) = (backed.offset + (start - area.start), last - start + 1);
            let cut =
                !offset.is_multiple_of(PAGE_SIZE) || (next.is_some() && !(offset + length).is_multiple_of(PAGE_SIZE));
            if hold.is_some() && cut {
                return Err(AccessError::Unaligned(IovaRange { start, last }));
            }
            if holds.told {
                return Err(AccessError::Unmapping(area));
            }
            if !allowed.contains(access) {
                return Err(AccessError::NotPermitted(area));
            }
            pieces.push(PagesSlice { pages: backed.pages.clone(), offset, length });
        }
        // There was a hole, or less than that.
        if next.is_some() {
            return Err(AccessError::NotMapped(range));
        }
        if let Some(hold) = hold {
            self.for_each_in(range, |area| *area.holds.count(hold) += 1);
        }
        Ok(pieces)
    }

    /// Undoes the hold on a range that [`Areas::pieces`] was called for.
    pub(super) fn release(&mut self, range: IovaRange, hold: Hold) {
        self.for_each_in(range, |area| *area.holds.count(hold) -= 1);
    }

    fn for_each_in(&mut self, range: IovaRange, mut each: impl FnMut(&mut Area)) {
        let first = self.areas.range_mut(..=range.start).next_back().filter(|(_, area)| area.last >= range.start);
        let goes_on = first.as_ref().is_none_or(|(_, area)| area.last < range.last) && range.start < range.last;
        first.into_iter().for_each(|(_, area)| each(area));
        if goes_on {
            let behind = (Bound::Excluded(range.start), Bound::Included(range.last));
            self.areas.range_mut(behind).for_each(|(_, area)| each(area));
        }
    }

    /// Lets accesses to what lies in `range` begin again, as it was not unmapped after all.
    pub(super) fn allow_again(&mut self, range: IovaRange) {
        self.for_each_in(range, |area| area.holds.told = false);
    }

    /// Gives a range that was kept up.
    pub(super) fn remove(&mut self, range: IovaRange) {
        self.areas.remove(&range.start);
        self.freed(range);
    }

    /// Nothing is in `range` any more.
    fn freed(&mut self, range: IovaRange) {
        if self.holes.is_empty() {
            return;
        }
        let before = self.areas.range(..range.start).next_back();
        let after = self.areas.range(range.start..).next();
        self.holes.freed(IovaRange {
            start: before.map_or(0, |(_, area)| area.last + 1),
            last: after.map_or(u64::MAX, |(&start, _)| start - 1),
        });
    }

    /// Makes two areas of the one that `iova` lies in, if it does not begin there.
    pub(super) fn cut(&mut self, iova: u64, alignment: u64, large_pages: bool) -> Result<(), CutError> {
        let Some((&start, area)) = self.areas.range_mut(..iova).next_back().filter(|(_, area)| area.last >= iova)
        else {
            return Ok(());
        };
        area.check_cut(start, iova, alignment, large_pages)?;
        let state = match &mut area.state {
            State::Mapped(backed) => State::Mapped(backed.split_off(iova - start)),
            State::Absent(backed) => State::Absent(backed.split_off(iova - start)),
            State::Coming | State::Leaving(_) => return Ok(()),
        };
        let upper = Area { state, holds: Holds::default(), ..*area };
        area.last = iova - 1;
        self.areas.insert(iova, upper);
        Ok(())
    }

    /// Whether [`Areas::cut`] can.
    pub(super) fn check_cut(&self, iova: u64, alignment: u64, large_pages: bool) -> Result<(), CutError> {
        let below = self.areas.range(..iova).next_back().filter(|(_, area)| area.last >= iova);
        below.map_or(Ok(()), |(&start, area)| area.check_cut(start, iova, alignment, large_pages))
    }

    /// Begins to unmap all areas in `range`, which must not cut one, and returns how many bytes they have. If something
    /// is pinned in one, no access may pin anything else there from then on.
    pub(super) fn begin_unmap(&mut self, range: IovaRange) -> Result<u64, NotNow> {
        let (mut bytes, mut pinned) = (0u64, None);
        for (area, Area { state, holds, .. }) in self.in_or_around(range) {
            if state.backed().is_none() {
                return Err(UnmapError::Busy(area).into());
            }
            if holds.locks > 0 {
                return Err(UnmapError::Locked(area).into());
            }
            if !range.contains(&area) {
                return Err(UnmapError::NotWhole(range).into());
            }
            if holds.pins > 0 {
                pinned = pinned.or(Some(area));
            }
            bytes = bytes.saturating_add(area.len_minus_one() + 1);
        }
        if bytes == 0 && range != IovaRange::ALL {
            return Err(UnmapError::Empty(range).into());
        }
        if pinned.is_some() {
            self.for_each_in(range, |area| area.holds.told = true);
            return Err(NotNow::Pinned);
        }
        for (_, area) in self.areas.range_mut(range.start..=range.last) {
            if let State::Mapped(backed) | State::Absent(backed) = std::mem::replace(&mut area.state, State::Coming) {
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
        let range = IovaRange { start, last: area.last };
        self.freed(range);
        Some((range, area))
    }
}
