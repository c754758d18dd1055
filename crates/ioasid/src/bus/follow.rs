//! A device that is elsewhere has a mirror of the address space that it is attached to.
//!
//! What it is attached to changes under the context's lock on attachments; its mirror follows when that is given back,
//! as it is a caller's. One thread at a time brings it in line, and those that come meanwhile wait until it is.

use std::sync::Arc;

use super::endpoint::Endpoint;
use crate::base::callback;
use crate::base::lock::{Condvar, Mutex};
use crate::base::rank;
use crate::base::types::WouldDeadlock;
use crate::hwpt::Table;
use crate::ioas::{ConnectError, Ioas};
use crate::mirror::MirrorError;

/// Which address space a device's own mirror follows.
#[derive(Default)]
pub(crate) struct Follows {
    state: Mutex<State, rank::Follows>,
    settled: Condvar,
}

#[derive(Default)]
struct State {
    /// A thread changes it.
    busy: bool,
    now: Option<Arc<Ioas>>,
}

impl Endpoint {
    /// Has the device's own mirror, if it has one, follow what the device is attached to. When this returns, it does,
    /// and reaches nothing else.
    ///
    /// # Errors
    /// [`ConnectError`], if it cannot be filled, or a guest's own table or a process's would have to be followed: then
    /// it follows nothing.
    pub(crate) fn follow(&self) -> Result<(), ConnectError> {
        let Some(mirror) = &self.options.mirror else { return Ok(()) };
        let mut turn = self.take_turn()?;
        loop {
            let (wanted, possible) = self.attached_space();
            match (&turn.now, wanted) {
                (Some(now), Some(wanted)) if Arc::ptr_eq(now, &wanted) && now.has_mirror(mirror) => return Ok(()),
                (None, None) if possible => return Ok(()),
                (None, None) => return Err(MirrorError::Unsupported("follow a table that is not of mappings").into()),
                (Some(now), _) => {
                    now.expel_mirror(mirror)?;
                    turn.now = None;
                }
                (None, Some(wanted)) => {
                    wanted.add_mirror(mirror.clone())?;
                    turn.now = Some(wanted);
                }
            }
        }
    }

    /// The address space that transactions without PASID go to, and whether a mirror can follow what they go to.
    fn attached_space(&self) -> (Option<Arc<Ioas>>, bool) {
        let space = self.with_attachment(None, |table| match table {
            Table::Paging(hwpt) => (Some(hwpt.ioas().clone()), true),
            Table::Parked(_) => (None, true),
            Table::Nested(_) | Table::Sva(_) => (None, false),
        });
        space.unwrap_or((None, true))
    }

    fn take_turn(&self) -> Result<Turn<'_>, WouldDeadlock> {
        let mut state = self.follows.state.lock();
        while state.busy {
            if callback::is_in_one() {
                return Err(WouldDeadlock::InCallback);
            }
            state = self.follows.settled.wait(state);
        }
        state.busy = true;
        Ok(Turn { follows: &self.follows, now: state.now.take() })
    }
}

/// The right to change what is followed, until this is dropped.
struct Turn<'a> {
    follows: &'a Follows,
    now: Option<Arc<Ioas>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.follows.state.lock();
        state.busy = false;
        state.now = self.now.take();
        drop(state);
        self.follows.settled.notify_all();
    }
}
