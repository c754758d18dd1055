//! A device's queues are served by another process: the connection to it.
//!
//! ```text
//!   connect      GET_FEATURES, GET_PROTOCOL_FEATURES, …      what it can do
//!   agree        SET_FEATURES                                what the driver has agreed on
//!   set_memory   SET_MEM_TABLE                               the files that it has
//!   start        SET_VRING_…                                 rings, eventfds
//!   stop         GET_VRING_BASE                              it is out of the ring when it answers
//!
//!   Translations ── IOTLB_MSG: updates, invalidations ─────► of the address space that the device is attached to
//!                ◄─ BACKEND_IOTLB_MSG: misses ──────────────
//! ```
//! A back end that breaks the protocol or does not answer in time is cut off.

mod regions;
mod translations;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasid::{Access, IovaRange};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use thiserror::Error;
use zerocopy::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::requests::{RequestError, Requests, Wait};
use super::wire::{
    BackendRequest, ConfigHead, Header, InflightPlace, IotlbKind, IotlbMessage, MAX_CONFIG, MAX_REGIONS, MemoryHead,
    MemoryRegion, RequestId, VringAddress, VringFile, VringState, feature, protocol,
};
use crate::Ended;
use crate::socket::peer::Process;
use crate::socket::{Channel, bounded, connect};
pub use translations::{FollowError, GiveError, Translations};

/// Why there is no such back end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing listens there.
    #[error("no back end can be reached at {path}: {1}", path = .0.display())]
    Connect(PathBuf, std::io::Error),
    /// It went, broke the protocol, or refuses what it has to know.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// It lacks something that is needed.
    #[error("the back end lacks {0}")]
    Lacks(&'static str),
    /// There is no descriptor to be had.
    #[error("there is no descriptor to be had: {0}")]
    Resources(std::io::Error),
}

impl From<Ended> for ConnectError {
    fn from(ended: Ended) -> Self {
        Self::Request(ended.into())
    }
}

/// A ring for a back end to serve.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a> {
    /// Which one.
    pub index: u8,
    /// Its entries.
    pub size: u16,
    /// Where its descriptors are: addresses of [`Memory::user`], or IOVAs with VIRTIO_F_ACCESS_PLATFORM.
    pub descriptors: u64,
    /// Where the driver's ring is.
    pub driver: u64,
    /// Where the device's ring is.
    pub device: u64,
    /// How many the driver had offered of which the device has taken none.
    pub base: u16,
    /// Is written when there is something to do.
    pub kick: BorrowedFd<'a>,
    /// Is written when something is done.
    pub call: BorrowedFd<'a>,
}

/// Memory for a back end to reach.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Its address for devices whose addresses are not translated.
    pub guest: u64,
    /// Its bytes.
    pub size: u64,
    /// By which address translations and rings refer to it.
    pub user: u64,
    /// The file that it is in.
    pub file: Arc<OwnedFd>,
    /// Where in it.
    pub offset: u64,
}

impl Memory {
    /// The first address that makes sense as [`Memory::user`]: any but 0 will do, which some back ends take for none.
    pub const USER: u64 = 1 << 40;
}

/// Where back ends, one after the other, note which requests are under way.
#[derive(Debug)]
pub struct Inflight {
    place: InflightPlace,
    file: OwnedFd,
}

/// What a back end has to say by itself.
#[derive(Debug)]
#[non_exhaustive]
pub enum BackEndEvent {
    /// The device's configuration has changed.
    ConfigChange,
    /// It asks for a translation.
    Miss(Miss),
}

/// A translation that a back end asks for.
#[derive(Debug)]
pub struct Miss {
    /// Of this IOVA.
    pub iova: u64,
    /// What it wants to do there.
    pub access: Access,
    /// To reply to, if it wants to know.
    reply: Option<Header>,
}

/// How long a message of the back end's, or a reply to one, may be under way.
const A_MESSAGE: Duration = Duration::from_millis(100);

/// The connection to a back end.
#[derive(Debug)]
pub struct FrontEnd {
    requests: Requests,
    /// By which the back end asks.
    events: Option<Channel<Header>>,
    features: u64,
    protocol: u64,
    queues: u16,
    /// The process that listened.
    process: Option<Process>,
}

impl FrontEnd {
    /// Connects to the back end that listens at `socket`, and asks what it can do. It has `patience` to answer each
    /// request: a millisecond to an hour, or what is nearest to that.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(socket: &Path, patience: Duration) -> Result<Self, ConnectError> {
        Self::connect_with(socket, patience, 0)
    }

    /// As [`FrontEnd::connect`]. A back end that can do so notes for the next one which requests are under way. The
    /// caller gives it a place for that ([`FrontEnd::inflight`], [`FrontEnd::set_inflight`]) before it starts rings.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect_inflight(socket: &Path, patience: Duration) -> Result<Self, ConnectError> {
        Self::connect_with(socket, patience, protocol::INFLIGHT_SHMFD)
    }

    fn connect_with(socket: &Path, patience: Duration, more: u64) -> Result<Self, ConnectError> {
        let patience = bounded(patience);
        let connected = connect(socket, patience);
        let connected = connected.map_err(|error| ConnectError::Connect(socket.to_owned(), error.into()))?;
        let process = Process::of(&connected);
        let requests = Requests::new(connected, patience);
        let mut new = Self { requests, events: None, features: 0, protocol: 0, queues: 1, process };
        new.features = new.number(RequestId::GetFeatures)?;
        if new.features & feature::PROTOCOL_FEATURES != 0 {
            const KNOWN: u64 = protocol::MQ | protocol::REPLY_ACK | protocol::BACKEND_REQ | protocol::CONFIG;
            // A back end may send what it has to say as soon as it has been told how.
            new.protocol = new.number(RequestId::GetProtocolFeatures)? & (KNOWN | more);
            if new.protocol & protocol::REPLY_ACK == 0 {
                new.protocol &= !protocol::BACKEND_REQ;
            }
            new.post(RequestId::SetProtocolFeatures, &U64::new(new.protocol), &[])?;
        }
        new.post_plain(RequestId::SetOwner)?;
        new.queues = if new.protocol & protocol::MQ == 0 {
            u16::MAX
        } else {
            u16::try_from(new.number(RequestId::GetQueueNum)?).unwrap_or(u16::MAX)
        };
        if new.protocol & protocol::BACKEND_REQ != 0 {
            let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
            let (here, there) = pair.map_err(|error| ConnectError::Resources(error.into()))?;
            new.requests.ask(RequestId::SetBackendReqFd, &[], &[there.as_fd()], Wait::Acknowledged)?;
            let events = Channel::new(here, patience);
            events.take_descriptors(false);
            new.events = Some(events);
        }
        Ok(new)
    }

    /// What it offers of virtio's features.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features & !(feature::PROTOCOL_FEATURES | feature::LOG_ALL)
    }

    /// How many queues it can have; as many as one likes if it does not say.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Whether it has the device's configuration.
    #[must_use]
    pub fn has_config(&self) -> bool {
        self.protocol & protocol::CONFIG != 0
    }

    /// The first bytes of the device's configuration.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn read_config(&self, length: usize) -> Result<Vec<u8>, RequestError> {
        let length = length.min(MAX_CONFIG);
        let head = ConfigHead { offset: U32::new(0), size: U32::new(length as u32), flags: U32::new(0) };
        let space = vec![0; length];
        let reply = self.requests.ask(RequestId::GetConfig, &[head.as_bytes(), &space], &[], Wait::Replied)?;
        // Nothing, or nothing of it: it has none.
        match ConfigHead::read_from_prefix(&reply) {
            Ok((_, bytes)) if bytes.len() == length => Ok(bytes.to_vec()),
            _ => Err(RequestError::Refused(RequestId::GetConfig.name())),
        }
    }

    /// Whether it goes by translations, and asks for those that it needs.
    #[must_use]
    pub fn translates(&self) -> bool {
        self.features & feature::ACCESS_PLATFORM != 0 && self.protocol & protocol::BACKEND_REQ != 0
    }

    /// Says what the driver has agreed on.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn agree(&self, features: u64) -> Result<(), RequestError> {
        let features = features | self.features & feature::PROTOCOL_FEATURES;
        self.post(RequestId::SetFeatures, &U64::new(features), &[])
    }

    /// A place where the back end notes which requests are under way, in this many queues of so many entries; `None` if
    /// it notes nothing.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn inflight(&self, queues: u16, size: u16) -> Result<Option<Inflight>, RequestError> {
        if self.protocol & protocol::INFLIGHT_SHMFD == 0 {
            return Ok(None);
        }
        let wanted = InflightPlace { queues: U16::new(queues), size: U16::new(size), ..InflightPlace::default() };
        let (mut reply, mut files) = self.requests.ask_for_files(RequestId::GetInflightFd, &[wanted.as_bytes()])?;
        if reply.len() == InflightPlace::WORDS {
            // Some have the structure as it is in C, padded, and some have the specification's.
            reply.resize(size_of::<InflightPlace>(), 0);
        }
        match (InflightPlace::read_from_bytes(&reply), files.take_memory(0)) {
            (Ok(place), Some(file)) => Ok(Some(Inflight { place, file })),
            _ => Err(self.end(Ended::protocol("what answers GET_INFLIGHT_FD is no memory")).into()),
        }
    }

    /// Gives the back end the place where it notes which requests are under way, and where the one before has noted it.
    /// The caller has started no ring yet.
    ///
    /// # Errors
    /// [`RequestError`]. One that does not note them refuses it.
    pub fn set_inflight(&self, inflight: &Inflight) -> Result<(), RequestError> {
        if self.protocol & protocol::INFLIGHT_SHMFD == 0 {
            return Err(RequestError::Refused(RequestId::SetInflightFd.name()));
        }
        self.settle(RequestId::SetInflightFd, &[inflight.place.as_bytes()], &[inflight.file.as_fd()])
    }

    /// Starts rings. It knows what was agreed on, and has the memory that they are in.
    ///
    /// # Errors
    /// [`RequestError`]; then some of them may be started.
    pub fn start(&self, rings: &[Ring<'_>]) -> Result<(), RequestError> {
        for ring in rings {
            let index = U32::new(ring.index.into());
            let state = |number: u16| VringState { index, number: U32::new(number.into()) };
            self.post(RequestId::SetVringNum, &state(ring.size), &[])?;
            self.post(RequestId::SetVringBase, &state(ring.base), &[])?;
            let [descriptors, driver, device] = [ring.descriptors, ring.driver, ring.device].map(U64::new);
            let address = VringAddress { index, descriptors, driver, device, ..VringAddress::default() };
            self.post(RequestId::SetVringAddr, &address, &[])?;
            let file = U64::new(VringFile { index: ring.index, has_file: true }.encode());
            self.post(RequestId::SetVringCall, &file, &[ring.call])?;
            self.post(RequestId::SetVringKick, &file, &[ring.kick])?;
        }
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            for ring in rings {
                let state = VringState { index: U32::new(ring.index.into()), number: U32::new(1) };
                self.post(RequestId::SetVringEnable, &state, &[])?;
            }
        }
        // All of that has been done when this is answered.
        self.number(RequestId::GetFeatures).map(drop)
    }

    /// Stops rings. When this returns the back end is out of them, and of the memory that was offered in them. It has
    /// as long for all as for one. Returns how many it has taken of each.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn stop(&self, rings: &[u8]) -> Result<Vec<u16>, RequestError> {
        let limit = self.requests.limit();
        let stop = |index: &u8| {
            let state = VringState { index: U32::new((*index).into()), number: U32::new(0) };
            let reply: VringState = self.asked_until(Some(limit), RequestId::GetVringBase, state.as_bytes())?;
            Ok(reply.number.get() as u16)
        };
        rings.iter().map(stop).collect()
    }

    /// Gives the back end the memory that there is, instead of what there was.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn set_memory(&self, memory: &[Memory]) -> Result<(), RequestError> {
        debug_assert!(memory.len() <= MAX_REGIONS);
        let head = MemoryHead { regions: U32::new(memory.len() as u32), padding: U32::new(0) };
        let regions: Vec<MemoryRegion> = memory
            .iter()
            .map(|memory| {
                let [guest, size, user, offset] = [memory.guest, memory.size, memory.user, memory.offset].map(U64::new);
                MemoryRegion { guest, size, user, offset }
            })
            .collect();
        let files: Vec<_> = memory.iter().map(|memory| memory.file.as_fd()).collect();
        self.settle(RequestId::SetMemTable, &[head.as_bytes(), regions.as_bytes()], &files)
    }

    /// Gives a translation: `length` bytes from `iova` on are at `user`, an address of [`Memory::user`].
    fn update(&self, iova: u64, length: u64, user: u64, access: Access) -> Result<(), RequestError> {
        let update = IotlbMessage::new(IotlbKind::Update, iova, length, user, access);
        self.requests.say(RequestId::IotlbMsg, &[update.as_bytes()])
    }

    /// Takes translations back. When this returns, by the limit, the back end goes by none of them any more.
    fn invalidate(&self, range: IovaRange, limit: Instant) -> Result<(), RequestError> {
        let length = range.len_minus_one().saturating_add(1);
        let message = IotlbMessage::new(IotlbKind::Invalidate, range.start(), length, 0, Access::empty());
        let parts: &[&[u8]] = &[message.as_bytes()];
        self.requests.ask_until(Some(limit), RequestId::IotlbMsg, parts, &[], Wait::Acknowledged).map(drop)
    }

    /// What the back end has said by itself since it was last asked, if it has.
    ///
    /// # Errors
    /// If it has gone, or broke the protocol.
    pub fn event(&self) -> Result<Option<BackEndEvent>, Ended> {
        let Some(events) = &self.events else { return Ok(None) };
        if !events.has_something() {
            return Ok(None);
        }
        let now = Instant::now();
        let received = events.receive(Some(now), || now + A_MESSAGE);
        let event = received.and_then(|message| {
            let Some(message) = message else { return Ok(None) };
            let reply = message.header.needs_reply().then_some(message.header);
            Ok(Some(match BackendRequest::decode(message.header.request.get(), &message.payload)? {
                BackendRequest::ConfigChange => {
                    self.reply(reply.as_ref(), true);
                    BackEndEvent::ConfigChange
                }
                BackendRequest::Miss(miss) => {
                    BackEndEvent::Miss(Miss { iova: miss.iova.get(), access: miss.access(), reply })
                }
            }))
        });
        event.map_err(|ended| self.end(ended))
    }

    /// Tells the back end whether it has what it has asked for by now.
    pub fn answer(&self, miss: &Miss, is_there: bool) {
        self.reply(miss.reply.as_ref(), is_there);
    }

    fn reply(&self, to: Option<&Header>, is_done: bool) {
        let (Some(events), Some(header)) = (&self.events, to) else { return };
        let number = U64::new(u64::from(!is_done));
        if let Err(ended) = events.send(&header.reply(8), &[number.as_bytes()], &[], Instant::now() + A_MESSAGE) {
            self.end(ended);
        }
    }

    /// What to wait for: the back end is gone, or has something to say.
    pub fn signs(&self) -> impl Iterator<Item = PollFd<'_>> {
        let says = self.events.as_ref().map(|events| PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN));
        std::iter::once(self.end_sign()).chain(says)
    }

    /// What to wait for: the back end is gone.
    #[must_use]
    pub fn end_sign(&self) -> PollFd<'_> {
        PollFd::from_borrowed_fd(self.requests.as_fd(), PollFlags::RDHUP)
    }

    /// Whether the back end is gone, or was cut off.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let is_closed = || rustix::event::poll(&mut [self.end_sign()], Some(&now)).is_ok_and(|ready| ready > 0);
        self.requests.ended().is_some() || is_closed()
    }

    /// Why the connection is over, if it is.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.requests.ended()
    }

    /// Cuts the back end off. Whatever waits for it waits no more.
    pub fn cut_off(&self, why: Ended) {
        self.end(why);
    }

    /// The first reason stays.
    fn end(&self, why: Ended) -> Ended {
        self.events.iter().for_each(Channel::close);
        self.requests.end(why)
    }

    /// Whether its process ends in time, with all that it has mapped.
    fn has_exited(&self, patience: Duration) -> bool {
        self.process.as_ref().is_some_and(|process| process.has_exited(patience))
    }

    fn post<T: IntoBytes + Immutable>(
        &self,
        id: RequestId,
        what: &T,
        files: &[BorrowedFd<'_>],
    ) -> Result<(), RequestError> {
        self.requests.ask(id, &[what.as_bytes()], files, Wait::Sent).map(drop)
    }

    fn post_plain(&self, id: RequestId) -> Result<(), RequestError> {
        self.requests.ask(id, &[], &[], Wait::Sent).map(drop)
    }

    /// Has something done before this returns.
    fn settle(&self, id: RequestId, parts: &[&[u8]], files: &[BorrowedFd<'_>]) -> Result<(), RequestError> {
        if self.protocol & protocol::REPLY_ACK != 0 {
            return self.requests.ask(id, parts, files, Wait::Acknowledged).map(drop);
        }
        // One that acknowledges nothing has done what comes before something that it answers.
        self.requests.ask(id, parts, files, Wait::Sent)?;
        self.number(RequestId::GetFeatures).map(drop)
    }

    fn number(&self, id: RequestId) -> Result<u64, RequestError> {
        Ok(self.asked::<U64>(id, &[])?.get())
    }

    fn asked<T: FromBytes>(&self, id: RequestId, with: &[u8]) -> Result<T, RequestError> {
        self.asked_until(None, id, with)
    }

    fn asked_until<T: FromBytes>(&self, limit: Option<Instant>, id: RequestId, with: &[u8]) -> Result<T, RequestError> {
        let reply = self.requests.ask_until(limit, id, &[with], &[], Wait::Replied)?;
        T::read_from_bytes(&reply)
            .map_err(|_| self.end(Ended::protocol(format!("{} bytes that answer {id}", reply.len()))).into())
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.end(Ended::Here);
    }
}
