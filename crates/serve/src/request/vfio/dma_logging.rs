//! DMA logging: which pages a device has written, by a log of its own.
//!
//! Linux's vfio-pci has it for some devices that keep such a log in hardware; here the engine keeps it, for any.

use std::sync::Arc;

use ioasid::memory::PAGE_SIZE;
use ioasid::{Endpoint, IovaRange};
use ioasid_uapi::vfio::feature as uapi;
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use crate::request::bitmap::tell_written;
use crate::request::{Caller, ToErrno};

/// The most ranges of one log: those that fit in a page.
const MOST_RANGES: u32 = (PAGE_SIZE / size_of::<uapi::DmaLoggingRange>() as u64) as u32;

/// A log that ends with the device that it is of.
pub(super) struct DmaLog(Arc<Endpoint>);

impl DmaLog {
    pub(super) fn of(endpoint: &Arc<Endpoint>) -> Self {
        Self(endpoint.clone())
    }

    /// Whether the device can have one: the DMA of a part is that of the whole.
    pub(super) fn can_be(&self) -> bool {
        self.0.virtual_pasids().is_none()
    }

    /// DMA_LOGGING_START.
    ///
    /// # Errors
    /// `EINVAL` if there is one, there are no ranges, or these overlap or are not of pages; `E2BIG` for too many, or
    /// too many pages; `EOVERFLOW` for one beyond the end; `EFAULT`; `ENOMEM`.
    pub(super) fn start(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let mut control = uapi::DmaLoggingControl::new_zeroed();
        caller.read(address, control.as_mut_bytes())?;
        if control.num_ranges == 0 {
            return Err(Errno::INVAL);
        }
        if control.num_ranges > MOST_RANGES {
            return Err(Errno::TOOBIG);
        }
        let mut ranges = vec![uapi::DmaLoggingRange::new_zeroed(); control.num_ranges as usize];
        caller.read(control.ranges, ranges.as_mut_bytes())?;
        let range = |range: &uapi::DmaLoggingRange| match range.length {
            0 => Err(Errno::INVAL),
            length => IovaRange::new(range.iova, length).ok_or(Errno::OVERFLOW),
        };
        let ranges = ranges.iter().map(range).collect::<Result<Vec<_>, _>>()?;
        self.0.start_write_log(&ranges, control.page_size).map_err(|error| error.errno())?;
        // The size of pages is told: it is the one that was asked for.
        caller.write(address, control.as_bytes()).inspect_err(|_| self.0.stop_write_log())
    }

    /// DMA_LOGGING_STOP, if there is one.
    pub(super) fn stop(&self) {
        self.0.stop_write_log();
    }

    /// DMA_LOGGING_REPORT: tells what was written, and forgets it.
    ///
    /// # Errors
    /// `EINVAL` if there is none, or for pages that are too small, or parts of them; `EOVERFLOW`, `EFAULT`.
    pub(super) fn report(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let mut report = uapi::DmaLoggingReport::new_zeroed();
        caller.read(address, report.as_mut_bytes())?;
        let uapi::DmaLoggingReport { iova, length, page_size, bitmap } = report;
        if page_size < PAGE_SIZE || !page_size.is_power_of_two() || length == 0 {
            return Err(Errno::INVAL);
        }
        let range = IovaRange::new(iova, length).ok_or(Errno::OVERFLOW)?;
        // In parts of a page nothing could be forgotten.
        let logged = self.0.write_log_page().ok_or(Errno::INVAL)?;
        if page_size < logged || !iova.is_multiple_of(logged) {
            return Err(Errno::INVAL);
        }
        let read = |range, clear, words: &mut [u64]| {
            self.0.read_write_log(range, page_size, clear, words).map_err(|error| error.errno())
        };
        tell_written(caller, range, page_size, bitmap, true, |_, _| {}, read)
    }
}

impl Drop for DmaLog {
    fn drop(&mut self) {
        self.stop();
    }
}
