//! Single requests on `/dev/iommu`, each with a device attached, beside a plain system call. A sample is the mean of a
//! batch.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::os::unix::process::parent_id;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::iommufd::Iommufd;
use super::vfio::Device;
use crate::memory::Shared;
use crate::run::time;

/// Those that are measured.
pub const REQUESTS: [&str; 7] = [
    "IOAS_ALLOC",
    "DESTROY",
    "IOAS_IOVA_RANGES",
    "IOAS_MAP, shared memory",
    "IOAS_MAP, private memory",
    "IOAS_COPY",
    "IOAS_UNMAP",
];

const SAMPLES: usize = 21;
/// Requests of a batch.
const BATCH: u64 = 200;
const SYSTEM_CALLS: u64 = 10_000;
const PAGE: u64 = 4096;
const IOVA: u64 = 1 << 30;
const COPIES: u64 = 1 << 31;

/// Samples of each request by its name, and of the system call, in nanoseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Requests {
    /// Of [`REQUESTS`].
    pub requests: BTreeMap<String, Vec<f64>>,
    /// A getppid.
    pub system_call: Vec<f64>,
}

/// All of them.
///
/// # Errors
/// Of a request.
pub fn measure() -> Result<Requests> {
    let context = Iommufd::open()?;
    let device = Device::bind(&context)?;
    let ioas = context.alloc()?;
    device.attach(ioas)?;
    let length = (BATCH * PAGE) as usize;
    let (shared, private, answer) = (Shared::anonymous(length)?, Shared::private(length)?, Shared::anonymous(4096)?);
    shared.fill(1);
    private.fill(1);
    let part = |n: u64| (n * PAGE) as usize..((n + 1) * PAGE) as usize;

    let mut all = Requests::default();
    // The first round warms up.
    for round in 0..=SAMPLES {
        let mut note = |name: &str, count: u64, work: &mut dyn FnMut(u64) -> Result<()>| {
            let taken = time(|| (0..count).try_for_each(work))? / count as f64;
            if round > 0 {
                all.requests.entry(name.into()).or_default().push(taken);
            }
            anyhow::Ok(())
        };
        let [alloc, destroy, ranges, map_shared, map_private, copy, unmap] = REQUESTS;
        let mut spaces = Vec::new();
        note(alloc, BATCH, &mut |_| {
            spaces.push(context.alloc()?);
            Ok(())
        })?;
        note(destroy, BATCH, &mut |_| spaces.pop().map_or(Ok(()), |ioas| context.destroy(ioas)))?;
        note(ranges, BATCH, &mut |_| context.ranges(ioas, &answer))?;
        for (name, memory) in [(map_private, &private), (map_shared, &shared)] {
            if name == map_shared {
                context.unmap_range(ioas, IOVA, BATCH * PAGE)?;
            }
            note(name, BATCH, &mut |n| context.map_part(ioas, Some(IOVA + n * PAGE), memory, part(n)).map(drop))?;
        }
        note(copy, BATCH, &mut |n| context.copy(ioas, IOVA + n * PAGE, COPIES + n * PAGE, PAGE))?;
        note(unmap, BATCH, &mut |n| context.unmap_range(ioas, COPIES + n * PAGE, PAGE))?;
        context.unmap_range(ioas, IOVA, BATCH * PAGE)?;
        let system_call = time(|| {
            (0..SYSTEM_CALLS).for_each(|_| {
                black_box(parent_id());
            });
            Ok(())
        })? / SYSTEM_CALLS as f64;
        if round > 0 {
            all.system_call.push(system_call);
        }
    }
    Ok(all)
}
