//! The capabilities that an answer ends with, in a chain.

use std::mem::offset_of;

use ioasid_uapi::vfio::CapHeader;

/// A header of version 1, whose place in the chain is not known yet.
pub(super) fn header(id: u16) -> CapHeader {
    CapHeader { id, version: 1, next: 0 }
}

/// The chain of these capabilities, each of which begins with its header, for byte `at` of the answer; empty without
/// any.
pub(super) fn chain(all: Vec<Vec<u8>>, at: usize) -> Vec<u8> {
    let mut chain = Vec::new();
    let last = all.len().saturating_sub(1);
    for (number, mut capability) in all.into_iter().enumerate() {
        capability.resize(capability.len().next_multiple_of(8), 0);
        let next = if number == last { 0 } else { (at + chain.len() + capability.len()) as u32 };
        let place = offset_of!(CapHeader, next);
        capability[place..place + 4].copy_from_slice(&next.to_ne_bytes());
        chain.append(&mut capability);
    }
    chain
}
