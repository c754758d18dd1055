//! Processes whose memory is followed: each has a thread that takes the news of what becomes of it, so that the process
//! need not wait, and waits for no other.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Duration;

use ioasid::memory::{LostMemory, Process};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// Bytes of a thread's stack.
const STACK: usize = 256 << 10;

/// How long the thread sleeps where it cannot wait.
const NAP: Duration = Duration::from_millis(1);

/// The processes that were tried, by number.
#[derive(Default)]
pub(crate) struct Followers(Mutex<HashMap<u32, Weak<Process>>>);

/// Tells the thread when it is dropped: the process's memory is used no more.
struct End(OwnedFd);

impl Drop for End {
    fn drop(&mut self) {
        // The counter has room for one.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl Followers {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Weak<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a process was not tried before. It is from now on.
    pub(crate) fn is_new(&self, process: &Arc<Process>) -> bool {
        let mut tried = self.lock();
        let known = tried.get(&process.pid());
        if known.is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(process))) {
            return false;
        }
        tried.retain(|_, process| process.strong_count() > 0);
        tried.insert(process.pid(), Arc::downgrade(process));
        true
    }

    /// It is to be tried again.
    pub(crate) fn forget(&self, process: &Process) {
        self.lock().remove(&process.pid());
    }
}

/// Follows what becomes of a process's memory, by a userfaultfd of it, and tells of what devices lose.
///
/// # Errors
/// As [`Process::follow`]; if there can be no thread, or no descriptor. The process is not followed then.
pub(crate) fn follow(
    process: &Arc<Process>,
    userfaultfd: OwnedFd,
    notice: impl Fn(LostMemory) + Send + Sync + 'static,
) -> io::Result<()> {
    let end = End(eventfd(0, EventfdFlags::CLOEXEC)?);
    let (ended, news) = (end.0.try_clone()?, userfaultfd.try_clone()?);
    let (begin, begins) = mpsc::channel();
    let known = Arc::downgrade(process);
    // First, as a process that is followed and has none would wait for ever.
    std::thread::Builder::new().name("memory".to_owned()).stack_size(STACK).spawn(move || {
        if begins.recv().is_ok() {
            take_news(&known, &news, &ended);
        }
    })?;
    process.follow(userfaultfd, move |lost| {
        let _until_dropped = &end;
        notice(lost);
    })?;
    // It is there, as it waits for this.
    let _ = begin.send(());
    Ok(())
}

/// Takes the news until there will be none.
fn take_news(process: &Weak<Process>, news: &OwnedFd, ended: &OwnedFd) {
    loop {
        let mut polled = [news, ended].map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN));
        let done = poll(&mut polled, None);
        // The process may have made its descriptor one that cannot be waited for.
        if done.is_err_and(|error| error != Errno::INTR) || polled[0].revents().contains(PollFlags::ERR) {
            std::thread::sleep(NAP);
        }
        // A process that is not used any more goes on as if it had not been followed.
        let (true, Some(process)) = (polled[1].revents().is_empty(), process.upgrade()) else { return };
        process.take_news();
    }
}
