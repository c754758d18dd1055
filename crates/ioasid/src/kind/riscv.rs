//! The RISC-V IOMMU, with page tables of four levels.
//!
//! Source: RISC-V IOMMU 1.0, 3.3; The RISC-V Instruction Set Manual, volume II, 12.5 (Sv48).

use super::{Kind, TableFormat};

pub(super) const RISC_V: Kind = Kind {
    name: "riscv",
    about: "RISC-V IOMMU, Sv48, 47 bits of IOVA",
    formats: &[TableFormat::Sv48],
    reserved: &[],
    automatic_for_pasids: true,
};
