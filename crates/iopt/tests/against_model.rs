//! Page tables against the simplest thing that could be right: a map from page number to page number.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use iopt::format::VtdSecondStage;
use iopt::{Access, Arena, EmptyTables, MapError, PageTable};
use proptest::prelude::*;

const PAGE: u64 = 4096;
/// Few, near addresses, so that sequences collide: 4 GiB of pages around 1 GiB and 2 MiB edges.
const SPACE: u64 = 1 << 20;

#[derive(Debug, Clone)]
enum Step {
    Map { page: u64, to: u64, pages: u64, write: bool },
    Unmap { page: u64, pages: u64 },
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0..64u64, 500..530u64, (0..8u64).prop_map(|n| n * 512), (0..3u64).prop_map(|n| n << 18), 0..SPACE]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1..20u64, Just(512), Just(1024), 500..1600u64]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (address(), address(), length(), any::<bool>()).prop_map(|(page, to, pages, write)| Step::Map {
            page,
            to,
            pages,
            write
        }),
        (address(), length()).prop_map(|(page, pages)| Step::Unmap { page, pages }),
    ]
}

type Model = BTreeMap<u64, (u64, Access)>;

fn agrees(table: &PageTable<VtdSecondStage>, model: &Model, page: u64) {
    let found = table.walk(page * PAGE + 7).map(|t| (t.pa, t.access));
    let wanted = model.get(&page).map(|&(to, access)| (to * PAGE + 7, access));
    assert_eq!(found, wanted, "page {page:#x}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_table_agrees_with_a_map_of_pages(steps in prop::collection::vec(step(), 1..24)) {
        let arena = Arc::new(Arena::new(1 << 16));
        let table = PageTable::<VtdSecondStage>::new(arena.clone()).unwrap();
        let mut model = Model::new();
        for step in steps {
            let (page, pages) = match step {
                Step::Map { page, to, pages, write } => {
                    let access = if write { Access::all() } else { Access::READ };
                    let mut undone = EmptyTables::none();
                    let result = table.map(page * PAGE, to * PAGE, pages * PAGE, access, &mut undone);
                    arena.free(undone);
                    if model.range(page..page + pages).next().is_some() {
                        prop_assert!(matches!(result, Err(MapError::Occupied(_))));
                    } else {
                        prop_assert_eq!(result, Ok(()));
                        model.extend((0..pages).map(|n| (page + n, (to + n, access))));
                    }
                    (page, pages)
                }
                Step::Unmap { page, pages } => {
                    let mut empty = EmptyTables::none();
                    if table.unmap(page * PAGE, pages * PAGE, &mut empty).is_ok() {
                        arena.free(empty);
                        let gone: Vec<u64> = model.range(page..page + pages).map(|(&n, _)| n).collect();
                        for n in gone {
                            model.remove(&n);
                        }
                    }
                    (page, pages)
                }
            };
            for near in [page.wrapping_sub(1), page, page + 1, page + pages / 2, page + pages - 1, page + pages] {
                if near < SPACE * 2 {
                    agrees(&table, &model, near);
                }
            }
        }
        for &page in model.keys().step_by(97) {
            agrees(&table, &model, page);
        }
        drop(table);
        prop_assert_eq!(arena.in_use(), 0, "every table goes back");
    }
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

#[test]
fn addresses_beyond_the_format_are_refused() {
    let arena = Arc::new(Arena::new(512));
    let table = PageTable::<VtdSecondStage>::new(arena).unwrap();
    for (iova, pa, length) in
        [(1 << 48, 0, PAGE), (0, 1 << 52, PAGE), (u64::MAX - 4095, 0, PAGE), (0, 0, 0), (1, 0, PAGE)]
    {
        assert!(
            table.map(iova, pa, length, Access::READ, &mut EmptyTables::none()).is_err(),
            "{iova:#x} {pa:#x} {length:#x}"
        );
    }
    assert_eq!(table.walk(1 << 48), None);
    assert_eq!(table.walk(u64::MAX), None);
}
