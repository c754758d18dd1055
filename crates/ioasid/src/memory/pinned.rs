//! Pinned memory as bytes: to be read and written where it lies, or passed on as ranges of files.

use std::sync::Arc;
use std::{fmt, io};

use iopt::Access;

use super::pages::{Pages, Pin};
use super::{FileRange, Identity};

/// Bytes that stay where they are as long as this lives. Others may change them at any time, as devices
/// do. A write through it is in no dirty log.
pub struct PinnedMemory {
    parts: Vec<Part>,
    access: Access,
}

/// Bytes of some pages.
struct Part {
    pin: Pin,
    offset: u64,
    length: u64,
}

/// A run of bytes that lie together.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MemoryChunk {
    /// Where it begins in the whole.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// Where it is in a file, if it is in one: what another process can map.
    pub file: Option<FileRange>,
}

impl PinnedMemory {
    /// Nothing, to be pinned for `access`.
    pub(crate) fn new(access: Access) -> Self {
        Self { parts: Vec::with_capacity(1), access }
    }

    /// Adds bytes at the end.
    pub(crate) fn push(&mut self, pin: Pin, offset: u64, length: u64) {
        debug_assert!(pin.covers(offset, length));
        self.parts.push(Part { pin, offset, length });
    }

    /// Number of bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.length).sum()
    }

    /// What it may be used for: [`Access::READ`], [`Access::WRITE`].
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Copies `data.len()` bytes from `at` on.
    ///
    /// # Errors
    /// `PermissionDenied` if it was not pinned for reading; `InvalidInput` if there are not so many bytes;
    /// `UnexpectedEof` if the memory is gone (some bytes may have been copied then).
    pub fn read(&self, at: u64, data: &mut [u8]) -> io::Result<()> {
        self.check(Access::READ, at, data.len())?;
        let mut rest = data;
        self.each_part(at, rest.len() as u64, |part, offset, length| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(length as usize);
            rest = later;
            part.pin.read(offset, now)
        })
    }

    /// Copies `data` to `at`.
    ///
    /// # Errors
    /// As [`PinnedMemory::read`], for writing.
    pub fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.check(Access::WRITE, at, data.len())?;
        let mut rest = data;
        self.each_part(at, rest.len() as u64, |part, offset, length| {
            let (now, later) = rest.split_at(length as usize);
            rest = later;
            part.pin.write(offset, now)
        })
    }

    /// Which memory is at `at`, if that can be told.
    #[must_use]
    pub fn identity(&self, at: u64) -> Option<Identity> {
        let mut found = None;
        self.each_part(at, 1, |part, offset, _| {
            found = part.pin.identity(offset);
            Ok(())
        })
        .ok()?;
        found
    }

    /// The runs of bytes that it consists of, in order.
    #[must_use]
    pub fn chunks(&self) -> Vec<MemoryChunk> {
        let (mut chunks, mut at) = (Vec::with_capacity(self.parts.len()), 0);
        for part in &self.parts {
            for piece in part.pin.pieces(part.offset, part.length) {
                chunks.push(MemoryChunk {
                    offset: at,
                    length: piece.bytes,
                    file: piece.window.backing().file(piece.before),
                });
                at += piece.bytes;
            }
        }
        chunks
    }

    /// Where each part begins.
    pub(crate) fn starts(&self) -> impl Iterator<Item = u64> + '_ {
        self.parts.iter().scan(0, |at, part| {
            let start = *at;
            *at += part.length;
            Some(start)
        })
    }

    fn check(&self, access: Access, at: u64, length: usize) -> io::Result<()> {
        if !self.access.contains(access) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if at.checked_add(length as u64).is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }

    /// Calls `each` with the parts that `length` bytes from `at` on lie in, where they begin in the pages, and how many
    /// bytes.
    fn each_part(
        &self,
        at: u64,
        length: u64,
        mut each: impl FnMut(&Part, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut skip, mut left) = (at, length);
        for part in &self.parts {
            let before = skip.min(part.length);
            skip -= before;
            let bytes = left.min(part.length - before);
            if bytes > 0 {
                each(part, part.offset + before, bytes)?;
            }
            left -= bytes;
        }
        Ok(())
    }
}

impl fmt::Debug for PinnedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedMemory").field("len", &self.len()).field("access", &self.access).finish_non_exhaustive()
    }
}

/// What a mapping is of: some bytes of some pages.
pub(crate) struct PagesSlice {
    pub(crate) pages: Arc<Pages>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}
