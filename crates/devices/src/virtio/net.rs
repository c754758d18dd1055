//! A network interface: `virtio-net` (1af4:1041), at a tap of the kernel's, a back end's, or with itself at the other
//! end.
//!
//! Queue 0 has buffers for what comes, queue 1 what goes. Each packet begins with a header of 12 bytes, which says
//! nothing here: no offload is offered, so packets are whole, with their checksums, and one is in one buffer.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, 5.1.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ioasid::Iova;
use rustix::io::Errno;

use super::elsewhere::{self, BackEnd, Place, Shape};
use super::queue::{Broken, Queue};
use super::{Device, Identity, Offer, Parts, Queues, Served, TURN, function};
use crate::Dma;
use crate::registry::{BuildError, Built, Context, ModelInfo, OptionInfo, OptionKind, Options, Site, one};

mod tap;

/// Bytes of the header.
const HEADER: usize = 12;
/// Where a received packet's header says that it is in one buffer.
const BUFFERS: usize = 10;
/// The longest packet: that of the largest MTU.
const LONGEST: usize = 65_550;
/// Packets that wait for buffers; the next are lost.
const MOST: usize = 256;

/// Features of an interface (5.1.3).
mod feature {
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const STATUS: u64 = 1 << 16;
    /// What is between the driver and who takes its packets: checksums and segments (CSUM to MRG_RXBUF).
    pub(super) const OFFLOADS: u64 = 0b11 | 0b1_1111_1111 << 7;
}

const TAP: &str = "tap";
const MAC: &str = "mac";

/// The model.
pub const MODEL: ModelInfo = ModelInfo {
    name: "virtio-net",
    about: "virtio 1.2 network interface at a tap, or a loop (1af4:1041)",
    options: &[
        OptionInfo::new(TAP, "a tap of the kernel's (all that goes comes back)", OptionKind::Text("NAME")),
        OptionInfo::new(MAC, "its address (52:54:00:12:34:..)", OptionKind::Text("XX:XX:XX:XX:XX:XX")),
        elsewhere::OPTIONS[0],
        elsewhere::OPTIONS[1],
        elsewhere::OPTIONS[2],
    ],
    registers: &[super::registers::Register::TABLE],
    functions: one,
    check: |options| match options.text(MAC) {
        Some(text) if parse_mac(text).is_none() => Err(BuildError::NoAddress(text.to_owned())),
        _ => elsewhere::check(options, &[TAP]),
    },
    build,
    offer: Some(offer),
};

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    // An interface's own address is no group's.
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

fn build(options: &Options, sites: &[Site], context: Context<'_>) -> Result<Vec<Built>, BuildError> {
    let site = sites[0];
    match Place::of(options, site.rid, &context.notice) {
        Some(place) => back_end(BackEnd::find(place)?, mac(options, &context), site, context),
        None => function(parts(options, &context)?, site, &context),
    }
}

fn offer(options: &Options, site: Site, context: Context<'_>) -> Result<Offer, BuildError> {
    Offer::new(parts(options, &context)?, site, &context)
}

/// An interface here.
fn parts(options: &Options, context: &Context<'_>) -> Result<Parts, BuildError> {
    let far = match options.text(TAP) {
        None => Far::Loop,
        Some(name) => Far::Tap(tap::open(name).map_err(|error| BuildError::NoTap(name.to_owned(), error.to_string()))?),
    };
    let interface = Interface { far, waiting: VecDeque::new(), packet: vec![0; LONGEST] };
    Ok((identity(mac(options, context), super::feature::ALL), Box::new(interface)))
}

fn mac(options: &Options, context: &Context<'_>) -> [u8; 6] {
    let own = [0x52, 0x54, 0, 0x12, 0x34, 0x56u8.wrapping_add(context.number)];
    options.text(MAC).and_then(parse_mac).unwrap_or(own)
}

/// An interface, which offers these features beside those that each has.
fn identity(mac: [u8; 6], features: u64) -> Identity {
    let mut configuration = mac.to_vec();
    // The link is up.
    configuration.extend([1, 0]);
    let features = feature::MAC | feature::STATUS | features;
    Identity { kind: 1, class: 0x02_0000, features, queues: 2, together: 2, configuration }
}

/// An interface whose packets a back end takes and brings.
fn back_end(back_end: BackEnd, mac: [u8; 6], site: Site, context: Context<'_>) -> Result<Vec<Built>, BuildError> {
    let features = back_end.features(feature::OFFLOADS);
    let identity = identity(mac, features);
    // A pair of queues counts as one there.
    let shape = Shape { features, queues: 1, configuration: 0, shown: |_, _| {}, failure: None };
    back_end.function(&identity, shape, site, &context)
}

/// What is at the other end.
enum Far {
    Loop,
    Tap(OwnedFd),
    /// A tap that is there no more.
    Nothing,
}

struct Interface {
    far: Far,
    /// Packets for the driver.
    waiting: VecDeque<Vec<u8>>,
    packet: Vec<u8>,
}

impl Device for Interface {
    fn begin(&mut self, _features: u64) {
        // What came before is not for this driver.
        for _ in 0..16 {
            self.take_from_tap();
            if self.waiting.is_empty() {
                break;
            }
            self.waiting.clear();
        }
    }

    fn serve(
        &mut self,
        queues: &mut Queues,
        _kicked: u64,
        dma: &mut dyn Dma,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Served, Broken> {
        let mut served = Served::default();
        let [receive, transmit] = queues else { return Ok(served) };
        if let Some(queue) = transmit {
            served.more = u64::from(self.transmit(queue, dma, goes_on)?) << 1;
            served.interrupts = u64::from(queue.wants_interrupt(dma)?) << 1;
        }
        self.take_from_tap();
        if let Some(queue) = receive {
            served.interrupts |= u64::from(self.receive(queue, dma, goes_on)?);
        }
        Ok(served)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        match &self.far {
            Far::Loop | Far::Nothing => None,
            Far::Tap(tap) => Some(tap.as_fd()),
        }
    }
}

impl Interface {
    /// Sends some of what there is. Returns whether there may be more.
    fn transmit(&mut self, queue: &mut Queue, dma: &mut dyn Dma, goes_on: &dyn Fn() -> bool) -> Result<bool, Broken> {
        queue.be_silent(dma)?;
        for _ in 0..TURN {
            let Some(chain) = queue.pop(dma)? else { return queue.ask_to_be_told(dma) };
            let (mut length, mut is_whole) = (0, true);
            for part in chain.parts.iter().filter(|part| !part.writes) {
                let end = length + part.length as usize;
                let place = self.packet.get_mut(length..end);
                is_whole &= place.is_some_and(|place| dma.read(Iova(part.address).into(), place).is_ok());
                length = end;
            }
            if !goes_on() {
                return Ok(false);
            }
            // One that is too long, or cannot be read, is lost, as on a wire.
            if is_whole && length > HEADER {
                self.send(length);
            }
            queue.push(dma, chain.head, 0)?;
        }
        Ok(true)
    }

    fn send(&mut self, length: usize) {
        let packet = &self.packet[HEADER..length];
        match &self.far {
            Far::Loop if self.waiting.len() < MOST => self.waiting.push_back(packet.to_vec()),
            Far::Loop | Far::Nothing => {}
            // One that the kernel has no room for is lost.
            Far::Tap(tap) => drop(rustix::io::write(tap, packet)),
        }
    }

    /// Takes what has come.
    fn take_from_tap(&mut self) {
        let Far::Tap(tap) = &self.far else { return };
        // As many as there is room for at once: then the driver has its turn.
        for _ in 0..MOST {
            match rustix::io::read(tap, &mut self.packet[..]) {
                Ok(length) if self.waiting.len() < MOST => self.waiting.push_back(self.packet[..length].to_vec()),
                Ok(_) => {}
                Err(Errno::AGAIN | Errno::INTR) => return,
                // The kernel has taken it away; it would be readable for ever.
                Err(_) => {
                    self.far = Far::Nothing;
                    return;
                }
            }
        }
    }

    /// Gives the driver what has come, as far as it has buffers. Returns whether it is to be interrupted.
    fn receive(&mut self, queue: &mut Queue, dma: &mut dyn Dma, goes_on: &dyn Fn() -> bool) -> Result<bool, Broken> {
        while !self.waiting.is_empty() && goes_on() {
            let Some(chain) = queue.pop(dma)? else {
                // It tells when it has more; if it has by now, that is found.
                if queue.ask_to_be_told(dma)? {
                    continue;
                }
                break;
            };
            let Some(packet) = self.waiting.pop_front() else { break };
            let mut header = [0; HEADER];
            header[BUFFERS] = 1;
            let (mut done, all) = (0, [&header[..], &packet].concat());
            for part in chain.parts.iter().filter(|part| part.writes) {
                let left = &all[done..];
                let now = left.len().min(part.length as usize);
                if dma.write(Iova(part.address).into(), &left[..now]).is_err() {
                    break;
                }
                done += now;
            }
            // One that does not fit is lost, and its buffer is empty.
            let written = if done == all.len() { done as u32 } else { 0 };
            queue.push(dma, chain.head, written)?;
        }
        queue.wants_interrupt(dma)
    }
}
