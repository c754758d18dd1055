//! Single operations that another process answers. A sample is the mean of a batch.

use std::hint::black_box;
use std::os::unix::process::parent_id;

use anyhow::{Result, ensure};

use super::ioat::{CHANSTS_LOW, Engine};
use super::iommufd::Iommufd;
use super::vfio::Device;
use crate::run::time;
use crate::statistics::{Pairs, Side, interleave};

const PAIRS: usize = 51;
/// Operations in a batch.
const ROUND_TRIPS: usize = 100;
const SYSTEM_CALLS: usize = 10_000;

/// `IOMMU_IOAS_ALLOC` and `IOMMU_DESTROY`; on the other side, a getppid.
pub fn ioctl() -> Result<Pairs> {
    let context = Iommufd::open()?;
    interleave(PAIRS, |side| match side {
        Side::Ours => mean(ROUND_TRIPS, || context.destroy(context.alloc()?)),
        Side::Theirs => mean(SYSTEM_CALLS, || {
            black_box(parent_id());
            Ok(())
        }),
    })
}

/// A load from the status register, of 4 bytes. There is no other side.
pub fn register() -> Result<Pairs> {
    let context = Iommufd::open()?;
    let device = Device::bind(&context)?;
    let ioas = context.alloc()?;
    device.attach(ioas)?;
    let engine = Engine::new(device.registers()?, &context, ioas)?;
    let armed = engine.registers().read(&CHANSTS_LOW);
    let mut samples = Pairs::default();
    for _ in 0..PAIRS {
        samples.ours.push(mean(ROUND_TRIPS, || {
            ensure!(engine.registers().read(&CHANSTS_LOW) == armed, "the status of an idle channel changed");
            Ok(())
        })?);
    }
    Ok(samples)
}

/// How long one `operation` takes in the mean of `count`, in nanoseconds.
fn mean(count: usize, operation: impl Fn() -> Result<()>) -> Result<f64> {
    Ok(time(|| (0..count).try_for_each(|_| operation()))? / count as f64)
}
