//! The open files of a server: which inode is which, and how they are closed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use ioasid::memory::{Mapped, Process};
use ioasid_vfio::BarMemory;
use rustix::fs::{AtFlags, StatxFlags};

use super::Server;
use crate::program::processes::Purpose;
use crate::request::file::{Closer, OpenFile};

/// The open files.
#[derive(Default)]
pub(super) struct Files {
    state: Mutex<FilesState>,
    /// A file is closed to the end.
    closed: Condvar,
}

#[derive(Default)]
struct FilesState {
    /// By inode number: every look-up of a device file gives a new one, so that an inode is one open file.
    open: HashMap<u64, Opened>,
    /// How many are being closed.
    closing: usize,
}

/// An open file, and who has made requests on it: each thread, with the address space of its process.
struct Opened {
    file: Arc<dyn OpenFile>,
    users: Vec<(u32, Arc<Process>)>,
    /// As what the last descriptor so far was closed.
    closed_by: Closer,
}

/// Who closes a descriptor that these have used: an end, or an exec, takes the address space away before it closes.
fn closer(users: &[(u32, Arc<Process>)]) -> Closer {
    if users.iter().any(|(_, process)| process.is_current()) { Closer::Program } else { Closer::End }
}

/// The most threads of which it is remembered. That many processes do not share a file.
const MOST_USERS: usize = 64;

impl Files {
    fn lock(&self) -> std::sync::MutexGuard<'_, FilesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device and inode numbers of a file. Asks no file system, least of all the tree, for whose answer this process
/// would wait when it is killed and gives none any more.
pub(super) fn local_identity(file: impl AsFd) -> io::Result<(u64, u64)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(file, c"", flags, StatxFlags::INO)?;
    Ok((libc::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
}

/// Counts a file as being closed, until it is closed to the end.
struct Closing(Arc<Files>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.lock().closing -= 1;
        self.0.closed.notify_all();
    }
}

impl Server {
    /// Number of device files that are open in some program, or not closed to the end yet.
    #[must_use]
    pub fn open_files(&self) -> usize {
        let files = self.files.lock();
        files.open.len() + files.closing
    }

    /// Whether some program has a device file open. What is not closed to the end yet is nobody's any more.
    #[must_use]
    pub fn has_open_files(&self) -> bool {
        !self.files.lock().open.is_empty()
    }

    /// Notes that an inode was opened.
    ///
    /// # Errors
    /// The file, if the inode is open already.
    pub(crate) fn opened(&self, inode: u64, file: Arc<dyn OpenFile>) -> Result<(), Arc<dyn OpenFile>> {
        match self.files.lock().open.entry(inode) {
            Entry::Occupied(_) => Err(file),
            Entry::Vacant(place) => {
                place.insert(Opened { file, users: Vec::new(), closed_by: Closer::End });
                Ok(())
            }
        }
    }

    /// Notes that a thread makes a request on an open file.
    pub(crate) fn used(&self, inode: u64, tid: u32) {
        let knows = |opened: &Opened| opened.users.len() >= MOST_USERS || opened.users.iter().any(|user| user.0 == tid);
        if self.files.lock().open.get(&inode).is_none_or(knows) {
            return;
        }
        let Ok(process) = self.process(tid, Purpose::Mapping) else { return };
        let mut files = self.files.lock();
        if let Some(opened) = files.open.get_mut(&inode).filter(|opened| !knows(opened)) {
            opened.users.push((tid, process));
        } else {
            drop(files);
        }
    }

    /// A descriptor of an open file is being closed, by a thread that waits for this. The news that it was the last
    /// comes when the program may have ended since. Waits for the program's memory.
    pub(crate) fn flushed(&self, inode: u64) {
        let Some(users) = self.files.lock().open.get(&inode).map(|opened| opened.users.clone()) else { return };
        let by = closer(&users);
        if let Some(opened) = self.files.lock().open.get_mut(&inode) {
            opened.closed_by = by;
        }
    }

    /// The last descriptor and mapping of an open file are gone. Waits for nothing.
    pub(crate) fn released(&self, inode: u64) {
        self.close(inode, false);
    }

    /// Closes a file; with `by_us`, one that no program has closed.
    fn close(&self, inode: u64, by_us: bool) {
        let mut files = self.files.lock();
        let Some(Opened { file, users, closed_by }) = files.open.remove(&inode) else { return };
        files.closing += 1;
        drop(files);
        let (closing, watcher, enqcmd) = (Closing(self.files.clone()), self.watcher.clone(), self.enqcmd.clone());
        // Closing a device waits for its DMA, which may wait for the program's memory, which may wait for an answer of
        // the tree.
        self.elsewhere(move || {
            let _closing = closing;
            enqcmd.forget_ended();
            file.close(if by_us { Closer::End } else { closed_by }, &*watcher);
            // What it keeps is let go before anybody is told.
            drop((file, users));
        });
    }

    /// Uses an open file, and lets go of nothing of it here: its last owner lets go of it elsewhere.
    pub(crate) fn with_file<T>(&self, inode: u64, use_it: impl FnOnce(&Arc<dyn OpenFile>) -> T) -> Option<T> {
        let file = self.open_inode(inode)?;
        let result = use_it(&file);
        let files = self.files.lock();
        if files.open.contains_key(&inode) {
            // Not the last.
            drop(file);
        } else {
            drop(files);
            self.elsewhere(move || drop(file));
        }
        Some(result)
    }

    /// Waits until every file that was released before is closed to the end, or for `longest`.
    pub(crate) fn drain(&self, longest: Duration) {
        let files = self.files.lock();
        let _ = self.files.closed.wait_timeout_while(files, longest, |files| files.closing > 0);
    }

    /// The device number of the tree's file system; 0 before it is mounted.
    pub(crate) fn file_system(&self) -> u64 {
        self.file_system.get().copied().unwrap_or(0)
    }

    /// Whether a file with this device number belongs to the tree.
    #[must_use]
    pub fn is_device_file(&self, device_number: u64) -> bool {
        self.file_system.get() == Some(&device_number)
    }

    /// The memory of a BAR that a file with these numbers is.
    pub(crate) fn bar_memory(&self, device_number: u64, inode: u64) -> Option<&Arc<BarMemory>> {
        let mut all = self.devices.iter().flat_map(|device| device.vfio.function().memory());
        all.find(|pages| pages.memory.identity() == (device_number, inode)).map(|pages| &pages.memory)
    }

    /// What a mapping at `offset` of a file with these numbers is to devices; with `peers`, also if it is another
    /// device. Memory of a BAR that a program has in place of registers is memory, as each use of a device has its own,
    /// or what outlasts it.
    pub(crate) fn mapped(&self, device_number: u64, inode: u64, offset: u64, peers: bool) -> Mapped {
        let peer = || self.open_file(device_number, inode)?.peer();
        if !self.is_device_file(device_number) {
            let of_bar = self.bar_memory(device_number, inode).is_some();
            return if of_bar && !peers { Mapped::Nothing } else { Mapped::Memory };
        }
        let found = if peers { peer() } else { None };
        found.map_or(Mapped::Nothing, |memory| Mapped::Remote(memory, offset))
    }

    /// Whether `(device number, inode)` is of the tree's device files, and if so, which open file it is.
    #[must_use]
    pub fn open_file(&self, device_number: u64, inode: u64) -> Option<Arc<dyn OpenFile>> {
        self.is_device_file(device_number).then(|| self.open_inode(inode))?
    }

    /// Which open file an inode of the tree is.
    pub(crate) fn open_inode(&self, inode: u64) -> Option<Arc<dyn OpenFile>> {
        self.files.lock().open.get(&inode).map(|opened| opened.file.clone())
    }

    /// Closes every file that is still open, as when the programs that hold them lose their devices. Waits half a
    /// second at most: memory that never answers may keep a device from closing.
    pub fn close_all(&self) {
        let inodes: Vec<u64> = self.files.lock().open.keys().copied().collect();
        inodes.into_iter().for_each(|inode| self.close(inode, true));
        self.drain(Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use ioasid::{Machine, Silent};

    use super::*;
    use crate::request::file::Given;
    use crate::request::given::GivenFile;
    use crate::watch::{Options, Watcher};

    struct Nothing;

    /// Is closed when the test says so.
    struct Waiting(Mutex<std::sync::mpsc::Receiver<()>>);

    impl OpenFile for Waiting {
        fn close(&self, _by: Closer, _watcher: &dyn Watcher) {
            let _ = self.0.lock().unwrap().recv();
        }
    }

    #[test]
    fn a_close_that_waits_holds_up_no_other() {
        let server = Server::new(Machine::new(Arc::new(Silent)), vec![], Arc::new(Nothing), Options::default());
        server.start_workers().unwrap();
        let (end, ended) = std::sync::mpsc::channel();
        assert!(server.opened(1, Arc::new(Waiting(Mutex::new(ended)))).is_ok());
        assert!(server.opened(2, Arc::new(Given(Arc::new(Slow(Arc::default()))))).is_ok());
        server.released(1);
        server.released(2);
        while server.open_files() > 1 {
            std::thread::yield_now();
        }
        drop(end);
        server.drain(Duration::from_secs(60));
        assert_eq!(server.open_files(), 0);
    }

    impl Watcher for Nothing {}

    /// Takes its time to let go of what it keeps.
    struct Slow(Arc<AtomicBool>);

    impl GivenFile for Slow {}

    impl Drop for Slow {
        fn drop(&mut self) {
            std::thread::sleep(Duration::from_millis(50));
            self.0.store(true, Ordering::Release);
        }
    }

    #[test]
    fn a_file_is_closed_when_what_it_keeps_is_let_go() {
        let server = Server::new(Machine::new(Arc::new(Silent)), vec![], Arc::new(Nothing), Options::default());
        server.start_workers().unwrap();
        let gone = Arc::new(AtomicBool::new(false));
        let file = || Arc::new(Given(Arc::new(Slow(gone.clone()))));
        assert!(server.opened(7, file()).is_ok());
        assert!(server.opened(7, file()).is_err(), "an inode is one open file");
        gone.store(false, Ordering::Release);
        server.released(7);
        assert_eq!(server.open_files(), 1);
        server.drain(Duration::from_secs(60));
        assert!(gone.load(Ordering::Acquire));
        assert_eq!(server.open_files(), 0);
    }
}
