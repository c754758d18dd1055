//! Threads for work that may wait, and for work that needs this process's descriptors.
//!
//! The thread that serves the tree can do neither: programs wait for it, and its descriptors are a table of its own
//! (see [`crate::way::tree`]). There is always a thread more than has work, so that no work waits for other work; a few
//! stay for what comes next.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Threads that stay when they have nothing to do.
const KEPT: usize = 2;

type Work = Box<dyn FnOnce() + Send>;

/// The threads. They end when this is dropped and their work is done.
pub(crate) struct Workers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    /// Threads that wait for work.
    idle: usize,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Workers {
    /// Starts the first. It and all others have the descriptors of the thread that calls this.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        start(&shared)?;
        Ok(Self(shared))
    }

    /// Has `work` done soon, by another thread.
    pub(crate) fn add(&self, work: Work) {
        self.0.lock().work.push_back(work);
        self.0.changed.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = shared.clone();
    std::thread::Builder::new().name("work".to_owned()).spawn(move || work(&shared)).map(drop)
}

fn work(shared: &Arc<Shared>) {
    let mut state = shared.lock();
    loop {
        if let Some(next) = state.work.pop_front() {
            let is_alone = state.idle == 0;
            drop(state);
            if is_alone {
                // Should there be no other thread, what comes next waits for this work.
                let _ = start(shared);
            }
            next();
            state = shared.lock();
        } else if state.ended || state.idle >= KEPT {
            return;
        } else {
            state.idle += 1;
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn no_work_waits_for_other_work() {
        let workers = Workers::start().unwrap();
        let (done, all) = mpsc::channel();
        let mut ends = Vec::new();
        for number in 0..20 {
            let (end, ended) = mpsc::channel::<()>();
            let done = done.clone();
            ends.push(end);
            workers.add(Box::new(move || {
                done.send(number).unwrap();
                let _ = ended.recv();
            }));
        }
        let mut begun: Vec<i32> = (0..20).map(|_| all.recv_timeout(LONG).unwrap()).collect();
        begun.sort_unstable();
        assert_eq!(begun, (0..20).collect::<Vec<_>>());
        drop(ends);
        let shared = workers.0.clone();
        while shared.lock().idle != KEPT {
            std::thread::yield_now();
        }
        drop(workers);
        while Arc::strong_count(&shared) > 1 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn work_that_panics_does_not_stop_the_others() {
        let workers = Workers::start().unwrap();
        let (done, all) = mpsc::channel();
        for _ in 0..3 {
            let done = done.clone();
            workers.add(Box::new(|| panic!("on purpose")));
            workers.add(Box::new(move || done.send(()).unwrap()));
        }
        (0..3).for_each(|_| all.recv_timeout(LONG).unwrap());
    }
}
