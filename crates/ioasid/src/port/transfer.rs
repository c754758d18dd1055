//! Moving bytes between a device model and where a translation leads.
//!
//! The memory on the far side is shared with whoever else has it, and races with them as a device's DMA does: it is
//! only ever touched by raw copies, and never through a reference.
#![allow(unsafe_code, reason = "raw copies to and from shared memory")]

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::memory::Backing;

/// Where a translation leads: some bytes into a window. Valid as long as the port is inside its gate.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    backing: &'a Backing,
    offset: u64,
}

/// Which side of a copy turned out to have no memory behind it.
pub(super) enum Gone {
    Source,
    Target,
}

impl<'a> Place<'a> {
    pub(super) fn new(backing: &'a Backing, offset: u64) -> Self {
        Self { backing, offset }
    }

    /// The pointer there, if the memory is in this process.
    fn local(&self) -> Option<NonNull<u8>> {
        match self.backing {
            // SAFETY: the IOTLB and the walk yield only offsets inside the window, whose memory it is.
            Backing::Local { start, .. } => Some(unsafe { start.add(self.offset as usize) }),
            Backing::Remote { .. } => None,
        }
    }

    fn still_there(&self) -> Result<(), ()> {
        if self.backing.is_gone() { Err(()) } else { Ok(()) }
    }
}

/// Fills `data` from `from`.
pub(super) fn read(from: Place<'_>, data: &mut [u8]) -> Result<(), ()> {
    match from.backing {
        Backing::Local { .. } => {
            from.still_there()?;
            if let Some(source) = from.local() {
                // SAFETY: `data.len()` bytes are there, as far as the translation goes.
                unsafe { load(source.as_ptr(), data) };
            }
            from.still_there()
        }
        Backing::Remote { memory, address } => memory.read(address + from.offset, data).map_err(drop),
    }
}

/// Puts `data` at `to`.
pub(super) fn write(to: Place<'_>, data: &[u8]) -> Result<(), ()> {
    match to.backing {
        Backing::Local { .. } => {
            to.still_there()?;
            if let Some(target) = to.local() {
                // SAFETY: as for reading.
                unsafe { store(data, target.as_ptr()) };
            }
            to.still_there()
        }
        Backing::Remote { memory, address } => memory.write(address + to.offset, data).map_err(drop),
    }
}

/// Moves `length` bytes; only memory that is not mapped here goes through `bounce`, which is as long.
pub(super) fn copy(from: Place<'_>, to: Place<'_>, length: usize, bounce: &mut [u8]) -> Result<(), Gone> {
    if let (Some(source), Some(target)) = (from.local(), to.local()) {
        from.still_there().map_err(|()| Gone::Source)?;
        to.still_there().map_err(|()| Gone::Target)?;
        // SAFETY: the caller has checked that both translations go on for `length` bytes; they may overlap.
        unsafe { ptr::copy(source.as_ptr(), target.as_ptr(), length) };
        from.still_there().map_err(|()| Gone::Source)?;
        return to.still_there().map_err(|()| Gone::Target);
    }
    read(from, &mut bounce[..length]).map_err(|()| Gone::Source)?;
    write(to, &bounce[..length]).map_err(|()| Gone::Target)
}

/// Copies bytes out of shared memory; aligned 1, 2, 4 or 8 bytes in one access.
///
/// # Safety
/// `source` must be valid for `data.len()` bytes.
#[inline]
unsafe fn load(source: *const u8, data: &mut [u8]) {
    let source = source.cast_mut();
    // SAFETY: valid by the caller's word, and aligned for the atomics where they are used.
    unsafe {
        match data.len() {
            1 => data[0] = AtomicU8::from_ptr(source).load(Ordering::Acquire),
            2 if source.addr().is_multiple_of(2) => {
                data.copy_from_slice(&AtomicU16::from_ptr(source.cast()).load(Ordering::Acquire).to_ne_bytes());
            }
            4 if source.addr().is_multiple_of(4) => {
                data.copy_from_slice(&AtomicU32::from_ptr(source.cast()).load(Ordering::Acquire).to_ne_bytes());
            }
            8 if source.addr().is_multiple_of(8) => {
                data.copy_from_slice(&AtomicU64::from_ptr(source.cast()).load(Ordering::Acquire).to_ne_bytes());
            }
            length => ptr::copy(source, data.as_mut_ptr(), length),
        }
    }
}

/// Copies bytes into shared memory; aligned 1, 2, 4 or 8 bytes in one access, which comes after all earlier ones.
///
/// # Safety
/// `target` must be valid for `data.len()` bytes.
#[inline]
unsafe fn store(data: &[u8], target: *mut u8) {
    // SAFETY: valid by the caller's word, and aligned for the atomics where they are used.
    unsafe {
        match *data {
            [a] => AtomicU8::from_ptr(target).store(a, Ordering::Release),
            [a, b] if target.addr().is_multiple_of(2) => {
                AtomicU16::from_ptr(target.cast()).store(u16::from_ne_bytes([a, b]), Ordering::Release);
            }
            [a, b, c, d] if target.addr().is_multiple_of(4) => {
                AtomicU32::from_ptr(target.cast()).store(u32::from_ne_bytes([a, b, c, d]), Ordering::Release);
            }
            [a, b, c, d, e, f, g, h] if target.addr().is_multiple_of(8) => {
                let value = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                AtomicU64::from_ptr(target.cast()).store(value, Ordering::Release);
            }
            _ => ptr::copy(data.as_ptr(), target, data.len()),
        }
    }
}
