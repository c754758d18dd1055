//! Armv8 (VMSAv8-64) descriptors, stage 1 and stage 2, granules of 4, 16 and 64 KiB, 48-bit addresses.
//!
//! Source: Arm Architecture Reference Manual for A-profile architecture, D8.3 "Translation table descriptor formats",
//! D8.2 "Translation process" (levels, concatenated tables), D8.7 "Other descriptor fields" (contiguous bit); the SMMU
//! walks the same (Arm System Memory Management Unit Architecture Specification, 3.4).
//!
//! ```text
//!            63 62  61 60    52 51  50 49 48 47                     12 11 10 9  8  7    6  5  4     2  1  0
//!           ┌──┬──────┬─────┬──┬───┬──┬─────┬─────────────────────────┬──┬──┬────┬───────┬──┬───────┬──┬──┐
//!  table    │NS│APTabl│  -  │  │   │  │  -  │  address of table       │            ignored              │1 │1 │
//!  stage 1  │  -   │ XN  │  │Co│DBM│GP│  -  │  address of page        │nG│AF│ SH │AP[2:1]│NS│AttrIdx│pg│1 │
//!  stage 2  │  -   │ XN  │  │Co│DBM│- │  -  │  address of page        │- │AF│ SH │ S2AP  │  MemAttr │pg│1 │
//!           └──┴──────┴─────┴──┴───┴──┴─────┴─────────────────────────┴──┴──┴────┴───────┴──┴───────┴──┴──┘
//! ```
//! Bit 1 ("pg") is set in a page, of level 0 here (the manual's level 3), and clear in a block, of any level above. The
//! contiguous bit (52) joins neighbouring entries:
//!
//! ```text
//!  granule   level 0                    level 1                      level 2
//!    4 KiB    4 KiB, 16 make 64 KiB     2 MiB, 16 make 32 MiB       1 GiB, 16 make 16 GiB
//!   16 KiB   16 KiB, 128 make 2 MiB    32 MiB, 32 make  1 GiB       tables only
//!   64 KiB   64 KiB, 32 make 2 MiB    512 MiB, 32 make 16 GiB       tables only
//! ```
//!
//! Pages are normal, write-back, inner shareable memory. AF is set at once, as a walker that does not manage it would
//! fault; an entry with AF clear is taken as empty, for the same reason. Stage 1 allows unprivileged access (devices
//! come as users), is not global (it has an ASID), and cannot say write without read.

use super::{Access, Entry, Format, offset_mask};
use crate::TableAddr;

const VALID: u64 = 1 << 0;
/// A table above level 0; a page at level 0.
const TABLE_OR_PAGE: u64 = 1 << 1;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESS_FLAG: u64 = 1 << 10;
const CONTIGUOUS: u64 = 1 << 52;
const ADDRESS_BITS: u32 = 48;

/// Stage 1, AP[1]: unprivileged access.
const AP_UNPRIVILEGED: u64 = 1 << 6;
/// Stage 1, AP[2]: read-only.
const AP_READ_ONLY: u64 = 1 << 7;
const NOT_GLOBAL: u64 = 1 << 11;
/// Stage 1 tables, APTable[0]: no unprivileged access below.
const TABLE_NO_UNPRIVILEGED: u64 = 1 << 61;
/// Stage 1 tables, APTable[1]: no write below.
const TABLE_READ_ONLY: u64 = 1 << 62;
/// Which byte of [`Armv8::MAIR`] the pages of stage 1 use.
const ATTRIBUTE_INDEX: u64 = 0;

const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 1 << 7;
/// Normal memory, outer and inner write-back.
const S2_MEMORY: u64 = 0b1111 << 2;

/// Entries of the root of stage 2 that lie beside each other, as tables of up to 16 ("concatenated"), as a power of
/// two.
const CONCATENATED_BITS: u32 = 4;

/// Armv8, 48-bit IOVA: `STAGE` 1 or 2, pages of 2^`PAGE_SHIFT` bytes (12, 14 or 16), and the larger ones of that
/// granule.
///
/// Source: Arm Architecture Reference Manual, D8.2 to D8.7. Pages are of 4 KiB, 64 KiB, 2 MiB, 32 MiB, 1 GiB and 16
/// GiB; or of 16 KiB, 2 MiB, 32 MiB and 1 GiB; or of 64 KiB, 2 MiB, 512 MiB and 16 GiB.
#[derive(Debug, Clone, Copy)]
pub struct Armv8<const STAGE: u8, const PAGE_SHIFT: u32 = 12>;

/// Armv8 stage 1, with pages of 2^`PAGE_SHIFT` bytes: 12, 14 or 16. 48-bit IOVA (the half that TTBR0 has). See
/// [`Armv8`].
pub type Armv8Stage1<const PAGE_SHIFT: u32> = Armv8<1, PAGE_SHIFT>;

/// Armv8 stage 2, with pages of 2^`PAGE_SHIFT` bytes: 12, 14 or 16. 48-bit IOVA. See [`Armv8`].
pub type Armv8Stage2<const PAGE_SHIFT: u32> = Armv8<2, PAGE_SHIFT>;

impl<const STAGE: u8, const PAGE_SHIFT: u32> Armv8<STAGE, PAGE_SHIFT> {
    /// The memory attributes (`MAIR_ELx`, or a context descriptor's MAIR) that a stage 1 table goes with: attribute 0
    /// is normal memory, write-back, allocating.
    pub const MAIR: u64 = 0xff << (8 * ATTRIBUTE_INDEX);

    const ADDRESS: u64 = offset_mask(ADDRESS_BITS) & !offset_mask(PAGE_SHIFT);

    /// log2 of the entries that the contiguous bit joins.
    #[inline]
    fn contiguous_bits(level: u8) -> u32 {
        match (PAGE_SHIFT, level) {
            (12, _) => 4,
            (14, 0) => 7,
            _ => 5,
        }
    }

    #[inline]
    fn permission(access: Access) -> u64 {
        let mut bits = 0;
        if STAGE == 1 {
            bits |= AP_UNPRIVILEGED | NOT_GLOBAL | (ATTRIBUTE_INDEX << 2);
            if !access.contains(Access::WRITE) {
                bits |= AP_READ_ONLY;
            }
        } else {
            bits |= S2_MEMORY;
            if access.contains(Access::READ) {
                bits |= S2AP_READ;
            }
            if access.contains(Access::WRITE) {
                bits |= S2AP_WRITE;
            }
        }
        bits
    }

    #[inline]
    fn leaf_access(entry: u64) -> Access {
        let mut access = Access::empty();
        if STAGE == 1 {
            let reached = entry & AP_UNPRIVILEGED != 0;
            access.set(Access::READ, reached);
            access.set(Access::WRITE, reached && entry & AP_READ_ONLY == 0);
        } else {
            access.set(Access::READ, entry & S2AP_READ != 0);
            access.set(Access::WRITE, entry & S2AP_WRITE != 0);
        }
        access
    }
}

impl<const STAGE: u8, const PAGE_SHIFT: u32> Format for Armv8<STAGE, PAGE_SHIFT> {
    const LEVELS: u8 = {
        assert!(STAGE == 1 || STAGE == 2);
        let in_root = if STAGE == 2 { CONCATENATED_BITS } else { 0 };
        (ADDRESS_BITS - PAGE_SHIFT - in_root).div_ceil(Self::INDEX_BITS) as u8
    };
    const PAGE_SHIFT: u32 = {
        assert!(PAGE_SHIFT == 12 || PAGE_SHIFT == 14 || PAGE_SHIFT == 16);
        PAGE_SHIFT
    };
    const INDEX_BITS: u32 = PAGE_SHIFT - 3;
    const PA_BITS: u32 = ADDRESS_BITS;
    const TABLE_DENIES: u64 = TABLE_NO_UNPRIVILEGED | TABLE_READ_ONLY;

    #[inline]
    fn iova_bits() -> u32 {
        ADDRESS_BITS
    }

    #[inline]
    fn page_sizes(level: u8) -> u64 {
        let highest = if PAGE_SHIFT == 12 { 2 } else { 1 };
        if level > highest {
            return 0;
        }
        let one = 1 << Self::shift(level);
        one | (one << Self::contiguous_bits(level))
    }

    #[inline]
    fn leaf(pa: u64, page_shift: u32, access: Access, level: u8) -> u64 {
        let mut entry = VALID | (pa & Self::ADDRESS) | Self::permission(access) | INNER_SHAREABLE | ACCESS_FLAG;
        if level == 0 {
            entry |= TABLE_OR_PAGE;
        }
        if page_shift > Self::shift(level) {
            entry |= CONTIGUOUS;
        }
        entry
    }

    #[inline]
    fn table(table: TableAddr, _level: u8) -> u64 {
        VALID | TABLE_OR_PAGE | (table.0 & Self::ADDRESS)
    }

    #[inline]
    fn table_access(entry: u64) -> Access {
        if STAGE == 2 {
            return Access::all();
        }
        let reached = entry & TABLE_NO_UNPRIVILEGED == 0;
        let mut access = Access::empty();
        access.set(Access::READ, reached);
        access.set(Access::WRITE, reached && entry & TABLE_READ_ONLY == 0);
        access
    }

    #[inline]
    fn decode(entry: u64, level: u8) -> Entry {
        if entry & VALID == 0 {
            return Entry::Empty;
        }
        if level > 0 && entry & TABLE_OR_PAGE != 0 {
            return Entry::Table(TableAddr(entry & Self::ADDRESS), Self::table_access(entry));
        }
        let reserved = Self::page_sizes(level) == 0 || (level == 0) != (entry & TABLE_OR_PAGE != 0);
        if reserved || entry & ACCESS_FLAG == 0 {
            return Entry::Empty;
        }
        let mut page_shift = Self::shift(level);
        if entry & CONTIGUOUS != 0 {
            page_shift += Self::contiguous_bits(level);
        }
        let pa = entry & Self::ADDRESS & !offset_mask(page_shift);
        Entry::Leaf { pa, page_shift, access: Self::leaf_access(entry) }
    }
}
