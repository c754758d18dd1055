//! Inter-VM shared memory, as QEMU's `ivshmem-plain`: 1af4:1110, a BAR of memory and nothing that happens.
//!
//! ```text
//!   BAR 0   256 bytes of registers: no interrupts, so all of them read as zero and ignore what is written
//!   BAR 2   the memory, which other devices may have, too
//! ```
//! The memory stays as it is when the device is reset or opened by another program: it is not the device's alone.
//!
//! Source: QEMU, `docs/specs/ivshmem-spec.rst`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use ioasid_vfio::{BarKind, BarMemory, BarPages, BarSpec, Model, Spec};

use crate::registry::{BuildError, Built, Context, ModelInfo, OptionInfo, OptionKind, Options, Site, one};

/// Bytes of registers.
const REGISTERS: u64 = 256;
/// The BAR that is memory.
const MEMORY_BAR: u8 = 2;

const MIB: &str = "mib";
const MEMORY: &str = "memory";

/// The model.
pub const MODEL: ModelInfo = ModelInfo {
    name: "ivshmem",
    about: "shared memory, as QEMU's ivshmem-plain (1af4:1110)",
    options: &[
        OptionInfo::new(MIB, "MiB of memory, a power of two (1)", OptionKind::Number { least: 1, most: 8 }),
        OptionInfo::new(MEMORY, "the same memory as others of this number", OptionKind::Number { least: 0, most: 255 }),
    ],
    registers: &[],
    functions: one,
    check: |options| match options.number(MIB) {
        Some(mib) if !mib.is_power_of_two() => Err(BuildError::NoPowerOfTwo(mib)),
        _ => Ok(()),
    },
    build,
    offer: None,
};

/// Memory by number, for devices that share it.
pub(crate) type Memories = BTreeMap<u64, Arc<BarMemory>>;

fn build(options: &Options, sites: &[Site], context: Context<'_>) -> Result<Vec<Built>, BuildError> {
    let (site, mib) = (sites[0], options.number(MIB).unwrap_or(1));
    let number = options.number(MEMORY);
    let known = number.and_then(|number| Some((number, context.shared.memories.get(&number)?)));
    let memory = match known {
        Some((number, memory)) if memory.length() != mib << 20 => {
            return Err(BuildError::TwoLengths(number, memory.length() >> 20, mib));
        }
        Some((_, memory)) => memory.clone(),
        None => memory(mib << 20).map_err(|error| BuildError::NoMemory(site.rid, error.to_string()))?,
    };
    if let Some(number) = number {
        context.shared.memories.insert(number, memory.clone());
    }
    // It makes no DMA.
    context.plain(site, spec(memory.length()), |_, _| Ok(Ivshmem::new(memory)))
}

/// Memory that devices share.
///
/// # Errors
/// As [`BarMemory::lasting`].
pub fn memory(length: u64) -> io::Result<Arc<BarMemory>> {
    BarMemory::lasting(length)
}

/// What the function looks like on the bus, with this much memory: a power of two.
#[must_use]
pub fn spec(length: u64) -> Spec {
    Spec {
        subsystem_vendor: 0x1af4,
        subsystem_device: 0x1100,
        revision: 1,
        bars: vec![
            BarSpec { index: 0, size: REGISTERS, kind: BarKind::Memory32, prefetchable: false },
            BarSpec { index: MEMORY_BAR, size: length, kind: BarKind::Memory64, prefetchable: true },
        ],
        ..Spec::new(0x1af4, 0x1110, 0x05_0000)
    }
}

/// A device.
#[derive(Debug)]
pub struct Ivshmem {
    memory: Arc<BarMemory>,
}

impl Ivshmem {
    /// A device with this memory.
    #[must_use]
    pub fn new(memory: Arc<BarMemory>) -> Arc<Self> {
        Arc::new(Self { memory })
    }
}

impl Model for Ivshmem {
    fn read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn memory(&self) -> Vec<BarPages> {
        vec![BarPages { bar: MEMORY_BAR, offset: 0, memory: self.memory.clone() }]
    }

    fn reset(&self) {}
}
