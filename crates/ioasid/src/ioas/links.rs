//! The mirrors of an address space, and how they come and go.
//!
//! Mirrors have numbers, in the order in which they were added, and a thread that fills or empties them goes from one
//! number to the next, without the lock in between. One mirror at a time *joins*: it is the last on the list, and a
//! cursor says how far it has been looked after. What begins below the cursor is mapped in it by its mapper, or has
//! been; what begins above is mapped in it when the cursor comes there. The cursor moves under the lock, over what is
//! free or not mapped yet as well, and a mapper decides and publishes under the lock, so each area is mapped in each
//! mirror once.
//!
//! A mapper that has mapped something in a mirror that joins keeps its call of it until it has published. So when a
//! mirror that could not be filled is taken away again, what it has is what the areas say.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use iopt::Access;

use super::areas::Backed;
use super::{ConnectError, Ioas, Locked};
use crate::base::callback;
use crate::base::types::{Iova, IovaRange, WouldDeadlock};
use crate::gate::check_may_wait;
use crate::mirror::{Mirror, MirrorCapabilities, MirrorError, MirrorRun};

/// One mirror of an address space.
struct Link {
    number: u64,
    mirror: Arc<dyn Mirror>,
    capabilities: MirrorCapabilities,
    /// Calls of it that are under way.
    calls: usize,
    /// While it joins, the first IOVA that was not looked at yet.
    cursor: Option<u64>,
}

/// All of them, in order of their numbers.
#[derive(Default)]
pub(super) struct Links {
    links: Vec<Link>,
    added: u64,
    /// How many have broken their contract, and were cut off.
    pub(super) cut_off: u64,
}

/// Which mirrors there are at some moment, and how far the one that joins has come.
#[derive(Clone, Copy)]
pub(super) struct Now {
    last: u64,
    joining: Option<(u64, u64)>,
}

impl Now {
    /// Those up to the one with this number.
    pub(super) fn up_to(last: u64) -> Self {
        Self { last, joining: None }
    }
}

/// A mirror that may be called as long as this lives: it is not taken away meanwhile.
pub(super) struct Called<'a> {
    ioas: &'a Ioas,
    pub(super) number: u64,
    mirror: Arc<dyn Mirror>,
    /// The areas that begin below are in it, or all.
    below: Option<u64>,
    /// log2 of the bytes of the largest page that it may use.
    pub(super) largest: u32,
}

impl Called<'_> {
    /// Whether it joins.
    pub(super) fn joins(&self) -> bool {
        self.below.is_some()
    }

    pub(super) fn mirror(&self) -> &dyn Mirror {
        &*self.mirror
    }

    pub(super) fn has(&self, start: u64) -> bool {
        self.below.is_none_or(|below| start < below)
    }

    /// What of `range`, which consists of areas, is in it.
    pub(super) fn clip(&self, range: IovaRange) -> Option<IovaRange> {
        let last =
            self.below.map_or(Some(range.last), |below| below.checked_sub(1).map(|most| range.last.min(most)))?;
        (range.start <= last).then_some(IovaRange { last, ..range })
    }
}

impl Drop for Called<'_> {
    fn drop(&mut self) {
        let mut state = self.ioas.lock();
        if let Some(link) = state.links.links.iter_mut().find(|link| link.number == self.number) {
            link.calls -= 1;
        }
        drop(state);
        self.ioas.settled.notify_all();
    }
}

impl Links {
    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Whether some mirror was cut off since there were `before` of those. What a thread has pinned to map it is in no
    /// area yet, where [`Ioas::cut_off`] would find it; that mirror may reach it, so then it stays pinned for good.
    pub(super) fn exposes<'b>(&self, before: u64, pinned: impl Iterator<Item = &'b Backed>) -> bool {
        let exposes = self.cut_off != before;
        if exposes {
            pinned.for_each(|backed| std::mem::forget(backed.pin.clone()));
        }
        exposes
    }

    pub(super) fn capabilities(&self) -> impl Iterator<Item = &MirrorCapabilities> + Clone {
        self.links.iter().map(|link| &link.capabilities)
    }

    pub(super) fn now(&self) -> Now {
        let joining = self.links.iter().find_map(|link| Some((link.number, link.cursor?)));
        Now { last: self.added, joining }
    }

    /// The next mirror after `number` that has areas which begin at `first` or below.
    fn call_next(&mut self, number: u64, first: u64) -> Option<(u64, Arc<dyn Mirror>, Option<u64>)> {
        let has = |link: &&mut Link| link.number > number && link.cursor.is_none_or(|cursor| first < cursor);
        let link = self.links.iter_mut().find(has)?;
        link.calls += 1;
        Some((link.number, link.mirror.clone(), link.cursor))
    }

    /// As [`Links::call_next`], to have all of `range`, which is free but for its mapper: the cursor does not stop
    /// inside.
    fn call_next_for(&mut self, number: u64, range: IovaRange) -> Option<(u64, Arc<dyn Mirror>, Option<u64>)> {
        let called = self.call_next(number, range.start)?;
        let link = self.links.iter_mut().find(|link| link.number == called.0)?;
        if let Some(cursor) = &mut link.cursor {
            *cursor = (*cursor).max(range.last.saturating_add(1));
        }
        Some(called)
    }

    /// As [`Links::call_next`], of those that there were, as they were.
    fn call_next_of(&mut self, number: u64, now: Now) -> Option<(u64, Arc<dyn Mirror>, Option<u64>)> {
        let link = self.links.iter_mut().find(|link| link.number > number && link.number <= now.last)?;
        link.calls += 1;
        let below = now.joining.filter(|(joining, _)| *joining == link.number).map(|(_, cursor)| cursor);
        Some((link.number, link.mirror.clone(), below))
    }
}

/// Calls a mirror, whose panic is an error.
pub(super) fn guarded<T>(code: impl FnOnce() -> Result<T, MirrorError>) -> Result<T, MirrorError> {
    callback::call(|| catch_unwind(AssertUnwindSafe(code))).unwrap_or(Err(MirrorError::Panicked))
}

impl Ioas {
    /// Calls the next mirror after `number` that has areas from `first` on. If there is none, the caller gets the lock,
    /// and no other comes before it lets it go.
    pub(super) fn next_mirror(&self, number: u64, first: u64) -> Result<Called<'_>, Locked<'_>> {
        let mut state = self.lock();
        match state.links.call_next(number, first) {
            Some((number, mirror, below)) => {
                Ok(Called { ioas: self, number, mirror, below, largest: state.rules.largest_page() })
            }
            None => Err(state),
        }
    }

    /// As [`Ioas::next_mirror`], to have all of `range`, which is kept for the caller.
    pub(super) fn next_mirror_for(&self, number: u64, range: IovaRange) -> Result<Called<'_>, Locked<'_>> {
        let mut state = self.lock();
        match state.links.call_next_for(number, range) {
            Some((number, mirror, below)) => {
                Ok(Called { ioas: self, number, mirror, below, largest: state.rules.largest_page() })
            }
            None => Err(state),
        }
    }

    /// The next mirror after `number` of those that there were, as they were.
    pub(super) fn next_mirror_of(&self, number: u64, now: Now) -> Option<Called<'_>> {
        let mut state = self.lock();
        let (number, mirror, below) = state.links.call_next_of(number, now)?;
        Some(Called { ioas: self, number, mirror, below, largest: state.rules.largest_page() })
    }

    /// Maps an area, or a part of one, in a mirror.
    pub(super) fn map_in(
        &self,
        called: &Called<'_>,
        range: IovaRange,
        access: Access,
        backed: &Backed,
    ) -> Result<(), MirrorError> {
        // There is a mirror, so it is pinned.
        let Some(pin) = &backed.pin else { return Ok(()) };
        let run = MirrorRun { range, access, pin, offset: backed.offset, largest: called.largest };
        let result = guarded(|| called.mirror.map(&run));
        if let Err(MirrorError::Panicked | MirrorError::Reachable) = result {
            self.unmap_in(called, &mut std::iter::once(range));
        }
        result
    }

    /// Unmaps runs in a mirror. Returns whether it kept its contract; one that did not is cut off, and what it could
    /// reach stays pinned for good.
    pub(super) fn unmap_in(&self, called: &Called<'_>, runs: &mut dyn Iterator<Item = IovaRange>) -> bool {
        let result = guarded(|| called.mirror.unmap(runs));
        if result.is_err() {
            self.cut_off(called.number);
        }
        result.is_ok()
    }

    /// Asks a mirror for nothing any more, which has broken its contract.
    pub(super) fn cut_off(&self, number: u64) {
        let pins = {
            let mut state = self.lock();
            state.links.links.retain(|link| link.number != number);
            state.links.cut_off += 1;
            state.limits_changed();
            state.areas.expose();
            state.areas.pins()
        };
        std::mem::forget(pins);
        self.settled.notify_all();
    }

    /// Adds a mirror: it is filled with what is mapped, and follows the address space from then on, until
    /// [`Ioas::remove_mirror`]. Memory that is mapped is brought in, if this is the first.
    ///
    /// # Errors
    /// See [`ConnectError`]; the address space is as it was, and nothing is left in the mirror.
    pub fn add_mirror(&self, mirror: Arc<dyn Mirror>) -> Result<(), ConnectError> {
        check_may_wait()?;
        let capabilities = callback::call(|| mirror.capabilities());
        let (number, alignment, largest) = {
            let mut state = self.lock();
            while state.links.now().joining.is_some() {
                state = self.wait(state)?;
            }
            let state = &mut *state;
            let outside = crate::base::ranges::Ranges::union([capabilities.aperture]).complement();
            let unusable = || capabilities.reserved.iter().copied().chain(outside.iter());
            state.rules.check_allowed(&capabilities.reserved)?;
            state.areas.check(unusable())?;
            let alignment = state.rules.alignment(&state.links, &state.accessors).max(capabilities.page_size());
            state.areas.check_alignment(alignment)?;
            let links = &mut state.links;
            links.added += 1;
            let number = links.added;
            links.links.push(Link { number, mirror: mirror.clone(), capabilities, calls: 1, cursor: Some(0) });
            state.limits_changed();
            (number, alignment, state.rules.largest_page())
        };
        // A panic of a callback's takes it out again.
        let called = Called { ioas: self, number, mirror, below: None, largest };
        let joining = Joining { ioas: self, called, joined: false };
        joining.fill(alignment)
    }

    /// Takes a mirror away: when this returns, it is not called any more. What it maps is its own affair.
    ///
    /// # Errors
    /// [`WouldDeadlock`] from one of its own functions; it stays then.
    pub fn remove_mirror(&self, mirror: &Arc<dyn Mirror>) -> Result<(), WouldDeadlock> {
        check_may_wait()?;
        {
            let mut state = self.lock();
            let is_it = |link: &Link| Arc::ptr_eq(&link.mirror, mirror);
            while state.links.links.iter().any(|link| is_it(link) && (link.calls > 0 || link.cursor.is_some())) {
                state = self.wait(state)?;
            }
            state.links.links.retain(|link| !is_it(link));
            state.limits_changed();
        }
        self.unpin_unused();
        Ok(())
    }

    /// Takes a device's own mirror away, and what is in it. When this returns, the device reaches nothing of this
    /// address space by it; what it may reach nevertheless, as the mirror has broken its contract, stays pinned, and to
    /// unmap it is an error.
    pub(crate) fn expel_mirror(&self, mirror: &Arc<dyn Mirror>) -> Result<(), WouldDeadlock> {
        check_may_wait()?;
        let areas: Vec<_> = {
            let mut state = self.lock();
            let is_it = |link: &Link| Arc::ptr_eq(&link.mirror, mirror);
            while state.links.links.iter().any(|link| is_it(link) && (link.calls > 0 || link.cursor.is_some()))
                || state.areas.is_changing(IovaRange::ALL)
            {
                state = self.wait(state)?;
            }
            state.links.links.retain(|link| !is_it(link));
            state.limits_changed();
            // Nothing of this is unmapped before it is taken out of the mirror, which no other thread does any more.
            let areas: Vec<_> = state.areas.all_in(IovaRange::ALL).map(|(range, ..)| range).collect();
            areas.iter().for_each(|range| state.areas.set_busy(*range, true));
            areas
        };
        let busy: Vec<_> = areas.into_iter().map(|range| Busy { ioas: self, range }).collect();
        if guarded(|| mirror.unmap(&mut std::iter::once(IovaRange::ALL))).is_err() {
            let pins = {
                let mut state = self.lock();
                state.areas.expose();
                state.areas.pins()
            };
            std::mem::forget(pins);
        }
        drop(busy);
        self.unpin_unused();
        Ok(())
    }

    /// Whether this mirror follows it.
    pub(crate) fn has_mirror(&self, mirror: &Arc<dyn Mirror>) -> bool {
        self.lock().links.links.iter().any(|link| Arc::ptr_eq(&link.mirror, mirror))
    }

    /// [`Ioas::remove_mirror`] of a page table that no device is attached to; its memory is let go by
    /// [`Ioas::unpin_unused`].
    pub(crate) fn remove_table(&self, table: &dyn Mirror) {
        let mut state = self.lock();
        let is_it = |link: &Link| std::ptr::addr_eq(Arc::as_ptr(&link.mirror), table);
        while state.links.links.iter().any(|link| is_it(link) && link.calls > 0) {
            // A page table runs no code of callers, so this ends, in a callback, too.
            state = self.settled.wait(state);
        }
        let removed = state.links.links.iter().position(is_it).map(|at| state.links.links.remove(at));
        state.limits_changed();
        drop(state);
        drop(removed);
    }

    /// Lets memory go, area by area, as long as there is no mirror.
    pub(crate) fn unpin_unused(&self) {
        let mut from = Some(0);
        while let Some(start) = from {
            let mut state = self.lock();
            if !state.links.is_empty() {
                break;
            }
            let Some((next, pin)) = state.areas.take_pin(start) else { break };
            drop(state);
            drop(pin);
            from = next;
        }
    }

    /// The mirrors of one type, as far as there are any.
    pub(crate) fn find_mirror<T>(&self, each: impl FnMut(&Arc<dyn Mirror>) -> Option<T>) -> Option<T> {
        let state = self.lock();
        let links = state.links.links.iter().filter(|link| link.cursor.is_none());
        links.map(|link| &link.mirror).find_map(each)
    }

    /// Sees to it that in no mirror something goes through the `cuts`, which are in the area that begins at `start`, or
    /// in the next. The caller keeps the areas as they are meanwhile.
    pub(super) fn split_mirrors<C: Iterator<Item = u64>>(
        &self,
        start: u64,
        cuts: impl Fn() -> C,
    ) -> Result<Locked<'_>, MirrorError> {
        let mut done = 0;
        loop {
            match self.next_mirror(done, start) {
                Err(state) => return Ok(state),
                Ok(called) => {
                    for at in cuts().filter(|_| called.has(start)) {
                        guarded(|| called.mirror.split(Iova(at)))?;
                    }
                    done = called.number;
                }
            }
        }
    }
}

/// A mirror that joins, until it has or is taken out again.
struct Joining<'a> {
    ioas: &'a Ioas,
    called: Called<'a>,
    joined: bool,
}

impl Joining<'_> {
    fn fill(mut self, alignment: u64) -> Result<(), ConnectError> {
        let ioas = self.ioas;
        loop {
            let mut locked = ioas.lock();
            let state = &mut *locked;
            let cut_off = state.links.cut_off;
            let link = state.links.links.iter_mut().find(|link| link.number == self.called.number);
            // It may have been cut off meanwhile.
            let link = link.ok_or(MirrorError::Panicked)?;
            let Some(changing) = state.areas.next_to_fill(link.cursor.unwrap_or(0)) else {
                link.cursor = None;
                self.joined = true;
                return Ok(());
            };
            let Some((range, access, backed)) = changing else {
                drop(ioas.wait(locked)?);
                continue;
            };
            // What comes to lie before it is its mapper's affair from now on.
            link.cursor = Some(range.start);
            self.called.largest = state.rules.largest_page();
            let (pages, offset) = (backed.pages.clone(), backed.offset);
            let mut pin = backed.pin.clone();
            state.areas.set_busy(range, true);
            drop(locked);
            let busy = Busy { ioas, range };
            debug_assert!((range.start | range.last.wrapping_add(1)).is_multiple_of(alignment));
            if pin.is_none() {
                pin = Some(pages.pin(&ioas.shared.phys, range.start, offset, range.len_minus_one() + 1)?);
            }
            let backed = Backed { pages, offset, pin };
            let mapped = ioas.map_in(&self.called, range, access, &backed);
            let mut state = ioas.lock();
            state.links.exposes(cut_off, std::iter::once(&backed));
            mapped?;
            let spare = state.areas.set_pin(range, backed.pin);
            if let Some(link) = state.links.links.iter_mut().find(|link| link.number == self.called.number) {
                // Nothing begins behind an area that ends at the top.
                link.cursor = link.cursor.max(Some(range.last.saturating_add(1)));
            }
            drop(state);
            drop(spare);
            drop(busy);
        }
    }
}

impl Drop for Joining<'_> {
    /// If it could not be filled, nothing stays in it.
    fn drop(&mut self) {
        if self.joined {
            return;
        }
        let (ioas, number) = (self.ioas, self.called.number);
        let filled = {
            let mut state = ioas.lock();
            let mut end = 0;
            // No thread begins to call it from here on.
            while let Some(link) = state.links.links.iter_mut().find(|link| link.number == number) {
                end = end.max(link.cursor.replace(0).unwrap_or(0));
                if link.calls == 1 || callback::is_in_one() {
                    break;
                }
                state = ioas.settled.wait(state);
            }
            state.links.links.retain(|link| link.number != number);
            state.limits_changed();
            state.areas.filled_below(end)
        };
        ioas.settled.notify_all();
        ioas.unmap_in(&self.called, &mut filled.into_iter());
        ioas.unpin_unused();
    }
}

/// Areas that are being changed, until this is dropped.
pub(super) struct Busy<'a> {
    pub(super) ioas: &'a Ioas,
    pub(super) range: IovaRange,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.ioas.lock().areas.set_busy(self.range, false);
        self.ioas.settled.notify_all();
    }
}
