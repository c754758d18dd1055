//! A split virtqueue, as the device sees it (2.7).
//!
//! ```text
//!   descriptors   16 bytes each: address, length, flags, next
//!   driver's ring flags, index, heads …, used_event      what is offered
//!   device's ring flags, index, (head, length) …, avail_event      what is done
//! ```
//! The crate virtio-queue does the same where memory can be borrowed, which that of another process cannot: here each
//! access is the device's DMA, to whatever memory.

use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use ioasid::{DmaError, Iova, Work};

use super::feature;
use super::transport::{QueueSetup, Setup};
use crate::Dma;

/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// In the flags of either ring: the other side need not be told.
const SILENT: u16 = 1;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
/// Descriptors of a chain, at the most. By the specification a chain is no longer than the queue (2.7.5.3.1); Linux goes
/// by the segments that the device allows, also in a shorter queue.
const MOST_PARTS: usize = 1024;

/// A queue cannot be reached, or makes no sense.
#[derive(Debug)]
pub(super) struct Broken;

impl From<DmaError> for Broken {
    fn from(_: DmaError) -> Self {
        Self
    }
}

/// A part of a chain: bytes that the device reads, or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) writes: bool,
}

/// Something that the driver has offered.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) head: u16,
    pub(super) parts: Vec<Part>,
}

/// A queue.
#[derive(Debug)]
pub(super) struct Queue {
    number: u16,
    size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    has_event_index: bool,
    /// How many were taken, and how many are done.
    taken: u16,
    done: u16,
    /// How many were done when the driver was last looked after.
    told: u16,
    /// How many were taken and are not done.
    open: u16,
}

impl Queue {
    /// Those that the driver has enabled, each at its place.
    ///
    /// # Errors
    /// As of [`Queue::new`].
    pub(super) fn all(setup: &Setup) -> Result<Vec<Option<Self>>, Broken> {
        let queues = (0..).zip(&setup.queues);
        queues
            .map(|(number, queue)| queue.is_enabled.then(|| Self::new(number, queue, setup.features)).transpose())
            .collect()
    }

    /// As the driver has described it.
    ///
    /// # Errors
    /// If a part of it is not aligned, or would wrap.
    pub(super) fn new(number: u16, setup: &QueueSetup, features: u64) -> Result<Self, Broken> {
        let QueueSetup { size, descriptors, driver, device, .. } = *setup;
        let most = 16 * u64::from(size);
        let fits = |at: u64, alignment: u64| at.is_multiple_of(alignment) && at.checked_add(most).is_some();
        if !(fits(descriptors, 16) && fits(driver, 2) && fits(device, 4)) {
            return Err(Broken);
        }
        let has_event_index = features & feature::EVENT_INDEX != 0;
        Ok(Self { number, size, descriptors, driver, device, has_event_index, taken: 0, done: 0, told: 0, open: 0 })
    }

    /// Goes on where another was: so many were taken, and as many are done as the device's ring says.
    ///
    /// # Errors
    /// If the queue cannot be reached.
    pub(super) fn go_on_from(&mut self, base: u16, dma: &mut dyn Dma) -> Result<(), Broken> {
        self.taken = base;
        self.done = read_word(dma, self.device + 2)?;
        self.told = self.done;
        Ok(())
    }

    /// How many were taken, without those that are not done: a device that finishes in order takes these again.
    pub(super) fn base(&self) -> u16 {
        self.taken.wrapping_sub(self.open)
    }

    /// How many chains the driver has offered so far.
    fn offered(&self, dma: &mut dyn Dma) -> Result<u16, Broken> {
        let offered = read_word(dma, self.driver + 2)?;
        if offered.wrapping_sub(self.taken) > self.size { Err(Broken) } else { Ok(offered) }
    }

    /// The next chain, if there is one.
    ///
    /// # Errors
    /// If the queue cannot be reached, has more than there is room for, or a chain makes no sense: the driver cannot be
    /// told by the chain then, and would take what the device did not do for done.
    pub(super) fn pop(&mut self, dma: &mut dyn Dma) -> Result<Option<Chain>, Broken> {
        dma.set_work(None);
        if self.offered(dma)? == self.taken {
            return Ok(None);
        }
        let head = read_word(dma, self.driver + 4 + 2 * u64::from(self.taken % self.size))?;
        self.taken = self.taken.wrapping_add(1);
        self.open = self.open.wrapping_add(1);
        dma.set_work(Some(Work { queue: self.number, command: head }));
        let mut table = Vec::new();
        let mut parts = Vec::new();
        let mut next = head;
        // One that goes in a circle ends.
        while parts.len() < MOST_PARTS {
            let mut bytes = [0; DESCRIPTOR];
            if table.is_empty() {
                if next >= self.size {
                    return Err(Broken);
                }
                read(dma, self.descriptors + DESCRIPTOR as u64 * u64::from(next), &mut bytes)?;
            } else {
                let at = usize::from(next) * DESCRIPTOR;
                let Some(there) = table.get(at..at + DESCRIPTOR) else { return Err(Broken) };
                bytes.copy_from_slice(there);
            }
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
            let (address, length) = (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u32::from_le_bytes([i, j, k, l]));
            let flags = u16::from_le_bytes([m, n]);
            next = u16::from_le_bytes([o, p]);
            if flags & INDIRECT != 0 {
                // A table by itself, and not in another (2.7.5.3.1).
                let is_table = length > 0 && (length as usize).is_multiple_of(DESCRIPTOR);
                if !table.is_empty() || !parts.is_empty() || !is_table || flags & NEXT != 0 {
                    return Err(Broken);
                }
                table = vec![0; (length as usize).min(DESCRIPTOR * MOST_PARTS)];
                read(dma, address, &mut table)?;
                next = 0;
                continue;
            }
            parts.push(Part { address, length, writes: flags & WRITE != 0 });
            if flags & NEXT == 0 {
                return Ok(Some(Chain { head, parts }));
            }
        }
        // It goes in a circle, or is longer than any.
        Err(Broken)
    }

    /// The device is done with a chain, and has written so many bytes of it.
    ///
    /// # Errors
    /// If the queue cannot be reached.
    pub(super) fn push(&mut self, dma: &mut dyn Dma, head: u16, written: u32) -> Result<(), Broken> {
        dma.set_work(None);
        let mut entry = [0; 8];
        entry[..2].copy_from_slice(&head.to_le_bytes());
        entry[4..].copy_from_slice(&written.to_le_bytes());
        write(dma, self.device + 4 + 8 * u64::from(self.done % self.size), &entry)?;
        self.done = self.done.wrapping_add(1);
        self.open = self.open.wrapping_sub(1);
        // The entry is there before it is counted.
        write_word(dma, self.device + 2, self.done)
    }

    /// The driver need not tell of what it offers.
    ///
    /// # Errors
    /// If the queue cannot be reached.
    pub(super) fn be_silent(&self, dma: &mut dyn Dma) -> Result<(), Broken> {
        // With event indexes it asks no more than once, as the index stays behind.
        if self.has_event_index { Ok(()) } else { write_word(dma, self.device, SILENT) }
    }

    /// The driver is to tell of the next that it offers. Returns whether it has offered something meanwhile.
    ///
    /// # Errors
    /// If the queue cannot be reached.
    pub(super) fn ask_to_be_told(&self, dma: &mut dyn Dma) -> Result<bool, Broken> {
        dma.set_work(None);
        if self.has_event_index {
            write_word(dma, self.device + 4 + 8 * u64::from(self.size), self.taken)?;
        } else {
            write_word(dma, self.device, 0)?;
        }
        // The driver stores what it offers, and then looks; so one of the two sees the other.
        fence(Ordering::SeqCst);
        Ok(self.offered(dma)? != self.taken)
    }

    /// Whether the driver wants an interrupt for what was done since this was last asked.
    ///
    /// # Errors
    /// If the queue cannot be reached.
    pub(super) fn wants_interrupt(&mut self, dma: &mut dyn Dma) -> Result<bool, Broken> {
        let told = std::mem::replace(&mut self.told, self.done);
        if told == self.done {
            return Ok(false);
        }
        fence(Ordering::SeqCst);
        if self.has_event_index {
            let event = read_word(dma, self.driver + 4 + 2 * u64::from(self.size))?;
            Ok(self.done.wrapping_sub(event).wrapping_sub(1) < self.done.wrapping_sub(told))
        } else {
            Ok(read_word(dma, self.driver)? & SILENT == 0)
        }
    }
}

/// Between two tries to reach a ring.
const PAUSES: [Duration; 3] = [Duration::from_millis(5), Duration::from_millis(20), Duration::from_millis(75)];

/// Reaches a ring, if need be by some tries. A hypervisor that changes where memory is takes it away and gives it back:
/// a device that looks at an idle queue just then has the queue a moment later.
fn patiently(mut reach: impl FnMut() -> Result<(), DmaError>) -> Result<(), Broken> {
    for pause in PAUSES {
        if reach().is_ok() {
            return Ok(());
        }
        std::thread::sleep(pause);
    }
    Ok(reach()?)
}

fn read(dma: &mut dyn Dma, at: u64, data: &mut [u8]) -> Result<(), Broken> {
    patiently(|| dma.read(Iova(at).into(), data))
}

fn write(dma: &mut dyn Dma, at: u64, data: &[u8]) -> Result<(), Broken> {
    patiently(|| dma.write(Iova(at).into(), data))
}

fn read_word(dma: &mut dyn Dma, at: u64) -> Result<u16, Broken> {
    let mut word = [0; 2];
    read(dma, at, &mut word)?;
    Ok(u16::from_le_bytes(word))
}

fn write_word(dma: &mut dyn Dma, at: u64, word: u16) -> Result<(), Broken> {
    write(dma, at, &word.to_le_bytes())
}
