//! Backing memory, however often it is mapped.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use thiserror::Error;

use super::{ImportError, OutOfPhysicalSpace, PAGE_SIZE, PhysSpace, Segment, Window};

/// Why memory was not brought in. Nothing is held.
#[derive(Debug, Error)]
pub enum PinError {
    /// The memory cannot be had.
    #[error(transparent)]
    Memory(#[from] ImportError),
    /// Devices are to write, and the memory cannot be written.
    #[error("the memory is read-only")]
    ReadOnly,
    /// The memory has another length than was said.
    #[error("the memory has {0:#x} bytes, where {1:#x} are wanted")]
    WrongLength(u64, u64),
    /// Memory whose length is no multiple of the page size, or which wraps.
    #[error("memory of {0:#x} bytes is not made of whole pages")]
    NotPages(u64),
    /// The physical space is full.
    #[error(transparent)]
    PhysicalSpace(#[from] OutOfPhysicalSpace),
}

/// Where memory comes from when somebody needs it.
type Source = Box<dyn Fn() -> Result<Vec<Segment>, ImportError> + Send + Sync>;

/// A range of backing memory. It is brought in (pinned) when a device or somebody else first needs it, exists once however
/// often it is mapped, and is let go when nobody needs it any more.
pub struct Pages {
    address: u64,
    length: u64,
    writable: bool,
    source: Source,
    /// Its windows, as long as somebody has a [`Pin`].
    pinned: Mutex<Weak<Windows>>,
}

impl Pages {
    /// `length` bytes, a multiple of the page size, that `source` gives whenever they are to be pinned; with `writable`,
    /// devices may be allowed to write them. `address`, a multiple of the page size, is where they come from, in a process
    /// or a file: IOVAs that are chosen for them get its alignment, so that large pages fit.
    pub fn new(
        address: u64,
        length: u64,
        writable: bool,
        source: impl Fn() -> Result<Vec<Segment>, ImportError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { address, length, writable, source: Box::new(source), pinned: Mutex::default() })
    }

    /// `length` bytes of `file` at `start`, both multiples of the page size. The file is a memfd, or another that lies in
    /// memory only (tmpfs, hugetlbfs), as no page of it may be written back and change its place.
    #[must_use]
    pub fn of_file(file: File, start: u64, length: u64, writable: bool) -> Arc<Self> {
        Self::new(start, length, writable, move || {
            let end = start.checked_add(length).ok_or(ImportError::NotInFile)?;
            if !is_memory(&file)? || end > file.metadata()?.len().next_multiple_of(PAGE_SIZE) {
                return Err(ImportError::NotInFile);
            }
            match Segment::file_populated(&file, start, length, writable) {
                Ok(segment) => Ok(vec![segment]),
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Err(ImportError::NotInFile),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Memory that is there already.
    ///
    /// # Errors
    /// [`PinError`], if the segments are not `length` bytes of whole pages, or with `writable` cannot be written.
    pub(crate) fn of(segments: Vec<Segment>, length: u64, writable: bool) -> Result<Arc<Self>, PinError> {
        check(&segments, length, writable)?;
        Ok(Self::new(0, length, writable, move || Ok(segments.clone())))
    }

    /// Where they come from.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Number of bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether devices may be allowed to write.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Brings the memory in, if nobody has yet. What is `offset` bytes from its beginning is going to be mapped at `iova`.
    pub(crate) fn pin(&self, space: &Arc<PhysSpace>, iova: u64, offset: u64) -> Result<Pin, PinError> {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(windows) = pinned.upgrade() {
            return Ok(Pin(windows));
        }
        let segments = (self.source)()?;
        check(&segments, self.length, self.writable)?;
        let mut windows = Windows { space: space.clone(), windows: Vec::with_capacity(segments.len()) };
        let mut at = iova.wrapping_sub(offset);
        for segment in segments {
            windows.windows.push(space.insert(segment.backing, segment.length, at)?);
            at = at.wrapping_add(segment.length);
        }
        let windows = Arc::new(windows);
        *pinned = Arc::downgrade(&windows);
        Ok(Pin(windows))
    }
}

/// Whether a file lies in memory only.
fn is_memory(file: &File) -> io::Result<bool> {
    let kind = rustix::fs::fstatfs(file)?.f_type;
    Ok(kind == libc::TMPFS_MAGIC || kind == libc::HUGETLBFS_MAGIC)
}

fn check(segments: &[Segment], length: u64, writable: bool) -> Result<(), PinError> {
    if let Some(odd) = segments.iter().find(|segment| !segment.is_pages()) {
        return Err(PinError::NotPages(odd.length()));
    }
    let have = segments.iter().map(Segment::length).fold(0, u64::saturating_add);
    if have != length {
        return Err(PinError::WrongLength(have, length));
    }
    if writable && !segments.iter().all(Segment::is_writable) {
        return Err(PinError::ReadOnly);
    }
    debug_assert!(length.is_multiple_of(PAGE_SIZE));
    Ok(())
}

/// The windows of pinned memory in the physical space, in a row.
struct Windows {
    space: Arc<PhysSpace>,
    windows: Vec<Arc<Window>>,
}

impl Drop for Windows {
    fn drop(&mut self) {
        for window in &self.windows {
            self.space.remove(window);
        }
    }
}

/// Keeps memory pinned. To be dropped only when no DMA uses it any more.
#[derive(Clone)]
pub(crate) struct Pin(Arc<Windows>);

impl Pin {
    /// The physical ranges of `length` bytes from `offset` on, in order: (address, bytes).
    pub(crate) fn ranges(&self, offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (mut skip, mut left) = (offset, length);
        self.0.windows.iter().filter_map(move |window| {
            let before = skip.min(window.length());
            skip -= before;
            let bytes = left.min(window.length() - before);
            left -= bytes;
            (bytes > 0).then(|| (window.base() + before, bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn it_is_pinned_once_and_let_go_by_the_last() {
        let space = Arc::new(PhysSpace::new());
        let fetched = Arc::new(AtomicUsize::new(0));
        let count = fetched.clone();
        let pages = Pages::new(0, 2 * PAGE_SIZE, true, move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(vec![Segment::memfd(PAGE_SIZE)?.0, Segment::memfd(PAGE_SIZE)?.0])
        });
        assert_eq!(fetched.load(Ordering::Relaxed), 0);
        for n in 1..3 {
            let one = pages.pin(&space, 0x1000, 0).unwrap();
            let other = pages.pin(&space, 0x9000, 0).unwrap();
            assert_eq!((fetched.load(Ordering::Relaxed), space.windows()), (n, 2));
            drop(one);
            assert_eq!(space.windows(), 2);
            drop(other);
            assert_eq!(space.windows(), 0);
        }
    }

    #[test]
    fn part_of_it_is_found_across_segments() {
        let space = Arc::new(PhysSpace::new());
        let segments = [1, 2, 1].map(|pages| Segment::memfd(pages * PAGE_SIZE).unwrap().0).to_vec();
        let pages = Pages::of(segments, 4 * PAGE_SIZE, true).unwrap();
        let pin = pages.pin(&space, 0, 0).unwrap();
        let base: Vec<u64> = pin.0.windows.iter().map(|window| window.base()).collect();
        let ranges = |offset, length| pin.ranges(offset, length).collect::<Vec<_>>();
        assert_eq!(ranges(0, 4 * PAGE_SIZE), [(base[0], PAGE_SIZE), (base[1], 2 * PAGE_SIZE), (base[2], PAGE_SIZE)]);
        assert_eq!(ranges(100, 8), [(base[0] + 100, 8)]);
        assert_eq!(ranges(PAGE_SIZE - 1, 2), [(base[0] + PAGE_SIZE - 1, 1), (base[1], 1)]);
        assert_eq!(ranges(2 * PAGE_SIZE, PAGE_SIZE + 1), [(base[1] + PAGE_SIZE, PAGE_SIZE), (base[2], 1)]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nothing_is_kept() {
        let space = Arc::new(PhysSpace::new());
        let (segment, file) = Segment::memfd(PAGE_SIZE).unwrap();
        let read_only = Segment::file(&file, 0, PAGE_SIZE, false).unwrap();
        let refused = |pages: Arc<Pages>| pages.pin(&space, 0, 0).err();
        let of = |segment: Segment, length| Pages::new(0, length, true, move || Ok(vec![segment.clone()]));
        assert!(matches!(refused(of(segment, 2 * PAGE_SIZE)), Some(PinError::WrongLength(..))));
        assert!(matches!(refused(of(read_only, PAGE_SIZE)), Some(PinError::ReadOnly)));
        let gone = Pages::new(0, PAGE_SIZE, true, || Err(ImportError::Gone));
        assert!(matches!(refused(gone), Some(PinError::Memory(ImportError::Gone))));
        assert_eq!(space.windows(), 0);
    }
}
