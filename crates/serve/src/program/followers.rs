//! Processes whose memory is followed: each has a thread that takes the news of what becomes of it, so that the process
//! need not wait, and waits for no other.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};

use ioasid::memory::{LostMemory, Process};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// Bytes of a thread's stack.
const STACK: usize = 256 << 10;

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
    /// Whether a process is to be followed, as `wanted` says, and it was not tried before.
    pub(crate) fn is_new(&self, process: &Arc<Process>, wanted: impl FnOnce() -> bool) -> bool {
        let tried = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |tried: &HashMap<u32, Weak<Process>>| {
            tried.get(&process.pid()).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(process)))
        };
        if known(&tried()) || !wanted() {
            return false;
        }
        let mut tried = tried();
        let is_new = !known(&tried);
        tried.retain(|_, process| process.strong_count() > 0);
        tried.insert(process.pid(), Arc::downgrade(process));
        is_new
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
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        // A process that is not used any more goes on as if it had not been followed.
        let (true, Some(process)) = (polled[1].revents().is_empty(), process.upgrade()) else { return };
        process.take_news();
    }
}
