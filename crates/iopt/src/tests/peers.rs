//! Our tables beside those of `page_table_multiarch` (whose x86-64 entries are the crate `x86_64`'s) and
//! `aarch64-paging`: the same maps, bit for bit the same entries.

use aarch64_paging::descriptor::{El1Attributes, PhysicalAddress, Stage2Attributes};
use aarch64_paging::paging::{Constraints, El1And0, MemoryRegion, RootTable, Stage2, TranslationRegime, VaRange};
use aarch64_paging::target::TargetAllocator;
use bitflags::Flags as _;
use proptest::prelude::*;

use super::{BOTH, READ, entries, mapped};
use crate::format::{Armv8Stage1, Armv8Stage2};
use crate::{Access, Entry, Format};

type Range = (u64, u64, u64, Access);

/// Some of `ranges`, with the other access.
fn changed(ranges: &[Range]) -> impl Iterator<Item = (u64, u64, u64, Access)> {
    ranges
        .iter()
        .step_by(2)
        .map(|&(iova, pa, length, access)| (iova, pa, length, if access == BOTH { READ } else { BOTH }))
}

/// Ranges that do not overlap, each in gigabytes of its own, small and large, aligned and not.
fn ranges() -> impl Strategy<Value = Vec<Range>> {
    let small = (0..1200u64, 0..1200u64, 1..1200u64);
    let large = (prop_oneof![Just(9), Just(13), Just(18)], 0..4u64, 0..4u64, 1..4u64, prop_oneof![Just(0), 1..9u64])
        .prop_map(|(n, from, to, pages, more)| (from << n, to << n, (pages << n) + more));
    let range = (prop_oneof![small, large], any::<bool>());
    prop::collection::vec(range, 1..6).prop_map(|ranges| {
        (0..)
            .zip(ranges)
            .map(|(window, ((from, to, pages), write))| {
                let base = (window * 37) << 32;
                (base + (from << 12), base / 2 + (to << 12), pages << 12, if write { BOTH } else { READ })
            })
            .collect()
    })
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::cell::RefCell;

    use ::x86_64::structures::paging::PageTableFlags;
    use memory_addr::{PhysAddr, VirtAddr};
    use page_table_entry::x86_64::X64PTE;
    use page_table_multiarch::x86_64::X64PageTable;
    use page_table_multiarch::{GenericPTE, MappingFlags, PagingHandler};
    use proptest::prelude::*;

    use super::super::{Found, entries, mapped};
    use super::{changed, ranges};
    use crate::format::X86_64;
    use crate::{Access, Entry, Format, TableAddr};

    /// Frames that are this process's memory, at their own addresses, for as long as it lasts.
    struct Frames;

    #[repr(align(4096))]
    struct Frame([u8; 4096]);

    impl PagingHandler for Frames {
        fn alloc_frames(num: usize, _align: usize) -> Option<PhysAddr> {
            assert_eq!(num, 1);
            Some((Box::leak(Box::new(Frame([0; 4096]))).0.as_mut_ptr() as usize).into())
        }

        fn dealloc_frames(_paddr: PhysAddr, _num: usize) {}

        fn phys_to_virt(paddr: PhysAddr) -> VirtAddr {
            paddr.as_usize().into()
        }
    }

    /// Executable, as ours do not set NX.
    fn flags(access: Access) -> MappingFlags {
        let mut flags = MappingFlags::READ | MappingFlags::EXECUTE | MappingFlags::USER;
        flags.set(MappingFlags::WRITE, access.contains(Access::WRITE));
        flags
    }

    /// An entry without the address of the table that it leads to, if it does.
    fn comparable(found: Found) -> Found {
        match X86_64::decode(found.bits, found.level) {
            Entry::Table(TableAddr(addr), _) => Found { bits: found.bits & !addr, ..found },
            _ => found,
        }
    }

    proptest! {
        #[test]
        fn tables_are_those_of_page_table_multiarch(
            ranges in ranges(),
            probes in prop::collection::vec((0..6usize, 0..1u64 << 32), 64),
        ) {
            let ours = mapped::<X86_64>(&ranges);
            let mut theirs = X64PageTable::<Frames>::try_new().unwrap();
            for &(iova, pa, length, access) in &ranges {
                let target = |at: VirtAddr| ((at.as_usize() as u64 - iova + pa) as usize).into();
                theirs
                    .cursor()
                    .map_region((iova as usize).into(), target, length as usize, flags(access), true)
                    .unwrap();
            }
            for (iova, _, length, access) in changed(&ranges) {
                ours.protect(iova, length, access).unwrap();
                theirs.cursor().protect_region((iova as usize).into(), length as usize, flags(access)).unwrap();
            }
            let found = RefCell::new(Vec::new());
            theirs.walk(
                usize::MAX,
                Some(&|level: usize, index, _, entry: &X64PTE| {
                    let level = X86_64::LEVELS - 1 - level as u8;
                    found.borrow_mut().push(comparable(Found { level, index, bits: entry.bits() as u64 }));
                }),
                None,
            );
            let ours_found: Vec<_> = entries(&ours).into_iter().map(comparable).collect();
            prop_assert_eq!(ours_found, found.into_inner());
            for (range, offset) in probes {
                let iova = ranges.get(range).map_or(0, |range| range.0) + offset;
                let theirs = theirs.query((iova as usize).into()).ok();
                let ours = ours.walk(iova);
                prop_assert_eq!(
                    ours.map(|found| (found.pa as usize, flags(found.access), 1usize << found.page_shift)),
                    theirs.map(|(pa, flags, size)| (pa.as_usize(), flags, size as usize))
                );
            }
        }

        #[test]
        fn entries_are_those_of_the_crate_x86_64(page in 0..1u64 << 40, write: bool, level in 0..3u8) {
            let access = if write { Access::all() } else { Access::READ };
            let shift = X86_64::shift(level);
            let pa = (page << 12) >> shift << shift;
            let mut flags = PageTableFlags::PRESENT | PageTableFlags::USER_ACCESSIBLE;
            flags.set(PageTableFlags::WRITABLE, write);
            flags.set(PageTableFlags::HUGE_PAGE, level > 0);
            let addr = ::x86_64::PhysAddr::new(pa);
            prop_assert_eq!(X86_64::leaf(pa, shift, access, level), addr.as_u64() | flags.bits());
        }
    }
}

const CONTIGUOUS: usize = 1 << 52;

/// The leaves of both, in order: level, address, attributes. Theirs never sets the contiguous bit.
fn same_leaves<F: Format, R: TranslationRegime>(
    ranges: &[Range],
    mut theirs: RootTable<R, TargetAllocator<R::Attributes>>,
    attributes: impl Fn(Access) -> R::Attributes,
) {
    let region = |iova, length| MemoryRegion::new(iova as usize, (iova + length) as usize);
    let ours = mapped::<F>(ranges);
    for (iova, _, length, access) in changed(ranges) {
        ours.protect(iova, length, access).unwrap();
    }
    for (iova, pa, length, access) in ranges.iter().copied().chain(changed(ranges)) {
        let pa = PhysicalAddress(pa as usize);
        theirs.map_range(&region(iova, length), pa, attributes(access), Constraints::empty()).unwrap();
    }
    let mut their_leaves = Vec::new();
    for &(iova, _, length, _) in ranges {
        let region = region(iova, length);
        theirs
            .walk_range(&region, &mut |_, entry, level| {
                their_leaves.push((level, entry.output_address().0, entry.flags().bits()));
                Ok(())
            })
            .unwrap();
    }
    let our_leaves: Vec<_> = entries(&ours)
        .into_iter()
        .filter(|found| matches!(F::decode(found.bits, found.level), Entry::Leaf { .. }))
        .map(|found| {
            let bits = found.bits as usize;
            let address = bits & 0x0000_ffff_ffff_f000;
            (usize::from(F::LEVELS - 1 - found.level), address, bits & !address & !CONTIGUOUS)
        })
        .collect();
    assert_eq!(our_leaves, their_leaves);
}

proptest! {
    #[test]
    fn leaves_are_those_of_aarch64_paging_in_stage_1(ranges in ranges()) {
        type A = El1Attributes;
        let theirs = RootTable::with_va_range(TargetAllocator::new(0), 0, El1And0, VaRange::Lower);
        same_leaves::<Armv8Stage1<12>, _>(&ranges, theirs, |access| {
            let common = A::VALID | A::ATTRIBUTE_INDEX_0 | A::INNER_SHAREABLE | A::USER | A::ACCESSED | A::NON_GLOBAL;
            if access.contains(Access::WRITE) { common } else { common | A::READ_ONLY }
        });
    }

    #[test]
    fn leaves_are_those_of_aarch64_paging_in_stage_2(ranges in ranges()) {
        type A = Stage2Attributes;
        let theirs = RootTable::new(TargetAllocator::new(0), 0, Stage2);
        same_leaves::<Armv8Stage2<12>, _>(&ranges, theirs, |access| {
            let memory = A::MEMATTR_NORMAL_INNER_WB | A::MEMATTR_NORMAL_OUTER_WB | A::SH_INNER;
            let access = if access == BOTH { A::S2AP_ACCESS_RW } else { A::S2AP_ACCESS_RO };
            A::VALID | A::ACCESS_FLAG | memory | access
        });
    }
}
