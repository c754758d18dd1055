//! Page tables of every format against the simplest thing that could be right: the list of what was done.

// Miri takes minutes over tables of 512 entries; tests/small_tables.rs is for it.
#![cfg(not(miri))]
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iopt::format::{
    AmdV1, Armv8Stage1, Armv8Stage2, Mock, RiscV, Sv39, Sv48, Sv57, VtdLevels, VtdSecondStage,
    VtdSecondStageFiveLevels, X86_64, X86_64FiveLevels,
};
use iopt::{Access, Arena, DirtyWord, EmptyTables, Entry, Format, Leaves, MapError, PageTable, RangeError};
use proptest::prelude::*;

const PAGE: u64 = 4096;
/// Where the steps map, in pages: small enough for every format, large enough for its largest pages but the topmost.
const SPACE: u64 = 1 << 24;

/// Most pages of the smallest size that a limit on the size of leaves may bring about in a step.
const MOST_SMALL: u64 = 4096;

/// In pages of the format.
#[derive(Debug, Clone)]
enum Step {
    Map { page: u64, to: u64, pages: u64, access: Access, largest: Option<u32> },
    Unmap { page: u64, pages: u64 },
    Protect { page: u64, pages: u64, access: Access },
    Split { page: u64, pages: u64, largest: u32 },
    Access { page: u64, access: Access },
    ReadDirty { page: u64, pages: u64, clear: bool },
}

/// Few, near addresses, so that sequences collide, around the edges of tables and pages.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0..64u64, 500..530u64, (0..8u64).prop_map(|n| n * 512), (0..3u64).prop_map(|n| n << 18), 0..SPACE / 4]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1..40u64, Just(512), Just(1024), 500..1600u64, Just(8192)]
}

/// Where from, where to and how many: anything, or aligned so that large pages fit.
fn range() -> impl Strategy<Value = (u64, u64, u64)> {
    let large = (4..20u32, 0..8u64, 0..8u64, 1..5u64, prop_oneof![4 => Just(0), 1 => 0..20u64])
        .prop_map(|(n, from, to, pages, more)| (from << n, to << n, (pages << n) + more));
    prop_oneof![(address(), address(), length()), large]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::READ), Just(Access::WRITE), Just(Access::all())]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (range(), access(), prop::option::of(0..20u32)).prop_map(|((page, to, pages), access, largest)| {
            Step::Map { page, to, pages, access, largest }
        }),
        4 => range().prop_map(|(page, _, pages)| Step::Unmap { page, pages }),
        3 => (range(), access()).prop_map(|((page, _, pages), access)| Step::Protect { page, pages, access }),
        3 => (range(), 0..20u32).prop_map(|((page, _, pages), largest)| Step::Split { page, pages, largest }),
        4 => (address(), access()).prop_map(|(page, access)| Step::Access { page, access }),
        2 => (range(), any::<bool>()).prop_map(|((page, _, pages), clear)| Step::ReadDirty { page, pages, clear }),
    ]
}

/// What was done to a range.
#[derive(Debug, Clone, Copy)]
enum Done {
    /// What its first page was mapped to.
    Mapped(u64, Access),
    Unmapped,
    Protected(Access),
}

/// Pages, as one bit of the log has them.
type Granule = Range<u64>;

/// Everything that was done, in order.
#[derive(Default)]
struct Model {
    done: Vec<(Range<u64>, Done)>,
    /// Pages that the log must tell of, each in the granule that it was logged with.
    logged: Vec<(Range<u64>, Granule)>,
    /// What it may tell of: pages that were unmapped only in part of a granule are told of still.
    may_be_logged: Vec<Granule>,
}

impl Model {
    fn find(&self, page: u64) -> Option<(u64, Access)> {
        let mut changed = None;
        for (range, done) in self.done.iter().rev().filter(|(range, _)| range.contains(&page)) {
            match *done {
                Done::Mapped(to, access) => return Some((to + (page - range.start), changed.unwrap_or(access))),
                Done::Unmapped => return None,
                Done::Protected(access) => changed = changed.or(Some(access)),
            }
        }
        None
    }

    /// Where what is mapped can begin or end.
    fn edges(&self) -> impl Iterator<Item = u64> {
        self.done.iter().flat_map(|(range, _)| [range.start, range.end])
    }

    fn first_mapped(&self, range: Range<u64>) -> Option<u64> {
        let places = std::iter::once(range.start).chain(self.edges()).filter(|place| range.contains(place));
        places.filter(|&page| self.find(page).is_some()).min()
    }

    fn unmap(&mut self, range: &Range<u64>) {
        let left = |(logged, granule): (Range<u64>, Granule)| {
            let before = logged.start..logged.end.min(range.start);
            let after = logged.start.max(range.end)..logged.end;
            [before, after].into_iter().filter(|part| !part.is_empty()).map(move |part| (part, granule.clone()))
        };
        self.logged = std::mem::take(&mut self.logged).into_iter().flat_map(left).collect();
        self.may_be_logged.retain(|granule| !contains(range, granule));
        self.done.push((range.clone(), Done::Unmapped));
    }

    /// What reading `range` must tell, and may.
    fn check_read(&self, range: &Range<u64>, told: &[Granule]) {
        for granule in told {
            assert!(self.may_be_logged.contains(granule), "{granule:x?} was not written to, or read since");
            assert!(touches(granule, range), "{granule:x?} was not asked for");
        }
        for (logged, granule) in &self.logged {
            assert!(!touches(logged, range) || told.contains(granule), "{logged:x?} was written to");
        }
    }

    fn clear(&mut self, range: &Range<u64>) {
        self.logged.retain(|(_, granule)| !contains(range, granule));
        self.may_be_logged.retain(|granule| !contains(range, granule));
    }
}

fn contains(range: &Range<u64>, part: &Range<u64>) -> bool {
    range.start <= part.start && part.end <= range.end
}

fn touches(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// A table of one format, the model of it, and where in the two address spaces the steps take place.
struct Pair<F: Format> {
    arena: Arc<Arena>,
    table: PageTable<F>,
    model: Model,
    iova: u64,
    pa: u64,
}

impl<F: Format> Pair<F> {
    fn new(high: bool) -> Self {
        let arena = Arc::new(Arena::new(1 << 18));
        let table = PageTable::new(arena.clone()).unwrap();
        let top = |bits: u32| if high { (1 << bits) - (SPACE << F::PAGE_SHIFT) } else { 0 };
        Self { arena, table, model: Model::default(), iova: top(F::iova_bits()), pa: top(F::PA_BITS) }
    }

    fn iova(&self, page: u64) -> u64 {
        self.iova + (page << F::PAGE_SHIFT)
    }

    fn map(&mut self, page: u64, to: u64, pages: u64, access: Access, largest: u32) {
        let (iova, pa, length) = (self.iova(page), self.pa + (to << F::PAGE_SHIFT), pages << F::PAGE_SHIFT);
        let mut undone = EmptyTables::none();
        let result = self.table.map(iova, pa, length, Leaves { access, largest }, &mut undone);
        self.table.free(undone);
        if let Some(mapped) = self.model.first_mapped(page..page + pages) {
            assert_eq!(result, Err(MapError::Occupied(self.iova(mapped))));
            return;
        }
        assert_eq!(result, Ok(()));
        self.model.done.push((page..page + pages, Done::Mapped(to, granted::<F>(access))));
        let largest = page_sizes::<F>()
            .filter(|&n| n <= largest.max(F::PAGE_SHIFT) && (iova | pa).is_multiple_of(1 << n) && length >= 1 << n)
            .max();
        assert_eq!(self.table.walk(iova).map(|found| found.page_shift), largest, "the largest page that fits");
    }

    fn unmap(&mut self, page: u64, pages: u64) {
        let mut empty = EmptyTables::none();
        let result = self.table.unmap(self.iova(page), pages << F::PAGE_SHIFT, &mut empty);
        if self.is_whole(result, page, pages) {
            self.model.unmap(&(page..page + pages));
        } else {
            assert!(empty.is_empty());
        }
        self.arena.free(empty);
    }

    fn protect(&mut self, page: u64, pages: u64, access: Access) {
        let result = self.table.protect(self.iova(page), pages << F::PAGE_SHIFT, access);
        if self.is_whole(result, page, pages) {
            self.model.done.push((page..page + pages, Done::Protected(granted::<F>(access))));
        }
    }

    /// Whether it was done; if not, a page must stick out of the range.
    fn is_whole(&self, result: Result<(), RangeError>, page: u64, pages: u64) -> bool {
        let (iova, length) = (self.iova(page), pages << F::PAGE_SHIFT);
        match result {
            Ok(()) => true,
            Err(RangeError::SplitsPage(edge)) => {
                let size = 1 << self.table.walk(edge).unwrap().page_shift;
                let start = edge / size * size;
                assert!(start < iova || start + size > iova + length, "{edge:#x} is in a page that sticks out");
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn split(&mut self, page: u64, pages: u64, largest: u32) {
        let (iova, length) = (self.iova(page), pages << F::PAGE_SHIFT);
        // What a page that only touches the range leaves alone.
        let beside = [iova.wrapping_sub(1), iova + length].map(|at| (at, self.table.walk(at)));
        let edges = [iova, iova + length - 1].map(|at| (at, self.table.walk(at)));
        self.table.split(iova, length, largest).unwrap();
        for (start, found) in self.table.iter(iova, length) {
            assert!(found.page_shift <= largest.max(F::PAGE_SHIFT), "{start:#x} has 2^{}", found.page_shift);
        }
        for (at, before) in beside {
            let size = before.map_or(0, |found| found.page_shift);
            if (at ^ iova) >> size != 0 && (at ^ (iova + length - 1)) >> size != 0 {
                assert_eq!(self.table.walk(at), before, "no more is split than touches the range");
            }
        }
        for (at, found) in edges.into_iter().filter_map(|(at, found)| found.map(|found| (at, found))) {
            let (first, last) = block(at, found.page_shift);
            for (start, part) in self.table.iter(first, last - first + 1).take(MOST_SMALL as usize) {
                let larger = page_sizes::<F>().find(|&n| n > part.page_shift).map(|n| block(start, n));
                let beside = |(first, last)| last < iova || first >= iova + length;
                let whole = part.page_shift == found.page_shift || larger.is_none_or(|larger| !beside(larger));
                assert!(whole || !beside(block(start, part.page_shift)), "{start:#x} has only 2^{}", part.page_shift);
            }
        }
    }

    /// An access by a device.
    fn access(&mut self, page: u64, access: Access, tracking: bool) {
        let iova = self.iova(page);
        let walked = self.table.walk(iova);
        assert_eq!(self.table.walk_marking(iova, access), walked);
        assert_eq!(self.table.walk(iova), walked, "marks are no part of the translation");
        let Some(found) = walked else { return };
        if tracking && access.contains(Access::WRITE) && found.access.contains(access) {
            let level = (0..F::LEVELS).rev().find(|&level| F::shift(level) <= found.page_shift).unwrap();
            let granule = 1 << (F::shift(level) - F::PAGE_SHIFT);
            let pages = 1 << (found.page_shift - F::PAGE_SHIFT);
            let first = page / pages * pages;
            for start in (first..first + pages).step_by(granule as usize) {
                let granule = start..start + granule;
                if !self.model.may_be_logged.contains(&granule) {
                    self.model.may_be_logged.push(granule.clone());
                }
                self.model.logged.push((granule.clone(), granule));
            }
        }
    }

    fn read_dirty(&mut self, page: u64, pages: u64, clear: bool) {
        let mut told = Vec::new();
        let visit = |DirtyWord { iova, page_shift, bits }: DirtyWord| {
            assert_ne!(bits, 0);
            let granule = 1 << (page_shift - F::PAGE_SHIFT);
            let first = iova.wrapping_sub(self.iova) >> F::PAGE_SHIFT;
            told.extend((0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| {
                let start = first + bit * granule;
                start..start + granule
            }));
        };
        self.table.read_dirty(self.iova(page), pages << F::PAGE_SHIFT, clear, visit).unwrap();
        self.model.check_read(&(page..page + pages), &told);
        if clear {
            self.model.clear(&(page..page + pages));
        }
    }

    fn agrees(&self, page: u64) {
        let offset = (1 << F::PAGE_SHIFT) - 7;
        let iova = self.iova(page) + offset;
        let found = self.table.walk(iova);
        let wanted = self.model.find(page).map(|(to, access)| (self.pa + (to << F::PAGE_SHIFT) + offset, access));
        assert_eq!(found.map(|t| (t.pa, t.access)), wanted, "page {page:#x}");
        assert_eq!(iopt::walk::<F>(iopt::TableMemory::entries(self.arena.memory()), self.table.root(), iova), found);
        let Some((found, to)) = found.zip(self.model.find(page)) else {
            assert_eq!((self.table.upper(iova), self.table.walk_coalesced(iova)), (None, None));
            return;
        };
        // The whole page is mapped as its middle is.
        let pages = 1 << (found.page_shift - F::PAGE_SHIFT);
        let first = page / pages * pages;
        for other in [first, first + pages - 1] {
            assert_eq!(self.model.find(other), Some((to.0 + other - page, to.1)), "page {other:#x} of {page:#x}");
        }
        self.coalesces(iova, found.page_shift);
        self.resumes_below(iova);
    }

    /// The coalesced walk tells of as much as the neighbouring entries map contiguously, and of no more.
    fn coalesces(&self, iova: u64, page_shift: u32) {
        let found = self.table.walk(iova).unwrap();
        let coalesced = self.table.walk_coalesced(iova).unwrap();
        assert_eq!((coalesced.pa, coalesced.access), (found.pa, found.access));
        let continues = |shift: u32| {
            let start = iova >> shift << shift;
            (found.pa ^ iova).trailing_zeros() >= shift
                && (0..1 << (shift - page_shift)).all(|number| {
                    let other = start + (number << page_shift);
                    self.table.walk(other).is_some_and(|page| {
                        page.page_shift == page_shift
                            && page.access == found.access
                            && page.pa.wrapping_sub(other) == found.pa.wrapping_sub(iova)
                    })
                })
        };
        let level = (0..F::LEVELS).find(|&level| F::shift(level) == page_shift);
        let most = level.map_or(0, |level| if F::index_bits(level) < 4 { 0 } else { 4 });
        let wanted = (page_shift..=page_shift + most).take_while(|&shift| continues(shift)).last();
        assert_eq!(Some(coalesced.page_shift), wanted, "{iova:#x} in 2^{page_shift}");
    }

    /// A walk that begins in the lowest table gives what a whole one does, for all addresses below that table.
    fn resumes_below(&self, iova: u64) {
        let upper = self.table.upper(iova).unwrap();
        let mask = (1 << upper.span_bits()) - 1;
        for other in [iova, iova & !mask, iova | mask, iova ^ (mask & 0x5555_5555_5555_5000)] {
            assert_eq!(self.table.walk_below(upper, other), self.table.walk(other));
            assert_eq!(self.table.walk_coalesced_below(upper, other), self.table.walk_coalesced(other));
            assert_eq!(self.table.walk_marking_below(upper, other, Access::empty()), self.table.walk(other));
        }
    }

    fn agrees_around(&self, page: u64, pages: u64) {
        for near in [page.wrapping_sub(1), page, page + 1, page + pages / 2, page + pages - 1, page + pages] {
            if near < SPACE {
                self.agrees(near);
            }
        }
    }

    /// The iterator gives all that is mapped, in order.
    fn iterates_over(&self, page: u64, pages: u64) {
        let mut end = page;
        for (start, found) in self.table.iter(self.iova(page), pages << F::PAGE_SHIFT) {
            let first = start.wrapping_sub(self.iova) >> F::PAGE_SHIFT;
            assert_eq!(Some(found), self.table.walk(start));
            assert!(first >= end || end == page, "in order");
            assert!(first < page + pages);
            assert_eq!(self.model.first_mapped(end..first), None, "nothing is left out");
            end = first + (1 << (found.page_shift - F::PAGE_SHIFT));
        }
        assert_eq!(self.model.first_mapped(end..page + pages), None, "nothing is left out");
    }
}

/// The first and the last byte of the 2^`shift` that `at` is in.
fn block(at: u64, shift: u32) -> (u64, u64) {
    (at & (!0 << shift), at | !(!0 << shift))
}

fn page_sizes<F: Format>() -> impl Iterator<Item = u32> {
    (0..F::LEVELS).flat_map(|level| (0..64).filter(move |n| F::page_sizes(level) >> n & 1 == 1))
}

/// As a limit on leaves, in such a way that a step takes a moment at most.
fn limit<F: Format>(largest: u32, pages: u64) -> u32 {
    F::PAGE_SHIFT + largest.max((pages / MOST_SMALL).checked_ilog2().map_or(0, |n| n + 1))
}

/// What a format makes of `access`: some cannot say write without read.
fn granted<F: Format>(access: Access) -> Access {
    let Entry::Leaf { access: granted, .. } = F::decode(F::leaf(0, F::PAGE_SHIFT, access, 0), 0) else {
        panic!("a leaf is a leaf")
    };
    assert!(granted.contains(access));
    granted
}

fn agrees_with_a_model<F: Format>(steps: Vec<Step>, high: bool, tracking: bool, elsewhere: &[u64]) {
    let mut pair = Pair::<F>::new(high);
    if tracking {
        pair.table.start_tracking().unwrap();
    }
    for step in steps {
        let (page, pages) = match step {
            Step::Map { page, to, pages, access, largest } => {
                let largest = largest.map_or(u32::MAX, |largest| limit::<F>(largest, pages));
                pair.map(page, to, pages, access, largest);
                (page, pages)
            }
            Step::Unmap { page, pages } => {
                pair.unmap(page, pages);
                (page, pages)
            }
            Step::Protect { page, pages, access } => {
                pair.protect(page, pages, access);
                (page, pages)
            }
            Step::Split { page, pages, largest } => {
                pair.split(page, pages, limit::<F>(largest, pages));
                (page, pages)
            }
            Step::Access { page, access } => {
                pair.access(page, access, tracking);
                (page, 1)
            }
            Step::ReadDirty { page, pages, clear } => {
                pair.read_dirty(page, pages, clear);
                (page, pages)
            }
        };
        pair.agrees_around(page, pages);
        pair.iterates_over(page, pages.min(MOST_SMALL));
    }
    pair.read_dirty(0, SPACE, true);
    pair.read_dirty(0, SPACE, false);
    for edge in pair.model.edges() {
        pair.agrees_around(edge, 1);
    }
    for &iova in elsewhere {
        let page = (iova.wrapping_sub(pair.iova)) >> F::PAGE_SHIFT;
        if page < SPACE {
            pair.agrees(page);
        } else {
            assert_eq!(pair.table.walk(iova), None, "{iova:#x} is outside of all that was mapped");
        }
    }
    drop(pair.table);
    assert_eq!(pair.arena.in_use(), 0, "every table goes back");
}

/// Addresses of every length, those just beyond the formats' ranges included.
fn anywhere() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64u32).prop_map(|(iova, shift)| iova >> shift)
}

/// A format has no page that begins at `iova` and `pa` and does not end within its tables.
fn refuses_what_is_beyond_it<F: Format>() {
    let arena = Arc::new(Arena::new(1 << 12));
    let table = PageTable::<F>::new(arena.clone()).unwrap();
    let page = 1 << F::PAGE_SHIFT;
    let (iovas, pas) = (1u64 << F::iova_bits(), 1u64 << F::PA_BITS);
    let mut empty = EmptyTables::none();
    for (iova, pa, length) in [
        (iovas, 0, page),
        (iovas - page, 0, 2 * page),
        (0, pas, page),
        (0, pas - page, 2 * page),
        (page.wrapping_neg(), 0, page),
        (page.wrapping_neg(), 0, 2 * page),
        (0, 0, 0),
    ] {
        let refused = table.map(iova, pa, length, Access::READ, &mut empty);
        assert!(matches!(refused, Err(MapError::OutOfRange { .. })), "{iova:#x} {pa:#x} {length:#x}");
    }
    for (iova, pa, length) in [(1, 0, page), (0, 1, page), (0, 0, page / 2)] {
        let refused = table.map(iova, pa, length, Access::READ, &mut empty);
        assert!(matches!(refused, Err(MapError::Unaligned { .. })), "{iova:#x} {pa:#x} {length:#x}");
    }
    assert!(matches!(table.unmap(iovas, page, &mut empty), Err(RangeError::OutOfRange { .. })));
    assert!(table.map(0, 0, page, Access::empty(), &mut empty).is_err());
    // What fits exactly is mapped, and does not show up anywhere beyond.
    table.map(iovas - page, pas - page, page, Access::READ, &mut empty).unwrap();
    assert_eq!(table.walk(iovas - 1).unwrap().pa, pas - 1);
    for iova in [iovas, 2 * iovas - 1, u64::MAX, u64::MAX << F::iova_bits(), 0] {
        assert_eq!(table.walk(iova), None, "{iova:#x}");
    }
    assert!(empty.is_empty());
}

/// Every number of tables short of what is needed gives the error, and leaves no table behind.
fn fails_whole_when_tables_run_out<F: Format>() {
    let page = 1u64 << F::PAGE_SHIFT;
    // Alone in its table at every level, at the end of it, so that the next page needs all tables afresh.
    let iova = (1 << (F::iova_bits() - 1)) - page;
    let needed = 2 * usize::from(F::LEVELS - 1);
    for available in 0..=needed {
        // Two chunks, as a root may come from one of its own.
        let arena = Arc::new(Arena::new(1024));
        let table = PageTable::<F>::new(arena.clone()).unwrap();
        let others = exhaust::<F>(&arena, available);
        let before = arena.in_use();
        let mut undone = EmptyTables::none();
        let result = table.map(iova, page, 2 * page, Access::all(), &mut undone);
        if available == needed {
            assert_eq!(result, Ok(()));
            assert_eq!(arena.in_use(), before + needed);
        } else {
            assert_eq!(result, Err(MapError::OutOfTables), "with {available} of {needed}");
            arena.free(undone);
            assert_eq!(arena.in_use(), before, "what the failed call made is gone");
            assert_eq!((table.walk(iova), table.walk(iova + page)), (None, None));
        }
        drop(others);
    }
}

/// Takes all tables but `left` by mapping single pages far from each other.
fn exhaust<F: Format>(arena: &Arc<Arena>, left: usize) -> PageTable<F> {
    let table = PageTable::<F>::new(arena.clone()).unwrap();
    let page = 1u64 << F::PAGE_SHIFT;
    let mut taken = Vec::new();
    for number in 0.. {
        let iova = number << F::shift(1);
        let before = arena.in_use();
        let mut undone = EmptyTables::none();
        let result = table.map(iova, 0, page, Access::READ, &mut undone);
        arena.free(undone);
        match result {
            Ok(()) if arena.in_use() - before == 1 => taken.push(iova),
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error, MapError::OutOfTables);
                break;
            }
        }
    }
    let mut freed = 0;
    while freed < left {
        let mut empty = EmptyTables::none();
        let before = arena.in_use();
        table.unmap(taken.pop().unwrap(), page, &mut empty).unwrap();
        arena.free(empty);
        freed += before - arena.in_use();
    }
    assert_eq!(freed, left);
    table
}

/// Every page size, mapped alone, is one page to a walk, and half of it is not unmapped.
fn every_page_size_is_one_page<F: Format>() {
    let arena = Arc::new(Arena::new(1 << 12));
    let table = PageTable::<F>::new(arena.clone()).unwrap();
    let page = 1 << F::PAGE_SHIFT;
    for level in 0..F::LEVELS {
        for shift in (0..64).filter(|n| F::page_sizes(level) >> n & 1 == 1) {
            let size = 1u64 << shift;
            assert!(shift >= F::shift(level) && shift < F::shift(level + 1), "level {level} has 2^{shift}");
            if shift >= F::iova_bits().min(F::PA_BITS) {
                continue;
            }
            let start = (1 << F::iova_bits()) - size;
            let mut empty = EmptyTables::none();
            table.map(start, size, size, Access::READ, &mut empty).unwrap();
            for inside in [start, start + size / 2, start + size - 1] {
                let found = table.walk(inside).unwrap();
                assert_eq!((found.pa, found.page_shift), (size + (inside - start), shift));
            }
            if size > page {
                assert_eq!(table.unmap(start, size / 2, &mut empty), Err(RangeError::SplitsPage(start)));
                let half = start + size / 2;
                assert_eq!(table.unmap(half, size / 2, &mut empty), Err(RangeError::SplitsPage(half)));
                let last = start + size - page;
                let occupied = table.map(last, 0, page, Access::READ, &mut empty);
                assert_eq!(occupied, Err(MapError::Occupied(last)));
            }
            assert!(empty.is_empty());
            table.unmap(start, size, &mut empty).unwrap();
            arena.free(empty);
            assert_eq!((table.walk(start), table.walk(start + size - 1)), (None, None));
            assert_eq!(arena.in_use(), 1, "only the root is left");
        }
    }
}

/// While one thread maps and unmaps a range of all page sizes, others find it whole, or nothing, and its neighbours
/// always.
fn walks_while_another_maps<F: Format>() {
    let page = 1u64 << F::PAGE_SHIFT;
    // From just before a page of level 1 to just after it.
    let large = 1u64 << F::shift(1);
    let (start, length) = (large - 16 * page, large + 32 * page);
    let arena = Arc::new(Arena::new(1 << 12));
    let table = PageTable::<F>::new(arena.clone()).unwrap();
    for neighbour in [start - page, start + length] {
        table.map(neighbour, neighbour, page, Access::READ, &mut EmptyTables::none()).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in (0u64..).take_while(|_| !done.load(Ordering::Relaxed)) {
                let iova = start + turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) % length;
                if let Some(found) = table.walk(iova) {
                    assert_eq!((found.pa, found.access), (iova + 4 * large, Access::READ));
                }
                for neighbour in [start - page, start + length] {
                    assert_eq!(table.walk(neighbour).map(|found| found.pa), Some(neighbour));
                }
            }
        });
        // The emptied tables go back only when no walk runs any more.
        let mut empty = EmptyTables::none();
        for _ in 0..200 {
            table.map(start, start + 4 * large, length, Access::READ, &mut empty).unwrap();
            let overlapping = table.map(start - page, 0, 2 * page, Access::all(), &mut empty);
            assert_eq!(overlapping, Err(MapError::Occupied(start - page)));
            table.unmap(start, length, &mut empty).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        // Dropping them keeps them from being used again.
        let _ = empty;
    });
}

macro_rules! for_every_format {
    ($($name:ident: $format:ty,)*) => {$(
        mod $name {
            use super::*;

            proptest! {
                #[test]
                fn agrees_with_a_model(
                    steps in prop::collection::vec(step(), 1..24),
                    high: bool,
                    tracking: bool,
                    elsewhere in prop::collection::vec(anywhere(), 32),
                ) {
                    super::agrees_with_a_model::<$format>(steps, high, tracking, &elsewhere);
                }
            }

            #[test]
            fn refuses_what_is_beyond_it() {
                super::refuses_what_is_beyond_it::<$format>();
            }

            #[test]
            fn fails_whole_when_tables_run_out() {
                super::fails_whole_when_tables_run_out::<$format>();
            }

            #[test]
            fn walks_while_another_maps() {
                super::walks_while_another_maps::<$format>();
            }

            #[test]
            fn every_page_size_is_one_page() {
                super::every_page_size_is_one_page::<$format>();
            }
        }
    )*};
}

for_every_format! {
    vtd_second_stage_3_levels: VtdLevels<3>,
    vtd_second_stage_4_levels: VtdSecondStage,
    vtd_second_stage_5_levels: VtdSecondStageFiveLevels,
    x86_64_4_levels: X86_64,
    x86_64_5_levels: X86_64FiveLevels,
    amd_v1_3_levels: AmdV1<3>,
    amd_v1_4_levels: AmdV1<4>,
    amd_v1_5_levels: AmdV1<5>,
    mock: Mock,
    armv8_stage_1_4k: Armv8Stage1<12>,
    armv8_stage_1_16k: Armv8Stage1<14>,
    armv8_stage_1_64k: Armv8Stage1<16>,
    armv8_stage_2_4k: Armv8Stage2<12>,
    armv8_stage_2_16k: Armv8Stage2<14>,
    armv8_stage_2_64k: Armv8Stage2<16>,
    sv39: Sv39,
    sv48: Sv48,
    sv57: Sv57,
    sv39_napot: RiscV<3, true>,
    sv57_napot: RiscV<5, true>,
}

#[test]
fn running_out_of_tables_leaves_the_table_as_it_was() {
    let arena = Arc::new(Arena::new(512));
    let table = PageTable::<VtdSecondStage>::new(arena.clone()).unwrap();
    table.map(0, 0, PAGE, Access::all(), &mut EmptyTables::none()).unwrap();
    let before = arena.in_use();
    // 4 KiB pages (the physical address is off by one page), over more tables than there are.
    let mut undone = EmptyTables::none();
    let result = table.map(1 << 30, PAGE, 2 << 30, Access::all(), &mut undone);
    arena.free(undone);
    assert_eq!(result, Err(MapError::OutOfTables));
    assert_eq!(table.walk(1 << 30), None);
    assert_eq!(table.walk(0).unwrap().pa, 0);
    assert_eq!(arena.in_use(), before, "what the failed call made is gone");
}

#[test]
fn tables_that_are_empty_go_back_at_once() {
    let arena = Arc::new(Arena::new(1 << 12));
    let table = PageTable::<VtdSecondStage>::new(arena.clone()).unwrap();
    for n in 0..20_000u64 {
        let iova = (n * 0x20_0000) % (1 << 40);
        table.map(iova, PAGE, PAGE, Access::READ, &mut EmptyTables::none()).unwrap();
        let mut empty = EmptyTables::none();
        table.unmap(iova, PAGE, &mut empty).unwrap();
        arena.free(empty);
    }
    assert_eq!(arena.in_use(), 1, "only the root is left");
}

#[test]
fn the_largest_pages_are_used() {
    let arena = Arc::new(Arena::new(512));
    let table = PageTable::<VtdSecondStage>::new(arena.clone()).unwrap();
    table.map(0x4000_0000 - 0x20_0000, 0x20_0000, 0x20_0000, Access::READ, &mut EmptyTables::none()).unwrap();
    table.map(0x4000_0000, 0x8000_0000, 0x4000_0000, Access::READ, &mut EmptyTables::none()).unwrap();
    assert_eq!(table.walk(0x4000_0000 - 1).unwrap().page_shift, 21);
    assert_eq!(table.walk(0x7fff_ffff).unwrap().page_shift, 30);
    assert_eq!(arena.in_use(), 3);
}

#[test]
fn half_a_large_page_is_not_unmapped() {
    let arena = Arc::new(Arena::new(512));
    let table = PageTable::<VtdSecondStage>::new(arena).unwrap();
    table.map(0, 0, 0x20_0000, Access::READ, &mut EmptyTables::none()).unwrap();
    let mut empty = EmptyTables::none();
    assert!(table.unmap(0, PAGE, &mut empty).is_err());
    assert!(table.unmap(0x10_0000, 0x20_0000, &mut empty).is_err());
    assert!(empty.is_empty());
    assert!(table.walk(0).is_some());
}
