//! The physical address space of the software IOMMU, and the windows in it.
//!
//! Every segment of pinned memory gets a window: a range of physical addresses that page-table entries can hold. An
//! address names its window, so that finding it is arithmetic and needs no lock:
//!
//! ```text
//!   47        43 42                    order order-1            0
//!  │ order - 12 │   number of the block      │  offset in block  │
//! ```
//!
//! An address has 48 bits, as all formats of page tables can hold so many, and Armv8's with small pages no more.
//!
//! Windows lie in blocks of 2^order bytes, each order in a part of the space of its own. A window begins, in its block,
//! at an offset that is congruent to the IOVA it is first mapped at, modulo the largest page that fits, so that large
//! leaves stay possible. What is in use at one time is limited to [`LIMIT`], which is the size of each part, so blocks,
//! never split or joined, do not run out in whatever mix of sizes they come and go.
//!
//! The lists of blocks only grow, in buckets each as large as all before it together, so that a look-up needs no lock.
//! Giving a block back allocates nothing and waits for no thread that allocates.
#![allow(unsafe_code, reason = "blocks point at windows, which the gate protocol keeps alive")]

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use thiserror::Error;

use super::{Backing, Identity, PAGE_SIZE, Pinned};
use crate::base::lock::{Mutex, MutexGuard};
use crate::base::rank;
use crate::gate::Inside;

/// log2 of the smallest block, which is a page.
const FIRST_ORDER: u32 = PAGE_SIZE.ilog2();
/// log2 of [`LIMIT`].
const PART_BITS: u32 = 43;
/// Bytes in blocks in use at one time, at the most.
const LIMIT: u64 = 1 << PART_BITS;
/// Sizes of blocks that there are.
const ORDERS: usize = (PART_BITS - FIRST_ORDER) as usize + 1;
/// log2 of the blocks in the first bucket of a list.
const FIRST_BUCKET_BITS: u32 = 6;
/// Buckets that the longest list needs: that of blocks of one page.
const BUCKETS: usize = (PART_BITS - FIRST_ORDER - FIRST_BUCKET_BITS) as usize + 1;
/// Ends a chain of free blocks.
const END: u64 = u64::MAX;

/// A range of physical addresses and what they are.
pub(crate) struct Window {
    base: u64,
    length: u64,
    backing: Backing,
    place: Place,
    /// Its owner: windows of the same pages have the same.
    owner: usize,
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

/// Which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    order: u32,
    number: u64,
}

impl Place {
    /// The block that `pa` lies in.
    fn of(pa: u64) -> Option<Self> {
        let order = u32::try_from(pa >> PART_BITS).ok()? + FIRST_ORDER;
        (order <= PART_BITS).then(|| Self { order, number: (pa & (LIMIT - 1)) >> order })
    }

    fn base(self) -> u64 {
        u64::from(self.order - FIRST_ORDER) << PART_BITS | self.number << self.order
    }

    fn size(self) -> u64 {
        1 << self.order
    }

    /// Which bucket of the order's list the block is in, and where.
    fn bucket(self) -> (usize, usize) {
        let first = 1u64 << FIRST_BUCKET_BITS;
        let bucket = ((self.number + first) >> FIRST_BUCKET_BITS).ilog2();
        (bucket as usize, (self.number + first - (first << bucket)) as usize)
    }
}

struct Block {
    /// Null while it is free.
    window: AtomicPtr<Window>,
    /// While it is free, the number of the next free one. Used under the lock on [`PhysSpace::free`].
    next: AtomicU64,
}

/// The blocks of one order, in buckets that double.
type Blocks = [OnceLock<Box<[Block]>>; BUCKETS];

/// What is free of one order.
#[derive(Clone, Copy)]
struct Free {
    /// The first of a chain of blocks that were used before.
    first: u64,
    /// All blocks from this number on were never used.
    untouched: u64,
}

struct Accounts {
    free: [Free; ORDERS],
    /// Bytes in blocks in use.
    live: u64,
    windows: usize,
}

/// The physical address space.
pub(crate) struct PhysSpace {
    blocks: Box<[Blocks; ORDERS]>,
    accounts: Mutex<Accounts, rank::Blocks>,
}

impl PhysSpace {
    /// An empty space.
    pub(crate) fn new() -> Self {
        let none = Free { first: END, untouched: 0 };
        Self {
            blocks: Box::new([const { [const { OnceLock::new() }; BUCKETS] }; ORDERS]),
            accounts: Mutex::new(Accounts { free: [none; ORDERS], live: 0, windows: 0 }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Accounts, rank::Blocks> {
        self.accounts.lock()
    }

    /// Makes a window of `length` bytes (a multiple of the page size, not zero) that is going to be mapped at `iova`.
    pub(crate) fn insert(
        &self,
        backing: Backing,
        length: u64,
        iova: u64,
        owner: usize,
    ) -> Result<Arc<Window>, OutOfPhysicalSpace> {
        let error = OutOfPhysicalSpace(length);
        if ioasid_inject::fails() {
            return Err(error);
        }
        let page = [1u64 << 30, 1 << 21].into_iter().find(|&page| length >= page).unwrap_or(PAGE_SIZE);
        let skew = iova & (page - 1) & !(PAGE_SIZE - 1);
        let size = length.checked_add(skew).and_then(u64::checked_next_power_of_two).ok_or(error)?.max(page);
        let place = self.take(size.trailing_zeros()).ok_or(error)?;
        let window = Arc::new(Window { base: place.base() + skew, length, backing, place, owner });
        if let Some(block) = self.block(place) {
            block.window.store(Arc::as_ptr(&window).cast_mut(), Ordering::Release);
        }
        Ok(window)
    }

    /// A free block of 2^`order` bytes, which is made to be there without the lock.
    fn take(&self, order: u32) -> Option<Place> {
        if order > PART_BITS {
            return None;
        }
        loop {
            let wanted = {
                let mut accounts = self.lock();
                let Accounts { free, live, windows } = &mut *accounts;
                if *live + (1 << order) > LIMIT {
                    return None;
                }
                let free = &mut free[(order - FIRST_ORDER) as usize];
                let reused = free.first != END;
                let place = Place { order, number: if reused { free.first } else { free.untouched } };
                match self.block(place) {
                    Some(block) => {
                        if reused {
                            free.first = block.next.load(Ordering::Relaxed);
                        } else {
                            free.untouched += 1;
                        }
                        *live += place.size();
                        *windows += 1;
                        return Some(place);
                    }
                    None => place.bucket().0,
                }
            };
            let make = |_| Block { window: AtomicPtr::new(ptr::null_mut()), next: AtomicU64::new(END) };
            self.blocks[(order - FIRST_ORDER) as usize][wanted]
                .get_or_init(|| (0..1usize << (wanted as u32 + FIRST_BUCKET_BITS)).map(make).collect());
        }
    }

    #[inline]
    fn block(&self, place: Place) -> Option<&Block> {
        let (bucket, index) = place.bucket();
        self.blocks[(place.order - FIRST_ORDER) as usize].get(bucket)?.get()?.get(index)
    }

    /// Takes a window out. The caller has seen to it that no DMA uses it.
    pub(crate) fn remove(&self, window: &Window) {
        let place = window.place;
        let Some(block) = self.block(place) else { return };
        block.window.store(ptr::null_mut(), Ordering::Release);
        let mut accounts = self.lock();
        accounts.live -= place.size();
        accounts.windows -= 1;
        let free = &mut accounts.free[(place.order - FIRST_ORDER) as usize];
        block.next.store(free.first, Ordering::Relaxed);
        free.first = place.number;
    }

    /// The window that `pa` lies in, for a port that walked a table to it inside its gate.
    #[inline]
    pub(crate) fn resolve<'a>(&self, pa: u64, _inside: &'a Inside<'_>) -> Option<&'a Window> {
        let window = self.block(Place::of(pa)?)?.window.load(Ordering::Acquire);
        // SAFETY: null, or a window that its owner has not removed yet. An owner takes the window's addresses out of
        // all tables, waits at the gates, and removes it then; a port that is inside, and found `pa` in a table since
        // it went in, is waited for.
        let window = unsafe { window.as_ref()? };
        (pa.wrapping_sub(window.base) < window.length).then_some(window)
    }

    /// What every window is, as far as that can be told. Meanwhile no window comes or goes.
    pub(crate) fn pinned(&self) -> Pinned {
        let accounts = self.lock();
        let mut pieces = Vec::with_capacity(accounts.windows);
        for (order, free) in (FIRST_ORDER..).zip(&accounts.free) {
            for number in 0..free.untouched {
                if let Some(window) = self.locked_window(Place { order, number }, &accounts) {
                    pieces.extend(Identity::of(&window.backing).map(|start| (window.owner, start, window.length)));
                }
            }
        }
        Pinned { pieces }
    }

    /// Which memory `pa` is.
    pub(crate) fn identity(&self, pa: u64) -> Option<Identity> {
        let accounts = self.lock();
        let window = self.locked_window(Place::of(pa)?, &accounts)?;
        let offset = pa.checked_sub(window.base).filter(|&offset| offset < window.length)?;
        Some(Identity::of(&window.backing)?.plus(offset))
    }

    fn locked_window<'a>(
        &self,
        place: Place,
        _accounts: &'a MutexGuard<'_, Accounts, rank::Blocks>,
    ) -> Option<&'a Window> {
        let window = self.block(place)?.window.load(Ordering::Acquire);
        // SAFETY: null, or a window that is there: a thread that removes one takes it out of its block and then waits
        // for the lock that is held here, before it drops the window.
        unsafe { window.as_ref() }
    }

    /// Number of windows.
    pub(crate) fn windows(&self) -> usize {
        self.lock().windows
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::gate::Gate;
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
        let (space, gate) = (PhysSpace::new(), Gate::new());
        let mut seen: Vec<Arc<Window>> = Vec::new();
        for n in 1..200u64 {
            let (length, iova) = ((n % 7 + 1) * n * PAGE_SIZE * 37, n * 0x1234_5000);
            let window = space.insert(backing(), length, iova, 0).unwrap();
            let page = if length >= 1 << 30 {
                1 << 30
            } else if length >= 1 << 21 {
                1 << 21
            } else {
                PAGE_SIZE
            };
            assert_eq!(window.base() % page, iova % page);
            for other in &seen {
                let (base, length) = (other.base(), other.length());
                assert!(window.base() + window.length() <= base || base + length <= window.base());
            }
            let inside = gate.enter();
            for offset in [0, length / 2, length - 1] {
                let found = space.resolve(window.base() + offset, &inside).unwrap();
                assert!(ptr::eq(found, &*window));
            }
            let after = space.resolve(window.base() + length, &inside);
            assert!(after.is_none_or(|after| !ptr::eq(after, &*window)));
            seen.push(window);
        }
    }

    #[test]
    fn addresses_are_reused_for_ever() {
        let (space, gate) = (PhysSpace::new(), Gate::new());
        for _ in 0..100_000 {
            let window = space.insert(backing(), 1 << 36, 0, 0).unwrap();
            space.remove(&window);
            assert!(space.resolve(window.base(), &gate.enter()).is_none());
        }
        assert_eq!(space.windows(), 0);
    }

    #[test]
    fn no_mix_of_sizes_uses_the_space_up() {
        let space = PhysSpace::new();
        for order in (12..45).chain((12..45).rev()) {
            // As much as is allowed, or many, of one size; and then all of it back.
            let windows: Vec<_> =
                (0..200).map_while(|n| space.insert(backing(), 1 << order, n << order, 0).ok()).collect();
            assert!(windows.len() == 200 || order > 35, "{} windows of order {order}", windows.len());
            windows.iter().for_each(|window| space.remove(window));
        }
        assert!(space.insert(backing(), PAGE_SIZE, 0, 0).is_ok());
    }

    #[test]
    fn what_cannot_fit_is_an_error() {
        let space = PhysSpace::new();
        for length in [1 << 52, !4095, LIMIT + PAGE_SIZE] {
            assert!(space.insert(backing(), length, 0, 0).is_err());
        }
        assert!(space.insert(backing(), LIMIT, 0, 0).is_ok());
        assert!(space.insert(backing(), PAGE_SIZE, 0, 0).is_err(), "the limit is on everything together");
    }

    #[test]
    fn an_address_that_nobody_handed_out_leads_nowhere() {
        let (space, gate) = (PhysSpace::new(), Gate::new());
        let window = space.insert(backing(), PAGE_SIZE, 0, 0).unwrap();
        for pa in [window.base() + PAGE_SIZE, 1 << 40, 1 << 50, 1 << 51, 0x7f << PART_BITS, u64::MAX] {
            assert!(space.resolve(pa, &gate.enter()).is_none(), "{pa:#x}");
        }
    }
}
