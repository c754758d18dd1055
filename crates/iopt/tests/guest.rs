//! Walks of a guest's table: the same translations as in a table of our own, with the marks that processors make.

// Miri takes minutes over tables of 512 entries; tests/small_tables.rs is for it.
#![cfg(not(miri))]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use iopt::format::{
    Armv8Stage1, RiscV, Sv39, Sv48, Sv57, VtdSecondStage, VtdSecondStageFiveLevels, X86_64, X86_64FiveLevels,
};
use iopt::{
    Access, Arena, EmptyTables, Format, GuestMemory, GuestTranslation, PageTable, TableAddr, TableMemory, walk_guest,
};
use proptest::prelude::*;

/// Where the test maps, in pages.
const SPACE: u64 = 1 << 20;

/// A copy of a table, as a guest has it.
struct Guest {
    entries: Vec<u64>,
    marks: usize,
}

impl GuestMemory for Guest {
    type Error = Infallible;

    fn load(&mut self, address: u64) -> Result<u64, Infallible> {
        assert_eq!(address % 8, 0);
        Ok(self.entries[address as usize / 8])
    }

    fn compare_exchange(&mut self, address: u64, current: u64, new: u64) -> Result<bool, Infallible> {
        let entry = &mut self.entries[address as usize / 8];
        if *entry == current {
            *entry = new;
            self.marks += 1;
        }
        Ok(*entry == new)
    }
}

type Map = (u64, u64, u64, Access);

fn maps() -> impl Strategy<Value = Vec<Map>> {
    let access = prop_oneof![Just(Access::READ), Just(Access::all())];
    let small = (0..SPACE, 0..SPACE, 1..40u64);
    let large = (0..11u32, 0..8u64, 0..8u64, 1..5u64).prop_map(|(n, from, to, pages)| (from << n, to << n, pages << n));
    prop::collection::vec((prop_oneof![small, large], access), 1..8)
        .prop_map(|maps| maps.into_iter().map(|((page, to, pages), access)| (page, to, pages, access)).collect())
}

fn translates_and_marks<F: Format>(maps: &[Map], accesses: &[(usize, u64, bool)]) {
    let table = PageTable::<F>::new(Arc::new(Arena::new(2048))).unwrap();
    let mut empty = EmptyTables::none();
    for &(page, to, pages, access) in maps {
        let [iova, pa, length] = [page, to, pages].map(|pages| pages << F::PAGE_SHIFT);
        // What overlaps is refused.
        let _ = table.map(iova, pa, length, access, &mut empty);
    }
    let entries = table.arena().memory().entries();
    let mut guest = Guest { entries: entries.iter().map(|entry| entry.load(Ordering::Relaxed)).collect(), marks: 0 };
    let (mut read, mut written) = (BTreeSet::new(), BTreeSet::new());
    for &(which, offset, write) in accesses {
        let (page, _, pages, _) = maps[which % maps.len()];
        // At times just beyond.
        let iova = (page << F::PAGE_SHIFT) + offset % ((pages + 1) << F::PAGE_SHIFT);
        let access = if write { Access::WRITE } else { Access::READ };
        let expected = table.walk(iova);
        let before = guest.marks;
        let Some(GuestTranslation { found, cachable }) =
            walk_guest::<F, _>(&mut guest, table.root(), F::iova_bits(), iova, access).unwrap()
        else {
            assert_eq!(expected, None);
            continue;
        };
        assert_eq!(Some(found), expected);
        let leaf = iova >> found.page_shift << found.page_shift;
        if !found.access.contains(access) {
            assert_eq!(found.access & !access, cachable & !access);
            continue;
        }
        if write {
            written.insert(leaf);
        }
        let first = read.insert(leaf);
        assert!(first || write || guest.marks == before, "a second read marks nothing");
        let marked = F::DIRTY == 0 || written.contains(&leaf);
        assert_eq!(cachable, if marked { found.access } else { found.access - Access::WRITE });
    }
    // What was marked is marked, and it is the same table.
    let marks = F::ACCESSED | F::DIRTY;
    for (now, then) in guest.entries.iter().zip(entries) {
        assert_eq!(now & !marks, then.load(Ordering::Relaxed) & !marks);
    }
    let seen = guest.entries.iter().filter(|entry| *entry & F::ACCESSED != 0).count();
    assert!(F::ACCESSED == 0 || read.is_empty() || seen >= usize::from(F::LEVELS) - 2, "{seen} entries");
}

macro_rules! for_formats {
    ($($name:ident: $format:ty,)*) => {proptest! {$(
        #[test]
        fn $name(
            maps in maps(),
            accesses in prop::collection::vec((any::<usize>(), any::<u64>(), any::<bool>()), 1..40),
        ) {
            translates_and_marks::<$format>(&maps, &accesses);
        }
    )*}};
}

for_formats! {
    x86_64: X86_64,
    x86_64_with_five_levels: X86_64FiveLevels,
    vtd_second_stage: VtdSecondStage,
    vtd_second_stage_with_five_levels: VtdSecondStageFiveLevels,
    armv8_with_4_kib: Armv8Stage1<12>,
    armv8_with_16_kib: Armv8Stage1<14>,
    armv8_with_64_kib: Armv8Stage1<16>,
    sv39: Sv39,
    sv48: Sv48,
    sv57: Sv57,
    sv48_with_napot: RiscV<4, true>,
}

#[test]
fn a_guest_that_keeps_changing_an_entry_is_given_up() {
    /// Tables lead to themselves, and no entry is ever what it was.
    struct Changing(u64);
    impl GuestMemory for Changing {
        type Error = Infallible;
        fn load(&mut self, _: u64) -> Result<u64, Infallible> {
            Ok(X86_64::table(TableAddr(0), 3))
        }
        fn compare_exchange(&mut self, _: u64, _: u64, _: u64) -> Result<bool, Infallible> {
            self.0 += 1;
            Ok(false)
        }
    }
    let mut memory = Changing(0);
    assert_eq!(walk_guest::<X86_64, _>(&mut memory, TableAddr(0), 47, 0x1000, Access::READ), Ok(None));
    assert!((2..1000).contains(&memory.0), "{} attempts", memory.0);
}

#[test]
fn what_cannot_be_reached_is_said() {
    struct Nothing;
    impl GuestMemory for Nothing {
        type Error = u64;
        fn load(&mut self, address: u64) -> Result<u64, u64> {
            Err(address)
        }
        fn compare_exchange(&mut self, address: u64, _: u64, _: u64) -> Result<bool, u64> {
            Err(address)
        }
    }
    // Near the end of the space, too.
    let root = TableAddr(!0xfff);
    let at = walk_guest::<X86_64, _>(&mut Nothing, root, 47, 511 << 39 >> 1, Access::READ).unwrap_err();
    assert_eq!(at, root.0 + 8 * 255);
    assert_eq!(walk_guest::<X86_64, _>(&mut Nothing, root, 47, 1 << 47, Access::READ), Ok(None));
}
