//! What is judged here is what the kernel judges when the process itself tries.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;

/// A process that differs from this one in some way, and tries what is asked of it.
struct Subject {
    pid: u32,
    what: &'static str,
    /// To it: process numbers. From it: the errno for each.
    ask: OwnedFd,
    answer: OwnedFd,
}

impl Subject {
    /// `change` is what the subject does to itself. It may make system calls only.
    fn new(what: &'static str, change: impl FnOnce() -> Option<()>) -> Self {
        let (asked, ask) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (answer, answered) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (asked_fd, answered_fd) = (asked.as_raw_fd(), answered.as_raw_fd());
        // SAFETY: the child makes system calls only, and ends.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: takes numbers, descriptors that are open, and memory of the stack. The child ends when the test
            // does.
            unsafe {
                libc::close(ask.as_raw_fd());
                libc::close(answer.as_raw_fd());
                let mut ready = if change().is_some() { 0i32 } else { *libc::__errno_location() };
                libc::write(answered_fd, (&raw const ready).cast(), 4);
                let mut target = 0i32;
                while libc::read(asked_fd, (&raw mut target).cast(), 4) == 4 {
                    let mut byte = 0u8;
                    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
                    let remote = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
                    libc::process_vm_readv(target, &local, 1, &remote, 1, 0);
                    ready = *libc::__errno_location();
                    libc::write(answered_fd, (&raw const ready).cast(), 4);
                }
                libc::_exit(0);
            }
        }
        let subject = Self { pid: pid as u32, what, ask, answer };
        assert_eq!(subject.answer(), 0, "{what}");
        subject
    }

    fn answer(&self) -> i32 {
        let mut errno = [0; 4];
        assert_eq!(rustix::io::read(&self.answer, &mut errno).unwrap(), 4, "{}", self.what);
        i32::from_ne_bytes(errno)
    }

    /// What the kernel says.
    fn may_reach(&self, target: u32) -> bool {
        rustix::io::write(&self.ask, &target.to_ne_bytes()).unwrap();
        match self.answer() {
            libc::EFAULT => true,
            libc::EPERM => false,
            other => panic!("{}: errno {other}", self.what),
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // SAFETY: takes numbers; it is a child that nobody has waited for.
        unsafe {
            libc::kill(self.pid as i32, libc::SIGKILL);
            libc::waitpid(self.pid as i32, std::ptr::null_mut(), 0);
        }
    }
}

fn call(number: libc::c_long, [a, b, c]: [i64; 3]) -> Option<()> {
    // SAFETY: the tests pass numbers only.
    (unsafe { libc::syscall(number, a, b, c, 0, 0) } == 0).then_some(())
}

fn set_dumpable(dumpable: bool) -> Option<()> {
    call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), dumpable.into(), 0])
}

/// The user and group in all roles.
fn set_user(user: i64, group: i64) -> Option<()> {
    call(libc::SYS_setresgid, [group; 3]).and_then(|()| call(libc::SYS_setresuid, [user; 3]))
}

fn new_namespace() -> Option<()> {
    call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0])
}

/// Writes a file of the calling process in `/proc/self`, by system calls only.
fn write_own(file: &std::ffi::CStr, text: &str) -> Option<()> {
    // SAFETY: terminated strings, and as many bytes as there are.
    unsafe {
        let directory = libc::open(c"/proc/self".as_ptr(), libc::O_PATH);
        let file = libc::openat(directory, file.as_ptr(), libc::O_WRONLY);
        (libc::write(file, text.as_ptr().cast(), text.len()) == text.len() as isize).then_some(())
    }
}

const SYS_PTRACE: u64 = 1 << 19;

/// Has no capabilities but those of `kept` which it has.
fn keep(kept: u64) -> Option<()> {
    let own = own_permitted()?;
    set_capabilities(own & kept, own & kept)
}

fn subjects() -> Vec<Subject> {
    let mut subjects = vec![
        Subject::new("as this", || Some(())),
        Subject::new("as this, not dumpable", || set_dumpable(false)),
        Subject::new("in a namespace of its own", new_namespace),
        Subject::new("in a namespace of its own, not dumpable", || new_namespace().and_then(|()| set_dumpable(false))),
        Subject::new("in a namespace of its own, without capabilities", || new_namespace().and_then(|()| keep(0))),
    ];
    if !rustix::process::geteuid().is_root() {
        return subjects;
    }
    let user = |dumpable| set_user(65534, 65534).and_then(|()| set_dumpable(dumpable));
    let with_capabilities = || {
        call(libc::SYS_prctl, [libc::PR_SET_KEEPCAPS.into(), 1, 0])?;
        user(true)
    };
    subjects.extend([
        Subject::new("a user", || user(true)),
        Subject::new("a user, not dumpable", || user(false)),
        Subject::new("a user of another group", || set_user(65534, 1).and_then(|()| set_dumpable(true))),
        Subject::new("another user", || set_user(1, 1).and_then(|()| set_dumpable(true))),
        Subject::new("root without capabilities", || keep(0)),
        Subject::new("root without capabilities, not dumpable", || keep(0).and_then(|()| set_dumpable(false))),
        Subject::new("root that may not trace", || keep(!SYS_PTRACE)),
        Subject::new("root that may not trace, not dumpable", || keep(!SYS_PTRACE).and_then(|()| set_dumpable(false))),
        Subject::new("a user that could do everything", with_capabilities),
        Subject::new("a user that may trace", || {
            with_capabilities().and_then(|()| set_capabilities(SYS_PTRACE, SYS_PTRACE))
        }),
        Subject::new("root that is a user for now", || {
            call(libc::SYS_setresuid, [65534, 65534, 0]).and_then(|()| set_dumpable(true))
        }),
        Subject::new("a user in a namespace of its own", || user(true).and_then(|()| new_namespace())),
        Subject::new("the same, not dumpable", || user(false).and_then(|()| new_namespace())),
        Subject::new("a user in a namespace in a namespace", || {
            user(true)?;
            new_namespace()?;
            for (file, text) in [(c"setgroups", "deny"), (c"uid_map", "0 65534 1"), (c"gid_map", "0 65534 1")] {
                write_own(file, text)?;
            }
            new_namespace()
        }),
    ]);
    subjects
}

/// Programs that were executed in the surroundings that they have.
fn programs() -> Vec<(&'static str, Child)> {
    let start = |what, words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["sh", "-c", "echo; exec sleep 100"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        (what, child)
    };
    let mut programs = vec![start("a program", &["env"])];
    programs.push(start("root of a namespace", &["unshare", "--user", "--map-root-user"]));
    if rustix::process::geteuid().is_root() {
        programs.push(start("a user's program", &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]));
    }
    programs
}

#[test]
fn a_process_may_reach_whom_the_kernel_lets_it_reach() {
    let (subjects, programs) = (subjects(), programs());
    let mut targets: Vec<_> = subjects.iter().map(|subject| (subject.what, subject.pid)).collect();
    targets.extend(programs.iter().map(|(what, child)| (*what, child.id())));
    let mut counts = [0, 0];
    for asker in &subjects {
        for &(target, pid) in &targets {
            let wanted = asker.may_reach(pid);
            assert_eq!(may_reach(asker.pid, pid), wanted, "{}, of {target}", asker.what);
            counts[usize::from(wanted)] += 1;
        }
    }
    assert!(counts.iter().all(|&count| count >= subjects.len()), "refused and allowed: {counts:?}");
    for (_, mut child) in programs {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_process_reaches_itself_and_nobody_who_is_not_there() {
    let own = std::process::id();
    assert!(may_reach(own, own));
    assert!(!may_reach(own, u32::MAX) && !may_reach(u32::MAX, own));
}

#[test]
fn an_ancestor_is_one_of_any_generation() {
    let (own, init) = (std::process::id(), 1);
    let mut child =
        Command::new("sh").args(["-c", "sleep 100 & echo $!; wait"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let grandchild = line.trim().parse().unwrap();
    let credentials = Credentials::of(grandchild).unwrap();
    assert!(is_ancestor(own, &credentials) && is_ancestor(child.id(), &credentials));
    assert!(!is_ancestor(grandchild, &credentials) && !is_ancestor(init + 1, &Credentials::of(own).unwrap()));
    // SAFETY: takes numbers; the grandchild has a parent that has not waited for it.
    unsafe { libc::kill(grandchild as i32, libc::SIGKILL) };
    child.wait().unwrap();
}

#[test]
fn a_child_that_is_stopped_is_given_up() {
    let (answer, tell) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut child = Command::new("sh").args(["-c", "kill -STOP $$"]).spawn().unwrap();
    assert_eq!(answer_of(Pid::from_raw(child.id() as i32).unwrap(), &answer), None);
    drop(tell);
    assert!(child.wait().is_err(), "it was ended and waited for");
}
