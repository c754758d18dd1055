//! A guest's page table: where it begins, and what its entries look like.

use iopt::format::{Armv8Stage1, Sv39, Sv48, Sv57, VtdSecondStage, X86_64, X86_64FiveLevels};
use iopt::{Access, Format, GuestMemory, GuestTranslation, TableAddr, walk_guest};
use thiserror::Error;

/// The format of a guest's page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GuestFormat {
    /// x86-64 with four levels, 47 bits of IOVA: VT-d's and AMD's first stage.
    X86_64,
    /// x86-64 with five levels, 56 bits.
    X86_64FiveLevels,
    /// Armv8 stage 1 with pages of 4 KiB, 48 bits: SMMUv3's first stage.
    Armv8Pages4K,
    /// Armv8 stage 1 with pages of 16 KiB, 48 bits.
    Armv8Pages16K,
    /// Armv8 stage 1 with pages of 64 KiB, 48 bits.
    Armv8Pages64K,
    /// RISC-V with three levels, 38 bits.
    Sv39,
    /// RISC-V with four levels, 47 bits.
    Sv48,
    /// RISC-V with five levels, 56 bits.
    Sv57,
    /// VT-d's second stage with four levels, 48 bits. No guest has one below another; it is what another process's
    /// tables are shared in, as it knows write without read.
    VtdSecondStage,
    /// That of the mock IOMMU in Linux's own tests, which has none: nothing is translated.
    Mock,
}

/// `$use` with `F` as the format's type; `$mock` for the one that has none.
macro_rules! with_format {
    ($format:expr, $F:ident => $use:expr, $mock:expr) => {
        match $format {
            GuestFormat::X86_64 => with_format!(@ X86_64, $F, $use),
            GuestFormat::X86_64FiveLevels => with_format!(@ X86_64FiveLevels, $F, $use),
            GuestFormat::Armv8Pages4K => with_format!(@ Armv8Stage1<12>, $F, $use),
            GuestFormat::Armv8Pages16K => with_format!(@ Armv8Stage1<14>, $F, $use),
            GuestFormat::Armv8Pages64K => with_format!(@ Armv8Stage1<16>, $F, $use),
            GuestFormat::Sv39 => with_format!(@ Sv39, $F, $use),
            GuestFormat::Sv48 => with_format!(@ Sv48, $F, $use),
            GuestFormat::Sv57 => with_format!(@ Sv57, $F, $use),
            GuestFormat::VtdSecondStage => with_format!(@ VtdSecondStage, $F, $use),
            GuestFormat::Mock => $mock,
        }
    };
    (@ $type:ty, $F:ident, $use:expr) => {{
        type $F = $type;
        $use
    }};
}

impl GuestFormat {
    /// Every format that translates, for a caller that wants to try them all.
    pub const ALL: [Self; 9] = [
        Self::X86_64,
        Self::X86_64FiveLevels,
        Self::Armv8Pages4K,
        Self::Armv8Pages16K,
        Self::Armv8Pages64K,
        Self::Sv39,
        Self::Sv48,
        Self::Sv57,
        Self::VtdSecondStage,
    ];

    /// The widest IOVA that it translates, in bits; what is wider is not mapped.
    #[must_use]
    pub fn iova_bits(self) -> u32 {
        with_format!(self, F => F::iova_bits(), 0)
    }

    /// Bytes that the root has, and that its address is a multiple of.
    fn root_size(self) -> u64 {
        match self {
            // Arm's roots with few entries are aligned to 64 bytes at least.
            Self::Armv8Pages16K | Self::Armv8Pages64K => {
                with_format!(self, F => (8 << F::index_bits(F::LEVELS - 1)).max(64), 0)
            }
            // The processor reads no lower bits, even where the lower half has half of the entries.
            _ => 4096,
        }
    }
}

/// A guest's page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestTable {
    /// What its entries look like.
    pub format: GuestFormat,
    /// The guest's physical address of its root, a multiple of the root's size.
    pub root: u64,
}

/// The root of a guest's table is not where its format can have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a root of this format begins at a multiple of {1:#x}, and {0:#x} is none")]
pub struct UnalignedRoot(pub u64, pub u64);

impl GuestTable {
    pub(crate) fn check(self) -> Result<(), UnalignedRoot> {
        let size = self.format.root_size();
        if self.root.is_multiple_of(size) { Ok(()) } else { Err(UnalignedRoot(self.root, size)) }
    }

    /// As a root whose IOVAs are as wide as the format has them.
    pub(crate) fn into_root(self) -> GuestRoot {
        GuestRoot { table: self, bits: self.format.iova_bits() }
    }
}

/// Where walks of a guest's table begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestRoot {
    table: GuestTable,
    /// How wide IOVAs are: with fewer bits, there are fewer levels.
    bits: u32,
}

impl GuestRoot {
    /// A root that a guest's own structure names, whatever it says: IOVAs of `bits`, if the format can have them.
    pub(crate) fn of_guest(format: GuestFormat, root: u64, bits: u32) -> Option<Self> {
        let smallest = with_format!(format, F => F::PAGE_SHIFT, 0);
        (smallest < bits && bits <= format.iova_bits()).then_some(Self { table: GuestTable { format, root }, bits })
    }

    /// See [`walk_guest`].
    pub(crate) fn walk<M: GuestMemory>(
        self,
        memory: &mut M,
        iova: u64,
        access: Access,
    ) -> Result<Option<GuestTranslation>, M::Error> {
        let root = TableAddr(self.table.root);
        with_format!(self.table.format, F => walk_guest::<F, M>(memory, root, self.bits, iova, access), Ok(None))
    }
}
