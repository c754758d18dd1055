//! Many areas of 4 KiB, each mapped by a request of its own, with a device attached, and unmapped again.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::iommufd::Iommufd;
use super::vfio::Device;
use crate::memory::Shared;
use crate::run::time;

/// How many there are.
pub const COUNTS: [u32; 4] = [1 << 10, 1 << 12, 1 << 14, 1 << 16];

const SAMPLES: usize = 3;
const PAGE: u64 = 4096;
const IOVA: u64 = 1 << 32;
/// Pages of memory, which are mapped again and again.
const MEMORY: u64 = 1 << 10;

/// Nanoseconds for each area, for one of [`COUNTS`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Growth {
    /// Mapped at a given IOVA.
    pub map: Vec<f64>,
    /// Unmapped one by one.
    pub unmap: Vec<f64>,
}

/// For each of [`COUNTS`].
///
/// # Errors
/// Of a request.
pub fn measure() -> Result<Vec<Growth>> {
    let context = Iommufd::open()?;
    let device = Device::bind(&context)?;
    let ioas = context.alloc()?;
    device.attach(ioas)?;
    let memory = Shared::private((MEMORY * PAGE) as usize)?;
    memory.fill(1);
    let mut all = Vec::new();
    for count in COUNTS.map(u64::from) {
        let mut growth = Growth::default();
        for _ in 0..SAMPLES {
            let map = time(|| {
                (0..count).try_for_each(|n| {
                    let start = (n % MEMORY * PAGE) as usize;
                    let bytes = start..start + PAGE as usize;
                    context.map_part(ioas, Some(IOVA + n * PAGE), &memory, bytes).map(drop)
                })
            })?;
            let unmap = time(|| (0..count).try_for_each(|n| context.unmap_range(ioas, IOVA + n * PAGE, PAGE)))?;
            growth.map.push(map / count as f64);
            growth.unmap.push(unmap / count as f64);
        }
        all.push(growth);
    }
    Ok(all)
}
