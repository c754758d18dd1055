//! The files that a client's memory is in.
//!
//! A client passes a descriptor with each mapping, mostly of one file, and behind a virtual IOMMU it has thousands of
//! mappings. Those of one file share a descriptor, as a process has no thousands.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{OFlags, fcntl_getfl, fstat};

/// The device and inode number of a file, and how it is open.
type Key = (u64, u64, u32);

/// What is open of a client's, as far as mappings need it.
#[derive(Debug, Default)]
pub(crate) struct Files(Mutex<HashMap<Key, Weak<File>>>);

/// So many are looked through for such as nobody needs any more.
const MANY: usize = 64;

impl Files {
    /// The file, in a descriptor that there is already if there is one.
    pub(crate) fn share(&self, file: OwnedFd) -> std::io::Result<Arc<File>> {
        let (stat, flags) = (fstat(&file)?, fcntl_getfl(&file)?);
        let key = (stat.st_dev, stat.st_ino, flags.intersection(OFlags::ACCMODE | OFlags::PATH).bits());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = known.get(&key).and_then(Weak::upgrade) {
            return Ok(there);
        }
        if known.len() >= MANY {
            known.retain(|_, file| file.strong_count() > 0);
        }
        let file = Arc::new(File::from(file));
        known.insert(key, Arc::downgrade(&file));
        Ok(file)
    }
}
