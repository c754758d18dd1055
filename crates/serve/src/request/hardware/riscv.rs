//! RISC-V's IOMMU, of which Linux 7.3 tells programs nothing.

use ioasid_uapi::iommufd as uapi;

use super::Hardware;

pub(super) struct RiscV;

impl Hardware for RiscV {
    fn info(&self) -> (u32, Vec<u8>) {
        (uapi::HW_INFO_TYPE_NONE, Vec::new())
    }
}
