//! The process between the runner and the program, which leaves no process behind.
//!
//! ```text
//!   runner ──────── guardian ──────── program ──┬── its children, …
//!     │   ◄─events──   ▲                        └── those whose parents end become the guardian's
//!     └────done──────► │
//! ```
//! A process can ask the kernel to end it when its parent ends, but a change of its user undoes that, and its children
//! know nothing of it. So the program's parent is the guardian: it adopts whatever the program leaves
//! (PR_SET_CHILD_SUBREAPER), tells the runner how the program fares, and if the runner ends without a word, ends all of
//! them. If another process ends the guardian, the runner adopts them and does the same; if one stops it, the runner
//! has it go on.
#![allow(unsafe_code, reason = "fork, wait and signals have no complete safe wrappers")]

use std::fs;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ioasid_serve::descriptors::close_others;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use super::channel::Channel;
use crate::report::Ending;

/// How long the guardian tries to end what is left. Only a process that the kernel itself keeps from ending takes so
/// long.
const LONGEST: Duration = Duration::from_secs(5);

/// How long the guardian has to end when the runner lets it go.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the runner knows of the program.
pub struct Program {
    /// Its process number.
    pub number: u32,
    pidfd: OwnedFd,
    guardian: Pid,
    events: OwnedFd,
}

/// What happens to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Ended(Ending),
    /// By this signal. It may go on.
    Stopped(i32),
}

impl Event {
    fn to_bytes(self) -> [u8; 5] {
        let (kind, value) = match self {
            Self::Ended(Ending::Status(status)) => (0, status),
            Self::Ended(Ending::Signal(signal)) => (1, signal),
            Self::Stopped(signal) => (2, signal),
        };
        let [a, b, c, d] = value.to_ne_bytes();
        [kind, a, b, c, d]
    }

    fn from_bytes([kind, a, b, c, d]: [u8; 5]) -> Option<Self> {
        let value = i32::from_ne_bytes([a, b, c, d]);
        Some(match kind {
            0 => Self::Ended(Ending::Status(value)),
            1 => Self::Ended(Ending::Signal(value)),
            2 => Self::Stopped(value),
            _ => return None,
        })
    }
}

impl Program {
    /// Starts the guardian, and by way of it a process that does `program`, which does not return. Called before this
    /// process has any threads. `own` is closed there: this process's end of what it says to the program.
    pub fn start(own: &Channel, program: impl FnOnce() -> std::convert::Infallible) -> Result<Self> {
        let (events, tell) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (hand_over, handed) = Channel::pair()?;
        // Of the guardian's, if that is ended.
        adopt()?;
        // SAFETY: there is only this thread, so the child may do whatever this process could.
        let guardian = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error().into()),
            0 => {
                // The guardian and the program wait for the ends of these connections, and must not keep them open.
                for descriptor in [events.as_raw_fd(), own.as_fd().as_raw_fd(), handed.as_fd().as_raw_fd()] {
                    // SAFETY: its owners are this process's copies, which this process neither uses nor drops.
                    unsafe { libc::close(descriptor) };
                }
                guard(&tell, hand_over, program)
            }
            guardian => Pid::from_raw(guardian).ok_or(Errno::CHILD)?,
        };
        drop((tell, hand_over));
        let pidfd = handed.receive_descriptor().context("cannot start a process")?;
        let number = handed.receive_note()?.and_then(|number| number.parse().ok());
        Ok(Self { number: number.context("cannot start a process")?, pidfd, guardian, events })
    }

    /// Whether a process is the guardian.
    pub fn is_guarded_by(&self, pid: u32) -> bool {
        self.guardian.as_raw_nonzero().get() as u32 == pid
    }

    /// Has the guardian go on, if some process has stopped it.
    pub fn continue_guardian(&self) {
        // If the guardian has ended, its end is an event.
        let _ = kill_process(self.guardian, Signal::CONT);
    }

    /// Becomes readable when there is an event.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// What has happened; `None` if nothing has. Without a guardian everybody that it guarded is ended, and `changed`
    /// hears of each change meanwhile, as of [`next_change`]: what is traced here ends only when its tracer has it go.
    pub fn next_event(&self, changed: impl FnMut(u32, i32)) -> Option<Event> {
        let mut bytes = [0; 5];
        match recv(&self.events, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((5, _)) => Event::from_bytes(bytes),
            Err(Errno::AGAIN | Errno::INTR) => None,
            _ => {
                end_all_children(changed);
                Some(Event::Ended(Ending::Signal(libc::SIGKILL)))
            }
        }
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: i32) {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: takes numbers, and no information.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal, no_info, 0) };
    }

    /// Ends the program, and lets it go.
    pub fn give_up(self) {
        self.signal(libc::SIGKILL);
        self.let_go();
    }

    /// Lets go of the program, and of whatever it has left behind.
    pub fn let_go(self) {
        let _ = send(&self.events, b"done", SendFlags::NOSIGNAL);
        self.continue_guardian();
        let begin = Instant::now();
        // A guardian that does not end is left to itself: what it guards, it lets be.
        while let Ok(None) = waitpid(Some(self.guardian), WaitOptions::NOHANG)
            && begin.elapsed() < PATIENCE
        {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Has processes whose parents end become this process's children, before they become the system's.
fn adopt() -> io::Result<()> {
    // SAFETY: takes numbers.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The guardian.
fn guard(tell: &OwnedFd, hand_over: Channel, program: impl FnOnce() -> std::convert::Infallible) -> ! {
    let started = adopt().and_then(|()| {
        // SAFETY: there is only this thread.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => match program() {},
            child => Ok(child),
        }
    });
    // From now on no process of the same user may trace it.
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    let child = started.ok().filter(|&child| {
        let pidfd = Pid::from_raw(child).and_then(|child| pidfd_open(child, PidfdFlags::empty()).ok());
        // The number goes with it, as nothing tells it any more when the program has ended.
        pidfd.is_some_and(|pidfd| hand_over.send_descriptor(&pidfd).is_ok())
            && hand_over.send_note(Some(&child.to_string())).is_ok()
    });
    let (Some(child), Ok(signals)) = (child, signals_of_children()) else {
        end_all_children(|_, _| ());
        end()
    };
    // The guardian keeps no pipe open, and no terminal. If it must, it does.
    // SAFETY: whatever owns the others neither uses nor drops them: this process ends without returning.
    let _ = unsafe { close_others(&mut [tell.as_raw_fd(), signals.as_raw_fd()], 0, false) };
    loop {
        while let Ok(Some((number, status))) = next_change() {
            if number == child as u32
                && let Some(event) = event_of(status)
            {
                let _ = send(tell, &event.to_bytes(), SendFlags::NOSIGNAL);
            }
        }
        let mut polled = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN), PollFd::new(tell, PollFlags::IN)];
        let _ = poll(&mut polled, None);
        let _ = rustix::io::read(&signals, &mut [0; 1024]);
        match recv(tell, &mut [0; 8], RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // What the program leaves behind may stay when the runner has done its work.
            Ok((4, _)) => end(),
            _ => {
                end_all_children(|_, _| ());
                end()
            }
        }
    }
}

fn end() -> ! {
    // SAFETY: ends the process without running what the runner registered for its own end.
    unsafe { libc::_exit(0) }
}

/// A descriptor that is readable when a child changes. Its signal is blocked already.
fn signals_of_children() -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the mask is filled in before it is used, and the descriptor is new.
    unsafe {
        let mut mask: libc::sigset_t = zeroed();
        libc::sigemptyset(&mut mask);
        libc::sigaddset(&mut mask, libc::SIGCHLD);
        match libc::signalfd(-1, &mask, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}

/// The next change of a child, or of a thread that this thread traces, if there is one now: its number, and the status.
/// What other threads of this process trace is theirs.
///
/// # Errors
/// `ECHILD` if there are none.
pub fn next_change() -> io::Result<Option<(u32, i32)>> {
    let mut status = 0;
    let options = libc::WNOHANG | libc::WUNTRACED | libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: `status` is written by the call.
    match unsafe { libc::waitpid(-1, &mut status, options) } {
        -1 => Err(io::Error::last_os_error()),
        number => Ok(u32::try_from(number).ok().filter(|&number| number > 0).map(|number| (number, status))),
    }
}

fn event_of(status: i32) -> Option<Event> {
    if libc::WIFEXITED(status) {
        Some(Event::Ended(Ending::Status(libc::WEXITSTATUS(status))))
    } else if libc::WIFSIGNALED(status) {
        Some(Event::Ended(Ending::Signal(libc::WTERMSIG(status))))
    } else {
        libc::WIFSTOPPED(status).then(|| Event::Stopped(libc::WSTOPSIG(status)))
    }
}

/// Ends all children, and theirs, which are children when their parents have ended. No other thread waits for children,
/// so a number means the child until this function waits for it. `changed` hears of each change.
fn end_all_children(mut changed: impl FnMut(u32, i32)) {
    let begin = Instant::now();
    while begin.elapsed() < LONGEST {
        for child in children() {
            // SAFETY: takes numbers.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        loop {
            match next_change() {
                Ok(Some((number, status))) => changed(number, status),
                Ok(None) => break,
                // There are none any more.
                Err(_) => return,
            }
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The processes whose parent this is.
fn children() -> Vec<i32> {
    let own = std::process::id();
    let is_child = |number: &i32| {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        // The name, in parentheses, may have any characters; the state and the parent's number follow.
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parent == Some(own)
    };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}
