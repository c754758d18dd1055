//! How finely a page table marks what devices write.

use crate::base::sync::{AtomicU32, Ordering};

/// log2 of the largest pages that a table being tracked has, or zero if it is not being tracked.
#[derive(Debug)]
pub(crate) struct Granule(AtomicU32);

impl Granule {
    pub(crate) fn none() -> Self {
        Self(AtomicU32::new(0))
    }

    #[inline]
    pub(crate) fn is_none(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    /// log2 of the largest page that may be mapped.
    pub(crate) fn largest(&self) -> u32 {
        match self.0.load(Ordering::Acquire) {
            0 => u32::MAX,
            shift => shift,
        }
    }

    /// Marks pages of 2^`shift` bytes from now on; none with 0.
    pub(super) fn set(&self, shift: u32) {
        self.0.store(shift, Ordering::Release);
    }
}
