//! A thread that is to see a device when it comes out of the system call that it is in.
//!
//! ```text
//!   worker: GETATTR ──► show ──► thread of its own: PTRACE_SEIZE, INTERRUPT
//!              ◄───── it is sure to stop ────┘
//!   tree: the answer ──► program: the call returns, and stops ──► that thread: the memory is changed, PTRACE_DETACH
//! ```
//! Each has a thread here: to seize one waits for an exec of its process, which waits for it to end; and what is read of
//! its memory may wait, too. Whoever waits for this thread gives up, and then the program sees what is in the tree.

use std::fs::{File, OpenOptions};
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::ptrace::{self, Stop};
use super::stat::Answer;
use crate::program::status::is_being_killed;
use crate::way::CharDevice;

/// How often somebody who waits looks whether the thread is there still, and how long they wait.
const LOOK: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(1);

/// Has `tid` see a device. Returns when it is sure to stop.
///
/// # Errors
/// If it cannot be traced, or does not stop soon.
pub(super) fn show(tid: u32, device: CharDevice) -> io::Result<()> {
    let (ready, is_ready) = mpsc::channel();
    let stop = move || {
        let seized = ptrace::seize_to_stop(tid);
        let is_seized = seized.is_ok();
        // Also if nobody waits any more: what is seized is let go only when it has stopped.
        let _ = ready.send(seized);
        if is_seized {
            change(tid, device);
        }
    };
    std::thread::Builder::new().name("show".to_owned()).spawn(stop)?;
    wait_for(tid, &is_ready)
}

/// Waits for what another thread says of `tid`, for as long as that lives, and a second.
///
/// # Errors
/// What is said; `TimedOut` if nothing is.
pub(super) fn wait_for(tid: u32, said: &mpsc::Receiver<io::Result<()>>) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match said.recv_timeout(LOOK) {
            Ok(said) => return said,
            Err(RecvTimeoutError::Timeout) if begun.elapsed() < PATIENCE && !is_being_killed(tid) => {}
            Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Waits until a thread that this one has seized stops, changes what its call has told, and lets it go.
fn change(tid: u32, device: CharDevice) {
    // One that ends tells nobody anything.
    let Some(status) = ptrace::wait_for_own(tid) else { return };
    let signal = match ptrace::stop_of(status) {
        Stop::Exec | Stop::Exit => 0,
        stop => {
            if let (Some(answer), Ok(memory)) = (Answer::of_stopped(tid), memory_of(tid)) {
                // Memory that is not there any more, nobody looks at.
                let _ = answer.show(&memory, device);
            }
            if let Stop::Signal(signal) = stop { signal } else { 0 }
        }
    };
    ptrace::detach_with(tid, signal);
}

/// The memory of a thread that has stopped: it stays that, whoever has the number later.
pub(super) fn memory_of(tid: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(format!("/proc/{tid}/mem"))
}
