//! What wakes a device's thread, its worker.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// The worker says that it sleeps, and looks once more; the other thread stores what it has for the worker, and then
/// looks whether that sleeps.
pub(crate) struct Bell {
    sleeps: AtomicBool,
    wakes: OwnedFd,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        let wakes = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { sleeps: AtomicBool::new(false), wakes })
    }

    /// There is something to look at.
    pub(crate) fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.sleeps.swap(false, Ordering::SeqCst) {
            // It counts further than there are rings.
            let _ = rustix::io::write(&self.wakes, &1u64.to_ne_bytes());
        }
    }

    /// To wait until this can be read.
    pub(crate) fn readable(file: BorrowedFd<'_>) -> PollFd<'_> {
        PollFd::from_borrowed_fd(file, PollFlags::IN)
    }

    /// Sleeps until it is rung, one of the `others` is ready, or so long; not at all if `look` finds something.
    pub(crate) fn sleep<'a>(
        &'a self,
        others: impl IntoIterator<Item = PollFd<'a>>,
        longest: Option<Duration>,
        look: impl FnOnce() -> bool,
    ) {
        self.sleeps.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !look() {
            let own = PollFd::new(&self.wakes, PollFlags::IN);
            let mut all: Vec<PollFd<'_>> = std::iter::once(own).chain(others).collect();
            let longest = longest.and_then(|longest| Timespec::try_from(longest).ok());
            // An error is a signal, or memory that there is not: the worker looks again.
            let _ = poll(&mut all, longest.as_ref());
        }
        self.sleeps.store(false, Ordering::SeqCst);
        let _ = rustix::io::read(&self.wakes, &mut [0; 8]);
    }
}
