//! Dirty tracking: which pages devices wrote.
//!
//! A write that misses the IOTLB is marked by the walk, in the log beside the page tables; what a read brought into the
//! IOTLB does not let a write pass. Reading the log and clearing it takes the marks out, posts the range to all ports
//! and waits for them. So a write is either complete, and in what was read, or it is marked afresh:
//!
//! ```text
//!  port                          thread that reads the log
//!  ────                          ─────────────────────────
//!  walk: mark                    take the marks out
//!  write, and write again        post, wait for ports inside
//!  miss: mark, write             now copy the pages
//! ```

use iopt::{Access, DirtyWord, MapError, RangeError};
use thiserror::Error;

use super::Hwpt;
use crate::base::types::{Iova, IovaRange, WouldDeadlock};
use crate::gate::check_may_wait;

/// Why the log was not started or read. Nothing is changed, but that large pages may have become small ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DirtyError {
    /// Nothing is tracked.
    #[error("dirty tracking is off for this page table")]
    Off,
    /// The page size is not a power of two, or pages of the table cannot be so small.
    #[error("{0:#x} is not a page size of the table: powers of two are, from the smallest page on")]
    PageSize(u64),
    /// The range is not made of whole pages of that size, or not of pages of the table.
    #[error("IOVA {0} is not made of pages of {1:#x} bytes, or not of pages of the table")]
    Range(IovaRange, u64),
    /// A log is on already.
    #[error("what the device writes is being logged already: end that first")]
    On,
    /// Two of the ranges to be logged have IOVAs in common.
    #[error("IOVA {0} overlaps another range of the log")]
    Overlap(IovaRange),
    /// The ranges to be logged have too many pages together.
    #[error("{0} pages are too many for a log: it has {1} at the most")]
    TooManyPages(u64, u64),
    /// There is no memory for as many bits.
    #[error("there is no memory for the log: log fewer pages, or larger ones")]
    NoMemory,
    /// The device is a part of another, which makes its DMA.
    #[error("the device is a part of another, and makes no DMA of its own: log what the whole writes")]
    Part,
    /// The bitmap is shorter than the range.
    #[error("{0} words of bitmap are needed, and there are {1}")]
    ShortBitmap(u64, usize),
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
    /// There is no memory for the log, or for smaller pages.
    #[error(transparent)]
    Table(#[from] MapError),
}

impl DirtyError {
    fn out_of_range(range: IovaRange, page: u64) -> impl Fn(RangeError) -> Self {
        move |_| Self::Range(range, page)
    }
}

impl Hwpt {
    /// Begins to note which pages devices write, with nothing noted yet. Pages larger than `granule` (a power of two,
    /// in bytes) are split down to it, and so are those that are mapped later; `u64::MAX` leaves all as they are, and a
    /// write then counts for all of its large page.
    ///
    /// # Errors
    /// See [`DirtyError`].
    pub fn start_dirty_tracking(&self, granule: u64) -> Result<(), DirtyError> {
        let shift = if granule == u64::MAX { u64::BITS - 1 } else { page_shift(granule)? };
        if shift < self.format().page_shifts().0 {
            return Err(DirtyError::PageSize(granule));
        }
        check_may_wait()?;
        let aperture = self.format().aperture();
        {
            // Nothing is mapped meanwhile, so no page is mapped larger than it should be.
            let _alone = self.fill.write();
            // What can fail comes before what was noted so far is forgotten.
            self.table.split(aperture.start, aperture.len_minus_one() + 1, shift)?;
            self.table.start_tracking()?;
            self.granule.set(shift);
        }
        self.quiesce(aperture);
        Ok(())
    }

    /// Ends it. What was noted and not read is forgotten.
    pub fn stop_dirty_tracking(&self) {
        self.granule.set(0);
    }

    /// Notes that the page at `iova` was written by other means than a port: by a device whose DMA goes another way.
    /// Returns whether there is a page, writes are allowed, and they are being noted.
    ///
    /// # Errors
    /// [`WouldDeadlock`] if this thread holds slices.
    pub fn mark_dirty(&self, iova: Iova) -> Result<bool, WouldDeadlock> {
        check_may_wait()?;
        let _alone = self.fill.write();
        if self.granule.is_none() {
            return Ok(false);
        }
        let found =
            self.table.upper(iova.0).and_then(|upper| self.table.walk_marking_below(upper, iova.0, Access::WRITE));
        Ok(found.is_some_and(|found| found.access.contains(Access::WRITE)))
    }

    /// Sets, in `bitmap`, the bits of the pages of `range` that were written since they were last cleared; bit n of
    /// word m is the page of `page` bytes at `range.start` + (64 m + n) · `page`. Bits of other pages stay as they are.
    /// With `clear` the pages count as clean from then on, and every write that was noted has arrived when this
    /// returns.
    ///
    /// # Errors
    /// See [`DirtyError`].
    pub fn read_dirty(&self, range: IovaRange, page: u64, clear: bool, bitmap: &mut [u64]) -> Result<(), DirtyError> {
        let shift = page_shift(page)?;
        let whole = (range.start | range.last.wrapping_add(1)).is_multiple_of(page);
        if !whole {
            return Err(DirtyError::Range(range, page));
        }
        let last_page = range.len_minus_one() >> shift;
        if last_page / 64 >= bitmap.len() as u64 {
            return Err(DirtyError::ShortBitmap(last_page / 64 + 1, bitmap.len()));
        }
        if self.granule.is_none() {
            return Err(DirtyError::Off);
        }
        check_may_wait()?;
        let aperture = self.format().aperture();
        let inside = IovaRange { start: range.start.max(aperture.start), last: range.last.min(aperture.last) };
        if inside.start > inside.last {
            return Ok(());
        }
        // The table refuses parts of its pages, as they would be cleared as a whole.
        self.table
            .read_dirty(inside.start, inside.len_minus_one() + 1, clear, move |word| {
                // A word of the log is nearly always one of the bitmap. The rotation puts one that begins between two
                // of those, or before them, far beyond their end.
                let number = word.iova.wrapping_sub(range.start).rotate_right(word.page_shift + 6);
                if word.page_shift == shift
                    && let Some(into) = usize::try_from(number).ok().and_then(|number| bitmap.get_mut(number))
                {
                    *into |= word.bits;
                } else {
                    set_pages(bitmap, range, word, shift);
                }
            })
            .map_err(DirtyError::out_of_range(range, page))?;
        if clear {
            self.quiesce(inside);
        }
        Ok(())
    }
}

/// Sets the bits of all pages of `range` that what `word` says touches.
#[cold]
fn set_pages(bitmap: &mut [u64], range: IovaRange, word: DirtyWord, shift: u32) {
    let mut bits = word.bits;
    while bits != 0 {
        let start = word.iova + (u64::from(bits.trailing_zeros()) << word.page_shift);
        let written = IovaRange { start, last: start + ((1 << word.page_shift) - 1) };
        set_bits(bitmap, range, written, shift);
        bits &= bits - 1;
    }
}

/// Sets the bits of all pages of `range` that `written` touches.
pub(crate) fn set_bits(bitmap: &mut [u64], range: IovaRange, written: IovaRange, shift: u32) {
    let first = (written.start.max(range.start) - range.start) >> shift;
    let last = (written.last.min(range.last) - range.start) >> shift;
    for page in first..=last {
        bitmap[page as usize / 64] |= 1 << (page % 64);
    }
}

/// The number of bits of an offset in a page of so many bytes.
pub(crate) fn page_shift(page: u64) -> Result<u32, DirtyError> {
    if page.is_power_of_two() { Ok(page.trailing_zeros()) } else { Err(DirtyError::PageSize(page)) }
}
