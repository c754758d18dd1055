//! Entries, bit for bit as the manuals say, written out by hand.

// Arithmetic alone: there is no memory for Miri to look at.
#![cfg(not(miri))]
#![allow(clippy::unwrap_used)]

use iopt::format::{
    AmdV1, Armv8Stage1, Armv8Stage2, Mock, RiscV, Sv39, Sv48, Sv57, VtdLevels, VtdSecondStage,
    VtdSecondStageFiveLevels, X86_64, X86_64FiveLevels,
};
use iopt::{Access, Entry, Format, TableAddr};

const READ: Access = Access::READ;
const WRITE: Access = Access::WRITE;
const BOTH: Access = Access::all();

/// `leaf` of a page that one entry makes, and back.
#[track_caller]
fn page<F: Format>(level: u8, pa: u64, access: Access, bits: u64) {
    part::<F>(level, F::shift(level), pa, access, bits);
}

/// `leaf` of an entry for the part at `pa` of a page of 2^`page_shift` bytes, and back.
#[track_caller]
fn part<F: Format>(level: u8, page_shift: u32, pa: u64, access: Access, bits: u64) {
    assert_eq!(F::leaf(pa, page_shift, access, level), bits, "{:#x}", F::leaf(pa, page_shift, access, level));
    let page = pa >> page_shift << page_shift;
    assert_eq!(F::decode(bits, level), Entry::Leaf { pa: page, page_shift, access });
}

#[track_caller]
fn table<F: Format>(level: u8, addr: u64, bits: u64) {
    assert_eq!(F::table(TableAddr(addr), level), bits, "{:#x}", F::table(TableAddr(addr), level));
    assert_eq!(F::decode(bits, level), Entry::Table(TableAddr(addr), BOTH));
}

#[track_caller]
fn maps_nothing<F: Format>(level: u8, bits: u64) {
    assert_eq!(F::decode(bits, level), Entry::Empty, "{bits:#x}");
}

/// A leaf of one entry that others may have written.
#[track_caller]
fn allows<F: Format>(level: u8, bits: u64, wanted: Access) {
    let Entry::Leaf { access, .. } = F::decode(bits, level) else { panic!("{bits:#x} is no leaf") };
    assert_eq!(access, wanted, "{bits:#x}");
}

#[test]
fn vtd_second_stage() {
    page::<VtdSecondStage>(0, 0x1234_5000, READ, 0x1234_5001);
    page::<VtdSecondStage>(0, 0x1234_5000, WRITE, 0x1234_5002);
    page::<VtdSecondStage>(1, 0x1220_0000, BOTH, 0x1220_0083);
    page::<VtdSecondStage>(2, 0xf_ffff_c000_0000, READ, 0x000f_ffff_c000_0081);
    table::<VtdSecondStage>(3, 0x7000, 0x7003);
    maps_nothing::<VtdSecondStage>(0, 0x1234_5000);
    maps_nothing::<VtdSecondStage>(1, 0x1220_1083);
    maps_nothing::<VtdSecondStage>(3, 0x83);
    // With a level more the entries are the same.
    page::<VtdSecondStageFiveLevels>(2, 0xf_ffff_c000_0000, WRITE, 0x000f_ffff_c000_0082);
    table::<VtdSecondStageFiveLevels>(3, 0x7000, 0x7003);
    table::<VtdSecondStageFiveLevels>(4, 0x7000, 0x7003);
    maps_nothing::<VtdSecondStageFiveLevels>(3, 0x83);
    maps_nothing::<VtdSecondStageFiveLevels>(4, 0x83);
    // Either right alone makes an entry present, in tables as well.
    assert_eq!(VtdSecondStage::decode(0x7001, 3), Entry::Table(TableAddr(0x7000), READ));
    assert_eq!(VtdSecondStage::decode(0x7002, 3), Entry::Table(TableAddr(0x7000), WRITE));
}

/// Levels, bits of an IOVA, and the pages there are, as log2 of their bytes.
#[track_caller]
fn has<F: Format>(levels: u8, iova_bits: u32, pages: impl IntoIterator<Item = u32>) {
    assert_eq!((F::LEVELS, F::iova_bits()), (levels, iova_bits));
    let found: u64 = (0..levels).map(F::page_sizes).sum();
    assert_eq!(found, pages.into_iter().fold(0, |sizes, page| sizes | 1 << page), "{found:#x}");
}

#[test]
fn every_format_has_the_widths_and_pages_that_its_page_says() {
    has::<VtdLevels<3>>(3, 39, [12, 21, 30]);
    has::<VtdSecondStage>(4, 48, [12, 21, 30]);
    has::<VtdSecondStageFiveLevels>(5, 57, [12, 21, 30]);
    has::<AmdV1<3>>(3, 39, 12..39);
    has::<AmdV1>(4, 48, 12..48);
    has::<AmdV1<5>>(5, 57, 12..57);
    has::<Mock>(5, 56, 11..56);
    has::<Armv8Stage1<12>>(4, 48, [12, 16, 21, 25, 30, 34]);
    has::<Armv8Stage1<14>>(4, 48, [14, 21, 25, 30]);
    has::<Armv8Stage1<16>>(3, 48, [16, 21, 29, 34]);
    has::<Armv8Stage2<12>>(4, 48, [12, 16, 21, 25, 30, 34]);
    has::<Armv8Stage2<14>>(3, 48, [14, 21, 25, 30]);
    has::<Armv8Stage2<16>>(3, 48, [16, 21, 29, 34]);
    has::<Sv39>(3, 38, [12, 21, 30]);
    has::<Sv48>(4, 47, [12, 21, 30, 39]);
    has::<Sv57>(5, 56, [12, 21, 30, 39, 48]);
    has::<RiscV<4, true>>(4, 47, [12, 16, 21, 30, 39]);
    has::<X86_64>(4, 47, [12, 21, 30]);
    has::<X86_64FiveLevels>(5, 56, [12, 21, 30]);
}

#[test]
fn x86_64() {
    page::<X86_64>(0, 0x1234_5000, READ, 0x1234_5005);
    page::<X86_64>(0, 0x1234_5000, BOTH, 0x1234_5007);
    page::<X86_64>(1, 0x1220_0000, READ, 0x1220_0085);
    page::<X86_64>(1, 0x1220_0000, BOTH, 0x1220_0087);
    page::<X86_64>(2, 0xf_ffff_c000_0000, BOTH, 0x000f_ffff_c000_0087);
    for level in 1..4 {
        table::<X86_64>(level, 0x7000, 0x7007);
    }
    table::<X86_64FiveLevels>(4, 0x7000, 0x7007);
    // Global, dirty, accessed, PAT and NX say nothing of what a device may do.
    allows::<X86_64>(0, 0x8000_0000_1234_51e7, BOTH);
    allows::<X86_64>(1, 0x8000_0000_1220_11e7, BOTH);
    // A supervisor's page.
    allows::<X86_64>(0, 0x1234_5003, Access::empty());
    maps_nothing::<X86_64>(0, 0x1234_5006);
    maps_nothing::<X86_64>(1, 0x1220_2085);
    maps_nothing::<X86_64>(3, 0x87);
    maps_nothing::<X86_64FiveLevels>(4, 0x87);
    assert_eq!(X86_64::decode(0x7005, 2), Entry::Table(TableAddr(0x7000), READ));
}

#[test]
fn write_without_read_becomes_both_where_it_cannot_be_said() {
    assert_eq!(X86_64::leaf(0, 12, WRITE, 0), 0x7);
    assert_eq!(Armv8Stage1::<12>::leaf(0, 12, WRITE, 0), 0xf43);
    assert_eq!(Sv39::leaf(0, 12, WRITE, 0), 0xd7);
}

#[test]
fn amd_v1() {
    page::<AmdV1>(0, 0x1234_5000, READ, 0x2000_0000_1234_5001);
    page::<AmdV1>(0, 0x1234_5000, WRITE, 0x4000_0000_1234_5001);
    page::<AmdV1>(1, 0x1220_0000, BOTH, 0x6000_0000_1220_0001);
    page::<AmdV1>(3, 0xf_ff80_0000_0000, BOTH, 0x600f_ff80_0000_0001);
    table::<AmdV1>(1, 0x7000, 0x6000_0000_0000_7201);
    table::<AmdV1>(3, 0x7000, 0x6000_0000_0000_7601);
    table::<AmdV1<5>>(4, 0x7000, 0x6000_0000_0000_7801);
    maps_nothing::<AmdV1>(0, 0x6000_0000_1234_5000);
    // The next level skips one, is this one, or is above.
    maps_nothing::<AmdV1>(3, 0x6000_0000_0000_7401);
    maps_nothing::<AmdV1>(1, 0x6000_0000_0000_7401);
    maps_nothing::<AmdV1>(0, 0x6000_0000_0000_7201);
}

#[test]
fn amd_v1_says_sizes_between_levels_in_the_address() {
    // 8 KiB, 16 KiB, 32 KiB, 1 MiB; all entries are the same, whichever part they are for.
    part::<AmdV1>(0, 13, 0x1234_6000, BOTH, 0x6000_0000_1234_6e01);
    part::<AmdV1>(0, 13, 0x1234_7000, BOTH, 0x6000_0000_1234_6e01);
    part::<AmdV1>(0, 14, 0x1234_4000, BOTH, 0x6000_0000_1234_5e01);
    part::<AmdV1>(0, 15, 0x1234_8000, BOTH, 0x6000_0000_1234_be01);
    part::<AmdV1>(0, 20, 0x1230_0000, READ, 0x2000_0000_1237_fe01);
    // 4 MiB and 512 MiB at level 1, 2 GiB at level 2, 2^51 bytes at level 4.
    part::<AmdV1>(1, 22, 0x1240_0000, BOTH, 0x6000_0000_125f_fe01);
    part::<AmdV1>(1, 29, 0x2020_0000, BOTH, 0x6000_0000_2fff_fe01);
    part::<AmdV1>(2, 31, 0x8000_0000, BOTH, 0x6000_0000_bfff_fe01);
    part::<AmdV1<5>>(4, 51, 0x8_0000_0000_0000, BOTH, 0x600b_ffff_ffff_fe01);
    // Sizes that belong to another level, and no size at all.
    maps_nothing::<AmdV1>(1, 0x6000_0000_1234_6e01);
    maps_nothing::<AmdV1>(0, 0x6000_0000_125f_fe01);
    maps_nothing::<AmdV1>(0, 0x600f_ffff_ffff_fe01);
}

#[test]
fn mock_counts_pages_of_2_kib() {
    page::<Mock>(0, 0x1234_5800, BOTH, 0x6000_0000_2468_b001);
    page::<Mock>(1, 0x1210_0000, BOTH, 0x6000_0000_2420_0001);
    part::<Mock>(0, 12, 0x1234_5000, READ, 0x2000_0000_2468_ae01);
    part::<Mock>(0, 13, 0x1234_6800, READ, 0x2000_0000_2468_de01);
    table::<Mock>(1, 0x7000, 0x6000_0000_0000_e201);
}

#[test]
fn armv8_stage_1() {
    // nG, AF, inner shareable, AP[1], attribute 0, page.
    page::<Armv8Stage1<12>>(0, 0x1234_5000, BOTH, 0x1234_5f43);
    page::<Armv8Stage1<12>>(0, 0x1234_5000, READ, 0x1234_5fc3);
    page::<Armv8Stage1<12>>(1, 0x1220_0000, READ, 0x1220_0fc1);
    page::<Armv8Stage1<12>>(2, 0xffff_c000_0000, BOTH, 0x0000_ffff_c000_0f41);
    page::<Armv8Stage1<14>>(0, 0x1234_4000, BOTH, 0x1234_4f43);
    page::<Armv8Stage1<14>>(1, 0x1200_0000, BOTH, 0x1200_0f41);
    page::<Armv8Stage1<16>>(0, 0x1234_0000, BOTH, 0x1234_0f43);
    page::<Armv8Stage1<16>>(1, 0x2000_0000, BOTH, 0x2000_0f41);
    table::<Armv8Stage1<12>>(3, 0x7000, 0x7003);
    table::<Armv8Stage1<14>>(3, 0x1_4000, 0x1_4003);
    table::<Armv8Stage1<16>>(2, 0x3_0000, 0x3_0003);
    assert_eq!(Armv8Stage1::<12>::MAIR & 0xff, 0xff, "attribute 0 is write-back");

    // PXN, UXN, DBM, GP and software bits are no address and no permission.
    allows::<Armv8Stage1<12>>(0, 0x01ec_0000_1234_5f43, BOTH);
    // Not for the unprivileged.
    allows::<Armv8Stage1<12>>(0, 0x1234_5f03, Access::empty());
    // APTable: read-only, and not for the unprivileged.
    assert_eq!(Armv8Stage1::<12>::decode(0x4000_0000_0000_7003, 1), Entry::Table(TableAddr(0x7000), READ));
    assert_eq!(Armv8Stage1::<12>::decode(0x2000_0000_0000_7003, 1), Entry::Table(TableAddr(0x7000), Access::empty()));
    // A block at level 0, a block where there is none, AF clear, not valid.
    maps_nothing::<Armv8Stage1<12>>(0, 0x1234_5f41);
    maps_nothing::<Armv8Stage1<12>>(3, 0xf41);
    maps_nothing::<Armv8Stage1<14>>(2, 0xf41);
    maps_nothing::<Armv8Stage1<16>>(2, 0xf41);
    maps_nothing::<Armv8Stage1<12>>(0, 0x1234_5b43);
    maps_nothing::<Armv8Stage1<12>>(0, 0x1234_5f42);
}

#[test]
fn armv8_stage_2() {
    // AF, inner shareable, S2AP, write-back memory, page.
    page::<Armv8Stage2<12>>(0, 0x1234_5000, READ, 0x1234_577f);
    page::<Armv8Stage2<12>>(0, 0x1234_5000, WRITE, 0x1234_57bf);
    page::<Armv8Stage2<12>>(0, 0x1234_5000, BOTH, 0x1234_57ff);
    page::<Armv8Stage2<12>>(2, 0x4000_0000, BOTH, 0x4000_07fd);
    page::<Armv8Stage2<14>>(1, 0x1200_0000, BOTH, 0x1200_07fd);
    page::<Armv8Stage2<16>>(1, 0x2000_0000, READ, 0x2000_077d);
    table::<Armv8Stage2<12>>(3, 0x7000, 0x7003);
    table::<Armv8Stage2<14>>(2, 0x1_4000, 0x1_4003);
    // Stage 2 has no APTable.
    assert_eq!(Armv8Stage2::<12>::decode(0x6000_0000_0000_7003, 1), Entry::Table(TableAddr(0x7000), BOTH));
}

#[test]
fn armv8_contiguous_entries_keep_their_own_addresses() {
    part::<Armv8Stage1<12>>(0, 16, 0x1234_5000, BOTH, 0x0010_0000_1234_5f43);
    part::<Armv8Stage1<12>>(1, 25, 0x1220_0000, READ, 0x0010_0000_1220_0fc1);
    part::<Armv8Stage1<12>>(2, 34, 0x4000_0000, BOTH, 0x0010_0000_4000_0f41);
    part::<Armv8Stage2<12>>(0, 16, 0x1234_5000, BOTH, 0x0010_0000_1234_57ff);
    part::<Armv8Stage1<14>>(0, 21, 0x1234_4000, BOTH, 0x0010_0000_1234_4f43);
    part::<Armv8Stage1<14>>(1, 30, 0x1200_0000, BOTH, 0x0010_0000_1200_0f41);
    part::<Armv8Stage2<16>>(0, 21, 0x1233_0000, READ, 0x0010_0000_1233_077f);
    part::<Armv8Stage2<16>>(1, 34, 0x2000_0000, READ, 0x0010_0000_2000_077d);
}

#[test]
fn armv8_has_the_levels_that_48_bits_need() {
    assert_eq!((Armv8Stage1::<12>::LEVELS, Armv8Stage1::<14>::LEVELS, Armv8Stage1::<16>::LEVELS), (4, 4, 3));
    assert_eq!((Armv8Stage2::<12>::LEVELS, Armv8Stage2::<14>::LEVELS, Armv8Stage2::<16>::LEVELS), (4, 3, 3));
    // Entries of the root: two; two tables of 2048 beside each other; 64.
    assert_eq!(Armv8Stage1::<14>::index_bits(3), 1);
    assert_eq!(Armv8Stage2::<14>::index_bits(2), 12);
    assert_eq!(Armv8Stage1::<16>::index_bits(2), 6);
}

#[test]
fn risc_v() {
    // D A U W R V, and the page number from bit 10.
    page::<Sv39>(0, 0x1234_5000, BOTH, 0x048d_14d7);
    page::<Sv39>(0, 0x1234_5000, READ, 0x048d_1453);
    page::<Sv39>(1, 0x1220_0000, READ, 0x0488_0053);
    page::<Sv39>(2, 0x4000_0000, BOTH, 0x1000_00d7);
    page::<Sv48>(3, 0xff_ff80_0000_0000, BOTH, 0x003f_ffe0_0000_00d7);
    page::<Sv57>(4, 0xff_0000_0000_0000, BOTH, 0x003f_c000_0000_00d7);
    table::<Sv39>(2, 0x7000, 0x1c01);
    table::<Sv57>(4, 0x7000, 0x1c01);
    // Global and the software bits.
    allows::<Sv39>(0, 0x048d_17f7, BOTH);
    // Execute-only, and a supervisor's page.
    allows::<Sv39>(0, 0x048d_1459, Access::empty());
    allows::<Sv39>(0, 0x048d_1447, Access::empty());
    // Not valid; write without read; a table below level 0; a table with U, A or D; a page that is not aligned; PBMT; a
    // reserved bit; N without Svnapot.
    maps_nothing::<Sv39>(0, 0x048d_14d6);
    maps_nothing::<Sv39>(0, 0x048d_14d5);
    maps_nothing::<Sv39>(0, 0x1c01);
    for bit in [4, 6, 7] {
        maps_nothing::<Sv39>(1, 0x1c01 | 1 << bit);
    }
    maps_nothing::<Sv39>(1, 0x048d_14d7);
    maps_nothing::<Sv39>(0, 0x2000_0000_048d_14d7);
    maps_nothing::<Sv39>(0, 0x0040_0000_048d_14d7);
    maps_nothing::<Sv39>(0, 0x8000_0000_048d_20d7);
}

#[test]
fn risc_v_napot() {
    type Napot = RiscV<3, true>;
    part::<Napot>(0, 16, 0x1234_0000, BOTH, 0x8000_0000_048d_20d7);
    part::<Napot>(0, 16, 0x1234_f000, BOTH, 0x8000_0000_048d_20d7);
    page::<Napot>(0, 0x1234_5000, BOTH, 0x048d_14d7);
    // Another size, and another level.
    maps_nothing::<Napot>(0, 0x8000_0000_048d_10d7);
    maps_nothing::<Napot>(1, 0x8000_0000_048d_20d7);
}

/// For every page size: any address of the format's width comes back, and no reserved bit is ever set.
fn holds_addresses_of_its_width<F: Format>(reserved: u64) {
    let mut table = 1u64 << (F::INDEX_BITS + 3);
    while table < 1 << 43 {
        for level in 1..F::LEVELS {
            let entry = F::table(TableAddr(table), level);
            assert_eq!(F::decode(entry, level), Entry::Table(TableAddr(table), BOTH));
            assert_eq!(entry & reserved, 0, "{entry:#x}");
        }
        table <<= 1;
    }
    let all = (1u64 << F::PA_BITS) - 1;
    for level in 0..F::LEVELS {
        for page_shift in (0..F::PA_BITS).filter(|n| F::page_sizes(level) >> n & 1 == 1) {
            let one_bit = (page_shift..F::PA_BITS).map(|bit| 1 << bit);
            for page in one_bit.chain([0, all >> page_shift << page_shift]) {
                for access in [READ, BOTH] {
                    for pa in [page, page + (1 << page_shift) - (1 << F::shift(level))] {
                        let entry = F::leaf(pa, page_shift, access, level);
                        assert_eq!(F::decode(entry, level), Entry::Leaf { pa: page, page_shift, access });
                        assert_eq!(entry & reserved, 0, "{entry:#x}");
                    }
                }
            }
            // An address beyond the width does not reach other fields.
            assert_eq!(F::leaf(!all, page_shift, READ, level), F::leaf(0, page_shift, READ, level));
        }
    }
    maps_nothing::<F>(0, 0);
}

#[test]
fn addresses_come_back_and_reserved_bits_stay_zero() {
    // What is ignored counts as reserved here: it is left to others.
    holds_addresses_of_its_width::<VtdLevels<3>>(0xfff0_0000_0000_0f7c);
    holds_addresses_of_its_width::<VtdSecondStage>(0xfff0_0000_0000_0f7c);
    holds_addresses_of_its_width::<VtdSecondStageFiveLevels>(0xfff0_0000_0000_0f7c);
    holds_addresses_of_its_width::<X86_64>(0xfff0_0000_0000_0f78);
    holds_addresses_of_its_width::<X86_64FiveLevels>(0xfff0_0000_0000_0f78);
    holds_addresses_of_its_width::<AmdV1<3>>(0x9ff0_0000_0000_01fe);
    holds_addresses_of_its_width::<AmdV1<4>>(0x9ff0_0000_0000_01fe);
    holds_addresses_of_its_width::<AmdV1<5>>(0x9ff0_0000_0000_01fe);
    holds_addresses_of_its_width::<Mock>(0x9ff0_0000_0000_01fe);
    holds_addresses_of_its_width::<Armv8Stage1<12>>(0xffef_0000_0000_003c);
    holds_addresses_of_its_width::<Armv8Stage1<14>>(0xffef_0000_0000_303c);
    holds_addresses_of_its_width::<Armv8Stage1<16>>(0xffef_0000_0000_f03c);
    holds_addresses_of_its_width::<Armv8Stage2<12>>(0xffef_0000_0000_0800);
    holds_addresses_of_its_width::<Armv8Stage2<14>>(0xffef_0000_0000_3800);
    holds_addresses_of_its_width::<Armv8Stage2<16>>(0xffef_0000_0000_f800);
    holds_addresses_of_its_width::<Sv39>(0xffc0_0000_0000_0328);
    holds_addresses_of_its_width::<Sv48>(0xffc0_0000_0000_0328);
    holds_addresses_of_its_width::<Sv57>(0xffc0_0000_0000_0328);
    holds_addresses_of_its_width::<RiscV<3, true>>(0x7fc0_0000_0000_0328);
}
