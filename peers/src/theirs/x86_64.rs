//! A page table of the crate `x86_64`, with four levels.
#![allow(unsafe_code, reason = "the crate's API: it cannot know what a frame is used for")]

use std::hint::black_box;
use std::ptr;

use anyhow::{Context, Result, anyhow};
use x86_64::structures::paging::mapper::TranslateResult;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size4KiB, Translate,
};
use x86_64::{PhysAddr, VirtAddr};

use super::frames::{self, Frames};

/// Takes frames where [`Frames::supply`] says.
struct Supply;

// SAFETY: a frame is handed out once, and whoever supplies them anew has dropped the table that had them before.
unsafe impl FrameAllocator<Size4KiB> for Supply {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        frames::take().map(|address| PhysFrame::containing_address(PhysAddr::new(address as u64)))
    }
}

/// A table, and the frames that it lies in.
pub struct X86 {
    table: OffsetPageTable<'static>,
    frames: Frames,
}

impl X86 {
    /// An empty table.
    ///
    /// # Errors
    /// If there is no frame.
    pub fn new(mut frames: Frames) -> Result<Self> {
        frames.supply();
        let root: *mut PageTable = ptr::with_exposed_provenance_mut(frames::take().context("no frame")?);
        // SAFETY: the frame is the table's alone, aligned and as large as a table, which any bytes are not, so it is
        // written first. It stays until `frames` is dropped or given away, which ends the table.
        let root = unsafe {
            root.write(PageTable::new());
            &mut *root
        };
        // SAFETY: frames are this process's memory at its own address, so the offset is 0, and the root is empty.
        let table = unsafe { OffsetPageTable::new(root, VirtAddr::zero()) };
        Ok(Self { table, frames })
    }

    /// Empties it, and returns its frames.
    pub fn into_frames(self) -> Frames {
        self.frames
    }

    /// Maps `length` bytes in pages of 4 KiB, one by one, as the crate has no other way.
    ///
    /// # Errors
    /// Of the crate.
    pub fn map(&mut self, iova: u64, pa: u64, length: u64) -> Result<()> {
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::USER_ACCESSIBLE;
        // As from a caller whose arguments are not known when this is compiled.
        let (iova, pa, length, flags) = black_box((iova, pa, length, flags));
        for offset in (0..length).step_by(4096) {
            let page = Page::<Size4KiB>::containing_address(VirtAddr::new(iova + offset));
            let frame = PhysFrame::containing_address(PhysAddr::new(pa + offset));
            // SAFETY: no processor uses this table, so nothing is reachable through it.
            let mapped = unsafe { self.table.map_to(page, frame, flags, &mut Supply) };
            mapped.map_err(|error| anyhow!("x86_64: {error:?}"))?.ignore();
        }
        Ok(())
    }

    /// Unmaps `length` bytes page by page. The tables stay.
    ///
    /// # Errors
    /// Of the crate.
    pub fn unmap(&mut self, iova: u64, length: u64) -> Result<()> {
        for offset in (0..length).step_by(4096) {
            let page = Page::<Size4KiB>::containing_address(VirtAddr::new(iova + offset));
            self.table.unmap(page).map_err(|error| anyhow!("x86_64: {error:?}"))?.1.ignore();
        }
        Ok(())
    }

    /// What `iova` translates to, if the leaf is a user's.
    #[inline]
    pub fn walk(&self, iova: u64) -> Option<u64> {
        match self.table.translate(VirtAddr::new(iova)) {
            TranslateResult::Mapped { frame, offset, flags } if flags.contains(PageTableFlags::USER_ACCESSIBLE) => {
                Some(frame.start_address().as_u64() + offset)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped_is_found_until_it_is_unmapped() {
        let mut table = X86::new(Frames::touched(8)).unwrap();
        table.map(0x4000_0000, 0x9000, 0x4000).unwrap();
        assert_eq!(table.walk(0x4000_1008), Some(0xa008));
        table.unmap(0x4000_0000, 0x4000).unwrap();
        assert_eq!(table.walk(0x4000_1008), None);
        assert!(X86::new(table.into_frames()).unwrap().walk(0x4000_1008).is_none());
    }
}
