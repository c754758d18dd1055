//! Configuration space as bits: a value, what may be written, what a written 1 clears.
//!
//! Nothing here knows what a register means. A structure defines its registers once, with masks; sizing a BAR,
//! dropping writes to read-only bits and write-1-to-clear then need no code of their own. What a write *causes* is
//! for [`Function`](super::Function) to find out by comparing before and after.
//!
//! Registers are little-endian. Accesses come in pieces that are naturally aligned and never cross a doubleword, as
//! on the bus (PCIe Base Specification 6.0, 2.2.7.1); `pieces` cuts longer ones.

use std::ops::Range;

/// Size of the configuration space of a PCI Express function, in bytes.
pub const SIZE: usize = 4096;

/// The registers of one function.
#[derive(Clone)]
pub(crate) struct ConfigSpace {
    value: Vec<u8>,
    power_on: Vec<u8>,
    /// Bits that take what is written.
    writable: Vec<u8>,
    /// Bits that a written 1 clears.
    write_1_to_clear: Vec<u8>,
    /// Doublewords that belong to the header or to a capability.
    claimed: Vec<bool>,
}

/// One aligned write of 1, 2 or 4 bytes, of which only the bits in `allowed` take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) at: u16,
    pub(crate) len: u16,
    pub(crate) value: u32,
    pub(crate) allowed: u32,
}

impl Write {
    /// What this write puts into the register of `width` bytes at `register`: the bits, and which of them it writes.
    ///
    /// A register that the write does not reach has an empty mask.
    pub(crate) fn onto(&self, register: u16, width: u16) -> Bits {
        if register / 4 != self.at / 4 {
            return Bits { value: 0, mask: 0 };
        }
        let place = |bits: u32, at: u16| bits << (u32::from(at % 4) * 8);
        let mask = place(ones(self.len) & self.allowed, self.at) & place(ones(width), register);
        let shift = u32::from(register % 4) * 8;
        Bits { value: (place(self.value & ones(self.len), self.at) & mask) >> shift, mask: mask >> shift }
    }
}

/// Bits of a register together with the mask of those that are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bits {
    pub(crate) value: u32,
    pub(crate) mask: u32,
}

/// All ones in `len` bytes.
pub(crate) fn ones(len: u16) -> u32 {
    u32::MAX >> (32 - 8 * u32::from(len))
}

/// Cuts an access into naturally aligned pieces of 4, 2 and 1 bytes, none crossing a doubleword.
///
/// Gives ranges into the caller's buffer. `offset + len` is at most [`SIZE`].
pub(crate) fn pieces(offset: u16, len: usize) -> impl Iterator<Item = (u16, Range<usize>)> {
    cut(offset.into(), len, &[4, 2, 1]).map(|(at, piece)| (at as u16, piece))
}

/// Cuts an access into naturally aligned pieces of 8, 4, 2 and 1 bytes, and gives ranges into the caller's buffer.
/// `offset + len` does not wrap.
pub(crate) fn aligned_pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    cut(offset, len, &[8, 4, 2, 1])
}

fn cut(offset: u64, len: usize, sizes: &[usize]) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let left = len - done;
        let at = offset + done as u64;
        let size = *sizes.iter().find(|size| left >= **size && at.is_multiple_of(**size as u64))?;
        let piece = done..done + size;
        done += size;
        Some((at, piece))
    })
}

impl ConfigSpace {
    /// A space with no registers.
    pub(crate) fn empty() -> Self {
        Self {
            value: vec![0; SIZE],
            power_on: vec![0; SIZE],
            writable: vec![0; SIZE],
            write_1_to_clear: vec![0; SIZE],
            claimed: vec![false; SIZE / 4],
        }
    }

    /// Claims a structure's bytes, rounded up to doublewords: they are not the device's own.
    pub(crate) fn claim(&mut self, at: u16, len: u16) {
        let first = usize::from(at) / 4;
        let end = usize::from(at + len).div_ceil(4);
        self.claimed[first..end].fill(true);
    }

    /// Whether the byte belongs to the header or to a capability.
    pub(crate) fn is_claimed(&self, at: u16) -> bool {
        self.claimed[usize::from(at) / 4]
    }

    /// Defines a register of `width` bytes: its value at power-on, and the bits that software may write.
    pub(crate) fn define(&mut self, at: u16, width: u16, power_on: u32, writable: u32) {
        put(&mut self.value, at, width, power_on);
        put(&mut self.power_on, at, width, power_on);
        put(&mut self.writable, at, width, writable);
    }

    /// Makes bits of a defined register clear when software writes 1 to them.
    pub(crate) fn define_write_1_to_clear(&mut self, at: u16, width: u16, mask: u32) {
        put(&mut self.write_1_to_clear, at, width, mask);
    }

    /// Reads 1, 2 or 4 bytes.
    pub(crate) fn read(&self, at: u16, len: u16) -> u32 {
        get(&self.value, at, len)
    }

    /// Performs a write of software's.
    pub(crate) fn write(&mut self, write: Write) {
        let Write { at, len, value, allowed } = write;
        let writable = get(&self.writable, at, len) & allowed;
        let clear = get(&self.write_1_to_clear, at, len) & allowed & value;
        let new = ((self.read(at, len) & !writable) | (value & writable)) & !clear;
        put(&mut self.value, at, len, new);
    }

    /// Sets a register as the hardware does, whatever software may write.
    pub(crate) fn set(&mut self, at: u16, width: u16, value: u32) {
        put(&mut self.value, at, width, value);
    }

    /// Gives every register its power-on value.
    pub(crate) fn reset(&mut self) {
        self.value.copy_from_slice(&self.power_on);
    }

    /// The values of all registers.
    pub(crate) fn save(&self) -> Vec<u8> {
        self.value.clone()
    }

    /// Writes saved values back to the bits that software can write.
    pub(crate) fn restore(&mut self, saved: &[u8]) {
        for ((value, saved), writable) in self.value.iter_mut().zip(saved).zip(&self.writable) {
            *value = (*value & !writable) | (saved & writable);
        }
    }
}

fn get(bytes: &[u8], at: u16, len: u16) -> u32 {
    let at = usize::from(at);
    bytes[at..at + usize::from(len)].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn put(bytes: &mut [u8], at: u16, len: u16, value: u32) {
    let (at, len) = (usize::from(at), usize::from(len));
    bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(at: u16, len: u16, value: u32) -> Write {
        Write { at, len, value, allowed: u32::MAX }
    }

    #[test]
    fn a_written_1_clears_and_a_written_0_keeps() {
        let mut config = ConfigSpace::empty();
        config.define_write_1_to_clear(6, 2, 0xf900);
        config.set(6, 2, 0xc010);
        config.write(write(6, 2, 0x4000));
        assert_eq!(config.read(6, 2), 0x8010);
    }

    #[test]
    fn bits_that_are_not_allowed_take_no_part() {
        let mut config = ConfigSpace::empty();
        config.define(8, 4, 0, u32::MAX);
        config.write(Write { at: 8, len: 4, value: u32::MAX, allowed: 0xff00 });
        assert_eq!(config.read(8, 4), 0xff00);
    }

    #[test]
    fn a_write_is_seen_by_the_registers_that_it_reaches() {
        let bytes = write(0x81, 2, 0xabcd);
        assert_eq!(bytes.onto(0x80, 2), Bits { value: 0xcd00, mask: 0xff00 });
        assert_eq!(bytes.onto(0x82, 2), Bits { value: 0x00ab, mask: 0x00ff });
        assert_eq!(bytes.onto(0x84, 4).mask, 0);
    }

    #[test]
    fn pieces_are_aligned_and_stay_in_their_doubleword() {
        let cut: Vec<_> = pieces(1, 10).map(|(at, piece)| (at, piece.len())).collect();
        assert_eq!(cut, [(1, 1), (2, 2), (4, 4), (8, 2), (10, 1)]);
    }

    proptest! {
        #[test]
        fn reads_match_a_model_of_masks(
            writable in any::<[u8; 16]>(),
            clears in any::<[u8; 16]>(),
            start in any::<[u8; 16]>(),
            writes in prop::collection::vec((0u16..4, 0u16..3, any::<u32>(), any::<u32>()), 0..40),
        ) {
            let mut config = ConfigSpace::empty();
            let mut model = start;
            for i in 0..16u16 {
                let byte = usize::from(i);
                config.define(i, 1, start[byte].into(), (writable[byte] & !clears[byte]).into());
                config.define_write_1_to_clear(i, 1, clears[byte].into());
            }
            for (dword, size, value, allowed) in writes {
                let (len, at) = (1 << size, dword * 4);
                config.write(Write { at, len, value, allowed });
                for i in 0..len {
                    let byte = usize::from(at + i);
                    let (value, allowed) = (value.to_le_bytes()[usize::from(i)], allowed.to_le_bytes()[usize::from(i)]);
                    let takes = writable[byte] & !clears[byte] & allowed;
                    model[byte] = (model[byte] & !takes | value & takes) & !(value & clears[byte] & allowed);
                }
            }
            for i in 0..16u16 {
                prop_assert_eq!(config.read(i, 1), u32::from(model[usize::from(i)]));
            }
        }
    }
}
