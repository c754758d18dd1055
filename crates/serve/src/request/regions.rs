//! What of an open `/dev/iommu` can be mapped: registers of virtual IOMMUs.
//!
//! As registers of devices, they are at file offsets that no ordinary file has, and every load and store comes here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ioasid::memory::PAGE_SIZE;
use ioasid_vfio::device::region::file_offset;
use rustix::io::Errno;

/// Bytes that are loaded from and stored to.
pub(in crate::request) trait Registers: Send + Sync {
    /// Number of bytes, a multiple of the page size.
    fn length(&self) -> u64;

    /// Loads from `offset` on, within the length.
    fn load(&self, offset: u64, data: &mut [u8]);

    /// Stores to `offset` on, within the length.
    fn store(&self, offset: u64, data: &[u8]);
}

/// A region, at the offset that programs map it by.
struct Region {
    /// The object that it belongs to.
    owner: u32,
    registers: Arc<dyn Registers>,
}

/// All regions of an open file, by their offsets.
#[derive(Default)]
pub(super) struct Regions(Mutex<BTreeMap<u64, Region>>);

/// Keeps a region. Dropping it takes the region away.
pub(in crate::request) struct RegionHold {
    regions: Weak<Regions>,
    offset: u64,
}

impl RegionHold {
    /// The offset that programs map it by.
    pub(in crate::request) fn offset(&self) -> u64 {
        self.offset
    }
}

impl Drop for RegionHold {
    fn drop(&mut self) {
        if let Some(regions) = self.regions.upgrade() {
            regions.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.offset);
        }
    }
}

impl Regions {
    /// Puts registers of object `owner` somewhere.
    pub(super) fn add(self: &Arc<Self>, owner: u32, registers: Arc<dyn Registers>) -> RegionHold {
        let mut regions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // With a page in between, so that what is mapped is never a part of two.
        let end = |(offset, region): (&u64, &Region)| offset + region.registers.length() + PAGE_SIZE;
        let offset = regions.last_key_value().map_or(file_offset(1), end);
        regions.insert(offset, Region { owner, registers });
        RegionHold { regions: Arc::downgrade(self), offset }
    }

    /// Fails unless there is exactly one region in `length` bytes from `offset` on.
    pub(super) fn check(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let regions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let region = regions.get(&offset).ok_or(Errno::NXIO)?;
        if region.registers.length() == length.next_multiple_of(PAGE_SIZE) { Ok(()) } else { Err(Errno::NXIO) }
    }

    /// Where the regions of an object are, and how long they are.
    pub(super) fn of(&self, owner: u32) -> Vec<(u64, u64)> {
        let regions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let owned = regions.iter().filter(|(_, region)| region.owner == owner);
        owned.map(|(offset, region)| (*offset, region.registers.length())).collect()
    }

    /// The registers that `length` bytes at a file offset are, and the offset in them.
    pub(super) fn find(&self, offset: u64, length: usize) -> Result<(Arc<dyn Registers>, u64), Errno> {
        let regions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, region) = regions.range(..=offset).next_back().ok_or(Errno::IO)?;
        let inside = (offset - start).checked_add(length as u64).is_some_and(|end| end <= region.registers.length());
        if inside { Ok((region.registers.clone(), offset - start)) } else { Err(Errno::IO) }
    }
}
