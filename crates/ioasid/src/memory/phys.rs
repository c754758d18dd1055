//! The physical address space of the software IOMMU, and the windows in it.
//!
//! Every segment of pinned memory gets a window: a range of physical addresses that page-table entries can hold. A
//! window begins at an address that is congruent to the IOVA it is first mapped at, modulo the largest page that fits,
//! so that large leaves stay possible.
//!
//! Addresses are handed out in blocks of a power of two, one free list for each size, and taking and giving one is a
//! push or a pop. Blocks are never split or joined, and still never run out: what is in use at one time is limited to
//! [`LIMIT`], so the blocks of one size never take more than that much of the space, nor, aligned, more than twice that;
//! and there are 40 sizes.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

use super::{Backing, PAGE_SIZE};

/// Width of a physical address, as page-table formats have it.
const PA_BITS: u32 = 52;

/// Bytes in blocks in use at one time, at the most.
const LIMIT: u64 = 1 << 45;

/// A range of physical addresses and what they are.
pub(crate) struct Window {
    base: u64,
    length: u64,
    backing: Backing,
    /// The block that the window lies in.
    block: u64,
    order: u32,
}

impl Window {
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn backing(&self) -> &Backing {
        &self.backing
    }
}

/// The physical space is full, or one window was asked to be larger than it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no room for {0:#x} bytes in the physical address space")]
pub struct OutOfPhysicalSpace(pub u64);

struct State {
    windows: BTreeMap<u64, Arc<Window>>,
    /// Free blocks of 2^n bytes at index n.
    free: [Vec<u64>; PA_BITS as usize],
    /// Blocks of 2^n bytes in use at index n: as many places are kept in `free`, so that giving one back allocates
    /// nothing.
    used: [usize; PA_BITS as usize],
    /// Everything from here on was never used.
    untouched: u64,
    /// Bytes in blocks in use.
    live: u64,
}

/// The physical address space.
pub(crate) struct PhysSpace {
    state: RwLock<State>,
}

impl PhysSpace {
    /// An empty space.
    pub(crate) fn new() -> Self {
        let state = State {
            windows: BTreeMap::new(),
            free: [const { Vec::new() }; PA_BITS as usize],
            used: [0; PA_BITS as usize],
            untouched: 0,
            live: 0,
        };
        Self { state: RwLock::new(state) }
    }

    /// Makes a window of `length` bytes (a multiple of the page size, not zero) that is going to be mapped at `iova`.
    pub(crate) fn insert(&self, backing: Backing, length: u64, iova: u64) -> Result<Arc<Window>, OutOfPhysicalSpace> {
        let error = OutOfPhysicalSpace(length);
        let page = [1u64 << 30, 1 << 21].into_iter().find(|&page| length >= page).unwrap_or(PAGE_SIZE);
        let skew = iova & (page - 1) & !(PAGE_SIZE - 1);
        let size = length.checked_add(skew).and_then(u64::checked_next_power_of_two).ok_or(error)?.max(page);
        let order = size.trailing_zeros();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.live.checked_add(size).is_none_or(|live| live > LIMIT) {
            return Err(error);
        }
        let State { windows, free, used, untouched, live } = &mut *state;
        let (free, used) = (&mut free[order as usize], &mut used[order as usize]);
        let block = match free.pop() {
            Some(block) => block,
            None => {
                let block = untouched.next_multiple_of(size);
                let end = block.checked_add(size).filter(|&end| end <= 1 << PA_BITS).ok_or(error)?;
                *untouched = end;
                block
            }
        };
        *used += 1;
        *live += size;
        free.reserve(*used);
        let window = Arc::new(Window { base: block + skew, length, backing, block, order });
        windows.insert(window.base, window.clone());
        Ok(window)
    }

    /// Takes a window out. The caller has seen to it that no DMA uses it.
    pub(crate) fn remove(&self, window: &Window) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.windows.remove(&window.base).is_some() {
            let order = window.order as usize;
            state.used[order] -= 1;
            state.live -= 1 << order;
            state.free[order].push(window.block);
        }
    }

    /// Finds the window that `pa` lies in, and gives it to `found`.
    pub(crate) fn resolve<T>(&self, pa: u64, found: impl FnOnce(&Window) -> T) -> Option<T> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let (_, window) = state.windows.range(..=pa).next_back()?;
        (pa - window.base < window.length).then(|| found(window))
    }

    /// Number of windows.
    pub(crate) fn windows(&self) -> usize {
        self.state.read().unwrap_or_else(PoisonError::into_inner).windows.len()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::memory::RemoteMemory;

    struct Nothing;
    impl RemoteMemory for Nothing {
        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn backing() -> Backing {
        Backing::Remote { memory: Arc::new(Nothing), address: 0 }
    }

    #[test]
    fn windows_are_congruent_to_their_iova_and_do_not_overlap() {
        let space = PhysSpace::new();
        let mut seen: Vec<(u64, u64)> = Vec::new();
        for n in 1..200u64 {
            let (length, iova) = ((n % 7 + 1) * n * PAGE_SIZE * 37, n * 0x1234_5000);
            let window = space.insert(backing(), length, iova).unwrap();
            let page = if length >= 1 << 30 {
                1 << 30
            } else if length >= 1 << 21 {
                1 << 21
            } else {
                PAGE_SIZE
            };
            assert_eq!(window.base() % page, iova % page);
            for &(base, length) in &seen {
                assert!(window.base() + window.length() <= base || base + length <= window.base());
            }
            seen.push((window.base(), window.length()));
            assert!(space.resolve(window.base() + length - 1, |_| ()).is_some());
        }
    }

    #[test]
    fn addresses_are_reused_for_ever() {
        let space = PhysSpace::new();
        for _ in 0..100_000 {
            let window = space.insert(backing(), 1 << 36, 0).unwrap();
            space.remove(&window);
            assert!(space.resolve(window.base(), |_| ()).is_none());
        }
        assert_eq!(space.windows(), 0);
    }

    #[test]
    fn no_mix_of_sizes_uses_the_space_up() {
        let space = PhysSpace::new();
        for order in (12..45).chain((12..45).rev()) {
            // As much as is allowed, or many, of one size; and then all of it back.
            let windows: Vec<_> =
                (0..200).map_while(|n| space.insert(backing(), 1 << order, n << order).ok()).collect();
            assert!(windows.len() == 200 || order > 36, "{} windows of order {order}", windows.len());
            windows.iter().for_each(|window| space.remove(window));
        }
        assert!(space.insert(backing(), PAGE_SIZE, 0).is_ok());
    }

    #[test]
    fn what_cannot_fit_is_an_error() {
        let space = PhysSpace::new();
        for length in [1 << 52, !4095] {
            assert!(space.insert(backing(), length, 0).is_err());
        }
    }
}
