//! Containers (`/dev/vfio/vfio`): the address space that several groups share.
//!
//! ```text
//!   open ──► no groups ──SET_CONTAINER of a group──► groups ──SET_IOMMU──► groups, and an IOMMU
//!               ▲                                      │                           │
//!               └───────────the last group goes────────┴───────────────────────────┘
//! ```
//! The groups keep a container, so it may outlive its files.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use ioasid::{GroupId, Machine};
use ioasid_uapi::vfio::container as uapi;
use rustix::io::Errno;

use super::group::Group;
use super::lock;
use super::type1::Type1;
use crate::request::Caller;
use crate::request::file::{Mapping, OpenFile};

/// A container.
pub(super) struct Container {
    machine: Arc<Machine>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    groups: BTreeMap<GroupId, Arc<Group>>,
    iommu: Option<Arc<Type1>>,
}

impl Container {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes a group in. Its devices are attached from now on, if there is an IOMMU.
    ///
    /// # Errors
    /// `EBUSY` if somebody else uses a device of it, `EINVAL` if something is mapped that a device reserves.
    pub(super) fn add(&self, group: &Arc<Group>) -> Result<(), Errno> {
        let mut state = self.lock();
        if let Some(iommu) = &state.iommu {
            iommu.attach(group)?;
        }
        state.groups.insert(group.id(), group.clone());
        Ok(())
    }

    /// Lets a group go: no DMA of its devices is in flight when this returns. With the last, everything is unmapped.
    pub(super) fn remove(&self, group: &Group) {
        let mut state = self.lock();
        state.groups.remove(&group.id());
        let iommu = if state.groups.is_empty() { state.iommu.take() } else { state.iommu.clone() };
        drop(state);
        if let Some(iommu) = iommu {
            iommu.detach(group.id());
        }
    }

    /// Whether SET_IOMMU has chosen one.
    pub(super) fn has_iommu(&self) -> bool {
        self.lock().iommu.is_some()
    }

    fn set_iommu(&self, kind: u64) -> Result<(), Errno> {
        let mut state = self.lock();
        if state.groups.is_empty() || state.iommu.is_some() {
            return Err(Errno::INVAL);
        }
        let cuts = match u32::try_from(kind) {
            Ok(uapi::TYPE1_IOMMU) => true,
            Ok(uapi::TYPE1V2_IOMMU) => false,
            // An extension of type1, and no IOMMU.
            Ok(uapi::UNMAP_ALL) => return Err(Errno::INVAL),
            _ => return Err(Errno::NODEV),
        };
        let iommu = Type1::new(&self.machine, cuts)?;
        state.groups.values().try_for_each(|group| iommu.attach(group))?;
        state.iommu = Some(Arc::new(iommu));
        Ok(())
    }

    fn check_extension(&self, extension: u64) -> i64 {
        let known = match u32::try_from(extension) {
            Ok(uapi::TYPE1_IOMMU | uapi::TYPE1V2_IOMMU | uapi::UNMAP_ALL) => true,
            // Nothing that a device of software does is anything but coherent.
            Ok(uapi::UPDATE_VADDR | uapi::DMA_CC_IOMMU) => self.has_iommu(),
            _ => false,
        };
        known.into()
    }
}

/// An open file of a container.
pub struct ContainerFile(Arc<Container>);

impl ContainerFile {
    /// A container of its own.
    #[must_use]
    pub fn new(machine: &Arc<Machine>) -> Self {
        Self(Arc::new(Container { machine: machine.clone(), state: Mutex::default() }))
    }

    pub(super) fn container(&self) -> &Arc<Container> {
        &self.0
    }
}

impl OpenFile for ContainerFile {
    fn ioctl(&self, number: u32, argument: u64, caller: &dyn Caller) -> Option<Result<i64, Errno>> {
        Some(match number {
            uapi::GET_API_VERSION => Ok(uapi::API_VERSION.into()),
            uapi::CHECK_EXTENSION => Ok(self.0.check_extension(argument)),
            uapi::SET_IOMMU => self.0.set_iommu(argument).map(|()| 0),
            _ => {
                let iommu = self.0.lock().iommu.clone();
                iommu.ok_or(Errno::INVAL).and_then(|iommu| iommu.request(number, argument, caller)).map(|()| 0)
            }
        })
    }

    fn check_mmap(&self, _mapping: Mapping) -> Option<Result<(), Errno>> {
        Some(Err(Errno::NODEV))
    }

    fn in_use(&self) -> &'static [Errno] {
        &[Errno::BUSY]
    }
}
