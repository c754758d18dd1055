//! A page table of whichever format.

use std::sync::Arc;

use iopt::format::{AmdV1, Armv8Stage2, Mock, Sv48, VtdSecondStage, VtdSecondStageFiveLevels};
use iopt::{Access, Arena, DirtyWord, EmptyTables, Leaves, MapError, PageTable, RangeError, Translation, Upper};

use crate::kind::TableFormat;
use crate::memory::TableSpace;

/// A page table of one of the formats.
pub(crate) enum PagingTable {
    VtdSecondStage(PageTable<VtdSecondStage, TableSpace>),
    VtdSecondStageFiveLevels(PageTable<VtdSecondStageFiveLevels, TableSpace>),
    AmdV1(PageTable<AmdV1<4>, TableSpace>),
    Armv8Stage2(PageTable<Armv8Stage2<12>, TableSpace>),
    Sv48(PageTable<Sv48, TableSpace>),
    Mock(PageTable<Mock, TableSpace>),
}

/// The same expression, whatever the format.
macro_rules! each_format {
    ($table:expr, $each:ident => $use:expr) => {
        match $table {
            PagingTable::VtdSecondStage($each) => $use,
            PagingTable::VtdSecondStageFiveLevels($each) => $use,
            PagingTable::AmdV1($each) => $use,
            PagingTable::Armv8Stage2($each) => $use,
            PagingTable::Sv48($each) => $use,
            PagingTable::Mock($each) => $use,
        }
    };
}

impl PagingTable {
    pub(crate) fn new(format: TableFormat, arena: Arc<Arena<TableSpace>>) -> Result<Self, MapError> {
        if ioasid_inject::fails() {
            return Err(MapError::OutOfTables);
        }
        Ok(match format {
            TableFormat::VtdSecondStage => Self::VtdSecondStage(PageTable::new(arena)?),
            TableFormat::VtdSecondStageFiveLevels => Self::VtdSecondStageFiveLevels(PageTable::new(arena)?),
            TableFormat::AmdV1 => Self::AmdV1(PageTable::new(arena)?),
            TableFormat::Armv8Stage2 => Self::Armv8Stage2(PageTable::new(arena)?),
            TableFormat::Sv48 => Self::Sv48(PageTable::new(arena)?),
            TableFormat::Mock | TableFormat::MockHuge => Self::Mock(PageTable::new(arena)?),
        })
    }

    pub(crate) fn map(
        &self,
        iova: u64,
        pa: u64,
        length: u64,
        leaves: Leaves,
        empty: &mut EmptyTables,
    ) -> Result<(), MapError> {
        each_format!(self, table => table.map(iova, pa, length, leaves, empty))
    }

    pub(crate) fn unmap(&self, iova: u64, length: u64, empty: &mut EmptyTables) -> Result<(), RangeError> {
        each_format!(self, table => table.unmap(iova, length, empty))
    }

    pub(crate) fn split(&self, iova: u64, length: u64, largest: u32) -> Result<(), MapError> {
        each_format!(self, table => table.split(iova, length, largest))
    }

    pub(crate) fn protect(&self, iova: u64, length: u64, access: Access) -> Result<(), RangeError> {
        each_format!(self, table => table.protect(iova, length, access))
    }

    pub(crate) fn free(&self, tables: EmptyTables) {
        each_format!(self, table => table.free(tables));
    }

    #[inline]
    pub(crate) fn upper(&self, iova: u64) -> Option<Upper> {
        each_format!(self, table => table.upper(iova))
    }

    #[inline]
    pub(crate) fn walk_coalesced_below(&self, upper: Upper, iova: u64) -> Option<Translation> {
        each_format!(self, table => table.walk_coalesced_below(upper, iova))
    }

    #[inline]
    pub(crate) fn walk_marking_below(&self, upper: Upper, iova: u64, access: Access) -> Option<Translation> {
        each_format!(self, table => table.walk_marking_below(upper, iova, access))
    }

    pub(crate) fn start_tracking(&self) -> Result<(), MapError> {
        each_format!(self, table => table.start_tracking())
    }

    pub(crate) fn read_dirty(
        &self,
        iova: u64,
        length: u64,
        clear: bool,
        each: impl FnMut(DirtyWord),
    ) -> Result<(), RangeError> {
        each_format!(self, table => table.read_dirty(iova, length, clear, each))
    }
}
