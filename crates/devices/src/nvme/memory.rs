//! What commands reach by addresses: the host's memory, and the controller memory buffer in it.

use std::ops::Range;
use std::sync::Arc;

use ioasid::Iova;
use ioasid_vfio::BarMemory;

use super::spec::status::Status;
use crate::{Dma, Work};

/// The controller's way to memory.
pub(super) struct Memory {
    dma: Box<dyn Dma>,
    buffer: Option<Arc<BarMemory>>,
    /// Which addresses are the buffer.
    window: Range<u64>,
}

impl Memory {
    pub(super) fn new(dma: Box<dyn Dma>, buffer: Option<Arc<BarMemory>>) -> Self {
        Self { dma, buffer, window: 0..0 }
    }

    /// From now on, addresses from `base` on are the buffer; without, none is.
    pub(super) fn place_buffer(&mut self, base: Option<u64>) {
        let length = self.buffer.as_ref().map_or(0, |buffer| buffer.length());
        self.window = base.map_or(0..0, |base| base..base.saturating_add(length));
    }

    /// Says which command the accesses from now on are for: queue and identifier.
    pub(super) fn set_command(&mut self, command: Option<(u16, u16)>) {
        self.dma.set_work(command.map(|(queue, command)| Work { queue, command }));
    }

    /// Where in the buffer a range is that begins there. One that begins there and passes its end is refused.
    fn in_buffer(&self, address: u64, length: usize) -> Result<Option<(&BarMemory, u64)>, Status> {
        let Some(buffer) = self.buffer.as_ref().filter(|_| self.window.contains(&address)) else { return Ok(None) };
        let left = self.window.end - address;
        if left < length as u64 {
            return Err(Status::INVALID_USE_OF_CMB);
        }
        Ok(Some((buffer, address - self.window.start)))
    }

    pub(super) fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), Status> {
        if let Some((buffer, offset)) = self.in_buffer(address, data.len())? {
            buffer.read(offset, data);
            return Ok(());
        }
        self.dma.read(Iova(address).into(), data).map_err(|_| Status::DATA_TRANSFER_ERROR)
    }

    pub(super) fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Status> {
        if let Some((buffer, offset)) = self.in_buffer(address, data.len())? {
            buffer.write(offset, data);
            return Ok(());
        }
        self.dma.write(Iova(address).into(), data).map_err(|_| Status::DATA_TRANSFER_ERROR)
    }
}
