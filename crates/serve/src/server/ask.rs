//! Questions to the tree, from the process that serves it.
//!
//! If this process is killed while a thread of it waits for an answer of its own, there is nobody to give it, and the
//! thread waits until the connection is closed; the kernel closes it with the last of the threads that have it open. So
//! that the thread which waits is none of those, it has a table of descriptors of its own, with the file in question
//! and nothing else: the connection goes with the others, and then it is told.
#![allow(unsafe_code, reason = "close_range and seccomp's requests have no safe wrappers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::names::GIVEN;

/// What to ask of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Question {
    /// Its attributes: what the size is.
    Attributes,
    /// Its file system: whether everything that was sent before has arrived.
    FileSystem,
    /// To open the file of this `name`, of those that are to be given, below the root that is asked; and then to give
    /// it to the thread whose system call has this `id` on `listener`, as descriptor `number`.
    Give { name: u64, listener: RawFd, id: u64, number: i32 },
}

type Answer = Result<(), Errno>;

struct Asked {
    file: RawFd,
    question: Question,
    answered: SyncSender<Answer>,
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
    pub(crate) fn ask(&self, file: impl AsFd, question: Question) -> Answer {
        let (answered, answer) = mpsc::sync_channel(1);
        let asked = Asked { file: file.as_fd().as_raw_fd(), question, answered };
        let sent = self.thread.lock().unwrap_or_else(PoisonError::into_inner).send(asked);
        match answer.recv() {
            Ok(answer) if sent.is_ok() => answer,
            // There is no thread.
            _ => put(&file, question, |other| {
                // SAFETY: who asks keeps what is named in the question open until it is answered.
                rustix::io::dup(unsafe { BorrowedFd::borrow_raw(other) })
            }),
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
    let fetch = |file| pidfd_getfd(process, file, PidfdGetfdFlags::empty());
    for Asked { file, question, answered } in questions {
        let answer = fetch(file).and_then(|file| put(file, question, fetch));
        let _ = answered.send(answer);
    }
}

/// Asks. Other descriptors of the process have to be fetched.
fn put(file: impl AsFd, question: Question, fetch: impl Fn(RawFd) -> Result<OwnedFd, Errno>) -> Answer {
    match question {
        Question::Attributes => rustix::fs::fstat(file).map(drop),
        Question::FileSystem => rustix::fs::fstatfs(file).map(drop),
        Question::Give { name, listener, id, number } => {
            let opened = openat(file, format!("{GIVEN}/{name}"), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            add_descriptor(&fetch(listener)?, id, &opened, Some(number)).map(drop)
        }
    }
}

/// Gives the thread whose system call has this `id` on `listener` a duplicate of a descriptor, in place of one that it
/// has or as a new one, and returns its number.
pub(crate) fn add_descriptor(
    listener: &OwnedFd,
    id: u64,
    file: &OwnedFd,
    in_place_of: Option<i32>,
) -> Result<i32, Errno> {
    let add = libc::seccomp_notif_addfd {
        id,
        flags: if in_place_of.is_some() { libc::SECCOMP_ADDFD_FLAG_SETFD as u32 } else { 0 },
        srcfd: file.as_raw_fd() as u32,
        newfd: in_place_of.unwrap_or(0) as u32,
        newfd_flags: libc::O_CLOEXEC as u32,
    };
    // SAFETY: the structure is the one that the request number was made from, and outlives the call.
    let number = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const add) };
    if number < 0 { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::MFILE)) } else { Ok(number) }
}
