//! Whose memory a process may have given to devices: that of those which it could trace.
//!
//! The runner may reach more than the program that asks, so a child of the runner becomes as weak as the program (its
//! user namespace, users, groups and capabilities) and asks the kernel (ptrace(2), "access mode checking"). It then
//! ends; nothing that it does has an effect on anybody.
//!
//! What the child cannot become is an ancestor of the process in question, which Yama demands of a tracer in its mode 1
//! (Linux `Documentation/admin-guide/LSM/Yama.rst`); that is looked up.
#![allow(unsafe_code, reason = "a child of a process with threads makes system calls, and nothing else")]

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::status::Status;
use crate::descriptors::close_others;

/// How long the kernel's answer may take.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A process, as far as that matters to the kernel. The numbers are those of this process's user namespace.
struct Credentials {
    process: u32,
    parent: u32,
    /// Real, effective, saved and of the file system.
    uids: [u32; 4],
    gids: [u32; 4],
    effective: u64,
    permitted: u64,
    namespace: File,
}

impl Credentials {
    /// Of a thread.
    fn of(tid: u32) -> Option<Self> {
        let status = Status::of(tid)?;
        let ids = |name: &str| -> Option<[u32; 4]> {
            let ids: Vec<u32> = status.field(name)?.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect();
            ids.try_into().ok()
        };
        Some(Self {
            process: status.process()?,
            parent: status.number("PPid:")?,
            uids: ids("Uid:")?,
            gids: ids("Gid:")?,
            effective: status.set("CapEff:")?,
            permitted: status.set("CapPrm:")?,
            namespace: File::open(format!("/proc/{tid}/ns/user")).ok()?,
        })
    }
}

/// Whether the process of thread `asker` may reach the memory of process `target`.
pub(crate) fn may_reach(asker: u32, target: u32) -> bool {
    let (Some(asker), Some(target)) = (Credentials::of(asker), Credentials::of(target)) else { return false };
    if asker.process == target.process {
        return true;
    }
    match ask(&asker, target.process) {
        Some(Answer::Attach) => true,
        Some(Answer::Read) => yama_scope() == Some(1) && is_ancestor(asker.process, &target),
        Some(Answer::Nothing) | None => false,
    }
}

/// What the kernel lets a process do with the memory of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Answer {
    Nothing,
    /// To read it, as far as the rules of tracing go. A security module may forbid to write it.
    Read,
    /// All.
    Attach,
}

/// Has a child become like `asker` and ask about process `target`. `None` if it could not.
fn ask(asker: &Credentials, target: u32) -> Option<Answer> {
    let (answer, tell) = pipe_with(PipeFlags::CLOEXEC).ok()?;
    let own_namespace = File::open("/proc/self/ns/user").ok()?;
    let same_namespace = inode(&own_namespace)? == inode(&asker.namespace)?;
    let own = Credentials::of(std::process::id())?;
    let become_like = Becoming {
        namespace: (!same_namespace).then(|| asker.namespace.as_raw_fd()),
        users: (own.uids != asker.uids).then_some(asker.uids),
        groups: (own.gids != asker.gids).then_some(asker.gids),
        effective: asker.effective,
        permitted: asker.permitted,
    };
    // SAFETY: the child makes system calls only, as it must where there were other threads, and ends.
    match unsafe { libc::fork() } {
        -1 => None,
        0 => {
            let mut kept = [tell.as_raw_fd(), asker.namespace.as_raw_fd()];
            // What another process waits for the end of, the child does not keep open: it may be stopped.
            // SAFETY: the child uses and drops no others.
            if unsafe { close_others(&mut kept, 0, false) }.is_err() || become_like.become_it().is_none() {
                return end(1);
            }
            let answer = kernels_answer(target);
            // SAFETY: one byte on the stack, and a descriptor that is open.
            unsafe { libc::write(tell.as_raw_fd(), (&raw const answer).cast(), 1) };
            end(0)
        }
        child => {
            drop::<OwnedFd>(tell);
            answer_of(Pid::from_raw(child)?, &answer)
        }
    }
}

/// What a child answers. It is given time, as somebody who is like the asker may have stopped it.
fn answer_of(child: Pid, answer: &OwnedFd) -> Option<Answer> {
    let mut polled = [PollFd::new(answer, PollFlags::IN)];
    let waited = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&PATIENCE)));
    let mut byte = [0];
    let told = if waited == Ok(1) { rustix::io::read(answer, &mut byte) } else { Ok(0) };
    if waited != Ok(1) {
        let _ = kill_process(child, Signal::KILL);
    }
    // The main thread may have waited for it, as for any child.
    let _ = waitpid(Some(child), WaitOptions::empty());
    match (told, byte) {
        (Ok(1), [0]) => Some(Answer::Nothing),
        (Ok(1), [1]) => Some(Answer::Read),
        (Ok(1), [2]) => Some(Answer::Attach),
        _ => None,
    }
}

/// Ends the child without what this process registered for its own end.
fn end<T>(status: i32) -> Option<T> {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(status) }
}

fn inode(file: &File) -> Option<u64> {
    Some(rustix::fs::fstat(file).ok()?.st_ino)
}

/// What a child has to change about itself.
struct Becoming {
    namespace: Option<RawFd>,
    users: Option<[u32; 4]>,
    groups: Option<[u32; 4]>,
    effective: u64,
    permitted: u64,
}

impl Becoming {
    /// Makes system calls only. `None` if one of them fails.
    fn become_it(&self) -> Option<()> {
        let done = |result: libc::c_long| (result == 0).then_some(());
        // The capabilities are given up at last, and not with the user.
        // SAFETY: takes numbers.
        done(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })?;
        if let Some([real, effective, saved, _]) = self.groups {
            // SAFETY: takes numbers.
            done(unsafe { libc::syscall(libc::SYS_setresgid, real, effective, saved) })?;
        }
        if let Some([real, effective, saved, _]) = self.users {
            // SAFETY: takes numbers.
            done(unsafe { libc::syscall(libc::SYS_setresuid, real, effective, saved) })?;
        }
        if let Some(namespace) = self.namespace {
            // To enter one takes a capability, which a change of users took from the effective ones.
            let permitted = own_permitted()?;
            set_capabilities(permitted, permitted)?;
            // SAFETY: takes numbers.
            done(unsafe { libc::syscall(libc::SYS_setns, namespace, libc::CLONE_NEWUSER) })?;
        }
        set_capabilities(self.effective, self.permitted)
    }
}

/// Linux `include/uapi/linux/capability.h`, version 3: two sets of three words, of this thread.
const VERSION_3: [u32; 2] = [0x2008_0522, 0];

fn own_permitted() -> Option<u64> {
    let (mut header, mut sets) = (VERSION_3, [[0u32; 3]; 2]);
    // SAFETY: the header is two numbers, and version 3 has two sets of three.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    let [[_, low, _], [_, high, _]] = sets;
    (got == 0).then_some(u64::from(high) << 32 | u64::from(low))
}

fn set_capabilities(effective: u64, permitted: u64) -> Option<()> {
    let half = |shift: u32| [(effective >> shift) as u32, (permitted >> shift) as u32, 0];
    let (mut header, sets) = (VERSION_3, [half(0), half(32)]);
    // SAFETY: as above; the sets are only read.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) };
    (set == 0).then_some(())
}

/// What the kernel says to this thread about a process. Makes system calls only.
fn kernels_answer(target: u32) -> Answer {
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // Nothing is there, so nothing is copied: it asks for permission first.
    let remote = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
    // SAFETY: `local` is a byte of the stack; the other address is checked by the kernel.
    let read = unsafe { libc::process_vm_readv(target as i32, &local, 1, &remote, 1, 0) };
    // SAFETY: the calling thread's own.
    if read >= 0 || unsafe { *libc::__errno_location() } == libc::EFAULT {
        return Answer::Attach;
    }
    let (mut head, mut length) = (0usize, 0usize);
    // SAFETY: both words are written.
    let got = unsafe { libc::syscall(libc::SYS_get_robust_list, target as i32, &raw mut head, &raw mut length) };
    if got == 0 { Answer::Read } else { Answer::Nothing }
}

/// Yama's mode, where it is built in.
fn yama_scope() -> Option<u32> {
    fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?.trim().parse().ok()
}

/// Whether a process was started by `ancestor`, or by what that started.
fn is_ancestor(ancestor: u32, process: &Credentials) -> bool {
    let mut parent = process.parent;
    // Whoever is in the middle may end, and then the first process is the parent.
    while parent > 1 && parent != ancestor {
        let Some(next) = Credentials::of(parent) else { return false };
        parent = next.parent;
    }
    parent == ancestor
}

#[cfg(test)]
mod tests;
