//! The PCI Express capability, version 2 (PCIe Base Specification 6.0, 7.5.3).
//!
//! ```text
//!        31                         16 15           8 7            0
//!  +0x00│ capabilities                │ next         │ id 0x10      │
//!  +0x04│ device capabilities                                       │
//!  +0x08│ device status               │ device control              │
//!  +0x0c│ link capabilities                                         │
//!  +0x10│ link status                 │ link control                │
//!  +0x14│ slot and root registers: reserved in an endpoint          │
//!   ⋮   │ ⋮                                                         │
//!  +0x24│ device capabilities 2                                     │
//!  +0x28│ device status 2             │ device control 2            │
//!  +0x2c│ link capabilities 2                                       │
//!  +0x30│ link status 2               │ link control 2              │
//!  +0x34│ slot registers 2: reserved in an endpoint                 │
//!   ⋮   │ ⋮                                                         │
//!  +0x3c└───────────────────────────────────────────────────────────┘
//!
//!  device control:  15 initiate FLR, 14:12 max read request, 11 no snoop, 8 extended tag, 7:5 max payload,
//!                   4 relaxed ordering, 3:0 error reporting enables
//!  device status:   5 transactions pending, 3:0 errors detected; a written 1 clears them
//! ```

use super::config::ConfigSpace;
use crate::spec::PcieKind;

/// Where the capability lies.
pub const AT: u16 = 0x90;
/// Device control register.
pub const DEVICE_CONTROL: u16 = AT + 0x08;
/// Device control 2 register.
pub const DEVICE_CONTROL_2: u16 = AT + 0x28;
/// Length in bytes.
pub const LEN: u16 = 0x3c;
/// Capability id.
pub const ID: u8 = 0x10;

/// Initiate Function Level Reset, in device control; reads as 0 always (7.5.3.4).
pub const INITIATE_FLR: u32 = 1 << 15;
/// Phantom Functions Enable, in device control.
pub const PHANTOM_FUNCTIONS: u32 = 1 << 9;
/// ARI Forwarding Enable, in device control 2.
pub const ARI_FORWARDING: u32 = 1 << 5;

const VERSION: u32 = 2;
/// Max payload of 256 bytes, extended tags, role-based error reporting, function level reset.
const DEVICE_CAPABILITIES: u32 = 1 | 1 << 5 | 1 << 15 | 1 << 28;
/// Relaxed ordering, no snoop, read requests of 512 bytes: the defaults of the specification.
const DEVICE_CONTROL_POWER_ON: u32 = 1 << 4 | 1 << 11 | 2 << 12;
const DEVICE_CONTROL_WRITABLE: u32 = 0x000f | 1 << 4 | 0x00e0 | 1 << 8 | 1 << 11 | 0x7000;
const DEVICE_STATUS_ERRORS: u32 = 0x000f;
/// Completion timeout disable.
const DEVICE_CAPABILITIES_2: u32 = 1 << 4;
/// One end-to-end TLP prefix, which is what a PASID is carried in (6.20.1).
const ONE_PREFIX: u32 = 1 << 21 | 1 << 22;
const DEVICE_CONTROL_2_WRITABLE: u32 = 1 << 4;
/// Read completion boundary, common clock configuration.
const LINK_CONTROL_WRITABLE: u32 = 1 << 3 | 1 << 6;

/// Lays the capability out; with `prefixes`, of a function whose transactions may have a PASID.
pub(crate) fn lay_out(config: &mut ConfigSpace, next: u8, kind: PcieKind, prefixes: bool) {
    let port_type = match kind {
        PcieKind::Endpoint { .. } => 0x0,
        PcieKind::RootComplexIntegrated => 0x9,
    };
    config.claim(AT, LEN);
    config.define(AT, 1, ID.into(), 0);
    config.define(AT + 1, 1, next.into(), 0);
    config.define(AT + 2, 2, VERSION | port_type << 4, 0);
    config.define(AT + 0x04, 4, DEVICE_CAPABILITIES, 0);
    config.define(DEVICE_CONTROL, 2, DEVICE_CONTROL_POWER_ON, DEVICE_CONTROL_WRITABLE);
    config.define_write_1_to_clear(AT + 0x0a, 2, DEVICE_STATUS_ERRORS);
    let prefixes = if prefixes { ONE_PREFIX } else { 0 };
    config.define(AT + 0x24, 4, DEVICE_CAPABILITIES_2 | prefixes, 0);
    config.define(DEVICE_CONTROL_2, 2, 0, DEVICE_CONTROL_2_WRITABLE);
    if let PcieKind::Endpoint { speed, width } = kind {
        let link = u32::from(speed & 0xf) | u32::from(width & 0x3f) << 4;
        config.define(AT + 0x0c, 4, link, 0);
        config.define(AT + 0x10, 2, 0, LINK_CONTROL_WRITABLE);
        config.define(AT + 0x12, 2, link, 0);
        // Every speed up to the fastest.
        config.define(AT + 0x2c, 4, ((1 << (speed & 0xf)) - 1) << 1, 0);
        config.define(AT + 0x30, 2, u32::from(speed & 0xf), 0xf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_pasids_says_that_it_has_prefixes() {
        for (prefixes, wanted) in [(true, 0x0060_0010), (false, 0x10)] {
            let mut config = ConfigSpace::empty();
            lay_out(&mut config, 0, PcieKind::RootComplexIntegrated, prefixes);
            assert_eq!(config.read(AT + 0x24, 4), wanted);
        }
    }
}
