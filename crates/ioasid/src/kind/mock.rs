//! The mock IOMMU of Linux's own tests.

use super::{Kind, TableFormat};

pub(super) const MOCK: Kind = Kind {
    name: "mock",
    about: "that of Linux's own tests",
    formats: &[TableFormat::Mock, TableFormat::MockHuge],
    reserved: &[],
    automatic_for_pasids: false,
};
