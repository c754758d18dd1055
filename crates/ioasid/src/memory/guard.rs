//! Files mapped into this process that somebody else may cut short.
//!
//! Touching a page of a mapping beyond the end of its file raises SIGBUS, and whoever owns the file decides where it
//! ends. So every such mapping is entered in a list that the SIGBUS handler looks through: a fault inside one marks it
//! as failed and puts an empty page there, so that the copy in progress ends and its result is thrown away. A SIGBUS
//! anywhere else goes to whatever handled it before.
//!
//! The list only grows, so that the handler can walk it without a lock; entries are reused.
#![allow(unsafe_code, reason = "mmap, and a signal handler")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::mm::{MapFlags, ProtFlags};

/// One guarded range. `length` is zero while the entry is free.
struct Entry {
    start: AtomicUsize,
    length: AtomicUsize,
    failed: AtomicPtr<AtomicBool>,
    next: AtomicPtr<Entry>,
}

/// Every entry that ever was, newest first.
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());
/// Those that guard nothing now.
static FREE: Mutex<Vec<&'static Entry>> = Mutex::new(Vec::new());
/// What SIGBUS did before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping of a file, survived by this process whatever becomes of the file.
pub(crate) struct GuardedMap {
    start: NonNull<u8>,
    length: usize,
    failed: Arc<AtomicBool>,
    entry: &'static Entry,
}

// SAFETY: the mapping belongs to no thread; access to its bytes is by raw copies only (see `Backing`).
unsafe impl Send for GuardedMap {}
// SAFETY: as above.
unsafe impl Sync for GuardedMap {}

impl GuardedMap {
    /// Maps `length` bytes of `file` at `offset`.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, length: u64, writable: bool) -> io::Result<Self> {
        install_handler()?;
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), length, prot, MapFlags::SHARED, file, offset) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let failed = Arc::new(AtomicBool::new(false));
        let entry = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_else(new_entry);
        entry.failed.store(Arc::as_ptr(&failed).cast_mut(), Ordering::Relaxed);
        entry.start.store(start.as_ptr() as usize, Ordering::Relaxed);
        entry.length.store(length, Ordering::Release);
        Ok(Self { start, length, failed, entry })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Brings every page in, so that no copy has to wait for one. Fails if one does not exist.
    ///
    /// For reading only, as the kernel then brings in several at once; pages of shared memory are writable all the same.
    pub(crate) fn populate(&self) -> io::Result<()> {
        // SAFETY: this advice changes no bytes.
        match unsafe { libc::madvise(self.start.as_ptr().cast(), self.length, libc::MADV_POPULATE_READ) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Becomes true when bytes of the mapping turned out not to exist.
    pub(crate) fn failed(&self) -> Arc<AtomicBool> {
        self.failed.clone()
    }
}

impl Drop for GuardedMap {
    fn drop(&mut self) {
        // First out of the list: the address may be somebody else's as soon as it is unmapped.
        self.entry.length.store(0, Ordering::Release);
        // SAFETY: the mapping is ours, and whoever could use it has let go of the owner of this object.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.entry);
    }
}

fn new_entry() -> &'static Entry {
    let entry = Box::leak(Box::new(Entry {
        start: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
        failed: AtomicPtr::new(ptr::null_mut()),
        next: AtomicPtr::new(ptr::null_mut()),
    }));
    let mut first = ENTRIES.load(Ordering::Acquire);
    loop {
        entry.next.store(first, Ordering::Relaxed);
        match ENTRIES.compare_exchange_weak(first, entry, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return entry,
            Err(now) => first = now,
        }
    }
}

fn install_handler() -> io::Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
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
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what a handler may.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    *done = true;
    Ok(())
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to an SA_SIGINFO handler, and SIGBUS carries an address.
    let address = unsafe { (*info).si_addr() } as usize;
    let mut next = ENTRIES.load(Ordering::Acquire);
    // SAFETY: entries are never freed.
    while let Some(entry) = unsafe { next.as_ref() } {
        let length = entry.length.load(Ordering::Acquire);
        let start = entry.start.load(Ordering::Relaxed);
        if address.wrapping_sub(start) < length {
            let page = super::PAGE_SIZE as usize;
            // SAFETY: replaces one page of a mapping that this module owns and that somebody is using right now, so
            // that its owner is alive and `failed` is too.
            unsafe {
                (*entry.failed.load(Ordering::Relaxed)).store(true, Ordering::Relaxed);
                let at = (address & !(page - 1)) as *mut libc::c_void;
                let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                if libc::mmap(at, page, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) != libc::MAP_FAILED {
                    return;
                }
            }
            break;
        }
        next = entry.next.load(Ordering::Acquire);
    }
    pass_on(signal, info, context);
}

/// Does with a SIGBUS that is not ours what was done before.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(previous) = PREVIOUS.get() else { return };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: putting the earlier action back; returning runs the faulting instruction again, under it.
            unsafe { libc::sigaction(signal, previous, ptr::null_mut()) };
        }
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
