//! The files that a back end was passed, and by which addresses translations refer to their bytes.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::fstat;
use rustix::io::Errno;
use thiserror::Error;

use super::{FrontEnd, Memory};
use crate::vhost_user::requests::RequestError;
use crate::vhost_user::wire::MAX_REGIONS;

/// Which file it is: its device, and its number there.
pub(super) type FileId = (u64, u64);

/// A file that memory is in.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) id: FileId,
    pub(super) file: Arc<File>,
}

impl Source {
    pub(super) fn of(file: &Arc<File>) -> Result<Self, Errno> {
        let stat = fstat(file)?;
        Ok(Self { id: (stat.st_dev, stat.st_ino), file: file.clone() })
    }
}

/// Why a back end does not have some memory.
#[derive(Debug, Error)]
pub(super) enum PassError {
    #[error("memory is in more than {MAX_REGIONS} files")]
    Full,
    #[error("the file cannot be passed: {0}")]
    File(std::io::Error),
    #[error("the file has been cut short")]
    Short,
    #[error(transparent)]
    Request(#[from] RequestError),
}

#[derive(Clone, Debug)]
struct Region {
    id: FileId,
    memory: Memory,
    /// The back end can write it.
    writes: bool,
}

/// What a back end was passed. It has whole files: with a part of one it could reach the rest.
#[derive(Debug)]
pub(super) struct Regions {
    list: Vec<Region>,
    /// The next address that translations can refer to.
    next: u64,
}

/// What is between files, and what their addresses are multiples of.
const APART: u64 = 1 << 30;

/// The most bytes of a file that are passed beyond those that the back end asks for.
const LONGEST: u64 = 1 << 40;

impl Default for Regions {
    fn default() -> Self {
        Self { list: Vec::new(), next: Memory::USER }
    }
}

impl Regions {
    /// By which address bytes of a file are known to the back end, which is passed it if it does not have it. It is
    /// passed one that can be written if it `writes`, or `may_be_written` in another part. Files that are not `in_use`
    /// make room.
    pub(super) fn address(
        &mut self,
        link: &FrontEnd,
        source: &Source,
        bytes: Range<u64>,
        writes: bool,
        may_be_written: impl FnOnce() -> bool,
        in_use: impl Fn(FileId) -> bool,
    ) -> Result<u64, PassError> {
        let Range { start: offset, end } = bytes;
        let known = self.list.iter().find(|region| region.id == source.id);
        if let Some(region) = known.filter(|region| end <= region.memory.size && (region.writes || !writes)) {
            return Ok(region.memory.user + offset);
        }
        let writes = writes || may_be_written();
        let size = fstat(&source.file).map_err(|error| PassError::File(error.into()))?.st_size as u64;
        if size < end {
            return Err(PassError::Short);
        }
        let file = match writes {
            true => source.file.try_clone(),
            // Who may only read is passed what can only be read.
            false => File::open(format!("/proc/self/fd/{}", source.file.as_raw_fd())),
        };
        let file = Arc::new(OwnedFd::from(file.map_err(PassError::File)?));
        let mut list: Vec<Region> = self.list.iter().filter(|region| region.id != source.id).cloned().collect();
        while list.len() >= MAX_REGIONS {
            let spare = list.iter().position(|region| !in_use(region.id)).ok_or(PassError::Full)?;
            list.remove(spare);
        }
        let (user, size) = (self.next, size.min(LONGEST).max(end));
        let next = size.checked_add(APART).and_then(|size| user.checked_add(size)).ok_or(PassError::Full)?;
        // Addresses of the guest's mean nothing where all are translated; no two regions have the same.
        let memory = Memory { guest: user, size, user, file, offset: 0 };
        list.push(Region { id: source.id, memory, writes });
        let all = |list: &[Region]| list.iter().map(|region| region.memory.clone()).collect::<Vec<_>>();
        if let Err(error) = link.set_memory(&all(&list)) {
            // It has nothing of what it has refused, and has to have what it had.
            link.set_memory(&all(&self.list))?;
            return Err(error.into());
        }
        (self.list, self.next) = (list, next & !(APART - 1));
        Ok(user + offset)
    }
}
