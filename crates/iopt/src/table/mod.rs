//! One algorithm over every format, an operation a file.
//!
//! # Who is in a table's way
//!
//! Operations of different ranges meet in the tables that both ranges pass through. An entry that lies in a range is
//! changed by nobody else; an entry that leads to a table which several ranges share is changed by who adds that table
//! or takes it away, and for this each table has a count of its used entries beside it:
//!
//! ```text
//!                        reserve n                    release n
//!   ┌──────┐  begin n   ┌──────────┐  the count comes to 0   ┌──────┐  unlink   ┌─────────────┐
//!   │ free ├───────────▶│ count: n ├────────────────────────▶│ dead ├──────────▶│ EmptyTables │
//!   └──────┘  and link  └──────────┘                         └──────┘           └─────────────┘
//! ```
//!
//! - Who adds entries to a table counts them first. If the table is dead, somebody is unlinking it: again from the root.
//! - A new table is counted in before it is linked, by compare and exchange: a table that is linked is never without an
//!   entry that is, or is about to be, used. Who loses the race gives its table back.
//! - Who takes the count to zero thereby kills the table, and is the one who unlinks it, and goes on upwards, as that was
//!   an entry of the table above. As a table that is in use keeps all above it alive, the way up is the way down.
//! - The root is counted once more than it has entries.
//!
//! So a table cannot be linked into while it goes, and goes exactly once. An unlinked table may still be met by those
//! who were on their way down; they are *inside* the arena ([`Arena::enter`]), which keeps such tables from being used
//! for something else.

mod dirty;
mod guest;
mod iter;
mod map;
mod protect;
mod split;
mod unmap;
mod view;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

pub use dirty::DirtyWord;
pub use guest::{GuestMemory, GuestTranslation, walk_guest};
pub use iter::Iter;
pub use map::Leaves;
pub use view::{Upper, View, walk};

use crate::arena::{Arena, EmptyTables, Heap, TableAddr, TableMemory, TableSize};
use crate::format::{Access, Entry, Format};

/// More levels than any format has.
const MOST_LEVELS: usize = 8;

/// What a walk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Physical address of the byte that was asked for.
    pub pa: u64,
    /// log2 of the bytes of the page that it is in; the whole page is mapped contiguously.
    pub page_shift: u32,
    /// What is allowed, over all levels.
    pub access: Access,
}

/// Why a range could not be mapped, or its pages not be split. All translations are as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MapError {
    /// An address or the length is not a multiple of the smallest page.
    #[error("IOVA {iova:#x}, address {pa:#x} and length {length:#x} must be multiples of the page size {page:#x}")]
    Unaligned {
        /// IOVA asked for.
        iova: u64,
        /// Physical address asked for.
        pa: u64,
        /// Length asked for, in bytes.
        length: u64,
        /// The smallest page, in bytes.
        page: u64,
    },
    /// The range is empty, or reaches beyond what the format can express.
    #[error("IOVA {iova:#x} and length {length:#x} must lie within {bits} bits and not be empty")]
    OutOfRange {
        /// IOVA asked for.
        iova: u64,
        /// Length asked for, in bytes.
        length: u64,
        /// Width of an IOVA of this format.
        bits: u32,
    },
    /// Something is mapped there already.
    #[error("IOVA {0:#x} is mapped already")]
    Occupied(u64),
    /// The arena is full.
    #[error("no memory for page tables: the arena's limit is reached")]
    OutOfTables,
}

/// Why a range could not be unmapped, changed or read. The table is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RangeError {
    /// The range is not made of whole pages of the format.
    #[error("IOVA {iova:#x} and length {length:#x} must be whole pages within {bits} bits")]
    OutOfRange {
        /// IOVA asked for.
        iova: u64,
        /// Length asked for, in bytes.
        length: u64,
        /// Width of an IOVA of this format.
        bits: u32,
    },
    /// The range begins or ends in the middle of a large page: split it first.
    #[error("IOVA {0:#x} lies inside a large page that the range covers only in part")]
    SplitsPage(u64),
    /// A leaf that allows nothing cannot be told from none: unmap the range.
    #[error("a page must allow something")]
    NoAccess,
}

/// A page table of one format. See the crate's page for who may call what at the same time.
pub struct PageTable<F: Format, M: TableMemory = Heap> {
    arena: Arc<Arena<M>>,
    root: TableAddr,
    format: PhantomData<F>,
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// An empty table in `arena`.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`].
    pub fn new(arena: Arc<Arena<M>>) -> Result<Self, MapError> {
        const { assert!((F::LEVELS as usize) <= MOST_LEVELS) };
        let root = arena.allocate(table_size::<F>(F::LEVELS - 1)).ok_or(MapError::OutOfTables)?;
        arena.begin(root, 1);
        Ok(Self { arena, root, format: PhantomData })
    }

    /// Where the root is in the arena: what a device's context entry, or another process that walks, is told.
    #[must_use]
    pub fn root(&self) -> TableAddr {
        self.root
    }

    /// The arena that the table is in.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena<M>> {
        &self.arena
    }

    /// Gives tables back: [`Arena::free`] of the table's arena.
    pub fn free(&self, tables: EmptyTables) {
        self.arena.free(tables);
    }

    /// The table as walks see it.
    #[inline]
    #[must_use]
    pub fn view(&self) -> View<'_, F> {
        View::new(self.arena.memory().entries(), self.root)
    }

    /// Translates one address. Takes no lock and allocates nothing.
    #[inline]
    #[must_use]
    pub fn walk(&self, iova: u64) -> Option<Translation> {
        self.view().walk(iova)
    }

    /// See [`View::walk_coalesced`].
    #[inline]
    #[must_use]
    pub fn walk_coalesced(&self, iova: u64) -> Option<Translation> {
        self.view().walk_coalesced(iova)
    }

    /// See [`View::upper`].
    #[inline]
    #[must_use]
    pub fn upper(&self, iova: u64) -> Option<Upper> {
        self.view().upper(iova)
    }

    /// See [`View::walk_below`].
    #[inline]
    #[must_use]
    pub fn walk_below(&self, upper: Upper, iova: u64) -> Option<Translation> {
        self.view().walk_below(upper, iova)
    }

    /// See [`View::walk_coalesced_below`].
    #[inline]
    #[must_use]
    pub fn walk_coalesced_below(&self, upper: Upper, iova: u64) -> Option<Translation> {
        self.view().walk_coalesced_below(upper, iova)
    }

    pub(crate) fn entries(&self, addr: TableAddr, level: u8) -> Option<&[AtomicU64]> {
        self.arena.table(addr, F::index_bits(level))
    }

    /// The entries of `table` that `span` touches, and the IOVA at which the first of them begins.
    fn touched(&self, table: TableAddr, level: u8, base: u64, span: Span) -> (u64, &[AtomicU64]) {
        let range = indices::<F>(level, base, span);
        let start = base + ((range.start as u64) << F::shift(level));
        (start, self.entries(table, level).and_then(|entries| entries.get(range)).unwrap_or_default())
    }

    /// An error if a page at either end of the range sticks out of it. For who is inside.
    fn ends_between_pages(&self, span: Span) -> Result<(), RangeError> {
        for edge in [span.first, span.last] {
            if let Some(found) = self.walk(edge)
                && !span.contains(edge, found.page_shift)
            {
                return Err(RangeError::SplitsPage(edge));
            }
        }
        Ok(())
    }

    /// Takes every table below `table` off it, and adds them to `empty`.
    fn raze(&self, table: TableAddr, level: u8, empty: &mut EmptyTables) {
        for slot in self.entries(table, level).unwrap_or_default() {
            let bits = slot.load(Ordering::Relaxed);
            if let Entry::Table(below, _) = F::decode(bits, level) {
                self.raze(below, level - 1, empty);
            }
            if bits != 0 {
                slot.store(0, Ordering::Relaxed);
            }
        }
        self.arena.chain(empty, table);
    }
}

impl<F: Format, M: TableMemory> Drop for PageTable<F, M> {
    fn drop(&mut self) {
        // `&mut self`: nobody walks or changes it.
        let mut tables = EmptyTables::none();
        self.raze(self.root, F::LEVELS - 1, &mut tables);
        self.arena.give_back(tables);
    }
}

/// IOVAs, not none, `last` included.
#[derive(Clone, Copy)]
struct Span {
    first: u64,
    last: u64,
}

impl Span {
    /// `None` if the range is empty or reaches beyond the format.
    fn new<F: Format>(iova: u64, length: u64) -> Option<Self> {
        let last = iova.checked_add(length.checked_sub(1)?)?;
        (last >> F::iova_bits() == 0).then_some(Self { first: iova, last })
    }

    /// As [`Span::new`], of whole pages.
    fn of_pages<F: Format>(iova: u64, length: u64) -> Result<Self, RangeError> {
        let aligned = (iova | length).trailing_zeros() >= F::PAGE_SHIFT;
        Self::new::<F>(iova, length).filter(|_| aligned).ok_or(RangeError::OutOfRange {
            iova,
            length,
            bits: F::iova_bits(),
        })
    }
}

impl Span {
    /// All of the largest pages, made of several entries of `level`, that this touches.
    fn to_pages<F: Format>(self, level: u8) -> Self {
        let offset = F::page_sizes(level).checked_ilog2().map_or(0, |page_shift| !(!0 << page_shift));
        Self { first: self.first & !offset, last: self.last | offset }
    }

    /// Whether it has something of the 2^`shift` bytes that `iova` is in.
    fn touches(self, iova: u64, shift: u32) -> bool {
        let offset = !(!0 << shift);
        iova & !offset <= self.last && iova | offset >= self.first
    }

    /// Whether it has all of them.
    fn contains(self, iova: u64, shift: u32) -> bool {
        let offset = !(!0 << shift);
        iova & !offset >= self.first && iova | offset <= self.last
    }
}

/// Which entries `span` touches of a table of `level` that begins at `base`; it touches the table.
fn indices<F: Format>(level: u8, base: u64, span: Span) -> Range<usize> {
    let shift = F::shift(level);
    let first = span.first.saturating_sub(base) >> shift;
    let last = ((span.last - base) >> shift).min((1 << F::index_bits(level)) - 1);
    first as usize..last as usize + 1
}

#[inline(always)]
fn index<F: Format>(iova: u64, level: u8) -> usize {
    (iova >> F::shift(level)) as usize & ((1 << F::index_bits(level)) - 1)
}

/// What a table of `level` takes in the arena. A root that is smaller than the other tables takes as much as they do,
/// so that it comes from the same chunks.
fn table_size<F: Format>(level: u8) -> TableSize {
    TableSize::of_entries(F::index_bits(level).max(F::INDEX_BITS))
}
