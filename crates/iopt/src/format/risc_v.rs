//! RISC-V page table entries: Sv39, Sv48 and Sv57, with Svnapot if asked for.
//!
//! Source: The RISC-V Instruction Set Manual, volume II, Privileged Architecture, "Supervisor-Level ISA": "Sv39",
//! "Sv48", "Sv57: Page-Based 57-bit Virtual-Memory System" and "Svnapot"; the RISC-V IOMMU's first stage is the same.
//!
//! ```text
//!  63  62  61 60      54 53                               10 9    8   7   6   5   4   3   2   1   0
//! ┌───┬──────┬──────────┬───────────────────────────────────┬──────┬───┬───┬───┬───┬───┬───┬───┬───┐
//! │ N │ PBMT │ reserved │ address of table or page, / 4096  │ soft │ D │ A │ G │ U │ X │ W │ R │ V │
//! └───┴──────┴──────────┴───────────────────────────────────┴──────┴───┴───┴───┴───┴───┴───┴───┴───┘
//! ```
//! Without R, W and X it leads to a table, and then D, A and U are reserved; W without R is reserved. Pages exist at
//! every level. N (Svnapot) joins 16 entries of level 0 into 64 KiB; the four lowest address bits are then 1000, and
//! the entries are all the same.
//!
//! Devices come as users, so U is set, and a page without it lets them do nothing. A, and D in a writable page, are set
//! at once: a walker without Svadu (or the IOMMU's SADE) faults on them. Without Svpbmt, PBMT is reserved.
//!
//! Addresses are sign-extended from their highest bit. This format maps the lower half, the one that users have.

use super::{Access, Entry, Format, offset_mask};
use crate::TableAddr;

const VALID: u64 = 1 << 0;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXECUTE: u64 = 1 << 3;
const USER: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 6;
const DIRTY: u64 = 1 << 7;
/// PBMT and what no extension uses.
const RESERVED: u64 = 0x1ff << 54;
const NAPOT: u64 = 1 << 63;

const PPN_SHIFT: u32 = 10;
const PPN_BITS: u32 = 44;
/// The lowest address bits of a page of 64 KiB.
const NAPOT_PATTERN: u64 = 0x8000;
const NAPOT_SHIFT: u32 = 16;

/// RISC-V with `LEVELS` levels (3, 4 or 5), pages of 4 KiB and what each level covers; with `SVNAPOT` 64 KiB too.
///
/// Source: RISC-V Privileged Architecture, "Sv39" to "Svnapot"; RISC-V IOMMU Architecture Specification, first-stage
/// context (`fsc`). IOVAs have 38, 47 or 56 bits: the lower half. It is what Linux's driver of that IOMMU makes for
/// address spaces.
#[derive(Debug, Clone, Copy)]
pub struct RiscV<const LEVELS: u8, const SVNAPOT: bool = false>;

/// Three levels: 38-bit IOVA, pages of 4 KiB, 2 MiB and 1 GiB. See [`RiscV`].
pub type Sv39 = RiscV<3>;
/// Four levels: 47-bit IOVA, pages of 4 KiB, 2 MiB, 1 GiB and 512 GiB. See [`RiscV`].
pub type Sv48 = RiscV<4>;
/// Five levels: 56-bit IOVA, pages of 4 KiB, 2 MiB, 1 GiB, 512 GiB and 256 TiB. See [`RiscV`].
pub type Sv57 = RiscV<5>;

#[inline]
fn field(address: u64) -> u64 {
    ((address >> 12) & offset_mask(PPN_BITS)) << PPN_SHIFT
}

#[inline]
fn address(entry: u64) -> u64 {
    ((entry >> PPN_SHIFT) & offset_mask(PPN_BITS)) << 12
}

impl<const LEVELS: u8, const SVNAPOT: bool> Format for RiscV<LEVELS, SVNAPOT> {
    const LEVELS: u8 = {
        assert!(LEVELS >= 3 && LEVELS <= 5);
        LEVELS
    };
    const PAGE_SHIFT: u32 = 12;
    const PA_BITS: u32 = PPN_BITS + 12;

    #[inline]
    fn iova_bits() -> u32 {
        Self::shift(LEVELS) - 1
    }

    #[inline]
    fn page_sizes(level: u8) -> u64 {
        let napot = if SVNAPOT && level == 0 { 1 << NAPOT_SHIFT } else { 0 };
        (1 << Self::shift(level)) | napot
    }

    #[inline]
    fn leaf(pa: u64, page_shift: u32, access: Access, level: u8) -> u64 {
        let mut entry = VALID | READ | USER | ACCESSED;
        if access.contains(Access::WRITE) {
            entry |= WRITE | DIRTY;
        }
        if page_shift == Self::shift(level) {
            entry | field(pa)
        } else {
            entry | NAPOT | field((pa & !offset_mask(NAPOT_SHIFT)) | NAPOT_PATTERN)
        }
    }

    #[inline]
    fn table(table: TableAddr, _level: u8) -> u64 {
        VALID | field(table.0)
    }

    #[inline]
    fn decode(entry: u64, level: u8) -> Entry {
        if entry & VALID == 0 || entry & RESERVED != 0 {
            return Entry::Empty;
        }
        let pa = address(entry);
        let napot = entry & NAPOT != 0;
        if entry & (READ | WRITE | EXECUTE) == 0 {
            if level == 0 || napot || entry & (USER | ACCESSED | DIRTY) != 0 {
                return Entry::Empty;
            }
            return Entry::Table(TableAddr(pa), Self::table_access(entry));
        }
        if entry & ACCESSED == 0 {
            return Entry::Empty;
        }
        let mut access = Access::empty();
        access.set(Access::READ, entry & USER != 0 && entry & READ != 0);
        access.set(Access::WRITE, entry & USER != 0 && entry & WRITE != 0 && entry & DIRTY != 0);
        let (page_shift, pattern) = if napot { (NAPOT_SHIFT, NAPOT_PATTERN) } else { (Self::shift(level), 0) };
        let reserved = Self::page_sizes(level) & (1 << page_shift) == 0
            || pa & offset_mask(page_shift) != pattern
            || entry & (READ | WRITE) == WRITE;
        if reserved {
            return Entry::Empty;
        }
        Entry::Leaf { pa: pa & !offset_mask(page_shift), page_shift, access }
    }
}
