//! `/dev/iommu`: a context, with one address space in it.

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use super::uapi::{Destroy, IoasAlloc, IoasCopy, IoasIovaRanges, IoasMap, IoasUnmap, MAP_FIXED, MAP_READ_WRITE, call};
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
        self.map_part(ioas, None, memory, 0..memory.length())
    }

    /// Maps some bytes of `memory`, at `iova` or anywhere, and returns where.
    pub fn map_part(&self, ioas: Ioas, iova: Option<u64>, memory: &Shared, bytes: Range<usize>) -> Result<u64> {
        assert!(bytes.end <= memory.length());
        let mut map = IoasMap {
            flags: MAP_READ_WRITE | if iova.is_some() { MAP_FIXED } else { 0 },
            ioas_id: ioas.0,
            user_va: (memory.start().addr().get() + bytes.start) as u64,
            length: bytes.len() as u64,
            iova: iova.unwrap_or(0),
            ..IoasMap::default()
        };
        call(&self.0, &mut map)?;
        Ok(map.iova)
    }

    /// Maps what is mapped at `from` at `to`, too.
    pub fn copy(&self, ioas: Ioas, from: u64, to: u64, length: u64) -> Result<()> {
        let (id, flags) = (ioas.0, MAP_READ_WRITE | MAP_FIXED);
        let copy = IoasCopy { flags, dst_ioas_id: id, src_ioas_id: id, length, dst_iova: to, src_iova: from, size: 0 };
        call(&self.0, &mut { copy })
    }

    /// Asks for the ranges that can be mapped, and puts them into `memory`.
    pub fn ranges(&self, ioas: Ioas, memory: &Shared) -> Result<()> {
        let (allowed_iovas, num_iovas) = (memory.start().addr().get() as u64, (memory.length() / 16) as u32);
        call(&self.0, &mut IoasIovaRanges { ioas_id: ioas.0, num_iovas, allowed_iovas, ..IoasIovaRanges::default() })
    }

    /// Unmaps all of `memory` from `iova`.
    pub fn unmap(&self, ioas: Ioas, iova: u64, memory: &Shared) -> Result<()> {
        self.unmap_range(ioas, iova, memory.length() as u64)
    }

    /// Unmaps `length` bytes from `iova` on.
    pub fn unmap_range(&self, ioas: Ioas, iova: u64, length: u64) -> Result<()> {
        call(&self.0, &mut IoasUnmap { ioas_id: ioas.0, iova, length, ..IoasUnmap::default() })
    }
}
