//! What the descriptors of a thread are, told without duplicates of them: when one was closed the kernel would tell of
//! a close.
//!
//! Every request begins with such a question. So the directory of a thread's descriptors stays open, which saves the
//! way there; and what a descriptor can do is asked once for each file that it is.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statat, statx};
use rustix::io::Errno;

/// The most threads, and descriptors of each, that are remembered.
const MOST: usize = 64;

/// The descriptor tables of threads, by thread number.
#[derive(Default)]
pub(super) struct DescriptorTables(Mutex<HashMap<u32, Arc<Table>>>);

impl DescriptorTables {
    /// Descriptor `number` of a thread. `None` if it has none. Asks no file system for anything. The answer is about
    /// the thread that had the number when this was called only if that is still there.
    pub(super) fn look_at(&self, tid: u32, number: u32) -> Option<Descriptor> {
        let name = number.to_string();
        let known = self.lock().get(&tid).cloned();
        // What was opened of a thread that has ended has no descriptors.
        let (table, (device, inode)) = match known.and_then(|table| Some((table.clone(), table.identity(&name).ok()?)))
        {
            Some(found) => found,
            None => {
                let table = Arc::new(Table::open(tid).ok()?);
                let identity = table.identity(&name).ok()?;
                let mut tables = self.lock();
                if tables.len() >= MOST {
                    tables.clear();
                }
                tables.insert(tid, table.clone());
                (table, identity)
            }
        };
        let mode = table.mode(Seen { number, device, inode }, &name)?;
        Some(Descriptor { table, name, device, inode, mode })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Table>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A descriptor, as the file that it was once.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    number: u32,
    device: u64,
    inode: u64,
}

/// The table of a thread.
struct Table {
    /// Of the links to its files, in /proc.
    directory: OwnedFd,
    modes: Mutex<Vec<(Seen, Mode)>>,
}

impl Table {
    fn open(tid: u32) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, format!("/proc/{tid}/fd"), flags, Mode::empty())?;
        Ok(Self { directory, modes: Mutex::default() })
    }

    /// Device and inode number of the file that a descriptor is.
    fn identity(&self, name: &str) -> Result<(u64, u64), Errno> {
        let stat = statx(&self.directory, name, AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
        Ok((libc::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
    }

    /// What a descriptor can do. The link to a file can be read and written as the descriptor can; one that can do
    /// neither only names the file.
    ///
    /// A file of the tree is opened once, so another descriptor of it can do the same or nothing. What can do nothing
    /// is asked about each time: one that can may come in its place, under the same number. A thread that does the
    /// opposite keeps what it had.
    fn mode(&self, seen: Seen, name: &str) -> Option<Mode> {
        let modes = || self.modes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, mode)) = modes().iter().find(|(known, _)| *known == seen) {
            return Some(*mode);
        }
        let mode = Mode::from_raw_mode(statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?.st_mode);
        let mut modes = modes();
        modes.retain(|(known, _)| known.number != seen.number);
        if modes.len() < MOST && mode.intersects(Mode::RUSR | Mode::WUSR) {
            modes.push((seen, mode));
        }
        Some(mode)
    }
}

/// What one of a thread's descriptors is.
pub(super) struct Descriptor {
    table: Arc<Table>,
    /// Of the link.
    name: String,
    /// Device and inode number of the file.
    pub(super) device: u64,
    pub(super) inode: u64,
    mode: Mode,
}

impl Descriptor {
    /// Whether it can be read.
    pub(super) fn readable(&self) -> bool {
        self.mode.contains(Mode::RUSR)
    }

    /// Whether it can be written.
    pub(super) fn writable(&self) -> bool {
        self.mode.contains(Mode::WUSR)
    }

    /// Asks the file's file system for its attributes, and so learns that they are news.
    pub(super) fn ask_attributes(&self) {
        let _ = statat(&self.table.directory, &self.name, AtFlags::empty());
    }

    /// Asks the file's file system; with the answer, all news of before has arrived.
    pub(super) fn ask_system(&self) {
        // There is no statfs(2) below a directory.
        let file = openat(&self.table.directory, &self.name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let _ = file.map(rustix::fs::fstatfs);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_number_is_looked_at_anew_each_time() {
        let tables = DescriptorTables::default();
        let own = std::process::id();
        let first = File::open("/").unwrap();
        let number = first.as_raw_fd() as u32;
        let before = tables.look_at(own, number).unwrap();
        assert!(before.readable() && !before.writable());
        let other = File::options().write(true).open("/dev/null").unwrap();
        rustix::io::dup2(&other, &mut std::mem::ManuallyDrop::new(OwnedFd::from(first))).unwrap();
        let after = tables.look_at(own, number).unwrap();
        assert!(after.inode != before.inode && !after.readable() && after.writable());
        assert!(tables.look_at(own, u32::MAX).is_none());
    }

    #[test]
    fn a_descriptor_that_can_do_something_comes_in_the_place_of_one_that_cannot() {
        let tables = DescriptorTables::default();
        let own = std::process::id();
        let file = File::open("/").unwrap();
        let only_names = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let number = only_names.as_raw_fd() as u32;
        assert!(!tables.look_at(own, number).unwrap().readable());
        rustix::io::dup2(&file, &mut std::mem::ManuallyDrop::new(only_names)).unwrap();
        assert!(tables.look_at(own, number).unwrap().readable());
    }

    #[test]
    fn a_thread_that_has_ended_has_none() {
        let tables = DescriptorTables::default();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        assert!(tables.look_at(child.id(), 0).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(tables.look_at(child.id(), 0).is_none());
    }

    #[test]
    fn few_threads_are_remembered() {
        let tables = DescriptorTables::default();
        let mut children: Vec<_> =
            (0..2 * MOST).map(|_| std::process::Command::new("sleep").arg("100").spawn().unwrap()).collect();
        for child in &children {
            assert!(tables.look_at(child.id(), 0).is_some());
        }
        assert!(tables.lock().len() <= MOST);
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
