//! PTRACE_SEIZE that can be given up.
//!
//! It waits for an exec of the process, which has a lock that it needs. That exec waits for the other threads of the
//! process to end, and a thread that is traced ends only when its tracer has looked. So a tracer that has one thread of
//! a process and seizes another would wait for itself. The kernel makes the call anew after any signal, so the handler
//! of ours looks whether a thread is about to make it, and has it step over it:
//!
//! ```text
//!   timer ──► signal ──► handler: is the call the next instruction? ──► go on behind it, with EINTR
//! ```
#![allow(unsafe_code, reason = "a system call of its own, and a handler that changes where a thread goes on")]

use std::io;
use std::mem::zeroed;
use std::ptr;
use std::sync::OnceLock;

/// For so long a seizure may wait.
const LIMIT: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 };

// ptrace(2), whose four arguments are there already, but that a system call takes the last in another register.
std::arch::global_asm!(
    ".pushsection .text.ioasid_seize, \"ax\", @progbits",
    ".hidden ioasid_ptrace",
    ".globl ioasid_ptrace",
    ".type ioasid_ptrace, @function",
    "ioasid_ptrace:",
    "mov r10, rcx",
    "mov eax, {number}",
    ".hidden ioasid_ptrace_call",
    ".globl ioasid_ptrace_call",
    "ioasid_ptrace_call:",
    "syscall",
    "ret",
    ".popsection",
    number = const libc::SYS_ptrace,
);

unsafe extern "C" {
    fn ioasid_ptrace(request: usize, tid: usize, address: usize, data: usize) -> isize;
    static ioasid_ptrace_call: u8;
}

/// Bytes of the instruction `syscall`.
const SYSCALL: i64 = 2;

extern "C" fn step_over(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO the context in which it was called, which is its own.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let call = (&raw const ioasid_ptrace_call).addr() as i64;
    let at = &mut registers[libc::REG_RIP as usize];
    if *at == call {
        *at += SYSCALL;
        registers[libc::REG_RAX as usize] = -i64::from(libc::EINTR);
    }
}

/// A signal that nobody else has a use for.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Has the signal handled. Done once.
fn handle() -> io::Result<()> {
    static DONE: OnceLock<Option<i32>> = OnceLock::new();
    let failed = DONE.get_or_init(|| {
        // SAFETY: a structure of numbers and an address, for which zeroes are values; the handler only looks at its
        // context.
        let set = unsafe {
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = step_over as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigaction(signal(), &action, ptr::null_mut())
        };
        (set != 0).then(|| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL))
    });
    failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

/// A timer that signals the thread that made it, again and again, until it is dropped.
struct Alarm(libc::timer_t);

impl Alarm {
    fn set() -> io::Result<Self> {
        handle()?;
        // SAFETY: structures of numbers, for which zeroes are values, and which the calls read and write.
        unsafe {
            // It may have been blocked for whoever started this process.
            let mut mask: libc::sigset_t = zeroed();
            libc::sigemptyset(&mut mask);
            libc::sigaddset(&mut mask, signal());
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &mask, ptr::null_mut());
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal();
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer: libc::timer_t = zeroed();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
                return Err(io::Error::last_os_error());
            }
            let alarm = Self(timer);
            // Again and again, as the first may come before the call.
            let times = libc::itimerspec { it_interval: LIMIT, it_value: LIMIT };
            match libc::timer_settime(alarm.0, 0, &times, ptr::null_mut()) {
                0 => Ok(alarm),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer is there, and is used no more.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Traces a thread, with these options.
///
/// # Errors
/// Of ptrace(2); `EINTR` if it would have had to wait longer than a moment.
pub(super) fn seize(tid: u32, options: usize) -> io::Result<()> {
    let _alarm = Alarm::set()?;
    // SAFETY: takes no pointers.
    let result = unsafe { ioasid_ptrace(libc::PTRACE_SEIZE as usize, tid as usize, 0, options) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result as i32)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// What the process of the test is told by.
    const PROGRAM: &str = "IOASID_TEST_EXECS";

    /// Two threads sleep, and say which they are; then another executes a program.
    fn execs() {
        for _ in 0..2 {
            std::thread::spawn(|| {
                println!("\nthread {}", rustix::thread::gettid());
                std::thread::sleep(Duration::from_secs(1000));
            });
        }
        let _ = io::stdin().read_line(&mut String::new());
        let error = std::os::unix::process::CommandExt::exec(&mut Command::new("true"));
        panic!("{error}");
    }

    /// A thread of a process is seized, and another executes a program: that waits for the first, and whoever would
    /// seize more of the process for that.
    #[test]
    fn a_seizure_that_would_wait_for_itself_is_given_up() {
        if std::env::var_os(PROGRAM).is_some() {
            execs();
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "way::trap::seize::tests::a_seizure_that_would_wait_for_itself_is_given_up",
            ])
            .env(PROGRAM, "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut threads = lines.filter_map(|line| line.unwrap().strip_prefix("thread ")?.parse::<u32>().ok());
        let first = threads.next().unwrap();
        threads.next().unwrap();
        let (done, is_done) = mpsc::channel();
        let process = child.id();
        std::thread::spawn(move || {
            seize(first, libc::PTRACE_O_TRACEEXIT as usize).unwrap();
            child.stdin.take().unwrap().write_all(b"\n").unwrap();
            // The exec has begun when the traced thread stops where it ends.
            let mut status = 0;
            // SAFETY: `status` is written.
            let stopped = unsafe { libc::waitpid(first as i32, &mut status, libc::__WALL) };
            assert_eq!((stopped, status >> 16), (first as i32, libc::PTRACE_EVENT_EXIT));
            let given_up = seize(process, 0).unwrap_err();
            // SAFETY: takes no pointers.
            unsafe { libc::ptrace(libc::PTRACE_DETACH, first, 0usize, 0usize) };
            done.send((given_up.raw_os_error(), child.wait().unwrap().success())).unwrap();
        });
        let result = is_done.recv_timeout(Duration::from_secs(20));
        assert_eq!(result, Ok((Some(libc::EINTR), true)));
    }
}
