//! Cold caches.

use std::hint::black_box;

/// Bytes; several times what a processor's last cache has.
const LENGTH: usize = 256 << 20;
/// Words in a line of a cache.
const LINE: usize = 8;

/// A buffer that takes the place of everything else in the caches when it is written.
pub struct Eviction(Vec<u64>);

impl Eviction {
    /// Takes its memory.
    pub fn new() -> Self {
        Self(vec![1; LENGTH / 8])
    }

    /// Fills the caches.
    pub fn fill_caches(&mut self) {
        self.0.iter_mut().step_by(LINE).for_each(|word| *word = word.wrapping_add(1));
        black_box(&mut self.0);
    }
}
