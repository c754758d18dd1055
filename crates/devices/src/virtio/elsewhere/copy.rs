//! A queue for a back end, in memory of our own, and what in it is which part of the driver's.
//!
//! ```text
//!   0            4096           8192           12288
//!   ├────────────┼──────────────┼──────────────┼────────────────────────┐
//!   │ descriptors│ driver's ring│ device's ring│ bytes of what is asked │
//!   └────────────┴──────────────┴──────────────┴────────────────────────┘
//! ```
//! The back end is not believed: what it says is done has to be under way, and no more is copied back than there is
//! room for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use ioasid::Iova;
use ioasid_vfio::BarMemory;

use super::area::Area;
use crate::Dma;
use crate::virtio::queue::{Broken, Chain, Queue};

/// Bytes of a copy: the rings, and what is asked for at once.
pub(super) const LENGTH: u64 = DATA + (8 << 20);
const DRIVER: u64 = 4096;
const DEVICE: u64 = 2 * 4096;
const DATA: u64 = 3 * 4096;
/// Bytes that are moved at once.
const PIECE: usize = 64 << 10;

/// In a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// In the flags of the device's ring: it need not be told.
const SILENT: u16 = 1;

/// Something that the back end has been asked for.
struct Pending {
    /// Which it is of all.
    number: u64,
    chain: Chain,
    /// Where its bytes are.
    start: u64,
    length: u64,
    /// Its descriptors here.
    descriptors: Vec<u16>,
}

/// A queue for a back end.
pub(super) struct Copy {
    memory: Arc<BarMemory>,
    /// Where in the memory it is.
    start: u64,
    size: u16,
    area: Area,
    free: Vec<u16>,
    /// What is under way, by its first descriptor here.
    pending: BTreeMap<u16, Pending>,
    /// What the driver has offered and there was no room for, or has to be asked for again, in order.
    waiting: VecDeque<Chain>,
    asked: u64,
    offered: u16,
    taken: u16,
    failure: Option<u8>,
}

/// The back end has answered something that it was not asked for.
#[derive(Debug)]
pub(super) struct Nonsense;

impl Copy {
    /// In this memory, from `start` on.
    pub(super) fn new(memory: &Arc<BarMemory>, start: u64, size: u16, failure: Option<u8>) -> Self {
        Self {
            memory: memory.clone(),
            start,
            size,
            area: Area::new(DATA, LENGTH - DATA),
            free: (0..size).rev().collect(),
            pending: BTreeMap::new(),
            waiting: VecDeque::new(),
            asked: 0,
            offered: 0,
            taken: 0,
            failure,
        }
    }

    /// Where its three parts are in the memory: descriptors, driver's ring, device's ring.
    pub(super) fn parts(&self) -> [u64; 3] {
        [self.start, self.start + DRIVER, self.start + DEVICE]
    }

    /// Its entries.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Begins anew, in other memory, with what was under way, in its order: for another back end.
    pub(super) fn renew(&mut self, memory: &Arc<BarMemory>) {
        let mut again: Vec<Pending> = std::mem::take(&mut self.pending).into_values().collect();
        again.sort_by_key(|pending| pending.number);
        let waiting = again.into_iter().map(|pending| pending.chain).chain(std::mem::take(&mut self.waiting)).collect();
        *self = Self { waiting, ..Self::new(memory, self.start, self.size, self.failure) };
    }

    /// Offers the back end what the driver has offered, as far as there is room. Returns whether the back end is to be
    /// told.
    pub(super) fn forward(
        &mut self,
        queue: &mut Queue,
        dma: &mut dyn Dma,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<bool, Broken> {
        let before = self.offered;
        queue.be_silent(dma)?;
        while goes_on() {
            if self.waiting.is_empty() {
                match queue.pop(dma)? {
                    Some(chain) => self.waiting.push_back(chain),
                    None if queue.ask_to_be_told(dma)? => continue,
                    None => break,
                }
            }
            let Some(chain) = self.waiting.pop_front() else { continue };
            if let Err(chain) = self.offer(chain, queue, dma)? {
                self.waiting.push_front(chain);
                break;
            }
        }
        if self.offered == before {
            return Ok(false);
        }
        self.store(DRIVER + 2, self.offered);
        fence(Ordering::SeqCst);
        Ok(self.load(DEVICE) & SILENT == 0)
    }

    /// Offers one; it comes back if there is no room now.
    fn offer(&mut self, chain: Chain, queue: &mut Queue, dma: &mut dyn Dma) -> Result<Result<(), Chain>, Broken> {
        let length = chain.parts.iter().map(|part| u64::from(part.length)).sum::<u64>();
        let pieces = self.pieces(&chain);
        if length > LENGTH - DATA || pieces.len() > usize::from(self.size) {
            let written = self.refuse(&chain, dma);
            queue.push(dma, chain.head, written)?;
            return Ok(Ok(()));
        }
        if pieces.len() > self.free.len() {
            return Ok(Err(chain));
        }
        let Some(start) = self.area.take(length) else { return Ok(Err(chain)) };
        if !self.copy_in(&chain, start, dma) {
            self.area.give(start, length);
            let written = self.refuse(&chain, dma);
            queue.push(dma, chain.head, written)?;
            return Ok(Ok(()));
        }
        let descriptors = self.free.split_off(self.free.len() - pieces.len());
        let mut at = self.start + start;
        for (place, (length, writes)) in pieces.into_iter().enumerate() {
            let next = descriptors.get(place + 1);
            let flags = if writes { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&at.to_le_bytes());
            bytes[8..12].copy_from_slice(&length.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.copied().unwrap_or(0).to_le_bytes());
            self.memory.write(self.start + 16 * u64::from(descriptors[place]), &bytes);
            at += u64::from(length);
        }
        let head = descriptors[0];
        self.store(DRIVER + 4 + 2 * u64::from(self.offered % self.size), head);
        // What is offered is there before it is counted.
        fence(Ordering::SeqCst);
        self.offered = self.offered.wrapping_add(1);
        self.asked += 1;
        self.pending.insert(head, Pending { number: self.asked, chain, start, length, descriptors });
        Ok(Ok(()))
    }

    /// What a chain is for the back end: bytes, and whether it writes them. Parts lie behind one another here, so those
    /// of a chain that is longer than the queue are put together.
    fn pieces(&self, chain: &Chain) -> Vec<(u32, bool)> {
        let together = chain.parts.len() > usize::from(self.size);
        let mut pieces: Vec<(u32, bool)> = Vec::new();
        for part in &chain.parts {
            match pieces.last_mut().filter(|(_, writes)| together && *writes == part.writes) {
                Some((length, _)) => *length = length.saturating_add(part.length),
                None => pieces.push((part.length, part.writes)),
            }
        }
        pieces
    }

    /// Copies what the back end reads. Returns whether all of it could be read.
    fn copy_in(&self, chain: &Chain, start: u64, dma: &mut dyn Dma) -> bool {
        let mut piece = [0; PIECE];
        let mut at = self.start + start;
        for part in &chain.parts {
            let pieces = (0..part.length).step_by(PIECE).filter(|_| !part.writes);
            for offset in pieces {
                let piece = &mut piece[..((part.length - offset) as usize).min(PIECE)];
                let Some(address) = part.address.checked_add(offset.into()) else { return false };
                if dma.read(Iova(address).into(), piece).is_err() {
                    return false;
                }
                self.memory.write(at + u64::from(offset), piece);
            }
            at += u64::from(part.length);
        }
        true
    }

    /// Says, where the device has words for it, that something cannot be done. Returns how many bytes that are written.
    fn refuse(&self, chain: &Chain, dma: &mut dyn Dma) -> u32 {
        let last = chain.parts.iter().rfind(|part| part.writes && part.length > 0);
        let place = last.and_then(|last| last.address.checked_add(u64::from(last.length) - 1));
        match (self.failure, place) {
            (Some(byte), Some(place)) => u32::from(dma.write(Iova(place).into(), &[byte]).is_ok()),
            _ => 0,
        }
    }

    /// Gives the driver what the back end has done.
    pub(super) fn back(
        &mut self,
        queue: &mut Queue,
        dma: &mut dyn Dma,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Result<(), Nonsense>, Broken> {
        let done = self.load(DEVICE + 2);
        fence(Ordering::SeqCst);
        if done.wrapping_sub(self.taken) > self.size {
            return Ok(Err(Nonsense));
        }
        while self.taken != done && goes_on() {
            let mut entry = [0; 8];
            self.memory.read(self.start + DEVICE + 4 + 8 * u64::from(self.taken % self.size), &mut entry);
            let [a, b, c, d, written @ ..] = entry;
            let head = u16::try_from(u32::from_le_bytes([a, b, c, d])).ok();
            let Some(pending) = head.and_then(|head| self.pending.remove(&head)) else { return Ok(Err(Nonsense)) };
            self.taken = self.taken.wrapping_add(1);
            let written = self.copy_back(&pending, u32::from_le_bytes(written), dma);
            self.area.give(pending.start, pending.length);
            self.free.extend(pending.descriptors);
            queue.push(dma, pending.chain.head, written)?;
        }
        Ok(Ok(()))
    }

    /// Copies what the back end has written. Returns how much that is.
    fn copy_back(&self, pending: &Pending, written: u32, dma: &mut dyn Dma) -> u32 {
        let (mut piece, mut at, mut left) = ([0; PIECE], self.start + pending.start, written);
        for part in &pending.chain.parts {
            let now = if part.writes { part.length.min(left) } else { 0 };
            for offset in (0..now).step_by(PIECE) {
                let piece = &mut piece[..((now - offset) as usize).min(PIECE)];
                self.memory.read(at + u64::from(offset), piece);
                let address = part.address.checked_add(offset.into());
                if address.is_none_or(|address| dma.write(Iova(address).into(), piece).is_err()) {
                    return self.refuse(&pending.chain, dma);
                }
            }
            left -= now;
            at += u64::from(part.length);
        }
        written - left
    }

    /// Whether the back end has done something.
    pub(super) fn has_news(&self) -> bool {
        self.load(DEVICE + 2) != self.taken
    }

    fn load(&self, offset: u64) -> u16 {
        let mut word = [0; 2];
        self.memory.read(self.start + offset, &mut word);
        u16::from_le_bytes(word)
    }

    fn store(&self, offset: u64, word: u16) {
        self.memory.write(self.start + offset, &word.to_le_bytes());
    }
}
