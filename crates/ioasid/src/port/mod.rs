//! A DMA port: how a device model reaches memory.
//!
//! Each transaction is cut into pieces that lie in one page of the page table and are no longer than [`PIECE`]. For
//! each piece the port passes its gate (see [`crate::gate`]), translates (see [`translate`]), and moves the bytes while
//! it is inside. So no piece straddles a change of the mapping, and a thread that unmaps waits for one piece at the
//! most.

mod ask;
mod bus;
mod context;
#[cfg(all(test, any(loom, shuttle)))]
mod gate_model;
mod interface;
mod iotlb;
mod nested;
#[cfg(feature = "vm-memory")]
mod place;
mod recover;
mod slices;
mod transfer;
mod translate;
mod upper;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iopt::Access;
use thiserror::Error;

use crate::base::observe::{FaultReason, Work};
use crate::base::types::{Iova, Pasid};
use crate::bus::Endpoint;
use crate::gate::walker::Walker;

#[cfg(feature = "vm-memory")]
pub(crate) use bus::Bus;
pub use interface::{PageRequestError, PageRequestInterface};
pub use slices::{DmaSlice, Slices};

#[cfg(not(feature = "vm-memory"))]
use bus::Bus;
use slices::Scratch;
use transfer::Side;
pub(crate) use translate::Refused;
use translate::{Place, Span, Translator};

/// The longest piece of a transaction, in bytes: how long an unmap may have to wait.
const PIECE: u64 = 64 << 10;

/// An address on the bus: an IOVA, with a PASID or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BusAddress {
    /// The PASID in the transaction, if any.
    pub pasid: Option<Pasid>,
    /// The address.
    pub iova: Iova,
}

impl From<Iova> for BusAddress {
    fn from(iova: Iova) -> Self {
        Self { pasid: None, iova }
    }
}

impl BusAddress {
    /// `bytes` further on, if that is not beyond the end.
    fn offset(self, bytes: u64) -> Option<Self> {
        Some(Self { iova: Iova(self.iova.0.checked_add(bytes)?), ..self })
    }
}

/// A DMA that was refused, at the first address that was. What lies before it may have been moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("DMA {} at IOVA {} refused: {reason}", if *.write { "write" } else { "read" }, at.iova)]
pub struct DmaError {
    /// Where.
    pub at: BusAddress,
    /// Whether it was a write.
    pub write: bool,
    /// Why.
    pub reason: FaultReason,
    /// Whether it may succeed after the device has asked for the page (see [`Endpoint::request_pages`]). The observer
    /// is told of such a refusal only if the answer is no.
    pub recoverable: bool,
}

impl DmaError {
    /// A refusal for good.
    #[must_use]
    pub fn new(at: BusAddress, write: bool, reason: FaultReason) -> Self {
        Self { at, write, reason, recoverable: false }
    }
}

/// What a device model holds to reach memory. One thread uses it at a time.
///
/// ```
/// use std::sync::Arc;
/// use ioasid::{Access, GroupId, Machine, Iova, Placement, Rid, Silent, memory::Segment};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let machine = Machine::new(Arc::new(Silent));
/// let endpoint = machine.add_endpoint("0000:00:01.0".parse::<Rid>()?, GroupId(0)).unwrap();
/// let mut port = endpoint.port();
///
/// let context = machine.context();
/// let ioas = context.ioas_alloc().unwrap();
/// let (memory, _file) = Segment::memfd(8192)?;
/// ioas.map(Placement::Fixed(Iova(0x1000)), 8192, Access::all(), || Ok(vec![memory]))?;
///
/// let device = context.bind(&endpoint)?;
/// device.attach(None, &ioas)?;
/// endpoint.set_bus_master(true)?;
/// port.write(Iova(0x1ffe), &[1, 2, 3, 4])?;
///
/// device.detach(None)?;
/// assert!(port.write(Iova(0x1ffe), &[1, 2, 3, 4]).is_err());
/// # Ok(())
/// # }
/// ```
pub struct DmaPort {
    bus: Bus,
    translator: Translator,
    /// For bytes on their way from one place that is not mapped here to another.
    bounce: Vec<u8>,
    scratch: Scratch,
}

impl Endpoint {
    /// A new port for the device model behind this endpoint. A model that does DMA from several threads takes one for
    /// each.
    #[must_use]
    pub fn port(self: &Arc<Self>) -> DmaPort {
        DmaPort::new(self.clone())
    }
}

impl fmt::Debug for DmaPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaPort").field("endpoint", &self.bus.endpoint).finish_non_exhaustive()
    }
}

impl DmaPort {
    fn new(endpoint: Arc<Endpoint>) -> Self {
        let (shared, requester) = (endpoint.shared().clone(), endpoint.ports().open());
        let bus = Bus { endpoint, shared, requester, work: None };
        Self { bus, translator: Translator::new(), bounce: Vec::new(), scratch: Scratch::default() }
    }

    /// Says what the accesses from now on are for, so that whoever is told of a fault can name it.
    pub fn set_work(&mut self, work: Option<Work>) {
        self.bus.work = work;
    }

    /// Reads `data.len()` bytes from `at`.
    ///
    /// An aligned read of 1, 2, 4 or 8 bytes is a single access.
    ///
    /// # Errors
    /// [`DmaError`] at the first address that may not be read.
    #[inline]
    pub fn read(&mut self, at: impl Into<BusAddress>, data: &mut [u8]) -> Result<(), DmaError> {
        let at = at.into();
        let mut done = 0;
        while done < data.len() {
            let left = &mut data[done..];
            done += self.piece(at, done as u64, Access::READ, left.len() as u64, |from, length| {
                transfer::read(from, &mut left[..length])
            })?;
        }
        self.bus.requester.count_read(done as u64);
        Ok(())
    }

    /// Writes `data` to `at`.
    ///
    /// An aligned write of 1, 2, 4 or 8 bytes is a single access, and is seen after everything that this port wrote
    /// before.
    ///
    /// # Errors
    /// [`DmaError`] at the first address that may not be written.
    #[inline]
    pub fn write(&mut self, at: impl Into<BusAddress>, data: &[u8]) -> Result<(), DmaError> {
        let at = at.into();
        let mut done = 0;
        while done < data.len() {
            let left = &data[done..];
            done += self.piece(at, done as u64, Access::WRITE, left.len() as u64, |to, length| {
                transfer::write(to, &left[..length])
            })?;
        }
        self.bus.requester.count_written(done as u64);
        Ok(())
    }

    /// Moves `length` bytes from one address to another, upwards, in one step where both are memory of this process.
    ///
    /// # Errors
    /// [`DmaError`] at the first address that may not be read or written.
    #[inline]
    pub fn copy(
        &mut self,
        from: impl Into<BusAddress>,
        to: impl Into<BusAddress>,
        length: u64,
    ) -> Result<(), DmaError> {
        let (from, to) = (from.into(), to.into());
        let done = self.copy_hit(from, to, length);
        if done < length {
            self.copy_rest([from, to], length, done)?;
        }
        self.bus.requester.count_read(length);
        self.bus.requester.count_written(length);
        Ok(())
    }

    /// Goes on with a copy of which some bytes are done.
    #[inline(never)]
    fn copy_rest(&mut self, [from, to]: [BusAddress; 2], length: u64, mut done: u64) -> Result<(), DmaError> {
        // What was not found just now is not looked for in the same way again.
        let mut moved = done;
        while done < length {
            let (from, to, left) = (address(from, done, false)?, address(to, done, true)?, length - done);
            moved = if moved == 0 { self.copy_missed(from, to, left)? } else { self.copy_hit(from, to, left) };
            done += moved;
        }
        Ok(())
    }

    /// Moves up to `left` bytes if it is known where they are, and returns how many.
    // What lies on the stack is slow to come back after a copy, as loads wait for the copy's stores to the same offset
    // in a page. So this is little enough to stay in registers.
    #[inline(always)]
    fn copy_hit(&mut self, from: BusAddress, to: BusAddress, left: u64) -> u64 {
        self.translator.prepare(from.pasid.or(to.pasid));
        let Self { bus, translator, .. } = self;
        let inside = bus.requester.gate.enter();
        translator.refresh(&inside);
        let Some((source, readable)) = translator.hit(from, Access::READ) else { return 0 };
        let Some((target, writable)) = translator.hit(to, Access::WRITE) else { return 0 };
        let bytes = PIECE.min(left).min(readable).min(writable);
        let moved = transfer::copy(Place::Here(source), Place::Here(target), bytes as usize, &mut []);
        if moved.is_ok() && (!translator.lost_memory() || are_there([source, target], bytes)) { bytes } else { 0 }
    }

    /// [`DmaPort::copy_hit`], wherever the bytes are.
    #[cold]
    fn copy_missed(&mut self, from: BusAddress, to: BusAddress, left: u64) -> Result<u64, DmaError> {
        // Before the gate: a thread that waits there must not wait for memory.
        self.bounce.resize(PIECE as usize, 0);
        let Self { bus, translator, bounce, .. } = self;
        let inside = bus.requester.gate.enter();
        translator.refresh(&inside);
        let moved = translator
            .translate(bus, &inside, from, Access::READ)
            .map_err(|refused| (Side::Source, refused))
            .and_then(|source| {
                let target = translator.translate(bus, &inside, to, Access::WRITE);
                let target = target.map_err(|refused| (Side::Target, refused))?;
                let moved = copy_between(source, target, PIECE.min(left), bounce, translator);
                moved.map_err(|(side, reason)| (side, reason.into()))
            });
        drop(inside);
        moved.or_else(|(side, refused)| {
            let (at, access) = if side == Side::Source { (from, Access::READ) } else { (to, Access::WRITE) };
            self.bus.recover(at, access, refused).map(|()| 0)
        })
    }

    /// Puts `new` at `at` if `current` is there, in one step, and returns what was there.
    ///
    /// # Errors
    /// [`DmaError`] if the 8 bytes may not be both read and written, `at` is not a multiple of 8
    /// ([`FaultReason::Misaligned`]), or they are not in this process ([`FaultReason::NotLocal`]).
    pub fn compare_and_swap(&mut self, at: impl Into<BusAddress>, current: u64, new: u64) -> Result<u64, DmaError> {
        self.atomic(at.into(), |word| {
            word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|found| found)
        })
    }

    /// Adds `value` to the 8 bytes at `at`, wrapping, in one step, and returns what was there.
    ///
    /// # Errors
    /// As [`DmaPort::compare_and_swap`].
    pub fn fetch_add(&mut self, at: impl Into<BusAddress>, value: u64) -> Result<u64, DmaError> {
        self.atomic(at.into(), |word| word.fetch_add(value, Ordering::AcqRel))
    }

    fn atomic(&mut self, at: BusAddress, operation: impl Fn(&AtomicU64) -> u64) -> Result<u64, DmaError> {
        if !at.iova.0.is_multiple_of(8) {
            return Err(self.bus.fault(DmaError::new(at, true, FaultReason::Misaligned)));
        }
        let mut before = Some(0);
        let mut done = 0;
        while done == 0 {
            done = self.piece(at, 0, Access::all(), 8, |place, _| {
                before = transfer::atomic(place, &operation);
                Ok(())
            })?;
        }
        let before = before.ok_or_else(|| self.bus.fault(DmaError::new(at, true, FaultReason::NotLocal)))?;
        self.bus.requester.count_read(8);
        self.bus.requester.count_written(8);
        Ok(before)
    }

    /// Borrows the `length` bytes at `at`, for an access of the kind `access`, where they are in this process.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use ioasid::{Access, GroupId, Machine, Iova, Placement, Rid, Silent, memory::Segment};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let machine = Machine::new(Arc::new(Silent));
    /// # let endpoint = machine.add_endpoint("0000:00:01.0".parse::<Rid>()?, GroupId(0)).unwrap();
    /// # let mut port = endpoint.port();
    /// # let context = machine.context();
    /// # let ioas = context.ioas_alloc().unwrap();
    /// # for page in 0..2 {
    /// #     let (memory, _file) = Segment::memfd(4096)?;
    /// #     ioas.map(Placement::Fixed(Iova(0x1000 * (page + 1))), 4096, Access::all(), || Ok(vec![memory]))?;
    /// # }
    /// # let device = context.bind(&endpoint)?;
    /// # device.attach(None, &ioas)?;
    /// # endpoint.set_bus_master(true)?;
    /// let slices = port.slices(Iova(0x1ff0), 0x20, Access::READ)?;
    /// // Two mappings, in two places.
    /// assert_eq!(slices.iter().map(|slice| slice.len()).collect::<Vec<_>>(), [0x10, 0x10]);
    /// slices.finish()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`DmaError`] at the first address where `access` is not allowed, or that is not in this process
    /// ([`FaultReason::NotLocal`]).
    // Always, as its result would go through memory, which costs more than all the rest.
    #[inline(always)]
    pub fn slices(&mut self, at: impl Into<BusAddress>, length: u64, access: Access) -> Result<Slices<'_>, DmaError> {
        let at = at.into();
        self.translator.prepare(at.pasid);
        if !self.scratch.prepare(length) {
            self.make_room(at, length, access)?;
        }
        let Self { bus, translator, scratch, .. } = self;
        let (held, access) = Slices::begin(bus, translator, access);
        // By itself and by value, as what is lent to a function lies on the stack, which costs more than all the rest.
        if let Some((start, there)) = translator.hit(at, access)
            && there >= length
            && length > 0
        {
            scratch.push(start, length as usize);
            bus.requester.count(access, length);
            return Ok(Slices::of(bus, translator, scratch, held, at.pasid, access));
        }
        let mut slices = Slices::of(bus, translator, scratch, held, at.pasid, access);
        slices.add(at.iova, length)?;
        Ok(slices)
    }

    /// Counts the slices of an access, and makes room for them outside of the gate.
    #[cold]
    fn make_room(&mut self, at: BusAddress, length: u64, access: Access) -> Result<(), DmaError> {
        let Self { bus, translator, scratch, .. } = self;
        let (held, access) = Slices::begin(bus, translator, access);
        let slices = Slices::of(bus, translator, scratch, held, at.pasid, access).count(at, length)?;
        self.scratch.make_room(slices);
        Ok(())
    }

    /// What an access to `at` would find, without it.
    pub(crate) fn look(&mut self, at: BusAddress, access: Access) -> Result<(), Refused> {
        self.translator.prepare(at.pasid);
        let inside = self.bus.requester.gate.enter();
        self.translator.refresh(&inside);
        self.translator.translate(&self.bus, &inside, at, access).map(drop)
    }

    /// Does one piece of a transaction and returns its length: up to `left` bytes, `done` bytes after `at`. Zero, if
    /// something was missing that is there now: it is to be tried again.
    #[inline]
    fn piece(
        &mut self,
        at: BusAddress,
        done: u64,
        access: Access,
        left: u64,
        mut transfer: impl FnMut(Place<'_>, usize) -> Result<(), ()>,
    ) -> Result<usize, DmaError> {
        let write = access.contains(Access::WRITE);
        let at = address(at, done, write)?;
        self.translator.prepare(at.pasid);
        let Self { bus, translator, .. } = self;
        let inside = bus.requester.gate.enter();
        translator.refresh(&inside);
        let moved = match translator.hit(at, access) {
            Some((start, there)) => piece_at(Span::here(start, there), left, translator, &mut transfer),
            None => translator
                .translate(bus, &inside, at, access)
                .and_then(|span| piece_at(span, left, translator, &mut transfer)),
        };
        drop(inside);
        moved.or_else(|refused| bus.recover(at, access, refused).map(|()| 0))
    }
}

/// Hands up to `left` bytes of `span` to `transfer`, and returns how many.
#[inline(always)]
fn piece_at(
    span: Span<'_>,
    left: u64,
    translator: &Translator,
    transfer: &mut impl FnMut(Place<'_>, usize) -> Result<(), ()>,
) -> Result<usize, Refused> {
    let length = PIECE.min(left).min(span.length);
    transfer(span.place, length as usize).map_err(|()| FaultReason::MemoryGone)?;
    if translator.lost_memory() {
        span.place.check(length)?;
    }
    Ok(length as usize)
}

/// Whether the bytes at all of the places are those that were there.
#[cold]
fn are_there(places: [*mut u8; 2], bytes: u64) -> bool {
    places.into_iter().all(|place| Place::Here(place).check(bytes).is_ok())
}

/// Moves up to `left` bytes, as far as both sides go, and returns how many.
#[inline(always)]
fn copy_between(
    source: Span<'_>,
    target: Span<'_>,
    left: u64,
    bounce: &mut [u8],
    translator: &Translator,
) -> Result<u64, (Side, FaultReason)> {
    let bytes = left.min(source.length).min(target.length);
    transfer::copy(source.place, target.place, bytes as usize, bounce)
        .map_err(|side| (side, FaultReason::MemoryGone))?;
    if translator.lost_memory() {
        source.place.check(bytes).map_err(|reason| (Side::Source, reason))?;
        target.place.check(bytes).map_err(|reason| (Side::Target, reason))?;
    }
    Ok(bytes)
}

/// `done` bytes after `at`; a transaction that wraps ends at the top of the space, where nothing is mapped.
#[inline]
fn address(at: BusAddress, done: u64, write: bool) -> Result<BusAddress, DmaError> {
    at.offset(done).ok_or(DmaError::new(at, write, FaultReason::NotMapped))
}

impl Drop for DmaPort {
    fn drop(&mut self) {
        // Slices that were leaked are held no longer: a thread that unmaps or detaches may be waiting for them.
        drop(self.bus.requester.gate.enter());
        self.bus.endpoint.ports().close(&self.bus.requester);
    }
}
