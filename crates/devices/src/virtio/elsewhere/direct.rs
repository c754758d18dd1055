//! A back end serves the driver's queues as they are: it has the memory, and asks for translations.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioasid::{Access, Iova};
use ioasid_remote::Ended;
use ioasid_remote::vhost_user::{FrontEnd, GiveError, Inflight, RequestError, Ring, Translations};
use ioasid_vfio::EventFd;
use rustix::event::{EventfdFlags, eventfd};

use super::bells::Bells;
use super::session::{End, Way, With};
use crate::Dma;
use crate::bell::Bell;
use crate::virtio::feature;
use crate::virtio::queue::{Broken, Queue};
use crate::virtio::transport::{QueueSetup, Setup};

/// Has back ends serve the driver's queues.
pub(super) struct Direct {
    translations: Arc<Translations>,
    dma: Box<dyn Dma>,
    /// The configuration has changed.
    changed: Arc<EventFd>,
}

/// A queue that is in use.
pub(super) struct Line {
    number: u8,
    size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    /// How many were taken, and are done.
    base: u16,
    bells: Bells,
}

impl Line {
    fn ring(&self) -> Ring<'_> {
        let Self { number: index, size, descriptors, driver, device, base, ref bells } = *self;
        Ring { index, size, descriptors, driver, device, base, kick: bells.kick.as_fd(), call: bells.call.as_fd() }
    }
}

/// The queues that are in use.
pub(super) struct Lines {
    list: Vec<Line>,
    /// Where back ends note which requests are under way.
    inflight: Option<Inflight>,
}

impl Lines {
    /// Gives the back end the place for what is under way: that of the one before, if there was one.
    fn keep(&mut self, with: &With<'_>) -> Result<(), RequestError> {
        if self.inflight.is_none() {
            let queues = self.list.iter().map(|line| u16::from(line.number) + 1).max().unwrap_or(0);
            let size = self.list.iter().map(|line| line.size).max().unwrap_or(0);
            self.inflight = with.link.inflight(queues, size)?;
        }
        self.inflight.as_ref().map_or(Ok(()), |inflight| with.link.set_inflight(inflight))
    }
}

impl Direct {
    pub(super) fn new(translations: Arc<Translations>, dma: Box<dyn Dma>) -> std::io::Result<Self> {
        let changed = EventFd::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)?;
        Ok(Self { translations, dma, changed: Arc::new(changed) })
    }

    /// Starts the rings. The back end can find them at once: not each asks again for what it did not find.
    fn start(&mut self, with: &With<'_>, lines: &[Line]) -> Result<(), GiveError> {
        for line in lines {
            let size = u64::from(line.size);
            let parts = [(line.descriptors, 16 * size), (line.driver, 6 + 2 * size)];
            for (iova, length) in parts {
                self.translations.give(with.link, iova, length, Access::READ)?;
            }
            self.translations.give(with.link, line.device, 6 + 8 * size, Access::WRITE)?;
        }
        let rings: Vec<_> = lines.iter().map(Line::ring).collect();
        Ok(with.link.start(&rings)?)
    }

    fn stop(link: &FrontEnd, lines: &mut [Line]) -> Result<(), RequestError> {
        let rings: Vec<u8> = lines.iter().map(|line| line.number).collect();
        let bases = link.stop(&rings)?;
        lines.iter_mut().zip(bases).for_each(|(line, base)| line.base = base);
        Ok(())
    }

    /// Does what there is to do until the driver resets the device, or the back end goes.
    fn run(&mut self, with: &With<'_>, lines: &mut [Line]) -> Result<End, Broken> {
        let With { link, shared, resets, .. } = *with;
        // The back end is in the rings.
        let mut is_running = false;
        loop {
            if link.is_gone() {
                return Ok(End::Lost(link.ended().unwrap_or(Ended::Closed)));
            }
            let is_on = with.goes_on() && self.translations.is_bus_master();
            if is_running && !is_on {
                if let Err(error) = Self::stop(link, lines) {
                    return Ok(error.into());
                }
                is_running = false;
            }
            if !with.goes_on() {
                return Ok(End::Reset);
            }
            if is_on && !is_running {
                match self.start(with, lines) {
                    Ok(()) => is_running = true,
                    Err(GiveError::Request(error)) => return Ok(error.into()),
                    // It was switched off just now.
                    Err(GiveError::NoBusMaster(_)) => {}
                    Err(error) => return Err(with.give_up(&error.to_string())),
                }
                // What was offered before is looked at, whether or not it was notified.
                lines.iter().for_each(|line| line.bells.kick());
            }
            if self.changed.take()
                && let Err(error) = with.configure()
            {
                return Ok(error.into());
            }
            let kicked = shared.kicks.swap(0, Ordering::SeqCst);
            for line in lines.iter() {
                if kicked & 1 << line.number != 0 {
                    line.bells.kick();
                }
                if line.bells.was_called() {
                    shared.interrupt(line.number.into(), resets);
                }
            }
            let calls = lines.iter().map(|line| Bell::readable(line.bells.call.as_fd()));
            let signs = calls.chain([Bell::readable(self.changed.as_fd()), link.end_sign()]);
            let is_as_it_was = || with.goes_on() && self.translations.is_bus_master() == is_running;
            shared.bell.sleep(signs, None, || !is_as_it_was() || shared.kicks.load(Ordering::SeqCst) != 0);
        }
    }
}

impl Way for Direct {
    type Queues = Lines;

    /// Whatever the driver makes of them, its addresses are translated.
    fn agreed(&self, features: u64) -> u64 {
        features | feature::VERSION_1 | feature::ACCESS_PLATFORM
    }

    fn queues(&mut self, setup: &Setup) -> Result<Lines, Broken> {
        // Each is where one can be.
        let queues = Queue::all(setup)?;
        let lines = (0..).zip(&setup.queues).zip(queues).filter(|(_, queue)| queue.is_some());
        let list = lines
            .map(|((number, setup), _)| {
                let &QueueSetup { size, descriptors, driver, device, .. } = setup;
                let bells = Bells::new().map_err(|_| Broken)?;
                Ok(Line { number, size, descriptors, driver, device, base: 0, bells })
            })
            .collect::<Result<_, Broken>>()?;
        Ok(Lines { list, inflight: None })
    }

    fn serve(&mut self, with: &With<'_>, lines: &mut Lines) -> Result<End, Broken> {
        let changed = self.changed.clone();
        if let Err(error) = self.translations.follow(with.link, move || changed.signal()) {
            return Err(with.give_up(&error.to_string()));
        }
        let agreed = with.configure().and_then(|()| with.link.agree(with.features)).and_then(|()| lines.keep(with));
        if let Err(error) = agreed {
            return Ok(error.into());
        }
        let end = self.run(with, &mut lines.list);
        if let Ok(End::Lost(_)) = end {
            // Where one that comes goes on: what was taken and is not done is done again. One that does things out of
            // their order has noted what that is.
            for line in &mut lines.list {
                let mut done = [0; 2];
                self.dma.read(Iova(line.device + 2).into(), &mut done)?;
                line.base = u16::from_le_bytes(done);
            }
        }
        end
    }

    /// It is out of the rings since the session's end.
    fn rest(&mut self, _link: &FrontEnd) {}

    /// It stays until nothing is attached, to say that it forgets what it was told. It goes with the translations.
    fn let_go(_link: &FrontEnd) {}
}
