//! Bytes on their way, at the start of a page, as files want them that are read past the page cache.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

const PAGE: usize = 4096;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Some bytes.
#[derive(Default)]
pub(crate) struct Buffer {
    pages: Vec<Page>,
    length: usize,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.length)
    }
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.length]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[..self.length]
    }

    /// Other bytes, of another length: what was there before, or zeroes.
    pub(crate) fn resize(&mut self, length: usize) {
        self.pages.resize(length.div_ceil(PAGE), Page::new_zeroed());
        self.length = length;
    }

    /// Bytes that it takes.
    pub(crate) fn size(&self) -> usize {
        self.pages.len() * PAGE
    }
}
