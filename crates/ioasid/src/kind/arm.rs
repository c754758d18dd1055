//! Arm's SMMUv3, with second stages.
//!
//! Source: Arm IHI 0070 (SMMUv3) 3.4; Arm DDI 0487 (A-profile) D8.

use super::{Kind, TableFormat};
use crate::base::types::IovaRange;

/// Where Linux maps the doorbell of the interrupt controller for devices (`IOMMU_RESV_SW_MSI`).
const MSI: IovaRange = IovaRange { start: 0x800_0000, last: 0x80f_ffff };

pub(super) const SMMU_V3: Kind = Kind {
    name: "smmuv3",
    about: "Arm SMMUv3, stage 2 with pages of 4 KiB, 48 bits of IOVA",
    formats: &[TableFormat::Armv8Stage2],
    reserved: &[MSI],
    automatic_for_pasids: true,
};
