//! Vendor-specific capabilities (PCIe Base Specification 6.0, 7.9.4), whose contents are the device's own.
//!
//! ```text
//!        31           24 23          16 15           8 7            0
//!  +0   │ the vendor's  │ length       │ next         │ id 0x09      │
//!  +4   │ the vendor's …
//! ```
//! One may be a window (Virtual I/O Device 1.2, 4.1.4.9): software writes a BAR, an offset and a length, and what it
//! then reads or writes at +16 are that many bytes of the BAR.

use super::config::ConfigSpace;
use crate::spec::{Spec, VendorCapability};

/// Capability id.
const ID: u8 = 0x09;
/// In a window: which BAR, where, how many bytes, and the bytes.
const BAR: u16 = 4;
const OFFSET: u16 = 8;
const LENGTH: u16 = 12;
const DATA: u16 = 16;

/// Where each capability of `spec` lies, in the gaps between `taken` (start, length) of 0x40 to 0x100; `None` if one
/// does not fit.
pub(crate) fn place(spec: &Spec, taken: &[(u16, u16)]) -> Option<Vec<u16>> {
    let (mut taken, all) = (taken.to_vec(), &spec.vendor_capabilities);
    let mut places = vec![0; all.len()];
    // The longest first, which has the fewest places.
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(all[*index].length()));
    for index in order {
        let length = all[index].length().next_multiple_of(4);
        let fits = |at: &u16| {
            at + length <= 0x100 && taken.iter().all(|(start, taken)| at + length <= *start || start + taken <= *at)
        };
        let at = (0x40..0x100).step_by(4).find(fits)?;
        taken.push((at, length));
        places[index] = at;
    }
    Some(places)
}

/// Lays a capability out.
pub(crate) fn lay_out(config: &mut ConfigSpace, at: u16, next: u8, capability: &VendorCapability) {
    config.claim(at, capability.length());
    config.define(at, 1, ID.into(), 0);
    config.define(at + 1, 1, next.into(), 0);
    config.define(at + 2, 1, capability.length().into(), 0);
    for (at, byte) in (at + 3..).zip(&capability.body) {
        config.define(at, 1, (*byte).into(), 0);
    }
    if capability.is_window {
        config.define(at + BAR, 1, 0, 0xff);
        config.define(at + OFFSET, 4, 0, u32::MAX);
        config.define(at + LENGTH, 4, 0, u32::MAX);
        config.define(at + DATA, 4, 0, u32::MAX);
    }
}

/// A window, by where its capability lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window(pub(crate) u16);

impl Window {
    /// Where its bytes are.
    pub(crate) fn data(self) -> u16 {
        self.0 + DATA
    }

    /// Whether the doubleword is one that software writes.
    pub(crate) fn takes(self, dword: u16) -> bool {
        [BAR, OFFSET, LENGTH, DATA].iter().any(|part| self.0 + part == dword)
    }

    /// What it is over, if that can be accessed: the BAR, the offset, and 1, 2 or 4 bytes.
    pub(crate) fn target(self, config: &ConfigSpace) -> Option<(u8, u64, usize)> {
        let [offset, length] = [OFFSET, LENGTH].map(|part| config.read(self.0 + part, 4));
        let is_access = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        is_access.then(|| (config.read(self.0 + BAR, 1) as u8, offset.into(), length as usize))
    }
}
