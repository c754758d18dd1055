//! The machine that is served, and what all ways to it share.
//!
//! `attributes` has what can be written in `/sys`; `files`, the open files; `holders`, who has them; `workers`, threads
//! for what the tree's cannot do.

mod attributes;
mod files;
mod holders;
mod workers;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ioasid::memory::{Account, Process};
use ioasid::{GroupId, Machine};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::driver::KnownIds;
use crate::names::{FIRST_DEVICE_INODE, GIVEN};
use crate::program::accounts::{Accounts, Whose};
use crate::program::enqcmd::Enqcmd;
use crate::program::followers::{Followers, follow};
use crate::program::processes::{Processes, Purpose};
use crate::request::Failures;
use crate::request::file::OpenFile;
use crate::request::iommufd::IommuFile;
use crate::request::resource::ResourceFile;
use crate::request::vfio::VfioFile;
use crate::request::vfio::container::ContainerFile;
use crate::request::vfio::group::Group;
use crate::watch::{Options, PciDevice, Watcher};
pub(crate) use attributes::{Attribute, driver_line};
use files::{Files, local_identity};
pub(crate) use workers::Workers;

/// How long a request waits for files that are being closed.
pub(crate) const CLOSES: Duration = Duration::from_secs(1);

/// One machine, served to the programs of one run.
pub struct Server {
    machine: Arc<Machine>,
    /// Whether Linux's own tests find what they need.
    selftest: bool,
    /// What may be pinned, in place of what each program may.
    memlock: Option<u64>,
    accounts: Accounts,
    processes: Processes,
    followers: Followers,
    enqcmd: Arc<Enqcmd>,
    failures: Failures,
    devices: Vec<Arc<PciDevice>>,
    groups: BTreeMap<GroupId, Arc<Group>>,
    /// What vfio-pci was told to know.
    known_ids: KnownIds,
    watcher: Arc<dyn Watcher>,
    files: Arc<Files>,
    /// From when the tree is served.
    workers: OnceLock<Arc<Workers>>,
    /// The device number of the tree's file system, once it is mounted.
    file_system: OnceLock<u64>,
    /// The root of the tree, from then on.
    root: OnceLock<OwnedFd>,
    /// Files that are about to be opened for a program, by their names.
    given: Mutex<BTreeMap<u64, Option<Arc<dyn OpenFile>>>>,
    next_inode: AtomicU64,
    /// The threads that answer system calls: the tree tells them another size of the device files than programs.
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
        let devices: Vec<_> = devices.into_iter().map(Arc::new).collect();
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        devices.iter().for_each(|device| groups.entry(device.endpoint.group()).or_default().push(device.clone()));
        let groups = groups.into_iter().map(|(id, devices)| (id, Group::new(id, devices))).collect();
        Arc::new(Self {
            machine,
            selftest: options.selftest,
            memlock: options.memlock,
            accounts,
            processes: Processes::default(),
            followers: Followers::default(),
            enqcmd: Arc::default(),
            failures: Failures::default(),
            devices,
            groups,
            known_ids: KnownIds::default(),
            watcher,
            files: Arc::default(),
            workers: OnceLock::new(),
            file_system: OnceLock::new(),
            root: OnceLock::new(),
            given: Mutex::default(),
            next_inode: AtomicU64::new(FIRST_DEVICE_INODE),
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

    /// The processes that were tried to be followed.
    pub(crate) fn followers(&self) -> &Followers {
        &self.followers
    }

    /// Follows what becomes of the memory of a process, by a userfaultfd of it.
    ///
    /// # Errors
    /// As [`Process::follow`]; if there can be no thread, or no descriptor.
    pub(crate) fn follow(&self, process: &Arc<Process>, userfaultfd: OwnedFd) -> io::Result<()> {
        let (pid, watcher) = (process.pid(), self.watcher.clone());
        follow(process, userfaultfd, move |lost| watcher.memory_lost(pid, lost))
    }

    /// The accounts of all users and processes.
    pub(crate) fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// A new open file of `/dev/iommu`.
    pub(crate) fn open_iommu(&self) -> Arc<dyn OpenFile> {
        Arc::new(IommuFile::new(&self.machine, self.selftest))
    }

    /// A new open file of `/dev/vfio/vfio`.
    pub(crate) fn open_container(&self) -> Arc<dyn OpenFile> {
        Arc::new(ContainerFile::new(&self.machine))
    }

    /// A new open file of `/dev/vfio/devices/vfioN`; with `writable`, for writing, too.
    ///
    /// # Errors
    /// `ENODEV` if there is no such device.
    pub(crate) fn open_device(&self, number: usize, writable: bool) -> Result<Arc<dyn OpenFile>, Errno> {
        let device = self.devices.get(number).ok_or(Errno::NODEV)?;
        let group = self.groups.get(&device.endpoint.group()).ok_or(Errno::NODEV)?;
        Ok(Arc::new(VfioFile::new(device.clone(), group.clone(), writable)))
    }

    /// A new open file of `resourceN`, a BAR of a device; with `writable`, for writing, too.
    ///
    /// # Errors
    /// `ENODEV` if there is no such device.
    pub(crate) fn open_resource(&self, number: usize, bar: u8, writable: bool) -> Result<Arc<dyn OpenFile>, Errno> {
        let device = self.devices.get(number).ok_or(Errno::NODEV)?;
        Ok(Arc::new(ResourceFile::new(device.vfio.clone(), bar, writable)))
    }

    /// A new open file of `/dev/vfio/G`. Waits for files that are being closed, if one may be in the way.
    ///
    /// # Errors
    /// `ENODEV` if there is no such group, `EBUSY` if it is used.
    pub(crate) fn open_group(&self, id: GroupId) -> Result<Arc<dyn OpenFile>, Errno> {
        let group = self.groups.get(&id).ok_or(Errno::NODEV)?;
        let opened = group.open().or_else(|_| {
            self.drain(CLOSES);
            group.open()
        });
        opened.map(|opened| Arc::new(opened) as Arc<dyn OpenFile>)
    }

    /// The groups that the devices are in.
    pub(crate) fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.keys().copied()
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

    /// Makes threads for what may wait. They have the descriptors of the thread that calls this.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(crate) fn start_workers(&self) -> io::Result<Arc<Workers>> {
        let workers = Arc::new(Workers::start()?);
        Ok(self.workers.get_or_init(|| workers).clone())
    }

    /// Has something done by another thread; before the tree is served, by this one.
    pub(crate) fn elsewhere(&self, work: impl FnOnce() + Send + 'static) {
        match self.workers.get() {
            Some(workers) => workers.add(Box::new(work)),
            None => work(),
        }
    }

    /// Notes that the calling thread answers system calls, until what is returned is dropped.
    pub(crate) fn listen(&self) -> Listening<'_> {
        let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).insert(tid);
        Listening { server: self, tid }
    }

    /// Opens a file that a program is to have, in the tree. The calling thread answers system calls.
    ///
    /// # Errors
    /// Of opening a file.
    pub(crate) fn open_given(&self, file: Arc<dyn OpenFile>) -> Result<OwnedFd, Errno> {
        let root = self.root.get().ok_or(Errno::NODEV)?;
        let given = || self.given.lock().unwrap_or_else(PoisonError::into_inner);
        // The first name that is free: the kernel remembers each name that it has looked up, and what it was.
        let name = {
            let mut given = given();
            let taken = (0..).zip(given.keys()).take_while(|(free, taken)| free == *taken).count() as u64;
            given.insert(taken, Some(file));
            taken
        };
        let opened = openat(root, format!("{GIVEN}/{name}"), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        // What was not opened is let go of elsewhere: the tree may wait for the lock.
        let left = given().remove(&name);
        self.elsewhere(move || drop(left));
        opened
    }

    /// Takes the file that is to be opened by this name.
    pub(crate) fn take_given(&self, name: u64) -> Option<Arc<dyn OpenFile>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&name)?.take()
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

/// A thread that answers system calls.
pub(crate) struct Listening<'a> {
    server: &'a Server,
    tid: u32,
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.server.listeners.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.tid);
    }
}
