//! Processes whose memory is followed: a thread takes the news of what becomes of it, so that they need not wait.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ioasid::memory::{LostMemory, Process};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// The processes that are followed. The thread ends when this is dropped.
#[derive(Default)]
pub(crate) struct Followers {
    shared: Mutex<Option<Arc<Shared>>>,
    /// Those that were tried, by number.
    tried: Mutex<HashMap<u32, Weak<Process>>>,
}

/// What the thread has, too.
struct Shared {
    /// There are more processes, or the end has come.
    wake: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    processes: Vec<Followed>,
    ended: bool,
}

#[derive(Clone)]
struct Followed {
    process: Weak<Process>,
    /// Readable when there is news. The process may have another descriptor of it.
    news: Arc<OwnedFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start() -> io::Result<Arc<Self>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Self { wake, state: Mutex::default() });
        let thread = shared.clone();
        std::thread::Builder::new().name("memory".to_owned()).spawn(move || thread.run())?;
        Ok(shared)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        // It can only fail if there are so many wakes already that the counter is full.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn run(&self) {
        loop {
            let followed = {
                let mut state = self.lock();
                if state.ended {
                    return;
                }
                // A process that is not used any more goes on as if it had not been followed.
                state.processes.retain(|followed| followed.process.strong_count() > 0);
                state.processes.clone()
            };
            let files = std::iter::once(self.wake.as_fd()).chain(followed.iter().map(|followed| followed.news.as_fd()));
            let mut polled: Vec<_> = files.map(|file| PollFd::from_borrowed_fd(file, PollFlags::IN)).collect();
            if poll(&mut polled, None).is_err_and(|error| error != Errno::INTR) {
                return;
            }
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            let ready = polled[1..].iter().map(|polled| !polled.revents().is_empty());
            let processes = followed.iter().zip(ready).filter(|(_, ready)| *ready);
            processes.filter_map(|(followed, _)| followed.process.upgrade()).for_each(|process| process.take_news());
        }
    }
}

impl Followers {
    /// Whether a process is to be followed, as `wanted` says, and it was not tried before.
    pub(crate) fn is_new(&self, process: &Arc<Process>, wanted: impl FnOnce() -> bool) -> bool {
        let tried = || self.tried.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Follows what becomes of a process's memory, by a userfaultfd of it, and tells of what devices lose.
    ///
    /// # Errors
    /// As [`Process::follow`]; if there can be no thread, or no descriptor. The process is not followed then.
    pub(crate) fn follow(
        &self,
        process: &Arc<Process>,
        userfaultfd: OwnedFd,
        notice: impl Fn(LostMemory) + Send + Sync + 'static,
    ) -> io::Result<()> {
        let shared = {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            match &*shared {
                Some(shared) => shared.clone(),
                None => shared.insert(Shared::start()?).clone(),
            }
        };
        let news = Arc::new(userfaultfd.try_clone()?);
        process.follow(userfaultfd, notice)?;
        shared.change(|state| state.processes.push(Followed { process: Arc::downgrade(process), news }));
        Ok(())
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.get_mut().unwrap_or_else(PoisonError::into_inner) {
            shared.change(|state| state.ended = true);
        }
    }
}
