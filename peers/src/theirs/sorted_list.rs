//! DPDK's IOTLB of a vhost device: the algorithm of `lib/vhost/iotlb.c`, written afresh, not its code.
//!
//! Entries are in a list, sorted by IOVA. Each look-up walks it from the head, until it has found all of the range that
//! was asked for or an entry lies beyond. Readers hold a reader-writer lock, not for each look-up but for a burst of
//! packets.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Look-ups for which the lock is taken once: the most packets that DPDK's vhost handles in a burst (`MAX_PKT_BURST`).
pub const BURST: usize = 32;

struct Node {
    iova: u64,
    target: u64,
    length: u64,
    writable: bool,
    next: Option<Box<Node>>,
}

/// The list and its lock.
#[derive(Default)]
pub struct SortedList {
    head: RwLock<Option<Box<Node>>>,
}

/// The list while it is locked for reading.
pub struct Reading<'a>(RwLockReadGuard<'a, Option<Box<Node>>>);

impl SortedList {
    /// A list of `mappings` of `length` bytes: IOVA and target, in rising order of IOVA.
    pub fn of(mappings: impl Iterator<Item = (u64, u64)>, length: u64) -> Self {
        let mut nodes: Vec<_> = mappings
            .map(|(iova, target)| Box::new(Node { iova, target, length, writable: true, next: None }))
            .collect();
        // The nodes were allocated in the order in which they will be walked, as a pool would give them.
        let mut head = None;
        while let Some(mut node) = nodes.pop() {
            node.next = head;
            head = Some(node);
        }
        Self { head: RwLock::new(head) }
    }

    /// Locks it.
    pub fn read(&self) -> Reading<'_> {
        Reading(self.head.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Reading<'_> {
    /// What `iova` translates to, if the `length` bytes there are mapped in one piece and may be accessed so.
    ///
    /// In two functions that are not inlined, as DPDK's are in two files and called from others (`__vhost_iova_to_vva`
    /// in `vhost.c`, `vhost_user_iotlb_cache_find` in `iotlb.c`), with the length handed to and fro.
    #[inline(never)]
    pub fn find(&self, iova: u64, length: u64, write: bool) -> Option<u64> {
        let mut covered = length;
        let found = self.find_in_list(iova, &mut covered, write);
        if covered == length { found } else { None }
    }

    /// Walks the list; `length` becomes what of it is mapped in one piece.
    #[inline(never)]
    fn find_in_list(&self, mut iova: u64, length: &mut u64, write: bool) -> Option<u64> {
        let (mut found, mut covered) = (None, 0);
        let mut next = self.0.as_deref();
        while let Some(node) = next {
            if iova < node.iova {
                break;
            }
            next = node.next.as_deref();
            let offset = iova - node.iova;
            if offset >= node.length {
                continue;
            }
            if write && !node.writable {
                found = None;
                break;
            }
            found.get_or_insert(node.target + offset);
            covered += node.length - offset;
            iova = node.iova + node.length;
            if covered >= *length {
                break;
            }
        }
        // Never more than was asked for.
        *length = covered.min(*length);
        found
    }
}

impl Drop for SortedList {
    fn drop(&mut self) {
        // One by one, as a list that drops itself node in node may be too deep for the stack.
        let mut next = self.head.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        while let Some(mut node) = next {
            next = node.next.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_where_it_is_mapped_and_nowhere_else() {
        let list = SortedList::of([(0x1000, 0x9000), (0x2000, 0xa000), (0x5000, 0x7000)].into_iter(), 0x1000);
        let list = list.read();
        assert_eq!(list.find(0x1008, 8, true), Some(0x9008));
        assert_eq!(list.find(0x5ff8, 8, false), Some(0x7ff8));
        assert_eq!(list.find(0x1ffc, 8, false), Some(0x9ffc), "it goes on in the next entry");
        assert_eq!(list.find(0x2ffc, 8, false), None, "it ends in a hole");
        assert_eq!(list.find(0x0, 8, false), None);
        assert_eq!(list.find(0x6000, 8, false), None);
    }
}
