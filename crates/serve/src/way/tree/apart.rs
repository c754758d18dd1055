//! The connection to the kernel, apart from this process's other descriptors.
//!
//! A thread that asks the tree for something waits for an answer that another thread of its own process gives; and such
//! questions cannot be avoided, as a program may pass memory, files and directories of the tree wherever it passes any.
//! If the process is killed, nobody answers, and the wait, which no signal ends, ends when the kernel closes the
//! connection: with the last descriptor of it. So the threads that serve the tree have a table of descriptors of their
//! own, with the connection and little else, and no other thread has it: it closes when these threads end, which wait
//! for nothing, and with it all waits end, of whatever kind.
//!
//! ```text
//!   this process's table                       the table apart
//!     listeners, devices, workers, …  ──────►    tree, notify: /dev/fuse
//!            wait for the tree                   wait for no other thread but the workers, which a kill ends
//! ```
//! What these threads do with a number of the other table would hit another file, or none. So they read and write no
//! other files; and what may have descriptors they let go of elsewhere ([`Server::with_file`]).
#![allow(unsafe_code, reason = "close_range has no safe wrapper, and a descriptor changes its table")]

use std::collections::HashMap;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use fuser::{Config, Filesystem, PollNotifier, Session, SessionACL};

use crate::request::given::Wake;

/// Serves a file system on `connection`, and returns when the kernel has accepted it. `ended` is called when nobody has
/// it mounted any more.
///
/// # Errors
/// If the kernel's FUSE lacks something, or there can be no thread.
pub(super) fn serve<F>(system: F, connection: OwnedFd, ended: impl FnOnce() + Send + 'static) -> io::Result<()>
where
    F: Filesystem + Send + Sync + 'static,
{
    let number = connection.into_raw_fd();
    let (tell, told) = mpsc::channel();
    let started = std::thread::Builder::new().name("tree".to_owned()).spawn(move || {
        let session = keep_only(number)
            .and_then(|connection| Session::from_fd(system, connection, SessionACL::All, Config::default()));
        match session {
            Ok(session) => {
                let _ = tell.send(Ok(()));
                let _ = session.run();
                ended();
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    });
    let answer = started.and_then(|_| told.recv().map_err(|_| io::ErrorKind::BrokenPipe)?);
    // SAFETY: the number is this table's, which the descriptor was taken from above; the thread has a table of its own
    // by now, or has closed nothing.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    answer
}

/// Gives the calling thread a table of its own, with standard input and output and the descriptor `number`.
fn keep_only(number: RawFd) -> io::Result<OwnedFd> {
    let close = |first: RawFd, last: libc::c_uint, flags: libc::c_uint| {
        // SAFETY: takes numbers. What is closed is closed in this thread's table only: the first call makes it, and
        // nothing that this thread has uses a descriptor in it.
        match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // The numbers up to `number` may be none, but the table is made in any case.
    close(number + 1, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    if number > 3 {
        close(3, number as libc::c_uint - 1, 0)?;
    }
    // SAFETY: it is open in this thread's table, where nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Tells the kernel, from a thread apart, of files that have become ready.
pub(super) struct Notifications {
    /// How to tell it, of each file that somebody has waited for, by inode.
    notifiers: Arc<Mutex<HashMap<u64, PollNotifier>>>,
    /// To the thread that tells.
    ready: Mutex<Option<Sender<u64>>>,
}

impl Notifications {
    pub(super) fn new() -> Self {
        Self { notifiers: Arc::default(), ready: Mutex::new(None) }
    }

    /// How to tell of a file. To be called by a thread apart.
    pub(super) fn wake(&self, inode: u64, notifier: PollNotifier) -> Wake {
        self.notifiers.lock().unwrap_or_else(PoisonError::into_inner).insert(inode, notifier);
        let ready = self.sender();
        Arc::new(move || {
            let _ = ready.send(inode);
        })
    }

    /// A file is closed.
    pub(super) fn forget(&self, inode: u64) {
        self.notifiers.lock().unwrap_or_else(PoisonError::into_inner).remove(&inode);
    }

    fn sender(&self) -> Sender<u64> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let (sender, inodes) = mpsc::channel();
            let notifiers = self.notifiers.clone();
            // Of the calling thread it has the table. Without it programs are told of nothing, and poll again.
            let _ = std::thread::Builder::new().name("notify".to_owned()).spawn(move || tell(&inodes, &notifiers));
            sender
        };
        ready.get_or_insert_with(start).clone()
    }
}

impl Drop for Notifications {
    /// The thread keeps nothing that it could tell by when the connection is gone.
    fn drop(&mut self) {
        self.notifiers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn tell(inodes: &Receiver<u64>, notifiers: &Mutex<HashMap<u64, PollNotifier>>) {
    for inode in inodes {
        let notifier = notifiers.lock().unwrap_or_else(PoisonError::into_inner).get(&inode).cloned();
        // What is closed meanwhile has nobody who waits.
        let _ = notifier.map(PollNotifier::notify);
    }
}
