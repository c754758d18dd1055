//! Copies of shared memory: by the engine, and by memcpy.
//!
//! Before each copy the source gets another pattern, and after it the target is compared with it, byte for byte;
//! neither is in the sample. So both sides find the caches in the same state, and one that copies nothing fails.

use anyhow::{Context, Result};

use super::ioat::{DESCRIPTOR, Engine};
use super::iommufd::{Ioas, Iommufd};
use super::vfio::Device;
use crate::memory::Shared;
use crate::run::time;
use crate::statistics::{Pairs, Side, interleave};

/// Bytes of a copy.
pub const LENGTH: usize = 256 * DESCRIPTOR;

const PAIRS: usize = 21;
const COLD_PAIRS: usize = 11;

/// Two buffers in an address space, and an engine that reaches them.
struct Setting {
    context: Iommufd,
    ioas: Ioas,
    engine: Engine,
    _device: Device,
    source: Buffer,
    target: Buffer,
}

struct Buffer {
    memory: Shared,
    iova: u64,
}

impl Setting {
    fn new() -> Result<Self> {
        let context = Iommufd::open()?;
        let device = Device::bind(&context)?;
        let ioas = context.alloc()?;
        let buffer = || {
            let memory = Shared::anonymous(LENGTH).context("no memory for two buffers of 256 MiB")?;
            // Shared memory has pages from the first write on; that is not the copy's business.
            memory.fill(0);
            let iova = context.map(ioas, &memory)?;
            Ok::<_, anyhow::Error>(Buffer { memory, iova })
        };
        let (source, target) = (buffer()?, buffer()?);
        device.attach(ioas)?;
        let engine = Engine::new(device.registers()?, &context, ioas)?;
        Ok(Self { context, ioas, engine, _device: device, source, target })
    }

    /// The engine's side.
    fn copy(&mut self) -> Result<()> {
        self.engine.copy(self.source.iova, self.target.iova, LENGTH)
    }

    /// Takes both buffers out of the address space.
    fn unmap(&self) -> Result<()> {
        for buffer in [&self.source, &self.target] {
            self.context.unmap(self.ioas, buffer.iova, &buffer.memory)?;
        }
        Ok(())
    }

    /// Puts them back: whoever serves the device has to find their pages anew, now or when they are copied.
    fn map(&mut self) -> Result<()> {
        for buffer in [&mut self.source, &mut self.target] {
            buffer.iova = self.context.map(self.ioas, &buffer.memory)?;
        }
        Ok(())
    }
}

/// All pages are present on both sides.
pub fn warm() -> Result<Pairs> {
    let mut setting = Setting::new()?;
    let mut seed = 0;
    interleave(PAIRS, |side| {
        seed += 1;
        setting.source.memory.fill(seed);
        let sample = match side {
            Side::Ours => time(|| setting.copy())?,
            Side::Theirs => time(|| {
                setting.target.memory.copy_from(&setting.source.memory);
                Ok(())
            })?,
        };
        setting.target.memory.verify(seed)?;
        Ok(sample)
    })
}

/// The memory is there, but whoever copies has yet to map it and to fault in each page: the runner's process on one
/// side, this one on the other. Both mapping and copying are in the sample, so that it does not matter which of the two
/// the faults are part of.
pub fn cold() -> Result<Pairs> {
    let mut setting = Setting::new()?;
    let mut seed = 0;
    interleave(COLD_PAIRS, |side| {
        seed += 1;
        setting.source.memory.fill(seed);
        let sample = match side {
            Side::Ours => {
                setting.unmap()?;
                time(|| {
                    setting.map()?;
                    setting.copy()
                })?
            }
            Side::Theirs => {
                let mut mappings = None;
                let sample = time(|| {
                    let (source, target) = (setting.source.memory.again()?, setting.target.memory.again()?);
                    target.copy_from(&source);
                    mappings = Some((source, target));
                    Ok(())
                })?;
                // To unmap is in the sample of neither.
                drop(mappings);
                sample
            }
        };
        setting.target.memory.verify(seed)?;
        Ok(sample)
    })
}
