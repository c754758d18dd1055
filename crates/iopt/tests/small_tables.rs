//! Everything once over a format with tables of 16 entries, and threads beside each other: little enough for Miri,
//! which reads 512 entries in seconds.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use iopt::{Access, Arena, DirtyWord, EmptyTables, Entry, Format, Leaves, MapError, PageTable, RangeError, TableAddr};

const READ: Access = Access::READ;
const BOTH: Access = Access::all();
const PAGE: u64 = 1 << 12;
/// What an entry of level 1 covers.
const LARGE: u64 = PAGE << 4;
const TABLE: u64 = 1 << 2;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Three levels, pages of every power of two from 4 KiB to 8 MiB; bits 56 to 61 are the size of a page.
struct Small;

impl Format for Small {
    const LEVELS: u8 = 3;
    const PAGE_SHIFT: u32 = 12;
    const INDEX_BITS: u32 = 4;
    const PA_BITS: u32 = 52;
    const ACCESSED: u64 = 1 << 8;
    const DIRTY: u64 = 1 << 9;

    fn page_sizes(level: u8) -> u64 {
        0xf << Self::shift(level)
    }

    fn leaf(pa: u64, page_shift: u32, access: Access, _level: u8) -> u64 {
        (pa & ADDRESS & (!0 << page_shift)) | u64::from(page_shift) << 56 | u64::from(access.bits())
    }

    fn table(table: TableAddr, _level: u8) -> u64 {
        (table.0 & ADDRESS) | TABLE
    }

    fn decode(entry: u64, level: u8) -> Entry {
        let (access, page_shift) = (Access::from_bits_truncate(entry as u8), (entry >> 56) as u32 & 63);
        if entry & TABLE != 0 && level > 0 {
            Entry::Table(TableAddr(entry & ADDRESS), BOTH)
        } else if access.is_empty() || Self::page_sizes(level) >> page_shift & 1 == 0 {
            Entry::Empty
        } else {
            Entry::Leaf { pa: entry & ADDRESS & (!0 << page_shift), page_shift, access }
        }
    }
}

fn table() -> PageTable<Small> {
    PageTable::new(Arc::new(Arena::new(512))).unwrap()
}

fn take(empty: &mut EmptyTables) -> EmptyTables {
    std::mem::replace(empty, EmptyTables::none())
}

#[test]
fn a_range_is_mapped_walked_changed_and_unmapped() {
    let table = table();
    let mut empty = EmptyTables::none();
    // From small pages to large ones.
    let (start, length) = (LARGE - 3 * PAGE, 2 * LARGE + 4 * PAGE);
    table.map(start, start + (1 << 30), length, BOTH, &mut empty).unwrap();
    assert_eq!(table.map(start - PAGE, 0, 2 * PAGE, READ, &mut empty), Err(MapError::Occupied(start)));
    let sizes =
        |table: &PageTable<Small>| table.iter(start, length).map(|(_, page)| page.page_shift).collect::<Vec<_>>();
    assert_eq!(sizes(&table), [12, 13, 16, 16, 12]);
    for at in [start, start + 5 * PAGE + 7, start + length - 1] {
        let found = table.walk(at).unwrap();
        assert_eq!((found.pa, found.access), (at + (1 << 30), BOTH));
        let upper = table.upper(at).unwrap();
        assert_eq!(table.walk_below(upper, at), Some(found));
        assert_eq!(table.walk_coalesced(at), table.walk_coalesced_below(upper, at));
        assert_eq!(table.walk_marking_below(upper, at, READ), Some(found));
    }
    table.protect(start, length, READ).unwrap();
    assert_eq!(table.walk(start).unwrap().access, READ);
    table.split(LARGE + PAGE, PAGE, 12).unwrap();
    assert_eq!(sizes(&table), [12, 13, 12, 12, 13, 14, 15, 16, 12]);
    assert_eq!(table.unmap(LARGE + 4 * PAGE, PAGE, &mut empty), Err(RangeError::SplitsPage(LARGE + 4 * PAGE)));
    table.unmap(start, length, &mut empty).unwrap();
    assert_eq!(sizes(&table), []);
    assert_eq!(table.walk(start), None);
    table.free(empty);
    assert_eq!(table.arena().in_use(), 1, "only the root is left");
}

#[test]
fn small_pages_in_a_row_coalesce() {
    let table = table();
    let leaves = Leaves { access: READ, largest: 12 };
    table.map(0, LARGE, LARGE, leaves, &mut EmptyTables::none()).unwrap();
    assert_eq!(table.walk_coalesced(5 * PAGE).unwrap().page_shift, 16);
    table.protect(PAGE, PAGE, BOTH).unwrap();
    assert_eq!(table.walk_coalesced(5 * PAGE).unwrap().page_shift, 14);
    assert_eq!(table.walk_coalesced(0).unwrap().page_shift, 12);
}

#[test]
fn what_was_written_to_is_told_of_once() {
    let table = table();
    table.start_tracking().unwrap();
    table.map(0, 0, 2 * PAGE, BOTH, &mut EmptyTables::none()).unwrap();
    table.map(LARGE, LARGE, LARGE, BOTH, &mut EmptyTables::none()).unwrap();
    let _ = (table.walk_marking(PAGE, Access::WRITE), table.walk_marking(LARGE + 5, Access::WRITE));
    let mut told = Vec::new();
    table.read_dirty(0, 2 * LARGE, true, |word| told.push(word)).unwrap();
    // The page of 8 KiB has two entries.
    let words = [(16, 0b10), (12, 0b11)].map(|(page_shift, bits)| DirtyWord { iova: 0, page_shift, bits });
    assert_eq!(told, words);
    table.read_dirty(0, 2 * LARGE, true, |word| panic!("{word:?} again")).unwrap();
}

#[test]
fn threads_change_ranges_that_share_tables_while_another_walks() {
    // What is emptied is kept from the arena, as somebody walks.
    const STEPS: u64 = if cfg!(miri) { 6 } else { 60 };
    let table = table();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let table = &table;
            scope.spawn(move || {
                let (own, mut empty) = (8 * thread * PAGE, EmptyTables::none());
                for step in 0..STEPS {
                    // A page of several entries, or of the table above at the next.
                    let (iova, length) = if step % 2 == 0 { (own, 4 * PAGE) } else { (LARGE * (1 + thread), LARGE) };
                    table.map(iova, iova + LARGE, length, BOTH, &mut empty).unwrap();
                    assert_eq!(table.walk_marking(iova + 5, Access::WRITE).unwrap().pa, iova + LARGE + 5);
                    table.split(iova, PAGE, 12).unwrap();
                    table.protect(iova, length, READ).unwrap();
                    assert_eq!(table.iter(iova, length).map(|(_, page)| 1u64 << page.page_shift).sum::<u64>(), length);
                    table.unmap(iova, length, &mut empty).unwrap();
                    assert_eq!(table.walk(iova), None);
                }
                empty
            });
        }
        for at in (0..4 * STEPS).map(|n| n * 0x5000 % (3 * LARGE)) {
            assert!(table.walk(at).is_none_or(|found| found.pa == at + LARGE));
            table.start_tracking().unwrap();
        }
    });
}

#[test]
fn tables_go_back_while_others_are_taken() {
    const STEPS: u64 = if cfg!(miri) { 6 } else { 5_000 };
    let table = table();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let table = &table;
            scope.spawn(move || {
                let mut empty = EmptyTables::none();
                for n in 0..STEPS {
                    let iova = (n % 5 * 2 + thread) * LARGE;
                    table.map(iova, iova, PAGE, READ, &mut empty).unwrap();
                    table.unmap(iova, PAGE, &mut empty).unwrap();
                    // Nobody walks.
                    table.free(take(&mut empty));
                }
            });
        }
    });
    assert_eq!(table.arena().in_use(), 1, "only the root is left");
}

#[test]
fn a_walk_of_noise_stays_in_memory_and_ends() {
    const STEP: usize = if cfg!(miri) { 0x11_1000 } else { 0x1000 };
    let tables = [0, 0x1000, 0xf_ffff_f000].map(|at| TABLE | at);
    let noise = [0, 3, !0, 1 | 12 << 56, 3 | 16 << 56];
    let noisy = |n: usize| if n.is_multiple_of(2) { tables[n / 2 % 3] } else { noise[n % 5] };
    // The table at 0x1000 is the last that is whole.
    let entries: Vec<_> = (0..512 + 16).map(|n| AtomicU64::new(noisy(n))).collect();
    for root in [0, 8, 0x1000, 0x1008, 0x1080, !0] {
        let view = iopt::View::<Small>::new(&entries, TableAddr(root));
        for iova in (0..1 << 24).step_by(STEP) {
            let found = view.walk(iova);
            assert_eq!(view.walk_coalesced(iova).map(|page| page.pa), found.map(|page| page.pa));
            assert_eq!(view.upper(iova).and_then(|upper| view.walk_below(upper, iova)), found);
        }
    }
}
