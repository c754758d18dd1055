//! What follows an address space: the contract, and the requesters that are attached.
//!
//! The areas of an address space are the truth. Each mirror has the same: a page table that ports walk, a device in
//! another process, a host's own IOMMU. What is mapped is handed to all of them, and an unmap returns when none of them
//! lets anything through any more.
//!
//! ```text
//!   Ioas::map ──► Mirror::map of each; one fails ──► Mirror::unmap of those before it, and an error
//!   Ioas::unmap ─► Mirror::unmap of each ──► the memory is let go
//! ```

mod users;

use std::any::Any;
use std::fmt;

use iopt::Access;
use thiserror::Error;

use crate::base::types::{Iova, IovaRange};
use crate::memory::{Pin, PinnedMemory};

pub(crate) use users::Users;

/// What a mirror can do. It is asked once, when it is added.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorCapabilities {
    /// The IOVAs that it can map.
    pub aperture: IovaRange,
    /// A bit for each size of pages that it can have: what 2^n bytes have is bit n. What is mapped begins, ends and
    /// lies in memory at multiples of the smallest.
    pub page_sizes: u64,
    /// IOVAs that it keeps for something else.
    pub reserved: Vec<IovaRange>,
}

impl Default for MirrorCapabilities {
    /// All IOVAs, in pages of 4 KiB and any multiple that is a power of two; nothing reserved.
    fn default() -> Self {
        Self { aperture: IovaRange::ALL, page_sizes: !0 << 12, reserved: Vec::new() }
    }
}

impl MirrorCapabilities {
    /// As the default, but for some IOVAs only.
    #[must_use]
    pub fn with_aperture(mut self, aperture: IovaRange) -> Self {
        self.aperture = aperture;
        self
    }

    /// With other sizes of pages.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn with_page_sizes(mut self, page_sizes: u64) -> Self {
        assert!(page_sizes != 0, "a mirror has pages");
        self.page_sizes = page_sizes;
        self
    }

    /// With IOVAs that are kept for something else.
    #[must_use]
    pub fn with_reserved(mut self, reserved: Vec<IovaRange>) -> Self {
        self.reserved = reserved;
        self
    }

    /// Bytes of its smallest page.
    pub(crate) fn page_size(&self) -> u64 {
        1 << self.page_sizes.trailing_zeros().min(63)
    }
}

/// What is to be mapped.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct MirrorRun<'a> {
    /// The IOVAs: an area as a whole, or a part that was cut off.
    pub range: IovaRange,
    /// What devices may do.
    pub access: Access,
    pub(crate) pin: &'a Pin,
    /// Where the memory begins in the pages that are pinned.
    pub(crate) offset: u64,
    /// log2 of the bytes of the largest page to be used.
    pub(crate) largest: u32,
}

impl MirrorRun<'_> {
    /// The memory, as long as the range. To be dropped before the unmap returns.
    #[must_use]
    pub fn memory(&self) -> PinnedMemory {
        let mut memory = PinnedMemory::new(self.access);
        memory.push(self.pin.clone(), self.offset, self.range.len_minus_one() + 1);
        memory
    }

    /// The physical ranges of the memory, in order: (address, bytes).
    pub(crate) fn physical(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        self.pin.ranges(self.offset, self.range.len_minus_one() + 1)
    }
}

/// Why a mirror did not do what it was asked for. It is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MirrorError {
    /// There is no room for page tables.
    #[error(transparent)]
    Table(#[from] iopt::MapError),
    /// It cannot do that.
    #[error("the mirror cannot {0}")]
    Unsupported(&'static str),
    /// It did not work out.
    #[error("the mirror failed: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It cannot say that nothing reaches what it was to unmap, or what it has not mapped; it is told to unmap that.
    #[error("the mirror cannot say that nothing reaches what it was to unmap")]
    Reachable,
    /// It panicked, and was told to unmap what it was to map.
    #[error("the mirror panicked")]
    Panicked,
}

/// Follows an address space ([`Ioas::add_mirror`](crate::Ioas::add_mirror)).
///
/// Each function is called with no lock of the engine's held, from the thread that maps or unmaps; for one range from
/// one thread at a time, and for different ranges from several at once. It may call the engine, but to remove this
/// mirror from there is an error.
pub trait Mirror: Any + Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> MirrorCapabilities;

    /// Maps a run, which overlaps nothing that is mapped.
    ///
    /// # Errors
    /// [`MirrorError`]; then nothing of the run is mapped. With [`MirrorError::Reachable`] something may be, and the
    /// mirror is told to unmap the run.
    fn map(&self, run: &MirrorRun<'_>) -> Result<(), MirrorError>;

    /// Unmaps `runs`, in order of IOVA: each consists of runs that were mapped, or of parts at which they were split.
    /// It returns when nothing reaches them any more: **this is the completion guarantee**, and the memory is let go
    /// afterwards.
    ///
    /// When the mirror is taken away from a device's address space, `runs` is all there is ([`IovaRange::ALL`]).
    ///
    /// # Errors
    /// [`MirrorError`], if it cannot say that nothing reaches them. As with a panic, the mirror is not asked for
    /// anything any more then, what it could still reach stays pinned, and the unmap fails
    /// ([`UnmapError::Mirror`](crate::UnmapError::Mirror)).
    fn unmap(&self, runs: &mut dyn Iterator<Item = IovaRange>) -> Result<(), MirrorError>;

    /// Sees to it that what is mapped can be unmapped on either side of `at` by itself. What is mapped stays mapped
    /// meanwhile.
    ///
    /// # Errors
    /// [`MirrorError`], which is the default: nothing is changed then.
    fn split(&self, _at: Iova) -> Result<(), MirrorError> {
        Err(MirrorError::Unsupported("split a mapping"))
    }

    /// Changes what devices may do in `run`, which is mapped, from `before`. When it returns, nothing that is not
    /// allowed any more is in flight. By default the run is unmapped and mapped again.
    ///
    /// # Errors
    /// [`MirrorError`]; then the run is as it was.
    fn protect(&self, run: &MirrorRun<'_>, before: Access) -> Result<(), MirrorError> {
        self.unmap(&mut std::iter::once(run.range)).map_err(|_| MirrorError::Reachable)?;
        self.map(run).inspect_err(|_| {
            // As it was just mapped like that, there is room for it.
            let before = MirrorRun { access: before, ..*run };
            if self.map(&before).is_err() {
                panic!("a mirror cannot map again what it has just unmapped");
            }
        })
    }

    /// Whether it tells which pages were written.
    fn tracks_dirty(&self) -> bool {
        false
    }

    /// Sets, in `bitmap`, the bits of pages of `range` that were written since they were last cleared; bit n of word m
    /// is the page of `page` bytes at `range`'s start + (64 m + n) · `page`. With `clear` they count as clean from then
    /// on, and every write that was noted has arrived when this returns.
    ///
    /// # Errors
    /// [`MirrorError`], which is the default.
    fn read_dirty(&self, _range: IovaRange, _page: u64, _clear: bool, _bitmap: &mut [u64]) -> Result<(), MirrorError> {
        Err(MirrorError::Unsupported("tell what was written"))
    }
}

impl fmt::Debug for dyn Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").field("capabilities", &self.capabilities()).finish_non_exhaustive()
    }
}
