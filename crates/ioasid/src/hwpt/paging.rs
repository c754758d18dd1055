//! Paging page tables: they mirror an address space.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use iopt::format::VtdSecondStage;
use iopt::{Access, Arena, EmptyTables, Format, Leaves, Translation, Upper};

use super::granule::Granule;
use super::table::PagingTable;
use crate::base::ids::ObjectId;
use crate::base::lock::RwLock;
use crate::base::rank;
use crate::base::types::{Iova, IovaRange, WouldDeadlock};
use crate::fault::OnMiss;
use crate::gate::check_may_wait;
use crate::gate::invalidation::{Invalidation, TableId};
use crate::ioas::Ioas;
use crate::kind::{IommuKind, TableFormat};
use crate::memory::{Identity, TableSpace};
use crate::mirror::{Mirror, MirrorCapabilities, MirrorError, MirrorRun, Users};

/// log2 of the bytes that a table of the lowest level maps, in the format of most: what a cache of upper levels holds.
pub(crate) const LOWEST_SPAN_BITS: u32 = VtdSecondStage::PAGE_SHIFT + VtdSecondStage::INDEX_BITS;

/// What a page table that is asked for is to be good for.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
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

impl HwptOptions {
    /// In this format.
    #[must_use]
    pub fn format(self, format: TableFormat) -> Self {
        Self { format: Some(format), ..self }
    }

    /// Whether nested tables can be made on it.
    #[must_use]
    pub fn nest_parent(self, nest_parent: bool) -> Self {
        Self { nest_parent, ..self }
    }

    /// Whether only devices whose IOMMU can track what is written can be attached.
    #[must_use]
    pub fn dirty_tracking(self, dirty_tracking: bool) -> Self {
        Self { dirty_tracking, ..self }
    }

    /// Whether it can be attached to PASIDs, and to a device that has PASIDs attached.
    #[must_use]
    pub fn pasids(self, pasids: bool) -> Self {
        Self { pasids, ..self }
    }

    /// What happens when a device finds nothing there.
    #[must_use]
    pub fn on_miss(self, on_miss: OnMiss) -> Self {
        Self { on_miss, ..self }
    }
}

/// A paging HWPT: what an address space maps, in the format that an IOMMU walks.
pub struct Hwpt {
    id: ObjectId,
    kind: IommuKind,
    format: TableFormat,
    options: HwptOptions,
    /// Whether it was made for a device that was attached to the address space, and goes with the last one.
    automatic: bool,
    ioas: Arc<Ioas>,
    pub(crate) table: PagingTable,
    /// Whether writes are marked, and how finely.
    pub(crate) granule: Granule,
    /// The requesters that are attached, to the table itself or to one that is nested on it.
    pub(crate) users: Users,
    /// Held to fill and to empty the table, by many threads at a time, and by one alone to find it as it is.
    pub(super) fill: RwLock<(), rank::Fill>,
}

impl fmt::Debug for Hwpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hwpt")
            .field("id", &self.id)
            .field("ioas", &self.ioas.id())
            .field("format", &self.format)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Hwpt {
    pub(crate) fn new(
        id: ObjectId,
        kind: IommuKind,
        options: HwptOptions,
        ioas: Arc<Ioas>,
        arena: Arc<Arena<TableSpace>>,
    ) -> Result<Self, iopt::MapError> {
        let format = options.format.unwrap_or(kind.format());
        let table = PagingTable::new(format, arena)?;
        let (granule, users, fill) = (Granule::none(), Users::default(), RwLock::default());
        Ok(Self { id, kind, format, options, automatic: false, ioas, table, granule, users, fill })
    }

    /// One that no caller asked for.
    pub(crate) fn automatic(
        id: ObjectId,
        kind: IommuKind,
        ioas: Arc<Ioas>,
        arena: Arc<Arena<TableSpace>>,
    ) -> Result<Self, iopt::MapError> {
        let options = HwptOptions::default().pasids(kind.automatic_for_pasids());
        Ok(Self { automatic: true, ..Self::new(id, kind, options, ioas, arena)? })
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// What the caller asked for, if one did.
    #[must_use]
    pub fn options(&self) -> Option<&HwptOptions> {
        (!self.automatic).then_some(&self.options)
    }

    pub(crate) fn on_miss(&self) -> &OnMiss {
        &self.options.on_miss
    }

    /// The table that devices behind a kind of IOMMU get which are attached to the address space itself, if there is
    /// one.
    pub(crate) fn automatic_of(ioas: &Ioas, kind: IommuKind) -> Option<Arc<Self>> {
        ioas.find_mirror(|mirror| {
            let hwpt = (mirror.clone() as Arc<dyn Any + Send + Sync>).downcast::<Self>().ok()?;
            (hwpt.is_automatic() && hwpt.kind == kind).then_some(hwpt)
        })
    }

    pub(crate) fn is_automatic(&self) -> bool {
        self.automatic
    }

    /// Whether guests' page tables can be nested in it ([`HwptOptions::nest_parent`]).
    #[must_use]
    pub fn is_nest_parent(&self) -> bool {
        self.options.nest_parent
    }

    pub(crate) fn allows_pasids(&self) -> bool {
        self.options.pasids
    }

    /// The address space that it mirrors.
    #[must_use]
    pub fn ioas(&self) -> &Arc<Ioas> {
        &self.ioas
    }

    /// The kind of IOMMU that it was made for.
    #[must_use]
    pub fn iommu_kind(&self) -> IommuKind {
        self.kind
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> TableFormat {
        self.format
    }

    /// Where IOVA `iova` leads at this moment: to which memory. `None` if nothing is mapped there, or what it is cannot
    /// be told.
    ///
    /// # Errors
    /// [`WouldDeadlock`] if this thread holds slices.
    pub fn memory_at(&self, iova: Iova) -> Result<Option<Identity>, WouldDeadlock> {
        check_may_wait()?;
        // What is found stays as long as nothing is taken out of the table.
        let _alone = self.fill.write();
        let found = || {
            let upper = self.table.upper(iova.0)?;
            self.table.walk_coalesced_below(upper, iova.0)
        };
        Ok(found().and_then(|found| self.ioas.shared().phys.identity(found.pa)))
    }

    /// Returns when no port uses what was taken out of `range` of the table before the call.
    pub(crate) fn quiesce(&self, range: IovaRange) {
        self.users.quiesce(Invalidation::Range(TableId::of(self), range));
    }

    /// Where walks to `iova` and its neighbours can begin.
    #[inline]
    pub(crate) fn upper(&self, iova: u64) -> Option<Upper> {
        self.table.upper(iova)
    }

    /// What a port that wants `access` finds at `iova`, and what it may keep of it: a write is marked where that is
    /// asked for, and other accesses are then not to be taken for one later.
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

    fn take_out(&self, run: IovaRange, empty: &mut EmptyTables) {
        let result = self.table.unmap(run.start, run.len_minus_one() + 1, empty);
        // Areas are whole pages within the aperture, and every area was mapped by calls of its own.
        debug_assert_eq!(result, Ok(()));
    }
}

impl Mirror for Hwpt {
    fn capabilities(&self) -> MirrorCapabilities {
        let capabilities = MirrorCapabilities::default().with_aperture(self.format.aperture());
        capabilities.with_page_sizes(self.format.page_sizes())
    }

    fn map(&self, run: &MirrorRun<'_>) -> Result<(), MirrorError> {
        let range = run.range;
        let (mut start, mut empty) = (range.start, EmptyTables::none());
        let filled = {
            let _fill = self.fill.read();
            let largest = self.granule.largest().min(run.largest).min(self.format.page_shifts().1);
            let leaves = Leaves { access: run.access, largest };
            let filled = run.physical().try_for_each(|(pa, length)| {
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
            filled
        };
        // A port may have met what was mapped for a moment, or a table that lost a race to be linked.
        if filled.is_err() || !empty.is_empty() {
            self.quiesce(range);
            self.table.free(empty);
        }
        Ok(filled?)
    }

    fn unmap(&self, runs: &mut dyn Iterator<Item = IovaRange>) -> Result<(), MirrorError> {
        let (mut empty, mut hull) = (EmptyTables::none(), None);
        for run in runs {
            hull = Some(hull.map_or(run, |hull: IovaRange| IovaRange { last: run.last, ..hull }));
            let _fill = self.fill.read();
            self.take_out(run, &mut empty);
        }
        if let Some(hull) = hull {
            self.quiesce(hull);
            self.table.free(empty);
        }
        Ok(())
    }

    fn split(&self, at: Iova) -> Result<(), MirrorError> {
        let page = 1 << self.format.page_shifts().0;
        // What a table cannot address, it has no pages of.
        if self.format.aperture().contains(&IovaRange { start: at.0, last: at.0 }) {
            self.table.split(at.0 & !(page - 1), page, self.format.page_shifts().0)?;
        }
        Ok(())
    }

    fn protect(&self, run: &MirrorRun<'_>, before: Access) -> Result<(), MirrorError> {
        if ioasid_inject::fails() {
            return Err(iopt::MapError::OutOfTables.into());
        }
        let result = self.table.protect(run.range.start, run.range.len_minus_one() + 1, run.access);
        debug_assert_eq!(result, Ok(()));
        // What is cached is what was allowed: it is of use still where more is allowed now.
        if !run.access.contains(before) {
            self.quiesce(run.range);
        }
        Ok(())
    }

    fn tracks_dirty(&self) -> bool {
        !self.granule.is_none()
    }

    fn read_dirty(&self, range: IovaRange, page: u64, clear: bool, bitmap: &mut [u64]) -> Result<(), MirrorError> {
        Self::read_dirty(self, range, page, clear, bitmap).map_err(|error| MirrorError::Failed(error.into()))
    }
}
