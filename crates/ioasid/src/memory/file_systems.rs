//! Which files of a process lie in memory only, so that devices may write them and this process may map them.
//!
//! Linux pins no page for writing that a file system may have to write back, as it would not learn of the write; and a
//! file system that some program serves might not answer this process. Neither is asked: the device number of a mapping
//! tells its file system.

use std::collections::BTreeMap;
use std::fs;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, fstat, memfd_create};

use crate::base::lock::Mutex;
use crate::base::rank;

/// The file systems that a process has met: whether the one with a device number lies in memory.
#[derive(Default)]
pub(super) struct FileSystems(Mutex<BTreeMap<u64, bool>, rank::Files>);

impl FileSystems {
    /// Whether files on the file system `device` lie in memory, as far as a process with the thread `tid` can tell.
    pub(super) fn is_in_memory(&self, device: u64, tid: u32) -> bool {
        if internal().contains(&device) {
            return true;
        }
        if let Some(&known) = self.0.lock().get(&device) {
            return known;
        }
        let mounts = fs::read_to_string(format!("/proc/{tid}/mountinfo")).unwrap_or_default();
        let found = mounts
            .lines()
            .filter_map(parse_line)
            .any(|(mounted, kind)| mounted == device && ["tmpfs", "devtmpfs", "hugetlbfs", "ramfs"].contains(&kind));
        self.0.lock().insert(device, found);
        found
    }
}

/// The file systems without a place that shared memory and memfds are in: one for small pages, and one for each size of
/// large ones.
fn internal() -> &'static [u64] {
    static DEVICES: OnceLock<Vec<u64>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let kinds = [
            MemfdFlags::CLOEXEC,
            MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        ];
        let device = |flags| Some(fstat(memfd_create(c"ioasid", flags).ok()?).ok()?.st_dev);
        kinds.into_iter().filter_map(device).collect()
    })
}

/// `36 35 0:28 / /dev/shm rw,nosuid shared:5 - tmpfs none rw`: the device number, and the kind (proc_pid_mountinfo(5)).
fn parse_line(line: &str) -> Option<(u64, &str)> {
    let (place, system) = line.split_once(" - ")?;
    let (major, minor) = place.split_ascii_whitespace().nth(2)?.split_once(':')?;
    let device = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
    Some((device, system.split_ascii_whitespace().next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_from_what_is_elsewhere() {
        let (systems, own) = (FileSystems::default(), std::process::id());
        let memfd = fstat(memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap()).unwrap().st_dev;
        let of = |path: &str| rustix::fs::stat(path).unwrap().st_dev;
        assert!(systems.is_in_memory(memfd, own));
        assert!(!systems.is_in_memory(of("/proc"), own) && !systems.is_in_memory(of("/proc"), own));
        assert!(!systems.is_in_memory(0, own));
    }

    #[test]
    fn lines_say_device_and_kind() {
        let line = "36 35 0:28 / /dev/shm rw,nosuid shared:5 - tmpfs none rw";
        assert_eq!(parse_line(line), Some((libc::makedev(0, 28), "tmpfs")));
        assert_eq!(parse_line("28 1 254:1 / / rw - ext4 /dev/vda1 rw"), Some((libc::makedev(254, 1), "ext4")));
        assert_eq!(parse_line("36 35 0:28"), None);
    }
}
