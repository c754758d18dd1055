//! A thread that is to see a device when it comes out of the system call that it is in.
//!
//! ```text
//!   worker: GETATTR ──► show ──► thread of its own: PTRACE_SEIZE, INTERRUPT
//!              ◄───── it is sure to stop ────┘
//!   tree: the answer ──► program: the call returns, and stops ──► that thread: the memory is changed, PTRACE_DETACH
//! ```
//! Each look has a thread here. PTRACE_SEIZE waits for an exec of the process, which waits for the seized thread to
//! end; and reading the program's memory may wait, too. The worker that waits for this thread gives up in the end, and
//! then the program sees what is in the tree.

use std::fs::{File, OpenOptions};
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::ptrace::{self, Stop};
use super::stat::Answer;
use crate::program::status::is_being_killed;
use crate::way::CharDevice;

/// How often a worker checks that the program's thread still lives, and how long it waits.
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
        // The worker may have given up: a seized thread can be let go only when it has stopped.
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
    // A thread that ends looks at no answer.
    let Some(status) = ptrace::wait_for_own(tid) else { return };
    let signal = match ptrace::stop_of(status) {
        Stop::Exec | Stop::Exit => 0,
        stop => {
            if let (Some(answer), Ok(memory)) = (Answer::of_stopped(tid), memory_of(tid)) {
                // No thread looks at memory that is gone.
                let _ = answer.show(&memory, device);
            }
            if let Stop::Signal(signal) = stop { signal } else { 0 }
        }
    };
    ptrace::detach_with(tid, signal);
}

/// The memory of a stopped thread. The file stays that memory when the number becomes another's.
pub(super) fn memory_of(tid: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(format!("/proc/{tid}/mem"))
}
