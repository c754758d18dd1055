//! MSI-X: the capability, the table and the pending bits (PCIe Base Specification 6.0, 7.7.2 and 6.1.4).
//!
//! ```text
//!  capability
//!        31                         16 15           8 7            0
//!  +0x0 │ message control             │ next         │ id 0x11      │
//!  +0x4 │ table offset                                     │ BAR    │
//!  +0x8 │ pending bits offset                              │ BAR    │
//!
//!  message control:  15 enable, 14 function mask, 10:0 vectors - 1
//!
//!  table entry, 16 bytes a vector                  pending bits, one a vector
//!  +0x0 │ message address          │ 0  0 │        +0x0 │ 63 … 0   │
//!  +0x4 │ message upper address           │        +0x8 │ 127 … 64 │
//!  +0x8 │ message data                    │          ⋮  │ ⋮        │
//!  +0xc │ reserved                 │ mask │
//! ```
//!
//! A masked vector does not fire: it becomes pending, and fires once when the last mask goes. Address and data are
//! registers and nothing more: where an interrupt goes is decided by the eventfd of its vector.

use super::config::ConfigSpace;
use crate::spec::MsixSpec;

/// Where the capability lies.
pub const AT: u16 = 0x80;
/// Message control register.
pub const CONTROL: u16 = AT + 2;
/// Length in bytes.
pub const LEN: u16 = 12;
/// Capability id.
pub const ID: u8 = 0x11;

/// MSI-X Enable, in message control.
pub const ENABLE: u32 = 1 << 15;
/// Function Mask, in message control.
pub const FUNCTION_MASK: u32 = 1 << 14;

const ENTRY_LEN: usize = 16;
const VECTOR_CONTROL: usize = 12;
const VECTOR_MASK: u8 = 1;
/// The bits of an entry's bytes that software can write: an address is a multiple of 4, and of the vector control
/// only the mask bit exists.
const ENTRY_WRITABLE: [u8; ENTRY_LEN] =
    [0xfc, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, VECTOR_MASK, 0, 0, 0];

/// Lays the capability out.
pub(crate) fn lay_out(config: &mut ConfigSpace, next: u8, spec: &MsixSpec) {
    config.claim(AT, LEN);
    config.define(AT, 1, ID.into(), 0);
    config.define(AT + 1, 1, next.into(), 0);
    config.define(CONTROL, 2, u32::from(spec.vectors) - 1, 0);
    config.define(AT + 4, 4, spec.table_offset | u32::from(spec.table_bar), 0);
    config.define(AT + 8, 4, spec.pba_offset | u32::from(spec.pba_bar), 0);
}

/// The table, the pending bits and the function mask of one function.
#[derive(Debug)]
pub(crate) struct MsixTable {
    entries: Vec<u8>,
    pending: Vec<u64>,
    function_masked: bool,
}

impl MsixTable {
    /// A table as after power-on: every vector masked, nothing pending.
    pub(crate) fn new(vectors: u16) -> Self {
        let mut table = Self {
            entries: vec![0; usize::from(vectors) * ENTRY_LEN],
            pending: vec![0; usize::from(vectors).div_ceil(64)],
            function_masked: false,
        };
        table.reset();
        table
    }

    /// Back to the state after power-on.
    pub(crate) fn reset(&mut self) {
        for entry in self.entries.chunks_exact_mut(ENTRY_LEN) {
            entry.fill(0);
            entry[VECTOR_CONTROL] = VECTOR_MASK;
        }
        self.pending.fill(0);
        self.function_masked = false;
    }

    /// Sets the function mask.
    pub(crate) fn set_function_mask(&mut self, masked: bool) {
        self.function_masked = masked;
    }

    /// The function mask.
    pub(crate) fn function_mask(&self) -> bool {
        self.function_masked
    }

    /// Sets or clears a vector's mask bit.
    pub(crate) fn set_mask(&mut self, vector: usize, masked: bool) {
        self.entries[vector * ENTRY_LEN + VECTOR_CONTROL] = u8::from(masked);
    }

    /// Whether the vector may not fire.
    pub(crate) fn is_masked(&self, vector: usize) -> bool {
        self.function_masked || self.entries[vector * ENTRY_LEN + VECTOR_CONTROL] & VECTOR_MASK != 0
    }

    /// Remembers that a masked vector wants to fire.
    pub(crate) fn set_pending(&mut self, vector: usize) {
        self.pending[vector / 64] |= 1 << (vector % 64);
    }

    /// Forgets whatever is pending.
    pub(crate) fn clear_pending(&mut self) {
        self.pending.fill(0);
    }

    /// Takes the vectors that are pending and no longer masked.
    pub(crate) fn take_due(&mut self) -> Vec<usize> {
        let due: Vec<usize> = self
            .pending
            .iter()
            .enumerate()
            .filter(|(_, bits)| **bits != 0)
            .flat_map(|(word, bits)| (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| word * 64 + bit))
            .filter(|vector| !self.is_masked(*vector))
            .collect();
        for vector in &due {
            self.pending[vector / 64] &= !(1 << (vector % 64));
        }
        due
    }

    /// Reads bytes of the table; within it.
    pub(crate) fn read_table(&self, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.entries[offset..offset + data.len()]);
    }

    /// Writes bytes of the table; within it. Whatever becomes unmasked is then in [`MsixTable::take_due`].
    pub(crate) fn write_table(&mut self, offset: usize, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            let at = offset + i;
            let writable = ENTRY_WRITABLE[at % ENTRY_LEN];
            self.entries[at] = self.entries[at] & !writable | byte & writable;
        }
    }

    /// Reads bytes of the pending bit array; within it. Writes to it have no effect (7.7.2.9).
    pub(crate) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset + i;
            *byte = self.pending[at / 8].to_le_bytes()[at % 8];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_is_masked_after_power_on() {
        let table = MsixTable::new(65);
        assert!((0..65).all(|vector| table.is_masked(vector)));
    }

    #[test]
    fn reserved_bits_of_an_entry_stay_zero() {
        let mut table = MsixTable::new(2);
        table.write_table(16, &[0xff; 16]);
        let mut entry = [0; 16];
        table.read_table(16, &mut entry);
        assert_eq!(entry, ENTRY_WRITABLE);
    }

    #[test]
    fn a_pending_vector_shows_in_the_array_until_it_is_due() {
        let mut table = MsixTable::new(70);
        table.set_pending(65);
        let mut bits = [0; 16];
        table.read_pending(0, &mut bits);
        assert_eq!(bits[8], 2);
        assert_eq!(table.take_due(), []);
        table.set_mask(65, false);
        assert_eq!(table.take_due(), [65]);
        assert_eq!(table.take_due(), []);
    }

    #[test]
    fn the_function_mask_holds_every_vector() {
        let mut table = MsixTable::new(1);
        table.set_mask(0, false);
        table.set_function_mask(true);
        assert!(table.is_masked(0));
    }
}
