//! The static description of a PCI function, written by the crate that has the device model.

use thiserror::Error;

use crate::bar_memory::BarPages;

/// What a function is: its identity, its BARs, how it interrupts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem_device: u16,
    /// Class code, 24 bits: base class, subclass, programming interface.
    pub class: u32,
    /// Revision id.
    pub revision: u8,
    /// The BARs, in any order.
    pub bars: Vec<BarSpec>,
    /// MSI-X, if the function has it.
    pub msix: Option<MsixSpec>,
    /// Number of MSI vectors: 0 for no MSI, or a power of two up to 32.
    pub msi_vectors: u8,
    /// Interrupt pin: 0 for none, 1 to 4 for INTA to INTD.
    pub interrupt_pin: u8,
    /// What kind of PCI Express function this is.
    pub pcie: PcieKind,
    /// No_Soft_Reset (PCI PM 1.2, 3.2.4): going from D3hot to D0 keeps the function's state.
    pub no_soft_reset: bool,
    /// What the function does with translations.
    pub translation: TranslationSpec,
    /// Capabilities whose contents are the device's own.
    pub vendor_capabilities: Vec<VendorCapability>,
}

/// A vendor-specific capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VendorCapability {
    /// Its bytes from the fourth on: those before are its id, the next one's place, and its length.
    pub body: Vec<u8>,
    /// Whether it is a window to the BARs (Virtual I/O Device 1.2, 4.1.4.9): of 20 bytes at least.
    pub is_window: bool,
}

impl VendorCapability {
    /// Bytes of it.
    pub(crate) fn length(&self) -> u16 {
        self.body.len() as u16 + 3
    }
}

/// What a function does with translations, each shown as an extended capability that the host has enabled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TranslationSpec {
    /// It asks for translations, and keeps them.
    pub ats: bool,
    /// It asks for pages, and has at most so many requests outstanding.
    pub page_requests: Option<u32>,
    /// Its transactions may have a PASID.
    pub pasid: Option<PasidSpec>,
}

/// PASIDs in a function's transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasidSpec {
    /// Number of bits, up to 20.
    pub width: u8,
    /// Transactions with a PASID may be privileged.
    pub privileged: bool,
}

/// One base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarSpec {
    /// Index, 0 to 5. A 64-bit BAR takes the next index too.
    pub index: u8,
    /// Size in bytes: a power of two, 16 or more; 4 to 256 of ports.
    pub size: u64,
    /// Memory or ports.
    pub kind: BarKind,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
}

/// What kind of BAR it is: memory, with the width of its address, or ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports, up to 256, which cannot be mapped.
    Ports,
    /// Below 4 GiB.
    Memory32,
    /// Anywhere.
    Memory64,
}

/// MSI-X: how many vectors, and where the table and the pending bits lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixSpec {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// BAR that holds the table.
    pub table_bar: u8,
    /// Byte offset of the table in it, a multiple of 8. The table takes 16 bytes a vector.
    pub table_offset: u32,
    /// BAR that holds the pending bits.
    pub pba_bar: u8,
    /// Byte offset of the pending bits in it, a multiple of 8. They take 8 bytes for each 64 vectors.
    pub pba_offset: u32,
}

impl MsixSpec {
    /// Length of the table in bytes.
    pub fn table_len(&self) -> u64 {
        u64::from(self.vectors) * 16
    }

    /// Length of the pending bit array in bytes.
    pub fn pba_len(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }
}

/// The Device/Port Type of a PCI Express function, and what depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PcieKind {
    /// An endpoint on a link.
    Endpoint {
        /// Link speed as in Link Capabilities: 1 is 2.5 GT/s, 3 is 8 GT/s, 5 is 32 GT/s.
        speed: u8,
        /// Link width in lanes.
        width: u8,
    },
    /// A device inside the root complex; it has no link.
    RootComplexIntegrated,
}

/// Why a [`Spec`] describes no possible function.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum SpecError {
    /// The index is not 0 to 5, or a 64-bit BAR has no room for its upper half.
    #[error("BAR {0}: a BAR has index 0 to 5, and one of 64 bits takes two")]
    BarIndex(u8),
    /// Two BARs take the same register.
    #[error("BAR {0} is described twice")]
    BarTwice(u8),
    /// The size cannot be expressed in a BAR.
    #[error(
        "BAR {0} of {1:#x} bytes: a size is a power of two, 16 bytes or more (32-bit: up to 2 GiB; ports: 4 to 256)"
    )]
    BarSize(u8, u64),
    /// The BARs do not fit where they were to be placed.
    #[error("BAR {0} does not fit in the window at {1:#x}: it would wrap, or leave the low 4 GiB")]
    BarPlacement(u8, u64),
    /// More than 2048 MSI-X vectors, or none.
    #[error("{0} MSI-X vectors: 1 to 2048 are possible")]
    MsixVectors(u16),
    /// The MSI-X table or its pending bits lie outside of their BAR, overlap, or are not 8-byte aligned.
    #[error("the MSI-X {0} must lie within its BAR, 8-byte aligned and apart from the other structure")]
    MsixPlacement(&'static str),
    /// Memory of a BAR lies outside of it, overlaps the MSI-X structures or other memory, or is no whole pages.
    #[error("memory at {1:#x} of BAR {0} must be whole pages within the BAR, apart from MSI-X and from other memory")]
    MemoryPlacement(u8, u64),
    /// Not a number of MSI vectors.
    #[error("{0} MSI vectors: 0, 1, 2, 4, 8, 16 or 32 are possible")]
    MsiVectors(u8),
    /// Not an interrupt pin.
    #[error("interrupt pin {0}: 0 is none, 1 to 4 are INTA to INTD")]
    InterruptPin(u8),
    /// Not a class code.
    #[error("class {0:#x} has more than 24 bits")]
    Class(u32),
    /// A capability that is too long, or has no bytes, or all of them together.
    #[error(
        "the vendor-specific capabilities do not fit: one has up to 64 bytes, a window 20, and there is little room"
    )]
    VendorCapabilities,
    /// Too wide for a PASID.
    #[error("a PASID of {0} bits: up to 20 are possible")]
    PasidWidth(u8),
}

impl Spec {
    /// A function inside the root complex that has no BARs and no interrupts, and keeps its state from D3hot to D0. A
    /// model adds what it has beside that.
    ///
    /// ```
    /// use ioasid_vfio::Spec;
    ///
    /// let spec = Spec { msi_vectors: 1, ..Spec::new(0x1234, 0x0001, 0x08_8000) };
    /// # assert_eq!(spec.check(), Ok(()));
    /// ```
    #[must_use]
    pub fn new(vendor: u16, device: u16, class: u32) -> Self {
        Self {
            vendor,
            device,
            subsystem_vendor: 0,
            subsystem_device: 0,
            class,
            revision: 0,
            bars: Vec::new(),
            msix: None,
            msi_vectors: 0,
            interrupt_pin: 0,
            pcie: PcieKind::RootComplexIntegrated,
            no_soft_reset: true,
            translation: TranslationSpec::default(),
            vendor_capabilities: Vec::new(),
        }
    }

    /// The BAR with this index, if there is one. The upper half of a 64-bit BAR is none.
    pub fn bar(&self, index: u8) -> Option<&BarSpec> {
        self.bars.iter().find(|bar| bar.index == index)
    }

    /// Whether a BAR is of I/O ports, so that the function has the switch for them.
    pub(crate) fn has_ports(&self) -> bool {
        self.bars.iter().any(|bar| bar.kind == BarKind::Ports)
    }

    /// Number of MSI-X vectors, 0 without MSI-X.
    pub fn msix_vectors(&self) -> u16 {
        self.msix.map_or(0, |msix| msix.vectors)
    }

    /// Checks that the description is of a possible function.
    ///
    /// # Errors
    /// [`SpecError`], naming the first part that is not.
    pub fn check(&self) -> Result<(), SpecError> {
        self.check_bars()?;
        if let Some(msix) = &self.msix {
            self.check_msix(msix)?;
        }
        if self.msi_vectors != 0 && (!self.msi_vectors.is_power_of_two() || self.msi_vectors > 32) {
            return Err(SpecError::MsiVectors(self.msi_vectors));
        }
        if self.interrupt_pin > 4 {
            return Err(SpecError::InterruptPin(self.interrupt_pin));
        }
        if self.class >> 24 != 0 {
            return Err(SpecError::Class(self.class));
        }
        if let Some(pasid) = self.translation.pasid.filter(|pasid| pasid.width > 20) {
            return Err(SpecError::PasidWidth(pasid.width));
        }
        let fits = |capability: &VendorCapability| {
            let least = if capability.is_window { 20 } else { 4 };
            (least..=64).contains(&(capability.body.len() + 3))
        };
        if !self.vendor_capabilities.iter().all(fits) || crate::pci::vendor_places(self).is_none() {
            return Err(SpecError::VendorCapabilities);
        }
        Ok(())
    }

    fn check_bars(&self) -> Result<(), SpecError> {
        let mut taken = [false; 6];
        for bar in &self.bars {
            let (registers, sizes) = match bar.kind {
                BarKind::Ports => (1, 4..=256),
                BarKind::Memory32 => (1, 16..=1 << 31),
                // A region's file offset has 40 bits.
                BarKind::Memory64 => (2, 16..=1 << 39),
            };
            let slots = usize::from(bar.index)..usize::from(bar.index) + registers;
            for slot in taken.get_mut(slots).ok_or(SpecError::BarIndex(bar.index))? {
                if std::mem::replace(slot, true) {
                    return Err(SpecError::BarTwice(bar.index));
                }
            }
            if !bar.size.is_power_of_two() || !sizes.contains(&bar.size) {
                return Err(SpecError::BarSize(bar.index, bar.size));
            }
        }
        Ok(())
    }

    fn check_msix(&self, msix: &MsixSpec) -> Result<(), SpecError> {
        if !(1..=2048).contains(&msix.vectors) {
            return Err(SpecError::MsixVectors(msix.vectors));
        }
        let fits = |index: u8, offset: u32, len: u64| {
            let memory = self.bar(index).filter(|bar| bar.kind != BarKind::Ports);
            memory.is_some_and(|bar| u64::from(offset) + len <= bar.size && offset.is_multiple_of(8))
        };
        if !fits(msix.table_bar, msix.table_offset, msix.table_len()) {
            return Err(SpecError::MsixPlacement("table"));
        }
        let (table, pba) = (u64::from(msix.table_offset), u64::from(msix.pba_offset));
        let overlap = msix.table_bar == msix.pba_bar && table < pba + msix.pba_len() && pba < table + msix.table_len();
        if overlap || !fits(msix.pba_bar, msix.pba_offset, msix.pba_len()) {
            return Err(SpecError::MsixPlacement("pending bit array"));
        }
        Ok(())
    }
}

impl Spec {
    /// Checks that pages of BARs can be memory.
    ///
    /// # Errors
    /// [`SpecError::MemoryPlacement`], naming the first that cannot.
    pub(crate) fn check_memory(&self, memory: &[BarPages]) -> Result<(), SpecError> {
        let msix = self.msix.iter().flat_map(|msix| {
            let (table, pending) = (u64::from(msix.table_offset), u64::from(msix.pba_offset));
            [(msix.table_bar, table, msix.table_len()), (msix.pba_bar, pending, msix.pba_len())]
        });
        let mut taken: Vec<(u8, u64, u64)> = msix.collect();
        for pages in memory {
            let (bar, start, length) = (pages.bar, pages.offset, pages.memory.length());
            let size = self.bar(bar).filter(|bar| bar.kind != BarKind::Ports).map_or(0, |bar| bar.size);
            let end = start.checked_add(length).filter(|end| *end <= size && start.is_multiple_of(4096));
            let end = end.ok_or(SpecError::MemoryPlacement(bar, start))?;
            if taken.iter().any(|(other, at, len)| *other == bar && start < at + len && *at < end) {
                return Err(SpecError::MemoryPlacement(bar, start));
            }
            taken.push((bar, start, length));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bar_memory::BarMemory;
    use crate::testing::spec;

    #[test]
    fn the_fixture_is_a_possible_function() {
        assert_eq!(spec().check(), Ok(()));
    }

    #[test]
    fn a_64_bit_bar_needs_room_for_its_upper_half() {
        let mut spec = spec();
        spec.bars[0].index = 5;
        assert_eq!(spec.check(), Err(SpecError::BarIndex(5)));
    }

    #[test]
    fn a_bar_may_not_take_the_upper_half_of_another() {
        let mut spec = spec();
        spec.bars.push(BarSpec { index: 1, size: 4096, kind: BarKind::Memory32, prefetchable: false });
        assert_eq!(spec.check(), Err(SpecError::BarTwice(1)));
    }

    #[test]
    fn a_bar_size_is_a_power_of_two() {
        let mut spec = spec();
        spec.bars[0].size = 5000;
        assert_eq!(spec.check(), Err(SpecError::BarSize(0, 5000)));
    }

    #[test]
    fn ports_are_few_and_hold_no_memory() {
        let ports = |size| BarSpec { index: 2, size, kind: BarKind::Ports, prefetchable: false };
        let check = |bar: BarSpec, msix| {
            let mut spec = spec();
            spec.bars.push(bar);
            if let (true, Some(table)) = (msix, &mut spec.msix) {
                (table.table_bar, table.table_offset) = (2, 0);
            }
            spec.check()
        };
        assert_eq!([4, 256].map(|size| check(ports(size), false)), [Ok(()), Ok(())]);
        assert_eq!([2, 512].map(|size| check(ports(size), false).is_err()), [true, true]);
        assert_eq!(check(ports(256), true), Err(SpecError::MsixPlacement("table")));
    }

    #[test]
    fn an_msix_table_must_lie_in_its_bar() {
        let mut spec = spec();
        spec.msix.as_mut().unwrap().table_offset = 0x3ff8;
        assert_eq!(spec.check(), Err(SpecError::MsixPlacement("table")));
    }

    #[test]
    fn pending_bits_may_not_overlap_the_table() {
        let mut spec = spec();
        let msix = spec.msix.as_mut().unwrap();
        msix.pba_offset = msix.table_offset + 8;
        assert_eq!(spec.check(), Err(SpecError::MsixPlacement("pending bit array")));
    }

    #[test]
    fn memory_is_whole_pages_of_a_bar_and_apart_from_the_rest() {
        let pages = |bar, offset, length| BarPages { bar, offset, memory: BarMemory::new(length).unwrap() };
        let check = |memory: &[BarPages]| spec().check_memory(memory);
        assert_eq!(check(&[pages(0, 0, 0x1000), pages(0, 0x1000, 0x1000)]), Ok(()));
        for (bar, offset, length) in [
            (0, 0x800, 0x1000),
            (0, 0x4000, 0x1000),
            (0, 0x1000, 0x4000),
            (0, 0x2000, 0x1000),
            (0, 0x3000, 0x1000),
            (0, u64::MAX - 0xfff, 0x1000),
            (1, 0, 0x1000),
            (4, 0, 0x1000),
        ] {
            assert_eq!(check(&[pages(bar, offset, length)]), Err(SpecError::MemoryPlacement(bar, offset)));
        }
        let twice = [pages(0, 0, 0x2000), pages(0, 0x1000, 0x1000)];
        assert_eq!(check(&twice), Err(SpecError::MemoryPlacement(0, 0x1000)));
    }

    #[test]
    fn a_pasid_has_20_bits_at_the_most() {
        let mut spec = spec();
        spec.translation.pasid = Some(PasidSpec { width: 20, privileged: false });
        assert_eq!(spec.check(), Ok(()));
        spec.translation.pasid = Some(PasidSpec { width: 21, privileged: false });
        assert_eq!(spec.check(), Err(SpecError::PasidWidth(21)));
    }
}
