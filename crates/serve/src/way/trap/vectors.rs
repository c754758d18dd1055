//! A thread's vector registers, fetched when an instruction first names one.

use ioasid_mmio::{Vectors, Xstate, XstateLayout};

/// More than any processor's XSAVE area has (with AMX it is 11,008 bytes).
pub(super) const LARGEST_XSTATE: usize = 16 << 10;

/// Where the vector registers are, in XSAVE's layout.
pub(super) trait Area {
    /// All of it; `None` if it cannot be had.
    fn fetch(&self) -> Option<Vec<u8>>;

    /// Gives it back; false if that failed.
    fn put(&self, bytes: &mut [u8]) -> bool;
}

/// The registers in an area.
pub(super) struct LazyVectors<A> {
    area: A,
    layout: XstateLayout,
    bytes: Option<Vec<u8>>,
    modified: bool,
}

impl<A: Area> LazyVectors<A> {
    pub(super) fn new(area: A, layout: XstateLayout) -> Self {
        Self { area, layout, bytes: None, modified: false }
    }

    fn with<T>(&mut self, use_it: impl FnOnce(&mut Xstate<'_>) -> T) -> Option<T> {
        if self.bytes.is_none() {
            self.bytes = Some(self.area.fetch()?);
        }
        let mut state = Xstate::new(self.bytes.as_mut()?, self.layout);
        let result = use_it(&mut state);
        self.modified |= state.is_modified();
        Some(result)
    }

    /// Gives the thread what was changed; false if that failed.
    pub(super) fn put_back(&mut self) -> bool {
        match &mut self.bytes {
            Some(bytes) if self.modified => self.area.put(bytes),
            _ => true,
        }
    }
}

impl<A: Area> Vectors for LazyVectors<A> {
    fn load(&mut self, index: usize) -> Option<[u8; 64]> {
        self.with(|state| state.load(index))?
    }

    fn store(&mut self, index: usize, value: &[u8; 64]) -> bool {
        self.with(|state| state.store(index, value)) == Some(true)
    }

    fn mask(&mut self, index: usize) -> Option<u64> {
        self.with(|state| state.mask(index))?
    }

    fn set_mask(&mut self, index: usize, value: u64) -> bool {
        self.with(|state| state.set_mask(index, value)) == Some(true)
    }

    fn mmx(&mut self, index: usize) -> Option<u64> {
        self.with(|state| state.mmx(index))?
    }

    fn set_mmx(&mut self, index: usize, value: u64) -> bool {
        self.with(|state| state.set_mmx(index, value)) == Some(true)
    }
}
