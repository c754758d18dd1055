//! The thread of a device: it starts with the first work, and ends with the device.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// A thread before, while and after it runs. Before, there is what it will need.
pub(crate) struct LazyThread<T>(Mutex<Life<T>>);

enum Life<T> {
    Unborn(T),
    Running(JoinHandle<()>),
    Gone,
}

impl<T: Send + 'static> LazyThread<T> {
    pub(crate) fn new(needs: T) -> Self {
        Self(Mutex::new(Life::Unborn(needs)))
    }

    /// Starts the thread unless it runs, to do `work` with what it needs. Returns whether it runs.
    pub(crate) fn ensure_running(&self, name: &str, work: impl FnOnce(T) + Send + 'static) -> bool {
        let mut life = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *life = match std::mem::replace(&mut *life, Life::Gone) {
            Life::Unborn(needs) => {
                let thread = thread::Builder::new().name(name.into()).spawn(move || work(needs));
                thread.map_or(Life::Gone, Life::Running)
            }
            other => other,
        };
        matches!(*life, Life::Running(_))
    }

    /// Waits for the thread's end, which its device has asked for.
    pub(crate) fn join(&self) {
        let mut life = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Life::Running(thread) = std::mem::replace(&mut *life, Life::Gone)
            // The interrupt sink may hold the last reference to the device, and drop it here.
            && thread.thread().id() != thread::current().id()
        {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}
