//! What devices may do, changed while it is mapped.

use iopt::Access;

use super::areas::Backed;
use super::links::{Busy, guarded};
use super::{Ioas, ProtectError};
use crate::base::types::IovaRange;
use crate::gate::check_may_wait;
use crate::mirror::{MirrorError, MirrorRun};

/// An area that changes: what was allowed, and what backs it.
type Changing = (IovaRange, Access, Backed);

impl Ioas {
    /// Allows `access` in every area in `range`, which must not cut one, in place of what was allowed. When it returns,
    /// no DMA that is not allowed any more is in flight, and none can start.
    ///
    /// # Errors
    /// See [`ProtectError`]; nothing is changed then.
    pub fn protect(&self, range: IovaRange, access: Access) -> Result<(), ProtectError> {
        check_may_wait()?;
        if access.is_empty() {
            return Err(ProtectError::NoAccess);
        }
        let mut state = self.when_settled(self.lock(), range)?;
        if state.areas.check_protect(range, access)? {
            return Ok(());
        }
        let areas: Vec<Changing> =
            state.areas.mapped_in(range).map(|(range, before, backed)| (range, before, backed.clone())).collect();
        state.areas.set_busy(range, true);
        drop(state);
        let _busy = Busy { ioas: self, range };
        let mut done = 0;
        loop {
            let called = match self.next_mirror(done, range.start) {
                Ok(called) => called,
                Err(mut state) => {
                    state.areas.set_access(range, access);
                    return Ok(());
                }
            };
            for (at, (area, before, backed)) in areas.iter().enumerate() {
                if !called.has(area.start) {
                    continue;
                }
                if let Err(error) = self.protect_in(&called, *area, access, *before, backed) {
                    let number = called.number;
                    drop(called);
                    self.undo(&areas, at, number, access);
                    return Err(error.into());
                }
            }
            done = called.number;
        }
    }

    /// Changes an area in a mirror.
    fn protect_in(
        &self,
        called: &super::links::Called<'_>,
        range: IovaRange,
        access: Access,
        before: Access,
        backed: &Backed,
    ) -> Result<(), MirrorError> {
        let Some(pin) = &backed.pin else { return Ok(()) };
        let run = MirrorRun { range, access, pin, offset: backed.offset, largest: called.largest };
        let result = guarded(|| called.mirror().protect(&run, before));
        if let Err(MirrorError::Panicked | MirrorError::Reachable) = result {
            // What it lets through now is not known.
            self.cut_off(called.number);
        }
        result
    }

    /// Allows again what was allowed, in the mirrors before `failed`, and of the areas before `at` in that one.
    fn undo(&self, areas: &[Changing], at: usize, failed: u64, access: Access) {
        let mut done = 0;
        while let Ok(called) = self.next_mirror(done, areas[0].0.start) {
            if called.number > failed {
                break;
            }
            done = called.number;
            let changed = if called.number == failed { at } else { areas.len() };
            for (range, before, backed) in areas[..changed].iter().filter(|(range, ..)| called.has(range.start)) {
                if self.protect_in(&called, *range, *before, access, backed).is_err() {
                    self.cut_off(called.number);
                }
            }
        }
    }
}
