//! What becomes of the memory of a process that devices may reach.
//!
//! On Linux, pins keep the pages, and a process that unmaps memory under a mapping goes on with other pages than the
//! device. Here the memory stays the process's own. So a device would reach what the process maps in its place, were it
//! not for the news that a userfaultfd brings:
//!
//! ```text
//!   process      munmap ──► unmapped ──► waits ───────────────────► returns
//!   kernel               changing        news
//!   here                                   └─► hold ──► read ──► apply ──► go on
//!   copies       ───────────────────────────────────┤                      ├────
//! ```
//! The news is read when no copy is under way, and what it says is applied before the next copy begins. A copy that
//! finds the process changing reads the news itself. An import waits for it, too, as its own memory may lie where
//! other memory was.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, io};

use super::ProcessMemory;
use super::import::Import;
use super::userfaultfd::{Change, Userfaultfd};
use crate::base::lock::{Condvar, Mutex, MutexGuard};
use crate::base::{callback, rank};
use crate::memory::{PAGE_SIZE, Vma, VmaQuery};

/// Memory that a process has unmapped, replaced or dropped while a device could reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostMemory {
    /// The first address, in the process.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// Where the first byte was first mapped for devices.
    pub iova: u64,
}

/// How long copies, imports and the process wait for each other. What hangs longer does so in memory that is not
/// brought in, or in the kernel, and goes on unguarded; so does a copy that changes interrupt for so long.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a thread sleeps that waits for news.
const NAP: Duration = Duration::from_micros(20);

type Notice = Box<dyn Fn(LostMemory) + Send + Sync>;

/// The imports of a process, and the news of what becomes of them.
#[derive(Default)]
pub(super) struct Changes {
    news: OnceLock<(Userfaultfd, Notice)>,
    imports: Mutex<BTreeMap<Key, Weak<Import>>, rank::Imports>,
    copies: Mutex<Copies, rank::Copies>,
    /// A copy has ended, or may begin.
    settled: Condvar,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("followed", &self.news.get().is_some()).finish_non_exhaustive()
    }
}

/// Copies from and to the process's memory.
#[derive(Default)]
struct Copies {
    under_way: usize,
    /// Threads that keep the next ones from beginning.
    held_up: usize,
    /// Of these, threads that read the news: one, unless another has waited too long for it.
    readers: usize,
}

/// The place of an import, or of a part of it that has moved. Imports of similar length stand together, so that those
/// at an address are found without a look at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The logarithm of the length, above the number of the first page.
    place: u64,
    /// The import's own address here.
    import: usize,
}

/// Bits of a page number.
const PAGE_BITS: u32 = 52;

impl Key {
    fn of(import: &Import, start: u64, length: u64) -> Self {
        Self { place: Self::place(length.ilog2(), start), import: std::ptr::from_ref(import).addr() }
    }

    fn place(class: u32, start: u64) -> u64 {
        (u64::from(class) << PAGE_BITS) | (start / PAGE_SIZE)
    }

    /// Where those of a class stand that may overlap `range`.
    fn near(class: u32, range: &Range<u64>) -> Range<Self> {
        let longest = 2u64.checked_shl(class).filter(|longest| *longest > 0).unwrap_or(u64::MAX);
        let first = range.start.saturating_sub(longest);
        let key = |place| Self { place, import: 0 };
        key(Self::place(class, first))..key(Self::place(class, range.end.saturating_add(PAGE_SIZE - 1)))
    }
}

/// A copy under way.
struct Copy<'a>(&'a Changes);

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        self.0.copies.lock().under_way -= 1;
        self.0.settled.notify_all();
    }
}

/// Keeps copies from beginning, and others from reading the news.
struct Held<'a>(&'a Changes);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut copies = self.0.copies.lock();
        copies.held_up -= 1;
        copies.readers -= 1;
        drop(copies);
        self.0.settled.notify_all();
    }
}

impl Changes {
    /// Follows the imports of `process` by a userfaultfd of it. `notice` is told of what devices lose.
    pub(super) fn follow(&self, process: &ProcessMemory, file: OwnedFd, notice: Notice) -> io::Result<()> {
        let news = (Userfaultfd::enable(file)?, notice);
        self.news.set(news).map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))?;
        let imports: Vec<_> = self.imports.lock().values().filter_map(Weak::upgrade).collect();
        for import in imports {
            let mut at = import.start;
            let end = import.start + import.length;
            while at < end
                && let Ok(Some(vma)) = process.vmas.at_or_after(at)
                && vma.start < end
            {
                self.follow_mapping(&vma);
                at = vma.end;
            }
        }
        Ok(())
    }

    /// Becomes readable when there is news.
    pub(super) fn news(&self) -> Option<BorrowedFd<'_>> {
        self.news.get().map(|(userfaultfd, _)| userfaultfd.as_fd())
    }

    fn follow_mapping(&self, vma: &Vma) {
        if let Some((userfaultfd, _)) = self.news.get() {
            // What the kernel cannot follow, or the process follows itself, is as it was before.
            let _ = userfaultfd.follow(vma);
        }
    }

    /// An import of `length` bytes at `start`, which lie in `vma`.
    pub(super) fn import(&self, process: &Arc<ProcessMemory>, vma: &Vma, start: u64, length: u64) -> Arc<Import> {
        let import = Arc::new(Import::new(process.clone(), start, length));
        self.settle(process);
        self.imports.lock().insert(Key::of(&import, start, length), Arc::downgrade(&import));
        // Where an import is, mappings are not forgotten.
        self.follow_mapping(vma);
        import
    }

    /// Forgets an import, which has these keys beside its first.
    pub(super) fn remove(&self, import: &Import, others: Vec<Key>) {
        let mut imports = self.imports.lock();
        imports.remove(&Key::of(import, import.start, import.length));
        others.iter().for_each(|key| drop(imports.remove(key)));
    }

    /// Has `copy` copy from the memory, or to it, with all news applied. If a change began meanwhile it may have met
    /// what comes next: what it read is dropped, and it reads again. It writes again only if it failed.
    pub(super) fn copy(
        &self,
        process: &ProcessMemory,
        writes: bool,
        mut copy: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let Some((userfaultfd, _)) = self.news.get() else { return copy() };
        let mut deadline = None;
        loop {
            let under_way = self.begin_copy(process);
            let result = copy();
            // The news is not read while a copy is under way.
            if (writes && result.is_ok()) || !userfaultfd.is_changing() {
                return result;
            }
            drop(under_way);
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
            if Instant::now() > deadline {
                return result;
            }
        }
    }

    fn begin_copy(&self, process: &ProcessMemory) -> Copy<'_> {
        self.settle(process);
        let mut copies = self.wait_while(self.copies.lock(), |copies| copies.held_up > 0);
        copies.under_way += 1;
        Copy(self)
    }

    /// Waits for a change of the copies, but not for ever.
    fn wait_while<'a>(
        &'a self,
        mut copies: MutexGuard<'a, Copies, rank::Copies>,
        waits: impl Fn(&Copies) -> bool,
    ) -> MutexGuard<'a, Copies, rank::Copies> {
        let mut deadline = None;
        while waits(&copies) {
            let now = Instant::now();
            let left = deadline.get_or_insert(now + PATIENCE).saturating_duration_since(now);
            if left.is_zero() {
                break;
            }
            copies = self.settled.wait_timeout(copies, left);
        }
        copies
    }

    /// Returns when all news of system calls that began before has been read.
    fn settle(&self, process: &ProcessMemory) {
        let Some((userfaultfd, _)) = self.news.get() else { return };
        let mut deadline = None;
        while userfaultfd.is_changing() {
            let now = Instant::now();
            if now >= *deadline.get_or_insert(now + PATIENCE) {
                break;
            }
            self.take_news(process);
            thread::sleep(NAP);
        }
    }

    /// Keeps copies from beginning, and waits for those under way, and for who reads the news already: what is next
    /// may be an unmap after the last user of an import that this reader still has in its hands.
    fn hold_up(&self) -> Held<'_> {
        let mut copies = self.copies.lock();
        copies.held_up += 1;
        copies = self.wait_while(copies, |copies| copies.under_way > 0 || copies.readers > 0);
        copies.readers += 1;
        drop(copies);
        Held(self)
    }

    /// Reads and applies the news there is, and tells of what devices have lost.
    pub(super) fn take_news(&self, process: &ProcessMemory) {
        let Some((userfaultfd, notice)) = self.news.get() else { return };
        let mut lost = Vec::new();
        let held = self.hold_up();
        let mut last_move = None;
        loop {
            let mut imports = self.imports.lock();
            let Some(change) = userfaultfd.next() else { break };
            let used = match change {
                Change::Gone(start, end) => {
                    let mut used = take_out(&imports, &(start..end), &mut lost);
                    if used.is_empty() {
                        forget_around(userfaultfd, process, &imports, &(start..end));
                    }
                    if let Some(rest) = not_moved(last_move, start, end) {
                        used.extend(take_out(&imports, &rest, &mut lost));
                    }
                    used
                }
                Change::Moved(from, to, length) => follow_move(&mut imports, from, to, length),
            };
            last_move = Some(change);
            // An import drops when no lock is held; and before the next news, which may be of an unmap that came after
            // its last user.
            drop(imports);
            drop(used);
        }
        // Before a device can meet it.
        for lost in lost {
            callback::call_contained(|| notice(lost));
        }
        drop(held);
    }

    /// The process is not followed any more, and waits no longer.
    pub(super) fn stop(&self, vmas: &VmaQuery) {
        let Some((userfaultfd, _)) = self.news.get() else { return };
        // The process may have another descriptor of it, or a child.
        let mut at = 0;
        while let Ok(Some(vma)) = vmas.at_or_after(at) {
            userfaultfd.forget(&vma);
            at = vma.end;
        }
        let deadline = Instant::now() + PATIENCE;
        while userfaultfd.is_changing() && Instant::now() < deadline {
            while userfaultfd.next().is_some() {}
            thread::sleep(NAP);
        }
    }
}

/// Takes what is at `range` out of the imports, and returns those that may have been meant.
fn take_out(imports: &BTreeMap<Key, Weak<Import>>, range: &Range<u64>, lost: &mut Vec<LostMemory>) -> Vec<Arc<Import>> {
    let hits: Vec<_> = near(imports, range).filter_map(Weak::upgrade).collect();
    let gone = hits.iter().flat_map(|import| import.change(range, None));
    lost.extend(gone.map(|(place, iova)| LostMemory { address: place.start, length: place.end - place.start, iova }));
    hits
}

/// Has the imports follow what has moved, and returns those that may have been meant.
fn follow_move(imports: &mut BTreeMap<Key, Weak<Import>>, from: u64, to: u64, length: u64) -> Vec<Arc<Import>> {
    let range = from..from.saturating_add(length);
    let hits: Vec<_> = near(imports, &range).filter_map(Weak::upgrade).collect();
    for import in &hits {
        for (place, _) in import.change(&range, Some(to)) {
            let key = Key::of(import, to.wrapping_add(place.start - from), place.end - place.start);
            imports.insert(key, Arc::downgrade(import));
            import.add_key(key);
        }
    }
    hits
}

/// Before Linux 6.15, a move that made a mapping smaller told the length from before, and then that the end was
/// unmapped, where it had been: what has not moved is not where the move said.
fn not_moved(last: Option<Change>, start: u64, end: u64) -> Option<Range<u64>> {
    let Some(Change::Moved(from, to, length)) = last else { return None };
    let is_its_end = from < start && start < end && Some(end) == from.checked_add(length);
    is_its_end.then(|| to.wrapping_add(start - from)..to.wrapping_add(length))
}

/// The imports that may have something at `range`.
fn near<'a>(
    imports: &'a BTreeMap<Key, Weak<Import>>,
    range: &'a Range<u64>,
) -> impl Iterator<Item = &'a Weak<Import>> + 'a {
    let classes = PAGE_SIZE.ilog2()..u64::BITS;
    classes.flat_map(|class| imports.range(Key::near(class, range))).map(|(_, import)| import)
}

/// The process no longer waits for changes of mappings next to `range` that no import is in.
fn forget_around(
    userfaultfd: &Userfaultfd,
    process: &ProcessMemory,
    imports: &BTreeMap<Key, Weak<Import>>,
    range: &Range<u64>,
) {
    for address in [range.start.saturating_sub(1), range.start, range.end] {
        if let Ok(Some(vma)) = process.vmas.at(address)
            && near(imports, &(vma.start..vma.end)).all(|import| import.strong_count() == 0)
        {
            userfaultfd.forget(&vma);
        }
    }
}
