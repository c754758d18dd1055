//! What a page table entry looks like, format by format.

mod vtd_second_stage;

pub use vtd_second_stage::VtdSecondStage;

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
    /// Maps nothing.
    Empty,
    /// Leads to a table of the next lower level; whatever lies below has at most this access.
    Table(TableAddr, Access),
    /// Maps one page of the size of its level to this physical address.
    Leaf(u64, Access),
}

/// A page table format: constants and small pure functions over 64-bit entries.
///
/// Levels count upwards from the leaf tables: level 0 maps the smallest pages, level `LEVELS - 1` is the root. Every
/// table has 512 entries of 8 bytes.
pub trait Format: Send + Sync + 'static {
    /// Number of levels, root included.
    const LEVELS: u8;
    /// log2 of the smallest page, in bytes.
    const PAGE_SHIFT: u32;
    /// The highest level whose entries may be leaves.
    const MAX_LEAF_LEVEL: u8;
    /// Width of a physical address in bits.
    const PA_BITS: u32;

    /// An entry that maps a page of the size of `level` at `pa` (aligned to that size).
    fn leaf(pa: u64, access: Access, level: u8) -> u64;
    /// An entry that leads to `table`.
    fn table(table: TableAddr) -> u64;
    /// What `entry`, found in a table of `level`, says.
    fn decode(entry: u64, level: u8) -> Entry;

    /// log2 of the bytes that one entry of `level` covers.
    fn shift(level: u8) -> u32 {
        Self::PAGE_SHIFT + 9 * u32::from(level)
    }
    /// Width of an IOVA in bits.
    fn iova_bits() -> u32 {
        Self::shift(Self::LEVELS)
    }
}
