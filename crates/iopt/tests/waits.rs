//! Who allocates and who waits: those who map, and nobody else.

// Miri takes minutes over tables of 512 entries; tests/small_tables.rs is for it.
#![cfg(not(miri))]
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};

use allocation_counter::measure;
use iopt::format::{AmdV1, Armv8Stage1, Sv57, VtdSecondStage, VtdSecondStageFiveLevels};
use iopt::{Access, Arena, EmptyTables, Format, MapError, PageTable, TableMemory};

const CHUNK: usize = 2 << 20;
const PAGE: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Gives,
    Refuses,
    Blocks,
}

/// Two chunks. How the second comes is up to the test.
struct Scripted {
    memory: Box<[AtomicU64]>,
    second: Mutex<Behaviour>,
    /// Somebody is in `populate`.
    entered: Mutex<bool>,
    changed: Condvar,
}

impl Scripted {
    fn new(second: Behaviour) -> Self {
        Self {
            memory: (0..2 * CHUNK / 8).map(|_| AtomicU64::new(0)).collect(),
            second: Mutex::new(second),
            entered: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    fn set(&self, second: Behaviour) {
        *self.second.lock().unwrap() = second;
        self.changed.notify_all();
    }

    /// Returns when somebody is in `populate` of the second chunk.
    fn wait_for_populate(&self) {
        drop(self.changed.wait_while(self.entered.lock().unwrap(), |entered| !*entered).unwrap());
    }
}

impl TableMemory for Scripted {
    fn entries(&self) -> &[AtomicU64] {
        &self.memory
    }

    fn populate(&self, bytes: Range<usize>) -> bool {
        assert_eq!(bytes.len(), CHUNK);
        if bytes.start == 0 {
            return true;
        }
        *self.entered.lock().unwrap() = true;
        self.changed.notify_all();
        let second = self.second.lock().unwrap();
        *self.changed.wait_while(second, |second| *second == Behaviour::Blocks).unwrap() == Behaviour::Gives
    }
}

/// Where the n-th table of level 0 begins.
fn far(n: u64) -> u64 {
    n << VtdSecondStage::shift(1)
}

/// A table that has used up the first chunk, a page in each table of level 0, and how many pages that is.
fn first_chunk_used_up(second: Behaviour) -> (PageTable<VtdSecondStage, Scripted>, u64) {
    let table = PageTable::new(Arc::new(Arena::with_memory(Scripted::new(second)))).unwrap();
    let mut pages = 0;
    while table.arena().in_use() < 512 {
        table.map(far(pages), PAGE, PAGE, Access::all(), &mut EmptyTables::none()).unwrap();
        pages += 1;
    }
    (table, pages)
}

#[test]
fn nobody_waits_for_a_map_that_waits_for_memory() {
    let (table, pages) = first_chunk_used_up(Behaviour::Blocks);
    std::thread::scope(|scope| {
        let stuck = scope.spawn(|| table.map(far(pages), PAGE, PAGE, Access::all(), &mut EmptyTables::none()));
        table.arena().memory().wait_for_populate();
        table.start_tracking().unwrap();
        assert_eq!(table.walk(0).unwrap().pa, PAGE);
        assert_eq!(table.walk_marking(0, Access::WRITE).unwrap().pa, PAGE);
        let mut dirty = 0;
        table.read_dirty(0, PAGE, true, |word| dirty += word.bits.count_ones()).unwrap();
        assert_eq!(dirty, 1);
        table.protect(0, PAGE, Access::READ).unwrap();
        assert_eq!(table.iter(0, far(pages)).count() as u64, pages);
        // Tables are given back, and used again.
        let mut empty = EmptyTables::none();
        table.unmap(0, PAGE, &mut empty).unwrap();
        assert!(!empty.is_empty());
        table.free(empty);
        assert_eq!(table.arena().in_use(), 511);
        table.map(PAGE, PAGE, PAGE, Access::all(), &mut EmptyTables::none()).unwrap();
        assert_eq!(table.arena().in_use(), 512);
        assert!(!stuck.is_finished());
        table.arena().memory().set(Behaviour::Gives);
        stuck.join().unwrap().unwrap();
    });
    assert_eq!(table.walk_marking(far(pages), Access::WRITE).unwrap().pa, PAGE);
    let mut dirty = 0;
    table.read_dirty(far(pages), PAGE, true, |word| dirty += word.bits.count_ones()).unwrap();
    assert_eq!(dirty, 1, "the table that came meanwhile is tracked, too");
    assert_eq!(table.arena().in_use(), 513);
}

#[test]
fn a_map_without_memory_leaves_the_table_as_it_was_until_there_is_some() {
    let (table, pages) = first_chunk_used_up(Behaviour::Refuses);
    let mut undone = EmptyTables::none();
    // Two pages in a table that is there, then one that would need another.
    let start = far(pages) - 2 * PAGE;
    let map = |undone: &mut EmptyTables| table.map(start, PAGE, 3 * PAGE, Access::all(), undone);
    assert_eq!(map(&mut undone), Err(MapError::OutOfTables));
    assert!(undone.is_empty());
    assert_eq!(table.iter(0, far(2 * pages)).count() as u64, pages);
    table.map(far(pages) - (2 << 20) + PAGE, 0, PAGE, Access::all(), &mut undone).unwrap();
    assert_eq!(table.arena().in_use(), 512);
    table.arena().memory().set(Behaviour::Gives);
    map(&mut undone).unwrap();
    assert_eq!(table.walk(far(pages)).unwrap().pa, 3 * PAGE);
}

#[test]
fn a_split_without_memory_changes_no_translation() {
    let arena = Arc::new(Arena::new(512));
    let table = PageTable::<VtdSecondStage>::new(arena.clone()).unwrap();
    let mut empty = EmptyTables::none();
    // The page table of 1 GiB, the root, the table of level 2; 509 others.
    table.map(1 << 30, 1 << 30, 1 << 30, Access::all(), &mut empty).unwrap();
    let others = PageTable::<VtdSecondStage>::new(arena.clone()).unwrap();
    let mut n = 0;
    while others.map(far(n), PAGE, PAGE, Access::READ, &mut empty).is_ok() {
        n += 1;
    }
    assert_eq!(arena.in_use(), 512);
    assert_eq!(table.split(1 << 30, PAGE, 12), Err(MapError::OutOfTables));
    assert_eq!(table.walk(1 << 30).unwrap().page_shift, 30);
    // With one table it comes half of the way.
    others.unmap(0, PAGE, &mut empty).unwrap();
    arena.free(empty);
    assert_eq!(table.split(1 << 30, PAGE, 12), Err(MapError::OutOfTables));
    let found = table.walk((1 << 30) + 5).unwrap();
    assert_eq!((found.pa, found.page_shift), ((1 << 30) + 5, 21));
}

fn only_map_allocates<F: Format>() {
    let table = PageTable::<F>::new(Arc::new(Arena::new(1 << 12))).unwrap();
    let mut empty = EmptyTables::none();
    let page = 1u64 << F::PAGE_SHIFT;
    // From small pages to large ones and back.
    let large = 1u64 << F::shift(1);
    let (start, length) = (large - 16 * page, large + 32 * page);
    table.map(start, start + 4 * large, length, Access::all(), &mut empty).unwrap();
    let mut others = EmptyTables::none();
    table.map(0, 0, page, Access::READ, &mut others).unwrap();
    table.start_tracking().unwrap();
    let allocated = measure(|| {
        for iova in [start, large, start + length, u64::MAX] {
            let _ = (table.walk(iova), table.walk_coalesced(iova), table.walk_marking(iova, Access::WRITE));
            if let Some(upper) = table.upper(iova) {
                let _ = (table.walk_below(upper, iova), table.walk_coalesced_below(upper, iova));
                let _ = table.walk_marking_below(upper, iova, Access::WRITE);
            }
        }
        let mut dirty = 0;
        table.read_dirty(0, 4 * large, true, |word| dirty += word.bits.count_ones()).unwrap();
        assert_ne!(dirty, 0);
        table.protect(start, length, Access::READ).unwrap();
        assert_ne!(table.iter(0, 4 * large).count(), 0);
        table.unmap(start, length, &mut empty).unwrap();
        table.free(std::mem::replace(&mut empty, EmptyTables::none()));
    });
    assert_eq!(allocated.count_total, 0);
    assert_eq!(table.walk(start), None);
}

#[test]
fn only_map_allocates_in_vtd_second_stage() {
    only_map_allocates::<VtdSecondStage>();
    only_map_allocates::<VtdSecondStageFiveLevels>();
}

#[test]
fn only_map_allocates_in_amd_v1() {
    only_map_allocates::<AmdV1>();
}

#[test]
fn only_map_allocates_in_armv8() {
    only_map_allocates::<Armv8Stage1<14>>();
}

#[test]
fn only_map_allocates_in_risc_v() {
    only_map_allocates::<Sv57>();
}

#[test]
fn what_is_measured_counts() {
    assert_eq!(measure(|| drop(std::hint::black_box(vec![1]))).count_total, 1);
}
