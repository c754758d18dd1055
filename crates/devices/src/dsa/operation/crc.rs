//! CRC Generation and Copy with CRC Generation: CRC-32C, as iSCSI has it (RFC 3720).
//!
//! ```text
//!   seed ── inverted ──▶ remainder ◀── data, bit 0 of each byte first        (as usual)
//!        ── bits reversed ─▶       ◀── bit 7 of each byte first              (bypassed)
//!                            └──▶ inverted, or bits reversed ──▶ value
//! ```
//!
//! The remainder is kept with its most significant coefficient in bit 0. The value so far, as a seed, goes on where it
//! stands: that is how a partial completion is resumed.

use super::transfer::completed;
use super::{BLOCK, Fault, Memory, Run, place};
use crate::dsa::spec::completion::Record;

/// 0x1EDC6F41, bits reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// The remainder after each byte.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = remainder >> 1 ^ if remainder & 1 == 0 { 0 } else { POLYNOMIAL };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};

/// How seed, data and value are read.
#[derive(Clone, Copy)]
pub(in crate::dsa) struct Algorithm {
    /// Seed and value are not inverted, but have their bits in the other order.
    pub(in crate::dsa) bypass_inversion: bool,
    /// Bytes of data have their bits in the other order.
    pub(in crate::dsa) bypass_reflection: bool,
}

impl Algorithm {
    /// A seed as a remainder, and a remainder as a value: the same in both directions.
    fn turn(self, value: u32) -> u32 {
        if self.bypass_inversion { value.reverse_bits() } else { !value }
    }

    fn update(self, remainder: u32, data: &[u8]) -> u32 {
        data.iter().fold(remainder, |remainder, &byte| {
            let byte = if self.bypass_reflection { byte.reverse_bits() } else { byte };
            remainder >> 8 ^ TABLE[usize::from(remainder as u8 ^ byte)]
        })
    }
}

/// CRC Generation, with or without a copy.
pub(in crate::dsa) struct Crc {
    from: u64,
    to: Option<u64>,
    size: u64,
    algorithm: Algorithm,
    /// Where the seed still has to be read.
    seed_at: Option<u64>,
    remainder: u32,
    done: u64,
}

impl Crc {
    /// `seed` is a value, or the address of one.
    pub(in crate::dsa) fn new(
        from: u64,
        to: Option<u64>,
        size: u64,
        algorithm: Algorithm,
        seed: Result<u32, u64>,
    ) -> Self {
        let (seed, seed_at) = match seed {
            Ok(seed) => (seed, None),
            Err(at) => (0, Some(at)),
        };
        Self { from, to, size, algorithm, seed_at, remainder: algorithm.turn(seed), done: 0 }
    }

    fn record(&self, done: u64) -> Record {
        let value = self.algorithm.turn(self.remainder);
        Record { specific: [u64::from(value).into(), 0.into()], ..completed(done) }
    }
}

impl Run for Crc {
    fn step(&mut self, memory: &mut Memory<'_>) -> Result<Option<Record>, Fault> {
        if let Some(at) = self.seed_at {
            let mut seed = [0; 4];
            memory.read(at, &mut seed)?;
            self.remainder = self.algorithm.turn(u32::from_le_bytes(seed));
            self.seed_at = None;
        }
        let mut block = [0; BLOCK as usize];
        let len = (self.size - self.done).min(BLOCK) as usize;
        let len = memory.read_some(place(self.from, self.done, false)?, &mut block[..len])?;
        let len = match self.to {
            Some(to) => memory.write_some(place(to, self.done, true)?, &block[..len])?,
            None => len,
        };
        self.remainder = self.algorithm.update(self.remainder, &block[..len]);
        self.done += len as u64;
        Ok((self.done == self.size).then(|| self.record(0)))
    }

    fn partial(&self) -> Record {
        self.record(self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Algorithm = Algorithm { bypass_inversion: false, bypass_reflection: false };

    fn value(algorithm: Algorithm, seed: u32, data: &[u8]) -> u32 {
        algorithm.turn(algorithm.update(algorithm.turn(seed), data))
    }

    #[test]
    fn the_check_value_of_crc_32c_comes_out() {
        assert_eq!(value(USUAL, 0, b"123456789"), 0xE306_9283);
    }

    #[test]
    fn without_reflection_and_inversion_it_is_the_plain_polynomial_division() {
        let plain = Algorithm { bypass_inversion: true, bypass_reflection: true };
        assert_eq!(value(plain, 0, &[0x01]), 0x1EDC_6F41);
    }

    #[test]
    fn the_value_so_far_is_the_seed_of_the_rest() {
        for bypass in [false, true] {
            let algorithm = Algorithm { bypass_inversion: bypass, bypass_reflection: !bypass };
            let (head, tail) = b"some bytes that are long enough".split_at(7);
            let whole = [head, tail].concat();
            assert_eq!(value(algorithm, value(algorithm, 5, head), tail), value(algorithm, 5, &whole));
        }
    }
}
