//! Questions to the tree, from the process that serves it.
//!
//! If this process is killed while a thread of it waits for an answer of its own, there is nobody to give it, and the thread
//! waits until the connection is closed; the kernel closes it with the last of the threads that have it open. So that the
//! thread which waits is none of those, it has a table of descriptors of its own, with the file in question and nothing else:
//! the connection goes with the others, and then it is told.
#![allow(unsafe_code, reason = "close_range has no safe wrapper")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Mutex, PoisonError};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// What to ask of a file. The answer goes to the kernel, which does what it does with it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Question {
    /// Its attributes: what the size is.
    Attributes,
    /// Its file system: whether everything that was sent before has arrived.
    FileSystem,
}

struct Asked {
    file: RawFd,
    question: Question,
    answered: SyncSender<()>,
}

/// The thread that asks.
pub(crate) struct Asker {
    thread: Mutex<Sender<Asked>>,
}

impl Asker {
    /// Starts it, and says its number. If there can be no thread, nobody answers, and [`Asker::ask`] asks by itself.
    pub(crate) fn start() -> (Self, Option<u32>) {
        let (thread, questions) = mpsc::channel();
        let (tell, number) = mpsc::channel();
        let _ = std::thread::Builder::new().name("ask".to_owned()).spawn(move || {
            if let Some(process) = leave_descriptors() {
                let _ = tell.send(rustix::thread::gettid().as_raw_nonzero().get() as u32);
                answer(&process, &questions);
            }
        });
        (Self { thread: Mutex::new(thread) }, number.recv().ok())
    }

    /// Asks, and returns when it is answered.
    pub(crate) fn ask(&self, file: impl AsFd, question: Question) {
        let (answered, answer) = mpsc::sync_channel(1);
        let asked = Asked { file: file.as_fd().as_raw_fd(), question, answered };
        let sent = self.thread.lock().unwrap_or_else(PoisonError::into_inner).send(asked);
        if sent.is_err() || answer.recv().is_err() {
            put(file, question);
        }
    }
}

/// Gives this thread a table of descriptors of its own, with a descriptor of the process, in whose the others are.
fn leave_descriptors() -> Option<OwnedFd> {
    // SAFETY: takes no pointers. What is closed is closed in this thread's table only, and it has used nothing of it.
    let left = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if left == 0 { pidfd_open(getpid(), PidfdFlags::empty()).ok() } else { None }
}

fn answer(process: &OwnedFd, questions: &Receiver<Asked>) {
    for Asked { file, question, answered } in questions {
        if let Ok(file) = pidfd_getfd(process, file, PidfdGetfdFlags::empty()) {
            put(file, question);
            let _ = answered.send(());
        }
    }
}

fn put(file: impl AsFd, question: Question) {
    match question {
        Question::Attributes => drop(rustix::fs::fstat(file)),
        Question::FileSystem => drop(rustix::fs::fstatfs(file)),
    }
}
