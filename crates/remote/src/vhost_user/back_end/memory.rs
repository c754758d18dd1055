//! What the front end lets the device reach: regions of its memory, and translations to addresses in them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ioasid::memory::Pages;
use ioasid::{Access, Ioas, Iova, IovaRange};
use rustix::fs::{OFlags, fcntl_getfl};
use thiserror::Error;

use crate::socket::{Files, Passed};
use crate::vhost_user::wire::MemoryRegion;

/// Regions of a front end's memory, at the most.
pub(super) const MOST_REGIONS: usize = 509;

/// Translations that are kept; when there are more, all are forgotten, and asked for again.
const MOST_TRANSLATIONS: usize = 1 << 16;

/// Why memory is not what it was to be.
#[derive(Debug, Error)]
pub(super) enum MemoryError {
    /// A descriptor is no memory.
    #[error("a region is in no memfd, nor in another file of memory")]
    NoMemory,
    /// There are too many.
    #[error("more than {MOST_REGIONS} regions")]
    TooMany,
    /// There is none like that.
    #[error("there is no such region")]
    NoRegion,
    /// It does not consist of pages, or cannot be mapped.
    #[error("{0}")]
    Map(String),
}

/// A region, and the pages that it is.
#[derive(Debug)]
struct Region {
    at: MemoryRegion,
    pages: Arc<Pages>,
    /// What its descriptor allows.
    access: Access,
}

impl Region {
    /// How far into it an address of the front end's is.
    fn offset(&self, user: u64) -> Option<u64> {
        user.checked_sub(self.at.user.get()).filter(|offset| *offset < self.at.size.get())
    }
}

/// What the device can reach.
#[derive(Debug)]
pub(super) struct Memory {
    ioas: Arc<Ioas>,
    files: Files,
    regions: Vec<Region>,
    /// Whether addresses are translated. If not, they are those of the regions.
    is_translated: bool,
    /// The first and last IOVA of each translation.
    translations: BTreeMap<u64, u64>,
}

impl Memory {
    pub(super) fn new(ioas: Arc<Ioas>) -> Self {
        let (files, regions, translations) = (Files::default(), Vec::new(), BTreeMap::new());
        Self { ioas, files, regions, is_translated: false, translations }
    }

    /// Whether addresses are translated from now on. The device is at rest.
    pub(super) fn translate(&mut self, is_translated: bool) -> Result<(), MemoryError> {
        if self.is_translated == is_translated {
            return Ok(());
        }
        self.forget(IovaRange::ALL)?;
        self.clear()?;
        self.is_translated = is_translated;
        self.regions.iter().try_for_each(|region| self.map(region)).or_else(|error| {
            // Regions that are in each other's way are not where addresses are translated.
            self.is_translated = true;
            self.clear().and(Err(error))
        })
    }

    /// Other regions than so far. The device is at rest.
    pub(super) fn replace(&mut self, regions: &[MemoryRegion], mut files: Passed) -> Result<(), MemoryError> {
        let pages = files.take_memories().ok_or(MemoryError::NoMemory)?;
        let regions = regions.iter().zip(pages).map(|(at, file)| self.region(*at, file));
        let regions = regions.collect::<Result<Vec<_>, _>>()?;
        self.translations.clear();
        self.clear()?;
        let before = std::mem::replace(&mut self.regions, regions);
        self.regions.iter().try_for_each(|region| self.map(region)).inspect_err(|_| {
            // What was mapped before can be mapped again; what cannot, as its file was cut short, is not there.
            self.regions = before;
            if self.clear().is_ok() {
                let _ = self.regions.iter().try_for_each(|region| self.map(region));
            }
        })
    }

    /// One more.
    pub(super) fn add(&mut self, at: MemoryRegion, mut files: Passed) -> Result<(), MemoryError> {
        if self.regions.len() >= MOST_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let file = files.take_memory(0).ok_or(MemoryError::NoMemory)?;
        let region = self.region(at, file)?;
        self.map(&region)?;
        self.regions.push(region);
        Ok(())
    }

    /// One less. When this returns, nothing of it is reached any more.
    pub(super) fn remove(&mut self, at: &MemoryRegion) -> Result<(), MemoryError> {
        let is_it = |region: &Region| {
            let MemoryRegion { guest, size, user, .. } = region.at;
            (guest, size, user) == (at.guest, at.size, at.user)
        };
        let place = self.regions.iter().position(is_it).ok_or(MemoryError::NoRegion)?;
        if self.is_translated {
            // Which translations lead to it is not kept; the device asks again for the others.
            self.forget(IovaRange::ALL)?;
        } else if let Some(range) = IovaRange::new(at.guest.get(), at.size.get()) {
            self.ioas.unmap(range).map_err(|error| MemoryError::Map(error.to_string()))?;
        }
        self.regions.remove(place);
        Ok(())
    }

    fn region(&self, at: MemoryRegion, file: std::os::fd::OwnedFd) -> Result<Region, MemoryError> {
        let flags = fcntl_getfl(&file).map_err(|error| MemoryError::Map(error.to_string()))?;
        let access = if flags.contains(OFlags::RDWR) { Access::all() } else { Access::READ };
        let file = self.files.share(file).map_err(|error| MemoryError::Map(error.to_string()))?;
        let pages = Pages::of_file(file, at.offset.get(), at.size.get(), access.contains(Access::WRITE));
        Ok(Region { at, pages, access })
    }

    fn map(&self, region: &Region) -> Result<(), MemoryError> {
        if self.is_translated {
            return Ok(());
        }
        let (iova, size) = (Iova(region.at.guest.get()), region.at.size.get());
        let mapped = self.ioas.map_pages(Some(iova), &region.pages, 0, size, region.access);
        mapped.map(drop).map_err(|error| MemoryError::Map(error.to_string()))
    }

    fn clear(&self) -> Result<(), MemoryError> {
        match self.ioas.unmap(IovaRange::ALL) {
            Ok(_) | Err(ioasid::UnmapError::Empty(_)) => Ok(()),
            Err(error) => Err(MemoryError::Map(error.to_string())),
        }
    }

    /// The device's address for one of the front end's, as rings are told where addresses are not translated.
    pub(super) fn device_address(&self, user: u64) -> Option<u64> {
        if self.is_translated {
            return Some(user);
        }
        let found = self.regions.iter().find_map(|region| Some((region, region.offset(user)?)));
        found.map(|(region, offset)| region.at.guest.get() + offset)
    }

    /// What is at these IOVAs: memory at an address of the front end's.
    pub(super) fn update(&mut self, range: IovaRange, user: u64, access: Access) -> Result<(), MemoryError> {
        self.forget(range)?;
        if self.translations.len() >= MOST_TRANSLATIONS {
            self.forget(IovaRange::ALL)?;
        }
        let found = self.regions.iter().find_map(|region| Some((region, region.offset(user)?)));
        let (region, offset) = found.ok_or(MemoryError::NoRegion)?;
        let length = (range.len_minus_one()).saturating_add(1).min(region.at.size.get() - offset);
        let mapped = self.ioas.map_pages(Some(Iova(range.start())), &region.pages, offset, length, access);
        mapped.map_err(|error| MemoryError::Map(error.to_string()))?;
        self.translations.insert(range.start(), range.start() + (length - 1));
        Ok(())
    }

    /// Forgets every translation that has something of this range. When this returns, nothing goes by them any more.
    pub(super) fn forget(&mut self, range: IovaRange) -> Result<(), MemoryError> {
        let before = self.translations.range(..=range.last()).rev();
        let reached: Vec<(u64, u64)> =
            before.take_while(|(_, last)| **last >= range.start()).map(|(start, last)| (*start, *last)).collect();
        for (start, last) in reached {
            self.translations.remove(&start);
            let range = IovaRange::new(start, last - start + 1);
            // A client's memory that is cut short was mapped, and is unmapped like other.
            if let Some(range) = range {
                self.ioas.unmap(range).map_err(|error| MemoryError::Map(error.to_string()))?;
            }
        }
        Ok(())
    }
}
