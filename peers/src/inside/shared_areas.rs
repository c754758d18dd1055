//! Many areas of 4 KiB of shared memory, and what they cost the runner: its mappings and its memory.

use std::fs;
use std::os::unix::process::parent_id;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::iommufd::Iommufd;
use super::vfio::Device;
use crate::memory::Shared;
use crate::run::time;

/// How many there are.
pub const COUNTS: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];

const PAGE: u64 = 4096;
const IOVA: u64 = 1 << 36;

/// What one of [`COUNTS`] costs.
#[derive(Debug, Serialize, Deserialize)]
pub struct SharedAreas {
    /// Nanoseconds to map one.
    pub map: f64,
    /// Nanoseconds to unmap one.
    pub unmap: f64,
    /// Mappings that the runner has with all of them, and had before.
    pub mappings: (usize, usize),
    /// Bytes of the runner's own memory for each.
    pub bytes: f64,
}

/// Each of [`COUNTS`], with an address space of its own, in which no two areas lie side by side.
///
/// # Errors
/// Of a request, or of a look at the runner.
pub fn measure() -> Result<Vec<SharedAreas>> {
    let context = Iommufd::open()?;
    let device = Device::bind(&context)?;
    let runner = runner()?;
    COUNTS.map(u64::from).into_iter().map(|count| one(&context, &device, &runner, count)).collect()
}

fn one(context: &Iommufd, device: &Device, runner: &str, count: u64) -> Result<SharedAreas> {
    let ioas = context.alloc()?;
    device.attach(ioas)?;
    let memory = Shared::anonymous((count * PAGE) as usize)?;
    let before = (mappings(runner)?, own_memory(runner)?);
    let map = time(|| {
        (0..count).try_for_each(|n| {
            let start = (n * PAGE) as usize;
            context.map_part(ioas, Some(IOVA + 2 * n * PAGE), &memory, start..start + PAGE as usize).map(drop)
        })
    })?;
    let after = (mappings(runner)?, own_memory(runner)?);
    let unmap = time(|| (0..count).try_for_each(|n| context.unmap_range(ioas, IOVA + 2 * n * PAGE, PAGE)))?;
    Ok(SharedAreas {
        map: map / count as f64,
        unmap: unmap / count as f64,
        mappings: (after.0, before.0),
        bytes: after.1.saturating_sub(before.1) as f64 / count as f64,
    })
}

/// The runner's process number: the parent of this process's parent.
fn runner() -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{}/status", parent_id()))?;
    Ok(field(&status, "PPid:").context("this process's parent has no parent")?.to_owned())
}

fn mappings(process: &str) -> Result<usize> {
    Ok(fs::read_to_string(format!("/proc/{process}/maps"))?.lines().count())
}

/// Bytes of memory that are the process's alone, and not a file's.
fn own_memory(process: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let text = field(&status, "RssAnon:").context("the kernel does not say how much memory there is")?;
    Ok(text.trim_end_matches(" kB").parse::<u64>()? << 10)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
