//! Mapping: a range is taken, its memory brought in, each mirror filled, and then it is an area.

use std::sync::Arc;

use iopt::Access;

use super::areas::Backed;
use super::links::{Busy, Now};
use super::{CutError, Ioas, MapError, Placement};
use crate::base::callback;
use crate::base::types::{Iova, IovaRange};
use crate::gate::check_may_wait;
use crate::memory::{ImportError, Pages, PagesSlice, PinError, Segment};

/// A range that is kept for a mapping to come, and given up if none does, whatever the reason.
struct Kept<'a> {
    ioas: &'a Ioas,
    range: IovaRange,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.ioas.lock().areas.remove(self.range);
    }
}

/// Areas that some mirrors have and that are no areas yet; taken out of those mirrors again if they do not become any.
struct Filled<'a, 'r> {
    ioas: &'a Ioas,
    areas: &'r [(IovaRange, Backed)],
    now: Now,
}

impl Drop for Filled<'_, '_> {
    fn drop(&mut self) {
        let mut done = 0;
        while let Some(called) = self.ioas.next_mirror_of(done, self.now) {
            let mut runs = self.areas.iter().map(|(range, _)| *range).filter(|range| called.has(range.start));
            self.ioas.unmap_in(&called, &mut runs);
            done = called.number;
        }
    }
}

impl Ioas {
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
        self.map_slices(placement, length, access, 0, || {
            let segments = callback::call(memory).map_err(PinError::Memory)?;
            let pages = Pages::of(segments, length, access.contains(Access::WRITE))?;
            Ok(vec![PagesSlice { pages, offset: 0, length }])
        })
    }

    /// Maps `length` bytes of `pages`, from `offset` on, at `iova` or anywhere, and returns where. They are brought in
    /// now if there is a mirror, and otherwise when there is one.
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
        let slice = PagesSlice { pages: pages.clone(), offset, length };
        self.map_slices(placement(iova, &slice), length, access, offset, || Ok(vec![slice]))
    }

    /// Maps what `source` (which may be this one, or one of another machine) maps from `from` on, `length` bytes, at
    /// `iova` or anywhere, and returns where: the same memory, brought in once in each machine.
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
        let slices = source.lock().areas.pieces(range, Access::empty(), None);
        let slices = slices.map_err(|_| MapError::SourceNotMapped(from.0, length))?;
        let first = slices.first().ok_or(MapError::Empty)?;
        self.map_slices(placement(iova, first), length, access, first.offset, || Ok(slices))
    }

    /// Maps slices in a row, an area for each; they have `length` bytes together, and the first begins `offset` bytes
    /// into some page.
    fn map_slices(
        &self,
        placement: Placement,
        length: u64,
        access: Access,
        offset: u64,
        slices: impl FnOnce() -> Result<Vec<PagesSlice>, MapError>,
    ) -> Result<Iova, MapError> {
        check_may_wait()?;
        if length == 0 {
            return Err(MapError::Empty);
        }
        if access.is_empty() {
            return Err(MapError::NoAccess);
        }
        let (range, cut_off) = {
            let mut state = self.lock();
            let range = state.place(placement, length, offset)?;
            state.areas.keep(range, access);
            (range, state.links.cut_off)
        };
        let kept = Kept { ioas: self, range };
        let slices = slices()?;
        if access.contains(Access::WRITE) && slices.iter().any(|slice| !slice.pages.is_writable()) {
            return Err(MapError::PagesReadOnly);
        }
        let mut start = range.start;
        let mut areas: Vec<(IovaRange, Backed)> = slices
            .into_iter()
            .map(|PagesSlice { pages, offset, length }| {
                let area = IovaRange { start, last: start + (length - 1) };
                start = area.last.wrapping_add(1);
                (area, Backed { pages, offset, pin: None })
            })
            .collect();
        self.publish(range, &mut areas, access, cut_off).inspect_err(|_| {
            self.lock().links.exposes(cut_off, areas.iter().map(|(_, backed)| backed));
        })?;
        std::mem::forget(kept);
        Ok(Iova(range.start))
    }

    /// Puts pages into ranges that are kept for them, `all` of it, and into every mirror. When they were kept, so many
    /// mirrors had been `cut_off`.
    fn publish(
        &self,
        all: IovaRange,
        areas: &mut Vec<(IovaRange, Backed)>,
        access: Access,
        cut_off: u64,
    ) -> Result<(), MapError> {
        let mut done = 0;
        let mut filled: Option<Now> = None;
        // A mirror that joins, until the areas are published.
        let mut joins = None;
        loop {
            let called = match self.next_mirror_for(done, all) {
                Ok(called) => called,
                Err(mut state) => {
                    let exposed = state.links.exposes(cut_off, areas.iter().map(|(_, backed)| backed));
                    // Without a mirror nothing is pinned; what was, for one that went, is let go without the lock.
                    let spare = if state.links.is_empty() { take_pins(areas) } else { Vec::new() };
                    for (range, backed) in areas.drain(..) {
                        state.areas.publish(range, access, backed, exposed);
                    }
                    drop(state);
                    drop((spare, joins));
                    return Ok(());
                }
            };
            self.pin_all(areas)?;
            for (at, (range, backed)) in areas.iter().enumerate() {
                if let Err(error) = self.map_in(&called, *range, access, backed) {
                    self.unmap_in(&called, &mut areas[..at].iter().map(|(range, _)| *range));
                    drop(called);
                    if let Some(now) = filled {
                        drop(Filled { ioas: self, areas, now });
                    }
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

    fn pin_all(&self, areas: &mut [(IovaRange, Backed)]) -> Result<(), PinError> {
        for (range, backed) in areas {
            if backed.pin.is_none() {
                let length = range.len_minus_one() + 1;
                backed.pin = Some(backed.pages.pin(&self.shared.phys, range.start, backed.offset, length)?);
            }
        }
        Ok(())
    }

    /// Makes two areas of the one that `iova` lies in, if it is not the first address of one: what is mapped stays as
    /// it is, and either part can be unmapped by itself from then on.
    ///
    /// # Errors
    /// See [`CutError`].
    pub fn cut(&self, iova: Iova) -> Result<(), CutError> {
        check_may_wait()?;
        let at = IovaRange { start: iova.0, last: iova.0 };
        let mut state = self.when_settled(self.lock(), at)?;
        let (alignment, large) = (state.alignment(), state.rules.has_large_pages() && !state.links.is_empty());
        state.areas.check_cut(iova.0, alignment, large)?;
        let Some(area) = state.areas.overlapping(at).next().filter(|area| area.start < iova.0) else { return Ok(()) };
        state.areas.set_busy(area, true);
        drop(state);
        let _busy = Busy { ioas: self, range: area };
        let split = self.split_mirrors(area.start, || std::iter::once(iova.0));
        split.map_err(|_| CutError::Mirror(iova.0))?.areas.cut(iova.0, alignment, large)
    }
}

fn take_pins(areas: &mut [(IovaRange, Backed)]) -> Vec<crate::memory::Pin> {
    areas.iter_mut().filter_map(|(_, backed)| backed.pin.take()).collect()
}

/// At `iova`, or where large pages fit.
fn placement(iova: Option<Iova>, first: &PagesSlice) -> Placement {
    iova.map_or(Placement::Automatic { like: first.pages.address().wrapping_add(first.offset) }, Placement::Fixed)
}
