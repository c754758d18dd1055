//! Borrowed slices: what a device model hands to `readv`, or computes on, without a copy.

use std::fmt;
use std::ops::Deref;

use iopt::Access;

use crate::base::types::{Iova, Pasid};
use crate::gate::Held;

use super::bus::Bus;
use super::translate::{Place, Translator};
use super::{BusAddress, DmaError, address};

/// log2 of the smallest page of any format: a slice is no shorter, but for the first and the last of a range.
const SHORTEST_SHIFT: u32 = 11;

/// Slices that room is made for before it is known that there are so many: a device says how long a transaction is, and
/// what is longer is looked through first.
const MOST_AT_ONCE: u64 = 1026;

/// Bytes of this process that a transaction leads to, as long as the [`Slices`] that they were borrowed with live.
#[derive(Debug)]
pub struct DmaSlice {
    start: *mut u8,
    length: usize,
}

impl DmaSlice {
    /// The first byte.
    ///
    /// Guests and programs may change the bytes at any time, so they are to be touched by raw copies and atomics only;
    /// and only in the way that was asked for: a page mapped for reading may be read-only here too.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    /// Number of bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.length
    }
}

/// A transaction's bytes, in order. See [`DmaPort::slices`](super::DmaPort::slices).
///
/// They are the port's access in progress: a thread that unmaps waits until they are dropped. So keep them for a moment
/// only, and not while waiting for a thread that may be unmapping.
#[must_use = "dropping them ends the access"]
pub struct Slices<'p> {
    bus: &'p Bus,
    translator: &'p mut Translator,
    scratch: &'p mut Scratch,
    held: Held<'p>,
    pasid: Option<Pasid>,
    access: Access,
}

impl fmt::Debug for Slices<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slices").field("slices", &&**self).field("access", &self.access).finish_non_exhaustive()
    }
}

impl<'p> Slices<'p> {
    /// Goes through the gate, and says what is to be allowed.
    #[inline(always)]
    pub(super) fn begin(bus: &'p Bus, translator: &mut Translator, access: Access) -> (Held<'p>, Access) {
        let held = bus.requester.gate.hold();
        translator.refresh(held.inside());
        // An access that asks for nothing is let in no further than a read.
        (held, if access.is_empty() { Access::READ } else { access })
    }

    /// What `scratch` has, inside the gate.
    #[inline(always)]
    pub(super) fn of(
        bus: &'p Bus,
        translator: &'p mut Translator,
        scratch: &'p mut Scratch,
        held: Held<'p>,
        pasid: Option<Pasid>,
        access: Access,
    ) -> Self {
        Self { bus, translator, scratch, held, pasid, access }
    }

    /// Borrows `length` bytes at `iova` too: after those that there are, and as part of the same access.
    ///
    /// As it goes on inside the gate, it gets room for slices only as it needs it: prefer one range that is long to
    /// many that are short.
    ///
    /// # Errors
    /// As [`DmaPort::slices`](super::DmaPort::slices). What was borrowed before stays so; of this range, nothing is.
    // Always, as its result would go through memory, which costs more than all the rest.
    #[inline(always)]
    pub fn add(&mut self, iova: Iova, length: u64) -> Result<(), DmaError> {
        let at = BusAddress { pasid: self.pasid, iova };
        if let Some((start, there)) = self.translator.hit(at, self.access)
            && there >= length
            && length > 0
        {
            self.scratch.push(start, length as usize);
        } else {
            self.add_pages(at, length)?;
        }
        self.bus.requester.count(self.access, length);
        Ok(())
    }

    /// [`Slices::add`] for all ranges of a chain: what translations have in common is found out once.
    ///
    /// # Errors
    /// As [`Slices::add`], at the first range that cannot be borrowed; those before it are.
    #[inline]
    pub fn extend(&mut self, ranges: impl IntoIterator<Item = (Iova, u64)>) -> Result<(), DmaError> {
        let mut ranges = ranges.into_iter();
        loop {
            let (mut bytes, mut missed) = (0, ranges.next());
            if let Some(probe) = self.translator.probe(self.pasid) {
                while let Some((iova, length)) = missed
                    && let Some((start, there)) = probe.find(iova.0, self.access)
                    && there >= length
                    && length > 0
                {
                    self.scratch.push(start, length as usize);
                    bytes += length;
                    missed = ranges.next();
                }
            }
            self.bus.requester.count(self.access, bytes);
            let Some((iova, length)) = missed else { return Ok(()) };
            self.add(iova, length)?;
        }
    }

    /// [`Slices::add`], page by page.
    #[cold]
    fn add_pages(&mut self, at: BusAddress, length: u64) -> Result<(), DmaError> {
        let before = self.scratch.slices.len();
        let mut done = 0;
        while done < length {
            match self.find(at, done) {
                Ok((start, there)) => {
                    let there = there.min(length - done);
                    if done == 0 {
                        self.scratch.push(start, there as usize);
                    } else {
                        self.scratch.extend(start, there as usize);
                    }
                    done += there;
                }
                Err(refused) => {
                    self.scratch.slices.truncate(before);
                    return Err(refused);
                }
            }
        }
        Ok(())
    }

    /// How many slices the `length` bytes at `at` are. None is borrowed.
    #[cold]
    pub(super) fn count(&mut self, at: BusAddress, length: u64) -> Result<usize, DmaError> {
        let (mut slices, mut done, mut end) = (0, 0, None);
        while done < length {
            let (start, there) = self.find(at, done)?;
            let there = there.min(length - done);
            slices += usize::from(end != Some(start));
            end = Some(start.wrapping_add(there as usize));
            done += there;
        }
        Ok(slices)
    }

    /// Where the byte `done` bytes after `at` is, and how many lie there in one piece.
    fn find(&mut self, at: BusAddress, done: u64) -> Result<(*mut u8, u64), DmaError> {
        let access = self.access;
        let at = address(at, done, access.contains(Access::WRITE))?;
        let found = self.translator.translate_here(self.bus, self.held.inside(), at, access);
        found.map_err(|refused| self.bus.refusal(at, access, refused))
    }

    /// Ends the access and tells whether the memory was there all the time.
    ///
    /// # Errors
    /// [`DmaError`] if some of it belongs to a file that was cut short meanwhile: what was read then is not what was
    /// written. The address is that of no particular byte.
    pub fn finish(self) -> Result<(), DmaError> {
        if !self.translator.lost_memory() {
            return Ok(());
        }
        let lost = self.iter().find_map(|slice| Place::Here(slice.start).check(slice.length as u64).err());
        let (bus, pasid, access) = (self.bus, self.pasid, self.access);
        drop(self);
        lost.map_or(Ok(()), |reason| {
            let at = BusAddress { pasid, iova: Iova(0) };
            Err(bus.fault(DmaError::new(at, access.contains(Access::WRITE), reason)))
        })
    }
}

impl Deref for Slices<'_> {
    type Target = [DmaSlice];

    #[inline]
    fn deref(&self) -> &[DmaSlice] {
        &self.scratch.slices
    }
}

/// The slices of the access in progress, or of the last one, which no caller can reach any more.
#[derive(Default)]
pub(super) struct Scratch {
    slices: Vec<DmaSlice>,
}

// SAFETY: the pointers are reached through `Slices` only, which one thread has, the one that has the port.
#[allow(unsafe_code, reason = "keeps pointers")]
unsafe impl Send for Scratch {}

impl Scratch {
    /// Forgets the last access, and makes room for the slices that `length` bytes can have; false if they can be more
    /// than there is room for, and have to be counted. Not to be called inside the gate: a thread that waits there must
    /// not wait for memory.
    #[inline]
    pub(super) fn prepare(&mut self, length: u64) -> bool {
        self.slices.clear();
        let most = (length >> SHORTEST_SHIFT) + 2;
        self.slices.capacity() as u64 >= most || self.grow(most)
    }

    #[cold]
    fn grow(&mut self, most: u64) -> bool {
        self.slices.reserve(most.min(MOST_AT_ONCE) as usize);
        most <= MOST_AT_ONCE
    }

    /// Makes room for so many slices. Not to be called inside the gate.
    pub(super) fn make_room(&mut self, slices: usize) {
        self.slices.reserve(slices);
    }

    #[inline(always)]
    pub(super) fn push(&mut self, start: *mut u8, length: usize) {
        self.slices.push(DmaSlice { start, length });
    }

    /// Lengthens the last slice, or adds one if the bytes lie elsewhere.
    fn extend(&mut self, start: *mut u8, length: usize) {
        match self.slices.last_mut() {
            Some(last) if last.start.wrapping_add(last.length) == start => last.length += length,
            _ => self.push(start, length),
        }
    }
}
