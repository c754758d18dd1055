//! The power management capability (PCIe Base Specification 6.0, 7.5.2; PCI PM 1.2, 3.2).
//!
//! ```text
//!        31                         16 15           8 7            0
//!  +0   │ capabilities: version 3     │ next         │ id 0x01      │
//!  +4   │ reserved                    │ control and status          │
//!
//!  control and status:  3 No_Soft_Reset, 1:0 power state (0: D0, 3: D3hot)
//! ```
//!
//! D1, D2 and PME are not offered. Linux's vfio-pci hides PME from programs in any case.

use super::config::{Bits, ConfigSpace};

/// Where the capability lies.
pub const AT: u16 = 0xe0;
/// Control and status register, PMCSR.
pub const CONTROL: u16 = AT + 4;
/// Length in bytes.
pub const LEN: u16 = 8;
/// Capability id.
pub const ID: u8 = 0x01;

const VERSION: u32 = 3;
const STATE: u32 = 0b11;
const NO_SOFT_RESET: u32 = 1 << 3;

/// The power state of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerState {
    /// Working.
    D0,
    /// Off, except for configuration space.
    D3Hot,
}

impl PowerState {
    /// The state that the register holds.
    pub(crate) fn of(config: &ConfigSpace) -> Self {
        match config.read(CONTROL, 2) & STATE {
            0 => Self::D0,
            _ => Self::D3Hot,
        }
    }

    /// The state after `bits` were written to the register. A state that is not offered changes nothing.
    pub(crate) fn after(self, bits: Bits) -> Self {
        if bits.mask & STATE == 0 {
            return self;
        }
        match bits.value & STATE {
            0 => Self::D0,
            3 => Self::D3Hot,
            _ => self,
        }
    }
}

/// Lays the capability out.
pub(crate) fn lay_out(config: &mut ConfigSpace, next: u8, no_soft_reset: bool) {
    config.claim(AT, LEN);
    config.define(AT, 1, ID.into(), 0);
    config.define(AT + 1, 1, next.into(), 0);
    config.define(AT + 2, 2, VERSION, 0);
    // The state is set by `set_state`, which refuses those that are not offered.
    config.define(CONTROL, 2, if no_soft_reset { NO_SOFT_RESET } else { 0 }, 0);
}

/// Puts a state into the register.
pub(crate) fn set_state(config: &mut ConfigSpace, state: PowerState) {
    let bits = match state {
        PowerState::D0 => 0,
        PowerState::D3Hot => 3,
    };
    config.set(CONTROL, 2, config.read(CONTROL, 2) & !STATE | bits);
}
