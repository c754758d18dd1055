//! `/dev/iommu`: a context, with one address space in it.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use super::uapi::{Destroy, IoasAlloc, IoasMap, IoasUnmap, MAP_READ_WRITE, call};
use crate::memory::Shared;

/// An open of `/dev/iommu`. What was made through it goes when it is closed.
pub struct Iommufd(OwnedFd);

/// An address space.
#[derive(Clone, Copy)]
pub struct Ioas(pub u32);

impl Iommufd {
    /// Opens it.
    ///
    /// # Errors
    /// If there is none.
    pub fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/iommu");
        Ok(Self(file.context("cannot open /dev/iommu: this runs under `ioasid run --device ioat`")?.into()))
    }

    /// The descriptor, for the device to be bound to.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// Makes an address space.
    ///
    /// # Errors
    /// Of the request, as with all below.
    pub fn alloc(&self) -> Result<Ioas> {
        let mut alloc = IoasAlloc::default();
        call(&self.0, &mut alloc)?;
        Ok(Ioas(alloc.out_ioas_id))
    }

    /// Destroys it.
    pub fn destroy(&self, Ioas(id): Ioas) -> Result<()> {
        call(&self.0, &mut Destroy { id, ..Destroy::default() })
    }

    /// Maps all of `memory` for reading and writing and returns where.
    pub fn map(&self, ioas: Ioas, memory: &Shared) -> Result<u64> {
        let mut map = IoasMap {
            flags: MAP_READ_WRITE,
            ioas_id: ioas.0,
            user_va: memory.start().as_ptr() as u64,
            length: memory.length() as u64,
            ..IoasMap::default()
        };
        call(&self.0, &mut map)?;
        Ok(map.iova)
    }

    /// Unmaps all of `memory` from `iova`.
    pub fn unmap(&self, ioas: Ioas, iova: u64, memory: &Shared) -> Result<()> {
        let length = memory.length() as u64;
        call(&self.0, &mut IoasUnmap { ioas_id: ioas.0, iova, length, ..IoasUnmap::default() })
    }
}
