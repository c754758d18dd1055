//! Which pages one device has written, whatever it is attached to.
//!
//! While a device's log is on, nothing that its ports cache lets a write pass. So each write comes by the log, a page
//! at a time, and is marked before its bytes are moved:
//!
//! ```text
//!  port                          thread that reads the log
//!  ────                          ─────────────────────────
//!  miss: mark, write             take the marks out
//!  miss: mark, write             post, wait for ports inside
//!                                now copy the pages
//! ```

use super::Endpoint;
use crate::base::lock::Mutex;
use crate::base::rank;
use crate::base::sync::{AtomicBool, Ordering};
use crate::base::types::IovaRange;
use crate::gate::check_may_wait;
use crate::gate::invalidation::Invalidation;
use crate::hwpt::{DirtyError, page_shift, set_bits};

/// The most pages that a log has: 32 MiB of bits, which are a tebibyte of small pages.
const MOST_PAGES: u64 = 1 << 28;

/// The log of an endpoint.
#[derive(Default)]
pub(crate) struct WriteLog {
    /// Whether there is one, for ports to ask.
    is_on: AtomicBool,
    log: Mutex<Option<Log>, rank::WriteLog>,
}

struct Log {
    page_shift: u32,
    /// In order, each with a bit for each page.
    ranges: Vec<(IovaRange, Vec<u64>)>,
}

impl WriteLog {
    /// Whether nothing that is cached may let a write pass.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    /// Notes that up to `length` bytes from `iova` on are about to be written, and returns how many may be, until the
    /// next page.
    #[cold]
    pub(crate) fn mark(&self, iova: u64, length: u64) -> u64 {
        let mut log = self.log.lock();
        let Some(Log { page_shift, ranges }) = &mut *log else { return length };
        let found = ranges.partition_point(|(range, _)| range.last < iova);
        if let Some((range, bits)) = ranges.get_mut(found)
            && range.start <= iova
        {
            let page = (iova - range.start) >> *page_shift;
            bits[(page / 64) as usize] |= 1 << (page % 64);
        }
        let page = 1 << *page_shift;
        length.min(page - iova % page)
    }
}

impl Log {
    fn new(ranges: &[IovaRange], page: u64) -> Result<Self, DirtyError> {
        let shift = page_shift(page)?;
        if shift < PAGE_SHIFT {
            return Err(DirtyError::PageSize(page));
        }
        let mut ranges = ranges.to_vec();
        ranges.sort_by_key(|range| range.start);
        let is_whole = |range: &IovaRange| (range.start | range.last.wrapping_add(1)).is_multiple_of(page);
        if let Some(range) = ranges.iter().find(|range| !is_whole(range)) {
            return Err(DirtyError::Range(*range, page));
        }
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].last >= pair[1].start) {
            return Err(DirtyError::Overlap(pair[1]));
        }
        let pages = |range: &IovaRange| (range.len_minus_one() >> shift) + 1;
        let all = ranges.iter().map(pages).fold(0, u64::saturating_add);
        if all > MOST_PAGES {
            return Err(DirtyError::TooManyPages(all, MOST_PAGES));
        }
        let with_bits = |range: IovaRange| {
            let words = pages(&range).div_ceil(64) as usize;
            let mut bits = Vec::new();
            bits.try_reserve_exact(words).map_err(|_| DirtyError::NoMemory)?;
            bits.resize(words, 0);
            Ok((range, bits))
        };
        Ok(Self { page_shift: shift, ranges: ranges.into_iter().map(with_bits).collect::<Result<_, DirtyError>>()? })
    }

    /// Sets the bits of the pages of `range` that were written, and with `clear` forgets those that lie in it as a
    /// whole.
    fn read(&mut self, range: IovaRange, shift: u32, clear: bool, bitmap: &mut [u64]) {
        for (logged, bits) in &mut self.ranges {
            let common = IovaRange { start: range.start.max(logged.start), last: range.last.min(logged.last) };
            if common.start > common.last {
                continue;
            }
            let [first, last] = [common.start, common.last].map(|iova| (iova - logged.start) >> self.page_shift);
            for word in first / 64..=last / 64 {
                let mut rest = bits[word as usize];
                while rest != 0 {
                    let page = word * 64 + u64::from(rest.trailing_zeros());
                    rest &= rest - 1;
                    let start = logged.start + (page << self.page_shift);
                    let written = IovaRange { start, last: start + ((1 << self.page_shift) - 1) };
                    if written.overlaps(&common) {
                        set_bits(bitmap, range, written, shift);
                    }
                    if clear && common.contains(&written) {
                        bits[word as usize] &= !(1 << (page % 64));
                    }
                }
            }
        }
    }
}

/// The smallest page that is logged.
const PAGE_SHIFT: u32 = 12;

impl Endpoint {
    /// What its device writes is to be logged.
    pub(crate) fn write_log(&self) -> &WriteLog {
        &self.write_log
    }

    /// Begins to log which pages of `page` bytes (a power of two, from 4096 on) of `ranges` the device writes by DMA
    /// without a PASID, whatever it is attached to. Each write takes longer meanwhile.
    ///
    /// # Errors
    /// [`DirtyError::On`] if there is a log; [`DirtyError::PageSize`], [`DirtyError::Range`], [`DirtyError::Overlap`],
    /// [`DirtyError::TooManyPages`], [`DirtyError::NoMemory`]; [`DirtyError::Part`] for a part of another;
    /// [`DirtyError::WouldDeadlock`].
    pub fn start_write_log(&self, ranges: &[IovaRange], page: u64) -> Result<(), DirtyError> {
        if self.part.is_some() {
            return Err(DirtyError::Part);
        }
        let new = Log::new(ranges, page)?;
        check_may_wait()?;
        {
            let mut log = self.write_log.log.lock();
            if log.is_some() {
                return Err(DirtyError::On);
            }
            *log = Some(new);
            self.write_log.is_on.store(true, Ordering::Release);
        }
        // What was cached before let writes pass.
        self.quiesce(Invalidation::All);
        Ok(())
    }

    /// Ends the log, if there is one. What was noted and not read is forgotten.
    pub fn stop_write_log(&self) {
        let log = {
            let mut log = self.write_log.log.lock();
            self.write_log.is_on.store(false, Ordering::Release);
            log.take()
        };
        drop(log);
    }

    /// Whether there is a log.
    #[must_use]
    pub fn has_write_log(&self) -> bool {
        self.write_log.is_on()
    }

    /// Bytes of a page of the log; `None` if there is none.
    #[must_use]
    pub fn write_log_page(&self) -> Option<u64> {
        Some(1 << self.write_log.log.lock().as_ref()?.page_shift)
    }

    /// Sets, in `bitmap`, the bits of the pages of `page` bytes of `range` that the device has written, as
    /// [`Hwpt::read_dirty`](crate::Hwpt::read_dirty) does. With `clear` they count as clean from then on, and every
    /// write that was noted has arrived when this returns.
    ///
    /// # Errors
    /// [`DirtyError::Off`] if there is no log; [`DirtyError::PageSize`], [`DirtyError::ShortBitmap`],
    /// [`DirtyError::WouldDeadlock`].
    pub fn read_write_log(
        &self,
        range: IovaRange,
        page: u64,
        clear: bool,
        bitmap: &mut [u64],
    ) -> Result<(), DirtyError> {
        let shift = page_shift(page)?;
        let last_page = range.len_minus_one() >> shift;
        if last_page / 64 >= bitmap.len() as u64 {
            return Err(DirtyError::ShortBitmap(last_page / 64 + 1, bitmap.len()));
        }
        check_may_wait()?;
        self.write_log.log.lock().as_mut().ok_or(DirtyError::Off)?.read(range, shift, clear, bitmap);
        if clear {
            self.quiesce(Invalidation::All);
        }
        Ok(())
    }
}
