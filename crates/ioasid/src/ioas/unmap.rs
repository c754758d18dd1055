//! Unmapping: areas are taken out of every mirror, and when nothing reaches them any more, their memory is let go.

use super::Ioas;
use super::areas::NotNow;
use super::errors::UnmapError;
use super::links::Now;
use crate::base::callback::{self, Each};
use crate::base::types::{IovaRange, WouldDeadlock};
use crate::gate::check_may_wait;

impl Ioas {
    /// Unmaps every area in `range`, which must not cut one, and returns the number of bytes that were mapped.
    ///
    /// When it returns, no DMA through these mappings is in flight and none can start. Software that pinned something
    /// there ([`IoasAccess`](crate::IoasAccess)) is told to let it go first. Allocates nothing if nothing was pinned.
    ///
    /// # Errors
    /// [`UnmapError::Empty`] if nothing is mapped in `range`, [`UnmapError::NotWhole`] if it cuts an area,
    /// [`UnmapError::Busy`] if part of it is being mapped, [`UnmapError::Locked`] if an object keeps it,
    /// [`UnmapError::Pinned`] if an access does, though it was told, [`UnmapError::WouldDeadlock`] if this thread holds
    /// slices, or is in a callback that was called for an area in the range; nothing is changed then.
    /// [`UnmapError::Mirror`] if a mirror broke its contract, now or while something was mapped here: it may still
    /// reach that. The whole space ([`IovaRange::ALL`]) may be empty.
    pub fn unmap(&self, range: IovaRange) -> Result<u64, UnmapError> {
        check_may_wait()?;
        // A notice that unmaps what it is to let go would be given again, and again.
        if callback::is_in_one() && self.lock().areas.is_told(range) {
            return Err(WouldDeadlock::InCallback.into());
        }
        // If it is not unmapped after all, by an error or a notice that panics, it may be pinned again.
        let told = Told { ioas: self, range };
        let (bytes, now) = self.begin_unmap(range)?;
        std::mem::forget(told);
        self.take_out(range, now).map(|()| bytes)
    }

    /// Keeps other threads from what is in `range` from now on. What is pinned there is told to be let go, as long as
    /// each notice leads to fewer pins: an access lets go before its notice returns, so one that changes nothing will
    /// not.
    fn begin_unmap(&self, range: IovaRange) -> Result<(u64, Now), UnmapError> {
        let mut pinned_before = usize::MAX;
        loop {
            let (pins, hull) = {
                let mut state = self.when_settled(self.lock(), range)?;
                match state.areas.begin_unmap(range) {
                    Ok(bytes) => return Ok((bytes, state.links.now())),
                    Err(NotNow::Refused(error)) => return Err(error),
                    Err(NotNow::Pinned) => state.areas.pinned_in(range),
                }
            };
            let Some(hull) = hull.filter(|_| pins < pinned_before) else { return Err(UnmapError::Pinned(range)) };
            pinned_before = pins;
            self.notify(hull);
        }
    }

    /// Takes what is leaving in `range` out of every mirror, and then out of the address space.
    fn take_out(&self, range: IovaRange, now: Now) -> Result<(), UnmapError> {
        let (mut done, mut whole) = (0, true);
        while let Some(called) = self.next_mirror_of(done, now) {
            done = called.number;
            let Some(mine) = called.clip(range) else { continue };
            let mut next = Some(mine);
            let mut runs = std::iter::from_fn(|| {
                let run = self.lock().areas.first_run(next?)?;
                let behind = run.last.checked_add(1).filter(|&start| start <= mine.last);
                next = behind.map(|start| IovaRange { start, ..mine });
                Some(run)
            });
            whole &= self.unmap_in(&called, &mut runs);
        }
        // Nothing walks the tables or moves bytes through the windows any more.
        let mut each = Each::default();
        loop {
            let Some((range, area)) = self.lock().areas.take_first(range) else { break };
            whole &= !area.exposed;
            drop(area);
            each.call(|| self.shared.observer().unmapped(self.serial, range));
        }
        self.settled.notify_all();
        if whole { Ok(()) } else { Err(UnmapError::Mirror(range)) }
    }

    /// Unmaps everything, of an address space that is destroyed: no device is attached to it, so no port is waited for.
    pub(crate) fn tear_down(&self) {
        if let Ok((_, now)) = self.begin_unmap(IovaRange::ALL) {
            // A mirror that breaks its contract has been cut off.
            let _ = self.take_out(IovaRange::ALL, now);
        }
    }
}

/// Areas in which nothing may be pinned, until this is dropped.
struct Told<'a> {
    ioas: &'a Ioas,
    range: IovaRange,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.ioas.lock().areas.allow_again(self.range);
    }
}

impl Drop for Ioas {
    /// What came into an address space after it was destroyed is taken out of its mirrors, too.
    fn drop(&mut self) {
        if !self.lock().areas.is_empty() {
            self.tear_down();
        }
    }
}
