//! Data integrity fields (T10 DIF), which follow blocks of data.
//!
//! ```text
//!   data │ guard │ application tag │ reference tag │      big-endian
//!        │   2   │        2        │       4       │
//! ```
//! The guard is the CRC of the data.

/// Bytes of a field.
pub(crate) const FIELD: usize = 8;
/// x^16 + x^15 + x^11 + x^9 + x^8 + x^7 + x^5 + x^4 + x^2 + x + 1, without x^16.
const POLYNOMIAL: u16 = 0x8BB7;

/// The remainder after each byte.
const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            remainder = remainder << 1 ^ if remainder & 0x8000 == 0 { 0 } else { POLYNOMIAL };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};

/// The remainder of bytes that follow those with the remainder `seed`.
pub(crate) fn guard(seed: u16, data: &[u8]) -> u16 {
    data.iter().fold(seed, |remainder, &byte| remainder << 8 ^ TABLE[usize::from((remainder >> 8) as u8 ^ byte)])
}

/// A field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) guard: u16,
    pub(crate) application: u16,
    pub(crate) reference: u32,
}

impl Field {
    pub(crate) fn read(bytes: &[u8]) -> Self {
        Self {
            guard: u16::from_be_bytes([bytes[0], bytes[1]]),
            application: u16::from_be_bytes([bytes[2], bytes[3]]),
            reference: u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    pub(crate) fn write(self, bytes: &mut [u8]) {
        bytes[..2].copy_from_slice(&self.guard.to_be_bytes());
        bytes[2..4].copy_from_slice(&self.application.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.reference.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_those_of_the_standard() {
        // SBC-4, 4.22.4: the CRC of 32 bytes of zeroes, of ones, and ascending.
        assert_eq!(guard(0, &[0; 32]), 0);
        assert_eq!(guard(0, &[0xFF; 32]), 0xA293);
        assert_eq!(guard(0, &(0..32).collect::<Vec<u8>>()), 0x0224);
        assert_eq!(guard(guard(0, &[1, 2]), &[3]), guard(0, &[1, 2, 3]));
        let field = Field { guard: 0x0102, application: 0x0304, reference: 0x0506_0708 };
        let mut bytes = [0; 8];
        field.write(&mut bytes);
        assert_eq!((bytes, Field::read(&bytes)), ([1, 2, 3, 4, 5, 6, 7, 8], field));
    }
}
