//! What the hardware behind a device can do.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, constants, layout};

constants! {
    /// `IOMMU_HW_INFO_FLAG_INPUT_TYPE`: `data_type` says which structure is wanted.
    pub const HW_INFO_FLAG_INPUT_TYPE: u32 = 1 << 0;

    /// `IOMMU_HW_INFO_TYPE_NONE`: out: no structure.
    pub const HW_INFO_TYPE_NONE: u32 = 0;
    /// `IOMMU_HW_INFO_TYPE_DEFAULT`: in: the one that the hardware has.
    pub const HW_INFO_TYPE_DEFAULT: u32 = 0;
    /// `IOMMU_HW_INFO_TYPE_INTEL_VTD`: [`HwInfoVtd`]
    pub const HW_INFO_TYPE_INTEL_VTD: u32 = 1;
    /// `IOMMU_HW_INFO_TYPE_ARM_SMMUV3`: [`HwInfoArmSmmuv3`]
    pub const HW_INFO_TYPE_ARM_SMMUV3: u32 = 2;
    /// `IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV`: [`HwInfoTegra241Cmdqv`]
    pub const HW_INFO_TYPE_TEGRA241_CMDQV: u32 = 3;
    /// `IOMMU_HW_INFO_TYPE_AMD`: [`HwInfoAmd`]
    pub const HW_INFO_TYPE_AMD: u32 = 4;

    /// `IOMMU_HW_CAP_DIRTY_TRACKING`: page tables can keep dirty bits.
    pub const HW_CAP_DIRTY_TRACKING: u64 = 1 << 0;
    /// `IOMMU_HW_CAP_PCI_PASID_EXEC`: a request with a PASID can ask to execute.
    pub const HW_CAP_PCI_PASID_EXEC: u64 = 1 << 1;
    /// `IOMMU_HW_CAP_PCI_PASID_PRIV`: a request with a PASID can be privileged.
    pub const HW_CAP_PCI_PASID_PRIV: u64 = 1 << 2;
    /// `IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED`: the device cannot use ATS.
    pub const HW_CAP_PCI_ATS_NOT_SUPPORTED: u64 = 1 << 3;

    /// `IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17`: no mapping of a parent may be read-only.
    pub const HW_INFO_VTD_ERRATA_772415_SPR17: u32 = 1 << 0;

    /// `IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI`: invalidations have to be given twice.
    pub const HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI: u32 = 1 << 0;
}

/// `struct iommu_hw_info`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwInfo {
    /// Size of this structure.
    pub size: u32,
    /// [`HW_INFO_FLAG_INPUT_TYPE`]
    pub flags: u32,
    /// The device.
    pub dev_id: u32,
    /// In: bytes set aside. Out: bytes that there are.
    pub data_len: u32,
    /// Address where the structure is put.
    pub data_uptr: u64,
    /// `HW_INFO_TYPE_*`. In with the flag: the structure that is wanted. Out: the one that it is.
    pub data_type: u32,
    /// Out: bits of a PASID, or 0 without PASIDs.
    pub out_max_pasid_log2: u8,
    /// Must be 0.
    pub reserved: [u8; 3],
    /// Out: `HW_CAP_*`.
    pub out_capabilities: u64,
}
layout!(HwInfo = "iommu_hw_info", 40, {
    size: 0, flags: 4, dev_id: 8, data_len: 12, data_uptr: 16, data_type: 24, out_max_pasid_log2: 28, reserved: 29,
    out_capabilities: 32,
});

/// `struct iommu_hw_info_vtd`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwInfoVtd {
    /// [`HW_INFO_VTD_ERRATA_772415_SPR17`]
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// The capability register.
    pub cap_reg: u64,
    /// The extended capability register.
    pub ecap_reg: u64,
}
layout!(HwInfoVtd = "iommu_hw_info_vtd", 24, { flags: 0, reserved: 4, cap_reg: 8, ecap_reg: 16 });

/// `struct iommu_hw_info_arm_smmuv3`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwInfoArmSmmuv3 {
    /// [`HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI`]
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// `SMMU_IDR0` to `SMMU_IDR5`.
    pub idr: [u32; 6],
    /// `SMMU_IIDR`: whose implementation.
    pub iidr: u32,
    /// `SMMU_AIDR`: version of the architecture.
    pub aidr: u32,
}
layout!(HwInfoArmSmmuv3 = "iommu_hw_info_arm_smmuv3", 40, { flags: 0, reserved: 4, idr: 8, iidr: 32, aidr: 36 });

/// `struct iommu_hw_info_tegra241_cmdqv`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwInfoTegra241Cmdqv {
    /// Must be 0.
    pub flags: u32,
    /// Version of the hardware.
    pub version: u8,
    /// Binary logarithm of the number of command queues.
    pub log2vcmdqs: u8,
    /// Binary logarithm of the number of stream ids that are replaced.
    pub log2vsids: u8,
    /// Must be 0.
    pub reserved: u8,
}
layout!(HwInfoTegra241Cmdqv = "iommu_hw_info_tegra241_cmdqv", 8, {
    flags: 0, version: 4, log2vcmdqs: 5, log2vsids: 6, reserved: 7,
});

/// `struct iommu_hw_info_amd`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwInfoAmd {
    /// The extended feature register.
    pub efr: u64,
    /// The second extended feature register.
    pub efr2: u64,
}
layout!(HwInfoAmd = "iommu_hw_info_amd", 16, { efr: 0, efr2: 8 });

pub(crate) const LAYOUTS: &[Layout] =
    &[HwInfo::LAYOUT, HwInfoVtd::LAYOUT, HwInfoArmSmmuv3::LAYOUT, HwInfoTegra241Cmdqv::LAYOUT, HwInfoAmd::LAYOUT];
