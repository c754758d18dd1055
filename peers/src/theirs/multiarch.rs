//! A page table of the crate `page_table_multiarch`, x86-64 with four levels.

use std::hint::black_box;

use anyhow::{Result, anyhow};
use memory_addr::{PhysAddr, VirtAddr};
use page_table_multiarch::x86_64::X64PageTable;
use page_table_multiarch::{MappingFlags, PagingError, PagingHandler};

use super::frames::{self, Frames};

/// Takes frames where [`Frames::supply`] says.
struct Handler;

impl PagingHandler for Handler {
    fn alloc_frames(num: usize, _align: usize) -> Option<PhysAddr> {
        if num == 1 { frames::take().map(PhysAddr::from) } else { None }
    }

    fn dealloc_frames(_paddr: PhysAddr, _num: usize) {}

    #[inline]
    fn phys_to_virt(paddr: PhysAddr) -> VirtAddr {
        paddr.as_usize().into()
    }
}

/// A table, and the frames that it lies in.
pub struct Multiarch {
    // Dropped first: it walks its frames.
    table: X64PageTable<Handler>,
    frames: Frames,
}

impl Multiarch {
    /// An empty table.
    ///
    /// # Errors
    /// If there is no frame.
    pub fn new(mut frames: Frames) -> Result<Self> {
        frames.supply();
        Ok(Self { table: X64PageTable::try_new().map_err(error)?, frames })
    }

    /// Empties it, and returns its frames.
    pub fn into_frames(self) -> Frames {
        let Self { table, frames } = self;
        drop(table);
        frames
    }

    /// Maps `length` bytes in pages of 4 KiB, with one call.
    ///
    /// # Errors
    /// Of the crate.
    pub fn map(&mut self, iova: u64, pa: u64, length: u64) -> Result<()> {
        let flags = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE | MappingFlags::USER;
        // As from a caller whose arguments are not known when this is compiled.
        let (iova, pa, length, flags) = black_box((iova, pa, length, flags));
        let target = |at: VirtAddr| PhysAddr::from((at.as_usize() as u64 - iova + pa) as usize);
        self.table.cursor().map_region((iova as usize).into(), target, length as usize, flags, false).map_err(error)
    }

    /// Unmaps `length` bytes with one call. The tables stay.
    ///
    /// # Errors
    /// Of the crate.
    pub fn unmap(&mut self, iova: u64, length: u64) -> Result<()> {
        self.table.cursor().unmap_region((iova as usize).into(), length as usize).map_err(error)
    }

    /// What `iova` translates to, if the leaf may be read.
    #[inline]
    pub fn walk(&self, iova: u64) -> Option<u64> {
        let (pa, flags, _) = self.table.query((iova as usize).into()).ok()?;
        flags.contains(MappingFlags::READ).then_some(pa.as_usize() as u64)
    }
}

fn error(error: PagingError) -> anyhow::Error {
    anyhow!("page_table_multiarch: {error:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped_is_found_until_it_is_unmapped() {
        let mut table = Multiarch::new(Frames::touched(8)).unwrap();
        table.map(0x4000_0000, 0x9000, 0x4000).unwrap();
        assert_eq!(table.walk(0x4000_1008), Some(0xa008));
        table.unmap(0x4000_0000, 0x4000).unwrap();
        assert_eq!(table.walk(0x4000_1008), None);
        assert!(Multiarch::new(table.into_frames()).unwrap().walk(0x4000_1008).is_none());
    }
}
