//! What lies in memory after a map, entry by entry; and the same beside other people's page tables.

#![allow(clippy::unwrap_used)]

mod marks;
mod peers;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::arena::{TableAddr, TableSize};
use crate::format::{AmdV1, Armv8Stage1, Armv8Stage2, RiscV, Sv39, X86_64};
use crate::{Access, Arena, EmptyTables, Entry, Format, PageTable};

const READ: Access = Access::READ;
const BOTH: Access = Access::all();

/// An entry that is not zero, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    level: u8,
    index: usize,
    bits: u64,
}

fn mapped<F: Format>(ranges: &[(u64, u64, u64, Access)]) -> PageTable<F> {
    let table = PageTable::new(Arc::new(Arena::new(1 << 14))).unwrap();
    for &(iova, pa, length, access) in ranges {
        table.map(iova, pa, length, access, &mut EmptyTables::none()).unwrap();
    }
    table
}

/// All entries, those above before those below.
fn entries<F: Format>(table: &PageTable<F>) -> Vec<Found> {
    fn collect<F: Format>(table: &PageTable<F>, addr: TableAddr, level: u8, found: &mut Vec<Found>) {
        assert!(addr.0.is_multiple_of(8 << F::index_bits(level)), "a table is aligned to its size");
        for (index, slot) in table.entries(addr, level).unwrap().iter().enumerate() {
            let bits = slot.load(Ordering::Relaxed);
            if bits != 0 {
                found.push(Found { level, index, bits });
            }
            if let Entry::Table(below, _) = F::decode(bits, level) {
                collect(table, below, level - 1, found);
            }
        }
    }
    let mut found = Vec::new();
    collect(table, table.root(), F::LEVELS - 1, &mut found);
    found
}

/// Index and bits of the entries of `level`.
fn of_level<F: Format>(table: &PageTable<F>, level: u8) -> Vec<(usize, u64)> {
    entries(table).into_iter().filter(|found| found.level == level).map(|found| (found.index, found.bits)).collect()
}

#[test]
fn a_page_of_amd_v1_is_the_same_entry_all_over() {
    let table = mapped::<AmdV1>(&[(0x1_0000, 0x1235_0000, 0x1_0000, READ)]);
    let wanted: Vec<_> = (16..32).map(|index| (index, 0x2000_0000_1235_7e01)).collect();
    assert_eq!(of_level(&table, 0), wanted);
}

#[test]
fn amd_v1_uses_every_power_of_two_on_the_way_up_and_down() {
    let table = mapped::<AmdV1>(&[(0x3000, 0x10_3000, 0xb000, BOTH)]);
    // 4 KiB, 16 KiB, 16 KiB rather than 32 (as 0x4000 is aligned to no more), 8 KiB at the end.
    let bits = |pa: u64, size_and_level: u64| 0x6000_0000_0000_0001 | pa | size_and_level;
    let mut wanted = vec![(3, bits(0x10_3000, 0))];
    wanted.extend((4..8).map(|index| (index, bits(0x10_4000, 0x1e00))));
    wanted.extend((8..12).map(|index| (index, bits(0x10_8000, 0x1e00))));
    wanted.extend((12..14).map(|index| (index, bits(0x10_c000, 0xe00))));
    assert_eq!(of_level(&table, 0), wanted);
}

#[test]
fn contiguous_entries_of_armv8_follow_each_other() {
    let table = mapped::<Armv8Stage1<12>>(&[(0x1_0000, 0x1235_0000, 0x1_1000, BOTH)]);
    let mut wanted: Vec<_> = (0..16u64).map(|n| (16 + n as usize, 0x0010_0000_1235_0f43 + (n << 12))).collect();
    wanted.push((32, 0x1236_0f43));
    assert_eq!(of_level(&table, 0), wanted);

    let table = mapped::<Armv8Stage2<16>>(&[(0x4_0000_0000, 0x8_0000_0000, 0x4_0000_0000, READ)]);
    let wanted: Vec<_> = (0..32u64).map(|n| (32 + n as usize, 0x0010_0008_0000_077d + (n << 29))).collect();
    assert_eq!(of_level(&table, 1), wanted);
}

#[test]
fn a_root_of_armv8_stage_2_is_tables_beside_each_other() {
    let table = mapped::<Armv8Stage2<14>>(&[(0x8000_0000_0000, 0x4000, 0x4000, READ)]);
    let root = of_level(&table, 2);
    // The second of two tables of 2048 entries begins with 47 bits of address.
    assert_eq!(root.len(), 1);
    assert_eq!(root[0].0, 2048);
    assert_eq!(root[0].1 & 0x3fff, 3);
    assert_eq!(of_level(&table, 0), [(0, 0x477f)]);
}

#[test]
fn a_napot_page_of_risc_v_is_the_same_entry_all_over() {
    let table = mapped::<RiscV<3, true>>(&[(0x1_0000, 0x1235_0000, 0x1_0000, BOTH)]);
    let wanted: Vec<_> = (16..32).map(|index| (index, 0x8000_0000_048d_60d7)).collect();
    assert_eq!(of_level(&table, 0), wanted);
}

/// Sizes of the pages, in order.
fn sizes<F: Format>(table: &PageTable<F>) -> Vec<u32> {
    table.iter(0, 1 << F::iova_bits()).map(|(_, found)| found.page_shift).collect()
}

#[test]
fn beside_what_is_split_the_pages_of_amd_v1_stay_as_large_as_they_can() {
    let table = mapped::<AmdV1>(&[(0, 0, 1 << 20, BOTH)]);
    table.split(0x3000, 0x1000, 12).unwrap();
    assert_eq!(sizes(&table), [13, 12, 12, 14, 15, 16, 17, 18, 19]);
    let table = mapped::<AmdV1>(&[(0, 0, 1 << 20, BOTH)]);
    table.split(0x8_0000, 0x8_0000, 17).unwrap();
    assert_eq!(sizes(&table), [19, 17, 17, 17, 17]);
    // From 4 MiB, which has several entries of level 1.
    let table = mapped::<AmdV1>(&[(0, 0, 4 << 20, BOTH)]);
    table.split(0, 0x1000, 13).unwrap();
    assert_eq!(sizes(&table), [13, 13, 14, 15, 16, 17, 18, 19, 20, 21]);
}

#[test]
fn a_split_finishes_what_another_has_only_begun() {
    let table = mapped::<AmdV1>(&[(0, 1 << 30, 1 << 20, BOTH)]);
    let Entry::Table(lowest, _) = AmdV1::<4>::decode(of_level(&table, 1)[0].1, 1) else { panic!("a table") };
    // As if somebody who splits for another range came to the middle, and paused.
    for slot in &table.entries(lowest, 0).unwrap()[..128] {
        slot.store(AmdV1::<4>::leaf(1 << 30, 19, BOTH, 0), Ordering::Relaxed);
    }
    table.split(0, 1 << 19, 19).unwrap();
    for page in 0..256 {
        let found = table.walk(page << 12).unwrap();
        assert_eq!((found.pa, found.page_shift), ((1 << 30) + (page << 12), 19));
    }
}

#[test]
fn tables_of_all_sizes_share_an_arena_without_overlap() {
    let arena = Arena::new(5 * 512);
    let sizes = [9, 10, 11, 12, 13].map(|index_bits| (TableSize::of_entries(index_bits), 8u64 << index_bits));
    let taken = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for (size, bytes) in sizes {
                    while let Some(TableAddr(start)) = arena.allocate(size) {
                        taken.lock().unwrap().push((start, bytes));
                        if taken.lock().unwrap().len() % 16 == 0 {
                            break;
                        }
                    }
                }
            });
        }
    });
    let mut taken = taken.into_inner().unwrap();
    assert_eq!(arena.in_use(), taken.len());
    taken.sort_unstable();
    for pair in taken.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
    }
    for &(start, bytes) in &taken {
        assert!(start.is_multiple_of(bytes), "{start:#x} is aligned to {bytes:#x}");
        assert!(arena.table(TableAddr(start), (bytes / 8).ilog2()).is_some());
    }
    let mut empty = EmptyTables::none();
    for (start, _) in taken {
        arena.chain(&mut empty, TableAddr(start));
    }
    arena.free(empty);
    assert_eq!(arena.in_use(), 0);
}

#[test]
fn the_arena_has_no_table_at_a_forged_address() {
    let arena = Arena::new(512);
    let TableAddr(last) = (0..512).map(|_| arena.allocate(TableSize::of_entries(9)).unwrap()).last().unwrap();
    assert_eq!(arena.allocate(TableSize::of_entries(9)), None);
    assert!(arena.table(TableAddr(last), 9).is_some());
    for forged in [1 << 22, 1 << 43, 1 << 44, u64::MAX] {
        assert!(arena.table(TableAddr(forged), 9).is_none());
    }
}

#[test]
fn what_is_in_the_way_of_a_page_of_the_root_is_found_below() {
    // The root has 256 entries, the table below 512.
    let occupied = (1 << 30) + (300 << 21) + (77 << 12);
    let table = mapped::<Sv39>(&[(occupied, 0, 4096, READ)]);
    let refused = table.map(1 << 30, 1 << 30, 1 << 30, READ, &mut EmptyTables::none());
    assert_eq!(refused, Err(crate::MapError::Occupied(occupied)));
}

#[test]
fn a_failed_map_leaves_every_entry_as_it_was() {
    fn check<F: Format>() {
        let page = 1u64 << F::PAGE_SHIFT;
        // In the middle of the second table of level 0, where a large page would cover it.
        let occupied = F::shift(1);
        let occupied = (1u64 << occupied) + 37 * page;
        let table = mapped::<F>(&[(0, 0, page, READ), (occupied, page, page, BOTH)]);
        let before = entries(&table);
        for start in [page, 8 * page, occupied - 5 * page, 1 << F::shift(1)] {
            for pa in [start, start + page] {
                let mut empty = EmptyTables::none();
                let result = table.map(start, pa, occupied - start + 100 * page, BOTH, &mut empty);
                assert_eq!(result, Err(crate::MapError::Occupied(occupied)));
                assert_eq!(entries(&table), before);
            }
        }
    }
    check::<X86_64>();
    check::<AmdV1>();
    check::<Armv8Stage1<12>>();
    check::<Armv8Stage2<14>>();
    check::<Armv8Stage1<16>>();
    check::<RiscV<4, true>>();
}
