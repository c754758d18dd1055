//! Descriptors that a peer has passed.
//!
//! To close one of a file system of the peer's own asks that file system, and the kernel waits for its answer, for ever
//! and unkillably. So what is not known to close at once is closed by a thread that nobody waits for.

use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::fs::fcntl_get_seals;

/// Descriptors that came beside a message. Those that nobody takes are let go of without a wait.
#[derive(Debug, Default)]
pub(crate) struct Passed(Vec<OwnedFd>);

impl Passed {
    pub(super) fn extend(&mut self, more: impl IntoIterator<Item = OwnedFd>) {
        self.0.extend(more);
    }

    /// Takes one, if it is memory: a memfd, or a file in tmpfs or hugetlbfs.
    pub(crate) fn take_memory(&mut self, place: usize) -> Option<OwnedFd> {
        self.0.get(place).filter(|descriptor| is_memory(descriptor))?;
        Some(self.0.swap_remove(place))
    }

    /// Takes all, if they are memory.
    pub(crate) fn take_memories(&mut self) -> Option<Vec<OwnedFd>> {
        self.0.iter().all(is_memory).then(|| std::mem::take(&mut self.0))
    }

    /// Takes one, if it is a socket.
    pub(crate) fn take_socket(&mut self, place: usize) -> Option<OwnedFd> {
        self.0.get(place).filter(|descriptor| link(descriptor).starts_with("socket:"))?;
        Some(self.0.swap_remove(place))
    }

    /// One more descriptor of an eventfd.
    pub(crate) fn clone_eventfd(&self, place: usize) -> Option<OwnedFd> {
        self.0.get(place).filter(|descriptor| is_eventfd(descriptor))?.try_clone().ok()
    }
}

impl Deref for Passed {
    type Target = [OwnedFd];

    fn deref(&self) -> &[OwnedFd] {
        &self.0
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        static CLOSER: LazyLock<Option<Mutex<Sender<OwnedFd>>>> = LazyLock::new(|| {
            let (sender, receiver) = channel::<OwnedFd>();
            let closer = std::thread::Builder::new().name("closer".to_owned());
            closer.spawn(move || receiver.into_iter().for_each(drop)).ok()?;
            Some(Mutex::new(sender))
        });
        // Memory, and what has no file system, closes at once.
        let slow = self.0.drain(..).filter(|descriptor| !is_memory(descriptor) && !is_eventfd(descriptor));
        for descriptor in slow {
            match &*CLOSER {
                // It ends with this process, and takes what there is until then.
                Some(closer) => drop(closer.lock().unwrap_or_else(PoisonError::into_inner).send(descriptor)),
                None => drop(descriptor),
            }
        }
    }
}

fn is_memory(descriptor: &OwnedFd) -> bool {
    fcntl_get_seals(descriptor).is_ok()
}

fn is_eventfd(descriptor: &OwnedFd) -> bool {
    link(descriptor) == "anon_inode:[eventfd]"
}

/// What `/proc` says that it is; the path is not looked up.
fn link(descriptor: &OwnedFd) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    link.map(|link| link.to_string_lossy().into_owned()).unwrap_or_default()
}
