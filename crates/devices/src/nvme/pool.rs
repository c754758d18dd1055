//! What namespaces are made of: parts of images and of memory, taken and given back.

use std::io;

use crate::storage::Blocks;

/// Parts begin and end at multiples of this, so that every block size fits and the page cache can be passed by.
const GRAIN: u64 = 4096;

/// A part of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    store: usize,
    /// Bytes before it.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u64,
}

/// Where bytes are, and whether they can be written.
#[derive(Debug)]
struct Store {
    blocks: Blocks,
    readonly: bool,
}

/// All stores, and what of them is free.
#[derive(Debug, Default)]
pub(super) struct Pool {
    stores: Vec<Store>,
    free: Vec<Extent>,
}

impl Pool {
    /// Adds a store. All of it is taken.
    pub(super) fn add(&mut self, blocks: Blocks, readonly: bool) -> Extent {
        let length = blocks.length();
        self.stores.push(Store { blocks, readonly });
        Extent { store: self.stores.len() - 1, offset: 0, length }
    }

    /// Takes a part of so many bytes from the smallest that is free and has them. What it holds is another's still.
    pub(super) fn take(&mut self, length: u64) -> Option<Extent> {
        let wanted = length.checked_next_multiple_of(GRAIN)?;
        let stores = &self.stores;
        let fitting = self.free.iter().enumerate();
        let fitting = fitting.filter(|(_, extent)| extent.length >= length && !stores[extent.store].readonly);
        let (index, found) = fitting.min_by_key(|(_, extent)| extent.length)?;
        let taken = Extent { length: wanted.min(found.length), ..*found };
        let left = Extent { offset: found.offset + taken.length, length: found.length - taken.length, ..*found };
        self.free.swap_remove(index);
        if left.length > 0 {
            self.free.push(left);
        }
        Some(taken)
    }

    /// Gives a part back.
    pub(super) fn give(&mut self, mut extent: Extent) {
        let touches = |extent: &Extent, other: &Extent| {
            let (end, other_end) = (extent.offset + extent.length, other.offset + other.length);
            extent.store == other.store && (end == other.offset || other_end == extent.offset)
        };
        while let Some(index) = self.free.iter().position(|other| touches(&extent, other)) {
            let other = self.free.swap_remove(index);
            extent.offset = extent.offset.min(other.offset);
            extent.length += other.length;
        }
        self.free.push(extent);
    }

    pub(super) fn blocks(&self, extent: Extent) -> &Blocks {
        &self.stores[extent.store].blocks
    }

    pub(super) fn blocks_mut(&mut self, extent: Extent) -> &mut Blocks {
        &mut self.stores[extent.store].blocks
    }

    pub(super) fn is_readonly(&self, extent: Extent) -> bool {
        self.stores[extent.store].readonly
    }

    /// Bytes of all stores, and how many of them are free for new namespaces.
    pub(super) fn capacity(&self) -> (u64, u64) {
        let free = self.free.iter().filter(|extent| !self.is_readonly(**extent));
        (self.stores.iter().map(|store| store.blocks.length()).sum(), free.map(|extent| extent.length).sum())
    }

    /// All that can be written, taken or not, as whole stores.
    pub(super) fn writable(&self) -> Vec<Extent> {
        let stores = (0..).zip(&self.stores).filter(|(_, store)| !store.readonly);
        stores.map(|(index, store)| Extent { store: index, offset: 0, length: store.blocks.length() }).collect()
    }

    /// What was written is there after a loss of power.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.stores.iter().filter(|store| !store.readonly).try_for_each(|store| store.blocks.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryBlocks;

    fn pool(lengths: &[u64]) -> Pool {
        let mut pool = Pool::default();
        for length in lengths {
            let extent = pool.add(Blocks::Memory(MemoryBlocks::new(*length).unwrap()), false);
            pool.give(extent);
        }
        pool
    }

    #[test]
    fn the_smallest_part_that_fits_is_taken_and_what_touches_becomes_one() {
        let mut pool = pool(&[1 << 20, 1 << 16]);
        let small = pool.take(512).unwrap();
        assert_eq!((small.store, small.length), (1, 4096));
        let large = pool.take(1 << 16).unwrap();
        assert_eq!((large.store, large.offset, large.length), (0, 0, 1 << 16));
        let next = pool.take(1 << 19).unwrap();
        assert_eq!((next.store, next.offset), (0, 1 << 16));
        assert_eq!(pool.take(1 << 20), None);
        assert_eq!(pool.take(u64::MAX), None);
        for extent in [large, small, next] {
            pool.give(extent);
        }
        assert_eq!(pool.capacity(), ((1 << 20) + (1 << 16), (1 << 20) + (1 << 16)));
        assert_eq!(pool.take(1 << 20).map(|all| (all.store, all.length)), Some((0, 1 << 20)));
    }

    #[test]
    fn what_cannot_be_written_is_not_taken() {
        let mut pool = Pool::default();
        let extent = pool.add(Blocks::Memory(MemoryBlocks::new(8192).unwrap()), true);
        pool.give(extent);
        assert_eq!((pool.take(4096), pool.capacity()), (None, (8192, 0)));
        assert!(pool.writable().is_empty());
    }
}
