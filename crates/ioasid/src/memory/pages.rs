//! Backing memory, however often it is mapped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use thiserror::Error;

use super::account::Ledger;
use super::{Account, Identity, ImportError, OutOfPhysicalSpace, OverLimit, PAGE_SIZE, PhysSpace, Segment, Window};

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
    /// Whoever answers for it may pin no more.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// The physical space is full.
    #[error(transparent)]
    PhysicalSpace(#[from] OutOfPhysicalSpace),
}

/// Where memory comes from when somebody needs it.
enum Source {
    /// It is there already.
    Segments(Vec<Segment>),
    /// Asked for so many bytes from an offset on, both multiples of the page size.
    OnDemand(Box<dyn Fn(u64, u64) -> Result<Vec<Segment>, ImportError> + Send + Sync>),
}

impl Source {
    fn get(&self, offset: u64, length: u64) -> Result<Vec<Segment>, ImportError> {
        match self {
            Self::Segments(segments) => Ok(part_of(segments, offset, length)),
            Self::OnDemand(bring) => bring(offset, length),
        }
    }
}

/// A range of backing memory. It is brought in (pinned) when a device or somebody else first needs it, exists once however
/// often it is mapped, and is let go when nobody needs it any more. Devices need all of it; who needs a part pins that.
pub struct Pages {
    address: u64,
    length: u64,
    writable: bool,
    source: Source,
    /// Whether they are pages of a file, and of no process.
    of_file: bool,
    ledger: Ledger,
    pinned: Mutex<Pinned>,
}

/// What is pinned of some pages, as long as somebody has a [`Pin`].
#[derive(Default)]
struct Pinned {
    whole: Weak<Windows>,
    /// By where they begin, and how many bytes they have.
    parts: BTreeMap<(u64, u64), Weak<Windows>>,
    /// When there are as many parts, those that nobody has any more are taken out.
    crowded: usize,
}

/// How many parts that begin before another are looked at, whether they have all of it.
const PARTS_BEFORE: usize = 8;

impl Pinned {
    /// What is pinned and has `length` bytes from `offset` on.
    fn find(&self, offset: u64, length: u64) -> Option<Pin> {
        let exact = self.parts.get(&(offset, length));
        let before = self.parts.range(..(offset + 1, 0)).rev().take(PARTS_BEFORE);
        // Most end too early, and are not asked whether somebody has them still.
        let before = before.filter(|((start, bytes), _)| offset + length <= start + bytes).map(|(_, part)| part);
        let pinned = std::iter::once(&self.whole).chain(exact).chain(before).filter_map(Weak::upgrade);
        let covers =
            |windows: &Arc<Windows>| windows.offset <= offset && offset + length <= windows.offset + windows.length;
        pinned.into_iter().find(covers).map(Pin)
    }
}

impl Pages {
    /// `length` bytes, a multiple of the page size, that `source` gives whenever some of them are to be pinned: it is asked for
    /// so many bytes from an offset on. With `writable`, devices may be allowed to write them. `address`, a multiple of the page size, is where they come from, in a process
    /// or a file: IOVAs that are chosen for them get its alignment, so that large pages fit.
    pub fn new(
        address: u64,
        length: u64,
        writable: bool,
        source: impl Fn(u64, u64) -> Result<Vec<Segment>, ImportError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self::made(address, length, writable, Source::OnDemand(Box::new(source)), false))
    }

    fn made(address: u64, length: u64, writable: bool, source: Source, of_file: bool) -> Self {
        Self { address, length, writable, source, of_file, ledger: Ledger::default(), pinned: Mutex::default() }
    }

    /// Has `account` answer for what is pinned, from the first pin on.
    #[must_use]
    pub fn charged_to(mut self: Arc<Self>, account: Arc<dyn Account>) -> Arc<Self> {
        if let Some(pages) = Arc::get_mut(&mut self) {
            pages.ledger = Ledger::new(Some(account));
        }
        self
    }

    /// Has another `account`, or nobody, answer for what is pinned, in place of the one so far, which is returned.
    ///
    /// # Errors
    /// [`OverLimit`]; the one so far answers then.
    pub fn charge_instead(&self, account: Option<Arc<dyn Account>>) -> Result<Option<Arc<dyn Account>>, OverLimit> {
        self.ledger.change(account)
    }

    /// Whether they are pages of a file, which stay whatever becomes of the process that mapped them.
    #[must_use]
    pub fn is_of_file(&self) -> bool {
        self.of_file
    }

    /// `length` bytes of `file` at `start`, both multiples of the page size. The file is a memfd, or another that lies in
    /// memory only (tmpfs, hugetlbfs), as no page of it may be written back and change its place; or a DMA buffer that can be
    /// mapped.
    #[must_use]
    pub fn of_file(file: File, start: u64, length: u64, writable: bool) -> Arc<Self> {
        let source = move |offset: u64, length: u64| {
            let start = start.checked_add(offset).ok_or(ImportError::NotInFile)?;
            let end = start.checked_add(length).ok_or(ImportError::NotInFile)?;
            if !is_memory(&file)? || end > file.metadata()?.len().next_multiple_of(PAGE_SIZE) {
                return Err(ImportError::NotInFile);
            }
            match Segment::file_populated(&file, start, length, writable) {
                Ok(segment) => Ok(vec![segment]),
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Err(ImportError::NotInFile),
                Err(error) => Err(error.into()),
            }
        };
        Arc::new(Self::made(start, length, writable, Source::OnDemand(Box::new(source)), true))
    }

    /// Memory that is there already.
    ///
    /// # Errors
    /// [`PinError`], if the segments are not `length` bytes of whole pages, or with `writable` cannot be written.
    pub(crate) fn of(segments: Vec<Segment>, length: u64, writable: bool) -> Result<Arc<Self>, PinError> {
        check(&segments, length, writable)?;
        Ok(Arc::new(Self::made(0, length, writable, Source::Segments(segments), false)))
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
    pub(crate) fn pin(self: &Arc<Self>, space: &Arc<PhysSpace>, iova: u64, offset: u64) -> Result<Pin, PinError> {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(windows) = pinned.whole.upgrade() {
            return Ok(Pin(windows));
        }
        let windows = Arc::new(self.bring_in(space, 0, self.length, iova.wrapping_sub(offset))?);
        pinned.whole = Arc::downgrade(&windows);
        Ok(Pin(windows))
    }

    /// Brings in the pages that `length` bytes from `offset` on lie in, if nobody has yet. Not for devices.
    pub(crate) fn pin_part(
        self: &Arc<Self>,
        space: &Arc<PhysSpace>,
        offset: u64,
        length: u64,
    ) -> Result<Pin, PinError> {
        let end = (offset + length).next_multiple_of(PAGE_SIZE);
        let offset = offset & !(PAGE_SIZE - 1);
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pin) = pinned.find(offset, end - offset) {
            return Ok(pin);
        }
        let windows = Arc::new(self.bring_in(space, offset, end - offset, offset)?);
        if pinned.parts.len() >= pinned.crowded {
            pinned.parts.retain(|_, part| part.strong_count() > 0);
            pinned.crowded = (2 * pinned.parts.len()).max(16);
        }
        pinned.parts.insert((offset, end - offset), Arc::downgrade(&windows));
        Ok(Pin(windows))
    }

    /// Windows of `length` bytes from `offset` on, of which the first is going to be mapped at `iova`.
    fn bring_in(
        self: &Arc<Self>,
        space: &Arc<PhysSpace>,
        offset: u64,
        length: u64,
        iova: u64,
    ) -> Result<Windows, PinError> {
        self.ledger.charge(length)?;
        // From here on, dropping it undoes what was done.
        let mut windows = Windows { space: space.clone(), pages: self.clone(), offset, length, windows: Vec::new() };
        if ioasid_inject::fails() {
            return Err(ImportError::System(io::ErrorKind::OutOfMemory.into()).into());
        }
        let segments = self.source.get(offset, length)?;
        check(&segments, length, self.writable)?;
        let owner = Arc::as_ptr(self).addr();
        windows.windows.reserve_exact(segments.len());
        let mut at = iova;
        for segment in segments {
            windows.windows.push(space.insert(segment.backing, segment.length, at, owner)?);
            at = at.wrapping_add(segment.length);
        }
        Ok(windows)
    }
}

/// The segments of `length` bytes from `offset` on.
fn part_of(segments: &[Segment], offset: u64, length: u64) -> Vec<Segment> {
    let (mut skip, mut left) = (offset, length);
    let part = |segment: &Segment| {
        let before = skip.min(segment.length());
        skip -= before;
        let bytes = left.min(segment.length() - before);
        left -= bytes;
        (bytes > 0).then(|| segment.part(before, bytes))
    };
    segments.iter().filter_map(part).collect()
}

/// `DMA_BUF_MAGIC` of Linux `include/uapi/linux/magic.h`.
const DMA_BUF_MAGIC: libc::c_long = 0x444d_4142;

/// Whether a file lies in memory only.
fn is_memory(file: &File) -> io::Result<bool> {
    let kind = rustix::fs::fstatfs(file)?.f_type;
    Ok([libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC, DMA_BUF_MAGIC].contains(&kind))
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

/// The windows of pinned memory in the physical space, in a row: `length` bytes of some pages from `offset` on.
struct Windows {
    space: Arc<PhysSpace>,
    pages: Arc<Pages>,
    offset: u64,
    length: u64,
    windows: Vec<Arc<Window>>,
}

impl Drop for Windows {
    fn drop(&mut self) {
        for window in &self.windows {
            self.space.remove(window);
        }
        self.pages.ledger.release(self.length);
    }
}

/// Keeps memory pinned. To be dropped only when no DMA uses it any more.
#[derive(Clone)]
pub(crate) struct Pin(Arc<Windows>);

impl Pin {
    /// The physical ranges of `length` bytes from `offset` of the pages on, in order: (address, bytes).
    pub(crate) fn ranges(&self, offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pieces(offset, length).map(|(window, before, bytes)| (window.base() + before, bytes))
    }

    /// The windows that they lie in, with the offset there and the number of bytes.
    fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = (&Window, u64, u64)> + '_ {
        let (mut skip, mut left) = (offset - self.0.offset, length);
        self.0.windows.iter().filter_map(move |window| {
            let before = skip.min(window.length());
            skip -= before;
            let bytes = left.min(window.length() - before);
            left -= bytes;
            (bytes > 0).then_some((&**window, before, bytes))
        })
    }

    /// Copies from `offset` of the pages on.
    ///
    /// # Errors
    /// If the memory is gone; some bytes may have been copied.
    pub(crate) fn read(&self, offset: u64, mut data: &mut [u8]) -> io::Result<()> {
        for (window, before, bytes) in self.pieces(offset, data.len() as u64) {
            let (now, rest) = data.split_at_mut(bytes as usize);
            window.backing().read(before, now)?;
            data = rest;
        }
        Ok(())
    }

    /// Copies to `offset` of the pages on.
    ///
    /// # Errors
    /// If the memory is gone or read-only; some bytes may have been copied.
    pub(crate) fn write(&self, offset: u64, mut data: &[u8]) -> io::Result<()> {
        for (window, before, bytes) in self.pieces(offset, data.len() as u64) {
            let (now, rest) = data.split_at(bytes as usize);
            window.backing().write(before, now)?;
            data = rest;
        }
        Ok(())
    }

    /// Which memory is at `offset` of the pages.
    pub(crate) fn identity(&self, offset: u64) -> Option<Identity> {
        let (window, before, _) = self.pieces(offset, 1).next()?;
        Some(Identity::of(window.backing())?.plus(before))
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
        let pages = Pages::new(0, 2 * PAGE_SIZE, true, move |_, _| {
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
        let of = |segment: Segment, length| Pages::new(0, length, true, move |_, _| Ok(vec![segment.clone()]));
        assert!(matches!(refused(of(segment, 2 * PAGE_SIZE)), Some(PinError::WrongLength(..))));
        assert!(matches!(refused(of(read_only, PAGE_SIZE)), Some(PinError::ReadOnly)));
        let gone = Pages::new(0, PAGE_SIZE, true, |_, _| Err(ImportError::Gone));
        assert!(matches!(refused(gone), Some(PinError::Memory(ImportError::Gone))));
        assert_eq!(space.windows(), 0);
    }
}
