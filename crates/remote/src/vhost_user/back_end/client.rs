//! One front end, from its first request to its end.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasid::{Context, Device as Bound, FaultQueue, FaultQueueOptions, HwptOptions, IovaRange, ObjectId, OnMiss};
use ioasid_vfio::EventFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use zerocopy::native_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::memory::{MOST_REGIONS, Memory, MemoryError};
use super::rings::RingState;
use super::{BackEnd, ServeError};
use crate::Ended;
use crate::socket::{Channel, Message, Passed};
use crate::vhost_user::wire::{
    ConfigHead, Header, IotlbKind, IotlbMessage, Request, VringFile, VringState, feature, protocol,
};

/// What is offered of the protocol's features.
const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS;

/// The largest ring (2.7).
const LARGEST: u32 = 32768;

/// How long a device that could not go on waits until it tries again.
const AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A device that cannot go on again so soon is in lasting trouble.
const LASTING: Duration = Duration::from_secs(1);

/// What a front end has while it is connected.
pub(super) struct Client<'a> {
    back_end: &'a BackEnd,
    channel: Channel<Header>,
    features: u64,
    protocol: u64,
    rings: Vec<RingState>,
    memory: Memory,
    /// The device serves rings.
    is_running: bool,
    /// It was taken out of them, as it could not go on.
    in_trouble: bool,
    /// When it last could not.
    last_trouble: Option<Instant>,
    queue: Arc<FaultQueue>,
    bound: Option<Bound>,
    context: Arc<Context>,
    /// What was made in it, in the order in which it can go.
    objects: [ObjectId; 3],
}

/// What a request comes to: what to reply, if that is more than whether it was carried out.
type Answer = Result<Option<Vec<u8>>, String>;

fn number(number: u64) -> Answer {
    Ok(Some(U64::new(number).as_bytes().to_vec()))
}

impl<'a> Client<'a> {
    pub(super) fn new(back_end: &'a BackEnd, socket: OwnedFd) -> Result<Self, ServeError> {
        let context = back_end.machine.context();
        // A context that is new has ids.
        let no_ids = || ServeError::from(ioasid::AttachError::NoIds);
        let ioas = context.ioas_alloc().ok_or_else(no_ids)?;
        let options = FaultQueueOptions::default().timeout(back_end.patience);
        let queue = context.fault_queue_alloc_with(options).ok_or_else(no_ids)?;
        let bound = context.bind(&back_end.endpoint)?;
        let options = HwptOptions::default().on_miss(OnMiss::Queue(queue.clone()));
        let hwpt = context.hwpt_alloc(&back_end.endpoint, &ioas, options)?;
        bound.attach(None, &hwpt)?;
        let objects = [hwpt.id(), queue.id(), ioas.id()];
        let (misses, arrived) = (back_end.misses.clone(), Arc::downgrade(&queue));
        queue.on_arrival(Arc::new(move || {
            if let Some(queue) = arrived.upgrade() {
                misses.pass_on(&queue);
            }
        }));
        let mut rings = Vec::new();
        rings.resize_with(back_end.device.rings().into(), RingState::default);
        Ok(Self {
            back_end,
            channel: Channel::new(socket, back_end.patience),
            features: 0,
            protocol: 0,
            rings,
            memory: Memory::new(ioas),
            is_running: false,
            in_trouble: false,
            last_trouble: None,
            queue,
            bound: Some(bound),
            context,
            objects,
        })
    }

    /// Carries out requests until the front end goes.
    pub(super) fn serve(mut self) -> Ended {
        loop {
            if let Err(ended) = self.next() {
                self.channel.close();
                return ended;
            }
        }
    }

    /// Waits for a request or a reply, and sees to it.
    fn next(&mut self) -> Result<(), Ended> {
        let (events, device) = (self.back_end.misses.events(), self.back_end.device.clone());
        let readable = |file| PollFd::from_borrowed_fd(file, PollFlags::IN);
        let mut signs = vec![readable(self.channel.as_fd()), readable(device.trouble().as_fd())];
        signs.extend(events.as_ref().map(|events| readable(events.as_fd())));
        match poll(&mut signs, self.in_trouble.then_some(&AGAIN)) {
            Err(Errno::INTR) => return Ok(()),
            other => other.map_err(Ended::of)?,
        };
        let ready: Vec<bool> = signs.iter().map(|sign| !sign.revents().is_empty()).collect();
        self.answer_all()?;
        let events = events.filter(|_| ready.get(2) == Some(&true));
        while let Some(events) = events.as_ref().filter(|events| events.has_something()) {
            let Some(reply) = events.receive(Some(Instant::now()), || self.end())? else { break };
            if !reply.header.is_reply() {
                return Err(Ended::Command);
            }
            // What it was asked for has come before the reply that it is there, by the other socket.
            self.answer_all()?;
            let is_there = U64::read_from_bytes(&reply.payload).is_ok_and(|number| number.get() == 0);
            self.back_end.misses.replied(&self.queue, is_there)?;
        }
        // What the device did not reach, the front end may just not have said so far: it tries again, after something
        // has come, or after a while.
        if self.in_trouble {
            self.in_trouble = false;
            self.resume();
        }
        if ready[1] && device.trouble().take() {
            self.pause();
            self.in_trouble = true;
            // What it does not find at once, it may find a moment later.
            let before = self.last_trouble.replace(Instant::now());
            if before.is_some_and(|before| before.elapsed() < LASTING) {
                self.rings.iter().filter_map(|ring| ring.error.as_ref()).for_each(|error| error.signal());
            }
        }
        Ok(())
    }

    /// When a message that has begun has to be whole.
    fn end(&self) -> Instant {
        Instant::now() + self.back_end.patience
    }

    /// Sees to the requests that have come.
    fn answer_all(&mut self) -> Result<(), Ended> {
        while self.channel.has_something() {
            let Some(message) = self.channel.receive(Some(Instant::now()), || self.end())? else { break };
            self.answer(message)?;
        }
        Ok(())
    }

    fn answer(&mut self, message: Message<Header>) -> Result<(), Ended> {
        let Message { header, payload, descriptors } = message;
        if header.is_reply() {
            return Err(Ended::Unasked);
        }
        let request = Request::decode(header.request.get(), &payload, descriptors.len());
        let is_acknowledged = header.needs_reply() && self.protocol & protocol::REPLY_ACK != 0;
        let answer =
            request.map_err(|error| error.to_string()).and_then(|request| self.carry_out(request, descriptors));
        let reply = match answer {
            Ok(Some(reply)) => reply,
            Ok(None) if !is_acknowledged => return Ok(()),
            Ok(None) => U64::new(0).as_bytes().to_vec(),
            Err(_) if is_acknowledged => U64::new(1).as_bytes().to_vec(),
            // It would never know.
            Err(why) => return Err(Ended::protocol(why)),
        };
        let limit = Instant::now() + self.back_end.patience;
        self.channel.send(&header.reply(reply.len()), &[&reply], &[], limit)
    }

    fn carry_out(&mut self, request: Request<'_>, mut files: Passed) -> Answer {
        let device = &self.back_end.device;
        match request {
            Request::GetFeatures => number(device.features() | feature::PROTOCOL_FEATURES),
            Request::GetProtocolFeatures => number(PROTOCOL),
            Request::GetQueueNum => number(device.queues().into()),
            Request::GetMaxMemSlots => number(MOST_REGIONS as u64),
            Request::SetProtocolFeatures(features) if features & !PROTOCOL == 0 => {
                self.protocol = features;
                Ok(None)
            }
            Request::SetProtocolFeatures(features) => Err(format!("protocol features {features:#x}")),
            Request::SetOwner => Ok(None),
            Request::SetFeatures(features) => self.set_features(features),
            Request::ResetOwner | Request::ResetDevice => {
                self.pause();
                self.rings.iter_mut().for_each(|ring| *ring = RingState::default());
                Ok(None)
            }
            Request::SetMemTable(regions) => self.at_rest(|client| client.memory.replace(&regions, files)),
            Request::AddMemReg(region) => self.at_rest(|client| client.memory.add(region, files)),
            Request::RemMemReg(region) => {
                let done = self.memory.remove(&region).map(|()| None);
                done.map_err(|error| error.to_string())
            }
            Request::SetBackendReqFd => {
                let socket = files.take_socket(0).ok_or("what is to be a socket is none")?;
                let events = Channel::new(socket, self.back_end.patience);
                events.take_descriptors(false);
                self.back_end.misses.ask_by(Some((Arc::new(events), self.back_end.patience)));
                Ok(None)
            }
            Request::Iotlb(message) => self.iotlb(&message),
            Request::GetConfig(head) => Ok(Some(self.config(&head))),
            Request::SetConfig(..) => Err("no byte of the configuration is the driver's".to_owned()),
            // Not offered.
            Request::SetStatus(_) | Request::GetStatus => Err("there is no status".to_owned()),
            Request::SetVringNum(state) => {
                let size = state.number.get();
                if !size.is_power_of_two() || size > LARGEST {
                    return Err(format!("a ring of {size} entries"));
                }
                self.ring(state.index.get(), |ring| ring.size = size as u16)
            }
            Request::SetVringAddr(address) => self.ring(address.index.get(), |ring| ring.address = Some(address)),
            Request::SetVringBase(state) => self.ring(state.index.get(), |ring| ring.base = state.number.get() as u16),
            Request::SetVringKick(file) => {
                let kick = eventfd(file, &files)?.ok_or("a ring without a kick would have to be polled")?;
                self.ring(file.index.into(), |ring| ring.kick = Some(kick))
            }
            Request::SetVringCall(file) => {
                let call = eventfd(file, &files)?;
                self.ring(file.index.into(), |ring| ring.call = call)
            }
            Request::SetVringErr(file) => {
                let error = eventfd(file, &files)?;
                self.ring(file.index.into(), |ring| ring.error = error)
            }
            Request::SetVringEnable(state) => {
                self.ring(state.index.get(), |ring| ring.is_enabled = state.number.get() == 1)
            }
            Request::GetVringBase(state) => {
                let index = state.index.get();
                self.ring(index, |ring| ring.kick = None)?;
                let base = self.rings[index as usize].base;
                Ok(Some(VringState { index: U32::new(index), number: U32::new(base.into()) }.as_bytes().to_vec()))
            }
        }
    }

    fn set_features(&mut self, features: u64) -> Answer {
        let offered = self.back_end.device.features() | feature::PROTOCOL_FEATURES;
        if features & !offered != 0 {
            return Err(format!("features {:#x}, which are not offered", features & !offered));
        }
        let is_translated = features & feature::ACCESS_PLATFORM != 0;
        const ASKS: u64 = protocol::BACKEND_REQ | protocol::REPLY_ACK;
        if is_translated && self.protocol & ASKS != ASKS {
            return Err("addresses that are translated, and no way to ask for them".to_owned());
        }
        self.at_rest(|client| {
            client.memory.translate(is_translated)?;
            client.back_end.misses.translate(is_translated);
            client.features = features;
            // Without protocol features nothing enables rings.
            if features & feature::PROTOCOL_FEATURES == 0 {
                client.rings.iter_mut().for_each(|ring| ring.is_enabled = true);
            }
            Ok::<_, MemoryError>(())
        })
    }

    fn config(&self, head: &ConfigHead) -> Vec<u8> {
        let config = self.back_end.device.config();
        let mut reply = head.as_bytes().to_vec();
        let bytes = (head.offset.get()..).take(head.size.get() as usize);
        reply.extend(bytes.map(|at| config.get(at as usize).copied().unwrap_or(0)));
        reply
    }

    fn iotlb(&mut self, message: &IotlbMessage) -> Answer {
        let (iova, size) = (message.iova.get(), message.size.get());
        // One of all is written in several ways.
        let last = if size == 0 { u64::MAX } else { iova.saturating_add(size - 1) };
        let range = IovaRange::inclusive(iova, last).ok_or("no range")?;
        let done = match message.kind() {
            Some(IotlbKind::Update) => {
                let done = self.memory.update(range, message.user.get(), message.access());
                self.back_end.misses.updated(&self.queue, range);
                done
            }
            Some(IotlbKind::Invalidate) => self.memory.forget(range),
            Some(IotlbKind::Miss) | None => return Err(format!("a translation of kind {}", message.kind)),
        };
        done.map(|()| None).map_err(|error| error.to_string())
    }

    /// Changes a ring, while the device does not serve it.
    fn ring(&mut self, index: u32, change: impl FnOnce(&mut RingState)) -> Answer {
        if index as usize >= self.rings.len() {
            return Err(format!("a ring {index}: there are {}", self.rings.len()));
        }
        self.pause();
        change(&mut self.rings[index as usize]);
        self.resume();
        Ok(None)
    }

    /// Does something while the device does nothing.
    fn at_rest<E: ToString>(&mut self, change: impl FnOnce(&mut Self) -> Result<(), E>) -> Answer {
        self.pause();
        let done = change(self);
        self.resume();
        done.map(|()| None).map_err(|error| error.to_string())
    }

    /// Takes the device out of the rings.
    fn pause(&mut self) {
        if !std::mem::take(&mut self.is_running) {
            return;
        }
        let misses = &self.back_end.misses;
        for (index, base) in self.back_end.device.stop(&|| misses.give_up()) {
            if let Some(ring) = self.rings.get_mut(usize::from(index)) {
                ring.base = base;
            }
        }
    }

    /// Has the device serve those that can be.
    fn resume(&mut self) {
        if self.is_running {
            return;
        }
        let rings: Vec<_> =
            (0..).zip(&self.rings).filter_map(|(index, ring)| ring.served(index, &self.memory)).collect();
        if rings.is_empty() {
            return;
        }
        // What was done just before the device came out may not have been told; to be told of nothing is no harm.
        let calls: Vec<_> = rings.iter().filter(|ring| ring.base != 0).filter_map(|ring| ring.call.clone()).collect();
        self.is_running = true;
        self.back_end.misses.resume();
        self.back_end.device.start(self.features & !feature::PROTOCOL_FEATURES, rings);
        calls.iter().for_each(|call| call.signal());
    }
}

/// The eventfd that came, if one is meant.
fn eventfd(file: VringFile, files: &Passed) -> Result<Option<Arc<EventFd>>, String> {
    if !file.has_file {
        return Ok(None);
    }
    let eventfd = files.clone_eventfd(0).and_then(|file| EventFd::new(file).ok());
    eventfd.map(|eventfd| Some(Arc::new(eventfd))).ok_or_else(|| "what is to be an eventfd is none".to_owned())
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        self.back_end.misses.ask_by(None);
        self.back_end.misses.translate(false);
        self.pause();
        // What a front end leaves when it goes is not its fault.
        if let Some(bound) = self.bound.take() {
            bound.abandon();
        }
        for id in self.objects {
            let _ = self.context.destroy(id);
        }
    }
}
