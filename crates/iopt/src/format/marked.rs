//! A format whose marks are set from the beginning.

use super::{Access, Entry, Format};
use crate::TableAddr;

/// As `F`, but accessed and dirty from the beginning: for tables that are only read where they are walked, as those
/// that another process shares. Walks of `F` find nothing to mark in them.
#[derive(Debug, Clone, Copy)]
pub struct Marked<F>(std::marker::PhantomData<fn() -> F>);

impl<F: Format> Format for Marked<F> {
    const LEVELS: u8 = F::LEVELS;
    const PAGE_SHIFT: u32 = F::PAGE_SHIFT;
    const INDEX_BITS: u32 = F::INDEX_BITS;
    const PA_BITS: u32 = F::PA_BITS;
    const TABLE_DENIES: u64 = F::TABLE_DENIES;

    #[inline]
    fn page_sizes(level: u8) -> u64 {
        F::page_sizes(level)
    }

    #[inline]
    fn leaf(pa: u64, page_shift: u32, access: Access, level: u8) -> u64 {
        F::leaf(pa, page_shift, access, level) | F::ACCESSED | F::DIRTY
    }

    #[inline]
    fn table(table: TableAddr, level: u8) -> u64 {
        F::table(table, level) | F::ACCESSED
    }

    #[inline]
    fn table_access(entry: u64) -> Access {
        F::table_access(entry)
    }

    #[inline]
    fn decode(entry: u64, level: u8) -> Entry {
        F::decode(entry, level)
    }

    #[inline]
    fn shift(level: u8) -> u32 {
        F::shift(level)
    }

    #[inline]
    fn iova_bits() -> u32 {
        F::iova_bits()
    }

    #[inline]
    fn index_bits(level: u8) -> u32 {
        F::index_bits(level)
    }
}
