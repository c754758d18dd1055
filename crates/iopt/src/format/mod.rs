//! What a page table entry looks like, format by format.
//!
//! | of | type | IOVA bits | pages |
//! | --- | --- | --- | --- |
//! | VT-d second stage | [`VtdSecondStage`], [`VtdSecondStageFiveLevels`] | 48, 57 | 4 KiB, 2 MiB, 1 GiB |
//! | AMD v1 | [`AmdV1<4>`](AmdV1), [`AmdV1<5>`](AmdV1) | 48, 57 | every power of two: 4 KiB up to half of all |
//! | Armv8 stage 2 | [`Armv8Stage2<12>`](Armv8Stage2) | 48 | 4 KiB, 64 KiB, 2 MiB, 32 MiB, 1 GiB, 16 GiB |
//! | | [`Armv8Stage2<14>`](Armv8Stage2) | 48 | 16 KiB, 2 MiB, 32 MiB, 1 GiB |
//! | | [`Armv8Stage2<16>`](Armv8Stage2) | 48 | 64 KiB, 2 MiB, 512 MiB, 16 GiB |
//! | Armv8 stage 1 | [`Armv8Stage1`] | 48 | as stage 2 |
//! | RISC-V first stage | [`Sv39`], [`Sv48`], [`Sv57`] | 38, 47, 56 | 4 KiB, 2 MiB, 1 GiB, then 512 GiB, then 256 TiB |
//! | | [`RiscV<_, true>`](RiscV) | as those | 64 KiB (Svnapot) besides |
//! | x86-64 | [`X86_64`], [`X86_64FiveLevels`] | 47, 56 | 4 KiB, 2 MiB, 1 GiB |
//! | Linux's mock IOMMU | [`Mock`] | 56 | every power of two: 2 KiB up to half of all |
//!
//! VT-d, AMD and x86-64 have accessed and dirty bits that walks set. Armv8 and RISC-V have them set from the beginning
//! here, and [`Marked`] makes any format do; who wants to know of writes reads the log, which is the same for all.

mod amd_v1;
mod armv8;
mod marked;
mod risc_v;
mod vtd_second_stage;
mod x86_64;

pub use amd_v1::{AmdV1, Mock};
pub use armv8::{Armv8, Armv8Stage1, Armv8Stage2};
pub use marked::Marked;
pub use risc_v::{RiscV, Sv39, Sv48, Sv57};
pub use vtd_second_stage::{VtdLevels, VtdSecondStage, VtdSecondStageFiveLevels};
pub use x86_64::{X86_64, X86_64FiveLevels, X86Levels};

use crate::TableAddr;

bitflags::bitflags! {
    /// What a translation lets a device do.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 2;
    }
}

/// One decoded page table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Maps nothing: not present, or what the manual reserves.
    Empty,
    /// Leads to a table of the next lower level; whatever lies below has at most this access.
    Table(TableAddr, Access),
    /// Maps a page, alone or together with its neighbours.
    Leaf {
        /// Where the page begins, a multiple of its size; for a page of several entries the same in all of them.
        pa: u64,
        /// log2 of the bytes of the page: a size that [`Format::page_sizes`] has for the entry's level.
        page_shift: u32,
        /// What the entry allows.
        access: Access,
    },
}

/// A page table format: constants and small pure functions over 64-bit entries.
///
/// Levels count upwards from the leaf tables: level 0 maps the smallest pages, level `LEVELS - 1` is the root. The
/// entry zero is empty in every format.
///
/// ```text
///  IOVA     │ index of level 2 │ index of level 1 │ index of level 0 │ offset in page │
///            ╰─ root: what is ─╯╰─ INDEX_BITS ────╯╰─ INDEX_BITS ────╯╰─ PAGE_SHIFT ──╯
///               left of iova_bits()
/// ```
///
/// A page may be made of several entries in a row, 2^n of them and aligned to as many (Arm's contiguous hint, AMD's
/// sizes between levels, RISC-V's NAPOT). They are written and cleared together, and a walk may end in any of them.
pub trait Format: Send + Sync + 'static {
    /// Number of levels, root included.
    const LEVELS: u8;
    /// log2 of the smallest page, in bytes.
    const PAGE_SHIFT: u32;
    /// log2 of the entries in a table below the root. Entries have 8 bytes.
    const INDEX_BITS: u32 = 9;
    /// Width of a physical address in bits.
    const PA_BITS: u32;
    /// What a walk sets in a leaf that it uses; 0 where there is no such bit, or it is set from the beginning.
    const ACCESSED: u64 = 0;
    /// What a walk sets in a leaf that it writes through; 0 where there is no such bit, or it is set from the
    /// beginning.
    const DIRTY: u64 = 0;

    /// Bits of a table's entry that take rights away when they are set, where all others that matter give them.
    const TABLE_DENIES: u64 = 0;

    /// The pages that entries of `level` can make, as a set: bit n stands for 2^n bytes.
    ///
    /// Each is at least what one entry covers and less than what a table of `level` does. Level 0 has
    /// [`Format::PAGE_SHIFT`].
    fn page_sizes(level: u8) -> u64;
    /// An entry of `level` that maps its part, at `pa`, of a page of 2^`page_shift` bytes (see [`Format::page_sizes`]).
    /// Both the page and the part are aligned to their size.
    ///
    /// A format that cannot say write without read says both.
    fn leaf(pa: u64, page_shift: u32, access: Access, level: u8) -> u64;
    /// An entry of `level` that leads to `table`, of the level below.
    fn table(table: TableAddr, level: u8) -> u64;
    /// What an entry that leads to a table allows below: all, unless the format has rights there.
    ///
    /// Each right is given by bits that are all set, or by [`Format::TABLE_DENIES`] that are all clear. So a walk can
    /// put the entries of all levels together first, and ask once.
    #[inline]
    fn table_access(_entry: u64) -> Access {
        Access::all()
    }
    /// What `entry`, found in a table of `level`, says.
    fn decode(entry: u64, level: u8) -> Entry;

    /// log2 of the bytes that one entry of `level` covers.
    #[inline]
    fn shift(level: u8) -> u32 {
        Self::PAGE_SHIFT + Self::INDEX_BITS * u32::from(level)
    }
    /// Width of an IOVA in bits; below 64. Where the manual sign-extends addresses, this is the lower half.
    #[inline]
    fn iova_bits() -> u32 {
        Self::shift(Self::LEVELS)
    }
    /// log2 of the entries in a table of `level`. The root has as many as [`Format::iova_bits`] leaves it.
    #[inline]
    fn index_bits(level: u8) -> u32 {
        if level + 1 == Self::LEVELS { Self::iova_bits() - Self::shift(level) } else { Self::INDEX_BITS }
    }
}

/// What bit 0 (read) and bit 1 (write) say. Walks do this at every level, so it is a mask and no more.
#[inline]
const fn access_of(read_and_write: u64) -> Access {
    Access::from_bits_truncate(read_and_write as u8)
}

/// The low bits of an address that lie inside a page of 2^`shift` bytes.
#[inline]
const fn offset_mask(shift: u32) -> u64 {
    !(!0 << shift)
}
