//! What a process is known by: something that a fork, an exec and a reused number change.
//!
//! | what happens | what tells |
//! | --- | --- |
//! | another process gets the number of one that has ended | a pidfd stays with the process that it was opened of |
//! | a process forks; the child gets the number that a thread had | a thread's number is looked up in its process |
//! | a process becomes another program | the kernel gives each program sixteen random bytes (`AT_RANDOM`) |
//!
//! The bytes lie in memory that the program may change, but it changes them for both ways of looking at once. A process
//! that forges them, to be taken for the program that it was before, gains nothing: that was its own memory.
#![allow(unsafe_code, reason = "signals to a pidfd and process_vm_readv have no safe wrappers")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Bytes that the kernel makes at each exec.
const RANDOM: usize = 16;

/// A process, and the program that it is.
#[derive(Debug)]
pub(super) struct ProcessId {
    /// Its number.
    pid: u32,
    /// Stays with the process when another gets the number.
    pidfd: OwnedFd,
    /// The address of its random bytes; 0 if it has none.
    random: u64,
}

impl ProcessId {
    /// The process that a thread belongs to, now.
    ///
    /// # Errors
    /// `ESRCH` if there is none.
    pub(super) fn of(tid: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
        let number = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<u32>().ok());
        let pid = number.ok_or(rustix::io::Errno::SRCH)?;
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd, random: address_of_random(&fs::read(format!("/proc/{tid}/auxv"))?) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether a thread belongs to this process, and the process is the program whose memory `read` reads.
    pub(super) fn is_of(&self, tid: u32, read: impl FnOnce(u64, &mut [u8]) -> io::Result<()>) -> bool {
        let (mut now, mut then) = ([0; RANDOM], [0; RANDOM]);
        self.random != 0
            && self.has_number()
            && is_thread_of(self.pid, tid)
            && read_of_thread(tid, self.random, &mut now)
            && read(self.random, &mut then).is_ok()
            && now == then
    }

    /// Whether the number is still this process's.
    fn has_number(&self) -> bool {
        // SAFETY: signal 0 is none, and no information goes with it.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                0,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        // A process that this one may not signal is there.
        sent == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
    }
}

/// Whether a thread with this number belongs to the process with that one.
fn is_thread_of(pid: u32, tid: u32) -> bool {
    // SAFETY: takes numbers; signal 0 is none.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid as i32, tid as i32, 0) };
    sent == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

fn read_of_thread(tid: u32, address: u64, data: &mut [u8; RANDOM]) -> bool {
    let local = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: RANDOM };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: RANDOM };
    // SAFETY: `local` is `data`; the other address is in the other process and checked by the kernel.
    unsafe { libc::process_vm_readv(tid as i32, &local, 1, &remote, 1, 0) == RANDOM as isize }
}

/// `AT_RANDOM` of an auxiliary vector: pairs of words, the kind first.
fn address_of_random(auxv: &[u8]) -> u64 {
    let (words, _) = auxv.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    let found = pairs.iter().find(|[kind, _]| u64::from_ne_bytes(*kind) == libc::AT_RANDOM);
    found.map_or(0, |[_, value]| u64::from_ne_bytes(*value))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Child, Command};

    use super::*;
    use crate::memory::Process;

    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_is_that_of_all_its_threads_and_of_no_other() {
        let own = Process::open(std::process::id()).unwrap();
        let here = || rustix::thread::gettid().as_raw_nonzero().get() as u32;
        assert!(own.is_of(std::process::id()) && own.is_of(here()));
        let there = std::thread::scope(|scope| scope.spawn(here).join().unwrap());
        assert!(!own.is_of(there), "a thread that has ended");
        let child = Ended(Command::new("sleep").arg("100").spawn().unwrap());
        assert!(!own.is_of(child.0.id()));
        assert!(!Process::open(child.0.id()).unwrap().is_of(std::process::id()));
    }

    #[test]
    fn a_process_that_execs_is_another() {
        // A shell that executes itself, where addresses are not random: they tell nothing.
        let script = r#"read go; exec sh -c "$1" sh "$1""#;
        let mut command = Command::new("setarch");
        command.args(["-R", "sh", "-c", script, "sh", script]).stdin(std::process::Stdio::piped());
        let mut child = Ended(command.spawn().unwrap());
        let pid = child.0.id();
        // In the middle of its own exec it is neither yet.
        let mut bytes = [0; RANDOM];
        let before = loop {
            let id = ProcessId::of(pid).unwrap();
            let is_shell = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() == "sh";
            if is_shell && id.random != 0 && read_of_thread(pid, id.random, &mut bytes) && bytes != [0; RANDOM] {
                break id;
            }
        };
        // As if another process still had that memory.
        let shared = |_, data: &mut [u8]| {
            data.copy_from_slice(&bytes);
            Ok(())
        };
        assert!(before.is_of(pid, shared));
        child.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while before.is_of(pid, shared) {
            assert!(std::time::Instant::now() < deadline, "the next program is taken for the one before");
        }
    }

    #[test]
    fn a_vector_without_random_bytes_has_none() {
        let vector: Vec<u8> = [6u64, 4096, 25, 0x7000, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(address_of_random(&vector), 0x7000);
        assert_eq!(address_of_random(&vector[..24]), 0);
        assert_eq!(address_of_random(&[]), 0);
    }
}
