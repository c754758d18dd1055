//! Arm's SMMUv3.
//!
//! Source: Arm IHI 0070 (SMMUv3), 6.3.1 (IDR0), 6.3.2 (IDR1), 6.3.4 (IDR3), 6.3.6 (IDR5), 6.3.8 (AIDR).

use ioasid_uapi::iommufd as uapi;
use zerocopy::IntoBytes;

use super::Hardware;

pub(super) struct SmmuV3;

/// Both stages in AArch64's format, coherent, with accessed and dirty flags, ATS and page requests, ASIDs and VMIDs of
/// 16 bits, context descriptors in two levels, stalls and terminations, stream tables in two levels.
const IDR0: u32 =
    1 | 1 << 1 | 2 << 2 | 1 << 4 | 2 << 6 | 1 << 10 | 1 << 12 | 1 << 16 | 1 << 18 | 1 << 19 | 1 << 26 | 1 << 27;
/// Stream ids of 16 bits, PASIDs of 20.
const IDR1: u32 = 16 | 20 << 6;
/// Invalidation by range.
const IDR3: u32 = 1 << 10;
/// Addresses of 48 bits; pages of 4, 16 and 64 KiB.
const IDR5: u32 = 5 | 1 << 4 | 1 << 5 | 1 << 6;
/// SMMUv3.2.
const AIDR: u32 = 2;

impl Hardware for SmmuV3 {
    fn info(&self) -> (u32, Vec<u8>) {
        let idr = [IDR0, IDR1, 0, IDR3, 0, IDR5];
        let info = uapi::HwInfoArmSmmuv3 { idr, aidr: AIDR, ..uapi::HwInfoArmSmmuv3::default() };
        (uapi::HW_INFO_TYPE_ARM_SMMUV3, info.as_bytes().to_vec())
    }
}
