//! AMD IOMMU v1 (host) page table entries: every power-of-two page size.
//!
//! Source: AMD I/O Virtualization Technology (IOMMU) Specification, 2.2.3 "I/O Page Tables for Host Translations".
//!
//! ```text
//!  63  62  61  60  59  58   52 51                        12 11      9 8  7  6   5  4    1   0
//! ┌───┬───┬───┬───┬───┬───────┬────────────────────────────┬─────────┬────┬───┬───┬──────┬───┐
//! │ - │IW │IR │FC │ U │ rsvd. │ address of table or page   │next lvl.│ -  │ D │ A │  -   │PR │
//! └───┴───┴───┴───┴───┴───────┴────────────────────────────┴─────────┴────┴───┴───┴──────┴───┘
//! ```
//! The next level, counted from 1, is that of the table below; 0 makes a page of what one entry covers; 7 makes a page
//! whose size is given by the lowest address bits, a zero above all ones:
//!
//! ```text
//!  address bits   …   15  14  13  12
//!                  a   a   a   a   0     8 KiB = 2 entries of level 0
//!                  a   a   a   0   1    16 KiB = 4
//!                  a   a   0   1   1    32 KiB = 8
//! ```
//! Such an entry is written as many times as there are entries in the page, always the same.
//!
//! Tables that skip levels (a next level lower than the next) are not read: such an entry is taken as empty.

use super::{Access, Entry, Format, access_of, offset_mask};
use crate::TableAddr;

const PRESENT: u64 = 1 << 0;
const NEXT_LEVEL_SHIFT: u32 = 9;
const NEXT_LEVEL: u64 = 7 << NEXT_LEVEL_SHIFT;
/// The next level that stands for "the address gives the size".
const SIZE_IN_ADDRESS: u64 = 7;
const ADDRESS_SHIFT: u32 = 12;
const ADDRESS_BITS: u32 = 40;
const ADDRESS: u64 = offset_mask(ADDRESS_BITS) << ADDRESS_SHIFT;
const RESERVED: u64 = 0x7f << 52;
const READ: u64 = 1 << 61;
const WRITE: u64 = 1 << 62;

/// AMD v1: `LEVELS` levels (1 to 5), pages of every power of two from 4 KiB up to half of all.
///
/// Source: AMD IOMMU Specification, 2.2.3. IOVAs have 12 bits and 9 for each level: 39 with three levels, 48 with four
/// (what it has if nothing is said), 57 with five; they are not sign-extended. The sixth level of the manual, which
/// translates 64 bits, is not had.
///
/// The address field counts pages of 2^`PAGE_SHIFT` bytes, 4 KiB in the manual.
#[derive(Debug, Clone, Copy)]
pub struct AmdV1<const LEVELS: u8 = 4, const PAGE_SHIFT: u32 = 12>;

/// What the mock IOMMU of Linux's iommufd selftest uses: AMD v1 with pages of 2 KiB, half of the processor's.
pub type Mock = AmdV1<5, 11>;

impl<const LEVELS: u8, const PAGE_SHIFT: u32> AmdV1<LEVELS, PAGE_SHIFT> {
    #[inline]
    fn field(address: u64) -> u64 {
        (address >> PAGE_SHIFT << ADDRESS_SHIFT) & ADDRESS
    }

    #[inline]
    fn address(entry: u64) -> u64 {
        (entry & ADDRESS) >> ADDRESS_SHIFT << PAGE_SHIFT
    }
}

impl<const LEVELS: u8, const PAGE_SHIFT: u32> Format for AmdV1<LEVELS, PAGE_SHIFT> {
    const LEVELS: u8 = {
        assert!(LEVELS >= 1 && LEVELS <= 5);
        LEVELS
    };
    const PAGE_SHIFT: u32 = PAGE_SHIFT;
    const PA_BITS: u32 = ADDRESS_BITS + PAGE_SHIFT;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;

    #[inline]
    fn page_sizes(level: u8) -> u64 {
        offset_mask(Self::INDEX_BITS) << Self::shift(level)
    }

    #[inline]
    fn leaf(pa: u64, page_shift: u32, access: Access, level: u8) -> u64 {
        let mut entry = PRESENT;
        if page_shift == Self::shift(level) {
            entry |= Self::field(pa);
        } else {
            let ones = offset_mask(page_shift - 1) & !offset_mask(PAGE_SHIFT);
            entry |= Self::field((pa & !offset_mask(page_shift)) | ones) | (SIZE_IN_ADDRESS << NEXT_LEVEL_SHIFT);
        }
        if access.contains(Access::READ) {
            entry |= READ;
        }
        if access.contains(Access::WRITE) {
            entry |= WRITE;
        }
        entry
    }

    #[inline]
    fn table(table: TableAddr, level: u8) -> u64 {
        // The manual's levels count from 1, so the table below has this level's number.
        PRESENT | (u64::from(level) << NEXT_LEVEL_SHIFT) | Self::field(table.0) | READ | WRITE
    }

    #[inline]
    fn table_access(entry: u64) -> Access {
        access_of((entry & (READ | WRITE)) / READ)
    }

    #[inline]
    fn decode(entry: u64, level: u8) -> Entry {
        if entry & PRESENT == 0 || entry & RESERVED != 0 {
            return Entry::Empty;
        }
        let access = Self::table_access(entry);
        let address = Self::address(entry);
        let page_shift = match (entry & NEXT_LEVEL) >> NEXT_LEVEL_SHIFT {
            0 => Self::shift(level),
            SIZE_IN_ADDRESS => PAGE_SHIFT + 1 + (address >> PAGE_SHIFT).trailing_ones(),
            next if next == u64::from(level) => return Entry::Table(TableAddr(address), access),
            _ => return Entry::Empty,
        };
        if Self::page_sizes(level) & (1 << page_shift) == 0 {
            return Entry::Empty;
        }
        Entry::Leaf { pa: address & !offset_mask(page_shift), page_shift, access }
    }
}
