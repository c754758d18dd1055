//! The areas of an address space, and what each of them is going through.

use std::collections::BTreeMap;
use std::sync::Arc;

use iopt::Access;

use crate::memory::{PAGE_SIZE, Pages, PhysSpace, Pin, PinError};
use crate::types::IovaRange;

use super::holes::Holes;
use super::{AccessError, ConnectError, CutError, Piece, UnmapError};

/// One area. Its range is its own from the first state to the end of the last.
pub(super) struct Area {
    last: u64,
    access: Access,
    state: State,
    holds: Holds,
}

/// Who keeps an area from being unmapped.
#[derive(Default)]
struct Holds {
    /// Accesses that have something in it, and let it go when they are told.
    pins: usize,
    /// Those who do not.
    locks: usize,
    /// Whether they have been told, so that nobody else may come to have something in it.
    told: bool,
}

/// How something in an area is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Until the area is to be unmapped.
    Pin,
    /// Until who holds it lets it go.
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
    /// Until who has something in this one has let it go.
    Pinned(IovaRange),
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
    #[allow(dead_code, reason = "the pages are kept there, and nothing else is done with them")]
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
pub(crate) struct Backed {
    pub(crate) pages: Arc<Pages>,
    /// Where in the pages the area begins, in bytes.
    pub(crate) offset: u64,
    /// As long as there is a page table.
    pub(crate) pin: Option<Pin>,
}

/// Whether devices find what is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Present,
    Absent,
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
    /// What is known about the space between them.
    pub(super) holes: Holes,
}

impl Areas {
    /// The areas whose pages are in the page tables, in order.
    pub(super) fn mapped(&self) -> impl Iterator<Item = Mapped<'_>> + '_ {
        self.in_or_around(IovaRange::ALL).filter_map(|(range, area)| match &area.state {
            State::Mapped(backed) => Some(Mapped { range, access: area.access, backed }),
            State::Coming | State::Absent(_) | State::Leaving(_) => None,
        })
    }

    /// What is mapped, whether devices find it or fault, in order: its range and access, and whether it is absent.
    pub(super) fn all(&self) -> impl Iterator<Item = (IovaRange, Access, bool)> + '_ {
        self.in_or_around(IovaRange::ALL).filter_map(|(range, area)| {
            area.state.backed().map(|_| (range, area.access, matches!(area.state, State::Absent(_))))
        })
    }

    /// The ranges of [`Areas::all`] that have something in common with `range`.
    pub(super) fn all_in(&self, range: IovaRange) -> impl Iterator<Item = IovaRange> + '_ {
        self.in_or_around(range).filter_map(|(range, area)| area.state.backed().map(|_| range))
    }

    /// The pages of what is mapped, whether devices find it or fault, in order.
    pub(super) fn pages(&self) -> impl Iterator<Item = &Arc<Pages>> + '_ {
        self.areas.values().filter_map(|area| Some(&area.state.backed()?.pages))
    }

    /// What is absent in `range`, as far as it lies there, and that allows `access`.
    pub(super) fn absent_in(&self, range: IovaRange, access: Access) -> Vec<(IovaRange, Backed)> {
        let absent = self.in_or_around(range).filter_map(|(area, each)| match &each.state {
            State::Absent(backed) if each.access.contains(access) => {
                let part = IovaRange { start: area.start.max(range.start), last: area.last.min(range.last) };
                Some((part, Backed { offset: backed.offset + (part.start - area.start), ..backed.clone() }))
            }
            _ => None,
        });
        absent.collect()
    }

    /// What is allowed in `part`, if one absent area has all of it, and it is `backed` as [`Areas::absent_in`] said.
    pub(super) fn absent_still(&self, part: IovaRange, backed: &Backed) -> Option<Access> {
        let (area, each) = self.in_or_around(part).next()?;
        let State::Absent(now) = &each.state else { return None };
        let same = area.contains(&part)
            && Arc::ptr_eq(&now.pages, &backed.pages)
            && now.offset + (part.start - area.start) == backed.offset;
        same.then_some(each.access)
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

    /// Fails if something in `range` is being mapped or unmapped.
    pub(super) fn check_settled(&self, range: IovaRange) -> Result<(), IovaRange> {
        let unsettled = self.in_or_around(range).find(|(_, area)| area.state.backed().is_none());
        unsettled.map_or(Ok(()), |(area, _)| Err(area))
    }

    /// Makes absent what lies in `range`, which cuts no area and is in no page table any more, and gives back what held its
    /// memory.
    pub(super) fn make_absent(&mut self, range: IovaRange) -> Vec<Pin> {
        let mut pins = Vec::new();
        for (_, area) in self.areas.range_mut(range.start..=range.last) {
            if let State::Mapped(backed) = &mut area.state {
                pins.extend(backed.pin.take());
                area.state = State::Absent(backed.clone());
            }
        }
        pins
    }

    /// Makes present what is absent in `range`, which is an area as a whole and now is in every page table.
    pub(super) fn make_present(&mut self, range: IovaRange, pin: Option<Pin>) {
        if let Some(area) = self.areas.get_mut(&range.start)
            && let State::Absent(backed) = &area.state
        {
            area.state = State::Mapped(Backed { pin, ..backed.clone() });
        }
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
        let mut settled = self.in_or_around(IovaRange::ALL).filter_map(|(range, area)| {
            area.state.backed().map(|backed| Mapped { range, access: area.access, backed })
        });
        match settled.find(|area| !area.is_aligned(alignment)) {
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
        self.insert(range, access, State::Coming);
    }

    /// What was kept from `range.start` on is mapped now; `range` may be a part, as what is kept may become several areas.
    pub(super) fn publish(&mut self, range: IovaRange, access: Access, backed: Backed) {
        self.insert(range, access, State::Mapped(backed));
    }

    fn insert(&mut self, range: IovaRange, access: Access, state: State) {
        self.areas.insert(range.start, Area { last: range.last, access, state, holds: Holds::default() });
    }

    /// What lies in `range`, which has to be mapped as a whole, for `access` by software; with `hold`, so that it stays. Whoever
    /// holds it in pages gets whole ones.
    pub(super) fn pieces(
        &mut self,
        range: IovaRange,
        access: Access,
        hold: Option<Hold>,
    ) -> Result<Vec<Piece>, AccessError> {
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
            pieces.push(Piece { pages: backed.pages.clone(), offset, length });
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
        let first = self.in_or_around(range).next().map_or(range.start, |(area, _)| area.start);
        self.areas.range_mut(first..=range.last).for_each(|(_, area)| each(area));
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
        self.check_cut(iova, alignment, large_pages)?;
        let Some((&start, area)) = self.areas.range_mut(..iova).next_back().filter(|(_, area)| area.last >= iova)
        else {
            return Ok(());
        };
        let absent = matches!(area.state, State::Absent(_));
        let Some(backed) = area.state.backed() else { return Ok(()) };
        let (upper, access) = (Backed { offset: backed.offset + (iova - start), ..backed.clone() }, area.access);
        let range = IovaRange { start: iova, last: area.last };
        area.last = iova - 1;
        let state = if absent { State::Absent(upper) } else { State::Mapped(upper) };
        self.insert(range, access, state);
        Ok(())
    }

    /// Whether [`Areas::cut`] can.
    pub(super) fn check_cut(&self, iova: u64, alignment: u64, large_pages: bool) -> Result<(), CutError> {
        let Some((&start, area)) = self.areas.range(..iova).next_back().filter(|(_, area)| area.last >= iova) else {
            return Ok(());
        };
        let holds = &area.holds;
        let Some(backed) = area.state.backed() else { return Err(CutError::Busy(iova)) };
        if holds.pins > 0 || holds.locks > 0 || holds.told {
            return Err(CutError::Busy(iova));
        }
        let offset = backed.offset + (iova - start);
        if !(iova | offset).is_multiple_of(alignment) {
            return Err(CutError::Unaligned(iova, alignment));
        }
        // What is in no table is in no large page.
        if large_pages && matches!(area.state, State::Mapped(_)) {
            return Err(CutError::LargePages(iova));
        }
        Ok(())
    }

    /// Begins to unmap all areas in `range`, which must not cut one, and returns how many bytes they have. If something is
    /// pinned in one, nobody may pin anything else there from then on.
    pub(super) fn let_go(&mut self, range: IovaRange) -> Result<u64, NotNow> {
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
        if let Some(pinned) = pinned {
            self.for_each_in(pinned, |area| area.holds.told = true);
            return Err(NotNow::Pinned(pinned));
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
