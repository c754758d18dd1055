//! Which memory it is, by whatever way it is reached: for a caller that wants to know whether two are the same.

use std::collections::BTreeSet;
use std::fmt;

use super::segment::Backing;
use super::vma::VmaQuery;

/// A byte of memory. Two are equal exactly if writing one changes the other, as long as both exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// A byte of a file, or of shared memory, which is a file without a name.
    File {
        /// Device number of the file system, as in `stat`.
        device: u64,
        /// Inode number.
        inode: u64,
        /// Offset of the byte.
        offset: u64,
    },
    /// A byte that only one process has.
    Private {
        /// Number of the process.
        process: u32,
        /// Its address there.
        address: u64,
    },
}

impl Identity {
    /// The byte that is `more` bytes further on in the same mapping.
    #[must_use]
    pub fn plus(self, more: u64) -> Self {
        match self {
            Self::File { device, inode, offset } => Self::File { device, inode, offset: offset.wrapping_add(more) },
            Self::Private { process, address } => Self::Private { process, address: address.wrapping_add(more) },
        }
    }

    /// How far this byte is from `start`, if it is one of the same file or process, and not before it.
    pub(crate) fn distance(self, start: Self) -> Option<u64> {
        match (self, start) {
            (Self::File { device, inode, offset }, Self::File { device: d, inode: i, offset: start })
                if (device, inode) == (d, i) =>
            {
                offset.checked_sub(start)
            }
            (Self::Private { process, address }, Self::Private { process: p, address: start }) if process == p => {
                address.checked_sub(start)
            }
            _ => None,
        }
    }

    /// What a process has at `address`. `None` if nothing is there.
    pub(super) fn in_process(process: u32, vmas: &VmaQuery, address: u64) -> Option<Self> {
        let vma = vmas.at(address).ok()??;
        if vma.shared && vma.inode != 0 {
            let offset = vma.offset + (address - vma.start);
            return Some(Self::File { device: vma.dev, inode: vma.inode, offset });
        }
        Some(Self::Private { process, address })
    }

    /// The first byte of what a window is.
    pub(super) fn of(backing: &Backing) -> Option<Self> {
        match backing {
            Backing::Local { start, .. } => {
                let own = std::process::id();
                Self::in_process(own, &VmaQuery::new(own).ok()?, start.addr().get() as u64)
            }
            Backing::Remote { memory, address } => memory.identity(*address),
        }
    }
}

/// Everything that is pinned at one moment.
pub struct Pinned {
    /// The owner of each piece, its first byte and its length.
    pub(super) pieces: Vec<(usize, Identity, u64)>,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("pieces", &self.pieces.len()).finish_non_exhaustive()
    }
}

impl Pinned {
    /// How often a byte is pinned: once by all users of the same pages together.
    #[must_use]
    pub fn count(&self, byte: Identity) -> usize {
        let owner = |&(owner, start, length): &(usize, Identity, u64)| {
            byte.distance(start).filter(|&at| at < length).map(|_| owner)
        };
        self.pieces.iter().filter_map(owner).collect::<BTreeSet<_>>().len()
    }
}
