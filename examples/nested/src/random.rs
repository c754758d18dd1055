//! A small generator. The same steps each time, so that what goes wrong goes wrong again.

/// Xorshift with 64 bits (Marsaglia, "Xorshift RNGs", 2003).
pub struct Random(u64);

impl Random {
    /// The beginning of the sequence of `seed`, which is not 0.
    pub fn new(seed: u64) -> Self {
        // Small numbers are far from each other, too.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Yes, once in `many` times.
    pub fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
}
