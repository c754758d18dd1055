//! The type 0 configuration header (PCIe Base Specification 6.0, 7.5.1.1 and 7.5.1.2).
//!
//! ```text
//!        31          24 23          16 15           8 7            0
//!  0x00 │ device id                   │ vendor id                   │
//!  0x04 │ status                      │ command                     │
//!  0x08 │ class code                                 │ revision     │
//!  0x0c │ BIST         │ header type  │ latency      │ cache line   │
//!  0x10 │ BAR 0                                                     │
//!   ⋮   │ ⋮                                                         │
//!  0x24 │ BAR 5                                                     │
//!  0x28 │ CardBus CIS pointer                                       │
//!  0x2c │ subsystem id                │ subsystem vendor id         │
//!  0x30 │ expansion ROM: absent                                     │
//!  0x34 │ reserved                                   │ capabilities │
//!  0x38 │ reserved                                                  │
//!  0x3c │ max latency  │ min grant    │ int. pin     │ int. line    │
//!
//!  ports:         31 … 2 address, 1 zero, 0 one
//!  a memory BAR:  31 … 4 address, 3 prefetchable, 2:1 type (0: 32 bits, 2: 64 bits), 0 zero
//! ```
//!
//! A BAR's address bits below its size are read-only zero. That is all there is to sizing: write all ones, read the
//! size back as a mask.

use bitflags::bitflags;

use super::config::ConfigSpace;
use crate::spec::{BarKind, BarSpec, Spec};

/// Command register.
pub const COMMAND: u16 = 0x04;
/// Status register.
pub const STATUS: u16 = 0x06;
/// Cache line size.
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// Latency timer.
pub const LATENCY_TIMER: u16 = 0x0d;
/// Built-in self test.
pub const BIST: u16 = 0x0f;
/// First base address register; they are 4 bytes each.
pub const BAR_0: u16 = 0x10;
/// Expansion ROM base address.
pub const ROM: u16 = 0x30;
/// Offset of the first capability.
pub const CAPABILITIES: u16 = 0x34;
/// Interrupt line: software's scratch register.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin.
pub const INTERRUPT_PIN: u16 = 0x3d;
/// Length of the header in bytes.
pub const LEN: u16 = 0x40;

bitflags! {
    /// Command register (7.5.1.1.3).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Command: u16 {
        /// I/O Space Enable: the BARs that are ports answer.
        const PORTS = 1 << 0;
        /// Memory Space Enable: the other BARs answer.
        const MEMORY = 1 << 1;
        /// Bus Master Enable: the function may send memory requests, which MSI and MSI-X messages are too.
        const BUS_MASTER = 1 << 2;
        /// Parity Error Response.
        const PARITY_RESPONSE = 1 << 6;
        /// SERR# Enable.
        const SERR = 1 << 8;
        /// Interrupt Disable: INTx is not asserted.
        const INTX_DISABLE = 1 << 10;
    }
}

bitflags! {
    /// Status register (7.5.1.1.4).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Status: u16 {
        /// Interrupt Status: INTx is wanted, whether or not it is disabled.
        const INTERRUPT = 1 << 3;
        /// Capabilities List.
        const CAPABILITIES = 1 << 4;
        /// Master Data Parity Error; a written 1 clears it.
        const MASTER_PARITY = 1 << 8;
        /// Signaled Target Abort; a written 1 clears it.
        const SIGNALED_TARGET_ABORT = 1 << 11;
        /// Received Target Abort; a written 1 clears it.
        const RECEIVED_TARGET_ABORT = 1 << 12;
        /// Received Master Abort; a written 1 clears it.
        const RECEIVED_MASTER_ABORT = 1 << 13;
        /// Signaled System Error; a written 1 clears it.
        const SIGNALED_SYSTEM_ERROR = 1 << 14;
        /// Detected Parity Error; a written 1 clears it.
        const PARITY = 1 << 15;
    }
}

impl Status {
    /// The errors, each of which a written 1 clears.
    pub const ERRORS: Self = Self::MASTER_PARITY
        .union(Self::SIGNALED_TARGET_ABORT)
        .union(Self::RECEIVED_TARGET_ABORT)
        .union(Self::RECEIVED_MASTER_ABORT)
        .union(Self::SIGNALED_SYSTEM_ERROR)
        .union(Self::PARITY);
}

/// Lays the header out, with the capability list starting at `first_capability`.
pub(crate) fn lay_out(config: &mut ConfigSpace, spec: &Spec, first_capability: u8) {
    config.claim(0, LEN);
    config.define(0x00, 2, spec.vendor.into(), 0);
    config.define(0x02, 2, spec.device.into(), 0);
    let switches = if spec.has_ports() { Command::all() } else { Command::all().difference(Command::PORTS) };
    config.define(COMMAND, 2, 0, switches.bits().into());
    config.define(STATUS, 2, Status::CAPABILITIES.bits().into(), 0);
    config.define_write_1_to_clear(STATUS, 2, Status::ERRORS.bits().into());
    config.define(0x08, 4, spec.class << 8 | u32::from(spec.revision), 0);
    config.define(CACHE_LINE_SIZE, 1, 0, 0xff);
    for bar in &spec.bars {
        lay_out_bar(config, bar);
    }
    config.define(0x2c, 2, spec.subsystem_vendor.into(), 0);
    config.define(0x2e, 2, spec.subsystem_device.into(), 0);
    config.define(CAPABILITIES, 1, first_capability.into(), 0);
    config.define(INTERRUPT_LINE, 1, 0, 0xff);
    config.define(INTERRUPT_PIN, 1, spec.interrupt_pin.into(), 0);
}

fn lay_out_bar(config: &mut ConfigSpace, bar: &BarSpec) {
    let at = BAR_0 + 4 * u16::from(bar.index);
    let address_bits = !(bar.size - 1);
    let wide = bar.kind == BarKind::Memory64;
    let kind = match bar.kind {
        BarKind::Ports => 1,
        _ => u32::from(bar.prefetchable) << 3 | u32::from(wide) << 2,
    };
    config.define(at, 4, kind, address_bits as u32);
    if wide {
        config.define(at + 4, 4, 0, (address_bits >> 32) as u32);
    }
}

/// Programs a BAR's address, as firmware does. `address` is a multiple of the size.
pub(crate) fn set_bar_address(config: &mut ConfigSpace, bar: &BarSpec, address: u64) {
    let at = BAR_0 + 4 * u16::from(bar.index);
    let kind = config.read(at, 4) & if bar.kind == BarKind::Ports { 0x3 } else { 0xf };
    config.set(at, 4, address as u32 | kind);
    if bar.kind == BarKind::Memory64 {
        config.set(at + 4, 4, (address >> 32) as u32);
    }
}
