//! Page tables of every format against the simplest thing that could be right: the list of what was done.

#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iopt::format::{
    AmdV1, Armv8Stage1, Armv8Stage2, Mock, RiscV, Sv39, Sv48, Sv57, VtdSecondStage, X86_64, X86_64FiveLevels,
};
use iopt::{Access, Arena, EmptyTables, Entry, Format, MapError, PageTable, UnmapError};
use proptest::prelude::*;

const PAGE: u64 = 4096;
/// Where the steps map, in pages: small enough for every format, large enough for its largest pages but the topmost.
const SPACE: u64 = 1 << 24;

/// In pages of the format.
#[derive(Debug, Clone)]
enum Step {
    Map { page: u64, to: u64, pages: u64, access: Access },
    Unmap { page: u64, pages: u64 },
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
        3 => (range(), access()).prop_map(|((page, to, pages), access)| Step::Map { page, to, pages, access }),
        2 => range().prop_map(|(page, _, pages)| Step::Unmap { page, pages }),
    ]
}

/// Pages, and what the first of them was mapped to, if they were not unmapped.
type Done = (Range<u64>, Option<(u64, Access)>);

/// Everything that was done, in order.
#[derive(Default)]
struct Model(Vec<Done>);

impl Model {
    fn find(&self, page: u64) -> Option<(u64, Access)> {
        let (range, target) = self.0.iter().rev().find(|(range, _)| range.contains(&page))?;
        target.map(|(to, access)| (to + (page - range.start), access))
    }

    /// Where what is mapped can begin or end.
    fn edges(&self) -> impl Iterator<Item = u64> {
        self.0.iter().flat_map(|(range, _)| [range.start, range.end])
    }

    fn first_mapped(&self, range: Range<u64>) -> Option<u64> {
        let edges = self.edges().filter(|edge| range.contains(edge));
        std::iter::once(range.start).chain(edges).filter(|&page| self.find(page).is_some()).min()
    }
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

    fn map(&mut self, page: u64, to: u64, pages: u64, access: Access) {
        let (iova, pa, length) = (self.iova(page), self.pa + (to << F::PAGE_SHIFT), pages << F::PAGE_SHIFT);
        let mut undone = EmptyTables::none();
        let result = self.table.map(iova, pa, length, access, &mut undone);
        self.arena.free(undone);
        if let Some(mapped) = self.model.first_mapped(page..page + pages) {
            assert_eq!(result, Err(MapError::Occupied(self.iova(mapped))));
            return;
        }
        assert_eq!(result, Ok(()));
        self.model.0.push((page..page + pages, Some((to, granted::<F>(access)))));
        let largest = (0..F::LEVELS)
            .flat_map(|level| (0..64).filter(move |n| F::page_sizes(level) >> n & 1 == 1))
            .filter(|n| (iova | pa).is_multiple_of(1 << n) && length >= 1 << n)
            .max();
        assert_eq!(self.table.walk(iova).map(|found| found.page_shift), largest, "the largest page that fits");
    }

    fn unmap(&mut self, page: u64, pages: u64) {
        let (iova, length) = (self.iova(page), pages << F::PAGE_SHIFT);
        let mut empty = EmptyTables::none();
        match self.table.unmap(iova, length, &mut empty) {
            Ok(()) => self.model.0.push((page..page + pages, None)),
            Err(UnmapError::SplitsPage(edge)) => {
                let size = 1 << self.table.walk(edge).unwrap().page_shift;
                let start = edge / size * size;
                assert!(start < iova || start + size > iova + length, "{edge:#x} is in a page that sticks out");
                assert!(empty.is_empty());
            }
            Err(error) => panic!("{error}"),
        }
        self.arena.free(empty);
    }

    fn agrees(&self, page: u64) {
        let offset = (1 << F::PAGE_SHIFT) - 7;
        let found = self.table.walk(self.iova(page) + offset);
        let wanted = self.model.find(page).map(|(to, access)| (self.pa + (to << F::PAGE_SHIFT) + offset, access));
        assert_eq!(found.map(|t| (t.pa, t.access)), wanted, "page {page:#x}");
        let Some((found, to)) = found.zip(self.model.find(page)) else { return };
        // The whole page is mapped as its middle is.
        let pages = 1 << (found.page_shift - F::PAGE_SHIFT);
        let first = page / pages * pages;
        for other in [first, first + pages - 1] {
            assert_eq!(self.model.find(other), Some((to.0 + other - page, to.1)), "page {other:#x} of {page:#x}");
        }
    }

    fn agrees_around(&self, page: u64, pages: u64) {
        for near in [page.wrapping_sub(1), page, page + 1, page + pages / 2, page + pages - 1, page + pages] {
            if near < SPACE {
                self.agrees(near);
            }
        }
    }
}

/// What a format makes of `access`: some cannot say write without read.
fn granted<F: Format>(access: Access) -> Access {
    let Entry::Leaf { access: granted, .. } = F::decode(F::leaf(0, F::PAGE_SHIFT, access, 0), 0) else {
        panic!("a leaf is a leaf")
    };
    assert!(granted.contains(access));
    granted
}

fn agrees_with_a_model<F: Format>(steps: Vec<Step>, high: bool, elsewhere: &[u64]) {
    let mut pair = Pair::<F>::new(high);
    for step in steps {
        let (page, pages) = match step {
            Step::Map { page, to, pages, access } => {
                pair.map(page, to, pages, access);
                (page, pages)
            }
            Step::Unmap { page, pages } => {
                pair.unmap(page, pages);
                (page, pages)
            }
        };
        pair.agrees_around(page, pages);
    }
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
    assert!(matches!(table.unmap(iovas, page, &mut empty), Err(UnmapError::OutOfRange { .. })));
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
                assert_eq!(table.unmap(start, size / 2, &mut empty), Err(UnmapError::SplitsPage(start)));
                let half = start + size / 2;
                assert_eq!(table.unmap(half, size / 2, &mut empty), Err(UnmapError::SplitsPage(half)));
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
                    elsewhere in prop::collection::vec(anywhere(), 32),
                ) {
                    super::agrees_with_a_model::<$format>(steps, high, &elsewhere);
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
    vtd_second_stage: VtdSecondStage,
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
