//! How a back end is told, and tells.

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

/// Those of a queue.
pub(super) struct Bells {
    /// There is something to do.
    pub(super) kick: OwnedFd,
    /// Something is done.
    pub(super) call: OwnedFd,
}

impl Bells {
    pub(super) fn new() -> std::io::Result<Self> {
        let new = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self { kick: new()?, call: new()? })
    }

    pub(super) fn kick(&self) {
        // It counts further than there are kicks.
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    /// Whether something was done since this was last asked.
    pub(super) fn was_called(&self) -> bool {
        rustix::io::read(&self.call, &mut [0; 8]).is_ok()
    }
}
