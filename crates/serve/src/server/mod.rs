//! The machine that is served, and what all ways to it share.
//!
//! `files` has the open files; `ask`, questions to the tree from the process that serves it.

mod ask;
mod files;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ioasid::Machine;
use ioasid::memory::{Account, Process};
use rustix::event::epoll;
use rustix::io::Errno;

use crate::names::FIRST_DEVICE_INODE;
use crate::program::accounts::{Accounts, Whose};
use crate::program::enqcmd::Enqcmd;
use crate::program::processes::{Processes, Purpose};
use crate::request::Failures;
use crate::request::file::OpenFile;
use crate::request::given::GivenFile;
use crate::request::iommufd::IommuFile;
use crate::watch::{Options, PciDevice, Watcher};
pub(crate) use ask::Question;
use ask::{Asker, add_descriptor};
use files::{Files, local_identity};

/// One machine, served to the programs of one run.
pub struct Server {
    machine: Arc<Machine>,
    /// Whether Linux's own tests find what they need.
    selftest: bool,
    /// What may be pinned, in place of what each program may.
    memlock: Option<u64>,
    accounts: Accounts,
    processes: Processes,
    enqcmd: Enqcmd,
    failures: Failures,
    devices: Vec<Arc<PciDevice>>,
    watcher: Arc<dyn Watcher>,
    files: Arc<Files>,
    /// To the thread that closes files, from the first close on.
    closer: OnceLock<Mutex<Sender<Arc<dyn OpenFile>>>>,
    /// The device number of the tree's file system, once it is mounted.
    file_system: OnceLock<u64>,
    /// The root of the tree, from then on.
    root: OnceLock<OwnedFd>,
    /// Files that are about to be opened for a program, by their names.
    given: Mutex<HashMap<u64, Arc<dyn GivenFile>>>,
    next_inode: AtomicU64,
    /// From the first question to the tree on.
    asker: OnceLock<Asker>,
    /// The threads that answer system calls, and that which asks for them: the tree tells them another size of the
    /// device files than programs.
    listeners: Mutex<HashSet<u32>>,
}

impl Server {
    /// A server of these devices, on this machine.
    #[must_use]
    pub fn new(
        machine: Arc<Machine>,
        devices: Vec<PciDevice>,
        watcher: Arc<dyn Watcher>,
        options: Options,
    ) -> Arc<Self> {
        let accounts = Accounts::new(watcher.clone());
        Arc::new(Self {
            machine,
            selftest: options.selftest,
            memlock: options.memlock,
            accounts,
            processes: Processes::default(),
            enqcmd: Enqcmd::default(),
            failures: Failures::default(),
            devices: devices.into_iter().map(Arc::new).collect(),
            watcher,
            files: Arc::default(),
            closer: OnceLock::new(),
            file_system: OnceLock::new(),
            root: OnceLock::new(),
            given: Mutex::default(),
            next_inode: AtomicU64::new(FIRST_DEVICE_INODE),
            asker: OnceLock::new(),
            listeners: Mutex::default(),
        })
    }

    /// The machine's IOMMU.
    #[must_use]
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Whether programs can make mock devices.
    #[must_use]
    pub fn is_selftest(&self) -> bool {
        self.selftest
    }

    /// Failures that tests want.
    pub(crate) fn failures(&self) -> &Failures {
        &self.failures
    }

    /// The account of a user or process whose RLIMIT_MEMLOCK is `own`.
    pub(crate) fn account(&self, whose: Whose, own: u64) -> Arc<dyn Account> {
        self.accounts.of(whose, self.memlock.unwrap_or(own))
    }

    /// The address space that a thread has now.
    ///
    /// # Errors
    /// As [`Process::open`].
    pub(crate) fn process(&self, tid: u32, purpose: Purpose) -> io::Result<Arc<Process>> {
        self.processes.open(tid, purpose)
    }

    /// Everybody's accounts.
    pub(crate) fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// A new open file of `/dev/iommu`.
    pub(crate) fn open_iommu(&self) -> Arc<dyn OpenFile> {
        Arc::new(IommuFile::new(&self.machine, self.selftest))
    }

    /// The devices: number N is `/dev/vfio/devices/vfioN`.
    #[must_use]
    pub fn devices(&self) -> &[Arc<PciDevice>] {
        &self.devices
    }

    /// Tells that the tree is mounted, and gives its root. Only the first call counts.
    ///
    /// # Errors
    /// Of `statx`.
    pub fn mounted(&self, root: OwnedFd) -> io::Result<()> {
        let (device, _) = local_identity(&root)?;
        let _ = self.file_system.set(device);
        let _ = self.root.set(root);
        Ok(())
    }

    /// Notes that the calling thread answers system calls.
    pub(crate) fn add_listener(&self) {
        self.add_listening(rustix::thread::gettid().as_raw_nonzero().get() as u32);
    }

    fn add_listening(&self, tid: u32) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).insert(tid);
    }

    /// Asks the tree about one of its files, as a listener.
    pub(crate) fn ask(&self, file: impl AsFd, question: Question) {
        // Whatever the answer, the kernel has it.
        let _ = self.asker().ask(file, question);
    }

    fn asker(&self) -> &Asker {
        self.asker.get_or_init(|| {
            let (asker, thread) = Asker::start();
            thread.into_iter().for_each(|tid| self.add_listening(tid));
            asker
        })
    }

    /// Sets a descriptor of the thread aside whose system call has this `id` on `listener`, and returns its number.
    /// What is there until a file is given can do nothing.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub(crate) fn reserve_descriptor(&self, listener: &OwnedFd, id: u64) -> Result<i32, Errno> {
        // A set of nothing to wait for: it cannot be read or written.
        let nothing = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        add_descriptor(listener, id, &nothing, None)
    }

    /// Puts `file` in place of the descriptor `number`, which was set aside.
    ///
    /// # Errors
    /// Of opening a file in the tree, and of giving it.
    pub(crate) fn give(
        &self,
        file: Arc<dyn GivenFile>,
        listener: impl AsFd,
        id: u64,
        number: i32,
    ) -> Result<(), Errno> {
        let root = self.root.get().ok_or(Errno::NODEV)?;
        let name = self.new_inode();
        let given = || self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given().insert(name, file);
        let listener = listener.as_fd().as_raw_fd();
        let answer = self.asker().ask(root, Question::Give { name, listener, id, number });
        // If it was not opened.
        given().remove(&name);
        answer
    }

    /// Takes the file that is to be opened by this name.
    pub(crate) fn take_given(&self, name: u64) -> Option<Arc<dyn GivenFile>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).remove(&name)
    }

    /// Whether this thread, known by its number, answers system calls.
    pub(crate) fn is_listener(&self, tid: u32) -> bool {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).contains(&tid)
    }

    pub(crate) fn new_inode(&self) -> u64 {
        self.next_inode.fetch_add(1, Ordering::Relaxed)
    }

    /// What ENQCMD of each process puts on the bus.
    pub(crate) fn enqcmd(&self) -> &Enqcmd {
        &self.enqcmd
    }
}
