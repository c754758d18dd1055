//! Walks over memory that somebody else wrote.

// Miri takes minutes over tables of 512 entries; tests/small_tables.rs is for it.
#![cfg(not(miri))]
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};

use iopt::format::{
    AmdV1, Armv8Stage1, Armv8Stage2, Mock, RiscV, Sv57, VtdSecondStage, VtdSecondStageFiveLevels, X86_64,
    X86_64FiveLevels,
};
use iopt::{Access, Format, GuestMemory, TableAddr, View, walk, walk_guest};
use proptest::prelude::*;

const ENTRIES: u64 = 2048;

/// Noise; entries that lead to tables, near or far; pages. Addresses and levels are right or not.
fn entry<F: Format>() -> impl Strategy<Value = u64> {
    let near = (0..6u64, 0..F::LEVELS).prop_map(|(page, level)| F::table(TableAddr(page << 12), level));
    let far = (any::<u64>(), 0..F::LEVELS).prop_map(|(addr, level)| F::table(TableAddr(addr), level));
    let page = (any::<u64>(), 0..F::LEVELS)
        .prop_map(|(pa, level)| F::leaf(pa, F::shift(level).max(F::PAGE_SHIFT), Access::all(), level));
    prop_oneof![1 => Just(0), 1 => any::<u64>(), 4 => near, 1 => far, 2 => page]
}

/// An IOVA whose entries lie where the pattern put them, or anywhere.
fn iova<F: Format>() -> impl Strategy<Value = u64> {
    let indices = prop::collection::vec(0..8u64, usize::from(F::LEVELS));
    let near = indices.prop_map(|indices| (0..).zip(indices).map(|(level, index)| index << F::shift(level)).sum());
    prop_oneof![near, any::<u64>()]
}

/// The same entries, as a guest's.
struct Guest<'a>(&'a [AtomicU64]);

impl GuestMemory for Guest<'_> {
    type Error = ();

    fn load(&mut self, address: u64) -> Result<u64, ()> {
        assert_eq!(address % 8, 0);
        self.0.get(address as usize / 8).map(|entry| entry.load(Ordering::Relaxed)).ok_or(())
    }

    fn compare_exchange(&mut self, address: u64, current: u64, _: u64) -> Result<bool, ()> {
        // It says so, and changes nothing.
        Ok(self.load(address)? == current)
    }
}

fn walks_end<F: Format>(pattern: &[u64], root: u64, iovas: &[u64]) {
    let entries: Vec<_> = (0..ENTRIES).map(|n| AtomicU64::new(pattern[n as usize % 512 % pattern.len()])).collect();
    let view = View::<F>::new(&entries, TableAddr(root));
    let mut upper = None;
    for &iova in iovas {
        let found = view.walk(iova);
        assert_eq!(walk::<F>(&entries, TableAddr(root), iova), found);
        let coalesced = view.walk_coalesced(iova);
        assert_eq!(coalesced.map(|page| (page.pa, page.access)), found.map(|page| (page.pa, page.access)));
        assert_eq!(view.upper(iova).is_some(), found.is_some());
        let guest = walk_guest::<F, _>(&mut Guest(&entries), TableAddr(root), F::iova_bits(), iova, Access::READ);
        if found.is_some() {
            assert_eq!(guest.map(|guest| guest.map(|guest| guest.found)), Ok(found));
        }
        // Whatever it belongs to.
        upper = view.upper(iova).or(upper);
        if let Some(upper) = upper {
            let _ = (view.walk_below(upper, iova), view.walk_coalesced_below(upper, iova));
        }
    }
}

macro_rules! for_formats {
    ($($name:ident: $format:ty,)*) => {proptest! {$(
        #[test]
        fn $name(
            pattern in prop::collection::vec(entry::<$format>(), 1..64),
            root in prop_oneof![4 => (0..5u64).prop_map(|page| page << 12), 1 => any::<u64>()],
            iovas in prop::collection::vec(iova::<$format>(), 32),
        ) {
            walks_end::<$format>(&pattern, root, &iovas);
        }
    )*}};
}

for_formats! {
    a_walk_of_vtd_second_stage_ends: VtdSecondStage,
    a_walk_of_vtd_second_stage_with_five_levels_ends: VtdSecondStageFiveLevels,
    a_walk_of_x86_64_ends: X86_64,
    a_walk_of_x86_64_with_five_levels_ends: X86_64FiveLevels,
    a_walk_of_amd_v1_ends: AmdV1,
    a_walk_of_the_mock_ends: Mock,
    a_walk_of_armv8_stage_1_ends: Armv8Stage1<12>,
    a_walk_of_armv8_stage_2_with_4_kib_ends: Armv8Stage2<12>,
    a_walk_of_armv8_stage_2_with_16_kib_ends: Armv8Stage2<14>,
    a_walk_of_armv8_stage_2_with_64_kib_ends: Armv8Stage2<16>,
    a_walk_of_sv57_ends: Sv57,
    a_walk_of_sv39_with_napot_ends: RiscV<3, true>,
}

#[test]
fn a_table_that_is_its_own_table_maps_nothing() {
    let entries: Vec<_> = (0..512).map(|_| AtomicU64::new(VtdSecondStage::table(TableAddr(0), 1))).collect();
    // At level 0 what leads to the table is a page at its address.
    assert_eq!(walk::<VtdSecondStage>(&entries, TableAddr(0), 0x1234).unwrap().pa, 0x234);
    let entries: Vec<_> = (0..512).map(|_| AtomicU64::new(AmdV1::<4>::table(TableAddr(0), 2))).collect();
    assert_eq!(walk::<AmdV1>(&entries, TableAddr(0), 0x1234), None);
}
