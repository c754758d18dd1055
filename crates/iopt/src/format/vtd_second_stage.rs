//! Intel VT-d second-stage paging entries, of four and five levels.
//!
//! Source: Intel Virtualization Technology for Directed I/O, Architecture Specification, 3.7 "Second-Stage
//! Translation" and 9.9 "Second-Stage Paging Entries". How many levels there are is the context entry's or PASID table
//! entry's address width (9.3, 9.6), and the capability register says which of them an IOMMU has (11.4.2, SAGAW).
//!
//! ```text
//!  63  62        52 51                          12 11  10   9   8   7   6..3   2    1   0
//! ┌───┬────────────┬──────────────────────────────┬───┬───┬───┬───┬───┬──────┬────┬───┬───┐
//! │ - │     -      │  address of table or page    │SNP│ - │ D │ A │PS │ mem. │ X  │ W │ R │
//! └───┴────────────┴──────────────────────────────┴───┴───┴───┴───┴───┴──────┴────┴───┴───┘
//! ```
//! An entry with neither R nor W is not present. PS set at level 1 maps 2 MiB, at level 2 1 GiB, and is reserved above;
//! so are the address bits below the page size. A and D begin clear: the walker sets them, in leaves.

use super::{Access, Entry, Format, access_of, offset_mask};
use crate::TableAddr;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const PAGE_SIZE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// VT-d second stage with `LEVELS` levels (3, 4 or 5), pages of 4 KiB, 2 MiB and 1 GiB.
///
/// Source: Intel VT-d, Architecture Specification, 3.7 and 9.9. IOVAs have 39, 48 or 57 bits, and are not
/// sign-extended.
#[derive(Debug, Clone, Copy)]
pub struct VtdLevels<const LEVELS: u8>;

/// VT-d second stage with four levels: 48-bit IOVA, pages of 4 KiB, 2 MiB and 1 GiB. See [`VtdLevels`].
pub type VtdSecondStage = VtdLevels<4>;
/// VT-d second stage with five levels: 57-bit IOVA, pages of 4 KiB, 2 MiB and 1 GiB. See [`VtdLevels`].
pub type VtdSecondStageFiveLevels = VtdLevels<5>;

impl<const LEVELS: u8> Format for VtdLevels<LEVELS> {
    const LEVELS: u8 = {
        assert!(LEVELS >= 3 && LEVELS <= 5);
        LEVELS
    };
    const PAGE_SHIFT: u32 = 12;
    const PA_BITS: u32 = 52;
    const ACCESSED: u64 = 1 << 8;
    const DIRTY: u64 = 1 << 9;

    #[inline]
    fn page_sizes(level: u8) -> u64 {
        if level <= 2 { 1 << Self::shift(level) } else { 0 }
    }

    #[inline]
    fn leaf(pa: u64, _page_shift: u32, access: Access, level: u8) -> u64 {
        let mut entry = pa & ADDRESS;
        if access.contains(Access::READ) {
            entry |= READ;
        }
        if access.contains(Access::WRITE) {
            entry |= WRITE;
        }
        if level > 0 {
            entry |= PAGE_SIZE;
        }
        entry
    }

    #[inline]
    fn table(table: TableAddr, _level: u8) -> u64 {
        (table.0 & ADDRESS) | READ | WRITE
    }

    #[inline]
    fn table_access(entry: u64) -> Access {
        access_of(entry & (READ | WRITE))
    }

    #[inline]
    fn decode(entry: u64, level: u8) -> Entry {
        let access = Self::table_access(entry);
        let pa = entry & ADDRESS;
        if access.is_empty() {
            Entry::Empty
        } else if level > 0 && entry & PAGE_SIZE == 0 {
            Entry::Table(TableAddr(pa), access)
        } else {
            let page_shift = Self::shift(level);
            if Self::page_sizes(level) == 0 || pa & offset_mask(page_shift) != 0 {
                return Entry::Empty;
            }
            Entry::Leaf { pa, page_shift, access }
        }
    }
}
