//! The files of `/sys` that can be written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{CLOSES, Server};
use crate::driver::VFIO_PCI;
use crate::program::status::is_being_killed;
use crate::watch::PciDevice;

/// How long an unbind waits for the device's user; how often it asks the user, as Linux does; and how often it checks
/// that the thread that waits still lives.
const LONGEST: Duration = Duration::from_secs(60);
const ASK: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// What a file of `/sys` is that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribute {
    /// `bind` of vfio-pci
    Bind,
    /// `unbind` of vfio-pci
    Unbind,
    /// `new_id` of vfio-pci
    NewId,
    /// `remove_id` of vfio-pci
    RemoveId,
    /// `drivers_probe` of the bus
    Probe,
    /// `driver_override` of device N
    Override(usize),
    /// `reset` of device N
    Reset(usize),
}

impl Attribute {
    /// Whether it can be read.
    pub(crate) fn is_readable(self) -> bool {
        matches!(self, Self::Override(_))
    }
}

impl Server {
    /// What an attribute reads as; nothing if it can only be written.
    pub(crate) fn read_attribute(&self, attribute: Attribute) -> Option<String> {
        match attribute {
            Attribute::Override(number) => Some(self.devices.get(number)?.driver.wanted()),
            _ => None,
        }
    }

    /// Does what a thread of a program writes to an attribute. May wait for a device.
    ///
    /// # Errors
    /// As Linux: `ENODEV` for a device that is not there or that the driver does not match, `EBUSY`, `EINVAL`.
    pub(crate) fn write_attribute(&self, attribute: Attribute, text: &[u8], tid: u32) -> Result<(), Errno> {
        let text = std::str::from_utf8(text).map_err(|_| Errno::INVAL)?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        match attribute {
            Attribute::Bind => {
                let device = self.named(text).ok_or(Errno::NODEV)?;
                device.driver.bind(self.is_known(device))
            }
            Attribute::Unbind => {
                let device = self.named(text).ok_or(Errno::NODEV)?;
                self.unbind(device, tid)
            }
            Attribute::NewId => {
                self.known_ids.add(text)?;
                self.devices.iter().for_each(|device| self.probe(device));
                Ok(())
            }
            Attribute::RemoveId => self.known_ids.remove(text),
            Attribute::Probe => {
                self.probe(self.named(text).ok_or(Errno::NODEV)?);
                Ok(())
            }
            Attribute::Override(number) => self.devices.get(number).ok_or(Errno::NODEV)?.driver.want(text),
            Attribute::Reset(number) => {
                let device = self.devices.get(number).ok_or(Errno::NODEV)?;
                if text.trim() != "1" {
                    return Err(Errno::INVAL);
                }
                // Closing resets it, and none that is open is reset behind the back of whoever has it.
                self.when_closed(|| device.vfio.open().map(drop).map_err(|_| Errno::BUSY))
            }
        }
    }

    /// Unbinds a device, for this thread. If the device is open, the server asks its user to let go of it, and the
    /// thread waits for that: unless its process has device files open and may be the user, or is being killed.
    fn unbind(&self, device: &PciDevice, tid: u32) -> Result<(), Errno> {
        let begun = Instant::now();
        let mut asked = 0;
        loop {
            let unbound = self.when_closed(|| device.driver.unbind());
            let waited = begun.elapsed();
            if unbound != Err(Errno::BUSY) || waited > LONGEST || self.has_device(tid) || is_being_killed(tid) {
                return unbound;
            }
            if waited >= ASK * asked {
                device.vfio.ask_back();
                asked += 1;
            }
            device.driver.wait_unused(LOOK);
        }
    }

    /// Does something; if a device is in use, once more when those that were closed before are closed to the end.
    fn when_closed<T>(&self, act: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match act() {
            Err(Errno::BUSY) => {
                self.drain(CLOSES);
                act()
            }
            result => result,
        }
    }

    /// The device at this place on the bus.
    fn named(&self, name: &str) -> Option<&Arc<PciDevice>> {
        self.devices.iter().find(|device| device.rid.to_string() == name)
    }

    fn is_known(&self, device: &PciDevice) -> bool {
        let spec = device.vfio.function().spec();
        self.known_ids.has(spec.vendor, spec.device)
    }

    /// Looks for a driver for a device; it may find none, or have one.
    fn probe(&self, device: &PciDevice) {
        let _ = device.driver.bind(self.is_known(device));
    }

    /// Whether some of these devices, by number, are bound to vfio-pci.
    pub(crate) fn is_some_bound(&self, numbers: &[usize]) -> bool {
        numbers.iter().filter_map(|&number| self.devices.get(number)).any(|device| device.driver.is_bound())
    }
}

/// What `uevent` of a device begins with, if it is bound.
pub(crate) fn driver_line(device: &PciDevice) -> String {
    if device.driver.is_bound() { format!("DRIVER={VFIO_PCI}\n") } else { String::new() }
}
