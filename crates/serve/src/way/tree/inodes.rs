//! The inodes of device files.
//!
//! An inode is one open file, so that its number tells which. A name leads to one inode. When a thread opens the name
//! while that inode is open, the tree tells the kernel that the inode is stale (ESTALE), and the kernel looks the name
//! up once more. Then the thread gets an inode of its own, and from its open on the name leads there. So a look alone
//! changes nothing, and an open file keeps its name until another file is opened by the name.

use std::collections::HashMap;

use super::nodes::DeviceFile;

/// Threads of which it is remembered that they were told so. That many are not about to look a name up.
const MOST_TOLD: usize = 4096;

/// The inodes that the kernel knows.
#[derive(Default)]
pub(super) struct Inodes {
    known: HashMap<u64, Inode>,
    /// Where names lead to, by their nodes.
    current: HashMap<usize, Option<u64>>,
    /// Threads that were told that an inode is stale, and are about to look it up again, each with the inode that it
    /// gets: the kernel may look it up more than once.
    told: HashMap<u32, Option<u64>>,
}

struct Inode {
    device: DeviceFile,
    /// The node that its name leads to; none if it has no name.
    node: Option<usize>,
    /// How often it was looked up and not forgotten.
    lookups: u64,
}

impl Inodes {
    /// What an inode is.
    pub(super) fn get(&self, inode: u64) -> Option<DeviceFile> {
        self.known.get(&inode).map(|known| known.device)
    }

    /// The inode that a thread finds by the name of a node: `new`, unless there is one that it can have.
    pub(super) fn look_up(&mut self, node: usize, device: DeviceFile, tid: u32, new: impl FnOnce() -> u64) -> u64 {
        let mut none = None;
        let place = match self.told.get_mut(&tid) {
            // Threads of other namespaces have no number, and an inode each time.
            _ if tid == 0 => &mut none,
            // What a thread gets that was told, others do not find before it is open: the thread is not told again.
            Some(own) => own,
            None => self.current.entry(node).or_default(),
        };
        if let Some(inode) = *place
            && let Some(known) = self.known.get_mut(&inode)
            && known.node == Some(node)
        {
            known.lookups += 1;
            return inode;
        }
        let inode = new();
        *place = Some(inode);
        self.known.insert(inode, Inode { device, node: Some(node), lookups: 1 });
        inode
    }

    /// A thread has opened an inode, to which its name leads from now on; or could not, for another reason.
    pub(super) fn opened(&mut self, inode: Option<u64>, tid: u32) {
        self.told.remove(&tid);
        if let Some(inode) = inode
            && let Some(node) = self.known.get(&inode).and_then(|known| known.node)
        {
            self.current.insert(node, Some(inode));
        }
    }

    /// An open inode is closed. It is never opened again: others may remember what it was.
    pub(super) fn released(&mut self, inode: u64) {
        self.current.retain(|_, current| *current != Some(inode));
    }

    /// Adds an inode without a name, which is looked up once.
    pub(super) fn add(&mut self, inode: u64, device: DeviceFile) {
        self.known.insert(inode, Inode { device, node: None, lookups: 1 });
    }

    /// The kernel forgets so many look-ups of an inode.
    pub(super) fn forget(&mut self, inode: u64, lookups: u64) {
        let Some(known) = self.known.get_mut(&inode) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return;
        }
        self.known.remove(&inode);
    }

    /// A thread opens an inode that is open. Returns whether it is to look the name up again; if it comes here twice,
    /// it has not come by a name.
    pub(super) fn is_to_look_again(&mut self, tid: u32) -> bool {
        if self.told.remove(&tid).is_some() {
            return false;
        }
        if self.told.len() >= MOST_TOLD {
            self.told.clear();
        }
        self.told.insert(tid, None);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_one_inode_until_that_is_open_and_opened_again() {
        let (mut inodes, device) = (Inodes::default(), DeviceFile::Container);
        let look = |inodes: &mut Inodes, tid, new| inodes.look_up(3, device, tid, || new);
        assert_eq!([look(&mut inodes, 1, 10), look(&mut inodes, 2, 11)], [10, 10]);
        assert!(inodes.is_to_look_again(2));
        // Others find the same until then.
        assert_eq!([look(&mut inodes, 1, 12), look(&mut inodes, 2, 13), look(&mut inodes, 2, 14)], [10, 13, 13]);
        inodes.opened(Some(13), 2);
        assert_eq!([look(&mut inodes, 1, 14), look(&mut inodes, 2, 14)], [13, 13]);
        assert_eq!([look(&mut inodes, 0, 18), look(&mut inodes, 0, 19)], [18, 19], "threads without a number");
        assert_eq!(inodes.look_up(4, device, 1, || 15), 15, "another name");
        inodes.forget(10, 2);
        assert_eq!(inodes.get(10), Some(device));
        inodes.forget(10, 1);
        assert_eq!(inodes.get(10), None);
        assert_eq!(look(&mut inodes, 1, 16), 13);
        inodes.forget(13, 5);
        assert_eq!(look(&mut inodes, 1, 17), 17, "what is forgotten is found no more");
        inodes.opened(Some(17), 1);
        inodes.released(17);
        assert_eq!([look(&mut inodes, 1, 20), look(&mut inodes, 2, 21)], [20, 20], "what was open is opened no more");
    }

    #[test]
    fn who_comes_by_no_name_is_told_once() {
        let mut inodes = Inodes::default();
        assert_eq!([1, 1, 2, 1].map(|tid| inodes.is_to_look_again(tid)), [true, false, true, true]);
        inodes.add(7, DeviceFile::Given(1));
        inodes.forget(7, 1);
        inodes.forget(7, 1);
        assert_eq!(inodes.get(7), None);
    }
}
