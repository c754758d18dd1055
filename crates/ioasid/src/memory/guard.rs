//! Files mapped into this process that another process may cut short.
//!
//! Touching a page of a mapping beyond the end of its file raises SIGBUS, and the owner of the file decides where it
//! ends. So every such mapping is entered in a list that the SIGBUS handler looks through. At a fault inside of one the
//! handler marks the mapping as lost from there on, as a file ends but once, and puts empty pages there. The copy in
//! progress ends, the caller throws its result away, and there is no second fault. A SIGBUS anywhere else goes to the
//! handler that was there before.
//!
//! The list only grows, so that the handler can walk it without a lock; entries are reused. A count in each entry,
//! odd while its fields change, keeps the handler from taking an old length for a new address.
#![allow(unsafe_code, reason = "mmap, and a signal handler")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};

use rustix::mm::{MapFlags, ProtFlags};

use crate::base::lock::StaticMutex;

/// One guarded range, of a mapping as long as it exists.
pub(crate) struct Entry {
    /// Odd while `start` and `length` are being changed.
    changes: AtomicUsize,
    start: AtomicUsize,
    /// Zero while the entry guards nothing.
    length: AtomicUsize,
    /// Bytes of a page of the mapping.
    page: AtomicUsize,
    /// The first address that turned out not to exist, as all behind it; [`NOTHING`] if all exist.
    lost: AtomicUsize,
    /// The next entry of all that there are.
    next: AtomicPtr<Entry>,
    /// The next entry that guards nothing. Changed under the lock on `FREE`.
    next_free: AtomicPtr<Entry>,
}

/// Nothing is lost.
const NOTHING: usize = usize::MAX;

impl Entry {
    /// Whether some of `length` bytes at `start`, which are in the mapping, turned out not to exist.
    pub(crate) fn has_lost(&self, start: NonNull<u8>, length: usize) -> bool {
        self.lost.load(Ordering::Relaxed) < start.addr().get() + length
    }

    /// Changes what is guarded. Only the map that took the entry off the free list calls this.
    fn set(&self, start: usize, length: usize, page: usize) {
        let changes = self.changes.load(Ordering::Relaxed);
        self.changes.store(changes + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.length.store(length, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.lost.store(NOTHING, Ordering::Relaxed);
        self.changes.store(changes + 2, Ordering::Release);
    }

    /// The range that is guarded, unless it is changing, which a range that is in use does not.
    fn range(&self) -> Option<(usize, usize)> {
        let before = self.changes.load(Ordering::Acquire);
        let range = (self.start.load(Ordering::Relaxed), self.length.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (before.is_multiple_of(2) && self.changes.load(Ordering::Relaxed) == before).then_some(range)
    }
}

/// Every entry that ever was, newest first.
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());
/// The first of those that guard nothing now.
static FREE: StaticMutex<Option<&'static Entry>> = StaticMutex::new(None);
/// Counts the mappings that lost bytes.
static LOST: AtomicU64 = AtomicU64::new(0);
/// What SIGBUS did before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Changes whenever a mapping of this process turns out to have lost bytes, before any thread can read what takes their
/// place. So code that moves bytes needs to ask for a certain mapping only if this has changed.
#[inline]
pub(crate) fn memory_lost() -> u64 {
    LOST.load(Ordering::Acquire)
}

/// Whether some of the `length` bytes at `start` belong to a mapping that lost bytes.
#[cold]
pub(crate) fn lost_at(start: usize, length: usize) -> bool {
    entries().any(|entry| {
        let lost = entry.lost.load(Ordering::Relaxed);
        let mapped = |(from, mapped): (usize, usize)| lost < start + length && start < from + mapped;
        lost != NOTHING && entry.range().is_some_and(mapped)
    })
}

/// All entries that there are. Takes no lock.
fn entries() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: null or an entry, and entries are never freed.
    let entry = |entry: &AtomicPtr<Entry>| unsafe { entry.load(Ordering::Acquire).as_ref() };
    std::iter::successors(entry(&ENTRIES), move |last| entry(&last.next))
}

/// A mapping of a file, survived by this process whatever becomes of the file.
pub(crate) struct GuardedMap {
    start: NonNull<u8>,
    length: usize,
    entry: &'static Entry,
}

// SAFETY: the mapping belongs to no thread; access to its bytes is by raw copies only (see `Backing`).
unsafe impl Send for GuardedMap {}
// SAFETY: as above.
unsafe impl Sync for GuardedMap {}

impl GuardedMap {
    /// Maps `length` bytes of `file` at `offset`, both multiples of its pages, which are large ones in hugetlbfs. No
    /// memory is set aside for them.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, length: u64, writable: bool) -> io::Result<Self> {
        install_handler()?;
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), length, prot, flags, file, offset) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let entry = take_entry();
        entry.set(start.as_ptr() as usize, length, page_of(file));
        Ok(Self { start, length, entry })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The address of the byte at `offset`, which is in the mapping.
    pub(super) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.length, "a byte of the mapping");
        // SAFETY: within the mapping.
        unsafe { self.start.add(offset) }
    }

    /// Brings every page in that `length` bytes from `offset` on are in, so that no copy has to wait for one. Fails if
    /// one does not exist.
    ///
    /// For reading only, as the kernel then brings in several at once; pages of shared memory are writable all the
    /// same.
    pub(crate) fn populate(&self, offset: usize, length: usize) -> io::Result<()> {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length), "bytes of the mapping");
        // SAFETY: this advice changes no bytes.
        match unsafe { libc::madvise(self.at(offset).as_ptr().cast(), length, libc::MADV_POPULATE_READ) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The caller needs `length` bytes at `start` no more, both multiples of the page size: what they were is let go,
    /// and their addresses stay taken.
    pub(crate) fn give_back(&self, start: NonNull<u8>, length: usize) {
        debug_assert!(start >= self.start && start.addr().get() + length <= self.start.addr().get() + self.length);
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: replaces a part of the mapping, which is ours, and whose bytes there are unused by the caller's word.
        // If the kernel has no room for it, the bytes stay.
        unsafe { libc::mmap(start.as_ptr().cast(), length, libc::PROT_NONE, flags, -1, 0) };
    }

    /// What tells whether bytes of it turned out not to exist.
    pub(crate) fn entry(&self) -> &'static Entry {
        self.entry
    }
}

impl Drop for GuardedMap {
    fn drop(&mut self) {
        // First out of the list: the address may be another mapping's as soon as it is unmapped.
        self.entry.set(0, 0, PAGE);
        // SAFETY: the mapping is ours, and every user of it has let go of the owner of this object.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
        let mut free = FREE.lock();
        let next = free.map_or(ptr::null_mut(), |entry| ptr::from_ref(entry).cast_mut());
        self.entry.next_free.store(next, Ordering::Relaxed);
        *free = Some(self.entry);
    }
}

/// An entry that guards nothing: a used one, or a new one, which is never given back to the allocator.
fn take_entry() -> &'static Entry {
    let mut free = FREE.lock();
    if let Some(entry) = *free {
        // SAFETY: null or an entry, and entries are never freed.
        *free = unsafe { entry.next_free.load(Ordering::Relaxed).as_ref() };
        return entry;
    }
    drop(free);
    let entry: &'static mut Entry = Box::leak(Box::new(Entry {
        changes: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
        page: AtomicUsize::new(PAGE),
        lost: AtomicUsize::new(NOTHING),
        next: AtomicPtr::new(ptr::null_mut()),
        next_free: AtomicPtr::new(ptr::null_mut()),
    }));
    let mut first = ENTRIES.load(Ordering::Acquire);
    loop {
        *entry.next.get_mut() = first;
        match ENTRIES.compare_exchange_weak(first, entry, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return entry,
            Err(now) => first = now,
        }
    }
}

/// In a siginfo: memory is broken, and no thread was reading it (sigaction(2)).
const BUS_MCEERR_AO: libc::c_int = 5;
/// Bytes of a page, where nothing else is said.
const PAGE: usize = super::PAGE_SIZE as usize;

/// Bytes of a page of a file: the file system's where it is one of large pages.
fn page_of(file: BorrowedFd<'_>) -> usize {
    match rustix::fs::fstatfs(file) {
        Ok(system) if system.f_type == libc::HUGETLBFS_MAGIC => (system.f_bsize as usize).max(PAGE),
        _ => PAGE,
    }
}

fn install_handler() -> io::Result<()> {
    static DONE: StaticMutex<bool> = StaticMutex::new(false);
    let mut done = DONE.lock();
    if *done {
        return Ok(());
    }
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks for the present action only; `previous` is large enough.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above filled it in.
    let _ = PREVIOUS.set(unsafe { previous.assume_init() });
    install()?;
    *done = true;
    Ok(())
}

/// Makes [`on_sigbus`] the handler. A signal handler may do that.
fn install() -> io::Result<()> {
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what a handler may.
    match unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to an SA_SIGINFO handler.
    let code = unsafe { (*info).si_code };
    // A signal that a process sent says nothing about memory, whatever address is in it; and of broken memory that no
    // thread has met, whoever meets it is told.
    if code <= 0 || code == BUS_MCEERR_AO {
        return pass_on_sent(signal, info, context);
    }
    // SAFETY: a SIGBUS that the kernel raises carries an address.
    let address = unsafe { (*info).si_addr() } as usize;
    for entry in entries() {
        if let Some((start, length)) = entry.range()
            && address.wrapping_sub(start) < length
        {
            let page = entry.page.load(Ordering::Relaxed).max(PAGE);
            let lost = address & !(page - 1);
            entry.lost.fetch_min(lost, Ordering::Relaxed);
            LOST.fetch_add(1, Ordering::Release);
            let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let rest = start + length - lost;
            // SAFETY: replaces part of a mapping that this module owns and that this thread is using right now, so that
            // its owner is alive; all that is lost of it, so that no more than one mapping comes of it, however often
            // this happens.
            if unsafe { libc::mmap(lost as *mut libc::c_void, rest, prot, flags, -1, 0) } != libc::MAP_FAILED {
                return;
            }
            break;
        }
    }
    pass_on(signal, info, context);
}

/// Gives a SIGBUS that was sent to whatever handled it before. If nothing did it ends here: the default action would
/// end the process, and to put it back would leave every mapping unguarded.
fn pass_on_sent(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if let Some(previous) = PREVIOUS.get()
        && !matches!(previous.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
    {
        call(previous, signal, info, context);
        // That of Rust's library takes every SIGBUS for the last, and has the default action done at the next.
        let _ = install();
    }
}

/// Does with a SIGBUS that the kernel raised, and that is not ours, what was done before.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(previous) = PREVIOUS.get() else { return };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: putting the earlier action back; returning runs the faulting instruction again, under it, which
            // ends the process.
            unsafe { libc::sigaction(signal, previous, ptr::null_mut()) };
        }
        _ => call(previous, signal, info, context),
    }
}

/// Calls the handler that there was before.
fn call(previous: &libc::sigaction, signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    match previous.sa_sigaction {
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with SA_SIGINFO the address is a function of this signature.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO the address is a function of this signature.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
