//! Paging page tables: they mirror an address space.

use std::sync::Arc;

use iopt::format::VtdSecondStage;
use iopt::{Access, Arena, EmptyTables, Format, Leaves, Translation, Upper};

use super::Users;
use super::format::{PagingTable, TableFormat};
use crate::dirty::Granule;
use crate::fault::{Disposition, OnMiss};
use crate::gate::check_holds_nothing;
use crate::ids::ObjectId;
use crate::invalidation::{Invalidation, TableId};
use crate::ioas::{Backed, Ioas};
use crate::memory::{Identity, TableSpace};
use crate::ranges::Ranges;
use crate::types::{HoldsSlices, Iova, IovaRange};

/// log2 of the bytes that a table of the lowest level maps, in the format of most: what a cache of upper levels holds.
pub(crate) const LOWEST_SPAN_BITS: u32 = VtdSecondStage::PAGE_SHIFT + VtdSecondStage::INDEX_BITS;

/// What a page table that is asked for is to be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HwptOptions {
    /// Its format, if not what the IOMMU walks otherwise.
    pub format: Option<TableFormat>,
    /// Nested tables can be made on it.
    pub nest_parent: bool,
    /// Only devices whose IOMMU can track what is written can be attached.
    pub dirty_tracking: bool,
    /// It can be attached to PASIDs, and to a device that has PASIDs attached.
    pub pasids: bool,
    /// What happens when a device finds nothing there.
    pub on_miss: OnMiss,
}

/// A paging HWPT: what an address space maps, in the format that an IOMMU walks.
pub struct Hwpt {
    id: ObjectId,
    format: TableFormat,
    /// As it was asked for; if nobody did, it was made for a device that was attached to the address space, and goes with the
    /// last one.
    options: Option<HwptOptions>,
    pub(crate) on_miss: Disposition,
    ioas: Arc<Ioas>,
    pub(crate) table: PagingTable,
    /// Whether writes are marked, and how finely.
    pub(crate) granule: Granule,
    /// Who is attached, to the table itself or to one that is nested on it.
    pub(crate) users: Users,
}

impl Hwpt {
    pub(crate) fn new(
        id: ObjectId,
        format: TableFormat,
        options: Option<HwptOptions>,
        on_miss: Disposition,
        ioas: Arc<Ioas>,
        arena: Arc<Arena<TableSpace>>,
    ) -> Result<Self, iopt::MapError> {
        let table = PagingTable::new(format, arena)?;
        Ok(Self { id, format, options, on_miss, ioas, table, granule: Granule::none(), users: Users::default() })
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// What was asked for, if somebody did.
    #[must_use]
    pub fn options(&self) -> Option<HwptOptions> {
        self.options
    }

    pub(crate) fn is_automatic(&self) -> bool {
        self.options.is_none()
    }

    pub(crate) fn is_nest_parent(&self) -> bool {
        self.options.is_some_and(|options| options.nest_parent)
    }

    pub(crate) fn allows_pasids(&self) -> bool {
        self.options.map_or(self.format.iommu_kind().automatic_for_pasids(), |options| options.pasids)
    }

    /// The address space that it mirrors.
    #[must_use]
    pub fn ioas(&self) -> &Arc<Ioas> {
        &self.ioas
    }

    /// Bytes of its smallest page.
    pub(crate) fn page_size(&self) -> u64 {
        1 << self.format.page_shifts().0
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> TableFormat {
        self.format
    }

    /// What it cannot address.
    pub(crate) fn beyond_aperture(&self) -> impl Iterator<Item = IovaRange> + use<> {
        Ranges::union([self.format().aperture()]).complement().iter().collect::<Vec<_>>().into_iter()
    }

    /// Where IOVA `iova` leads at this moment: to which memory. `None` if nothing is mapped there, or what it is cannot be told.
    ///
    /// # Errors
    /// [`HoldsSlices`] if this thread holds slices.
    pub fn memory_at(&self, iova: Iova) -> Result<Option<Identity>, HoldsSlices> {
        check_holds_nothing()?;
        // Nobody unmaps meanwhile.
        let _space = self.ioas.exclusive();
        let found = || {
            let upper = self.table.upper(iova.0)?;
            self.table.walk_coalesced_below(upper, iova.0)
        };
        Ok(found().and_then(|found| self.ioas.iommu().phys.identity(found.pa)))
    }

    /// Returns when no port uses what was taken out of `range` of the table before the call. The caller keeps the address
    /// space's list of tables as it is, and with it who is attached.
    pub(crate) fn quiesce(&self, range: IovaRange) {
        self.users.quiesce(Invalidation::Range(TableId::of(self), range));
    }

    /// Where walks to `iova` and its neighbours can begin.
    #[inline]
    pub(crate) fn upper(&self, iova: u64) -> Option<Upper> {
        self.table.upper(iova)
    }

    /// What a port that wants `access` finds at `iova`, and what it may keep of it: a write is marked where that is asked
    /// for, and other accesses are then not to be taken for one later.
    #[inline]
    pub(crate) fn walk(&self, upper: Upper, iova: u64, access: Access) -> Option<(Translation, Access)> {
        if self.granule.is_none() {
            let found = self.table.walk_coalesced_below(upper, iova)?;
            return Some((found, found.access));
        }
        let found = self.table.walk_marking_below(upper, iova, access)?;
        let unmarked = if access.contains(Access::WRITE) { Access::empty() } else { Access::WRITE };
        Some((found, found.access - unmarked))
    }

    /// Maps what `range` is backed by, which is pinned, in pages of 2^`largest` bytes at the most; all of it, or, on an error,
    /// nothing.
    pub(crate) fn map(
        &self,
        range: IovaRange,
        access: Access,
        backed: &Backed,
        largest: u32,
    ) -> Result<(), iopt::MapError> {
        let largest = self.granule.largest().min(largest).min(self.format.page_shifts().1);
        let leaves = Leaves { access, largest };
        let (mut start, mut empty) = (range.start, EmptyTables::none());
        let mut pinned = backed.pin.iter().flat_map(|pin| pin.ranges(backed.offset, range.len_minus_one() + 1));
        let filled = pinned.try_for_each(|(pa, length)| {
            if ioasid_inject::fails() {
                return Err(iopt::MapError::OutOfTables);
            }
            self.table.map(start, pa, length, leaves, &mut empty)?;
            start = start.wrapping_add(length);
            Ok(())
        });
        if filled.is_err()
            && let Some(last) = start.checked_sub(1).filter(|&last| last >= range.start)
        {
            self.take_out(IovaRange { last, ..range }, &mut empty);
        }
        // A port may have met what was mapped for a moment, or a table that lost a race to be linked.
        if filled.is_err() || !empty.is_empty() {
            self.quiesce(range);
            self.table.free(empty);
        }
        filled
    }

    /// Undoes [`Hwpt::map`] of some areas.
    pub(crate) fn take_back(&self, areas: impl Iterator<Item = IovaRange>) {
        areas.for_each(|area| self.unmap(area, std::iter::once(area)));
    }

    /// Unmaps `runs`, which lie in `range` and consist of whole areas, and returns when no port uses them.
    pub(crate) fn unmap(&self, range: IovaRange, runs: impl Iterator<Item = IovaRange>) {
        let mut empty = EmptyTables::none();
        runs.for_each(|run| self.take_out(run, &mut empty));
        self.quiesce(range);
        self.table.free(empty);
    }

    fn take_out(&self, run: IovaRange, empty: &mut EmptyTables) {
        let result = self.table.unmap(run.start, run.len_minus_one() + 1, empty);
        // Areas are whole pages within the aperture, and every area was mapped by calls of its own.
        debug_assert_eq!(result, Ok(()));
    }
}
