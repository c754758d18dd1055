//! What an arena is made from: one contiguous slice of entries.

use std::ops::Range;
use std::sync::atomic::AtomicU64;

use zerocopy::FromZeros;

use super::CHUNK_BYTES;

/// Bytes of an entry.
const ENTRY: usize = size_of::<AtomicU64>();

/// Memory that tables live in: the heap, or a mapping that others share.
pub trait TableMemory: Send + Sync + 'static {
    /// All of it, the same slice at every call. Entries never used are zero; what does not fill a chunk of 2 MiB at the
    /// end is not used. Huge pages serve it well if it begins where one does.
    fn entries(&self) -> &[AtomicU64];

    /// Makes a chunk resident, before tables are taken from it for the first time. `false`: there is no memory to be
    /// had, which becomes [`MapError::OutOfTables`](crate::MapError::OutOfTables); a later call may try again.
    fn populate(&self, bytes: Range<usize>) -> bool;
}

/// Memory from the allocator, which backs it page by page as it is touched.
pub struct Heap {
    memory: Box<[AtomicU64]>,
    /// Where the first chunk begins, aligned so that a huge page can hold it.
    first: usize,
}

impl Heap {
    /// Room for `bytes`, or for the largest half, quarter, … of it that can be reserved.
    pub(super) fn new(mut bytes: usize) -> Self {
        loop {
            // What aligning takes away.
            let with_slack = bytes.saturating_add(CHUNK_BYTES) / ENTRY;
            if let Ok(memory) = <[AtomicU64]>::new_box_zeroed_with_elems(with_slack) {
                let first = memory.as_ptr().align_offset(CHUNK_BYTES).min(CHUNK_BYTES / ENTRY);
                return Self { memory, first };
            }
            if bytes == 0 {
                return Self { memory: Box::default(), first: 0 };
            }
            bytes /= 2;
        }
    }
}

impl TableMemory for Heap {
    #[inline]
    fn entries(&self) -> &[AtomicU64] {
        // Not `get` with a default, as that is longer, and walks do it. `first` is within.
        &self.memory[self.first..]
    }

    fn populate(&self, _bytes: Range<usize>) -> bool {
        true
    }
}
