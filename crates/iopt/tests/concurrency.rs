//! Threads that change ranges beside each other, in tables that they share, while others walk.

// Miri takes minutes over tables of 512 entries; tests/small_tables.rs is for it.
#![cfg(not(miri))]
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier};

use iopt::format::{
    AmdV1, Armv8Stage1, Armv8Stage2, RiscV, Sv48, Sv57, VtdSecondStage, VtdSecondStageFiveLevels, X86_64,
};
use iopt::{Access, Arena, EmptyTables, Format, Leaves, MapError, PageTable};

const THREADS: u64 = 3;
const STEPS: u64 = if cfg!(debug_assertions) { 2_000 } else { 20_000 };

/// What an address is mapped to, if it is.
const MOVED: u64 = 1 << 36;

/// With a fixed seed.
struct Random(fastrand::Rng);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0.u64(..limit)
    }
}

/// A range that one thread owns, and what it has made of it.
struct Slot {
    iova: u64,
    length: u64,
    mapped: Option<Access>,
}

/// The ranges of all threads, taking turns: small ones that share tables of level 0, around the end of a table of level
/// 1, and large ones that share a table of level 1.
fn slots<F: Format>(thread: u64) -> Vec<Slot> {
    let (small, large) = (16u64 << F::PAGE_SHIFT, 1u64 << F::shift(1));
    let middle = 1 << F::shift(2);
    let small = (0..4 * large / small).map(|n| (middle - 2 * large + n * small, small));
    let large = (4..16).map(|n| (middle + n * large, large));
    // Few of them, so that tables are often emptied.
    let chosen = small.step_by(5).chain(large);
    let own = chosen.enumerate().filter(|(n, _)| *n as u64 % THREADS == thread);
    own.map(|(_, (iova, length))| Slot { iova, length, mapped: None }).collect()
}

fn access(random: &mut Random) -> Access {
    if random.below(2) == 0 { Access::READ } else { Access::all() }
}

/// Changes one slot, and looks at it.
fn step<F: Format>(table: &PageTable<F>, slot: &mut Slot, random: &mut Random, empty: &mut EmptyTables) {
    let &mut Slot { iova, length, .. } = slot;
    let page = 1 << F::PAGE_SHIFT;
    let some = iova + random.below(length / page) * page;
    match (slot.mapped, random.below(4)) {
        (None, choice) => {
            let access = access(random);
            // Sometimes in small pages.
            let largest = if choice == 0 && length < 1 << F::shift(1) { F::PAGE_SHIFT } else { u32::MAX };
            table.map(iova, iova + MOVED, length, Leaves { access, largest }, empty).unwrap();
            slot.mapped = Some(access);
        }
        (Some(_), 0) => {
            let access = access(random);
            table.protect(iova, length, access).unwrap();
            slot.mapped = Some(access);
        }
        (Some(_), 1) => table.split(some, page, F::PAGE_SHIFT).unwrap(),
        (Some(_), _) => {
            table.unmap(iova, length, empty).unwrap();
            slot.mapped = None;
            assert!(table.iter(iova, length).next().is_none(), "{iova:#x} was unmapped");
        }
    }
    // What is mapped stays so, and so do the tables on the way: a walk there needs no leave of the others.
    if let Some(access) = slot.mapped {
        for at in [iova, some, iova + length - 1] {
            let found = table.walk(at).unwrap();
            assert_eq!((found.pa, found.access), (at + MOVED, access), "{at:#x}");
            assert_eq!(table.walk_marking(at, Access::READ), Some(found));
        }
        assert_eq!(table.iter(iova, length).map(|(_, found)| 1u64 << found.page_shift).sum::<u64>(), length);
    }
}

/// With `walkers`, nothing is given back before they have ended.
fn nothing_is_lost<F: Format>(walkers: u64) {
    let arena = Arc::new(Arena::new(1 << 12));
    let table = PageTable::<F>::new(arena.clone()).unwrap();
    let done = AtomicBool::new(false);
    let kept = std::thread::scope(|scope| {
        for walker in 0..walkers {
            let (table, done) = (&table, &done);
            scope.spawn(move || {
                let mut random = Random(fastrand::Rng::with_seed(0x9e37_79b9_7f4a_7c15 + walker));
                let all: Vec<_> = (0..THREADS).flat_map(slots::<F>).collect();
                while !done.load(Ordering::Relaxed) {
                    let slot = &all[random.below(all.len() as u64) as usize];
                    let iova = slot.iova + random.below(slot.length);
                    if let Some(found) = table.walk_coalesced(iova) {
                        assert_eq!(found.pa, iova + MOVED);
                    }
                    if let Some(found) = table.walk_marking(iova, Access::WRITE) {
                        assert_eq!(found.pa, iova + MOVED);
                    }
                }
            });
        }
        let owners: Vec<_> = (0..THREADS)
            .map(|thread| {
                let table = &table;
                scope.spawn(move || {
                    let mut random = Random(fastrand::Rng::with_seed(0x2545_f491_4f6c_dd1d + thread));
                    let mut slots = slots::<F>(thread);
                    let mut kept = EmptyTables::none();
                    // Enough tables for all that is kept.
                    let steps = if walkers == 0 { STEPS } else { 600 };
                    for _ in 0..steps {
                        let number = random.below(slots.len() as u64) as usize;
                        step(table, &mut slots[number], &mut random, &mut kept);
                        if walkers == 0 {
                            table.free(std::mem::replace(&mut kept, EmptyTables::none()));
                        }
                    }
                    for slot in slots.iter().filter(|slot| slot.mapped.is_some()) {
                        table.unmap(slot.iova, slot.length, &mut kept).unwrap();
                    }
                    kept
                })
            })
            .collect();
        let kept: Vec<_> = owners.into_iter().map(|owner| owner.join()).collect();
        done.store(true, Ordering::Relaxed);
        kept
    });
    for tables in kept {
        arena.free(tables.unwrap());
    }
    assert_eq!(table.iter(0, 1 << F::iova_bits()).next(), None);
    assert_eq!(arena.in_use(), 1, "only the root is left");
}

/// Of one large page, each thread splits another part.
fn one_page_is_split_by_several<F: Format>() {
    let size = 1u64 << F::shift(1);
    let arena = Arc::new(Arena::new(1 << 12));
    let table = PageTable::<F>::new(arena.clone()).unwrap();
    let mut empty = EmptyTables::none();
    for _ in 0..STEPS / 40 {
        table.map(size, size, size, Access::all(), &mut empty).unwrap();
        std::thread::scope(|scope| {
            for part in 0..THREADS {
                let table = &table;
                scope.spawn(move || {
                    let length = size / 4;
                    let iova = size + part * length;
                    table.split(iova, length, F::PAGE_SHIFT).unwrap();
                    assert!(table.iter(iova, length).all(|(_, found)| found.page_shift == F::PAGE_SHIFT));
                    table.protect(iova, length, Access::READ).unwrap();
                });
            }
        });
        let found: Vec<_> = table.iter(0, 1 << F::iova_bits()).collect();
        assert_eq!(found.iter().map(|(_, page)| 1u64 << page.page_shift).sum::<u64>(), size);
        for (iova, page) in found {
            let changed = iova < size + THREADS * size / 4;
            assert_eq!((page.pa, page.access), (iova, if changed { Access::READ } else { Access::all() }));
        }
        table.unmap(size, size, &mut empty).unwrap();
        table.free(std::mem::replace(&mut empty, EmptyTables::none()));
        assert_eq!(arena.in_use(), 1, "only the root is left");
    }
}

/// Threads write to every page once, in the same words of the log, while another reads and clears: it is told of each
/// page once.
fn no_mark_is_lost<F: Format>() {
    let pages = STEPS;
    let table = PageTable::<F>::new(Arc::new(Arena::new(1 << 12))).unwrap();
    let mut empty = EmptyTables::none();
    let leaves = Leaves { access: Access::all(), largest: F::PAGE_SHIFT };
    table.map(0, 0, pages << F::PAGE_SHIFT, leaves, &mut empty).unwrap();
    table.start_tracking().unwrap();
    let told: Vec<_> = (0..pages).map(|_| AtomicU32::new(0)).collect();
    let read = || {
        let visit = |word: iopt::DirtyWord| {
            for bit in (0..64).filter(|bit| word.bits >> bit & 1 == 1) {
                let page = (word.iova + (bit << word.page_shift)) >> F::PAGE_SHIFT;
                told[page as usize].fetch_add(1, Ordering::Relaxed);
            }
        };
        table.read_dirty(0, pages << F::PAGE_SHIFT, true, visit).unwrap();
    };
    let writing = AtomicU32::new(2);
    std::thread::scope(|scope| {
        for first in 0..2 {
            let (table, writing) = (&table, &writing);
            scope.spawn(move || {
                for page in (first..pages).step_by(2) {
                    table.walk_marking(page << F::PAGE_SHIFT, Access::WRITE).unwrap();
                }
                writing.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while writing.load(Ordering::Relaxed) > 0 {
            read();
        }
    });
    read();
    assert!(told.iter().all(|times| times.load(Ordering::Relaxed) == 1));
}

/// There are tables for both threads, if what one gives back while the other is inside counts.
#[test]
fn tables_that_were_given_back_are_to_be_had() {
    type Table = PageTable<VtdSecondStage>;
    let arena = Arc::new(Arena::new(512));
    let (table, others) = (Table::new(arena.clone()).unwrap(), Table::new(arena.clone()).unwrap());
    let mut empty = EmptyTables::none();
    let far = |n: u64| n << VtdSecondStage::shift(1);
    let taken =
        (0..).take_while(|&n| others.map(far(n), 0, 4096, Access::READ, &mut EmptyTables::none()).is_ok()).count();
    for n in 1..=6 {
        others.unmap(far(taken as u64 - n), 4096, &mut empty).unwrap();
    }
    arena.free(empty);
    assert_eq!(arena.in_use(), 512 - 6);
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let table = &table;
            scope.spawn(move || {
                for _ in 0..STEPS {
                    let mut empty = EmptyTables::none();
                    let iova = thread << VtdSecondStage::shift(3);
                    table.map(iova, 0, 4096, Access::READ, &mut empty).unwrap();
                    table.unmap(iova, 4096, &mut empty).unwrap();
                    table.free(empty);
                }
            });
        }
    });
    assert_eq!(arena.in_use(), 512 - 6);
}

/// Two threads, each with a page of its own in the same table, which comes and goes.
fn a_table_comes_and_goes<F: Format>() {
    let arena = Arc::new(Arena::new(1 << 10));
    let table = PageTable::<F>::new(arena.clone()).unwrap();
    let page = 1u64 << F::PAGE_SHIFT;
    std::thread::scope(|scope| {
        for own in [0, page] {
            let table = &table;
            scope.spawn(move || {
                for n in 0..STEPS {
                    let mut empty = EmptyTables::none();
                    // Elsewhere as well, so that a table that went is soon another.
                    let elsewhere = own + (1 << F::shift(2)) * (1 + n % 3);
                    for iova in [own, elsewhere] {
                        table.map(iova, iova + MOVED, page, Access::READ, &mut empty).unwrap();
                        assert_eq!(table.walk(iova).map(|found| found.pa), Some(iova + MOVED));
                    }
                    for iova in [own, elsewhere] {
                        assert_eq!(table.walk(iova).map(|found| found.pa), Some(iova + MOVED));
                        table.unmap(iova, page, &mut empty).unwrap();
                    }
                    table.free(empty);
                }
            });
        }
    });
    assert_eq!(arena.in_use(), 1, "only the root is left");
}

#[test]
fn tables_are_not_used_again_while_somebody_may_be_inside() {
    let arena = Arc::new(Arena::new(512));
    let table = PageTable::<VtdSecondStage>::new(arena.clone()).unwrap();
    let unmap = || {
        let mut empty = EmptyTables::none();
        table.map(0, 0, 4096, Access::READ, &mut empty).unwrap();
        table.unmap(0, 4096, &mut empty).unwrap();
        table.free(empty);
    };
    let first = table.iter(0, 4096);
    unmap();
    assert_eq!(arena.in_use(), 4);
    // Whoever came later has met none of them, but may meet those of the second time.
    let second = table.iter(0, 4096);
    unmap();
    assert_eq!(arena.in_use(), 7);
    drop(first);
    assert_eq!(arena.in_use(), 4);
    drop(second);
    assert_eq!(arena.in_use(), 1);
}

macro_rules! for_formats {
    ($($name:ident: $format:ty,)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn nothing_is_lost_beside_neighbours() {
                nothing_is_lost::<$format>(0);
            }

            #[test]
            fn nothing_is_lost_beside_neighbours_and_walkers() {
                nothing_is_lost::<$format>(1);
            }

            #[test]
            fn a_table_comes_and_goes() {
                super::a_table_comes_and_goes::<$format>();
            }

            #[test]
            fn one_page_is_split_by_several() {
                super::one_page_is_split_by_several::<$format>();
            }

            #[test]
            fn no_mark_is_lost() {
                super::no_mark_is_lost::<$format>();
            }
        }
    )*};
}

for_formats! {
    vtd_second_stage: VtdSecondStage,
    vtd_second_stage_5_levels: VtdSecondStageFiveLevels,
    x86_64: X86_64,
    amd_v1: AmdV1,
    amd_v1_5_levels: AmdV1<5>,
    armv8_stage_1_4k: Armv8Stage1<12>,
    armv8_stage_2_4k: Armv8Stage2<12>,
    armv8_stage_2_16k: Armv8Stage2<14>,
    sv48: Sv48,
    sv57: Sv57,
    sv48_napot: RiscV<4, true>,
}

#[test]
fn splitting_a_page_leaves_alone_what_another_thread_made_of_its_part() {
    let table = PageTable::<AmdV1>::new(Arc::new(Arena::new(1 << 10))).unwrap();
    let (half, old, new) = (1u64 << 19, 1u64 << 30, 1u64 << 31);
    for turn in 0..STEPS {
        let mut empty = EmptyTables::none();
        table.map(0, old, 2 * half, Access::all(), &mut empty).unwrap();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                table.split(0, 4096, 12).unwrap();
            });
            scope.spawn(|| {
                let mut empty = EmptyTables::none();
                start.wait();
                table.split(half, half, 19).unwrap();
                table.unmap(half, half, &mut empty).unwrap();
                table.map(half, new, half, Access::all(), &mut empty).unwrap();
            });
        });
        for page in 0..128 {
            let at = half + page * 4096;
            assert_eq!(table.walk(at).unwrap().pa, new + page * 4096, "turn {turn}, {at:#x}");
        }
        table.unmap(0, half, &mut empty).unwrap();
        table.unmap(half, half, &mut empty).unwrap();
        table.free(empty);
    }
}

/// Those who split to different sizes meet in the same page, and none leaves an entry that says that it has what
/// another has unmapped since.
#[test]
fn no_entry_says_that_it_has_what_was_split_off_and_unmapped() {
    let table = PageTable::<AmdV1>::new(Arc::new(Arena::new(1 << 10))).unwrap();
    let (size, part) = (1u64 << 20, 1u64 << 14);
    for turn in 0..STEPS {
        let mut empty = EmptyTables::none();
        table.map(0, size, size, Access::all(), &mut empty).unwrap();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            let (start, table) = (&start, &table);
            for (iova, largest) in [(3 * part, 12), (6 * part, 14)] {
                scope.spawn(move || {
                    start.wait();
                    table.split(iova, part, largest).unwrap();
                    table.unmap(iova, part, &mut EmptyTables::none()).unwrap();
                    for at in (0..size).step_by(4096) {
                        let Some(found) = table.walk(at) else { continue };
                        let first = at >> found.page_shift << found.page_shift;
                        let end = first + (1 << found.page_shift);
                        assert!(end <= iova || iova + part <= first, "turn {turn}: {at:#x} has {first:#x} to {end:#x}");
                    }
                });
            }
        });
        table.split(0, size, 14).unwrap();
        for at in [0, 4 * part, 7 * part] {
            let end = if at == 0 {
                3 * part
            } else if at == 4 * part {
                6 * part
            } else {
                size
            };
            table.unmap(at, end - at, &mut empty).unwrap();
        }
        table.free(empty);
        assert_eq!(table.arena().in_use(), 1, "only the root is left");
    }
}

#[test]
fn a_full_arena_is_an_error_to_who_keeps_tables_from_coming_back() {
    let arena = Arc::new(Arena::new(512));
    let table = PageTable::<VtdSecondStage>::new(arena).unwrap();
    let mut empty = EmptyTables::none();
    let full = (0u64..).find(|n| table.map(n << 21, 0, 4096, Access::READ, &mut empty).is_err()).unwrap();
    let pages = table.iter(0, 4096);
    table.unmap(0, 4096, &mut empty).unwrap();
    table.free(empty);
    let mut empty = EmptyTables::none();
    assert_eq!(table.map(full << 21, 0, 4096, Access::READ, &mut empty), Err(MapError::OutOfTables));
    drop(pages);
    assert_eq!(table.map(full << 21, 0, 4096, Access::READ, &mut empty), Ok(()));
    table.free(empty);
}
