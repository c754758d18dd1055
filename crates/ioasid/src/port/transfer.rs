//! Moving bytes between a device model and where a translation leads.
//!
//! The memory on the far side is shared with other threads and processes, and a copy races with them as a device's DMA
//! does: the memory is only ever touched by raw copies, and never through a reference.
#![allow(unsafe_code, reason = "raw copies to and from shared memory")]

use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::translate::Place;
use crate::gate::call_inside;

/// A side of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Target,
}

/// Fills `data` from `from`, which goes on for as long.
#[inline(always)]
pub(super) fn read(from: Place<'_>, data: &mut [u8]) -> Result<(), ()> {
    match from {
        Place::Here(source) => {
            // SAFETY: the bytes are there, as far as the translation goes.
            unsafe { load(source, data) };
            Ok(())
        }
        Place::Elsewhere(memory, address) => call_inside(|| memory.read(address, data)).map_err(drop),
    }
}

/// Puts `data` at `to`, which goes on for as long.
#[inline(always)]
pub(super) fn write(to: Place<'_>, data: &[u8]) -> Result<(), ()> {
    match to {
        Place::Here(target) => {
            // SAFETY: the bytes are there, as far as the translation goes.
            unsafe { store(data, target) };
            Ok(())
        }
        Place::Elsewhere(memory, address) => call_inside(|| memory.write(address, data)).map_err(drop),
    }
}

/// Moves `length` bytes; only memory that is not mapped here goes through `bounce`, which is as long.
/// Fails on the side that is gone.
#[inline(always)]
pub(super) fn copy(from: Place<'_>, to: Place<'_>, length: usize, bounce: &mut [u8]) -> Result<(), Side> {
    if let (Place::Here(source), Place::Here(target)) = (from, to) {
        // SAFETY: the caller has checked that both translations go on for `length` bytes; they may overlap.
        unsafe { ptr::copy(source, target, length) };
        return Ok(());
    }
    read(from, &mut bounce[..length]).map_err(|()| Side::Source)?;
    write(to, &bounce[..length]).map_err(|()| Side::Target)
}

/// Does `operation` on the 8 bytes at `place`, which is aligned to as many; `None` if they are not in this process.
pub(super) fn atomic(place: Place<'_>, operation: impl FnOnce(&AtomicU64) -> u64) -> Option<u64> {
    match place {
        // SAFETY: the bytes are there, as far as the translation goes, aligned, and every other user of them is
        // prepared for a device to change them.
        Place::Here(start) => Some(operation(unsafe { AtomicU64::from_ptr(start.cast()) })),
        Place::Elsewhere(..) => None,
    }
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
