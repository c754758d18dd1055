//! An open file of a device.
//!
//! ```text
//!   a file of its own     open ──► nothing ──BIND_IOMMUFD──► opened ⇄ attached ──last close──► closed
//!                                  every other request       all requests
//!                                  is EINVAL
//!   a file of its group   GET_DEVICE_FD ───────────────────► opened ──────────────────────────► closed
//! ```

use std::sync::{Arc, PoisonError, RwLock};

use ioasid::memory::RemoteMemory;
use ioasid_uapi::vfio as uapi;
use ioasid_vfio::device::region::{RegionFlags, locate};
use rustix::io::Errno;

use super::cdev;
use super::device::Opened;
use super::group::Group;
use crate::request::file::{Closer, MappedMemory, Mapping, OpenFile};
use crate::request::{Caller, ToErrno};
use crate::watch::{PciDevice, Watcher};

/// An open file of a VFIO device.
pub struct VfioFile {
    /// What BIND_IOMMUFD opens; nothing for a file of a group.
    to_bind: Option<(Arc<PciDevice>, Arc<Group>)>,
    /// Whether it was opened for writing, too.
    writable: bool,
    opened: RwLock<Option<Arc<Opened>>>,
}

impl VfioFile {
    /// A file of a device's own, of that group, which is bound to no context yet, and that was opened for reading, or
    /// for writing, too.
    #[must_use]
    pub fn new(device: Arc<PciDevice>, group: Arc<Group>, writable: bool) -> Self {
        Self { to_bind: Some((device, group)), writable, opened: RwLock::default() }
    }

    /// A file of a device that was opened by its group.
    pub(super) fn of_group(opened: Arc<Opened>) -> Self {
        Self { to_bind: None, writable: true, opened: RwLock::new(Some(opened)) }
    }

    /// Runs `use_it` if the device is open.
    fn with_opened<T>(&self, use_it: impl FnOnce(&Opened) -> Result<T, Errno>) -> Result<T, Errno> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        opened.as_deref().ok_or(Errno::INVAL).and_then(use_it)
    }

    /// The kernel makes no mapping to write of a file that was opened for reading; but a program may ask for a store
    /// that its processor does not make.
    fn check_writable(&self) -> Result<(), Errno> {
        if self.writable { Ok(()) } else { Err(Errno::ACCESS) }
    }

    /// Performs request `number` with its argument at `address`.
    ///
    /// # Errors
    /// As [`Opened::request`], and `EINVAL` for anything but BIND_IOMMUFD before the device is open.
    fn request(&self, number: u32, address: u64, caller: &dyn Caller) -> Result<i64, Errno> {
        if number == uapi::DEVICE_BIND_IOMMUFD {
            return self.bind(address, caller).map(|()| 0);
        }
        self.with_opened(|opened| {
            let of_cdev = opened.cdev().and_then(|device| cdev::request(device, number, address, caller));
            of_cdev.map_or_else(|| opened.request(number, address, caller), |done| done.map(|()| 0))
        })
    }

    fn bind(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let request = cdev::get_bind(address, caller)?;
        let (device, group) = self.to_bind.as_ref().ok_or(Errno::INVAL)?;
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        if opened.is_some() {
            return Err(Errno::INVAL);
        }
        *opened = Some(cdev::bind(device, group, &request, address, caller)?);
        Ok(())
    }
}

/// What is read, written and mapped of it is `EINVAL` until it is bound.
impl OpenFile for VfioFile {
    fn ioctl(&self, number: u32, address: u64, caller: &dyn Caller) -> Option<Result<i64, Errno>> {
        Some(self.request(number, address, caller))
    }

    fn in_use(&self) -> &'static [Errno] {
        &[Errno::BUSY, Errno::INVAL, Errno::PERM]
    }

    fn is_about_others(&self, number: u32) -> bool {
        [uapi::DEVICE_GET_PCI_HOT_RESET_INFO, uapi::DEVICE_PCI_HOT_RESET].contains(&number)
    }

    fn peer(&self) -> Option<Arc<dyn RemoteMemory>> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        Some(opened.as_ref()?.peer().clone())
    }

    fn is_closed_by_somebody(&self) -> bool {
        true
    }

    fn has_regions(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        self.with_opened(|opened| {
            opened.low_power().wake();
            opened.session().read(offset, data).map_err(|error| error.errno())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.with_opened(|opened| {
            opened.low_power().wake();
            opened.session().write(offset, data).map_err(|error| error.errno())
        })
    }

    fn check_mmap(&self, mapping: Mapping) -> Option<Result<(), Errno>> {
        let Mapping { offset, length, shared, .. } = mapping;
        Some(self.with_opened(|opened| {
            let (index, start) = locate(offset);
            let info = opened.session().region_info(index).map_err(|error| error.errno())?;
            // A mapping covers whole pages, also of a region that is smaller.
            let size = info.size.next_multiple_of(ioasid::memory::PAGE_SIZE);
            let inside = start.checked_add(length).is_some_and(|end| end <= size);
            if shared && length != 0 && inside && info.flags.contains(RegionFlags::MMAP) {
                Ok(())
            } else {
                Err(Errno::INVAL)
            }
        }))
    }

    fn load(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.with_opened(|opened| opened.session().mapped_read(offset, data).map_err(|error| error.errno()))
    }

    fn store(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.check_writable()?;
        self.with_opened(|opened| opened.session().mapped_write(offset, data).map_err(|error| error.errno()))
    }

    fn memory(&self, offset: u64) -> Option<MappedMemory> {
        let memory = self.with_opened(|opened| {
            let (place, memory) = opened.session().memory_at(offset).ok_or(Errno::NXIO)?;
            Ok(MappedMemory { place, memory: memory.clone(), writable: self.writable })
        });
        memory.ok()
    }

    fn enqueue(&self, offset: u64, command: &[u8; 64]) -> Result<Option<bool>, Errno> {
        self.check_writable()?;
        self.with_opened(|opened| opened.session().mapped_enqueue(offset, command).map_err(|error| error.errno()))
    }

    fn close(&self, by: Closer, watcher: &dyn Watcher) {
        let opened = self.opened.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(opened) = opened else { return };
        let bus = opened.bus().cloned();
        let last = {
            // One that resets the bus has it, too, for that long.
            let _close = bus.as_ref().map(|bus| bus.close_open());
            Arc::into_inner(opened)
        };
        // Another file of the same device keeps it open.
        if let Some(opened) = last {
            opened.close(by, watcher);
        }
    }
}
