//! What runs under `ioasid run`: a program of its own, that happens to be in the same binary.
//!
//! It drives the device as any program would on Linux, with none of the crates that it measures, and
//! prints its samples as JSON on standard output, for [`crate::run`] to read.
//!
//! ```text
//!  iommufd ── context, address space, mappings      uapi ── the structures of both
//!  vfio ───── device, its registers                 ioat ── the engine behind them
//!  nvme ───── reads by the driver of examples/nvme
//!  copy, round_trip, requests, areas, shared_areas ── the measurements
//! ```

mod areas;
mod copy;
mod ioat;
mod iommufd;
mod nvme;
mod requests;
mod round_trip;
mod shared_areas;
mod uapi;
mod vfio;

use anyhow::Result;
use clap::ValueEnum;

pub use areas::{COUNTS as AREA_COUNTS, Growth};
pub use copy::LENGTH as COPY_LENGTH;
pub use nvme::{DEPTHS as NVME_DEPTHS, Doorbells as NvmeDoorbells, Nvme};
pub use requests::{REQUESTS, Requests};
pub use shared_areas::{COUNTS as SHARED_AREA_COUNTS, SharedAreas};

/// One thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Task {
    /// Copies with the engine and with memcpy, with all pages present.
    Copy,
    /// The same after mapping the memory anew.
    CopyCold,
    /// A request on `/dev/iommu`, and a plain system call.
    Ioctl,
    /// Single requests on `/dev/iommu`, and a plain system call.
    Requests,
    /// Many areas, mapped and unmapped.
    Areas,
    /// The same of shared memory, and what they cost the runner.
    SharedAreas,
    /// Loads from a register, and reads of one behind a socket.
    Register,
    /// The same, once in 10 ms.
    RegisterOnce,
    /// Stores to a BAR that is memory, and to memory.
    Doorbell,
    /// Reads of NVMe blocks, with doorbells that are registers.
    NvmeRegisters,
    /// With doorbells that are a page of memory.
    NvmePage,
    /// With doorbells in buffers of the driver's.
    NvmeBuffers,
}

impl Task {
    /// The device that it drives.
    pub fn device(self) -> &'static str {
        match self {
            Self::Doorbell => "ivshmem",
            Self::NvmeRegisters | Self::NvmeBuffers => "nvme,memory=64M,lba=4096",
            Self::NvmePage => "nvme,memory=64M,lba=4096,doorbells=memory",
            _ => "ioat",
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::CopyCold => "copy-cold",
            Self::Ioctl => "ioctl",
            Self::Requests => "requests",
            Self::Areas => "areas",
            Self::SharedAreas => "shared-areas",
            Self::Register => "register",
            Self::RegisterOnce => "register-once",
            Self::Doorbell => "doorbell",
            Self::NvmeRegisters => "nvme-registers",
            Self::NvmePage => "nvme-page",
            Self::NvmeBuffers => "nvme-buffers",
        }
    }
}

/// Measures `task` and prints the samples.
///
/// # Errors
/// If something does not work here, above all if this is not under `ioasid run`.
pub fn perform(task: Task) -> Result<()> {
    let samples = match task {
        Task::Copy => serde_json::to_string(&copy::warm()?),
        Task::CopyCold => serde_json::to_string(&copy::cold()?),
        Task::Ioctl => serde_json::to_string(&round_trip::ioctl()?),
        Task::Requests => serde_json::to_string(&requests::measure()?),
        Task::Areas => serde_json::to_string(&areas::measure()?),
        Task::SharedAreas => serde_json::to_string(&shared_areas::measure()?),
        Task::Register => serde_json::to_string(&round_trip::register_polled()?),
        Task::RegisterOnce => serde_json::to_string(&round_trip::register_once()?),
        Task::Doorbell => serde_json::to_string(&round_trip::doorbell()?),
        Task::NvmeRegisters => serde_json::to_string(&nvme::measure(nvme::Doorbells::Registers)?),
        Task::NvmePage => serde_json::to_string(&nvme::measure(nvme::Doorbells::Page)?),
        Task::NvmeBuffers => serde_json::to_string(&nvme::measure(nvme::Doorbells::Buffers)?),
    }?;
    println!("{samples}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_known_by_its_name() {
        for task in Task::value_variants() {
            assert_eq!(Task::from_str(task.name(), false), Ok(*task));
        }
    }
}
