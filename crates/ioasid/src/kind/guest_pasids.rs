//! A guest's own table of PASIDs: for each, where its page table is.
//!
//! On Arm, AMD and RISC-V a guest can own the whole table, and not only page tables. Then it decides which PASID means
//! what, and each device that uses it is still attached by the owner of the device: without a PASID, once. A walk looks
//! the PASID up in the guest's memory, in the form that hardware reads:
//!
//! ```text
//!  SMMUv3   context descriptors of 64 bytes, in a row, or in leaves of 64 or 1,024 that a first level leads to
//!           word 0:  T0SZ 5:0   TG0 7:6   EPD0 14   V 31   AA64 41        word 1:  TTB0 51:4
//!  AMD      GCR3 table: 1 to 3 levels of 512 entries;                     entry:   P 0   address 51:12
//!  RISC-V   process directory: leaves of 256 contexts of 16 bytes, and up to 2 levels above
//!           word 0:  V 0        word 1:  MODE 63:60   PPN 43:0            level:   V 0   PPN 53:10
//! ```
//! Sources: Arm IHI 0070 (SMMUv3) 5.2 and 5.4; AMD 48882 (IOMMU) 2.2.6.4; RISC-V IOMMU 1.0, 3.2 and 3.3.

use iopt::GuestMemory;
use thiserror::Error;

use super::guest::{GuestFormat, GuestRoot};
use crate::base::types::Pasid;

/// The form of a guest's table of PASIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GuestPasidFormat {
    /// SMMUv3's context descriptors, all in a row.
    SmmuV3Linear,
    /// SMMUv3's, with leaves of 4 KiB: 64 descriptors each.
    SmmuV3Leaves4K,
    /// SMMUv3's, with leaves of 64 KiB: 1,024 descriptors each.
    SmmuV3Leaves64K,
    /// AMD's GCR3 table of so many levels, 1 to 3, which leads to page tables of this format.
    AmdGcr3(u8, GuestFormat),
    /// RISC-V's process directory of so many levels, 1 to 3.
    RiscVDirectory(u8),
}

/// What transactions without a PASID mean where a guest owns the table of PASIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WithoutPasid {
    /// They are refused.
    Refused,
    /// What entry 0 says. On SMMUv3 ([`GuestPasidTable::zero_is_none`]) PASID 0 itself is refused then.
    EntryZero,
    /// The IOVA is the guest's physical address.
    Bypass,
}

/// A guest's table of PASIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPasidTable {
    /// What it looks like.
    pub format: GuestPasidFormat,
    /// The guest's physical address where it begins, a multiple of 64 for [`GuestPasidFormat::SmmuV3Linear`], of 4096
    /// for others.
    pub root: u64,
    /// It has entries for PASIDs of so many bits, up to 20.
    pub pasid_bits: u32,
    /// What transactions without a PASID mean.
    pub without: WithoutPasid,
    /// Whether PASID 0 is refused because its entry is for transactions without one.
    pub zero_is_none: bool,
}

/// A guest's table of PASIDs that hardware could not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadPasidTable {
    /// The root is not where one can be.
    #[error("a table of PASIDs begins at a multiple of {1:#x}, and {0:#x} is none")]
    Unaligned(u64, u64),
    /// There are no PASIDs that wide, or the table has no room for them.
    #[error("PASIDs of {0} bits do not fit: this table has up to {1}")]
    TooWide(u32, u32),
    /// Levels, or the format of page tables, that there are not.
    #[error("there is no such table of PASIDs: {0:?}")]
    NoSuchFormat(GuestPasidFormat),
}

/// What a transaction is translated by first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage1 {
    /// A page table.
    Root(GuestRoot),
    /// Nothing: the IOVA is the guest's physical address.
    Bypass,
}

impl GuestPasidTable {
    pub(crate) fn check(&self) -> Result<(), BadPasidTable> {
        let (alignment, most) = match self.format {
            GuestPasidFormat::SmmuV3Linear => (64, 20),
            GuestPasidFormat::SmmuV3Leaves4K | GuestPasidFormat::SmmuV3Leaves64K => (64, 20),
            GuestPasidFormat::AmdGcr3(levels @ 1..=3, GuestFormat::X86_64 | GuestFormat::X86_64FiveLevels) => {
                (4096, (9 * u32::from(levels)).min(20))
            }
            GuestPasidFormat::RiscVDirectory(levels @ 1..=3) => (4096, [8, 17, 20][usize::from(levels) - 1]),
            other => return Err(BadPasidTable::NoSuchFormat(other)),
        };
        if !self.root.is_multiple_of(alignment) {
            return Err(BadPasidTable::Unaligned(self.root, alignment));
        }
        if self.pasid_bits > most {
            return Err(BadPasidTable::TooWide(self.pasid_bits, most));
        }
        Ok(())
    }

    /// What transactions with `pasid`, or without, are translated by; `None` if they are refused.
    pub(crate) fn find<M: GuestMemory>(
        &self,
        memory: &mut M,
        pasid: Option<Pasid>,
    ) -> Result<Option<Stage1>, M::Error> {
        let number = match (pasid, self.without) {
            (Some(pasid), _) if pasid.get() >> self.pasid_bits != 0 => return Ok(None),
            (Some(pasid), _) if pasid.get() == 0 && self.zero_is_none => return Ok(None),
            (Some(pasid), _) => u64::from(pasid.get()),
            (None, WithoutPasid::EntryZero) => 0,
            (None, WithoutPasid::Bypass) => return Ok(Some(Stage1::Bypass)),
            (None, WithoutPasid::Refused) => return Ok(None),
        };
        let root = match self.format {
            GuestPasidFormat::SmmuV3Linear => descriptor(memory, self.root, number)?,
            GuestPasidFormat::SmmuV3Leaves4K => self.descriptor_in_leaf(memory, number, 6)?,
            GuestPasidFormat::SmmuV3Leaves64K => self.descriptor_in_leaf(memory, number, 10)?,
            GuestPasidFormat::AmdGcr3(levels, format) => self.gcr3(memory, number, levels, format)?,
            GuestPasidFormat::RiscVDirectory(levels) => return self.process_context(memory, number, levels),
        };
        Ok(root.map(Stage1::Root))
    }

    fn descriptor_in_leaf<M: GuestMemory>(
        &self,
        memory: &mut M,
        number: u64,
        leaf_bits: u32,
    ) -> Result<Option<GuestRoot>, M::Error> {
        let first = memory.load(self.root.wrapping_add(8 * (number >> leaf_bits)))?;
        if first & 1 == 0 {
            return Ok(None);
        }
        descriptor(memory, first & address_bits(12, 51), number & !(!0 << leaf_bits))
    }

    fn gcr3<M: GuestMemory>(
        &self,
        memory: &mut M,
        number: u64,
        levels: u8,
        format: GuestFormat,
    ) -> Result<Option<GuestRoot>, M::Error> {
        let mut table = self.root;
        for level in (0..u32::from(levels)).rev() {
            let entry = memory.load(table.wrapping_add(8 * (number >> (9 * level) & 0x1ff)))?;
            if entry & 1 == 0 || entry & GCR3_RESERVED != 0 {
                return Ok(None);
            }
            table = entry & address_bits(12, 51);
        }
        Ok(GuestRoot::of_guest(format, table, format.iova_bits()))
    }

    fn process_context<M: GuestMemory>(
        &self,
        memory: &mut M,
        number: u64,
        levels: u8,
    ) -> Result<Option<Stage1>, M::Error> {
        let mut table = self.root;
        for level in (1..u32::from(levels)).rev() {
            let entry = memory.load(table.wrapping_add(8 * (number >> (9 * level - 1) & 0x1ff)))?;
            if entry & 1 == 0 || entry & PDT_RESERVED != 0 {
                return Ok(None);
            }
            table = (entry >> 10 & address_bits(0, 43)) << 12;
        }
        let context = table.wrapping_add(16 * (number & 0xff));
        let attributes = memory.load(context)?;
        if attributes & 1 == 0 || attributes & TA_RESERVED != 0 {
            return Ok(None);
        }
        let first_stage = memory.load(context.wrapping_add(8))?;
        if first_stage & FSC_RESERVED != 0 {
            return Ok(None);
        }
        let format = match first_stage >> 60 {
            0 => return Ok(Some(Stage1::Bypass)),
            8 => GuestFormat::Sv39,
            9 => GuestFormat::Sv48,
            10 => GuestFormat::Sv57,
            _ => return Ok(None),
        };
        let root = (first_stage & address_bits(0, 43)) << 12;
        Ok(GuestRoot::of_guest(format, root, format.iova_bits()).map(Stage1::Root))
    }
}

/// Bits that have to be zero in an entry of RISC-V's process directory (3.3.1), in a context's attributes and in its
/// first stage (3.3.2): hardware takes another value for a misconfigured entry (cause 267).
const PDT_RESERVED: u64 = address_bits(1, 9) | address_bits(54, 63);
const TA_RESERVED: u64 = address_bits(3, 11) | address_bits(32, 63);
const FSC_RESERVED: u64 = address_bits(44, 59);
/// Bits that have to be zero in AMD's GCR3 entries (2.2.6.4).
const GCR3_RESERVED: u64 = address_bits(52, 63);

/// The bits of an address from `low` to `high`.
const fn address_bits(low: u32, high: u32) -> u64 {
    !0 >> (63 - high) & !0 << low
}

/// Where SMMUv3's descriptor `number` of those at `table` leads, if it is valid and of 64 bits.
fn descriptor<M: GuestMemory>(memory: &mut M, table: u64, number: u64) -> Result<Option<GuestRoot>, M::Error> {
    const VALID: u64 = 1 << 31;
    const IS_64_BITS: u64 = 1 << 41;
    const NO_TABLE_0: u64 = 1 << 14;
    let address = table.wrapping_add(64 * number);
    let word = memory.load(address)?;
    if word & (VALID | IS_64_BITS | NO_TABLE_0) != VALID | IS_64_BITS {
        return Ok(None);
    }
    let format = match word >> 6 & 3 {
        0 => GuestFormat::Armv8Pages4K,
        1 => GuestFormat::Armv8Pages64K,
        2 => GuestFormat::Armv8Pages16K,
        _ => return Ok(None),
    };
    let root = memory.load(address.wrapping_add(8))? & address_bits(4, 51);
    Ok(GuestRoot::of_guest(format, root, 64 - (word & 0x3f) as u32))
}
