//! What descriptors do to memory, in steps.
//!
//! ```text
//!             ┌──────────── more ◀─┐
//!             ▼                    │
//!   Run ── step ──▶ one access ────┤
//!             ▲                    ├──▶ done: a completion record
//!             │                    │
//!             └── page came ── fault ──▶ gave up: the completion record of what was done before
//! ```
//!
//! A [`Run`] holds where it is; a step makes at most [`PIECE`] bytes of progress. If an access is refused further on,
//! the step is made again with the bytes before, so that all progress is exact, and a fault is always at the place
//! where the operation stands. The step after a fault does the same again.
//!
//! Nothing here knows queues, descriptors in flight or interrupts.

use ioasid::{BusAddress, Iova, Pasid};

use super::spec::completion::Record;
use crate::{Dma, DmaError};

mod compare;
mod crc;
mod delta;
mod dif;
mod transfer;

pub(super) use compare::{Compare, With};
pub(super) use crc::{Algorithm, Crc};
pub(super) use delta::{ApplyDelta, CreateDelta};
pub(super) use dif::{Dif, Kind};
pub(super) use transfer::{Dualcast, Fill, Move, Nothing};

/// Most bytes of one step: how long an abort or a reset has to wait.
pub(super) const PIECE: u64 = 256 << 10;
/// Most bytes that a step has in its own hands.
const BLOCK: u64 = 16 << 10;
/// Nothing smaller than this has permissions of its own.
const PAGE: u64 = 4096;

/// An access that was refused where the operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The address.
    pub(super) at: u64,
    /// Whether it was to be written.
    pub(super) write: bool,
    /// Whether it may be there once it was asked for.
    pub(super) recoverable: bool,
}

impl From<DmaError> for Fault {
    fn from(error: DmaError) -> Self {
        Self { at: error.at.iova.0, write: error.write, recoverable: error.recoverable }
    }
}

/// An operation on its way.
pub(super) trait Run: Send {
    /// Goes on. Returns the record once all is done.
    fn step(&mut self, memory: &mut Memory<'_>) -> Result<Option<Record>, Fault>;

    /// The record of an operation that ends here, without status and fault.
    fn partial(&self) -> Record;
}

/// An engine's way to memory on behalf of a descriptor.
pub(super) struct Memory<'a> {
    dma: &'a mut dyn Dma,
    pasid: Option<Pasid>,
}

impl<'a> Memory<'a> {
    pub(super) fn new(dma: &'a mut dyn Dma, pasid: Option<Pasid>) -> Self {
        Self { dma, pasid }
    }

    fn bus(&self, at: u64) -> BusAddress {
        BusAddress { pasid: self.pasid, iova: Iova(at) }
    }

    /// Reads all of `data`.
    pub(super) fn read(&mut self, at: u64, data: &mut [u8]) -> Result<(), Fault> {
        Ok(self.dma.read(self.bus(at), data)?)
    }

    /// Writes all of `data`.
    pub(super) fn write(&mut self, at: u64, data: &[u8]) -> Result<(), Fault> {
        Ok(self.dma.write(self.bus(at), data)?)
    }

    /// Reads as much of `data` as may be read, at least a byte; returns how much.
    fn read_some(&mut self, at: u64, data: &mut [u8]) -> Result<usize, Fault> {
        let len = data.len() as u64;
        Ok(longest(len, |_| at, |len| self.dma.read(self.bus(at), &mut data[..len as usize]))? as usize)
    }

    /// Writes as much of `data` as may be written, at least a byte; returns how much.
    fn write_some(&mut self, at: u64, data: &[u8]) -> Result<usize, Fault> {
        let len = data.len() as u64;
        Ok(longest(len, |_| at, |len| self.dma.write(self.bus(at), &data[..len as usize]))? as usize)
    }

    /// Copies as much of `len` bytes as may be, at least one; returns how much.
    fn copy_some(&mut self, from: u64, to: u64, len: u64) -> Result<u64, Fault> {
        let base = |error: &DmaError| if error.write { to } else { from };
        longest(len, base, |len| self.dma.copy(self.bus(from), self.bus(to), len))
    }
}

/// Makes an access of `len` bytes, or of those before the first that is refused. Returns how many.
///
/// A refused access may have moved the bytes before or not, so it is made again without the rest.
fn longest(
    mut len: u64,
    base: impl Fn(&DmaError) -> u64,
    mut access: impl FnMut(u64) -> Result<(), DmaError>,
) -> Result<u64, Fault> {
    loop {
        let Err(error) = access(len) else { return Ok(len) };
        match error.at.iova.0.checked_sub(base(&error)) {
            Some(before) if (1..len).contains(&before) => len = before,
            _ => return Err(error.into()),
        }
    }
}

/// `done` bytes further on than `base`. Beyond the end of the address space nothing is mapped.
fn place(base: u64, done: u64, write: bool) -> Result<u64, Fault> {
    base.checked_add(done).ok_or(Fault { at: base, write, recoverable: false })
}

/// The bytes from `at` to the end of its page.
fn rest_of_page(at: u64) -> u64 {
    PAGE - at % PAGE
}
