//! AMD's IOMMU, with host page tables of its first version.
//!
//! Source: AMD 48882 (IOMMU) 2.2.3; HyperTransport's special addresses, which are no memory, 2.1.2.

use super::{Kind, MSI_X86, TableFormat};
use crate::base::types::IovaRange;

/// Addresses of HyperTransport.
const HYPER_TRANSPORT: IovaRange = IovaRange { start: 0xfd_0000_0000, last: 0xff_ffff_ffff };

pub(super) const AMD_V1: Kind = Kind {
    name: "amd",
    about: "AMD IOMMU, page tables v1 of 4 levels, 48 bits of IOVA",
    formats: &[TableFormat::AmdV1],
    reserved: &[MSI_X86, HYPER_TRANSPORT],
    automatic_for_pasids: true,
};
