//! What in requests is each IOMMU's own: its registers, the data that page tables are made from, and invalidations.

mod amd;
mod arm;
mod mock;
mod riscv;
mod vtd;

use std::any::Any;
use std::sync::Arc;

use ioasid::{Endpoint, IommuKind, NestedHwpt, NestedOptions, TableFormat, Viommu};
use rustix::io::Errno;

use super::argument::{Data, Entries};
use super::regions::{RegionHold, Registers};

pub(super) use mock::{DeviceCache, Iotlb};

/// What is kept with an object.
pub(super) type Extension = Box<dyn Any + Send + Sync>;

/// Lets programs map registers, as long as the result is kept.
pub(super) type AddRegion<'a> = &'a dyn Fn(Arc<dyn Registers>) -> RegionHold;

/// One kind of IOMMU.
pub(super) trait Hardware: Sync {
    /// The type and the bytes of the structure that says what it can do.
    fn info(&self) -> (u32, Vec<u8>);

    /// The format of a page table of an address space that is asked for with `data`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for data of another kind, `EINVAL`, `EFAULT`.
    fn table(&self, _data: &Data<'_>) -> Result<TableFormat, Errno> {
        Err(Errno::OPNOTSUPP)
    }

    /// Whether guests' page tables are nested in others.
    fn has_nested(&self) -> bool {
        false
    }

    /// The guest's page table that `data` describes.
    ///
    /// # Errors
    /// As [`Hardware::table`].
    fn nested(&self, _data: &Data<'_>) -> Result<NestedOptions, Errno> {
        Err(Errno::OPNOTSUPP)
    }

    /// Forgets what is cached of a guest's page table, entry for entry, and counts those that are `done`.
    ///
    /// # Errors
    /// `EINVAL` for entries of another kind, `EOPNOTSUPP`, `EFAULT`.
    fn invalidate(&self, _nested: &NestedHwpt, _entries: &Entries<'_>, _done: &mut u32) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }

    /// Whether it has virtual IOMMUs of this type.
    fn has_viommu(&self, _kind: u32) -> bool {
        false
    }

    /// What is kept with a virtual IOMMU that is asked for with `data`. `add_region` lets programs map registers of it.
    ///
    /// # Errors
    /// `EOPNOTSUPP`, `EINVAL`, `EFAULT`.
    fn viommu(&self, _data: Option<&Data<'_>>, _add_region: AddRegion<'_>) -> Result<Extension, Errno> {
        Err(Errno::OPNOTSUPP)
    }

    /// Forgets what a virtual IOMMU has cached, entry for entry, and counts those that are `done`.
    ///
    /// # Errors
    /// As [`Hardware::invalidate`].
    fn invalidate_viommu(&self, _viommu: &Viommu, _entries: &Entries<'_>, _done: &mut u32) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }

    /// The index of the queue that one of this type and index has to come after, if after one.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if there are no such queues, `EINVAL` if there are not so many.
    fn hw_queue(&self, _kind: u32, _index: u32) -> Result<Option<u32>, Errno> {
        Err(Errno::OPNOTSUPP)
    }
}

/// That which a device is behind.
pub(super) fn of(endpoint: &Endpoint) -> &'static dyn Hardware {
    of_kind(endpoint.iommu().kind())
}

pub(super) fn of_kind(kind: IommuKind) -> &'static dyn Hardware {
    match kind {
        IommuKind::Mock => &mock::Mock,
        IommuKind::VtdFiveLevels => &vtd::Vtd { five_levels: true },
        IommuKind::Amd => &amd::Amd,
        IommuKind::SmmuV3 => &arm::SmmuV3,
        IommuKind::RiscV => &riscv::RiscV,
        _ => &vtd::Vtd { five_levels: false },
    }
}
