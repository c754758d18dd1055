//! A context: what one open of `/dev/iommu` owns.

use std::num::NonZeroU32;
use std::sync::Arc;

use thiserror::Error;

use crate::device::{BindError, Device};
use crate::endpoint::Endpoint;
use crate::gate::check_holds_nothing;
use crate::hwpt::{GuestTable, Hwpt, HwptKind, NestedHwpt, Table, UnalignedRoot};
use crate::ids::{Ids, ObjectId, RemoveError};
use crate::ioas::{ConnectError, Ioas};
use crate::iommu::Iommu;
use crate::memory::PinError;
use crate::observe::Leftover;
use crate::sync::Mutex;
use crate::types::{HoldsSlices, IovaRange};

/// Why an object was not destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DestroyError {
    /// There is none with this id.
    #[error("no object {0} in the context")]
    Missing(u32),
    /// Something refers to it.
    #[error("object {0} is in use")]
    Busy(u32),
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
}

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

#[derive(Clone)]
pub(crate) enum Object {
    Ioas(Arc<Ioas>),
    Hwpt(Table),
    /// What is bound. Its [`Device`] is held by the consumer that bound it.
    Device(Arc<Endpoint>),
}

/// A context, the security object: whoever holds it controls what is in it, and ids mean something only inside it.
///
/// It goes when the last reference goes, and devices bound to it hold one: then whatever is left in it is told to the
/// observer and torn down.
pub struct Context {
    iommu: Arc<Iommu>,
    serial: u64,
    ids: Ids<Object>,
    /// Held while attachments change.
    pub(crate) attach: Mutex<()>,
}

impl Context {
    pub(crate) fn new(iommu: Arc<Iommu>) -> Arc<Self> {
        let serial = iommu.serial();
        Arc::new(Self { iommu, serial, ids: Ids::new(), attach: Mutex::default() })
    }

    pub(crate) fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    pub(crate) fn ids(&self) -> &Ids<Object> {
        &self.ids
    }

    /// Makes an empty address space, or returns `None` when the context has 2^31 objects.
    pub fn ioas_alloc(&self) -> Option<Arc<Ioas>> {
        let reserved = self.ids.reserve()?;
        let ioas = Arc::new(Ioas::new(reserved.id(), self.iommu.clone()));
        reserved.finalize(Object::Ioas(ioas.clone()), 0);
        Some(ioas)
    }

    /// The address space with this id.
    #[must_use]
    pub fn ioas(&self, id: u32) -> Option<Arc<Ioas>> {
        match self.ids.get(ObjectId(NonZeroU32::new(id)?))? {
            Object::Ioas(ioas) => Some(ioas),
            Object::Hwpt(_) | Object::Device(_) => None,
        }
    }

    /// The page table with this id.
    #[must_use]
    pub fn hwpt(&self, id: ObjectId) -> Option<Arc<Hwpt>> {
        match self.ids.get(id)? {
            Object::Hwpt(Table::Paging(hwpt)) => Some(hwpt),
            Object::Hwpt(Table::Nested(_)) | Object::Ioas(_) | Object::Device(_) => None,
        }
    }

    /// The nested page table with this id.
    #[must_use]
    pub fn nested_hwpt(&self, id: ObjectId) -> Option<Arc<NestedHwpt>> {
        match self.ids.get(id)? {
            Object::Hwpt(Table::Nested(nested)) => Some(nested),
            Object::Hwpt(Table::Paging(_)) | Object::Ioas(_) | Object::Device(_) => None,
        }
    }

    /// Makes a page table of the address space `ioas` for the IOMMU that `device` is behind. It stays until it is destroyed; with
    /// `nest_parent`, nested tables can be made on it.
    ///
    /// # Errors
    /// See [`HwptError`].
    pub fn hwpt_alloc(&self, device: u32, ioas: u32, nest_parent: bool) -> Result<Arc<Hwpt>, HwptError> {
        check_holds_nothing()?;
        let Object::Device(endpoint) = self.ids.get(object_id(device)?).ok_or(HwptError::Missing(device))? else {
            return Err(HwptError::NotADevice(device));
        };
        let kind = if nest_parent { HwptKind::NestParent } else { HwptKind::Plain };
        let owner = |object: &Object| match object {
            Object::Ioas(owner) => Ok(owner.clone()),
            Object::Hwpt(_) | Object::Device(_) => Err(HwptError::NotAnIoas(ioas)),
        };
        self.with_held(ioas, owner, |owner| {
            let reserved = self.ids.reserve().ok_or(HwptError::NoIds)?;
            let (format, arena) = (endpoint.format(), self.iommu.arena.clone());
            let hwpt = Arc::new(Hwpt::new(reserved.id(), kind, format, owner.clone(), arena)?);
            owner.add_table(hwpt.clone(), None)?;
            reserved.finalize(Object::Hwpt(Table::Paging(hwpt.clone())), 0);
            Ok(hwpt)
        })
    }

    /// Makes a nested page table: a guest's own `table`, whose addresses mean what `parent` maps.
    ///
    /// # Errors
    /// See [`HwptError`].
    pub fn hwpt_alloc_nested(&self, parent: u32, table: GuestTable) -> Result<Arc<NestedHwpt>, HwptError> {
        table.check()?;
        let hwpt = |object: &Object| match object {
            Object::Hwpt(Table::Paging(hwpt)) if hwpt.kind() == HwptKind::NestParent => Ok(hwpt.clone()),
            Object::Hwpt(_) => Err(HwptError::NotAParent(parent)),
            Object::Ioas(_) | Object::Device(_) => Err(HwptError::NotAPageTable(parent)),
        };
        self.with_held(parent, hwpt, |hwpt| {
            let reserved = self.ids.reserve().ok_or(HwptError::NoIds)?;
            let nested = Arc::new(NestedHwpt::new(reserved.id(), hwpt, table));
            reserved.finalize(Object::Hwpt(Table::Nested(nested.clone())), 0);
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
        let held = object_id(id)?;
        let object = self.ids.hold_if(held, fits).ok_or(HwptError::Missing(id))??;
        make(object).inspect_err(|_| self.ids.release(held))
    }

    /// Binds a device to this context: from now on, what it reaches is decided through it.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(self: &Arc<Self>, endpoint: &Arc<Endpoint>) -> Result<Device, BindError> {
        Device::bind(self.clone(), endpoint.clone())
    }

    /// Destroys an object that nothing refers to; what was mapped in an address space is unmapped.
    ///
    /// # Errors
    /// See [`DestroyError`]; nothing is changed then. It never fails for lack of memory.
    pub fn destroy(&self, id: u32) -> Result<(), DestroyError> {
        check_holds_nothing()?;
        let object_id = ObjectId(NonZeroU32::new(id).ok_or(DestroyError::Missing(id))?);
        let object = self.ids.remove(object_id).map_err(|error| match error {
            RemoveError::Missing => DestroyError::Missing(id),
            RemoveError::InUse => DestroyError::Busy(id),
        })?;
        match object {
            Object::Ioas(ioas) => {
                // All of it cuts no area, and who is mapping something holds on to the address space.
                let _ = ioas.unmap(IovaRange::ALL);
            }
            Object::Hwpt(Table::Paging(hwpt)) => {
                hwpt.ioas().remove_table(&hwpt);
                self.ids.release(hwpt.ioas().id());
            }
            Object::Hwpt(Table::Nested(nested)) => self.ids.release(nested.parent().id()),
            Object::Device(_) => {}
        }
        Ok(())
    }
}

fn object_id(id: u32) -> Result<ObjectId, HwptError> {
    NonZeroU32::new(id).map(ObjectId).ok_or(HwptError::Missing(id))
}

impl Drop for Context {
    fn drop(&mut self) {
        // Devices hold the context, so none is bound any more, and nobody is attached to a page table.
        for (id, object) in self.ids.drain() {
            match object {
                Object::Ioas(ioas) => {
                    let (areas, bytes) = ioas.size();
                    self.iommu.observer().left_behind(&Leftover::Ioas { id, areas, bytes });
                    let _ = ioas.unmap(IovaRange::ALL);
                }
                // The address space has a reference to it, and it one to the address space.
                Object::Hwpt(Table::Paging(hwpt)) => hwpt.ioas().remove_table(&hwpt),
                Object::Hwpt(Table::Nested(_)) | Object::Device(_) => {}
            }
        }
    }
}
