//! Groups of devices that cannot be kept apart, and the requests on `/dev/vfio/G`.
//!
//! ```text
//!   open ──► nothing ──SET_CONTAINER──► a container, or an open /dev/iommu ──GET_DEVICE_FD──► devices
//!               ▲                          │                                                     │
//!               └─────UNSET_CONTAINER──────┘ ◄────────── last close of each, of a container ─────┘
//! ```
//! A group has one open file at a time. It stays open until that and the files of its devices are closed, and
//! meanwhile no device of it can be used by a file of its own.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use ioasid::GroupId;
use ioasid::memory::PAGE_SIZE;
use ioasid_uapi::vfio::group as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::container::{Container, ContainerFile};
use super::device::{Attached, Opened, Way};
use super::file::VfioFile;
use super::{get, lock};
use crate::request::file::{Mapping, OpenFile, of_kind};
use crate::request::iommufd::IommuFile;
use crate::request::{Caller, ToErrno};
use crate::watch::PciDevice;

/// The longest name of a device, with its options and the end.
const LONGEST_NAME: u64 = PAGE_SIZE;

/// A group of devices.
pub struct Group {
    id: GroupId,
    devices: Vec<Arc<PciDevice>>,
    users: Mutex<Users>,
}

/// How a group is used.
#[derive(Clone, Copy)]
enum Users {
    /// By so many files of its devices' own.
    Devices(usize),
    /// By its own file.
    Group,
}

impl Group {
    /// A group that nobody uses.
    #[must_use]
    pub fn new(id: GroupId, devices: Vec<Arc<PciDevice>>) -> Arc<Self> {
        Arc::new(Self { id, devices, users: Mutex::new(Users::Devices(0)) })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.id
    }

    pub(super) fn devices(&self) -> &[Arc<PciDevice>] {
        &self.devices
    }

    /// A new open file of it.
    ///
    /// # Errors
    /// `EBUSY` if it is open, or a device of it is used by a file of its own.
    pub fn open(self: &Arc<Self>) -> Result<GroupFile, Errno> {
        let mut users = lock(&self.users);
        let Users::Devices(0) = *users else { return Err(Errno::BUSY) };
        *users = Users::Group;
        drop(users);
        Ok(GroupFile(Arc::new(OpenGroup { group: self.clone(), state: Mutex::default() })))
    }

    /// Keeps it from being opened as long as what is returned is there.
    ///
    /// # Errors
    /// `EBUSY` if it is open.
    pub(super) fn block(self: &Arc<Self>) -> Result<Block, Errno> {
        match &mut *lock(&self.users) {
            Users::Group => Err(Errno::BUSY),
            Users::Devices(count) => {
                *count += 1;
                Ok(Block(self.clone()))
            }
        }
    }
}

/// Keeps a group from being opened.
pub(super) struct Block(Arc<Group>);

impl Drop for Block {
    fn drop(&mut self) {
        if let Users::Devices(count) = &mut *lock(&self.0.users) {
            *count -= 1;
        }
    }
}

/// A group that is open, as long as a file of it or of its devices is.
pub(super) struct OpenGroup {
    group: Arc<Group>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    home: Home,
    /// The devices that were opened by it, by their place in the group; some are closed again.
    devices: Vec<(usize, Weak<Opened>)>,
    /// How many of them are not closed to the end.
    in_use: usize,
}

/// A device of an open group that is in use, until its DMA has ended and it is detached.
pub(super) struct InUse(Arc<OpenGroup>);

impl Drop for InUse {
    fn drop(&mut self) {
        lock(&self.0.state).in_use -= 1;
    }
}

/// Where a group's devices have their address space.
#[derive(Default)]
enum Home {
    #[default]
    None,
    Container(Arc<Container>),
    Iommu(Arc<IommuFile>),
}

impl Drop for OpenGroup {
    /// No device of it is open any more.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Home::Container(container) = std::mem::take(&mut state.home) {
            container.remove(&self.group);
        }
        *lock(&self.group.users) = Users::Devices(0);
    }
}

impl OpenGroup {
    fn status(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let (mut status, _) = get::<uapi::GroupStatus>(address, caller, size_of::<uapi::GroupStatus>())?;
        status.flags = match lock(&self.state).home {
            Home::None => uapi::FLAGS_VIABLE,
            Home::Container(_) | Home::Iommu(_) => uapi::FLAGS_VIABLE | uapi::FLAGS_CONTAINER_SET,
        };
        caller.write(address, status.as_bytes())
    }

    fn set_container(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let mut number = 0i32;
        caller.read(address, number.as_mut_bytes())?;
        let file = caller.file(number)?;
        let mut state = lock(&self.state);
        if !matches!(state.home, Home::None) {
            return Err(Errno::INVAL);
        }
        state.home = if let Some(container) = of_kind::<ContainerFile>(file.clone()) {
            container.container().add(&self.group)?;
            Home::Container(container.container().clone())
        } else {
            let iommu = of_kind::<IommuFile>(file).ok_or(Errno::BADFD)?;
            iommu.make_default_ioas()?;
            Home::Iommu(iommu)
        };
        Ok(())
    }

    fn unset_container(&self) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        match &state.home {
            Home::None => return Err(Errno::INVAL),
            Home::Container(_) if state.in_use > 0 => return Err(Errno::BUSY),
            Home::Container(container) => container.remove(&self.group),
            Home::Iommu(_) => {}
        }
        let home = std::mem::take(&mut state.home);
        // Its last owner lets it go, which may wait for a device, without the lock.
        drop(state);
        drop(home);
        Ok(())
    }

    /// Opens the device that the name at `address` means, or once more if it is open.
    fn device(self: &Arc<Self>, address: u64, caller: &dyn Caller) -> Result<Arc<Opened>, Errno> {
        let name = name(address, caller)?;
        let named = |device: &Arc<PciDevice>| {
            let options = name.strip_prefix(&device.rid.to_string())?;
            (options.is_empty() || options.starts_with(' ')).then_some(options)
        };
        let found = self.group.devices.iter().enumerate().find_map(|(n, device)| Some((n, device, named(device)?)));
        let (number, pci, options) = found.ok_or(Errno::NODEV)?;
        // The one option is the token of a virtual function, or of one that has some.
        if options.contains(|letter| letter != ' ') {
            return Err(Errno::INVAL);
        }
        let mut state = lock(&self.state);
        if let Home::None = state.home {
            return Err(Errno::INVAL);
        }
        if let Some(opened) =
            state.devices.iter().find(|(other, _)| *other == number).and_then(|(_, open)| open.upgrade())
        {
            return Ok(opened);
        }
        let opened = Opened::new(pci, || {
            let device = match &state.home {
                Home::Container(container) if container.has_iommu() => None,
                Home::Container(_) | Home::None => return Err(Errno::INVAL),
                Home::Iommu(iommu) => {
                    let ioas = iommu.default_ioas()?;
                    let device = iommu.context().bind(&pci.endpoint).map_err(|error| error.errno())?;
                    device.attach(None, &ioas).map_err(|error| error.errno())?;
                    Some(Attached::new(device))
                }
            };
            Ok(Way::Group { device, _group: InUse(self.clone()) })
        })?;
        // Nothing has failed since it was made, so it was not let go.
        state.in_use += 1;
        state.devices.retain(|(_, opened)| opened.strong_count() > 0);
        state.devices.push((number, Arc::downgrade(&opened)));
        Ok(opened)
    }

    fn get_device(self: &Arc<Self>, address: u64, caller: &dyn Caller) -> Result<i64, Errno> {
        let opened = self.device(address, caller)?;
        let number = caller.reserve()?;
        caller.install(number, Arc::new(VfioFile::of_group(opened)))?;
        Ok(number.into())
    }
}

/// An open file of a group.
pub struct GroupFile(Arc<OpenGroup>);

impl GroupFile {
    /// The group.
    pub(super) fn id(&self) -> GroupId {
        self.0.group.id
    }
}

impl OpenFile for GroupFile {
    fn ioctl(&self, number: u32, address: u64, caller: &dyn Caller) -> Option<Result<i64, Errno>> {
        let group = &self.0;
        Some(match number {
            uapi::GET_STATUS => group.status(address, caller).map(|()| 0),
            uapi::SET_CONTAINER => group.set_container(address, caller).map(|()| 0),
            uapi::UNSET_CONTAINER => group.unset_container().map(|()| 0),
            uapi::GET_DEVICE_FD => group.get_device(address, caller),
            _ => Err(Errno::NOTTY),
        })
    }

    fn check_mmap(&self, _mapping: Mapping) -> Option<Result<(), Errno>> {
        Some(Err(Errno::NODEV))
    }

    fn in_use(&self) -> &'static [Errno] {
        &[Errno::BUSY, Errno::INVAL, Errno::PERM]
    }
}

/// The text at an address, up to its end.
fn name(address: u64, caller: &dyn Caller) -> Result<String, Errno> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < LONGEST_NAME {
        let at = address.wrapping_add(bytes.len() as u64);
        // It may end shortly before a page that is not there.
        let length = (PAGE_SIZE - at % PAGE_SIZE).min(LONGEST_NAME - bytes.len() as u64);
        let mut part = vec![0; length as usize];
        caller.read(at, &mut part)?;
        let end = part.iter().position(|&byte| byte == 0);
        bytes.extend_from_slice(&part[..end.unwrap_or(part.len())]);
        if end.is_some() {
            return String::from_utf8(bytes).map_err(|_| Errno::NODEV);
        }
    }
    Err(Errno::INVAL)
}
