//! vfio-pci as a driver that devices are bound to and unbound from, by way of `/sys`.
//!
//! Source: Linux `Documentation/ABI/testing/sysfs-bus-pci`, `Documentation/driver-api/driver-model/binding.rst`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

/// The name of the one driver that there is.
pub(crate) const VFIO_PCI: &str = "vfio-pci";

/// The most devices that the driver can be told to know: the runner looks through them.
const MOST_IDS: usize = 4096;

/// The longest name of a driver that a device can be told to want.
const LONGEST_NAME: usize = 4094;

/// Whether a device is bound to vfio-pci.
pub struct Driver {
    state: Mutex<State>,
    /// It is not open any more.
    unused: Condvar,
}

struct State {
    /// How often it is open, if it is bound.
    users: Option<usize>,
    /// The one driver that it may be bound to, if it was told.
    wanted: Option<String>,
}

impl Default for Driver {
    /// Bound, and told to be.
    fn default() -> Self {
        let state = State { users: Some(0), wanted: Some(VFIO_PCI.to_owned()) };
        Self { state: Mutex::new(state), unused: Condvar::new() }
    }
}

impl Driver {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is not open, or for so long.
    pub(crate) fn wait_unused(&self, longest: Duration) {
        let is_used = |state: &mut State| state.users.is_some_and(|users| users > 0);
        let _ = self.unused.wait_timeout_while(self.lock(), longest, is_used);
    }

    pub(crate) fn is_bound(&self) -> bool {
        self.lock().users.is_some()
    }

    /// Keeps it from being unbound as long as what is returned is there.
    ///
    /// # Errors
    /// `ENODEV` if it is not bound.
    pub(crate) fn hold(self: &Arc<Self>) -> Result<DriverHold, Errno> {
        *self.lock().users.as_mut().ok_or(Errno::NODEV)? += 1;
        Ok(DriverHold(self.clone()))
    }

    /// Binds it, if it wants to, or wants no driver in particular and `is_known` to the driver.
    ///
    /// # Errors
    /// `ENODEV` if it does not want to, `EBUSY` if it is bound.
    pub(crate) fn bind(&self, is_known: bool) -> Result<(), Errno> {
        let mut state = self.lock();
        if !state.wanted.as_ref().map_or(is_known, |wanted| wanted == VFIO_PCI) {
            return Err(Errno::NODEV);
        }
        if state.users.is_some() {
            return Err(Errno::BUSY);
        }
        state.users = Some(0);
        Ok(())
    }

    /// Unbinds it.
    ///
    /// # Errors
    /// `ENODEV` if it is not bound, `EBUSY` if it is open.
    pub(crate) fn unbind(&self) -> Result<(), Errno> {
        let mut state = self.lock();
        match state.users {
            None => Err(Errno::NODEV),
            Some(0) => {
                state.users = None;
                Ok(())
            }
            Some(_) => Err(Errno::BUSY),
        }
    }

    /// `driver_override` as it reads.
    pub(crate) fn wanted(&self) -> String {
        format!("{}\n", self.lock().wanted.as_deref().unwrap_or("(null)"))
    }

    /// `driver_override` as it is written; what is bound stays so.
    ///
    /// # Errors
    /// `EINVAL` if the name is too long.
    pub(crate) fn want(&self, name: &str) -> Result<(), Errno> {
        if name.len() > LONGEST_NAME {
            return Err(Errno::INVAL);
        }
        self.lock().wanted = (!name.is_empty()).then(|| name.to_owned());
        Ok(())
    }
}

/// Keeps a device from being unbound.
pub(crate) struct DriverHold(Arc<Driver>);

impl Drop for DriverHold {
    fn drop(&mut self) {
        if let Some(users) = &mut self.0.lock().users {
            *users -= 1;
        }
        self.0.unused.notify_all();
    }
}

/// The devices, by vendor and number, that the driver was told to know.
#[derive(Default)]
pub(crate) struct KnownIds(Mutex<Vec<(u32, u32)>>);

impl KnownIds {
    fn lock(&self) -> MutexGuard<'_, Vec<(u32, u32)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has(&self, vendor: u16, device: u16) -> bool {
        self.lock().contains(&(vendor.into(), device.into()))
    }

    /// `new_id` as it is written.
    ///
    /// # Errors
    /// `EINVAL` if it is not two numbers or more, `EEXIST`, `ENOMEM` if there are very many.
    pub(crate) fn add(&self, text: &str) -> Result<(), Errno> {
        let id = parse(text)?;
        let mut known = self.lock();
        if known.contains(&id) {
            return Err(Errno::EXIST);
        }
        if known.len() >= MOST_IDS {
            return Err(Errno::NOMEM);
        }
        known.push(id);
        Ok(())
    }

    /// `remove_id` as it is written.
    ///
    /// # Errors
    /// `EINVAL` if it is not two numbers or more, `ENODEV` if it is not known.
    pub(crate) fn remove(&self, text: &str) -> Result<(), Errno> {
        let id = parse(text)?;
        let mut known = self.lock();
        let at = known.iter().position(|other| *other == id).ok_or(Errno::NODEV)?;
        known.remove(at);
        Ok(())
    }
}

/// Vendor and device, in hexadecimal digits; what may follow is not looked at.
fn parse(text: &str) -> Result<(u32, u32), Errno> {
    let (vendor, rest) = number(text).ok_or(Errno::INVAL)?;
    let (device, _) = number(rest).ok_or(Errno::INVAL)?;
    Ok((vendor, device))
}

/// The number that a text begins with, as the kernel reads it, and what follows.
fn number(text: &str) -> Option<(u32, &str)> {
    let text = text.trim_ascii_start();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let end = digits.find(|letter: char| !letter.is_ascii_hexdigit()).unwrap_or(digits.len());
    let value = digits[..end].chars().filter_map(|digit| digit.to_digit(16));
    (end > 0).then(|| (value.fold(0u32, |sum, digit| sum << 4 | digit), &digits[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_bound_to_what_it_wants_only() {
        let driver = Arc::new(Driver::default());
        assert_eq!((driver.is_bound(), driver.bind(true)), (true, Err(Errno::BUSY)));
        let hold = driver.hold().unwrap();
        assert_eq!(driver.unbind(), Err(Errno::BUSY));
        drop(hold);
        assert_eq!((driver.unbind(), driver.unbind()), (Ok(()), Err(Errno::NODEV)));
        assert!(matches!(driver.hold(), Err(Errno::NODEV)));
        driver.want("other").unwrap();
        assert_eq!((driver.bind(true), driver.wanted()), (Err(Errno::NODEV), "other\n".to_owned()));
        driver.want("").unwrap();
        assert_eq!((driver.bind(false), driver.wanted()), (Err(Errno::NODEV), "(null)\n".to_owned()));
        assert_eq!((driver.bind(true), driver.is_bound()), (Ok(()), true));
        assert_eq!(driver.want(&"x".repeat(LONGEST_NAME + 1)), Err(Errno::INVAL));
    }

    #[test]
    fn ids_are_two_numbers() {
        let known = KnownIds::default();
        for text in ["", "8086", "8086 x", "80x86 2021", "8086,2021"] {
            assert_eq!((known.add(text), known.remove(text)), (Err(Errno::INVAL), Err(Errno::INVAL)), "{text:?}");
        }
        assert_eq!((known.add("8086 2021"), known.add("0x8086\t0x2021 1 2")), (Ok(()), Err(Errno::EXIST)));
        assert!(known.has(0x8086, 0x2021) && !known.has(0x2021, 0x8086));
        assert_eq!((known.remove("8086 2021"), known.remove("8086 2021")), (Ok(()), Err(Errno::NODEV)));
        let all = KnownIds::default();
        (0..MOST_IDS).for_each(|id| all.add(&format!("{id:x} 1")).unwrap());
        assert_eq!((all.add("1 2"), all.remove("1 1"), all.add("1 2")), (Err(Errno::NOMEM), Ok(()), Ok(())));
        assert!(!known.has(0x8086, 0x2021));
    }
}
