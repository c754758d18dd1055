//! AMD's IOMMU.
//!
//! Source: AMD 48882 (IOMMU), 3.4.11 (extended feature register).

use ioasid_uapi::iommufd as uapi;
use zerocopy::IntoBytes;

use super::Hardware;

pub(super) struct Amd;

/// Page requests, guests' page tables of 4 and 5 levels by GCR3 tables of 3, invalidation of everything at once; host
/// page tables of 4 levels; PASIDs of 20 bits; accessed and dirty bits of host page tables.
const FEATURES: u64 = 1 << 1 | 1 << 4 | 1 << 6 | 1 << 12 | 2 << 14 | 19 << 32 | 1 << 49 | 1 << 52;

impl Hardware for Amd {
    fn info(&self) -> (u32, Vec<u8>) {
        let info = uapi::HwInfoAmd { efr: FEATURES, efr2: 0 };
        (uapi::HW_INFO_TYPE_AMD, info.as_bytes().to_vec())
    }
}
