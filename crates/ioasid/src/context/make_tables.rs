//! How page tables are made.

use std::sync::Arc;

use thiserror::Error;

use super::target::{NestParent, NestParentKind};
use super::{Context, InUse, NotBound, Object, finalize_over, kept};
use crate::base::ids::ObjectId;
use crate::base::types::{IovaRange, WouldDeadlock};
use crate::bus::Endpoint;
use crate::fault::OnMiss;
use crate::gate::check_may_wait;
use crate::hwpt::{BadGuestStage, Hwpt, HwptOptions, NestedHwpt, NestedOptions, SvaError, SvaHwpt, Table};
use crate::ioas::{ConnectError, Ioas};
use crate::kind::TableFormat;
use crate::memory::{PinError, Process};
use crate::mirror::MirrorError;

/// Why no page table was made. Nothing is changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HwptError {
    /// What it is to be made on or with was destroyed, or is another context's.
    #[error("object {0} is not in this context: it was destroyed, or another context has it")]
    Missing(ObjectId),
    /// A page table is made for a device that is bound to the context.
    #[error(transparent)]
    NotBound(#[from] NotBound),
    /// The page table was not made to be a parent, or is nested itself: there are two stages, and no third.
    #[error("page table {0} cannot be a parent: only one that mirrors an address space and was made as such can")]
    NotAParent(ObjectId),
    /// The IOMMU that the device is behind does not walk this format.
    #[error("the device's IOMMU does not walk page tables of the format {0:?}")]
    WrongFormat(TableFormat),
    /// The IOMMU that the device is behind keeps no dirty bits.
    #[error("the device's IOMMU does not track what is written")]
    NoDirtyTracking,
    /// The guest's table is not where it can be.
    #[error(transparent)]
    Guest(#[from] BadGuestStage),
    /// The context has 2^31 objects.
    #[error("the context has no free ids")]
    NoIds,
    /// Something is mapped, or allowed to be, that the page table's format cannot address.
    #[error("IOVA {0} is mapped or allowed, and the page table cannot address it")]
    Conflict(IovaRange),
    /// Something is mapped that is not made of the page table's pages.
    #[error("IOVA {0} is mapped, and is not made of pages of {1:#x} bytes")]
    Misaligned(IovaRange, u64),
    /// Memory that is mapped could not be brought in.
    #[error(transparent)]
    Pages(PinError),
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
    /// There is no room for a page table.
    #[error(transparent)]
    Table(#[from] iopt::MapError),
    /// The page table could not be filled.
    #[error(transparent)]
    Mirror(MirrorError),
    /// The context was closed.
    #[error("the context was closed")]
    Closed,
}

impl From<ConnectError> for HwptError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Conflict(range) => Self::Conflict(range),
            ConnectError::Misaligned(range, page) => Self::Misaligned(range, page),
            ConnectError::Pages(error) => Self::Pages(error),
            ConnectError::Mirror(error) => Self::Mirror(error),
            ConnectError::WouldDeadlock(error) => Self::WouldDeadlock(error),
        }
    }
}

impl Context {
    /// Makes a page table of an address space for the IOMMU that `device` is behind. It stays until it is destroyed.
    ///
    /// # Errors
    /// See [`HwptError`].
    pub fn hwpt_alloc(
        &self,
        device: &Arc<Endpoint>,
        ioas: &Arc<Ioas>,
        options: HwptOptions,
    ) -> Result<Arc<Hwpt>, HwptError> {
        check_may_wait()?;
        if self.is_closed() {
            return Err(HwptError::Closed);
        }
        self.check_bound(device)?;
        let kind = device.iommu().kind();
        if let Some(format) = options.format.filter(|format| !kind.walks(*format)) {
            return Err(HwptError::WrongFormat(format));
        }
        if options.dirty_tracking && !device.tracks_dirty() {
            return Err(HwptError::NoDirtyTracking);
        }
        let holds = [self.hold_ioas(ioas).ok_or(HwptError::Missing(ioas.id()))?];
        let holds = holds.into_iter().chain(self.hold_queue(&options.on_miss)?).collect::<Vec<_>>();
        let reserved = self.ids.reserve().ok_or(HwptError::NoIds)?;
        let arena = self.shared().arena.clone();
        let hwpt = Arc::new(Hwpt::new(reserved.id(), kind, options, ioas.clone(), arena)?);
        ioas.add_mirror(hwpt.clone())?;
        reserved.finalize(Object::Hwpt(Table::Paging(hwpt.clone())), 0, kept(holds));
        Ok(hwpt)
    }

    /// Makes a nested page table: a guest's own, whose addresses mean what `parent` maps, a page table or what a
    /// virtual IOMMU is over.
    ///
    /// # Errors
    /// See [`HwptError`].
    pub fn hwpt_alloc_nested(
        &self,
        parent: impl Into<NestParent>,
        options: impl Into<NestedOptions>,
    ) -> Result<Arc<NestedHwpt>, HwptError> {
        check_may_wait()?;
        if self.is_closed() {
            return Err(HwptError::Closed);
        }
        let (parent, options) = (parent.into(), options.into());
        options.stage.check()?;
        let missing = HwptError::Missing(parent.id());
        let (held, viommu) = match &parent.0 {
            NestParentKind::Hwpt(hwpt) if !hwpt.is_nest_parent() => return Err(HwptError::NotAParent(hwpt.id())),
            NestParentKind::Hwpt(hwpt) => (self.hold_hwpt(hwpt), None),
            NestParentKind::Viommu(viommu) => (self.hold_viommu(viommu), Some(viommu.id())),
        };
        let Some(held) = held else { return Err(missing) };
        let holds = [held].into_iter().chain(self.hold_queue(&options.on_miss)?).collect::<Vec<_>>();
        let reserved = self.ids.reserve().ok_or(HwptError::NoIds)?;
        let nested = Arc::new(NestedHwpt::new(reserved.id(), parent.hwpt().clone(), viommu, options));
        // The parent may have been parked meanwhile, and then leads nowhere.
        finalize_over(reserved, Object::Hwpt(Table::Nested(nested.clone())), holds).ok_or(missing)?;
        Ok(nested)
    }

    /// Makes a page table of a process's address space
    /// ([`Process::open_for_sva`](crate::memory::Process::open_for_sva)). It stays until it is destroyed; when the
    /// process has ended, nothing is reached by it.
    ///
    /// # Errors
    /// See [`SvaError`].
    pub fn hwpt_alloc_sva(&self, process: impl Into<Arc<Process>>) -> Result<Arc<SvaHwpt>, SvaError> {
        if self.is_closed() {
            return Err(SvaError::Closed);
        }
        let reserved = self.ids.reserve().ok_or(SvaError::NoIds)?;
        let sva = Arc::new(SvaHwpt::new(reserved.id(), process.into())?);
        reserved.finalize(Object::Hwpt(Table::Sva(sva.clone())), 0, vec![]);
        Ok(sva)
    }

    /// Holds the fault queue that is asked on a miss, if one is.
    fn hold_queue(&self, on_miss: &OnMiss) -> Result<Option<InUse<'_>>, HwptError> {
        let Some(queue) = on_miss.queue() else { return Ok(None) };
        let is_it = |object: &Object| matches!(object, Object::FaultQueue(there) if Arc::ptr_eq(there, queue));
        self.hold_object(queue.id(), is_it).map(Some).ok_or(HwptError::Missing(queue.id()))
    }
}
