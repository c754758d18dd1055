//! A device whose queues another process serves, by the protocol vhost-user: what models that can be so have together.
//!
//! ```text
//!   Copies   driver's queue ── Queue: the device's DMA, checked ──▶ Copy ──▶ memory of our own ◀── back end
//!   Direct   driver's queue, in files that the back end has ◀────────────────────────────────────── back end
//!            Ioas ── Translations: a mirror ── updates, invalidations ────────────────────────────▶
//! ```
//! By copies the back end is passed memory of our own and no other: what is in a queue is copied there, and what was
//! done is copied back. So it reaches exactly what it is offered, for as long as it is offered, whatever it does; whose
//! memory that is, and whether it can be shared, does not matter; and it has to know nothing of translation.
//!
//! A back end that is trusted with the memory itself, and asks where in it an IOVA leads, serves the driver's queues as
//! they are.

mod area;
mod bells;
mod copies;
mod copy;
mod direct;
mod session;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ioasid::{Endpoint, Rid};
use ioasid_remote::vhost_user::{ConnectError, FrontEnd, Translations};
use ioasid_vfio::{BusMaster, Interrupts};

use super::queue::Broken;
use super::service::Service;
use super::{Identity, Virtio, feature, spec};
use crate::registry::{BuildError, Built, Context, Notice, OptionInfo, OptionKind, Options, Site};
use copies::Copies;
use direct::Direct;
use session::Session;

const SOCKET: &str = "vhost-user";
const TIMEOUT: &str = "timeout";
const SHARE: &str = "share";

/// The options of a model that can be so.
pub(super) const OPTIONS: [OptionInfo; 3] = [
    OptionInfo::new(SOCKET, "its queues are served by who listens there", OptionKind::Text("PATH")),
    OptionInfo::new(TIMEOUT, "seconds that this has to answer (5)", OptionKind::Number { least: 1, most: 3600 }),
    OptionInfo::new(SHARE, "it has the memory, and asks for translations (it has copies)", OptionKind::Flag),
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
        _ => match [TIMEOUT, SHARE].into_iter().find(|name| options.has(name) && !is_meant(options)) {
            Some(name) => Err(BuildError::OnlyWith(name, SOCKET)),
            None => Ok(()),
        },
    }
}

/// Where to find a back end, and who is told of it.
#[derive(Clone)]
pub(super) struct Place {
    socket: PathBuf,
    patience: Duration,
    shares: bool,
    rid: Rid,
    notice: Notice,
}

impl Place {
    /// What the options say, if they say that there is a back end.
    pub(super) fn of(options: &Options, rid: Rid, notice: &Notice) -> Option<Self> {
        let socket = PathBuf::from(options.text(SOCKET)?);
        let patience = Duration::from_secs(options.number(TIMEOUT).unwrap_or(SECONDS));
        Some(Self { socket, patience, shares: options.has(SHARE), rid, notice: notice.clone() })
    }

    fn connect(&self) -> Result<FrontEnd, ConnectError> {
        // By copies, what is under way is known here.
        let connect = if self.shares { FrontEnd::connect_inflight } else { FrontEnd::connect };
        let link = connect(&self.socket, self.patience)?;
        if link.features() & feature::VERSION_1 == 0 {
            return Err(ConnectError::Lacks("VIRTIO_F_VERSION_1"));
        }
        if self.shares && !link.translates() {
            return Err(ConnectError::Lacks("VIRTIO_F_ACCESS_PLATFORM, to ask for translations: leave out `share`"));
        }
        Ok(link)
    }

    fn say(&self, what: &str) {
        (self.notice)(self.rid, what);
    }

    /// The device cannot go on.
    fn give_up(&self, why: &str) -> Broken {
        self.say(&format!("the device needs a reset: {why}"));
        Broken
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

    /// What is offered to the driver: of what the back end offers, these features; and the transport's.
    pub(super) fn features(&self, known: u64) -> u64 {
        // Queues that are copied are looked at here.
        const IN_QUEUES: u64 = feature::INDIRECT | feature::EVENT_INDEX;
        let in_queues = if self.place.shares { self.link.features() & IN_QUEUES } else { IN_QUEUES };
        self.link.features() & known | in_queues | feature::VERSION_1 | feature::ACCESS_PLATFORM
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

    /// Has it serve the queues of a function on the bus.
    pub(super) fn function(
        self,
        identity: &Identity,
        shape: Shape,
        site: Site,
        context: &Context<'_>,
    ) -> Result<Vec<Built>, BuildError> {
        let Self { place, link } = self;
        if link.queues() < shape.queues {
            let words = format!("the back end has {} queues, and {} are asked for", link.queues(), shape.queues);
            return Err(BuildError::Remote(place.rid, words));
        }
        let (spec, link) = (spec(identity), Arc::new(link));
        let virtio = |service: Box<dyn Service>, interrupts| Virtio::new(identity.clone(), service, interrupts, site);
        if !place.shares {
            return context.plain(site, spec, |endpoint, interrupts| {
                let way = Copies::new(Box::new(endpoint.port()), shape.failure);
                virtio(Box::new(Session::new(place, link, shape, way)), interrupts)
            });
        }
        let told = place.clone();
        let translations = Translations::new(place.patience, move |what| told.say(what));
        let endpoint = context.mirrored(site, translations.clone())?;
        translations.refuse_as(&endpoint);
        let way = Direct::new(translations.clone(), Box::new(endpoint.port()))
            .map_err(|error| BuildError::NoMemory(site.rid, error.to_string()))?;
        let interrupts = Interrupts::new(&spec);
        let model = virtio(Box::new(Session::new(place, link, shape, way)), interrupts.clone())?;
        let bus_master = Arc::new(Switch { endpoint: endpoint.clone(), translations, model: model.clone() });
        Ok(vec![Built { endpoint, spec, interrupts, model, bus_master }])
    }
}

/// What lets a back end reach memory, and stops it.
struct Switch {
    endpoint: Arc<Endpoint>,
    translations: Arc<Translations>,
    model: Arc<Virtio>,
}

impl BusMaster for Switch {
    fn set_bus_master(&self, enabled: bool) {
        self.translations.set_bus_master(enabled);
        // A thread that writes configuration space holds no slices, and nothing else can be in the way.
        let _ = self.endpoint.set_bus_master(enabled);
        self.model.wake();
    }
}
