//! The MSI capability, with 64-bit addresses and no mask bits (PCIe Base Specification 6.0, 7.7.1).
//!
//! ```text
//!        31                         16 15           8 7            0
//!  +0x0 │ message control             │ next         │ id 0x05      │
//!  +0x4 │ message address                                    │ 0  0 │
//!  +0x8 │ message upper address                                     │
//!  +0xc │ reserved                    │ message data                │
//!
//!  message control:  7 64-bit, 6:4 log2 of the vectors in use, 3:1 log2 of the vectors offered, 0 enable
//! ```
//!
//! Enable and the number of vectors in use live in [`Interrupts`](super::Interrupts), which decides by them; the
//! function shows them in the register.

use super::config::ConfigSpace;

/// Where the capability lies.
pub const AT: u16 = 0x60;
/// Message control register.
pub const CONTROL: u16 = AT + 2;
/// Length in bytes, rounded up to a doubleword.
pub const LEN: u16 = 16;
/// Capability id.
pub const ID: u8 = 0x05;

/// MSI Enable, in message control.
pub const ENABLE: u32 = 1;
/// Position of Multiple Message Enable, log2 of the vectors in use, in message control.
pub const IN_USE_SHIFT: u32 = 4;
/// Mask of Multiple Message Enable.
pub const IN_USE: u32 = 0b111 << IN_USE_SHIFT;
const ADDRESS_64: u32 = 1 << 7;

/// Lays the capability out for `vectors`, a power of two.
pub(crate) fn lay_out(config: &mut ConfigSpace, next: u8, vectors: u8) {
    config.claim(AT, LEN);
    config.define(AT, 1, ID.into(), 0);
    config.define(AT + 1, 1, next.into(), 0);
    config.define(CONTROL, 2, ADDRESS_64 | vectors.ilog2() << 1, 0);
    config.define(AT + 4, 4, 0, !0b11);
    config.define(AT + 8, 4, 0, u32::MAX);
    config.define(AT + 12, 2, 0, 0xffff);
}
