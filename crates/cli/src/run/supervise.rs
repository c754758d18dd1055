//! The runner's main thread while the program runs: it waits for it, passes signals on, and performs its register
//! accesses.
//!
//! Signals that the terminal sends go to the program too, as it is in the same process group, so only those that some
//! process sent are passed on. (One that is sent to the whole group reaches the program twice, as its receiver
//! cannot be told.) When the terminal stops the program, the runner stops too, and the shell that started it sees a
//! stopped job.
#![allow(unsafe_code, reason = "wait, signal masks and signals have no complete safe wrappers")]

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ioasid_serve::Server;
use ioasid_serve::way::trap::{Stopped, Tracer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::guardian::{Event, Program, next_change};
use crate::report::Ending;

/// Signals that are passed on to the program. SIGCHLD is for the runner; the others cannot be caught or are its own.
const PASSED_ON: [i32; 12] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGWINCH,
    libc::SIGURG,
    libc::SIGIO,
];

/// After this long, whoever waits for the program is told what for.
const PATIENCE: Duration = Duration::from_secs(1);

/// For so long, the news of the last closes may be on its way. Then it is looked up who has device files.
const NEWS: Duration = Duration::from_millis(100);

/// The runner's signals, as a descriptor; and the mask from before, for the program.
pub struct Signals {
    descriptor: OwnedFd,
    before: libc::sigset_t,
    /// What SIGCHLD did: where it is ignored, no child can be waited for.
    on_child: libc::sighandler_t,
}

impl Signals {
    /// Gives this process, about to become the program, the signals from before. SIGPIPE is what it is by default: it
    /// was set to be ignored for this program, and nobody knows what it was.
    pub fn restore(&self) -> io::Result<()> {
        // SAFETY: dispositions that the kernel gave us, and the default.
        unsafe {
            libc::signal(libc::SIGCHLD, self.on_child);
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
        // SAFETY: a valid mask; the old one is not asked for.
        match unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What becomes readable when one comes.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Takes what has come. Returns whether something has.
    pub fn take(&self) -> bool {
        std::iter::from_fn(|| self.next()).count() > 0
    }

    fn next(&self) -> Option<libc::signalfd_siginfo> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let length = size_of::<libc::signalfd_siginfo>();
        // SAFETY: reads at most `length` bytes into a structure of that size, of which any bytes are a value.
        let read = unsafe { libc::read(self.descriptor.as_raw_fd(), info.as_mut_ptr().cast(), length) };
        // SAFETY: as above.
        (read == length as isize).then(|| unsafe { info.assume_init() })
    }
}

/// Takes signals by descriptor from now on. Threads inherit it, so that they are left alone.
pub fn block_signals() -> io::Result<Signals> {
    block(PASSED_ON.into_iter().chain([libc::SIGCHLD]))
}

/// As [`block_signals`], those by which people end a command.
pub fn block_ends() -> io::Result<Signals> {
    block(ENDS)
}

fn block(signals: impl IntoIterator<Item = i32>) -> io::Result<Signals> {
    // SAFETY: the masks are filled in before they are used, and every signal number is valid.
    unsafe {
        let (mut mask, mut before): (libc::sigset_t, libc::sigset_t) = (zeroed(), zeroed());
        libc::sigemptyset(&mut mask);
        for signal in signals {
            libc::sigaddset(&mut mask, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &mask, &mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        let descriptor = libc::signalfd(-1, &mask, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        let on_child = libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        Ok(Signals { descriptor: OwnedFd::from_raw_fd(descriptor), before, on_child })
    }
}

/// Does what a change of a traced thread, or of the guardian, asks for.
fn take(program: &Program, tracer: &mut Tracer, tid: u32, status: i32) {
    if !libc::WIFSTOPPED(status) {
        tracer.ended(tid);
    } else if program.is_guarded_by(tid) {
        program.continue_guardian();
    } else if let Stopped::ByJobControl(signal) = tracer.stopped(tid, status)
        && tid == program.number
    {
        stop_too(signal);
    }
}

/// Waits until the program has ended and nobody uses its devices any more; returns how it ended.
pub fn wait(
    program: &Program,
    tracer: &mut Tracer,
    signals: &Signals,
    server: &Server,
    quiet: bool,
) -> io::Result<Ending> {
    let mut ending: Option<(Ending, Instant)> = None;
    let mut told = quiet;
    let mut look = NEWS;
    loop {
        while let Ok(Some((tid, status))) = next_change() {
            take(program, tracer, tid, status);
        }
        while ending.is_none()
            && let Some(event) = program.next_event(|tid, status| take(program, tracer, tid, status))
        {
            match event {
                Event::Ended(how) => ending = Some((how, Instant::now())),
                // What is traced is heard of as a tracer hears of it.
                Event::Stopped(signal) if !tracer.traces(program.number) => stop_too(signal),
                Event::Stopped(_) => {}
            }
        }
        tracer.serve_requests();
        let mut timeout = None;
        if let Some((how, since)) = ending {
            // What is not closed to the end has its time in `Server::close_all`.
            if !server.has_open_files() || (since.elapsed() > look && !server.is_held()) {
                return Ok(how);
            }
            if since.elapsed() > look {
                look = since.elapsed() * 2;
            }
            // A process that the program left behind still uses its devices: they stay as long as it does.
            if !told && since.elapsed() > PATIENCE {
                told = true;
                say!("ioasid: the program has ended, but a process that it started still uses its devices: waiting");
            }
            // The news of the last closes is on its way through the tree: mostly here within a millisecond.
            let wait = since.elapsed().clamp(Duration::from_micros(200), Duration::from_millis(20));
            timeout = Some(Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) });
        }
        let mut polled = [
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(tracer.wake(), PollFlags::IN),
            PollFd::from_borrowed_fd(program.events(), PollFlags::IN),
        ];
        // Nothing more is heard of a program that has ended.
        let polled = if ending.is_some() { &mut polled[..2] } else { &mut polled[..] };
        match poll(polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(info) = signals.next() {
            match ending {
                None => pass_on(program, &info),
                Some((how, _)) if ends_the_wait(info.ssi_signo as i32) => return Ok(how),
                Some(_) => {}
            }
        }
    }
}

/// By which people end a command.
const ENDS: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

fn ends_the_wait(signal: i32) -> bool {
    ENDS.contains(&signal)
}

fn pass_on(program: &Program, info: &libc::signalfd_siginfo) {
    let signal = info.ssi_signo as i32;
    let by_somebody = matches!(info.ssi_code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL);
    if signal != libc::SIGCHLD && by_somebody {
        program.signal(signal);
    }
}

/// Stops this process after the program, if the terminal stopped that: then the shell that started it waits for a
/// stopped job, and continues both. A program that another process stopped by SIGSTOP may be continued by any, and
/// needs its runner then.
fn stop_too(signal: i32) {
    if matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) {
        // SAFETY: takes no pointers.
        unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
    }
}

/// Ends this process by the signal that ended the program, so that its parent sees the same.
pub fn end_by_signal(signal: i32) -> ExitCode {
    // SAFETY: no pointers but to values that live through the calls. One core dump, the program's, is enough.
    unsafe {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        libc::signal(signal, libc::SIG_DFL);
        let mut mask: libc::sigset_t = zeroed();
        libc::sigemptyset(&mut mask);
        libc::sigaddset(&mut mask, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &mask, std::ptr::null_mut());
        libc::kill(libc::getpid(), signal);
    }
    // As a shell says it, should the signal not end us.
    ExitCode::from(128u8.wrapping_add(signal as u8))
}
