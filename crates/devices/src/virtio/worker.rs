//! The thread: it takes what the driver has set up, does what is in the queues, and sleeps when there is nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::queue::{Broken, Queue};
use super::transport::{Setup, Shared};
use super::{Device, Served};
use crate::Dma;

pub(super) struct Worker {
    shared: Arc<Shared>,
    device: Box<dyn Device>,
    dma: Box<dyn Dma>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, device: Box<dyn Device>, dma: Box<dyn Dma>) -> Self {
        Self { shared, device, dma }
    }

    pub(super) fn run(mut self) {
        let shared = self.shared.clone();
        loop {
            let (resets, setup) = {
                let mut state = shared.lock();
                state.busy = None;
                shared.changed.notify_all();
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
            // A reset waits for this, so it ends also if the device panics.
            let served = catch_unwind(AssertUnwindSafe(|| self.session(resets, &setup)));
            if !matches!(served, Ok(Ok(()))) {
                shared.need_reset(resets);
            }
        }
    }

    /// Serves the queues until the next reset.
    ///
    /// # Errors
    /// If one of them is not where it was said to be, or makes no sense.
    fn session(&mut self, resets: u64, setup: &Setup) -> Result<(), Broken> {
        let Self { shared, device, dma } = self;
        let goes_on = || shared.resets() == resets;
        let mut queues = (0..)
            .zip(&setup.queues)
            .map(|(number, queue)| queue.is_enabled.then(|| Queue::new(number, queue, setup.features)).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        device.begin(setup.features);
        // What was offered before is looked at, whether or not it was notified.
        let mut kicked = !0;
        while goes_on() {
            let Served { interrupts, more } = device.serve(&mut queues, kicked, &mut **dma, &goes_on)?;
            for number in (0..queues.len()).filter(|number| interrupts & 1 << number != 0) {
                shared.interrupt(number, resets);
            }
            kicked = shared.kicks.swap(0, Ordering::SeqCst) | more;
            if kicked == 0 {
                shared.bell.sleep(device.readiness(), None, || !goes_on() || shared.kicks.load(Ordering::SeqCst) != 0);
                kicked = shared.kicks.swap(0, Ordering::SeqCst);
            }
        }
        Ok(())
    }
}
