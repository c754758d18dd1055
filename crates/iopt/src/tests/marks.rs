//! Accessed and dirty bits in the entries themselves, and the log beside them.

use std::sync::{Arc, Barrier};

use super::{BOTH, READ, mapped, of_level};
use crate::format::{AmdV1, Armv8Stage2, RiscV, Sv39, Sv48, Sv57, VtdSecondStage, VtdSecondStageFiveLevels, X86_64};
use crate::{Access, Arena, DirtyWord, EmptyTables, Format, Leaves, PageTable};

/// What is marked in the first entry of level 0.
fn first<F: Format>(table: &PageTable<F>) -> u64 {
    of_level(table, 0)[0].1 & (F::ACCESSED | F::DIRTY)
}

fn marks<F: Format>(accessed: u64, dirty: u64) {
    assert_eq!((F::ACCESSED, F::DIRTY), (accessed, dirty));
    let page = 1 << F::PAGE_SHIFT;
    let table = mapped::<F>(&[(0, 0, page, READ), (page, 0, page, BOTH)]);
    let unmarked = of_level(&table, 0);
    assert_eq!(first(&table), 0);
    // Refused.
    assert_eq!(table.walk_marking(0, BOTH).unwrap().access, READ);
    assert_eq!(table.walk_marking(2 * page, READ), None);
    assert_eq!(of_level(&table, 0), unmarked);
    let _ = table.walk_marking(0, READ);
    assert_eq!(first(&table), accessed);
    table.protect(0, page, BOTH).unwrap();
    assert_eq!(first(&table), accessed, "a change of permission keeps marks");
    let _ = table.walk_marking(0, Access::WRITE);
    assert_eq!(first(&table), accessed | dirty);
    table.protect(0, page, READ).unwrap();
    assert_eq!(of_level(&table, 0)[0].1, unmarked[0].1 | accessed | dirty);
    assert_eq!(of_level(&table, 0)[1], unmarked[1], "the neighbour is not touched");
}

#[test]
fn a_walk_marks_what_it_uses() {
    marks::<VtdSecondStage>(1 << 8, 1 << 9);
    marks::<VtdSecondStageFiveLevels>(1 << 8, 1 << 9);
    marks::<X86_64>(1 << 5, 1 << 6);
    marks::<AmdV1>(1 << 5, 1 << 6);
    marks::<AmdV1<5>>(1 << 5, 1 << 6);
    marks::<Armv8Stage2<12>>(0, 0);
    marks::<Sv39>(0, 0);
    marks::<Sv57>(0, 0);
}

fn split_keeps_marks<F: Format>(size: u64) {
    let table = mapped::<F>(&[(0, size, size, BOTH)]);
    let _ = table.walk_marking(size / 2, Access::WRITE);
    table.split(0, size, F::PAGE_SHIFT).unwrap();
    let small = mapped::<F>(&[]);
    let leaves = Leaves { access: BOTH, largest: F::PAGE_SHIFT };
    small.map(0, size, size, leaves, &mut EmptyTables::none()).unwrap();
    let wanted: Vec<_> =
        of_level(&small, 0).into_iter().map(|(index, bits)| (index, bits | F::ACCESSED | F::DIRTY)).collect();
    assert_eq!(of_level(&table, 0), wanted);
}

#[test]
fn a_split_marks_all_parts_as_the_page_was() {
    split_keeps_marks::<VtdSecondStage>(1 << 21);
    split_keeps_marks::<VtdSecondStageFiveLevels>(1 << 21);
    split_keeps_marks::<X86_64>(1 << 21);
    // One of its entries was marked.
    split_keeps_marks::<AmdV1>(1 << 16);
    split_keeps_marks::<AmdV1>(1 << 22);
    split_keeps_marks::<Armv8Stage2<12>>(1 << 16);
}

fn read<F: Format>(table: &PageTable<F>, iova: u64, length: u64, clear: bool) -> Vec<DirtyWord> {
    let mut words = Vec::new();
    table.read_dirty(iova, length, clear, |word| words.push(word)).unwrap();
    words
}

/// Of the lowest and the highest pages there are, what was written to is told of once, and what was read is not.
fn what_is_written_to_is_told_of_once<F: Format>() {
    let (page, all) = (1u64 << F::PAGE_SHIFT, 1u64 << F::iova_bits());
    let table = mapped::<F>(&[(0, page, 2 * page, BOTH), (all - 2 * page, page, 2 * page, BOTH)]);
    table.start_tracking().unwrap();
    let word = |iova, bit: u32| DirtyWord { iova, page_shift: F::PAGE_SHIFT, bits: 1 << bit };
    let wanted = [word(0, 0), word(all - 64 * page, 63)];
    for iova in [0, all - page] {
        let _ = table.walk_marking(iova, Access::WRITE);
        let _ = table.walk_marking(iova ^ page, READ);
    }
    assert_eq!(read(&table, 0, all, false), wanted);
    assert_eq!(read(&table, all - page, page, true), wanted[1..]);
    assert_eq!(read(&table, 0, all, true), wanted[..1]);
    assert_eq!(read(&table, 0, all, true), []);
    for iova in [0, all - page] {
        let _ = table.walk_marking(iova, Access::WRITE);
    }
    table.start_tracking().unwrap();
    assert_eq!(read(&table, 0, all, false), [], "tracking begins anew everywhere");
}

#[test]
fn the_log_of_every_format_reaches_from_the_first_page_to_the_last() {
    what_is_written_to_is_told_of_once::<VtdSecondStage>();
    what_is_written_to_is_told_of_once::<VtdSecondStageFiveLevels>();
    what_is_written_to_is_told_of_once::<AmdV1<4>>();
    what_is_written_to_is_told_of_once::<AmdV1<5>>();
    what_is_written_to_is_told_of_once::<Armv8Stage2<12>>();
    what_is_written_to_is_told_of_once::<Armv8Stage2<14>>();
    what_is_written_to_is_told_of_once::<Armv8Stage2<16>>();
    what_is_written_to_is_told_of_once::<Sv39>();
    what_is_written_to_is_told_of_once::<Sv48>();
    what_is_written_to_is_told_of_once::<Sv57>();
    what_is_written_to_is_told_of_once::<RiscV<5, true>>();
}

#[test]
fn nothing_is_logged_before_somebody_tracks_or_by_reads() {
    let table = mapped::<VtdSecondStage>(&[(0, 0, 4096, BOTH)]);
    let _ = table.walk_marking(0, Access::WRITE);
    table.start_tracking().unwrap();
    let _ = table.walk_marking(0, READ);
    assert_eq!(read(&table, 0, 4096, false), []);
    let _ = table.walk_marking(0, Access::WRITE);
    let word = DirtyWord { iova: 0, page_shift: 12, bits: 1 };
    assert_eq!(read(&table, 0, 4096, false), [word]);
    table.start_tracking().unwrap();
    assert_eq!(read(&table, 0, 4096, false), [], "tracking begins anew");
}

#[test]
fn tables_that_come_after_tracking_began_are_tracked() {
    let arena = Arc::new(Arena::new(1 << 10));
    let table = PageTable::<VtdSecondStage>::new(arena).unwrap();
    table.start_tracking().unwrap();
    // Into the second chunk.
    let iova = 600 << 21;
    let leaves = Leaves { access: BOTH, largest: 12 };
    table.map(0, 0, iova + 4096, leaves, &mut EmptyTables::none()).unwrap();
    let _ = table.walk_marking(iova, Access::WRITE);
    assert_eq!(read(&table, 0, iova + 4096, true), [DirtyWord { iova, page_shift: 12, bits: 1 }]);
}

#[test]
fn a_large_page_is_one_bit_and_one_that_sticks_out_is_not_cleared() {
    let table = mapped::<VtdSecondStage>(&[(0, 0, 4 << 21, BOTH)]);
    table.start_tracking().unwrap();
    let _ = table.walk_marking(3 << 21, Access::WRITE);
    let word = DirtyWord { iova: 0, page_shift: 21, bits: 1 << 3 };
    assert_eq!(read(&table, 3 << 21, 4096, true), [word]);
    assert_eq!(read(&table, 0, 3 << 21, true), []);
    // Written to before the split, so all of it may have been.
    table.split(3 << 21, 4096, 12).unwrap();
    assert_eq!(read(&table, 3 << 21, 1 << 20, true), [word]);
    assert_eq!(read(&table, 3 << 21, 1 << 20, true), [word]);
    assert_eq!(read(&table, 3 << 21, 1 << 21, true), [word]);
    assert_eq!(read(&table, 3 << 21, 1 << 21, true), []);
}

#[test]
fn a_page_of_several_entries_is_several_bits() {
    let table = mapped::<AmdV1>(&[(1 << 19, 1 << 19, 1 << 19, BOTH)]);
    table.start_tracking().unwrap();
    let _ = table.walk_marking((1 << 19) + 5, Access::WRITE);
    let words = [0, 1].map(|n| DirtyWord { iova: (1 << 19) + (n << 18), page_shift: 12, bits: !0 });
    assert_eq!(read(&table, 1 << 19, 1 << 19, false), words);
    assert_eq!(read(&table, (1 << 19) + 0x2000, 0x1000, true), [DirtyWord { bits: 4, ..words[0] }]);
    assert_eq!(read(&table, 1 << 19, 1 << 19, false), [DirtyWord { bits: !4, ..words[0] }, words[1]]);
}

#[test]
fn a_table_that_goes_takes_its_log_with_it() {
    let table = mapped::<VtdSecondStage>(&[(0, 0, 8192, BOTH)]);
    table.start_tracking().unwrap();
    let mut empty = EmptyTables::none();
    for iova in [0, 4096] {
        let _ = table.walk_marking(iova, Access::WRITE);
        table.unmap(iova, 4096, &mut empty).unwrap();
    }
    table.free(empty);
    let leaves = Leaves { access: BOTH, largest: 12 };
    table.map(1 << 30, 0, 1 << 30, leaves, &mut EmptyTables::none()).unwrap();
    table.map(0, 0, 8192, BOTH, &mut EmptyTables::none()).unwrap();
    assert_eq!(read(&table, 0, 1 << 31, false), []);
}

#[test]
fn a_mark_beside_a_change_of_permission_stays() {
    let table = mapped::<VtdSecondStage>(&[]);
    let mut empty = EmptyTables::none();
    for _ in 0..200 {
        table.map(0, 0, 4096, BOTH, &mut empty).unwrap();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                for access in [READ, BOTH].into_iter().cycle().take(500) {
                    table.protect(0, 4096, access).unwrap();
                }
            });
            start.wait();
            std::thread::yield_now();
            let _ = table.walk_marking(0, READ);
        });
        assert_eq!(first(&table), VtdSecondStage::ACCESSED);
        table.unmap(0, 4096, &mut empty).unwrap();
    }
}

#[test]
fn only_what_lies_in_the_range_is_told_and_cleared() {
    let table = mapped::<VtdSecondStage>(&[]);
    let leaves = Leaves { access: BOTH, largest: 12 };
    table.map(0, 0, 512 << 12, leaves, &mut EmptyTables::none()).unwrap();
    table.start_tracking().unwrap();
    for page in [31, 32, 95, 96] {
        let _ = table.walk_marking(page << 12, Access::WRITE);
    }
    let word = |number: u64, bits| DirtyWord { iova: number << 18, page_shift: 12, bits };
    // As long as a word, but in two of them.
    assert_eq!(read(&table, 32 << 12, 64 << 12, true), [word(0, 1 << 32), word(1, 1 << 31)]);
    assert_eq!(read(&table, 0, 512 << 12, true), [word(0, 1 << 31), word(1, 1 << 32)]);
}
