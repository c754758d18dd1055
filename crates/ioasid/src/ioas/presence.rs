//! What is mapped and makes devices fault: for memory that comes later (post-copy), or only if it is needed.
//!
//! ```text
//!   mapped, present ──make_fault──► mapped, absent: in no mirror, its memory not held
//!         ▲                              │
//!         └───────────populate───────────┘  by the owner, or on a fault, where the page table resolves misses
//! ```
//! A range that is made to fault, or brought in, becomes areas of its own: what was one mapping can then be unmapped in
//! those parts, or, as before, as a whole.

use iopt::Access;

use super::areas::{Areas, Presence, Wanted};
use super::links::{Busy, Now};
use super::{CutError, Ioas, Locked, PresenceError};
use crate::base::types::{Iova, IovaRange};
use crate::gate::check_may_wait;
use crate::memory::PAGE_SIZE;

/// Bytes that are brought in on a fault, if as many are absent around it.
const AROUND: u64 = 64 << 10;

/// Parts that some mirrors have and that are not present yet; taken out of those mirrors again if they do not become
/// so.
struct Filled<'a, 'r> {
    ioas: &'a Ioas,
    wanted: &'r [Wanted],
    now: Now,
}

impl Drop for Filled<'_, '_> {
    fn drop(&mut self) {
        let mut done = 0;
        while let Some(called) = self.ioas.next_mirror_of(done, self.now) {
            let mut runs = self.wanted.iter().map(|wanted| wanted.part).filter(|part| called.has(part.start));
            self.ioas.unmap_in(&called, &mut runs);
            done = called.number;
        }
    }
}

impl Ioas {
    /// Makes devices fault in `range`, where everything stays mapped: what happens then is up to their page tables
    /// ([`OnMiss`](crate::OnMiss)). When it returns, no DMA through these mappings is in flight and none can start, and
    /// their memory is not held for devices any more. Dirty marks that have not been read are lost there, as at an
    /// unmap.
    ///
    /// # Errors
    /// See [`PresenceError`].
    pub fn make_fault(&self, range: IovaRange) -> Result<(), PresenceError> {
        check_may_wait()?;
        let mut state = self.when_settled(self.lock(), range)?;
        let alignment = state.alignment().max(PAGE_SIZE);
        if !(range.start | range.last.wrapping_add(1)).is_multiple_of(alignment) {
            return Err(PresenceError::Unaligned(range, alignment));
        }
        state.areas.check_not_coming(range).map_err(PresenceError::Busy)?;
        let areas = || state.areas.all_in(range).map(|(area, ..)| area);
        let first = areas().next().ok_or(PresenceError::Empty(range))?;
        let last = areas().last().unwrap_or(first);
        let hull = IovaRange { start: first.start, last: last.last };
        let (low, high) = (first.start < range.start, last.last > range.last);
        let cuts = [low.then_some(range.start), high.then_some(range.last.wrapping_add(1))];
        let cuts = || cuts.into_iter().flatten();
        cuts().try_for_each(|cut| state.areas.check_cut(cut, alignment, false))?;
        state.areas.set_busy(hull, true);
        drop(state);
        let _busy = Busy { ioas: self, range: hull };
        // Large pages that a cut would go through become small ones first.
        let mut state = self.split_mirrors(hull.start, cuts)?;
        cuts().try_for_each(|cut| state.areas.cut(cut, alignment, false))?;
        let runs: Vec<IovaRange> = state.areas.mapped_in(range).map(|(range, ..)| range).collect();
        drop(state);
        let mut done = 0;
        let mut state = loop {
            match self.next_mirror(done, range.start) {
                Err(state) => break state,
                Ok(called) => {
                    self.unmap_in(&called, &mut runs.iter().copied().filter(|run| called.has(run.start)));
                    done = called.number;
                }
            }
        };
        // Nothing walks the tables or moves bytes through the windows any more.
        let pins = state.areas.make_absent(range);
        drop(state);
        drop(pins);
        Ok(())
    }

    /// Brings in what is absent in `range`, and returns how many bytes that was: devices find it from then on.
    ///
    /// # Errors
    /// See [`PresenceError`].
    pub fn populate(&self, range: IovaRange) -> Result<u64, PresenceError> {
        check_may_wait()?;
        if !(range.start | range.last.wrapping_add(1)).is_multiple_of(PAGE_SIZE) {
            return Err(PresenceError::Unaligned(range, PAGE_SIZE));
        }
        let bytes = self.populate_for(range, Access::empty())?;
        if bytes == 0 && self.lock().areas.all_in(range).next().is_none() {
            return Err(PresenceError::Empty(range));
        }
        Ok(bytes)
    }

    /// Brings in what a device needs at `iova`, and some of what is around it. False if nothing is mapped there, or not
    /// for such an access, or it cannot be had.
    pub(crate) fn bring_in(&self, iova: u64, access: Access) -> bool {
        let around = IovaRange { start: iova & !(AROUND - 1), last: iova | (AROUND - 1) };
        let own = IovaRange { start: iova & !(PAGE_SIZE - 1), last: iova | (PAGE_SIZE - 1) };
        // What is around it may be memory that cannot be had.
        let _ = self.populate_for(around, access).or_else(|_| self.populate_for(own, access));
        let found = self.lock().areas.presence(iova);
        found.is_some_and(|(allowed, presence)| presence == Presence::Present && allowed.contains(access))
    }

    /// Whether what is mapped at `iova` makes devices fault.
    pub(crate) fn is_absent(&self, iova: u64) -> bool {
        matches!(self.lock().areas.presence(iova), Some((_, Presence::Absent)))
    }

    /// How many bytes are absent in `range`.
    #[must_use]
    pub fn absent_bytes(&self, range: IovaRange) -> u64 {
        let absent = self.lock().areas.absent_in(range, Access::empty());
        absent.iter().map(|wanted| wanted.part.len_minus_one() + 1).sum()
    }

    /// Brings in what is absent in `range` and allows `access`: all of it or, on an error, nothing.
    fn populate_for(&self, range: IovaRange, access: Access) -> Result<u64, PresenceError> {
        loop {
            // Memory is brought in without the lock, so it is looked again afterwards whether it is absent still.
            let mut wanted = self.lock().areas.absent_in(range, access);
            for Wanted { part, backed, .. } in &mut wanted {
                let length = part.len_minus_one() + 1;
                backed.pin = Some(backed.pages.pin(&self.shared.phys, part.start, backed.offset, length)?);
            }
            let state = self.when_settled(self.lock(), range)?;
            if wanted.iter_mut().all(|wanted| state.areas.is_absent_still(wanted, access)) {
                return self.make_present(state, wanted);
            }
            drop(state);
        }
    }

    /// Puts what is absent, and brought in, into every mirror.
    fn make_present(&self, mut state: Locked<'_>, wanted: Vec<Wanted>) -> Result<u64, PresenceError> {
        let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { return Ok(0) };
        let (start, hull) = (first.part.start, IovaRange { start: first.area.start, last: last.area.last });
        let (alignment, cut_off) = (PAGE_SIZE.min(state.alignment()), state.links.cut_off);
        // They become areas of their own.
        if let Err(error) = check_cuts(&state.areas, &wanted, alignment) {
            // The pins go after the lock: the account is a caller's.
            drop(state);
            return Err(error.into());
        }
        state.areas.set_busy(hull, true);
        drop(state);
        let _busy = Busy { ioas: self, range: hull };
        // A mirror that joins, until what is wanted is present.
        let (mut done, mut filled, mut joins) = (0, None, None);
        let take_back = |filled: Option<Now>| {
            if let Some(now) = filled {
                drop(Filled { ioas: self, wanted: &wanted, now });
            }
            self.lock().links.exposes(cut_off, wanted.iter().map(|wanted| &wanted.backed));
        };
        let mut state = loop {
            match self.next_mirror(done, start) {
                Err(state) => break state,
                Ok(called) => {
                    for (at, Wanted { part, access, backed, .. }) in wanted.iter().enumerate() {
                        if !called.has(part.start) {
                            continue;
                        }
                        if let Err(error) = self.map_in(&called, *part, *access, backed) {
                            let before = wanted[..at].iter().map(|wanted| wanted.part);
                            let before = before.filter(|part| called.has(part.start));
                            self.unmap_in(&called, &mut { before });
                            drop(called);
                            take_back(filled);
                            return Err(error.into());
                        }
                    }
                    done = called.number;
                    filled = Some(Now::up_to(done));
                    if called.joins() {
                        joins = Some(called);
                    }
                }
            }
        };
        // Software may have pinned something since it was looked at.
        if let Err(error) = check_cuts(&state.areas, &wanted, alignment) {
            drop(state);
            take_back(filled);
            return Err(error.into());
        }
        let exposed = state.links.exposes(cut_off, wanted.iter().map(|wanted| &wanted.backed));
        let pinned = !state.links.is_empty();
        let (mut bytes, mut spare) = (0, Vec::new());
        for wanted in wanted {
            for cut in wanted.cuts() {
                state.areas.cut(cut, alignment, false)?;
            }
            let Wanted { part, backed, .. } = wanted;
            let pin = if pinned {
                backed.pin
            } else {
                backed.pin.and_then(|pin| {
                    spare.push(pin);
                    None
                })
            };
            state.areas.make_present(part, pin, exposed);
            bytes += part.len_minus_one() + 1;
        }
        drop(state);
        drop((spare, joins));
        Ok(bytes)
    }

    /// Whether what is mapped at `iova` is absent: devices fault there. `None` if nothing is mapped.
    #[must_use]
    pub fn faults_at(&self, iova: Iova) -> Option<bool> {
        self.lock().areas.presence(iova.0).map(|(_, presence)| presence == Presence::Absent)
    }
}

/// Fails if what is wanted cannot become areas of its own.
fn check_cuts(areas: &Areas, wanted: &[Wanted], alignment: u64) -> Result<(), CutError> {
    wanted.iter().flat_map(Wanted::cuts).try_for_each(|cut| areas.check_cut(cut, alignment, false))
}
