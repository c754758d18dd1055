//! Backing memory, however often it is mapped.
//!
//! What is pinned of some pages lies in *fragments*: ranges that do not overlap, each counted by the pins that need it.
//! Two pins of the same bytes share their fragments, and a fragment goes with its last pin, whatever else of the pages
//! is pinned:
//!
//! ```text
//!   pins        ├──────── an area ────────┤
//!                      ├─ a copy ─┤
//!   fragments   ├──────┼──────────┼───────┤      each pin begins and ends where a fragment does
//!   count          1        2         1
//! ```
//! The physical addresses of a fragment mean something in one machine only, so a fragment belongs to one physical
//! space, and pages that are mapped in two machines are pinned in each.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use thiserror::Error;

use super::account::Ledger;
use super::fragments::{Fragments, Range};
use super::{
    Account, Backing, Identity, ImportError, OutOfPhysicalSpace, OverLimit, PAGE_SIZE, PhysSpace, Segment, Window,
};
use crate::base::lock::{Condvar, Mutex};
use crate::base::{callback, rank};

/// Why memory was not brought in. Nothing is held.
#[derive(Debug, Error)]
#[non_exhaustive]
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
    /// The account that answers for it may pin no more.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// The physical space is full.
    #[error(transparent)]
    PhysicalSpace(#[from] OutOfPhysicalSpace),
    /// The memory is being brought in by a caller's code which this thread is in.
    #[error("the memory is being brought in, and this was called from there")]
    Recursive,
}

/// Where memory comes from when a device or software needs it.
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
            Self::OnDemand(bring) => callback::call(|| bring(offset, length)),
        }
    }
}

/// A range of backing memory. What is needed of it is brought in (pinned) when a device or software first needs it,
/// exists once in a machine however often it is mapped, and is let go when none needs it any more.
pub struct Pages {
    address: u64,
    length: u64,
    writable: bool,
    source: Source,
    /// Whether they are pages of a file, and of no process.
    of_file: bool,
    ledger: Ledger,
    pinned: Mutex<Fragments<Arc<Windows>>, rank::Pinned>,
    /// Something was brought in, or was not.
    settled: Condvar,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages")
            .field("address", &format_args!("{:#x}", self.address))
            .field("length", &format_args!("{:#x}", self.length))
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

impl Pages {
    /// `length` bytes, a multiple of the page size, that `source` gives whenever some of them are to be pinned: it is
    /// asked for so many bytes from an offset on. With `writable`, devices may be allowed to write them. `address`, a
    /// multiple of the page size, is where they come from, in a process or a file: IOVAs that are chosen for them get
    /// its place in a large page, so that large pages fit.
    ///
    /// `source` is called with no lock held. From within it, to pin the same bytes is an error
    /// ([`PinError::Recursive`]).
    pub fn new(
        address: u64,
        length: u64,
        writable: bool,
        source: impl Fn(u64, u64) -> Result<Vec<Segment>, ImportError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self::made(address, length, writable, Source::OnDemand(Box::new(source)), false))
    }

    fn made(address: u64, length: u64, writable: bool, source: Source, of_file: bool) -> Self {
        Self {
            address,
            length,
            writable,
            source,
            of_file,
            ledger: Ledger::default(),
            pinned: Mutex::default(),
            settled: Condvar::default(),
        }
    }

    /// Has `account`, or none, answer for what is pinned from now on, and for what is pinned already, in place of the
    /// account so far, which is returned.
    ///
    /// # Errors
    /// [`OverLimit`]; the one so far answers then.
    pub fn charge_to(&self, account: Option<Arc<dyn Account>>) -> Result<Option<Arc<dyn Account>>, OverLimit> {
        self.ledger.change(account)
    }

    /// Whether they are pages of a file, which stay whatever becomes of the process that mapped them.
    #[must_use]
    pub fn is_of_file(&self) -> bool {
        self.of_file
    }

    /// `length` bytes of `file` at `start`, both multiples of the page size. The file is a memfd, or another that lies
    /// in memory only (tmpfs, hugetlbfs), as no page of it may be written back and change its place; or a DMA buffer
    /// that can be mapped. Nothing of another file can be pinned ([`ImportError::NotInFile`]), and it is not kept.
    #[must_use]
    pub fn of_file(file: impl Into<Arc<File>>, start: u64, length: u64, writable: bool) -> Arc<Self> {
        let file: Arc<File> = file.into();
        // Whoever owns the file may own these pages too, by way of it, if it can carry owners.
        let file = is_memory(&file).then_some(file);
        let source = move |offset: u64, length: u64| {
            let file = file.as_ref().ok_or(ImportError::NotInFile)?;
            let start = start.checked_add(offset).ok_or(ImportError::NotInFile)?;
            let end = start.checked_add(length).ok_or(ImportError::NotInFile)?;
            if end > file.metadata()?.len() {
                return Err(ImportError::NotInFile);
            }
            match Segment::of_file(file, start, length, writable) {
                Ok(segments) => Ok(segments),
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

    /// Brings in the pages that `length` bytes from `offset` on lie in, as far as no other pin has yet. The first of
    /// those bytes is going to be mapped at `iova`, if anywhere.
    pub(crate) fn pin(
        self: &Arc<Self>,
        space: &Arc<PhysSpace>,
        iova: u64,
        offset: u64,
        length: u64,
    ) -> Result<Pin, PinError> {
        let range = Range { start: offset & !(PAGE_SIZE - 1), end: (offset + length).next_multiple_of(PAGE_SIZE) };
        let first_iova = iova.wrapping_sub(offset - range.start);
        let id = Arc::as_ptr(space).addr();
        let mut pinned = self.pinned.lock();
        while pinned.is_coming(id, range) {
            if callback::is_in_one() {
                return Err(PinError::Recursive);
            }
            pinned = self.settled.wait(pinned);
        }
        let gaps = pinned.hold(id, range);
        drop(pinned);
        // From here on, dropping it undoes what was done.
        let pin = Pin { pages: self.clone(), space: space.clone(), range };
        for gap in gaps {
            let windows = self.bring_in(space, gap, first_iova.wrapping_add(gap.start - range.start))?;
            self.pinned.lock().fill(id, gap, Arc::new(windows));
            self.settled.notify_all();
        }
        Ok(pin)
    }

    /// Windows of a range, of which the first byte is going to be mapped at `iova`.
    fn bring_in(self: &Arc<Self>, space: &Arc<PhysSpace>, range: Range, iova: u64) -> Result<Windows, PinError> {
        let length = range.length();
        // From here on, dropping these undoes what was done.
        let charge = self.ledger.charge(length)?;
        let mut windows = Windows { space: space.clone(), range, windows: Vec::new() };
        if ioasid_inject::fails() {
            return Err(ImportError::System(io::ErrorKind::OutOfMemory.into()).into());
        }
        let segments = self.source.get(range.start, length)?;
        check(&segments, length, self.writable)?;
        let owner = Arc::as_ptr(self).addr();
        windows.windows.reserve_exact(segments.len());
        let mut at = iova;
        for segment in segments {
            if let Backing::Remote { memory, .. } = &segment.backing {
                callback::call(|| memory.mapped_at(at));
            }
            windows.windows.push(space.insert(segment.backing, segment.length, at, owner)?);
            at = at.wrapping_add(segment.length);
        }
        charge.keep();
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

/// Whether a file lies in memory only. A file system that some program serves is asked nothing: it might not answer.
fn is_memory(file: &File) -> bool {
    // Only what lies in memory can be sealed, whether it is or not.
    rustix::fs::fcntl_get_seals(file).is_ok() || is_dma_buffer(file)
}

fn is_dma_buffer(file: &File) -> bool {
    let name = rustix::fs::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), []);
    let is_named_so = name.is_ok_and(|name| name.to_bytes().starts_with(b"/dmabuf:"));
    is_named_so && rustix::fs::fstatfs(file).is_ok_and(|system| system.f_type == DMA_BUF_MAGIC)
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

/// The windows of memory that was brought in at once, in a row.
struct Windows {
    space: Arc<PhysSpace>,
    /// Of the pages.
    range: Range,
    windows: Vec<Arc<Window>>,
}

impl Windows {
    /// The windows that `range` lies in, with the offset there and the number of bytes.
    fn pieces(&self, range: Range) -> impl Iterator<Item = (&Arc<Window>, u64, u64)> + '_ {
        let (mut skip, mut left) = (range.start - self.range.start, range.length());
        self.windows.iter().filter_map(move |window| {
            let before = skip.min(window.length());
            skip -= before;
            let bytes = left.min(window.length() - before);
            left -= bytes;
            (bytes > 0).then_some((window, before, bytes))
        })
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.windows.iter().for_each(|window| self.space.remove(window));
    }
}

/// Keeps memory pinned: whole pages, in one physical space. To be dropped only when no DMA uses it any more.
pub(crate) struct Pin {
    pages: Arc<Pages>,
    space: Arc<PhysSpace>,
    range: Range,
}

/// A part of a window: where it begins there, and how many bytes it has.
pub(super) struct Piece {
    pub(super) window: Arc<Window>,
    pub(super) before: u64,
    pub(super) bytes: u64,
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pin").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Pin {
    fn id(&self) -> usize {
        Arc::as_ptr(&self.space).addr()
    }

    /// Whether `length` bytes from `offset` of the pages on are pinned by it.
    pub(crate) fn covers(&self, offset: u64, length: u64) -> bool {
        self.range.start <= offset && offset + length <= self.range.end
    }

    /// The physical ranges of `length` bytes from `offset` of the pages on, in order: (address, bytes).
    pub(crate) fn ranges(&self, offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        self.pieces(offset, length).into_iter().map(|piece| (piece.window.base() + piece.before, piece.bytes))
    }

    /// The windows that they lie in.
    pub(super) fn pieces(&self, offset: u64, length: u64) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(1);
        let range = Range { start: offset, end: offset + length };
        self.pages.pinned.lock().find_pinned(self.id(), range, |range, windows| {
            let piece =
                |(window, before, bytes): (&Arc<Window>, u64, u64)| Piece { window: window.clone(), before, bytes };
            pieces.extend(windows.pieces(range).map(piece));
            None::<()>
        });
        pieces
    }

    /// Copies from `offset` of the pages on.
    ///
    /// # Errors
    /// If the memory is gone; some bytes may have been copied.
    pub(crate) fn read(&self, offset: u64, mut data: &mut [u8]) -> io::Result<()> {
        for piece in self.pieces(offset, data.len() as u64) {
            let (now, rest) = data.split_at_mut(piece.bytes as usize);
            piece.window.backing().read(piece.before, now)?;
            data = rest;
        }
        Ok(())
    }

    /// Copies to `offset` of the pages on.
    ///
    /// # Errors
    /// If the memory is gone or read-only; some bytes may have been copied.
    pub(crate) fn write(&self, offset: u64, mut data: &[u8]) -> io::Result<()> {
        for piece in self.pieces(offset, data.len() as u64) {
            let (now, rest) = data.split_at(piece.bytes as usize);
            piece.window.backing().write(piece.before, now)?;
            data = rest;
        }
        Ok(())
    }

    /// Which memory is at `offset` of the pages.
    pub(crate) fn identity(&self, offset: u64) -> Option<Identity> {
        let piece = self.pieces(offset, 1).into_iter().next()?;
        Some(Identity::of(piece.window.backing())?.plus(piece.before))
    }

    /// Pins the pages from `offset` on by a pin of their own, which is returned, and not by this one any more.
    pub(crate) fn split_off(&mut self, offset: u64) -> Self {
        let boundary = offset & !(PAGE_SIZE - 1);
        let upper = Range { start: boundary, end: self.range.end };
        let lower = Range { start: self.range.start, end: offset.next_multiple_of(PAGE_SIZE) };
        let id = self.id();
        {
            let mut pinned = self.pages.pinned.lock();
            pinned.split(id, upper.start);
            pinned.split(id, lower.end);
            // Both need the page that the cut goes through.
            pinned.hold_again(id, Range { start: upper.start, end: lower.end });
        }
        self.range = lower;
        Self { pages: self.pages.clone(), space: self.space.clone(), range: upper }
    }
}

impl Clone for Pin {
    /// Another one, of the same bytes.
    fn clone(&self) -> Self {
        self.pages.pinned.lock().hold_again(self.id(), self.range);
        Self { pages: self.pages.clone(), space: self.space.clone(), range: self.range }
    }
}

impl Drop for Pin {
    /// Lets go of what no other pin needs, with no lock held. Allocates nothing.
    fn drop(&mut self) {
        let id = self.id();
        self.pages.pinned.lock().release(id, self.range);
        loop {
            let unused = self.pages.pinned.lock().take_unused(id, self.range);
            match unused {
                None => break,
                // It never came: a thread that waited for it tries by itself.
                Some((_, None)) => self.pages.settled.notify_all(),
                Some((range, Some(windows))) => {
                    // The windows stay as long as another part of them is needed; what is behind this part does not.
                    let stays = Arc::strong_count(&windows) > 1;
                    // What is there already may be pinned again as it is.
                    let comes_anew = matches!(self.pages.source, Source::OnDemand(_));
                    windows.pieces(range).for_each(|(window, before, bytes)| {
                        window.backing().give_back(before, bytes, stays, comes_anew);
                    });
                    drop(windows);
                    self.pages.ledger.release(range.length());
                }
            }
        }
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
            let one = pages.pin(&space, 0x1000, 0, 2 * PAGE_SIZE).unwrap();
            let other = pages.pin(&space, 0x9000, 0, 2 * PAGE_SIZE).unwrap();
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
        let pin = pages.pin(&space, 0, 0, 4 * PAGE_SIZE).unwrap();
        let base: Vec<u64> = pin.pieces(0, 4 * PAGE_SIZE).iter().map(|piece| piece.window.base()).collect();
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
        let refused = |pages: Arc<Pages>| pages.pin(&space, 0, 0, pages.length()).err();
        let of = |segment: Segment, length| Pages::new(0, length, true, move |_, _| Ok(vec![segment.clone()]));
        assert!(matches!(refused(of(segment, 2 * PAGE_SIZE)), Some(PinError::WrongLength(..))));
        assert!(matches!(refused(of(read_only, PAGE_SIZE)), Some(PinError::ReadOnly)));
        let gone = Pages::new(0, PAGE_SIZE, true, |_, _| Err(ImportError::Gone));
        assert!(matches!(refused(gone), Some(PinError::Memory(ImportError::Gone))));
        assert_eq!(space.windows(), 0);
    }
}
