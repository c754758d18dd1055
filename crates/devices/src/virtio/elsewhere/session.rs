//! A session: a back end serves the queues, as long as the driver has the device set up.
//!
//! A back end that goes is looked for again, for as long as it has to answer: what was under way is asked for again then,
//! and the driver sees nothing of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ioasid_remote::Ended;
use ioasid_remote::vhost_user::{ConnectError, FrontEnd, RequestError};

use super::{Place, Shape};
use crate::virtio::queue::Broken;
use crate::virtio::service::Service;
use crate::virtio::transport::{Setup, Shared};

/// How a back end serves a driver's queues.
pub(super) trait Way: Send {
    /// What is known of the queues, from one back end to the next.
    type Queues;

    /// What a back end is told that the driver has agreed on.
    fn agreed(&self, features: u64) -> u64;

    /// The queues, as the driver has set them up.
    fn queues(&mut self, setup: &Setup) -> Result<Self::Queues, Broken>;

    /// Has a back end serve them, until the driver resets the device, or the back end goes.
    fn serve(&mut self, with: &With<'_>, queues: &mut Self::Queues) -> Result<End, Broken>;

    /// Cleans up after that. The worker calls it when no reset waits for the session's end any more.
    fn rest(&mut self, link: &FrontEnd);

    /// The device goes, and the back end with it, if nothing else has a use for that.
    fn let_go(link: &FrontEnd);
}

/// How what one back end does ends.
pub(super) enum End {
    /// The driver has reset the device.
    Reset,
    /// There is no back end any more.
    Lost(Ended),
}

impl From<RequestError> for End {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Ended(ended) => Self::Lost(ended),
            refused => Self::wrong(&refused.to_string()),
        }
    }
}

impl End {
    /// The back end has done what it must not, or refuses what it has to do. The session cuts it off.
    pub(super) fn wrong(why: &str) -> Self {
        Self::Lost(Ended::Protocol(why.into()))
    }
}

/// The back end that serves the queues, and for whom.
pub(super) struct With<'a> {
    pub(super) link: &'a Arc<FrontEnd>,
    pub(super) shared: &'a Shared,
    pub(super) resets: u64,
    /// What was agreed on.
    pub(super) features: u64,
    place: &'a Place,
    shape: &'a Shape,
}

impl With<'_> {
    /// Whether the driver has the device as it was set up.
    pub(super) fn goes_on(&self) -> bool {
        self.shared.resets() == self.resets
    }

    /// Shows the driver what the device's configuration is, with this back end.
    pub(super) fn configure(&self) -> Result<(), RequestError> {
        if self.shape.configuration > 0 {
            let mut configuration = self.link.read_config(self.shape.configuration)?;
            (self.shape.shown)(&mut configuration, self.shape.queues);
            self.shared.reconfigure(configuration);
        }
        Ok(())
    }

    /// The device cannot go on.
    pub(super) fn give_up(&self, why: &str) -> Broken {
        self.place.give_up(why)
    }
}

/// The current back end. The model takes it out when the device goes.
type Link = Arc<Mutex<Option<Arc<FrontEnd>>>>;

/// Has back ends serve the queues, one after the other.
pub(super) struct Session<W> {
    place: Place,
    link: Link,
    shape: Shape,
    way: W,
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

impl<W: Way> Session<W> {
    pub(super) fn new(place: Place, link: Arc<FrontEnd>, shape: Shape, way: W) -> Self {
        Self { place, link: Arc::new(Mutex::new(Some(link))), shape, way }
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
}

impl<W: Way> Service for Session<W> {
    /// It cannot go on if a queue makes no sense, or there is no back end in time.
    fn session(&mut self, shared: &Shared, resets: u64, setup: &Setup) -> Result<(), Broken> {
        let goes_on = || shared.resets() == resets;
        let mut queues = self.way.queues(setup)?;
        let features = self.way.agreed(setup.features & self.shape.features);
        // A back end that goes as soon as it has come is looked for less and less often.
        let (mut was_lost, mut until_next) = (false, PAUSE);
        loop {
            let link = match self.found(shared, features, &goes_on) {
                Ok(Some(link)) => link,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.place.give_up(&error.to_string())),
            };
            if std::mem::take(&mut was_lost) {
                self.place.say("the back end is there again");
            }
            let begin = Instant::now();
            let (place, shape) = (&self.place, &self.shape);
            let with = With { link: &link, shared, resets, features, place, shape };
            match self.way.serve(&with, &mut queues)? {
                End::Reset | End::Lost(Ended::Here) => return Ok(()),
                End::Lost(ended) => {
                    // One that is not gone is not to go on.
                    link.cut_off(ended.clone());
                    self.place.say(&format!("the back end has gone, and is looked for: {ended}"));
                    was_lost = true;
                    until_next =
                        if begin.elapsed() > LONGEST_PAUSE { PAUSE } else { LONGEST_PAUSE.min(2 * until_next) };
                    pause(shared, until_next, &goes_on);
                }
            }
        }
    }

    fn rest(&mut self) {
        if let Some(link) = self.link() {
            self.way.rest(&link);
        }
    }

    fn give_up(&self) -> Box<dyn Fn() + Send + Sync> {
        let link = self.link.clone();
        Box::new(move || {
            let link = link.lock().unwrap_or_else(PoisonError::into_inner).take();
            link.iter().for_each(|link| W::let_go(link));
        })
    }
}
