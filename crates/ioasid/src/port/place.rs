//! A port one translation at a time, for callers that look after its gate themselves (`guest_memory`).

use iopt::Access;

use crate::base::types::Pasid;
use crate::gate::{Held, Inside};

use super::bus::Bus;
use super::translate::Refused;
use super::{BusAddress, DmaPort};

impl DmaPort {
    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Gets memory for the accesses with `pasid` that follow. Outside the gate: a thread that waits there must not wait
    /// for memory.
    pub(crate) fn prepare(&mut self, pasid: Option<Pasid>) {
        self.translator.prepare(pasid);
    }

    /// Whether [`DmaPort::prepare`] is worth it again.
    pub(crate) fn is_crowded(&self) -> bool {
        self.translator.is_crowded()
    }

    /// Forgets what was taken away since the last access. Once in each, before anything is translated.
    #[inline(always)]
    pub(crate) fn refresh(&mut self, inside: &Inside<'_>) {
        self.translator.refresh(inside);
    }

    /// Where in this process `at` leads, and how far, if that is cached and `access` is allowed. As long as the access
    /// lasts that the caller refreshed for.
    #[inline(always)]
    pub(crate) fn hit(&mut self, at: BusAddress, access: Access) -> Option<(*mut u8, u64)> {
        self.translator.hit(at, access)
    }

    /// As [`DmaPort::hit`], cached or not.
    ///
    /// # Errors
    /// What the observer was not told yet.
    pub(crate) fn place(&mut self, held: &Held<'_>, at: BusAddress, access: Access) -> Result<(*mut u8, u64), Refused> {
        self.translator.translate_here(&self.bus, held.inside(), at, access)
    }
}
