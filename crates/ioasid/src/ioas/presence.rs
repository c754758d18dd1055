//! What is mapped and makes devices fault: for memory that comes later (post-copy), or only if somebody needs it.
//!
//! ```text
//!   mapped, present ──make_fault──► mapped, absent: in no page table, its memory not held
//!         ▲                              │
//!         └───────────populate───────────┘  by the owner, or on a fault, where the page table resolves misses
//! ```
//! A range that is made to fault, or brought in, becomes areas of its own: what was one mapping can then be unmapped in those
//! parts, or, as before, as a whole.

use std::sync::PoisonError;

use iopt::Access;
use thiserror::Error;

use super::areas::{Areas, Presence};
use super::{Backed, CutError, Ioas, Space};
use crate::gate::check_holds_nothing;
use crate::hwpt::Hwpt;
use crate::memory::{PAGE_SIZE, PinError};
use crate::types::{HoldsSlices, Iova, IovaRange};

/// Bytes that are brought in on a fault, if as many are absent around it.
const AROUND: u64 = 64 << 10;

/// Why nothing was made to fault, or brought in. What is mapped is as it was.
#[derive(Debug, Error)]
pub enum PresenceError {
    /// Nothing is mapped in the range.
    #[error("nothing is mapped in IOVA {0}")]
    Empty(IovaRange),
    /// The range is not made of what mappings are made of, or of the processor's pages.
    #[error("IOVA {0} is not made of pages of {1:#x} bytes")]
    Unaligned(IovaRange, u64),
    /// Part of the range is being mapped or unmapped.
    #[error("IOVA {0} is being mapped or unmapped")]
    Busy(IovaRange),
    /// An area cannot be cut where the range begins or ends.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The memory could not be brought in.
    #[error(transparent)]
    Pages(#[from] PinError),
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
    /// There is no room for page tables.
    #[error(transparent)]
    Table(#[from] iopt::MapError),
}

impl Ioas {
    /// Makes devices fault in `range`, where everything stays mapped: what happens then is up to their page tables
    /// ([`OnMiss`](crate::OnMiss)). When it returns, no DMA through these mappings is in flight and none can start, and their
    /// memory is not held for devices any more. What devices wrote and nobody has read from the dirty bitmaps is lost there, as at
    /// an unmap.
    ///
    /// # Errors
    /// See [`PresenceError`].
    pub fn make_fault(&self, range: IovaRange) -> Result<(), PresenceError> {
        check_holds_nothing()?;
        let _unmap = self.unmap.lock().unwrap_or_else(PoisonError::into_inner);
        let space = self.exclusive();
        let alignment = space.alignment().max(PAGE_SIZE);
        if range.start > range.last || !(range.start | range.last.wrapping_add(1)).is_multiple_of(alignment) {
            return Err(PresenceError::Unaligned(range, alignment));
        }
        let cuts = {
            let areas = self.locked_areas();
            areas.check_settled(range).map_err(PresenceError::Busy)?;
            let first = areas.all_in(range).next().ok_or(PresenceError::Empty(range))?;
            let last = areas.all_in(range).last().unwrap_or(first);
            let (low, high) = (first.start < range.start, last.last > range.last);
            let cuts = [low.then_some(range.start), high.then_some(range.last.wrapping_add(1))];
            cuts.into_iter().flatten().try_for_each(|cut| areas.check_cut(cut, alignment, false))?;
            cuts
        };
        // Large pages that a cut would go through become small ones first.
        for cut in cuts.into_iter().flatten() {
            for hwpt in &space.tables {
                split_at(hwpt, cut)?;
            }
        }
        let runs: Vec<IovaRange> = {
            let mut areas = self.locked_areas();
            for cut in cuts.into_iter().flatten() {
                areas.cut(cut, alignment, false)?;
            }
            areas.all_in(range).collect()
        };
        space.tables.iter().for_each(|hwpt| hwpt.unmap(range, runs.iter().copied()));
        // Nobody is walking the tables or moving bytes through the windows any more.
        let pins = self.locked_areas().make_absent(range);
        drop(pins);
        Ok(())
    }

    /// Brings in what is absent in `range`, and returns how many bytes that was: devices find it from then on.
    ///
    /// # Errors
    /// See [`PresenceError`].
    pub fn populate(&self, range: IovaRange) -> Result<u64, PresenceError> {
        check_holds_nothing()?;
        if range.start > range.last || !(range.start | range.last.wrapping_add(1)).is_multiple_of(PAGE_SIZE) {
            return Err(PresenceError::Unaligned(range, PAGE_SIZE));
        }
        let bytes = self.populate_for(range, Access::empty())?;
        if bytes == 0 && self.locked_areas().all_in(range).next().is_none() {
            return Err(PresenceError::Empty(range));
        }
        Ok(bytes)
    }

    /// Brings in what a device needs at `iova`, and some of what is around it. False if nothing is mapped there, or not for such
    /// an access, or it cannot be had.
    pub(crate) fn bring_in(&self, iova: u64, access: Access) -> bool {
        let around = IovaRange { start: iova & !(AROUND - 1), last: iova | (AROUND - 1) };
        let own = IovaRange { start: iova & !(PAGE_SIZE - 1), last: iova | (PAGE_SIZE - 1) };
        // What is around it may be memory that cannot be had.
        let _ = self.populate_for(around, access).or_else(|_| self.populate_for(own, access));
        let found = self.locked_areas().presence(iova);
        found.is_some_and(|(allowed, presence)| presence == Presence::Present && allowed.contains(access))
    }

    /// Whether what is mapped at `iova` makes devices fault.
    pub(crate) fn is_absent(&self, iova: u64) -> bool {
        matches!(self.locked_areas().presence(iova), Some((_, Presence::Absent)))
    }

    /// How many bytes are absent in `range`.
    #[must_use]
    pub fn absent_bytes(&self, range: IovaRange) -> u64 {
        let absent = self.locked_areas().absent_in(range, Access::empty());
        absent.iter().map(|(part, _)| part.len_minus_one() + 1).sum()
    }

    /// Brings in what is absent in `range` and allows `access`: all of it or, on an error, nothing.
    fn populate_for(&self, range: IovaRange, access: Access) -> Result<u64, PresenceError> {
        loop {
            // Memory is brought in without a lock, so it is looked again afterwards whether it is absent still.
            let mut wanted = self.locked_areas().absent_in(range, access);
            for (part, backed) in &mut wanted {
                let length = part.len_minus_one() + 1;
                backed.pin = Some(backed.pages.pin_part(&self.iommu().phys, backed.offset, length)?);
            }
            let space = self.exclusive();
            let is_still = |(part, backed): &(IovaRange, Backed)| {
                self.locked_areas().absent_still(*part, backed).is_some_and(|allowed| allowed.contains(access))
            };
            if wanted.iter().all(is_still) {
                return self.make_present(&space, wanted);
            }
        }
    }

    /// Puts what is absent, and brought in, into every page table.
    fn make_present(&self, space: &Space, parts: Vec<(IovaRange, Backed)>) -> Result<u64, PresenceError> {
        let alignment = PAGE_SIZE.min(space.alignment());
        let ends = |part: &IovaRange| [Some(part.start), part.last.checked_add(1)].into_iter().flatten();
        let allowed =
            |part: &IovaRange| self.locked_areas().presence(part.start).map_or(Access::empty(), |(allowed, _)| allowed);
        // They become areas of their own.
        let check = |areas: &Areas| {
            parts.iter().flat_map(|(part, _)| ends(part)).try_for_each(|end| areas.check_cut(end, alignment, false))
        };
        check(&self.locked_areas())?;
        let mut mapped: Vec<(&Hwpt, IovaRange)> = Vec::new();
        let take_back = |mapped: Vec<(&Hwpt, IovaRange)>| {
            mapped.into_iter().for_each(|(hwpt, part)| hwpt.take_back(std::iter::once(part)));
        };
        for hwpt in &space.tables {
            for (part, backed) in &parts {
                if let Err(error) = hwpt.map(*part, allowed(part), backed, space.largest_page()) {
                    take_back(mapped);
                    return Err(error.into());
                }
                mapped.push((hwpt, *part));
            }
        }
        let mut areas = self.locked_areas();
        // Somebody may hold on to one since it was looked at.
        if let Err(error) = check(&areas) {
            drop(areas);
            take_back(mapped);
            return Err(error.into());
        }
        let mut bytes = 0;
        for (part, backed) in parts {
            ends(&part).try_for_each(|end| areas.cut(end, alignment, false))?;
            areas.make_present(part, backed.pin.filter(|_| !space.tables.is_empty()));
            bytes += part.len_minus_one() + 1;
        }
        Ok(bytes)
    }

    /// Whether what is mapped at `iova` is absent: devices fault there. `None` if nothing is mapped.
    #[must_use]
    pub fn faults_at(&self, iova: Iova) -> Option<bool> {
        self.locked_areas().presence(iova.0).map(|(_, presence)| presence == Presence::Absent)
    }
}

/// Sees to it that no page of a table goes through `cut`.
fn split_at(hwpt: &Hwpt, cut: u64) -> Result<(), iopt::MapError> {
    let page = hwpt.page_size();
    // What a table cannot address, it has no pages of.
    if hwpt.format().aperture().contains(&IovaRange { start: cut, last: cut }) {
        hwpt.table.split(cut & !(page - 1), page, page.ilog2())?;
    }
    Ok(())
}
