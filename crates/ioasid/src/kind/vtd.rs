//! Intel VT-d in scalable mode, with second stages of four or five levels.
//!
//! Source: Intel Virtualization Technology for Directed I/O, revision 5.0, 3.7; Intel SDM 3, 12.11 (interrupts).

use super::{Kind, MSI_X86, TableFormat};

pub(super) const FOUR_LEVELS: Kind = Kind {
    name: "vtd",
    about: "Intel VT-d, second stage of 4 levels, 48 bits of IOVA",
    formats: &[TableFormat::VtdSecondStage],
    reserved: &[MSI_X86],
    automatic_for_pasids: true,
};

pub(super) const FIVE_LEVELS: Kind = Kind {
    name: "vtd5",
    about: "Intel VT-d, second stage of 5 levels, 57 bits of IOVA",
    formats: &[TableFormat::VtdSecondStageFiveLevels, TableFormat::VtdSecondStage],
    ..FOUR_LEVELS
};
