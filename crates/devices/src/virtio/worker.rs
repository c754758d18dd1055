//! The thread: it takes what the driver has set up, has it served, and sleeps when there is nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use super::service::Service;
use super::transport::Shared;

pub(super) struct Worker {
    shared: Arc<Shared>,
    service: Box<dyn Service>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, service: Box<dyn Service>) -> Self {
        Self { shared, service }
    }

    pub(super) fn run(mut self) {
        let shared = self.shared.clone();
        let mut is_rested = true;
        loop {
            let (resets, setup) = {
                let mut state = shared.lock();
                state.busy = None;
                shared.changed.notify_all();
                if !is_rested {
                    drop(state);
                    self.service.rest();
                    state = shared.lock();
                }
                while !state.quits && !state.setup.is_live() {
                    state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                if state.quits {
                    return;
                }
                let resets = shared.resets();
                state.busy = Some(resets);
                (resets, state.setup.clone())
            };
            is_rested = false;
            // A reset waits for this, so it ends also if the device panics.
            let served = catch_unwind(AssertUnwindSafe(|| self.service.session(&shared, resets, &setup)));
            if !matches!(served, Ok(Ok(()))) {
                shared.need_reset(resets);
            }
        }
    }
}
