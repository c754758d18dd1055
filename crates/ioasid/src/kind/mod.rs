//! The kinds of IOMMUs, as data, a file each: what they walk and reserve; and the formats of guests' own tables.

mod amd;
mod arm;
mod guest;
mod guest_pasids;
mod mock;
mod riscv;
mod vtd;

use std::fmt;
use std::str::FromStr;

use iopt::Format;
use iopt::format::{AmdV1, Armv8Stage2, Mock, Sv48, VtdSecondStage, VtdSecondStageFiveLevels};
use thiserror::Error;

use crate::base::types::IovaRange;

pub use guest::{GuestFormat, GuestTable, UnalignedRoot};
pub(crate) use guest_pasids::Stage1;
pub use guest_pasids::{BadPasidTable, GuestPasidFormat, GuestPasidTable, WithoutPasid};

/// Where message-signalled interrupts go on x86: a write there is not a memory access.
const MSI_X86: IovaRange = IovaRange { start: 0xfee0_0000, last: 0xfeef_ffff };

/// What there is to know of a kind.
struct Kind {
    /// How users call it.
    name: &'static str,
    about: &'static str,
    /// What it walks for address spaces; the first unless another is asked for.
    formats: &'static [TableFormat],
    /// IOVAs that no device behind it can use for memory.
    reserved: &'static [IovaRange],
    /// Whether a page table that no caller asked for may be attached to PASIDs.
    automatic_for_pasids: bool,
}

/// Which IOMMU a device is behind. A machine may have several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum IommuKind {
    /// Intel VT-d in scalable mode, four levels.
    #[default]
    Vtd,
    /// Intel VT-d in scalable mode, five levels.
    VtdFiveLevels,
    /// AMD's.
    Amd,
    /// Arm's SMMUv3.
    SmmuV3,
    /// RISC-V's.
    RiscV,
    /// That of Linux's own tests.
    Mock,
}

/// There is no such kind of IOMMU.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("there is no IOMMU `{0}`: {names} are", names = IommuKind::names())]
pub struct UnknownIommu(String);

impl IommuKind {
    /// Those that are as hardware is.
    pub const ALL: [Self; 5] = [Self::Vtd, Self::VtdFiveLevels, Self::Amd, Self::SmmuV3, Self::RiscV];

    fn data(self) -> &'static Kind {
        match self {
            Self::Vtd => &vtd::FOUR_LEVELS,
            Self::VtdFiveLevels => &vtd::FIVE_LEVELS,
            Self::Amd => &amd::AMD_V1,
            Self::SmmuV3 => &arm::SMMU_V3,
            Self::RiscV => &riscv::RISC_V,
            Self::Mock => &mock::MOCK,
        }
    }

    /// How users call it: `vtd`, `amd` and so on.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.data().name
    }

    /// What it is, in a line.
    #[must_use]
    pub fn about(self) -> &'static str {
        self.data().about
    }

    /// What it walks for address spaces unless another format is asked for.
    #[must_use]
    pub fn format(self) -> TableFormat {
        self.data().formats[0]
    }

    /// Whether it walks page tables of a format.
    #[must_use]
    pub fn walks(self, format: TableFormat) -> bool {
        self.data().formats.contains(&format)
    }

    /// IOVAs that no device behind it can use for memory.
    #[must_use]
    pub fn reserved(self) -> &'static [IovaRange] {
        self.data().reserved
    }

    /// Whether a page table that no caller asked for may be attached to PASIDs.
    pub(crate) fn automatic_for_pasids(self) -> bool {
        self.data().automatic_for_pasids
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for IommuKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for IommuKind {
    type Err = UnknownIommu;

    /// Reads a [`IommuKind::name`] of those that are as hardware is.
    fn from_str(text: &str) -> Result<Self, UnknownIommu> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| UnknownIommu(text.to_owned()))
    }
}

/// What an IOMMU walks for address spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum TableFormat {
    /// Intel VT-d second stage, 48 bits of IOVA.
    #[default]
    VtdSecondStage,
    /// Intel VT-d second stage with five levels, 57 bits.
    VtdSecondStageFiveLevels,
    /// AMD v1 with four levels, 48 bits, and pages of any power of two from 4 KiB on.
    AmdV1,
    /// Armv8 stage 2 with pages of 4 KiB, 48 bits.
    Armv8Stage2,
    /// RISC-V with four levels, 47 bits.
    Sv48,
    /// That of the mock IOMMU in Linux's own tests: AMD v1 with pages of 2 KiB, of which IOVAs from 16 MiB up to 2 GiB
    /// are translated.
    Mock,
    /// The same IOMMU's, with pages of 4 KiB and 1 MiB, of which all 56 bits of IOVA are translated.
    MockHuge,
}

/// IOVAs of so many bits.
fn bits(bits: u32) -> IovaRange {
    IovaRange { start: 0, last: (1 << bits) - 1 }
}

/// A bit for each size of pages of which any number of entries may be one.
fn any_size(smallest: u32, bits: u32) -> u64 {
    !0 << smallest & !(!0 << bits)
}

impl TableFormat {
    /// The IOVAs that are translated.
    #[must_use]
    pub fn aperture(self) -> IovaRange {
        match self {
            Self::VtdSecondStage => bits(VtdSecondStage::iova_bits()),
            Self::VtdSecondStageFiveLevels => bits(VtdSecondStageFiveLevels::iova_bits()),
            Self::AmdV1 => bits(AmdV1::<4>::iova_bits()),
            Self::Armv8Stage2 => bits(Armv8Stage2::<12>::iova_bits()),
            Self::Sv48 => bits(Sv48::iova_bits()),
            Self::Mock => IovaRange { start: 1 << 24, last: (1 << 31) - 1 },
            Self::MockHuge => bits(Mock::iova_bits()),
        }
    }

    /// A bit for each size of its pages: what 2^n bytes have is bit n.
    #[must_use]
    pub fn page_sizes(self) -> u64 {
        match self {
            Self::VtdSecondStage | Self::VtdSecondStageFiveLevels => 1 << 12 | 1 << 21 | 1 << 30,
            // Of 2^12 bytes up to half of what there is.
            Self::AmdV1 => any_size(AmdV1::<4>::PAGE_SHIFT, AmdV1::<4>::iova_bits()),
            Self::Armv8Stage2 => 1 << 12 | 1 << 16 | 1 << 21 | 1 << 25 | 1 << 30 | 1 << 34,
            Self::Sv48 => 1 << 12 | 1 << 21 | 1 << 30 | 1 << 39,
            Self::Mock => any_size(Mock::PAGE_SHIFT, Mock::iova_bits()),
            Self::MockHuge => 1 << 12 | 1 << 20,
        }
    }

    /// log2 of the bytes of the smallest and of the largest page.
    pub(crate) fn page_shifts(self) -> (u32, u32) {
        match self {
            Self::MockHuge => (12, 20),
            _ => (self.page_sizes().trailing_zeros(), u32::MAX),
        }
    }
}
