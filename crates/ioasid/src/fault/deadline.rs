//! The thread that keeps page requests from waiting for ever.
//!
//! One thread for all queues of a machine, which there is only as long as something waits. A queue is on its list with
//! the time of its first deadline, so asking and answering do not wake it.

use std::sync::{Arc, Weak};
use std::time::Instant;

use super::FaultQueue;
use crate::base::lock::{Condvar, Mutex, MutexGuard};
use crate::base::rank;

#[derive(Default)]
struct State {
    queues: Vec<(Instant, Weak<FaultQueue>)>,
    running: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State, rank::Deadlines>,
    changed: Condvar,
}

/// The queues of a machine in which a device waits for an answer.
#[derive(Clone, Default)]
pub(crate) struct Deadlines(Arc<Shared>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State, rank::Deadlines> {
        self.state.lock()
    }

    /// Looks at each queue when it is time, until there is none.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if let Some(due) = state.queues.iter().position(|(at, _)| *at <= now) {
                let (_, queue) = state.queues.swap_remove(due);
                // Without the lock, as a device that is answered may ask again.
                drop(state);
                let next = queue.upgrade().and_then(|queue| queue.expire(Some(now)));
                state = self.lock();
                state.queues.extend(next.map(|next| (next, queue)));
            } else if let Some(next) = state.queues.iter().map(|(at, _)| *at).min() {
                let wait = next.saturating_duration_since(now);
                state = self.changed.wait_timeout(state, wait);
            } else {
                state.running = false;
                return;
            }
        }
    }
}

impl Deadlines {
    /// Has `queue` looked at when it is `at`, and as it says from then on. False if there is no thread that could.
    pub(crate) fn watch(&self, queue: &Arc<FaultQueue>, at: Instant) -> bool {
        let mut state = self.0.lock();
        state.queues.push((at, Arc::downgrade(queue)));
        if state.running {
            self.0.changed.notify_all();
            return true;
        }
        let shared = self.0.clone();
        let started = std::thread::Builder::new().name("deadlines".to_owned()).spawn(move || shared.run()).is_ok();
        state.running = started;
        if !started {
            state.queues.pop();
        }
        started
    }
}
