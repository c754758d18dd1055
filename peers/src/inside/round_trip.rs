//! Single operations that another process answers. A sample is the mean of a batch.

use std::hint::black_box;
use std::os::unix::process::parent_id;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::ioat::{CHANSTS_LOW, Engine};
use super::iommufd::Iommufd;
use super::vfio::Device;
use crate::memory::Shared;
use crate::process::{pin, processors};
use crate::run::time;
use crate::statistics::{FEWEST_PAIRS, Pairs, Side, interleave};
use crate::theirs::vfio_user;

const PAIRS: usize = 51;
/// Operations in a batch.
const ROUND_TRIPS: usize = 100;
const SYSTEM_CALLS: usize = 10_000;
const LOADS: usize = 2_000;
const STORES: usize = 100_000;

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

/// Loads from the status register, of 4 bytes; on the other side, reads of one over vfio-user's socket.
pub fn register_polled() -> Result<Pairs> {
    register(PAIRS, LOADS, Duration::ZERO)
}

/// The same, with a pause before each.
pub fn register_once() -> Result<Pairs> {
    register(FEWEST_PAIRS, 20, Duration::from_millis(10))
}

fn register(pairs: usize, count: usize, pause: Duration) -> Result<Pairs> {
    let processors = processors()?;
    let [client, server, ..] = processors[..] else { bail!("two processors are wanted: {processors:?} are here") };
    let context = Iommufd::open()?;
    let device = Device::bind(&context)?;
    let ioas = context.alloc()?;
    device.attach(ioas)?;
    let engine = Engine::new(device.registers()?, &context, ioas)?;
    let armed = engine.registers().read(&CHANSTS_LOW);
    let mut theirs = vfio_user::Device::start(server)?;
    pin(client)?;
    interleave(pairs, |side| match side {
        Side::Ours => mean_apart(count, pause, || {
            ensure!(engine.registers().read(&CHANSTS_LOW) == armed, "the status of an idle channel changed");
            Ok(())
        }),
        Side::Theirs => mean_apart(count, pause, || theirs.read()),
    })
}

/// Stores to a BAR that is memory, of 4 bytes; on the other side, to shared memory.
#[allow(unsafe_code, reason = "memory that is shared with a device")]
pub fn doorbell() -> Result<Pairs> {
    let context = Iommufd::open()?;
    let device = Device::bind(&context)?;
    let (ours, theirs) = (device.memory()?, Shared::anonymous(4096)?);
    let mut value = 0;
    interleave(PAIRS, |side| {
        let memory = if side == Side::Ours { &ours } else { &theirs };
        let place = memory.start().cast::<u32>();
        mean(STORES, || {
            value += 1;
            // SAFETY: within the mapping, which is aligned.
            unsafe { place.write_volatile(value) };
            Ok(())
        })
    })
}

/// How long one `operation` takes in the mean of `count`, in nanoseconds, each after a pause that is not counted.
fn mean_apart(count: usize, pause: Duration, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
    if pause.is_zero() {
        return mean(count, operation);
    }
    let mut sum = 0.0;
    for _ in 0..count {
        thread::sleep(pause);
        sum += time(&mut operation)?;
    }
    Ok(sum / count as f64)
}

/// How long one `operation` takes in the mean of `count`, in nanoseconds.
fn mean(count: usize, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
    Ok(time(|| (0..count).try_for_each(|_| operation()))? / count as f64)
}
