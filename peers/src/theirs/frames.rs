//! Frames for the page tables of other crates: this process's memory, at its own addresses.
//!
//! They are handed out in a row and never taken back one by one, which is as cheap as an allocator can be: whoever
//! starts over with [`Frames::supply`] must have dropped the table that had them before. A crate's allocator may be a
//! type without a value, so what is left is in a variable of the thread.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Bytes of a frame.
const FRAME: usize = 4096;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Frame([u8; FRAME]);

thread_local! {
    /// The frames that are left, by address.
    static LEFT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Memory for tables.
pub struct Frames {
    // Never of any length: nothing but tables is in it.
    memory: Vec<Frame>,
}

impl Frames {
    /// Memory for `count` tables, which the kernel has yet to provide.
    pub fn untouched(count: usize) -> Self {
        Self { memory: Vec::with_capacity(count) }
    }

    /// Memory for `count` tables, all present.
    pub fn touched(count: usize) -> Self {
        let mut frames = Self::untouched(count);
        frames.memory.spare_capacity_mut().fill(MaybeUninit::new(Frame([0xff; FRAME])));
        frames
    }

    /// Has [`take`] hand out these frames from the first on.
    pub fn supply(&mut self) {
        let Range { start, end } = self.memory.spare_capacity_mut().as_mut_ptr_range();
        LEFT.set((start.expose_provenance(), end.expose_provenance()));
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        LEFT.set((0, 0));
    }
}

/// The address of the next frame, if one is left.
#[inline]
pub fn take() -> Option<usize> {
    let (next, end) = LEFT.get();
    (next < end).then(|| {
        LEFT.set((next + FRAME, end));
        next
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_handed_out_once_until_they_are_supplied_again() {
        let mut frames = Frames::touched(2);
        assert_eq!(take(), None);
        frames.supply();
        let first = take().unwrap();
        assert_eq!((first % FRAME, take(), take()), (0, Some(first + FRAME), None));
        frames.supply();
        assert_eq!(take(), Some(first));
        drop(frames);
        assert_eq!(take(), None);
    }
}
