//! The machine that is served, and its open files.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ioasid::{Context, Endpoint, Iommu, Rid};
use ioasid_vfio::{Unconsumed, VfioDevice};
use rustix::fs::{AtFlags, StatxFlags};

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
}

/// What an open file of the tree stands for.
#[derive(Clone)]
pub enum OpenFile {
    /// `/dev/iommu`
    Iommu(Arc<Context>),
    /// `/dev/vfio/devices/vfioN`
    Vfio(Arc<VfioFile>),
}

/// One machine, served to the programs of one run.
pub struct Server {
    iommu: Arc<Iommu>,
    devices: Vec<Arc<PciDevice>>,
    watcher: Arc<dyn Watcher>,
    /// By inode number: every look-up of a device file gives a new one, so that an inode is one open file.
    open: Mutex<HashMap<u64, OpenFile>>,
    /// The device number of the tree's file system, once it is mounted.
    file_system: OnceLock<u64>,
    next_inode: AtomicU64,
}

/// Device files have inode numbers from here on; what is fixed in the tree has smaller ones.
pub(crate) const FIRST_DEVICE_INODE: u64 = 1 << 32;

impl Server {
    /// A server of these devices, on this machine.
    #[must_use]
    pub fn new(iommu: Arc<Iommu>, devices: Vec<PciDevice>, watcher: Arc<dyn Watcher>) -> Arc<Self> {
        Arc::new(Self {
            iommu,
            devices: devices.into_iter().map(Arc::new).collect(),
            watcher,
            open: Mutex::default(),
            file_system: OnceLock::new(),
            next_inode: AtomicU64::new(FIRST_DEVICE_INODE),
        })
    }

    /// The machine's IOMMU.
    #[must_use]
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// The devices: number N is `/dev/vfio/devices/vfioN`.
    #[must_use]
    pub fn devices(&self) -> &[Arc<PciDevice>] {
        &self.devices
    }

    /// Tells which device number the mounted tree has, as in `stat`. Only the first call counts.
    pub fn mounted(&self, device_number: u64) {
        let _ = self.file_system.set(device_number);
    }

    pub(crate) fn new_inode(&self) -> u64 {
        self.next_inode.fetch_add(1, Ordering::Relaxed)
    }

    /// Number of device files that are open in some program.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Notes that an inode was opened; false if it is open already.
    pub(crate) fn opened(&self, inode: u64, file: OpenFile) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.contains_key(&inode) {
            return false;
        }
        open.insert(inode, file);
        true
    }

    /// The last descriptor and mapping of an open file are gone.
    pub(crate) fn released(&self, inode: u64) {
        let file = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&inode);
        // Outside the lock: closing a device waits for its DMA.
        if let Some(OpenFile::Vfio(file)) = &file {
            file.close(&*self.watcher);
        }
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
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&inode).cloned()
    }

    /// Which open file of the tree a descriptor is, if it is one. Asks no file system for anything.
    #[must_use]
    pub fn file_of(&self, descriptor: impl AsFd) -> Option<OpenFile> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(descriptor, c"", flags, StatxFlags::INO).ok()?;
        self.open_file(libc::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino)
    }

    /// Closes every file that is still open, as when the programs that hold them lose their devices.
    pub fn close_all(&self) {
        let inodes: Vec<u64> = self.open.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        for inode in inodes {
            self.released(inode);
        }
    }
}
