//! Names and numbers that the tree and the server agree on.

/// The directory of the tree in which files are found that are about to be given.
pub(crate) const GIVEN: &str = "given";

/// Device files have inode numbers from here on; what is fixed in the tree has smaller ones.
pub(crate) const FIRST_DEVICE_INODE: u64 = 1 << 32;
