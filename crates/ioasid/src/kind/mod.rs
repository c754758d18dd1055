//! The kinds of IOMMUs, as data: what each walks, and the formats of guests' own tables.

mod guest;
mod guest_pasids;

use iopt::Format;
use iopt::format::{Mock, VtdSecondStage};

use crate::base::types::IovaRange;

pub use guest::{GuestFormat, GuestTable, UnalignedRoot};
pub(crate) use guest_pasids::Stage1;
pub use guest_pasids::{BadPasidTable, GuestPasidFormat, GuestPasidTable, WithoutPasid};

/// Which IOMMU a device is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum IommuKind {
    /// Intel VT-d in scalable mode.
    #[default]
    Vtd,
    /// That of Linux's own tests.
    Mock,
}

impl IommuKind {
    /// What it walks for address spaces unless another format is asked for.
    #[must_use]
    pub fn format(self) -> TableFormat {
        match self {
            Self::Vtd => TableFormat::VtdSecondStage,
            Self::Mock => TableFormat::Mock,
        }
    }

    /// Whether a page table that nobody asked for may be attached to PASIDs.
    pub(crate) fn automatic_for_pasids(self) -> bool {
        match self {
            Self::Vtd => true,
            Self::Mock => false,
        }
    }
}

/// What an IOMMU walks for address spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum TableFormat {
    /// Intel VT-d second stage, 48 bits of IOVA.
    #[default]
    VtdSecondStage,
    /// That of the mock IOMMU in Linux's own tests: AMD v1 with pages of 2 KiB, of which IOVAs from 16 MiB up to 2 GiB are
    /// translated.
    Mock,
    /// The same IOMMU's, with pages of 4 KiB and 1 MiB, of which all 56 bits of IOVA are translated.
    MockHuge,
}

impl TableFormat {
    /// Who walks it.
    #[must_use]
    pub fn iommu_kind(self) -> IommuKind {
        match self {
            Self::VtdSecondStage => IommuKind::Vtd,
            Self::Mock | Self::MockHuge => IommuKind::Mock,
        }
    }

    /// The IOVAs that are translated.
    #[must_use]
    pub fn aperture(self) -> IovaRange {
        match self {
            Self::VtdSecondStage => IovaRange { start: 0, last: (1 << VtdSecondStage::iova_bits()) - 1 },
            Self::Mock => IovaRange { start: 1 << 24, last: (1 << 31) - 1 },
            Self::MockHuge => IovaRange { start: 0, last: (1 << Mock::iova_bits()) - 1 },
        }
    }

    /// A bit for each size of its pages: what 2^n bytes have is bit n.
    #[must_use]
    pub fn page_sizes(self) -> u64 {
        match self {
            Self::VtdSecondStage => 1 << 12 | 1 << 21 | 1 << 30,
            // Any number of entries may be one page.
            Self::Mock => !0 << Mock::PAGE_SHIFT & !(!0 << Mock::iova_bits()),
            Self::MockHuge => 1 << 12 | 1 << 20,
        }
    }

    /// log2 of the bytes of the smallest and of the largest page.
    pub(crate) fn page_shifts(self) -> (u32, u32) {
        match self {
            Self::VtdSecondStage => (VtdSecondStage::PAGE_SHIFT, u32::MAX),
            Self::Mock => (Mock::PAGE_SHIFT, u32::MAX),
            Self::MockHuge => (12, 20),
        }
    }
}
