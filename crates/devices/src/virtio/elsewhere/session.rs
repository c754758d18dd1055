//! A session: the back end serves copies of the queues, as long as the driver has the device set up.
//!
//! A back end that goes is looked for again, for as long as it has to answer: what was under way is asked for again then,
//! and the driver sees nothing of it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ioasid_remote::Ended;
use ioasid_remote::vhost_user::{BackEndEvent, ConnectError, FrontEnd, Memory, RequestError, Ring};
use ioasid_vfio::BarMemory;
use rustix::event::{EventfdFlags, eventfd};

use super::copy::{Copy, LENGTH};
use super::{Place, Shape};
use crate::Dma;
use crate::bell::Bell;
use crate::virtio::feature;
use crate::virtio::queue::{Broken, Queue};
use crate::virtio::service::Service;
use crate::virtio::transport::{Setup, Shared};

/// The back end that there is, also for who cuts it off.
type Link = Arc<Mutex<Option<Arc<FrontEnd>>>>;

/// Has a back end serve copies of the queues.
pub(super) struct Copies {
    place: Place,
    link: Link,
    shape: Shape,
    dma: Box<dyn Dma>,
    /// Rings that the back end has, and may be in.
    started: Vec<u8>,
}

/// How a back end is told, and tells.
struct Bells {
    kick: OwnedFd,
    call: OwnedFd,
}

impl Bells {
    fn new() -> std::io::Result<Self> {
        let new = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self { kick: new()?, call: new()? })
    }
}

/// A queue that is in use: the driver's, and the copy.
struct Both {
    number: u8,
    queue: Queue,
    copy: Copy,
    bells: Bells,
}

/// How a session with one back end ends.
enum End {
    /// The driver has reset the device.
    Reset,
    /// There is no back end any more.
    Lost(Ended),
}

/// Between two looks for a back end, at least and at most.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Waits so long, or until the driver has reset the device.
fn pause(shared: &Shared, length: Duration, goes_on: &dyn Fn() -> bool) {
    let end = Instant::now() + length;
    while goes_on() && Instant::now() < end {
        shared.bell.sleep(None, Some(end.saturating_duration_since(Instant::now())), || !goes_on());
    }
}

/// By which address rings refer to the memory that is passed: any but 0 will do, which some take for none.
const USER: u64 = 1 << 40;

impl Copies {
    pub(super) fn new(place: Place, link: Arc<FrontEnd>, shape: Shape, dma: Box<dyn Dma>) -> Self {
        Self { place, link: Arc::new(Mutex::new(Some(link))), shape, dma, started: Vec::new() }
    }

    fn link(&self) -> Option<Arc<FrontEnd>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The back end: the one that there is, or one that is there in time.
    fn found(
        &self,
        shared: &Shared,
        features: u64,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<Arc<FrontEnd>>, ConnectError> {
        if let Some(link) = self.link().filter(|link| !link.is_gone()) {
            return Ok(Some(link));
        }
        let limit = Instant::now() + self.place.patience;
        loop {
            let found = self.place.connect().and_then(|link| match features & !link.features() == 0 {
                true if link.queues() >= self.shape.queues => Ok(link),
                _ => Err(ConnectError::Lacks("features or queues of the one before")),
            });
            match found {
                Ok(found) => {
                    let found = Arc::new(found);
                    let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
                    // Who gives up has taken it, and does so once.
                    let Some(place) = link.as_mut() else { return Ok(None) };
                    *place = found.clone();
                    return Ok(Some(found));
                }
                Err(error) if Instant::now() >= limit => return Err(error),
                Err(_) if !goes_on() || self.link().is_none() => return Ok(None),
                Err(_) => pause(shared, PAUSE, goes_on),
            }
        }
    }

    /// What the device's configuration is, with this back end.
    fn configuration(&self, link: &FrontEnd) -> Result<Option<Vec<u8>>, RequestError> {
        if self.shape.configuration == 0 {
            return Ok(None);
        }
        let mut configuration = link.read_config(self.shape.configuration)?;
        (self.shape.shown)(&mut configuration, self.shape.queues);
        Ok(Some(configuration))
    }

    /// Has a back end serve the queues.
    fn with(
        &mut self,
        link: &FrontEnd,
        shared: &Shared,
        resets: u64,
        features: u64,
        both: &mut [Both],
    ) -> Result<End, Broken> {
        let goes_on = || shared.resets() == resets;
        let memory = BarMemory::lasting(LENGTH * both.len().max(1) as u64).map_err(|_| Broken)?;
        for both in &mut *both {
            both.copy.renew(&memory);
        }
        match self.start(link, shared, features, &memory, both) {
            Ok(()) => {}
            Err(RequestError::Ended(ended)) => return Ok(End::Lost(ended)),
            Err(refused) => return Ok(End::Lost(cut_off(link, &refused.to_string()))),
        }
        // What was offered before is looked at, whether or not it was notified.
        let mut kicked = !0;
        loop {
            if !goes_on() {
                return Ok(End::Reset);
            }
            match link.event() {
                Ok(None) => {}
                Ok(Some(BackEndEvent::ConfigChange)) => match self.configuration(link) {
                    Ok(Some(configuration)) => shared.reconfigure(configuration),
                    Ok(None) => {}
                    Err(error) => return Ok(End::Lost(cut_off(link, &error.to_string()))),
                },
                Err(ended) => return Ok(End::Lost(ended)),
            }
            for Both { number, queue, copy, bells } in &mut *both {
                if copy.has_news() {
                    if copy.back(queue, &mut *self.dma, &goes_on)?.is_err() {
                        return Ok(End::Lost(cut_off(link, "it has done what it was not asked for")));
                    }
                    // There is room for more.
                    kicked |= 1 << *number;
                }
                if kicked & 1 << *number != 0 && copy.forward(queue, &mut *self.dma, &goes_on)? {
                    // It counts further than there are kicks.
                    let _ = rustix::io::write(&bells.kick, &1u64.to_ne_bytes());
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
                let _ = rustix::io::read(&both.bells.call, &mut [0; 8]);
            }
        }
    }

    fn start(
        &mut self,
        link: &FrontEnd,
        shared: &Shared,
        features: u64,
        memory: &BarMemory,
        both: &[Both],
    ) -> Result<(), RequestError> {
        if let Some(configuration) = self.configuration(link)? {
            shared.reconfigure(configuration);
        }
        let refused = |error: std::io::Error| RequestError::Ended(error.into());
        let file = Arc::new(memory.file(true).map_err(refused)?);
        let memory = Memory { guest: 0, size: memory.length(), user: USER, file, offset: 0 };
        let rings: Vec<_> = both
            .iter()
            .map(|both| {
                let [descriptors, driver, device] = both.copy.parts().map(|offset| USER + offset);
                let (kick, call) = (both.bells.kick.as_fd(), both.bells.call.as_fd());
                let (index, size) = (both.number, both.copy.size());
                Ring { index, size, descriptors, driver, device, base: 0, kick, call }
            })
            .collect();
        self.started = both.iter().map(|both| both.number).collect();
        link.start(features | feature::VERSION_1, &[memory], &rings)
    }
}

fn cut_off(link: &FrontEnd, why: &str) -> Ended {
    let why = Ended::Protocol(why.into());
    link.cut_off(why.clone());
    why
}

impl Service for Copies {
    /// It cannot go on if a queue makes no sense, or there is no back end in time.
    fn session(&mut self, shared: &Shared, resets: u64, setup: &Setup) -> Result<(), Broken> {
        let goes_on = || shared.resets() == resets;
        let none = BarMemory::lasting(4096).map_err(|_| Broken)?;
        let mut both = Vec::new();
        for (number, queue) in (0..).zip(Queue::all(setup)?) {
            let Some(queue) = queue else { continue };
            let size = setup.queues[usize::from(number)].size;
            let copy = Copy::new(&none, LENGTH * both.len() as u64, size, self.shape.failure);
            both.push(Both { number, queue, copy, bells: Bells::new().map_err(|_| Broken)? });
        }
        // Of the transport's features, those of the driver's queues stay here.
        let features = setup.features & self.shape.features;
        // A back end that goes as soon as it has come is looked for less and less often.
        let (mut was_lost, mut until_next) = (false, PAUSE);
        loop {
            let link = match self.found(shared, features, &goes_on) {
                Ok(Some(link)) => link,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.place.say(&format!("the device needs a reset: {error}"));
                    return Err(Broken);
                }
            };
            if std::mem::take(&mut was_lost) {
                self.place.say("the back end is there again");
            }
            let begin = Instant::now();
            match self.with(&link, shared, resets, features, &mut both)? {
                End::Reset | End::Lost(Ended::Here) => return Ok(()),
                End::Lost(ended) => {
                    self.place.say(&format!("the back end has gone, and is looked for: {ended}"));
                    was_lost = true;
                    until_next =
                        if begin.elapsed() > LONGEST_PAUSE { PAUSE } else { LONGEST_PAUSE.min(2 * until_next) };
                    pause(shared, until_next, &goes_on);
                }
            }
        }
    }

    /// The next session has memory of its own, so nobody has to wait until the back end is out of this.
    fn rest(&mut self) {
        let Some(link) = self.link() else { return };
        for index in std::mem::take(&mut self.started) {
            if link.stop(index).is_err() {
                return;
            }
        }
    }

    fn give_up(&self) -> Box<dyn Fn() + Send + Sync> {
        let link = self.link.clone();
        Box::new(move || {
            let link = link.lock().unwrap_or_else(PoisonError::into_inner).take();
            link.iter().for_each(|link| link.cut_off(Ended::Here));
        })
    }
}
