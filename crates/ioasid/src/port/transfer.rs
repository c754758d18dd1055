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
            if let Some(source) = from.local() {
                // SAFETY: both are `data.len()` bytes long, and nobody else has `data`.
                unsafe { move_bytes(source.as_ptr(), data.as_mut_ptr(), data.len()) };
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
            if let Some(target) = to.local() {
                // SAFETY: both are `data.len()` bytes long.
                unsafe { move_bytes(data.as_ptr(), target.as_ptr(), data.len()) };
            }
            to.still_there()
        }
        Backing::Remote { memory, address } => memory.write(address + to.offset, data).map_err(drop),
    }
}

/// Moves `length` bytes; only memory that is not mapped here goes through `bounce`.
pub(super) fn copy(from: Place<'_>, to: Place<'_>, length: usize, bounce: &mut Vec<u8>) -> Result<(), Gone> {
    if let (Some(source), Some(target)) = (from.local(), to.local()) {
        // SAFETY: the caller has checked that both translations go on for `length` bytes.
        unsafe { move_bytes(source.as_ptr(), target.as_ptr(), length) };
        from.still_there().map_err(|()| Gone::Source)?;
        return to.still_there().map_err(|()| Gone::Target);
    }
    bounce.resize(length.max(bounce.len()), 0);
    read(from, &mut bounce[..length]).map_err(|()| Gone::Source)?;
    write(to, &bounce[..length]).map_err(|()| Gone::Target)
}

/// Copies bytes that others may be changing. A naturally aligned 1, 2, 4 or 8 bytes are one access, and a store of
/// them comes after all earlier ones.
///
/// # Safety
/// Both ranges must be valid for `length` bytes; they may overlap.
#[inline]
unsafe fn move_bytes(source: *const u8, target: *mut u8, length: usize) {
    let aligned = (source as usize | target as usize).is_multiple_of(length.max(1));
    // SAFETY: valid by the caller's word, and aligned for the atomics where they are used. One of the two may belong
    // to the caller alone, for which an atomic access is as good.
    unsafe {
        match length {
            1 => store::<AtomicU8>(source, target),
            2 if aligned => store::<AtomicU16>(source, target),
            4 if aligned => store::<AtomicU32>(source, target),
            8 if aligned => store::<AtomicU64>(source, target),
            _ => ptr::copy(source, target, length),
        }
    }
}

/// An integer that is loaded and stored in one access.
trait Single {
    /// # Safety
    /// Both must be valid and aligned for the integer.
    unsafe fn transfer(source: *const u8, target: *mut u8);
}

macro_rules! single {
    ($($atomic:ty),*) => {$(
        impl Single for $atomic {
            #[inline]
            unsafe fn transfer(source: *const u8, target: *mut u8) {
                // SAFETY: valid and aligned by the caller's word.
                unsafe {
                    let value = <$atomic>::from_ptr(source.cast_mut().cast()).load(Ordering::Acquire);
                    <$atomic>::from_ptr(target.cast()).store(value, Ordering::Release);
                }
            }
        }
    )*};
}

single!(AtomicU8, AtomicU16, AtomicU32, AtomicU64);

/// # Safety
/// As [`Single::transfer`].
#[inline]
unsafe fn store<T: Single>(source: *const u8, target: *mut u8) {
    // SAFETY: passed on.
    unsafe { T::transfer(source, target) }
}
