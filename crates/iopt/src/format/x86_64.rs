//! x86-64 paging entries: what processors walk, and VT-d and AMD's IOMMU as a first stage.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3, 5.5 "4-Level Paging and 5-Level
//! Paging"; Intel Virtualization Technology for Directed I/O, Architecture Specification, 3.6 "First-Stage
//! Translation".
//!
//! ```text
//!  63  62     52 51                          12 11   9   8   7   6   5   4   3   2   1   0
//! ┌───┬─────────┬──────────────────────────────┬──────┬───┬───┬───┬───┬───┬───┬───┬───┬───┐
//! │NX │ ignored │  address of table or page    │ ign. │ G │PS │ D │ A │PCD│PWT│U/S│R/W│ P │
//! └───┴─────────┴──────────────────────────────┴──────┴───┴───┴───┴───┴───┴───┴───┴───┴───┘
//! ```
//! PS set at level 1 maps 2 MiB, at level 2 1 GiB, and is reserved above. At level 0 the bit is PAT; in a large page
//! PAT is bit 12, and the address bits above it and below the page size are reserved.
//!
//! P alone allows reading. Devices come as users, so U/S is set throughout, and an entry without it lets them do
//! nothing. A and D begin clear: the walker sets them. PWT, PCD and PAT are clear, which is write-back with the PAT of
//! a reset; NX is clear, as it is reserved where it is not enabled.
//!
//! Addresses are sign-extended from their highest bit. This format maps the lower half, the one that users have.

use super::{Access, Entry, Format, access_of, offset_mask};
use crate::TableAddr;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const PAGE_SIZE: u64 = 1 << 7;
const LARGE_PAT: u64 = 1 << 12;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// x86-64 with `LEVELS` levels (4 or 5), pages of 4 KiB, 2 MiB and 1 GiB.
///
/// Source: Intel SDM, volume 3, 5.5; Intel VT-d, Architecture Specification, 3.6. IOVAs have 47 or 56 bits: the lower
/// half.
#[derive(Debug, Clone, Copy)]
pub struct X86Levels<const LEVELS: u8>;

/// Four levels: 47-bit IOVA. See [`X86Levels`].
pub type X86_64 = X86Levels<4>;
/// Five levels ("LA57"): 56-bit IOVA. See [`X86Levels`].
pub type X86_64FiveLevels = X86Levels<5>;

impl<const LEVELS: u8> Format for X86Levels<LEVELS> {
    const LEVELS: u8 = {
        assert!(LEVELS == 4 || LEVELS == 5);
        LEVELS
    };
    const PAGE_SHIFT: u32 = 12;
    const PA_BITS: u32 = 52;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;

    #[inline]
    fn iova_bits() -> u32 {
        Self::shift(LEVELS) - 1
    }

    #[inline]
    fn page_sizes(level: u8) -> u64 {
        if level <= 2 { 1 << Self::shift(level) } else { 0 }
    }

    #[inline]
    fn leaf(pa: u64, _page_shift: u32, access: Access, level: u8) -> u64 {
        let mut entry = (pa & ADDRESS) | PRESENT | USER;
        if access.contains(Access::WRITE) {
            entry |= WRITABLE;
        }
        if level > 0 {
            entry |= PAGE_SIZE;
        }
        entry
    }

    #[inline]
    fn table(table: TableAddr, _level: u8) -> u64 {
        (table.0 & ADDRESS) | PRESENT | WRITABLE | USER
    }

    #[inline]
    fn table_access(entry: u64) -> Access {
        // READ is U/S, WRITE is U/S and R/W.
        access_of(((entry & USER) >> 2) | (entry & (entry >> 1) & WRITABLE))
    }

    #[inline]
    fn decode(entry: u64, level: u8) -> Entry {
        if entry & PRESENT == 0 {
            return Entry::Empty;
        }
        let access = Self::table_access(entry);
        let pa = entry & ADDRESS;
        if level == 0 {
            Entry::Leaf { pa, page_shift: Self::PAGE_SHIFT, access }
        } else if entry & PAGE_SIZE == 0 {
            Entry::Table(TableAddr(pa), access)
        } else {
            let page_shift = Self::shift(level);
            let pa = pa & !LARGE_PAT;
            if Self::page_sizes(level) == 0 || pa & offset_mask(page_shift) != 0 {
                return Entry::Empty;
            }
            Entry::Leaf { pa, page_shift, access }
        }
    }
}
