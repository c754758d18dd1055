//! What `GuestMemory` asks for and a port does not have: types without values.

use vm_memory::bitmap::{BS, Bitmap, WithBitmapSlice};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize};

use super::Hold;

/// Names the type of what slices carry, [`Hold`].
#[derive(Debug)]
pub enum NoBitmap {}

impl<'a> WithBitmapSlice<'a> for NoBitmap {
    type S = Hold<'a>;
}

impl Bitmap for NoBitmap {
    fn mark_dirty(&self, _offset: usize, _len: usize) {
        match *self {}
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        match *self {}
    }

    fn slice_at(&self, _offset: usize) -> Hold<'_> {
        match *self {}
    }
}

/// The memory behind a port is no collection of regions.
#[derive(Debug)]
pub enum NoBackend {}

impl GuestMemoryBackend for NoBackend {
    type R = NoRegion;

    #[allow(unreachable_code, reason = "the type of what is returned has to be known")]
    fn iter(&self) -> impl Iterator<Item = &NoRegion> {
        match *self {}
        std::iter::empty()
    }
}

/// A region of [`NoBackend`].
#[derive(Debug)]
pub enum NoRegion {}

impl GuestMemoryRegion for NoRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        match *self {}
    }

    fn start_addr(&self) -> GuestAddress {
        match *self {}
    }

    fn bitmap(&self) -> BS<'_, ()> {
        match *self {}
    }
}

impl GuestMemoryRegionBytes for NoRegion {}
