//! A port's cache of translations.
//!
//! Set-associative: a translation can be in one of two places, beside each other, and pushes out the older one. (With
//! four a hit takes longer.) All page sizes lie in the same sets; the place depends on the size, so a look-up tries the
//! sizes that there are, the one that was hit last first. The cache starts small and grows as long as translations push
//! each other out, up to [`MOST_SETS`].
//!
//! ```text
//!   tag     63     58 57                        11 10       0
//!          │ log2 of │ IOVA where the page begins │ domain  │     zero: nothing
//!          │ its size│                            │         │
//!   target │ where the page is in this process    │ access  │
//! ```
//!
//! A domain is one attachment of the port (see [`super::context`]). Only memory of this process is cached.

use std::hint::select_unpredictable;
use std::ptr;

use iopt::Access;

use crate::base::types::IovaRange;

/// The bits of a target that hold the access. Pages begin at multiples of 4.
const ACCESS_BITS: usize = Access::all().bits() as usize;
/// Translations in a set.
const WAYS: usize = 2;
/// How far pages' higher bits are shifted to choose among sets: the entries of a table.
const SPREAD: u32 = 9;
/// Sets in a new cache, which then has 4 KiB.
const FIRST_SETS: usize = 128;
/// 2^17 translations: 512 MiB in pages of 4 KiB; 2 MiB of memory for each port that uses so many.
const MOST_SETS: usize = 1 << 16;
/// Width of an IOVA that fits in a tag, and so of those that can be translated at all.
pub(crate) const IOVA_BITS: u32 = 58;
/// log2 of the smallest page of any format.
const PAGE_SHIFT: u32 = 11;
/// Domains go from 1 to this.
pub(crate) const LAST_DOMAIN: u64 = (1 << PAGE_SHIFT) - 1;

#[derive(Clone)]
#[repr(align(32))]
struct Set {
    tags: [u64; WAYS],
    /// The page's first byte, with the access, which is never empty, in the low bits.
    targets: [usize; WAYS],
}

impl Set {
    /// Puts a translation into the place of the oldest, and returns whether there was one.
    fn push(&mut self, tag: u64, target: usize) -> bool {
        let pushed_out = self.tags[WAYS - 1] != 0;
        self.tags.rotate_right(1);
        self.targets.rotate_right(1);
        (self.tags[0], self.targets[0]) = (tag, target);
        pushed_out
    }
}

/// A translation to be cached: a page that lies in this process as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    /// Where it begins, a multiple of 4.
    pub(crate) start: *mut u8,
    /// log2 of its bytes.
    pub(crate) shift: u32,
    pub(crate) access: Access,
}

pub(crate) struct Iotlb {
    sets: Box<[Set]>,
    /// Bit n: pages of 2^n bytes may be cached.
    sizes: u64,
    /// The size that was hit last.
    recent: Size,
    /// How many more translations may be pushed out until the cache is too small.
    patience: usize,
}

fn empty_sets(count: usize) -> Box<[Set]> {
    vec![Set { tags: [0; WAYS], targets: [0; WAYS] }; count].into_boxed_slice()
}

/// A size of pages, and what look-ups need of it, so that not each of them finds it out.
#[derive(Clone, Copy)]
struct Size {
    shift: u32,
    /// The bits of an address inside a page.
    offset: u64,
    /// The tag of the page that begins at zero, without a domain.
    tag: u64,
}

impl Size {
    #[inline(always)]
    fn of(shift: u32) -> Self {
        Self { shift, offset: offset_mask(shift), tag: tag(0, 0, shift) }
    }
}

#[inline]
fn offset_mask(shift: u32) -> u64 {
    !(!0 << shift)
}

#[inline]
fn tag(domain: u64, iova: u64, shift: u32) -> u64 {
    u64::from(shift) << IOVA_BITS | iova & !offset_mask(shift) | domain
}

/// The domain, the first and the last address that a tag stands for.
fn untag(tag: u64) -> (u64, IovaRange) {
    let start = tag & offset_mask(IOVA_BITS) & !offset_mask(PAGE_SHIFT);
    (tag & LAST_DOMAIN, IovaRange { start, last: start | offset_mask((tag >> IOVA_BITS) as u32) })
}

/// Look-ups of one domain among pages of one size: what they have in common, so that it is found out once for many.
pub(crate) struct Probe<'a> {
    sets: &'a [Set],
    shift: u32,
    /// The bits of an address inside a page.
    offset: u64,
    /// The tag of the page that begins at zero.
    tag: u64,
}

impl Probe<'_> {
    /// As [`Iotlb::lookup`].
    #[inline(always)]
    pub(crate) fn find(&self, iova: u64, access: Access) -> Option<(*mut u8, u64)> {
        if iova >> IOVA_BITS != 0 {
            return None;
        }
        let set = self.sets.get(set_of(self.tag, iova, self.shift, self.sets.len()))?;
        let wanted = iova & !self.offset | self.tag;
        // Without branches, as nothing predicts in which way it is.
        let target = (0..WAYS)
            .fold(0, |target, way| target | select_unpredictable(set.tags[way] == wanted, set.targets[way], 0));
        let (access, offset) = (usize::from(access.bits()), iova & self.offset);
        let start = ptr::with_exposed_provenance_mut::<u8>(target & !ACCESS_BITS);
        (target & access == access).then(|| (start.wrapping_add(offset as usize), self.offset + 1 - offset))
    }
}

/// Which of so many sets: neighbouring pages in neighbouring sets; what is further apart, and
/// the same pages of other domains, spread over them. Only the tag's low bits count, its domain.
#[inline(always)]
fn set_of(tag: u64, iova: u64, shift: u32, sets: usize) -> usize {
    let page = iova >> shift;
    (page ^ page >> SPREAD ^ tag) as usize & (sets - 1)
}

impl Iotlb {
    pub(crate) fn new() -> Self {
        Self { sets: empty_sets(FIRST_SETS), sizes: 0, recent: Size::of(PAGE_SHIFT), patience: FIRST_SETS }
    }

    fn set(&mut self, domain: u64, iova: u64, shift: u32) -> &mut Set {
        let index = set_of(domain, iova, shift, self.sets.len());
        &mut self.sets[index]
    }

    /// Where `iova` is in this process, and how many bytes from there on are, if that is
    /// cached and `access`, which is not empty, is allowed.
    #[inline(always)]
    pub(crate) fn lookup(&mut self, domain: u64, iova: u64, access: Access) -> Option<(*mut u8, u64)> {
        match self.recent(domain).find(iova, access) {
            Some(hit) => Some(hit),
            None => self.lookup_others(domain, iova, access),
        }
    }

    /// Look-ups among the pages of the size that was hit last.
    #[inline(always)]
    pub(crate) fn recent(&self, domain: u64) -> Probe<'_> {
        self.probe(domain, self.recent)
    }

    /// log2 of the bytes of the page that was found or cached last.
    pub(super) fn recent_shift(&self) -> u32 {
        self.recent.shift
    }

    #[inline(always)]
    fn probe(&self, domain: u64, size: Size) -> Probe<'_> {
        let Size { shift, offset, tag } = size;
        Probe { sets: &self.sets, shift, offset, tag: tag | domain }
    }

    fn lookup_others(&mut self, domain: u64, iova: u64, access: Access) -> Option<(*mut u8, u64)> {
        let mut others = self.sizes & !(1 << self.recent.shift);
        while others != 0 {
            let size = Size::of(others.trailing_zeros());
            if let Some(hit) = self.probe(domain, size).find(iova, access) {
                self.recent = size;
                return Some(hit);
            }
            others &= others - 1;
        }
        None
    }

    /// Caches the page that `iova` is in.
    pub(crate) fn insert(&mut self, domain: u64, iova: u64, page: Page) {
        let wanted = tag(domain, iova, page.shift);
        let target = page.start.expose_provenance() | usize::from(page.access.bits());
        self.sizes |= 1 << page.shift;
        self.recent = Size::of(page.shift);
        let set = self.set(domain, iova, page.shift);
        if let Some(way) = set.tags.iter().position(|&tag| tag == wanted) {
            set.targets[way] = target;
        } else if set.push(wanted, target) {
            self.patience = self.patience.saturating_sub(1);
        }
    }

    /// Whether translations push each other out so much that [`Iotlb::grow`] is worth it.
    #[inline(always)]
    pub(crate) fn is_crowded(&self) -> bool {
        self.patience == 0
    }

    /// Makes room for four times as many translations. Not to be called inside the gate: a thread that waits there must
    /// not wait for memory.
    #[cold]
    pub(crate) fn grow(&mut self) {
        let sets = empty_sets((self.sets.len() * 4).min(MOST_SETS));
        let old = std::mem::replace(&mut self.sets, sets);
        // At its largest, translations come and go.
        self.patience = if self.sets.len() < MOST_SETS { self.sets.len() } else { usize::MAX };
        // The oldest first, so that the order in the sets stays.
        let ways = (0..WAYS).rev().flat_map(|way| old.iter().map(move |set| (set.tags[way], set.targets[way])));
        for (tag, target) in ways.filter(|&(tag, _)| tag != 0) {
            let (domain, page) = untag(tag);
            self.set(domain, page.start, (tag >> IOVA_BITS) as u32).push(tag, target);
        }
    }

    /// Forgets the pages of `domain` that have an address in `range`.
    pub(crate) fn invalidate(&mut self, domain: u64, range: IovaRange) {
        let Some(last) = range.last.min(offset_mask(IOVA_BITS)).checked_sub(range.start) else { return };
        let last = range.start + last;
        let mut sizes = self.sizes;
        while sizes != 0 {
            let shift = sizes.trailing_zeros();
            sizes &= sizes - 1;
            let (first_page, last_page) = (range.start >> shift, last >> shift);
            if last_page - first_page >= self.sets.len() as u64 {
                // As many pages as there are sets: look at what is there instead of for what could be.
                return self.forget(|other, page| other == domain && page.overlaps(&range));
            }
            for page in first_page..=last_page {
                let (iova, wanted) = (page << shift, tag(domain, page << shift, shift));
                for tag in &mut self.set(domain, iova, shift).tags {
                    if *tag == wanted {
                        *tag = 0;
                    }
                }
            }
        }
    }

    fn forget(&mut self, which: impl Fn(u64, IovaRange) -> bool) {
        for tag in self.sets.iter_mut().flat_map(|set| &mut set.tags) {
            let (domain, page) = untag(*tag);
            if *tag != 0 && which(domain, page) {
                *tag = 0;
            }
        }
    }

    /// Forgets everything.
    pub(crate) fn flush(&mut self) {
        self.forget(|_, _| true);
        self.sizes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: u64 = 1;
    /// In which pages have places far from those of [`DOMAIN`].
    const OTHER: u64 = 0x2c5;

    /// A target that no test follows.
    fn target(n: u64) -> *mut u8 {
        ptr::without_provenance_mut((n as usize) << 12)
    }

    fn page(n: u64, shift: u32) -> Page {
        Page { start: target(n), shift, access: Access::all() }
    }

    fn found(iotlb: &mut Iotlb, iova: u64) -> Option<(u64, u64)> {
        iotlb.lookup(DOMAIN, iova, Access::READ).map(|(start, length)| (start.addr() as u64, length))
    }

    #[test]
    fn a_page_of_any_size_is_found_from_each_of_its_addresses_and_no_other() {
        for shift in 12..57 {
            let mut iotlb = Iotlb::new();
            let size = 1u64 << shift;
            iotlb.insert(DOMAIN, size + size / 2, page(1, shift));
            for offset in [0, 1, size / 2, size - 1] {
                assert_eq!(found(&mut iotlb, size + offset), Some((0x1000 + offset, size - offset)));
            }
            assert_eq!((found(&mut iotlb, size - 1), found(&mut iotlb, 2 * size)), (None, None));
            assert_eq!(iotlb.lookup(OTHER, size, Access::READ), None, "another domain");
        }
    }

    #[test]
    fn what_is_not_allowed_is_a_miss_and_a_better_translation_takes_its_place() {
        let mut iotlb = Iotlb::new();
        iotlb.insert(DOMAIN, 0x1000, Page { access: Access::READ, ..page(1, 12) });
        assert!(iotlb.lookup(DOMAIN, 0x1000, Access::READ).is_some());
        assert!(iotlb.lookup(DOMAIN, 0x1000, Access::WRITE).is_none());
        iotlb.insert(DOMAIN, 0x1000, page(2, 12));
        for access in [Access::READ, Access::WRITE, Access::all()] {
            assert_eq!(iotlb.lookup(DOMAIN, 0x1000, access).unwrap().0, target(2));
        }
    }

    #[test]
    fn a_range_is_forgotten_in_every_size_and_nothing_else_is() {
        let ranges = [(0x20_0000, 0x1000), (0x1f_f000, 0x2000), (0, 0x1000), (0, 1 << 40), (0x40_0000, 0x20_0000)];
        for (start, length) in ranges {
            let range = IovaRange::new(start, length).unwrap();
            let mut iotlb = Iotlb::new();
            // With room for all of them.
            (0..3).for_each(|_| iotlb.grow());
            let pages: Vec<_> = (0..32)
                .map(|n| (n * 0x1000, 12))
                .chain([0x1f_f000, 0x20_0000, 0x20_1000].map(|iova| (iova, 12)))
                .chain([0x30_0000, 0x31_0000].map(|iova| (iova, 16)))
                .chain([0x40_0000, 0x60_0000].map(|iova| (iova, 21)))
                .chain([(1 << 30, 30)])
                .collect();
            for &(iova, shift) in &pages {
                iotlb.insert(DOMAIN, iova, page(1, shift));
                iotlb.insert(OTHER, iova, page(1, shift));
            }
            iotlb.invalidate(DOMAIN, range);
            for (iova, shift) in pages {
                let gone = range.overlaps(&IovaRange { start: iova, last: iova + offset_mask(shift) });
                assert_eq!(found(&mut iotlb, iova).is_none(), gone, "{iova:#x} of 2^{shift}, {range}");
                assert!(iotlb.lookup(OTHER, iova, Access::READ).is_some(), "the other domain's stay");
            }
        }
    }

    #[test]
    fn it_is_bounded_evicts_and_grows_when_it_is_crowded() {
        let mut iotlb = Iotlb::new();
        for n in 0..1 << 18 {
            iotlb.insert(DOMAIN, n << 12, page(n + 1, 12));
            assert!(found(&mut iotlb, n << 12).is_some(), "the newest is never pushed out by itself");
            if iotlb.is_crowded() {
                iotlb.grow();
            }
        }
        assert_eq!(iotlb.sets.len(), MOST_SETS);
        let kept = (0..1 << 18).filter(|n| found(&mut iotlb, n << 12).is_some()).count();
        assert!(kept >= WAYS * MOST_SETS * 9 / 10, "{kept} translations");
        // Wherever they are now, they are right.
        for n in 0..1 << 18 {
            assert!(found(&mut iotlb, n << 12).is_none_or(|(start, _)| start == (n + 1) << 12));
        }
        iotlb.flush();
        assert!((0..1 << 18).all(|n| found(&mut iotlb, n << 12).is_none()));
    }

    #[test]
    fn as_many_neighbours_as_fit_do_not_push_each_other_out() {
        let mut iotlb = Iotlb::new();
        let most = (WAYS * FIRST_SETS) as u64;
        let base = 0x1234_5000_0000u64;
        (0..most).for_each(|n| iotlb.insert(DOMAIN, base + (n << 12), page(n + 1, 12)));
        assert!((0..most).all(|n| found(&mut iotlb, base + (n << 12)).is_some()));
    }
}
