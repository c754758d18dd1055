//! QEMU's IOTLB of an emulated VT-d: the shape of `hw/i386/intel_iommu.c`, written afresh, not its code.
//!
//! A hash table behind the IOMMU's lock, keyed by page number, source, PASID and level. Levels are tried from the
//! smallest page up. Its size is limited, and when it is full all of it is flushed.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

/// The most entries.
const MOST: usize = 1024;
/// The page sizes: 4 KiB, 2 MiB and 1 GiB.
const SHIFTS: [u32; 3] = [12, 21, 30];

#[derive(PartialEq, Eq)]
struct Key {
    page: u64,
    source: u16,
    pasid: u32,
    level: u8,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let tag = u64::from(self.source) << 40 | u64::from(self.pasid) << 4 | u64::from(self.level);
        state.write_u64(self.page ^ tag.rotate_left(32));
    }
}

/// One multiplication, as the default of the standard library, which withstands hostile keys, is no peer in speed.
#[derive(Default)]
struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        // The table takes its tag from the top and its position from the bottom.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

struct Entry {
    target: u64,
    writable: bool,
}

/// The table and its lock.
#[derive(Default)]
pub struct LockedHash {
    entries: Mutex<HashMap<Key, Entry, BuildHasherDefault<Multiply>>>,
}

impl LockedHash {
    /// Caches a page of 4 KiB that may be written.
    pub fn insert(&self, source: u16, iova: u64, target: u64) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MOST {
            entries.clear();
        }
        entries.insert(Key { page: iova >> SHIFTS[0], source, pasid: 0, level: 0 }, Entry { target, writable: true });
    }

    /// What `iova` translates to, if it is cached and may be accessed so.
    #[inline]
    pub fn find(&self, source: u16, iova: u64, write: bool) -> Option<u64> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        (0u8..).zip(SHIFTS).find_map(|(level, shift)| {
            let entry = entries.get(&Key { page: iova >> shift, source, pasid: 0, level })?;
            (entry.writable || !write).then_some(entry.target + (iova & ((1 << shift) - 1)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_what_is_cached_and_forgets_everything_when_full() {
        let cache = LockedHash::default();
        (0..MOST as u64).for_each(|page| cache.insert(1, page << 12, (page + 7) << 12));
        assert!((0..MOST as u64).all(|page| cache.find(1, (page << 12) + 8, true) == Some(((page + 7) << 12) + 8)));
        assert_eq!(cache.find(2, 8, false), None, "another source");
        cache.insert(1, 1 << 40, 0);
        assert_eq!(cache.find(1, 8, false), None);
        assert_eq!(cache.find(1, (1 << 40) + 8, false), Some(8));
    }
}
