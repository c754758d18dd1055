//! The rings, as the front end has set them up so far.

use std::sync::Arc;

use ioasid_vfio::EventFd;

use super::ServedRing;
use super::memory::Memory;
use crate::vhost_user::wire::VringAddress;

/// A ring.
#[derive(Debug, Default)]
pub(super) struct RingState {
    pub(super) size: u16,
    pub(super) base: u16,
    pub(super) address: Option<VringAddress>,
    /// With which it starts.
    pub(super) kick: Option<Arc<EventFd>>,
    pub(super) call: Option<Arc<EventFd>>,
    /// Is signalled when the device cannot go on.
    pub(super) error: Option<Arc<EventFd>>,
    pub(super) is_enabled: bool,
}

impl RingState {
    /// The ring for a device, if there is all that it takes to serve it.
    pub(super) fn served(&self, index: u16, memory: &Memory) -> Option<ServedRing> {
        let Self { size, base, address, kick, call, is_enabled, .. } = self;
        let (address, kick) = (address.filter(|_| *is_enabled && *size > 0)?, kick.clone()?);
        let at = |user: u64| memory.device_address(user);
        Some(ServedRing {
            index,
            size: *size,
            base: *base,
            descriptors: at(address.descriptors.get())?,
            driver: at(address.driver.get())?,
            device: at(address.device.get())?,
            kick,
            call: call.clone(),
        })
    }
}
