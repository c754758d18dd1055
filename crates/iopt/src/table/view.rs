//! Walks: what a device's address leads to.
//!
//! A walk only loads, so it takes no lock, waits for nobody, and is safe over any contents: an address of a table
//! outside of the memory leads nowhere, and there are no more steps than levels.
//!
//! An IOTLB wants two more things of it. *Coalescing*: neighbouring entries that map contiguous memory are one larger
//! page to it, as processors do with PTEs. And *upper-level caches*: a walk that ended in a table can begin there for
//! all addresses that lead to the same table ([`Upper`]).

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Translation, index};
use crate::arena::TableAddr;
use crate::format::{Access, Entry, Format};

/// Most neighbouring entries that become one page to an IOTLB, as a power of two.
const COALESCED_BITS: u32 = 4;
const COALESCED: usize = 1 << COALESCED_BITS;

/// Where walks can begin: a table, and what the levels above it allow. For caches of upper levels.
///
/// It is good for all addresses that share the bits above [`Upper::span_bits`] with the one that it was had for, and
/// until something is unmapped there: an owner that waits for walks to end must drop what was cached as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upper {
    table: TableAddr,
    access: Access,
    level: u8,
    span_bits: u8,
}

impl Upper {
    /// log2 of the bytes of IOVA space that lie below the table.
    #[inline]
    #[must_use]
    pub fn span_bits(self) -> u32 {
        u32::from(self.span_bits)
    }

    #[inline(always)]
    pub(super) fn table_and_level(self) -> (TableAddr, u8) {
        (self.table, self.level)
    }
}

/// The leaf that a walk ended in.
#[derive(Clone, Copy)]
pub(super) struct Leaf {
    /// The table that it is in.
    pub(super) upper: Upper,
    /// What the entry held.
    pub(super) bits: u64,
    /// Where the page begins.
    pa: u64,
    pub(super) page_shift: u32,
    access: Access,
}

impl Leaf {
    #[inline(always)]
    pub(super) fn translation(&self, iova: u64) -> Translation {
        Translation {
            pa: self.pa | (iova & !(!0 << self.page_shift)),
            page_shift: self.page_shift,
            access: self.upper.access & self.access,
        }
    }
}

/// A page table as those see it who only read: entries, and where the root is among them.
///
/// The memory may be another process's: whatever it holds, a walk ends, and touches nothing but `entries`.
pub struct View<'a, F> {
    entries: &'a [AtomicU64],
    root: TableAddr,
    format: PhantomData<F>,
}

impl<F> Clone for View<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for View<'_, F> {}

impl<'a, F: Format> View<'a, F> {
    /// The table of format `F` whose root is at `root` in the memory that begins with `entries`.
    #[inline]
    #[must_use]
    pub fn new(entries: &'a [AtomicU64], root: TableAddr) -> Self {
        Self { entries, root, format: PhantomData }
    }

    /// Translates one address.
    #[inline]
    #[must_use]
    pub fn walk(&self, iova: u64) -> Option<Translation> {
        self.descend(self.top(), iova, |leaf| leaf.translation(iova))
    }

    /// As [`View::walk`], with the largest `page_shift` such that the neighbouring entries in the leaf's table, at most
    /// 16 of them, map that much as contiguously, with the same access. A page of several entries stays as it is.
    #[inline]
    #[must_use]
    pub fn walk_coalesced(&self, iova: u64) -> Option<Translation> {
        self.descend(self.top(), iova, |leaf| self.coalesced(&leaf, iova))
    }

    /// The table that holds the leaf for `iova`; `None` where [`View::walk`] finds nothing.
    #[inline]
    #[must_use]
    pub fn upper(&self, iova: u64) -> Option<Upper> {
        self.descend(self.top(), iova, |leaf| leaf.upper)
    }

    /// What [`View::walk`] gives, beginning at `upper`, which was had for an address of the same span.
    #[inline]
    #[must_use]
    pub fn walk_below(&self, upper: Upper, iova: u64) -> Option<Translation> {
        self.descend_from(upper, iova, |leaf| leaf.translation(iova))
    }

    /// What [`View::walk_coalesced`] gives, beginning at `upper`, which was had for an address of the same span.
    #[inline]
    #[must_use]
    pub fn walk_coalesced_below(&self, upper: Upper, iova: u64) -> Option<Translation> {
        self.descend_from(upper, iova, |leaf| self.coalesced(&leaf, iova))
    }

    /// The root, where every walk may begin.
    #[inline(always)]
    pub(super) fn top(&self) -> Upper {
        Upper { table: self.root, access: Access::all(), level: F::LEVELS - 1, span_bits: F::iova_bits() as u8 }
    }

    /// [`View::descend`] from a table of whatever level.
    #[inline(always)]
    pub(super) fn descend_from<R>(&self, upper: Upper, iova: u64, found: impl Fn(Leaf) -> R) -> Option<R> {
        if upper.level == 0 {
            // What nearly all are, without a loop.
            return self.descend(Upper { level: 0, ..upper }, iova, found);
        }
        self.descend(upper, iova, found)
    }

    /// What `found` makes of the leaf for `iova`. The levels are unrolled if the caller knows where it begins; level 0
    /// is apart, as its page size is known.
    #[inline(always)]
    pub(super) fn descend<R>(&self, from: Upper, iova: u64, found: impl Fn(Leaf) -> R) -> Option<R> {
        if iova >> F::iova_bits() != 0 {
            return None;
        }
        let Upper { mut table, access: above, .. } = from;
        // What all levels allow, see `Format::table_access`.
        let mut entries = !0;
        let upper = |table, level, entries: u64| Upper {
            table,
            access: above & F::table_access(entries ^ F::TABLE_DENIES),
            level,
            span_bits: (F::shift(level) + F::index_bits(level)) as u8,
        };
        for level in (1..=from.level).rev() {
            let bits = self.load(table, level, iova)?;
            match F::decode(bits, level) {
                Entry::Table(below, _) => {
                    table = below;
                    entries &= bits ^ F::TABLE_DENIES;
                }
                Entry::Leaf { pa, page_shift, access } => {
                    return Some(found(Leaf { upper: upper(table, level, entries), bits, pa, page_shift, access }));
                }
                Entry::Empty => return None,
            }
        }
        let bits = self.load(table, 0, iova)?;
        let Entry::Leaf { pa, page_shift, access } = F::decode(bits, 0) else { return None };
        Some(found(Leaf { upper: upper(table, 0, entries), bits, pa, page_shift, access }))
    }

    #[allow(
        unsafe_code,
        reason = "checking the table instead of the entry keeps the index out of the way of the next load"
    )]
    #[inline(always)]
    fn load(&self, table: TableAddr, level: u8, iova: u64) -> Option<u64> {
        // Asked for once: a format may be anybody's, and what is checked must be what is used.
        let count = 1usize.checked_shl(F::index_bits(level))?;
        let last = size_of_val(self.entries).checked_sub(count.checked_mul(size_of::<AtomicU64>())?)?;
        let address = table.0 & !(size_of::<AtomicU64>() as u64 - 1);
        if address > last as u64 {
            return None;
        }
        let index = (iova >> F::shift(level)) as usize & (count - 1);
        // SAFETY: `address` is a multiple of an entry's size, `count` entries lie between it and the end of
        // `self.entries`, and `index` is less than `count`.
        let entry = unsafe { &*self.entries.as_ptr().byte_add(address as usize).add(index) };
        Some(entry.load(Ordering::Acquire))
    }

    #[inline(always)]
    fn coalesced(&self, leaf: &Leaf, iova: u64) -> Translation {
        let mut translation = leaf.translation(iova);
        if leaf.page_shift == F::shift(leaf.upper.level) {
            translation.page_shift += self.neighbours(leaf, iova);
        }
        translation
    }

    /// How many neighbours of `leaf`, which is a page alone, continue it, as a power of two with itself.
    #[inline(always)]
    fn neighbours(&self, leaf: &Leaf, iova: u64) -> u32 {
        let Upper { level, table, .. } = leaf.upper;
        // What is aligned alike in both spaces.
        let most = ((iova ^ leaf.pa) >> leaf.page_shift).trailing_zeros().min(COALESCED_BITS);
        if most == 0 || F::index_bits(level) < COALESCED_BITS {
            return 0;
        }
        let index = index::<F>(iova, level);
        let own = index % COALESCED;
        let first = table.first_entry() + index - own;
        let Some(group) = self.entries.get(first..).and_then(|entries| entries.first_chunk::<COALESCED>()) else {
            return 0;
        };
        // The address field's lowest bit for this page size: what neighbours' entries differ by, and nothing else.
        let one = F::leaf(1 << leaf.page_shift, leaf.page_shift, Access::READ, level)
            ^ F::leaf(0, leaf.page_shift, Access::READ, level);
        let marks = F::ACCESSED | F::DIRTY;
        let first = (leaf.bits & !marks).wrapping_sub(one.wrapping_mul(own as u64));
        let differs = |slot: &AtomicU64, wanted: u64| (slot.load(Ordering::Acquire) & !marks) != wanted;
        // Most that do not coalesce at all end here.
        if differs(&group[own ^ 1], first.wrapping_add(one.wrapping_mul(own as u64 ^ 1))) {
            return 0;
        }
        let mut differing = 0u32;
        let mut wanted = first.wrapping_add(one.wrapping_mul(COALESCED as u64));
        for slot in group.iter().rev() {
            wanted = wanted.wrapping_sub(one);
            differing = differing << 1 | u32::from(differs(slot, wanted));
        }
        let continues = |bits: &u32| {
            let pages = 1 << bits;
            differing >> (own & !(pages - 1)) & ((1 << pages) - 1) == 0
        };
        (1..=most).take_while(continues).last().unwrap_or(0)
    }
}

/// Translates one address in the table of format `F` whose root is at `root` in the memory that begins with `entries`.
///
/// The memory may be another process's, and may hold anything: an address of a table outside of it, a loop of tables,
/// noise. What cannot be followed to a page is `None`.
#[inline]
#[must_use]
pub fn walk<F: Format>(entries: &[AtomicU64], root: TableAddr, iova: u64) -> Option<Translation> {
    View::<F>::new(entries, root).walk(iova)
}
