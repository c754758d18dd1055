//! Who does what is in the queues: a device here.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioasid_vfio::EventFd;

use super::queue::{Broken, Queue};
use super::transport::{Setup, Shared};
use super::{Device, Served};
use crate::Dma;
use crate::bell::Bell;

/// Does what is in the queues. The worker has one.
pub(super) trait Service: Send {
    /// Serves the queues, as the driver has set them up, until there are more `resets`.
    ///
    /// # Errors
    /// If it cannot go on.
    fn session(&mut self, shared: &Shared, resets: u64, setup: &Setup) -> Result<(), Broken>;

    /// What has to be done after a session, when nobody waits for its end any more.
    fn rest(&mut self) {}

    /// Ends whatever a session or a rest waits for. Called once, from another thread, when the device goes.
    fn give_up(&self) -> Box<dyn Fn() + Send + Sync> {
        Box::new(|| {})
    }
}

/// A device here.
pub(super) struct Here {
    device: Box<dyn Device>,
    dma: Box<dyn Dma>,
}

impl Here {
    pub(super) fn new(device: Box<dyn Device>, dma: Box<dyn Dma>) -> Self {
        Self { device, dma }
    }
}

impl Service for Here {
    /// It cannot go on if a queue is not where it was said to be, or makes no sense.
    fn session(&mut self, shared: &Shared, resets: u64, setup: &Setup) -> Result<(), Broken> {
        let Self { device, dma } = self;
        let mut queues = Queue::all(setup)?;
        for (queue, setup) in queues.iter_mut().zip(&setup.queues) {
            if let (Some(queue), Some(base)) = (queue, setup.base) {
                queue.go_on_from(base, &mut **dma)?;
            }
        }
        let kicks: Vec<_> =
            (0..).zip(&setup.queues).filter_map(|(number, queue)| Some((number, queue.kick.as_ref()?))).collect();
        let served = serve(&mut **device, &mut **dma, shared, resets, setup.features, &mut queues, &kicks);
        let bases = (0..).zip(&queues).filter_map(|(number, queue)| Some((number, queue.as_ref()?.base())));
        shared.lock().bases = bases.collect();
        served
    }
}

/// Has the device serve the queues until there are more resets.
fn serve(
    device: &mut dyn Device,
    dma: &mut dyn Dma,
    shared: &Shared,
    resets: u64,
    features: u64,
    queues: &mut [Option<Queue>],
    kicks: &[(u32, &Arc<EventFd>)],
) -> Result<(), Broken> {
    let goes_on = || shared.resets() == resets;
    device.begin(features);
    // What was offered before is looked at, whether or not it was notified.
    let mut kicked = !0;
    while goes_on() {
        let Served { interrupts, more } = device.serve(queues, kicked, dma, &goes_on)?;
        for number in (0..queues.len()).filter(|number| interrupts & 1 << number != 0) {
            shared.interrupt(number, resets);
        }
        kicked = shared.kicks.swap(0, Ordering::SeqCst) | more;
        if kicked == 0 {
            let own = device.readiness().into_iter().chain(kicks.iter().map(|(_, kick)| kick.as_fd()));
            shared.bell.sleep(own.map(Bell::readable), None, || !goes_on() || shared.kicks.load(Ordering::SeqCst) != 0);
            kicked = shared.kicks.swap(0, Ordering::SeqCst);
        }
        for (number, _) in kicks.iter().filter(|(_, kick)| kick.take()) {
            kicked |= 1 << number;
        }
    }
    Ok(())
}
