//! Which processes have files of the tree.
//!
//! The kernel tells of the last close of a file. But an address space that no process is in any more may have the file
//! mapped, and the runner keeps that address space as long as a device waits for memory of it. So that a run can end
//! then, the runner looks at the processes.

use std::fs;
use std::path::Path;

use ioasid::memory::VmaQuery;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::Server;

impl Server {
    /// Whether some process, other than this one, has a file of the tree open or mapped. Takes a look at every process.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let Ok(processes) = fs::read_dir("/proc") else { return true };
        let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        numbers.filter(|pid| *pid != std::process::id()).any(|pid| self.has_open(pid) || self.has_mapped(pid))
    }

    fn has_open(&self, pid: u32) -> bool {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        descriptors.filter_map(Result::ok).any(|descriptor| self.is_ours(&descriptor.path()))
    }

    /// Asks no file system: it might be one that does not answer.
    fn is_ours(&self, path: &Path) -> bool {
        let stat = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO);
        stat.is_ok_and(|stat| self.is_device_file(libc::makedev(stat.stx_dev_major, stat.stx_dev_minor)))
    }

    /// Whether the process of a thread has a device file open.
    pub(super) fn has_device(&self, tid: u32) -> bool {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{tid}/fd")) else { return false };
        let is_device = |path: &Path| {
            let stat = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO);
            stat.is_ok_and(|stat| {
                let number = libc::makedev(stat.stx_dev_major, stat.stx_dev_minor);
                self.open_file(number, stat.stx_ino).is_some()
            })
        };
        descriptors.filter_map(Result::ok).any(|descriptor| is_device(&descriptor.path()))
    }

    fn has_mapped(&self, pid: u32) -> bool {
        let Ok(mappings) = VmaQuery::new(pid) else { return false };
        let mut next = 0;
        while let Ok(Some(vma)) = mappings.at_or_after(next) {
            if self.is_device_file(vma.dev) {
                return true;
            }
            next = vma.end;
        }
        false
    }
}
