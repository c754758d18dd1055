//! A device whose queues another process serves, by the protocol vhost-user: what models that can be so have together.
//!
//! ```text
//!   driver's queue ── Queue: the device's DMA, translated and checked ──▶ Copy ──▶ memory of our own ◀── back end
//! ```
//! The back end is passed memory of our own and no other: what is in a queue is copied there, and what was done is
//! copied back. So it reaches exactly what it is offered, for as long as it is offered, whatever it does; whose memory
//! that is, and whether it can be shared, does not matter; and it has to know nothing of translation.

mod area;
mod copy;
mod session;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ioasid::Rid;
use ioasid_remote::vhost_user::{ConnectError, FrontEnd};

use super::feature;
use super::service::Service;
use crate::Dma;
use crate::registry::{BuildError, Notice, OptionInfo, OptionKind, Options};
use session::Copies;

const SOCKET: &str = "vhost-user";
const TIMEOUT: &str = "timeout";

/// The options of a model that can be so.
pub(super) const OPTIONS: [OptionInfo; 2] = [
    OptionInfo::new(SOCKET, "its queues are served by who listens there", OptionKind::Text("PATH")),
    OptionInfo::new(TIMEOUT, "seconds that this has to answer (5)", OptionKind::Number { least: 1, most: 3600 }),
];

/// Seconds that a back end has to answer, unless something else is said.
const SECONDS: u64 = 5;

/// Whether the options mean a back end.
pub(crate) fn is_meant(options: &Options) -> bool {
    options.has(SOCKET)
}

/// Checks that what is for devices `of_own` is not said of one that a back end has, and the other way round.
pub(super) fn check(options: &Options, of_own: &[&'static str]) -> Result<(), BuildError> {
    match of_own.iter().find(|name| options.has(name)) {
        Some(name) if is_meant(options) => Err(BuildError::NotWith(name, SOCKET)),
        _ if options.has(TIMEOUT) && !is_meant(options) => Err(BuildError::OnlyWith(TIMEOUT, SOCKET)),
        _ => Ok(()),
    }
}

/// Where to find a back end, and who is told of it.
#[derive(Clone)]
pub(super) struct Place {
    socket: PathBuf,
    patience: Duration,
    rid: Rid,
    notice: Notice,
}

impl Place {
    /// What the options say, if they say that there is a back end.
    pub(super) fn of(options: &Options, rid: Rid, notice: &Notice) -> Option<Self> {
        let socket = PathBuf::from(options.text(SOCKET)?);
        let patience = Duration::from_secs(options.number(TIMEOUT).unwrap_or(SECONDS));
        Some(Self { socket, patience, rid, notice: notice.clone() })
    }

    fn connect(&self) -> Result<FrontEnd, ConnectError> {
        let link = FrontEnd::connect(&self.socket, self.patience)?;
        if link.features() & feature::VERSION_1 == 0 {
            return Err(ConnectError::Lacks("VIRTIO_F_VERSION_1"));
        }
        Ok(link)
    }

    fn say(&self, what: &str) {
        (self.notice)(self.rid, what);
    }
}

/// A back end that has been found.
pub(super) struct BackEnd {
    place: Place,
    link: FrontEnd,
}

/// What a model makes of what a back end has.
pub(super) struct Shape {
    /// What the back end offers, as far as it is offered to the driver.
    pub(super) features: u64,
    /// How many queues the device has, as the back end counts them.
    pub(super) queues: u16,
    /// Bytes of the configuration that the back end has; 0 if it has none.
    pub(super) configuration: usize,
    /// Makes the device's configuration of the back end's.
    pub(super) shown: fn(&mut [u8], u16),
    /// What the last byte that a device writes says if it cannot do what it was asked for, where there is such a byte.
    pub(super) failure: Option<u8>,
}

impl BackEnd {
    pub(super) fn find(place: Place) -> Result<Self, BuildError> {
        let link = place.connect().map_err(|error| BuildError::Remote(place.rid, error.to_string()))?;
        Ok(Self { place, link })
    }

    /// What it offers, of these features.
    pub(super) fn features(&self, known: u64) -> u64 {
        self.link.features() & known
    }

    /// The first bytes of the configuration that it has.
    pub(super) fn read_config(&self, length: usize) -> Result<Vec<u8>, BuildError> {
        let config = if self.link.has_config() {
            self.link.read_config(length).map_err(ConnectError::from)
        } else {
            Err(ConnectError::Lacks("VHOST_USER_PROTOCOL_F_CONFIG"))
        };
        config.map_err(|error| BuildError::Remote(self.place.rid, error.to_string()))
    }

    /// Has it serve the device's queues, which lie in memory that is reached by `dma`.
    pub(super) fn serve(self, shape: Shape, dma: Box<dyn Dma>) -> Result<Box<dyn Service>, BuildError> {
        if self.link.queues() < shape.queues {
            let words = format!("the back end has {} queues, and {} are asked for", self.link.queues(), shape.queues);
            return Err(BuildError::Remote(self.place.rid, words));
        }
        Ok(Box::new(Copies::new(self.place, Arc::new(self.link), shape, dma)))
    }
}
