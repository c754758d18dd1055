//! A port's own cache of translations.
//!
//! Direct-mapped by 4 KiB page: a large page takes one entry for each 4 KiB that is used of it. An entry holds the
//! window that the page lies in, so that a hit needs no further look-up.
#![allow(unsafe_code, reason = "entries point at windows, which the gate protocol keeps alive")]

use std::ptr::NonNull;

use iopt::{Access, Translation};

use crate::gate::Inside;
use crate::memory::Window;
use crate::types::Pasid;

use super::BusAddress;
use super::transfer::Place;

const ENTRIES: usize = 256;

/// One cached translation.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pasid: Option<Pasid>,
    /// First and last IOVA of the page, as far as the window goes.
    start: u64,
    last: u64,
    access: Access,
    window: NonNull<Window>,
    /// Where in the window `start` is.
    offset: u64,
}

impl Entry {
    pub(super) fn new(at: BusAddress, translation: &Translation, window: &Window) -> Self {
        // A page of the table lies in one window, as each window is mapped by a call of its own. That it does is taken
        // on trust from nobody: what is cached ends where the window ends.
        let mask = (1u64 << translation.page_shift) - 1;
        let here = translation.pa - window.base();
        let before = (at.iova.0 & mask).min(here);
        let after = (!at.iova.0 & mask).min(window.length() - 1 - here);
        Self {
            pasid: at.pasid,
            start: at.iova.0 - before,
            last: at.iova.0 + after,
            access: translation.access,
            window: NonNull::from(window),
            offset: here - before,
        }
    }
}

pub(super) struct Iotlb {
    entries: Box<[Option<Entry>; ENTRIES]>,
    /// The state of the gate's count that the entries belong to.
    posted: u64,
}

// SAFETY: an entry is followed only by whoever has the port, which one thread has at a time.
unsafe impl Send for Iotlb {}

impl Iotlb {
    pub(super) fn new() -> Self {
        Self { entries: Box::new([None; ENTRIES]), posted: 0 }
    }

    /// Forgets everything if anything was taken away since the last access.
    #[inline]
    pub(super) fn refresh(&mut self, posted: u64) {
        if self.posted != posted {
            self.posted = posted;
            self.entries.fill(None);
        }
    }

    /// The cached translation of `at`, if it allows `access`.
    #[inline]
    pub(super) fn lookup<'a>(
        &self,
        inside: &'a Inside<'_>,
        at: BusAddress,
        access: Access,
    ) -> Option<(Place<'a>, u64)> {
        debug_assert_eq!(self.posted, inside.posted());
        let iova = at.iova.0;
        let entry = self.entries[slot(at)].as_ref()?;
        if entry.pasid != at.pasid || iova < entry.start || iova > entry.last || !entry.access.contains(access) {
            return None;
        }
        // SAFETY: `posted` is the gate's, read inside it (the caller refreshed this cache with it), so nothing that
        // the entries lead to had been taken away when this access began. Whoever takes it away now waits at the gate
        // until `inside` is dropped before the window goes, and the reference does not outlive `inside`.
        let window: &'a Window = unsafe { entry.window.as_ref() };
        let place = Place::new(window.backing(), entry.offset + (iova - entry.start));
        Some((place, entry.last - iova + 1))
    }

    pub(super) fn insert(&mut self, at: BusAddress, entry: Entry) {
        self.entries[slot(at)] = Some(entry);
    }
}

fn slot(at: BusAddress) -> usize {
    (at.iova.0 >> 12) as usize % ENTRIES
}
