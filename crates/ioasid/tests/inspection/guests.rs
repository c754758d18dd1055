//! Guests' own tables: what they invalidate is forgotten, and what hardware refuses is refused.

use std::sync::Arc;

use ioasid::{
    BusAddress, GuestFormat, GuestPasidFormat, GuestPasidTable, GuestStage, GuestTable, Hwpt, HwptOptions, Iova, Pasid,
    WithoutPasid,
};

use crate::*;

struct Guest {
    tenant: Tenant,
    parent: Arc<Hwpt>,
}

impl Guest {
    /// With `bytes` of memory at 0, in pieces of a page.
    fn new(bytes: u64) -> Self {
        let tenant = Tenant::detached(&machine(), 1);
        (0..bytes / PAGE).for_each(|page| map(&tenant.ioas, page * PAGE, PAGE));
        let parent = tenant.hwpt(HwptOptions::default().nest_parent(true).pasids(true));
        Self { tenant, parent }
    }

    fn poke(&self, address: u64, value: u64) {
        self.tenant.context.copy_to(&self.parent, Iova(address), &value.to_le_bytes()).unwrap();
    }

    fn attach(&self, stage: impl Into<GuestStage>) -> Arc<ioasid::NestedHwpt> {
        let nested = self.tenant.context.hwpt_alloc_nested(&self.parent, stage.into()).unwrap();
        self.tenant.device.attach(None, &nested).unwrap();
        nested
    }
}

#[test]
fn entry_zero_is_one_entry() {
    let guest = Guest::new(0x20000);
    for (root, page) in [(0x2000u64, 0x10000u64), (0x6000, 0x11000)] {
        (0..3).for_each(|n| guest.poke(root + n * PAGE, (root + (n + 1) * PAGE) | 7));
        guest.poke(root + 3 * PAGE, page | 7);
        guest.poke(page, page);
    }
    guest.poke(0x1000, 0x2001);
    let nested = guest.attach(GuestPasidTable {
        format: GuestPasidFormat::AmdGcr3(1, GuestFormat::X86_64),
        root: 0x1000,
        pasid_bits: 9,
        without: WithoutPasid::EntryZero,
        zero_is_none: false,
    });
    let mut port = guest.tenant.endpoint.port();
    let mut read = |pasid| {
        let mut word = [0; 8];
        port.read(BusAddress { pasid, iova: Iova(0) }, &mut word).map(|()| u64::from_le_bytes(word)).unwrap()
    };
    let zero = Pasid::new(0);
    assert_eq!((read(None), read(zero)), (0x10000, 0x10000));
    // The guest changes entry 0, and invalidates PASID 0; and then the other way round.
    guest.poke(0x1000, 0x6001);
    nested.invalidate_pasid(zero).unwrap();
    assert_eq!((read(zero), read(None)), (0x11000, 0x11000), "transactions without a PASID go by the old entry");
    guest.poke(0x1000, 0x2001);
    nested.invalidate_pasid(None).unwrap();
    assert_eq!((read(zero), read(None)), (0x10000, 0x10000), "PASID 0 goes by the old entry");
}

#[test]
fn one_address_of_a_block_invalidates_the_block() {
    let guest = Guest::new(0x5000);
    for base in [0x20_0000, 0x40_0000] {
        (0..2).for_each(|page| map(&guest.tenant.ioas, base + page * PAGE, PAGE));
    }
    let block = |pa: u64| pa | 1 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 11;
    guest.poke(0x1000, 0x2003);
    guest.poke(0x2000, 0x3003);
    guest.poke(0x3000, block(0x20_0000));
    for (base, mark) in [(0x20_0000, 1), (0x40_0000, 2)] {
        (0..2).for_each(|page| guest.poke(base + page * PAGE, mark));
    }
    let nested = guest.attach(GuestTable { format: GuestFormat::Armv8Pages4K, root: 0x1000 });
    let mut port = guest.tenant.endpoint.port();
    let mut read = |address: u64| {
        let mut word = [0; 8];
        port.read(Iova(address), &mut word).map(|()| u64::from_le_bytes(word))
    };
    assert_eq!((read(0), read(0x1000)), (Ok(1), Ok(1)));
    guest.poke(0x3000, block(0x40_0000));
    nested.invalidate(range(0, PAGE)).unwrap();
    assert_eq!((read(0), read(0x1000)), (Ok(2), Ok(2)), "half of the guest's block is stale");
}

/// RISC-V IOMMU 1.0: 3.3.1, 3.3.2; "PDT entry misconfigured", cause 267.
#[test]
fn reserved_bits_of_a_process_directory_are_refused() {
    let guest = Guest::new(0x8000);
    // Directory, contexts, three levels of Sv39, data.
    let (directory, context) = (0x1000, 0x2000 + 16 * 5);
    let good = [(directory, 0x2 << 10 | 1), (context, 1), (context + 8, 8 << 60 | 3)];
    let write = |words: &[(u64, u64)]| words.iter().for_each(|&(at, word)| guest.poke(at, word));
    write(&good);
    write(&[(0x3000, 0x4 << 10 | 1), (0x4000, 0x5 << 10 | 1), (0x5008, 0x6 << 10 | 0xd7)]);
    let nested = guest.attach(GuestPasidTable {
        format: GuestPasidFormat::RiscVDirectory(2),
        root: directory,
        pasid_bits: 17,
        without: WithoutPasid::Refused,
        zero_is_none: false,
    });
    let (mut port, pasid) = (guest.tenant.endpoint.port(), Pasid::new(5));
    let mut reads = |words: &[(u64, u64)]| {
        write(words);
        nested.invalidate_pasid(pasid).unwrap();
        let read = port.read(BusAddress { pasid, iova: Iova(0x1000) }, &mut [0; 8]);
        write(&good);
        read.is_ok()
    };
    assert!(reads(&good));
    for bit in (1..=9).chain(54..=63) {
        assert!(!reads(&[(directory, good[0].1 | 1 << bit)]), "directory, bit {bit}");
    }
    for bit in (3..=11).chain(32..=63) {
        assert!(!reads(&[(context, good[1].1 | 1 << bit)]), "translation attributes, bit {bit}");
    }
    for bit in 44..=59 {
        assert!(!reads(&[(context + 8, good[2].1 | 1 << bit)]), "first stage, bit {bit}");
    }
    // The bits that mean something else than an address: ENS, SUM, the process soft-context id.
    assert!(reads(&[(context, good[1].1 | 6 | 0x12345 << 12)]));
}
