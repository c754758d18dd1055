//! How page tables are made.

use std::sync::Arc;

use thiserror::Error;

use super::{Context, Object};
use crate::base::types::{IovaRange, WouldDeadlock};
use crate::fault::{Disposition, OnMiss};
use crate::gate::check_may_wait;
use crate::hwpt::{BadGuestStage, Hwpt, HwptOptions, NestedHwpt, NestedOptions, SvaError, SvaHwpt, Table};
use crate::ioas::ConnectError;
use crate::kind::TableFormat;
use crate::memory::{PinError, Process};
use crate::mirror::MirrorError;

/// Why no page table was made. Nothing is changed.
#[derive(Debug, Error)]
pub enum HwptError {
    /// There is no object with this id.
    #[error("no object {0} in the context")]
    Missing(u32),
    /// A page table is made for a device, and this is something else.
    #[error("object {0} is not a device")]
    NotADevice(u32),
    /// A page table mirrors an address space, and this is something else.
    #[error("object {0} is not an address space")]
    NotAnIoas(u32),
    /// A nested page table needs a page table below it, and this is something else.
    #[error("object {0} is not a page table")]
    NotAPageTable(u32),
    /// Faults go to a fault queue, and this is none.
    #[error("object {0} is not a fault queue")]
    NotAFaultQueue(u32),
    /// The page table was not made to be a parent, or is nested itself: there are two stages, and no third.
    #[error("page table {0} cannot be a parent: only one that mirrors an address space and was made as such can")]
    NotAParent(u32),
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
    /// Makes a page table of the address space `ioas` for the IOMMU that `device` is behind. It stays until it is destroyed.
    ///
    /// # Errors
    /// See [`HwptError`].
    pub fn hwpt_alloc(&self, device: u32, ioas: u32, options: HwptOptions) -> Result<Arc<Hwpt>, HwptError> {
        check_may_wait()?;
        if self.is_closed() {
            return Err(HwptError::Closed);
        }
        let Object::Device(endpoint) = self.get(device).ok_or(HwptError::Missing(device))? else {
            return Err(HwptError::NotADevice(device));
        };
        let kind = endpoint.iommu_kind();
        let format = options.format.unwrap_or(kind.format());
        if !endpoint.iommu_kind().walks(format) {
            return Err(HwptError::WrongFormat(format));
        }
        if options.dirty_tracking && !endpoint.tracks_dirty() {
            return Err(HwptError::NoDirtyTracking);
        }
        let owner = |object: &Object| match object {
            Object::Ioas(owner) => Ok(owner.clone()),
            _ => Err(HwptError::NotAnIoas(ioas)),
        };
        self.on_held(ioas, HwptError::Missing, owner, |owner| {
            self.with_queue(options.on_miss, |on_miss| {
                let reserved = self.ids.reserve().ok_or(HwptError::NoIds)?;
                let arena = self.shared().arena.clone();
                let holds = on_miss.queue().map(|queue| queue.id()).into_iter().chain([owner.id()]).collect();
                let hwpt =
                    Arc::new(Hwpt::new(reserved.id(), kind, format, Some(options), on_miss, owner.clone(), arena)?);
                owner.add_mirror(hwpt.clone())?;
                reserved.finalize(Object::Hwpt(Table::Paging(hwpt.clone())), 0, holds);
                Ok(hwpt)
            })
        })
    }

    /// Makes a nested page table: a guest's own, whose addresses mean what `parent` maps, a page table or what a virtual IOMMU
    /// is over.
    ///
    /// # Errors
    /// See [`HwptError`].
    pub fn hwpt_alloc_nested(
        &self,
        parent: u32,
        options: impl Into<NestedOptions>,
    ) -> Result<Arc<NestedHwpt>, HwptError> {
        if self.is_closed() {
            return Err(HwptError::Closed);
        }
        let options = options.into();
        options.stage.check()?;
        let below = |object: &Object| match object {
            Object::Hwpt(Table::Paging(hwpt)) if hwpt.is_nest_parent() => Ok((hwpt.id(), hwpt.clone(), None)),
            Object::Viommu(viommu) => Ok((viommu.id(), viommu.parent().clone(), Some(viommu.id()))),
            Object::Hwpt(_) => Err(HwptError::NotAParent(parent)),
            _ => Err(HwptError::NotAPageTable(parent)),
        };
        self.on_held(parent, HwptError::Missing, below, |(below, hwpt, viommu)| {
            self.with_queue(options.on_miss, |on_miss| {
                let reserved = self.ids.reserve().ok_or(HwptError::NoIds)?;
                let holds = on_miss.queue().map(|queue| queue.id()).into_iter().chain([below]).collect();
                let nested = Arc::new(NestedHwpt::new(reserved.id(), hwpt, viommu, on_miss, options));
                // The parent may have been parked meanwhile, and then leads nowhere.
                let made = reserved.finalize_over(Object::Hwpt(Table::Nested(nested.clone())), holds);
                made.map(|_| nested).ok_or(HwptError::Missing(parent))
            })
        })
    }

    /// Makes a page table of a process's address space ([`Process::open_for_sva`](crate::memory::Process::open_for_sva)). It
    /// stays until it is destroyed; when the process has ended, nothing is reached by it.
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

    /// Makes something with what happens on a miss, and holds a fault queue, if there is to be one, from then on.
    fn with_queue<T>(
        &self,
        on_miss: OnMiss,
        make: impl FnOnce(Disposition) -> Result<T, HwptError>,
    ) -> Result<T, HwptError> {
        let id = match on_miss {
            OnMiss::Abort => return make(Disposition::Abort),
            OnMiss::Resolve => return make(Disposition::Resolve),
            OnMiss::Queue(id) => id,
        };
        let queue = |object: &Object| match object {
            Object::FaultQueue(queue) => Ok(queue.clone()),
            _ => Err(HwptError::NotAFaultQueue(id)),
        };
        self.on_held(id, HwptError::NotAFaultQueue, queue, |queue| make(Disposition::Queue(queue)))
    }
}
