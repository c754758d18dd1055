//! The two contracts with code outside: a device model below, and the IOMMU beside.
//!
//! Lock protocol: a [`Function`](crate::Function) calls a model with no lock of its own held, save one that orders
//! configuration writes and resets against each other. So a model may raise interrupts, make DMA and touch BARs (its
//! own too) from anywhere, but must not write its own configuration space or reset its own function from inside one
//! of these calls.

use crate::bar_memory::BarPages;

/// What the PCI function switches in the IOMMU's view of it.
pub trait BusMaster: Send + Sync {
    /// Allows or forbids memory requests of this function (Bus Master Enable, and power state D0).
    ///
    /// With `enabled` false, returns only when no DMA of the function is in flight.
    fn set_bus_master(&self, enabled: bool);
}

/// The registers and engines of one device. Has interior mutability; called from several threads at once.
pub trait Model: Send + Sync {
    /// Reads a register in BAR `bar` at byte `offset`, with every side effect that the read has on hardware.
    ///
    /// `data` is 1 to 8 bytes, or 16, 32 or 64, of one access of the processor, and lies within the BAR. Accesses to
    /// the MSI-X table and its pending bits do not arrive here, so an access that straddles their edge arrives cut.
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes a register, as [`Model::read`].
    fn write(&self, bar: u8, offset: u64, data: &[u8]);

    /// Takes a command of 64 bytes that a processor sent by a deferrable write (ENQCMD, ENQCMDS; PCIe Base
    /// Specification
    /// 6.0, 6.32) to byte `offset` of BAR `bar`, a multiple of 64. Its first doubleword holds the PASID in bits 19 to 0
    /// and the privilege in bit 31, as the processor put them there.
    ///
    /// Returns whether it was accepted; if not, the processor shall try again. `None` where nothing takes such writes.
    fn enqueue(&self, bar: u8, offset: u64, command: &[u8; 64]) -> Option<bool> {
        let _ = (bar, offset, command);
        None
    }

    /// Reads a device-specific register in configuration space: 1, 2 or 4 bytes, naturally aligned, outside the
    /// header and the capabilities. Returns false if there is no register, which then reads as zero.
    fn config_read(&self, offset: u16, data: &mut [u8]) -> bool {
        let _ = (offset, data);
        false
    }

    /// Writes a device-specific register in configuration space, as [`Model::config_read`]. Returns false if there
    /// is none; the write is then dropped.
    fn config_write(&self, offset: u16, data: &[u8]) -> bool {
        let _ = (offset, data);
        false
    }

    /// The pages of BARs that are memory, where accesses do not arrive here: doorbells of which only the last value
    /// matters, and data. Asked once, when the function is made. They are zero when the device is opened and after a
    /// reset.
    fn memory(&self) -> Vec<BarPages> {
        Vec::new()
    }

    /// Whether the device is in its slot. One that was taken out without a word answers nothing: configuration space
    /// and BARs read as ones, and ignore what is written.
    fn is_present(&self) -> bool {
        true
    }

    /// Resets the device (PCIe Base Specification 6.0, 6.6.2). When it returns, no DMA is in flight, no interrupt
    /// can be raised on behalf of what came before, and registers have their power-on values.
    fn reset(&self);
}
