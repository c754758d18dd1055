//! How page tables are made.

use std::num::NonZeroU32;
use std::sync::Arc;

use thiserror::Error;

use super::{Context, Object};
use crate::gate::check_holds_nothing;
use crate::hwpt::{Hwpt, HwptOptions, NestedHwpt, NestedOptions, Table, TableFormat, UnalignedRoot};
use crate::ids::ObjectId;
use crate::ioas::ConnectError;
use crate::memory::PinError;
use crate::types::{HoldsSlices, IovaRange};

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
    Unaligned(#[from] UnalignedRoot),
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
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
    /// The page table could not be filled.
    #[error(transparent)]
    Table(#[from] iopt::MapError),
}

impl From<ConnectError> for HwptError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Conflict(range) => Self::Conflict(range),
            ConnectError::Misaligned(range, page) => Self::Misaligned(range, page),
            ConnectError::Pages(error) => Self::Pages(error),
            ConnectError::Table(error) => Self::Table(error),
        }
    }
}

impl Context {
    /// Makes a page table of the address space `ioas` for the IOMMU that `device` is behind. It stays until it is destroyed.
    ///
    /// # Errors
    /// See [`HwptError`].
    pub fn hwpt_alloc(&self, device: u32, ioas: u32, options: HwptOptions) -> Result<Arc<Hwpt>, HwptError> {
        check_holds_nothing()?;
        let Object::Device(endpoint) = self.get(device).ok_or(HwptError::Missing(device))? else {
            return Err(HwptError::NotADevice(device));
        };
        let format = options.format.unwrap_or(endpoint.iommu_kind().format());
        if format.iommu_kind() != endpoint.iommu_kind() {
            return Err(HwptError::WrongFormat(format));
        }
        if options.dirty_tracking && !endpoint.tracks_dirty() {
            return Err(HwptError::NoDirtyTracking);
        }
        let owner = |object: &Object| match object {
            Object::Ioas(owner) => Ok(owner.clone()),
            _ => Err(HwptError::NotAnIoas(ioas)),
        };
        self.with_held(ioas, owner, |owner| {
            let reserved = self.ids.reserve().ok_or(HwptError::NoIds)?;
            let arena = self.iommu.arena.clone();
            let hwpt = Arc::new(Hwpt::new(reserved.id(), format, Some(options), owner.clone(), arena)?);
            owner.add_table(hwpt.clone(), None)?;
            reserved.finalize(Object::Hwpt(Table::Paging(hwpt.clone())), 0, vec![owner.id()]);
            Ok(hwpt)
        })
    }

    /// Makes a nested page table: a guest's own, whose addresses mean what `parent` maps.
    ///
    /// # Errors
    /// See [`HwptError`].
    pub fn hwpt_alloc_nested(
        &self,
        parent: u32,
        options: impl Into<NestedOptions>,
    ) -> Result<Arc<NestedHwpt>, HwptError> {
        let options = options.into();
        options.table.check()?;
        let hwpt = |object: &Object| match object {
            Object::Hwpt(Table::Paging(hwpt)) if hwpt.is_nest_parent() => Ok(hwpt.clone()),
            Object::Hwpt(_) => Err(HwptError::NotAParent(parent)),
            _ => Err(HwptError::NotAPageTable(parent)),
        };
        self.with_held(parent, hwpt, |hwpt| {
            let reserved = self.ids.reserve().ok_or(HwptError::NoIds)?;
            let holds = vec![hwpt.id()];
            let nested = Arc::new(NestedHwpt::new(reserved.id(), hwpt, options));
            reserved.finalize(Object::Hwpt(Table::Nested(nested.clone())), 0, holds);
            Ok(nested)
        })
    }

    /// Makes something of an object that `fits`, and holds that from then on.
    fn with_held<H, T>(
        &self,
        id: u32,
        fits: impl FnOnce(&Object) -> Result<H, HwptError>,
        make: impl FnOnce(H) -> Result<T, HwptError>,
    ) -> Result<T, HwptError> {
        let held = ObjectId(NonZeroU32::new(id).ok_or(HwptError::Missing(id))?);
        let object = self.ids.hold_if(held, fits).ok_or(HwptError::Missing(id))??;
        make(object).inspect_err(|_| self.ids.release(held))
    }
}
