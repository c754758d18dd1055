//! What in requests is each IOMMU's own: its registers, the data that page tables are made from, and invalidations.

mod mock;
mod vtd;

use ioasid::{Endpoint, IommuKind, NestedHwpt, NestedOptions, TableFormat};
use rustix::io::Errno;

use super::argument::{Data, Entries};

pub(super) use mock::Iotlb;

/// One kind of IOMMU.
pub(super) trait Hardware: Sync {
    /// The type and the bytes of the structure that says what it can do.
    fn info(&self) -> (u32, Vec<u8>);

    /// The format of a page table of an address space that is asked for with `data`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for data of another kind, `EINVAL`, `EFAULT`.
    fn table(&self, data: &Data<'_>) -> Result<TableFormat, Errno>;

    /// The guest's page table that `data` describes.
    ///
    /// # Errors
    /// As [`Hardware::table`].
    fn nested(&self, data: &Data<'_>) -> Result<NestedOptions, Errno>;

    /// Forgets what is cached of a guest's page table, entry for entry, and counts those that are `done`.
    ///
    /// # Errors
    /// `EINVAL` for entries of another kind, `EOPNOTSUPP`, `EFAULT`.
    fn invalidate(&self, nested: &NestedHwpt, entries: &Entries<'_>, done: &mut u32) -> Result<(), Errno>;
}

/// That which a device is behind.
pub(super) fn of(endpoint: &Endpoint) -> &'static dyn Hardware {
    of_kind(endpoint.iommu_kind())
}

pub(super) fn of_kind(kind: IommuKind) -> &'static dyn Hardware {
    match kind {
        IommuKind::Mock => &mock::Mock,
        _ => &vtd::Vtd,
    }
}
