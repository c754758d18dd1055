//! A back end serves copies of the queues: it is passed memory of our own.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioasid_remote::Ended;
use ioasid_remote::vhost_user::{BackEndEvent, FrontEnd, Memory, RequestError, Ring};
use ioasid_vfio::BarMemory;

use super::bells::Bells;
use super::copy::{Copy, LENGTH};
use super::session::{End, Way, With};
use crate::Dma;
use crate::bell::Bell;
use crate::virtio::feature;
use crate::virtio::queue::{Broken, Queue};
use crate::virtio::transport::Setup;

/// Has back ends serve copies of the queues.
pub(super) struct Copies {
    dma: Box<dyn Dma>,
    /// What the last byte that a device writes says if it cannot do what it was asked for, where there is such a byte.
    failure: Option<u8>,
    /// Rings that the back end has, and may be in.
    started: Vec<u8>,
}

/// A queue that is in use: the driver's, and the copy.
pub(super) struct Both {
    number: u8,
    queue: Queue,
    copy: Copy,
    bells: Bells,
}

impl Copies {
    pub(super) fn new(dma: Box<dyn Dma>, failure: Option<u8>) -> Self {
        Self { dma, failure, started: Vec::new() }
    }

    fn start(&mut self, with: &With<'_>, memory: &BarMemory, both: &[Both]) -> Result<(), RequestError> {
        with.configure()?;
        let refused = |error: std::io::Error| RequestError::Ended(error.into());
        let file = Arc::new(memory.file(true).map_err(refused)?);
        let memory = Memory { guest: 0, size: memory.length(), user: Memory::USER, file, offset: 0 };
        let rings: Vec<_> = both
            .iter()
            .map(|both| {
                let [descriptors, driver, device] = both.copy.parts().map(|offset| Memory::USER + offset);
                let (kick, call) = (both.bells.kick.as_fd(), both.bells.call.as_fd());
                let (index, size) = (both.number, both.copy.size());
                Ring { index, size, descriptors, driver, device, base: 0, kick, call }
            })
            .collect();
        self.started = both.iter().map(|both| both.number).collect();
        with.link.agree(with.features)?;
        with.link.set_memory(&[memory])?;
        with.link.start(&rings)
    }
}

impl Way for Copies {
    type Queues = Vec<Both>;

    /// Of the transport's features, those of the driver's queues stay here.
    fn agreed(&self, features: u64) -> u64 {
        features & !feature::ALL | feature::VERSION_1
    }

    fn queues(&mut self, setup: &Setup) -> Result<Vec<Both>, Broken> {
        let none = BarMemory::lasting(4096).map_err(|_| Broken)?;
        let mut both = Vec::new();
        for (number, queue) in (0..).zip(Queue::all(setup)?) {
            let Some(queue) = queue else { continue };
            let size = setup.queues[usize::from(number)].size;
            let copy = Copy::new(&none, LENGTH * both.len() as u64, size, self.failure);
            both.push(Both { number, queue, copy, bells: Bells::new().map_err(|_| Broken)? });
        }
        Ok(both)
    }

    fn serve(&mut self, with: &With<'_>, both: &mut Vec<Both>) -> Result<End, Broken> {
        let With { link, shared, resets, .. } = *with;
        let goes_on = || with.goes_on();
        let memory = BarMemory::lasting(LENGTH * both.len().max(1) as u64).map_err(|_| Broken)?;
        for both in &mut *both {
            both.copy.renew(&memory);
        }
        if let Err(error) = self.start(with, &memory, both) {
            return Ok(error.into());
        }
        // What was offered before is looked at, whether or not it was notified.
        let mut kicked = !0;
        loop {
            if !goes_on() {
                return Ok(End::Reset);
            }
            match link.event() {
                Ok(None) => {}
                Ok(Some(BackEndEvent::ConfigChange)) => {
                    if let Err(error) = with.configure() {
                        return Ok(error.into());
                    }
                }
                Ok(Some(_)) => return Ok(End::wrong("it asks for a translation, and its addresses are none")),
                Err(ended) => return Ok(End::Lost(ended)),
            }
            for Both { number, queue, copy, bells } in &mut *both {
                if copy.has_news() {
                    if copy.back(queue, &mut *self.dma, &goes_on)?.is_err() {
                        return Ok(End::wrong("it has done what it was not asked for"));
                    }
                    // There is room for more.
                    kicked |= 1 << *number;
                }
                if kicked & 1 << *number != 0 && copy.forward(queue, &mut *self.dma, &goes_on)? {
                    bells.kick();
                }
                if goes_on() && queue.wants_interrupt(&mut *self.dma)? {
                    shared.interrupt((*number).into(), resets);
                }
            }
            kicked = shared.kicks.swap(0, Ordering::SeqCst);
            if kicked != 0 || both.iter().any(|both| both.copy.has_news()) {
                continue;
            }
            if link.is_gone() {
                return Ok(End::Lost(link.ended().unwrap_or(Ended::Closed)));
            }
            let calls = both.iter().map(|both| Bell::readable(both.bells.call.as_fd()));
            shared
                .bell
                .sleep(calls.chain(link.signs()), None, || !goes_on() || shared.kicks.load(Ordering::SeqCst) != 0);
            for both in &*both {
                both.bells.was_called();
            }
        }
    }

    /// The next session has memory of its own: a reset need not wait until the back end is out of this. A back end that
    /// does not stop is cut off, and the next session finds it gone.
    fn rest(&mut self, link: &FrontEnd) {
        let _ = link.stop(&std::mem::take(&mut self.started));
    }

    fn let_go(link: &FrontEnd) {
        link.cut_off(Ended::Here);
    }
}
