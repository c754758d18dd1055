//! Which bits of configuration space a program may write.
//!
//! As Linux's vfio-pci has it: the header's working registers, power state, device control; not status, link or MSI-X
//! registers. What belongs to no capability is the device's own, and the program's to write. A bit that the
//! hardware itself has read-only stays so.

use crate::pci::{Function, express, header, msi, pm};

/// The bits that a program may write in the doubleword at `dword`.
pub(super) fn writable(function: &Function, dword: u16) -> u32 {
    const LAST_BAR: u16 = header::BAR_0 + 4 * 5;
    const MSI_ADDRESS: u16 = msi::AT + 4;
    const MSI_DATA: u16 = msi::AT + 12;
    if !function.is_standard_register(dword) {
        return u32::MAX;
    }
    match dword {
        header::COMMAND => 0x0000_ffff,
        // Cache line size, latency timer, self test; not the header type.
        header::CACHE_LINE_SIZE => 0xff00_ffff,
        header::BAR_0..=LAST_BAR | header::ROM => u32::MAX,
        header::INTERRUPT_LINE => 0xff,
        pm::CONTROL => u32::MAX,
        express::DEVICE_CONTROL => 0xffff & !express::PHANTOM_FUNCTIONS,
        express::DEVICE_CONTROL_2 => 0xffff & !express::ARI_FORWARDING,
        // Not message control: MSI is enabled by SET_IRQS.
        MSI_ADDRESS..=MSI_DATA => u32::MAX,
        _ if function.is_window_register(dword) => u32::MAX,
        _ => 0,
    }
}
