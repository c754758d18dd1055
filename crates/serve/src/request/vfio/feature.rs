//! VFIO_DEVICE_FEATURE: what some devices can do, and others not.

use std::os::fd::OwnedFd;
use std::sync::Mutex;

use ioasid_uapi::vfio::feature as uapi;
use ioasid_vfio::EventFd;
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::device::Opened;
use super::{dma_buf, get, lock};
use crate::request::Caller;

/// A feature: what can be done, and how many bytes of data it takes.
const FEATURES: [(u32, u32, usize); 7] = [
    (uapi::DMA_LOGGING_START, uapi::SET, size_of::<uapi::DmaLoggingControl>()),
    (uapi::DMA_LOGGING_STOP, uapi::SET, 0),
    (uapi::DMA_LOGGING_REPORT, uapi::GET, size_of::<uapi::DmaLoggingReport>()),
    (uapi::LOW_POWER_ENTRY, uapi::SET, 0),
    (uapi::LOW_POWER_ENTRY_WITH_WAKEUP, uapi::SET, size_of::<uapi::LowPowerEntryWithWakeup>()),
    (uapi::LOW_POWER_EXIT, uapi::SET, 0),
    (uapi::DMA_BUF, uapi::GET, size_of::<uapi::DmaBuf>()),
];

/// Performs the request, and returns 0 or a descriptor.
///
/// # Errors
/// `ENOTTY` for a feature that PCI devices do not have, or these; `EINVAL`, `EFAULT`, and each feature's own.
pub(super) fn request(opened: &Opened, address: u64, caller: &dyn Caller) -> Result<i64, Errno> {
    const HEAD: usize = size_of::<uapi::DeviceFeature>();
    let (uapi::DeviceFeature { flags, .. }, argsz) = get::<uapi::DeviceFeature>(address, caller, HEAD)?;
    let (done, probe) = (flags & (uapi::GET | uapi::SET), flags & uapi::PROBE != 0);
    let both = uapi::GET | uapi::SET;
    if flags & !(uapi::MASK | both | uapi::PROBE) != 0 || (!probe && done == both) {
        return Err(Errno::INVAL);
    }
    let number = flags & uapi::MASK;
    // Of a device that cannot be migrated Linux says this, and of its other features that it does not know them.
    if number == uapi::MIG_PRECOPY_INFO_V2 {
        return Err(Errno::INVAL);
    }
    let logging = [uapi::DMA_LOGGING_START, uapi::DMA_LOGGING_STOP, uapi::DMA_LOGGING_REPORT];
    let is_had = |number| !logging.contains(&number) || opened.dma_log().can_be();
    let found = FEATURES.iter().find(|(known, ..)| *known == number && is_had(number));
    let (_, can, length) = found.ok_or(Errno::NOTTY)?;
    if done & !can != 0 {
        return Err(Errno::INVAL);
    }
    if probe {
        return Ok(0);
    }
    if done == 0 || (argsz as usize) < HEAD + length {
        return Err(Errno::INVAL);
    }
    let data = address.wrapping_add(HEAD as u64);
    match number {
        uapi::DMA_BUF => dma_buf::export(opened, data, caller),
        uapi::DMA_LOGGING_START => opened.dma_log().start(data, caller).map(|()| 0),
        uapi::DMA_LOGGING_REPORT => opened.dma_log().report(data, caller).map(|()| 0),
        uapi::DMA_LOGGING_STOP => {
            opened.dma_log().stop();
            Ok(0)
        }
        uapi::LOW_POWER_ENTRY => opened.low_power().enter(None),
        uapi::LOW_POWER_ENTRY_WITH_WAKEUP => {
            let mut request = uapi::LowPowerEntryWithWakeup::new_zeroed();
            caller.read(data, request.as_mut_bytes())?;
            if request.reserved != 0 {
                return Err(Errno::INVAL);
            }
            let file: OwnedFd = caller.descriptor(request.wakeup_eventfd).map_err(|_| Errno::INVAL)?;
            opened.low_power().enter(Some(EventFd::new(file).map_err(|_| Errno::INVAL)?))
        }
        _ => {
            opened.low_power().exit();
            Ok(0)
        }
    }
}

/// Whether the program has a device asleep, and whom it wants told when the device wakes. A device of software needs no
/// power awake, either.
#[derive(Default)]
pub(super) struct LowPower(Mutex<Power>);

#[derive(Default)]
enum Power {
    #[default]
    Awake,
    Asleep,
    /// Until the program does something with the device.
    Waking(EventFd),
}

impl LowPower {
    fn enter(&self, wake: Option<EventFd>) -> Result<i64, Errno> {
        let mut power = lock(&self.0);
        let Power::Awake = *power else { return Err(Errno::INVAL) };
        *power = wake.map_or(Power::Asleep, Power::Waking);
        Ok(0)
    }

    fn exit(&self) {
        *lock(&self.0) = Power::Awake;
    }

    /// The program does something with the device, and is told if it wanted to be.
    pub(super) fn wake(&self) {
        let mut power = lock(&self.0);
        if let Power::Waking(told) = &*power {
            told.signal();
            *power = Power::Awake;
        }
    }
}
