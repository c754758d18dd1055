//! `resourceN` in `/sys`: a BAR of a device, which a program maps without VFIO, to look at its registers.
//!
//! Opening it resets nothing, keeps no other file from the device, and allows no DMA: that is VFIO's.

use std::sync::Arc;

use ioasid::memory::PAGE_SIZE;
use ioasid_vfio::{Function, VfioDevice};
use rustix::io::Errno;

use super::file::{Mapping, OpenFile};

/// An open file of a BAR.
pub struct ResourceFile {
    device: Arc<VfioDevice>,
    bar: u8,
    /// Whether it was opened for writing, too.
    writable: bool,
}

impl ResourceFile {
    /// A file of BAR `bar`, opened for reading, or for writing, too.
    #[must_use]
    pub fn new(device: Arc<VfioDevice>, bar: u8, writable: bool) -> Self {
        Self { device, bar, writable }
    }

    fn function(&self) -> &Function {
        self.device.function()
    }

    fn size(&self) -> u64 {
        self.function().spec().bar(self.bar).map_or(0, |bar| bar.size)
    }
}

impl OpenFile for ResourceFile {
    fn check_mmap(&self, mapping: Mapping) -> Option<Result<(), Errno>> {
        let Mapping { offset, length, shared, .. } = mapping;
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.size().next_multiple_of(PAGE_SIZE));
        Some(if shared && length != 0 && inside && self.device.can_map(self.bar) { Ok(()) } else { Err(Errno::INVAL) })
    }

    /// Where nothing answers, there are ones.
    fn load(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        if self.function().bar_read(self.bar, offset, data).is_err() {
            data.fill(0xff);
        }
        Ok(())
    }

    /// What nothing takes, is lost.
    fn store(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if !self.writable {
            return Err(Errno::ACCESS);
        }
        let _ = self.function().bar_write(self.bar, offset, data);
        Ok(())
    }
}
