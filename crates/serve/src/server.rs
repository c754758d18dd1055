//! The machine that is served, and its open files.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ioasid::memory::{Account, OverLimit, Process};
use ioasid::{Endpoint, Machine, Rid};
use ioasid_vfio::{Unconsumed, VfioDevice};
use rustix::event::epoll;
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use crate::accounts::{Accounts, Whose};
use crate::ask::{Asker, Question, add_descriptor};
use crate::enqcmd::Enqcmd;
use crate::failures::Failures;
use crate::processes::{Processes, Purpose};
use crate::request::given::GivenFile;
use crate::request::iommufd::IommuFile;
use crate::request::vfio::VfioFile;

/// A PCI device that programs find.
pub struct PciDevice {
    /// Where it is on the bus.
    pub rid: Rid,
    /// As the IOMMU sees it.
    pub endpoint: Arc<Endpoint>,
    /// As VFIO offers it.
    pub vfio: Arc<VfioDevice>,
}

/// Is told what only the server can see.
pub trait Watcher: Send + Sync {
    /// A device was closed, or gave up an eventfd, with interrupts that nobody had read.
    fn interrupts_unread(&self, _rid: Rid, _unread: &[Unconsumed]) {}

    /// A program wanted to pin more memory than its user, or itself, may.
    fn memory_refused(&self, _error: OverLimit) {}
}

/// How programs are served, beside what with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// They can make mock devices, as on a kernel that is built for its own tests.
    pub selftest: bool,
    /// Bytes that each user, or process, may pin, in place of its RLIMIT_MEMLOCK.
    pub memlock: Option<u64>,
}

/// What an open file of the tree stands for.
#[derive(Clone)]
pub enum OpenFile {
    /// `/dev/iommu`
    Iommu(Arc<IommuFile>),
    /// `/dev/vfio/devices/vfioN`
    Vfio(Arc<VfioFile>),
    /// What a request gave a descriptor of.
    Given(Arc<dyn GivenFile>),
}

impl OpenFile {
    /// One load from what is mapped of it, at a file offset.
    ///
    /// # Errors
    /// `EIO` and the like, if nothing is there.
    pub(crate) fn load(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match self {
            Self::Iommu(file) => file.load(offset, data),
            Self::Vfio(file) => file.load(offset, data),
            Self::Given(_) => Err(Errno::IO),
        }
    }

    /// One store to what is mapped of it, at a file offset.
    ///
    /// # Errors
    /// As [`OpenFile::load`].
    pub(crate) fn store(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Iommu(file) => file.store(offset, data),
            Self::Vfio(file) => file.store(offset, data),
            Self::Given(_) => Err(Errno::IO),
        }
    }

    /// One deferrable write to what is mapped of it, at a file offset: whether it was accepted, or `None` where nothing
    /// takes such writes.
    ///
    /// # Errors
    /// As [`OpenFile::load`].
    pub(crate) fn enqueue(&self, offset: u64, command: &[u8; 64]) -> Result<Option<bool>, Errno> {
        match self {
            Self::Vfio(file) => file.enqueue(offset, command),
            Self::Iommu(_) | Self::Given(_) => Ok(None),
        }
    }

    fn close(self, watcher: &dyn Watcher) {
        if let Self::Vfio(file) = &self {
            file.close(watcher);
        }
    }
}

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
    closer: OnceLock<Mutex<Sender<OpenFile>>>,
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

/// The open files.
#[derive(Default)]
struct Files {
    state: Mutex<FilesState>,
    /// A file is closed to the end.
    closed: Condvar,
}

#[derive(Default)]
struct FilesState {
    /// By inode number: every look-up of a device file gives a new one, so that an inode is one open file.
    open: HashMap<u64, OpenFile>,
    /// How many are being closed.
    closing: usize,
}

impl Files {
    fn lock(&self) -> std::sync::MutexGuard<'_, FilesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device and inode numbers of a file. Asks no file system, least of all the tree, for whose answer this process
/// would wait when it is killed and gives none any more.
fn local_identity(file: impl AsFd) -> io::Result<(u64, u64)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(file, c"", flags, StatxFlags::INO)?;
    Ok((libc::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
}

/// Device files have inode numbers from here on; what is fixed in the tree has smaller ones.
pub(crate) const FIRST_DEVICE_INODE: u64 = 1 << 32;

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
    pub(crate) fn open_iommu(&self) -> OpenFile {
        OpenFile::Iommu(Arc::new(IommuFile::new(&self.machine, self.selftest)))
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

    /// Number of device files that are open in some program, or not closed to the end yet.
    #[must_use]
    pub fn open_files(&self) -> usize {
        let files = self.files.lock();
        files.open.len() + files.closing
    }

    /// Notes that an inode was opened; false if it is open already.
    pub(crate) fn opened(&self, inode: u64, file: OpenFile) -> bool {
        let mut files = self.files.lock();
        if files.open.contains_key(&inode) {
            return false;
        }
        files.open.insert(inode, file);
        true
    }

    /// What ENQCMD of each process puts on the bus.
    pub(crate) fn enqcmd(&self) -> &Enqcmd {
        &self.enqcmd
    }

    /// The last descriptor and mapping of an open file are gone. Waits for nothing.
    pub(crate) fn released(&self, inode: u64) {
        self.enqcmd.forget_ended();
        let mut files = self.files.lock();
        let Some(file) = files.open.remove(&inode) else { return };
        files.closing += 1;
        drop(files);
        let closer = self.closer.get_or_init(|| Mutex::new(self.start_closer()));
        let sent = closer.lock().unwrap_or_else(PoisonError::into_inner).send(file);
        if let Err(mpsc::SendError(file)) = sent {
            file.close(&*self.watcher);
            self.files.lock().closing -= 1;
        }
    }

    /// Closing a device waits for its DMA, which may wait for the program's memory, which may wait for an answer of the
    /// tree: so it is done where nobody waits for it. Without the thread files are closed where they stand.
    fn start_closer(&self) -> Sender<OpenFile> {
        let (sender, files) = mpsc::channel::<OpenFile>();
        let (done, told) = (self.files.clone(), self.watcher.clone());
        let _ = std::thread::Builder::new().name("close".to_owned()).spawn(move || {
            for file in files {
                file.close(&*told);
                done.lock().closing -= 1;
                done.closed.notify_all();
            }
        });
        sender
    }

    /// Waits until every file that was released before is closed to the end, or for `longest`.
    pub(crate) fn drain(&self, longest: Duration) {
        let files = self.files.lock();
        let _ = self.files.closed.wait_timeout_while(files, longest, |files| files.closing > 0);
    }

    /// Whether a file with this device number belongs to the tree.
    #[must_use]
    pub fn is_device_file(&self, device_number: u64) -> bool {
        self.file_system.get() == Some(&device_number)
    }

    /// Whether `(device number, inode)` is of the tree's device files, and if so, which open file it is.
    #[must_use]
    pub fn open_file(&self, device_number: u64, inode: u64) -> Option<OpenFile> {
        self.is_device_file(device_number).then(|| self.open_inode(inode))?
    }

    /// Which open file an inode of the tree is.
    pub(crate) fn open_inode(&self, inode: u64) -> Option<OpenFile> {
        self.files.lock().open.get(&inode).cloned()
    }

    /// Which open file of the tree a descriptor is, if it is one. Asks no file system for anything.
    #[must_use]
    pub fn file_of(&self, descriptor: impl AsFd) -> Option<OpenFile> {
        self.file_and_inode_of(descriptor).map(|(_, file)| file)
    }

    /// As [`Server::file_of`], with the inode number.
    pub(crate) fn file_and_inode_of(&self, descriptor: impl AsFd) -> Option<(u64, OpenFile)> {
        let (device, inode) = local_identity(descriptor).ok()?;
        Some((inode, self.open_file(device, inode)?))
    }

    /// Closes every file that is still open, as when the programs that hold them lose their devices. Whoever keeps a
    /// device from closing, by memory that never answers, is not waited for longer than a few seconds.
    pub fn close_all(&self) {
        let inodes: Vec<u64> = self.files.lock().open.keys().copied().collect();
        inodes.into_iter().for_each(|inode| self.released(inode));
        self.drain(Duration::from_secs(5));
    }
}
