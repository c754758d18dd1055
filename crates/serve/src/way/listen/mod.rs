//! System calls of the program that are answered here.
//!
//! The kernel stops the calling thread and puts a notification on the listener; the answer takes the place of the
//! call. While a call is being answered its thread stands still, so its arguments do not change; the memory that they
//! point to may, by another thread, and is therefore copied once and then judged.
//!
//! A process number in a notification means that process only as long as the notification is valid. So whatever was
//! opened by the number is used only if the notification was still valid afterwards.
#![allow(unsafe_code, reason = "seccomp's ioctls have no safe wrappers")]

mod calling;
mod descriptor;
mod descriptor_table;
pub mod filter;
mod transfer;
mod turns;

use std::io::{self, Write as _};
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use ioasid_uapi::kvm;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::program::memory::{ThreadMemory, share_memory};
use crate::program::processes::Purpose;
use crate::program::status::Status;
use crate::request::file::{Given, Mapping, OpenFile};
use crate::request::vfio::is_vfio;
use crate::request::{Caller, proc_file};
use crate::server::{CLOSES, Server};
use crate::way::{Tracing, trap};
use calling::Calling;
use descriptor_table::{Descriptor, DescriptorTables};
use transfer::{transfer, writes};
use turns::Turns;

/// What becomes of a trapped call.
enum Answer {
    /// It returns this.
    Done(Result<i64, Errno>),
    /// It is not about one of our files: the kernel goes on with it.
    NotOurs,
}

/// Answers system calls until no process is under the filter any more.
///
/// A call may wait, for memory of a program or for a device, and does not keep others from being answered (see
/// `turns`).
#[derive(Clone)]
pub struct Listener {
    server: Arc<Server>,
    tracing: Arc<dyn Tracing>,
    descriptor: Arc<OwnedFd>,
    turns: Arc<Turns>,
    tables: Arc<DescriptorTables>,
    rings: Arc<trap::Rings>,
}

impl Listener {
    /// Answers what arrives on `descriptor`, the result of [`filter::install`].
    #[must_use]
    pub fn new(server: Arc<Server>, tracing: Arc<dyn Tracing>, descriptor: OwnedFd) -> Self {
        let sync_wake_up: u64 = 1;
        // SAFETY: takes its argument by value. Older kernels refuse it, and are only slower for it.
        unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, sync_wake_up) };
        let rings = Arc::new(trap::Rings::new(server.clone()));
        Self { server, tracing, descriptor: Arc::new(descriptor), turns: Arc::default(), tables: Arc::default(), rings }
    }

    /// Starts to answer, until the last process under the filter is gone.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(self) -> io::Result<()> {
        self.start_thread(true)
    }

    fn start_thread(&self, has_turn: bool) -> io::Result<()> {
        let listener = self.clone();
        std::thread::Builder::new().name("listen".to_owned()).spawn(move || listener.run(has_turn)).map(drop)
    }

    fn run(&self, mut has_turn: bool) {
        let listening = self.server.listen();
        while has_turn || self.turns.wait() {
            let mut is_watched = !self.turns.is_alone();
            has_turn = true;
            while has_turn {
                // Without another thread, calls wait for each other; there may be room for one later.
                is_watched = is_watched || self.start_thread(false).is_ok();
                let Some(call) = self.receive() else { return self.turns.finish() };
                let (number, needs_another) = self.turns.begin();
                if needs_another {
                    let _ = self.start_thread(false);
                }
                self.reply(&call, self.answer(&call));
                has_turn = self.turns.end(number);
            }
        }
        drop(listening);
    }

    /// The next call; `None` if no process is under the filter any more.
    fn receive(&self) -> Option<libc::seccomp_notif> {
        loop {
            // SAFETY: plain integers; the kernel wants them zero.
            let mut call: libc::seccomp_notif = unsafe { zeroed() };
            // SAFETY: the structure is the one that the request number was made from.
            let received =
                unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut call) };
            if received == 0 {
                break Some(call);
            }
            match io::Error::last_os_error().raw_os_error() {
                // A thread was killed between its notification and our receiving it, or no process is left.
                Some(libc::EINTR) => {}
                Some(libc::ENOENT) if self.has_processes() => {}
                _ => break None,
            }
        }
    }

    fn has_processes(&self) -> bool {
        let mut poll = [rustix::event::PollFd::new(&*self.descriptor, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let polled = rustix::event::poll(&mut poll, Some(&now));
        polled.is_ok() && !poll[0].revents().contains(rustix::event::PollFlags::HUP)
    }

    fn reply(&self, call: &libc::seccomp_notif, answer: Answer) {
        // SAFETY: plain integers.
        let mut reply: libc::seccomp_notif_resp = unsafe { zeroed() };
        reply.id = call.id;
        match answer {
            Answer::Done(Ok(value)) => reply.val = value,
            Answer::Done(Err(errno)) => reply.error = -errno.raw_os_error(),
            Answer::NotOurs => reply.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        }
        // SAFETY: as for receiving. It fails only if the thread was killed meanwhile.
        unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &reply) };
    }

    fn answer(&self, call: &libc::seccomp_notif) -> Answer {
        let args = call.data.args;
        let number = i64::from(call.data.nr);
        let mut caller = Calling { listener: self, id: call.id, tid: call.pid, inode: 0 };
        match number {
            libc::SYS_openat => return self.open(&caller, args[1]),
            libc::SYS_rt_sigaction => return caller.with_memory(|memory| set_action(memory, args)),
            libc::SYS_ioctl if args[0] as i32 == -1 => return self.answer_handler(&caller, args[1] as u32, args[2]),
            libc::SYS_ioctl if args[1] as u32 == kvm::SET_DEVICE_ATTR => return tell_kvm(&caller, args),
            _ => {}
        }
        let descriptor = if number == libc::SYS_mmap { args[4] } else { args[0] };
        let Some(file) = caller.look_at(descriptor as i32) else { return Answer::NotOurs };
        let Some(open) = self.server.open_file(file.device, file.inode) else { return Answer::NotOurs };
        if !file.readable() && !file.writable() {
            // The kernel knows what such a descriptor cannot do.
            return Answer::NotOurs;
        }
        caller.inode = file.inode;
        match number {
            libc::SYS_ioctl => {
                self.server.used(file.inode, call.pid);
                if open.is_about_others(args[1] as u32) {
                    self.wait_for_closes(&file);
                }
                let perform = || open.ioctl(args[1] as u32, args[2], &caller);
                let request = || self.server.failures().performing(call.pid, perform);
                self.after_closes(&file, open.in_use(), request)
            }
            libc::SYS_mmap => {
                let mapping = Mapping {
                    offset: args[5],
                    length: args[1],
                    shared: is_shared(args[3]),
                    execute: args[2] & libc::PROT_EXEC as u64 != 0,
                };
                self.mmap(&*open, mapping, &file, &caller)
            }
            // The kernel would say that there is nothing to read, and not ask the tree.
            libc::SYS_read if args[2] == 0 => match open.given() {
                Some(given) => Answer::Done(given.read(0).map(|bytes| bytes.len() as i64)),
                None => Answer::NotOurs,
            },
            // Other reads and writes are for the tree.
            _ if !open.has_regions() => Answer::NotOurs,
            _ => {
                if !(if writes(number) { file.writable() } else { file.readable() }) {
                    return Answer::Done(Err(Errno::BADF));
                }
                Answer::Done(transfer(&*open, &caller, number, args))
            }
        }
    }

    /// Answers the handler of register accesses, which asks by requests on no descriptor.
    fn answer_handler(&self, caller: &Calling<'_>, number: u32, argument: u64) -> Answer {
        let process = || {
            let process = self.server.process(caller.tid, Purpose::Mapping).map_err(|_| Errno::SRCH)?;
            caller.still_there().map(|()| process)
        };
        Answer::Done(match number {
            trap::ASK => {
                caller.with_memory(|memory| trap::answer(&self.server, memory, argument, |file| caller.give(file)))
            }
            trap::RING => process().and_then(|process| caller.give(self.rings.add(&process)?).map(i64::from)),
            trap::ASK_RING => {
                self.rings.finish(caller.tid, || process().ok(), argument);
                Ok(0)
            }
            _ => return Answer::NotOurs,
        })
    }

    /// Opens what Linux's own tests look for in /proc, and is not as they expect it.
    fn open(&self, caller: &Calling<'_>, path: u64) -> Answer {
        let Some(path) = caller.string(path) else { return Answer::NotOurs };
        match proc_file(&path, caller.tid, self.server.failures(), self.server.accounts()) {
            Some(file) => Answer::Done(caller.reserve().and_then(|number| {
                caller.install(number, Arc::new(Given(file)))?;
                Ok(number.into())
            })),
            None => Answer::NotOurs,
        }
    }

    /// Makes a request; if it fails by what may be `in_use`, and then changes nothing, makes it once more when every
    /// file that the program closed before is closed here too. The news of a close comes by another way than requests
    /// and may be slower.
    fn after_closes(
        &self,
        file: &Descriptor,
        in_use: &[Errno],
        request: impl Fn() -> Option<Result<i64, Errno>>,
    ) -> Answer {
        let first = request();
        let again = matches!(&first, Some(Err(errno)) if in_use.contains(errno)) && self.server.open_files() > 1;
        let answer = if again {
            self.wait_for_closes(file);
            request()
        } else {
            first
        };
        answer.map_or(Answer::NotOurs, Answer::Done)
    }

    /// Waits until every file that the program closed before is closed here, too.
    fn wait_for_closes(&self, file: &Descriptor) {
        file.ask_system();
        self.server.drain(CLOSES);
    }

    /// Prepares a mapping of registers, if it is right, which the kernel then makes.
    fn mmap(&self, open: &dyn OpenFile, mapping: Mapping, file: &Descriptor, caller: &Calling<'_>) -> Answer {
        match open.check_mmap(mapping) {
            Some(Ok(())) => {}
            Some(Err(errno)) => return Answer::Done(Err(errno)),
            None => return Answer::NotOurs,
        }
        // To this thread the file has no bytes, and asking makes that true for its mappings: see `tree`.
        file.ask_attributes();
        if let Err(error) = self.tracing.trace(caller.tid) {
            // One that is about to end needs none.
            if is_traced(caller.tid) {
                let _ = writeln!(
                    io::stderr(),
                    "ioasid: thread {}: its registers cannot be mapped while a debugger or strace has it ({error}). \
                     Attach it when they are (gdb -p, strace -p); or have the program use pread and pwrite.",
                    caller.tid
                );
            }
            return Answer::Done(Err(Errno::PERM));
        }
        Answer::NotOurs
    }
}

/// Tells KVM that a virtual machine has one of our devices, or has it no more: that is, says that it was told. The
/// kernel cannot know the device; and what it would do for one of its own, such as to let the machine's instructions
/// past a cache, has no meaning for one of software.
fn tell_kvm(caller: &Calling<'_>, [kvm, _, address, ..]: [u64; 6]) -> Answer {
    let told = || {
        caller.look_at(kvm as i32)?;
        let mut attr = kvm::DeviceAttr::default();
        caller.read(address, attr.as_mut_bytes()).ok()?;
        let known = [kvm::DEV_VFIO_FILE_ADD, kvm::DEV_VFIO_FILE_DEL].contains(&attr.attr);
        if attr.group != kvm::DEV_VFIO_FILE || !known {
            return None;
        }
        let mut number = 0i32;
        caller.read(attr.addr, number.as_mut_bytes()).ok()?;
        caller.file(number).ok().filter(is_vfio)
    };
    if told().is_some() { Answer::Done(Ok(0)) } else { Answer::NotOurs }
}

/// Does what rt_sigaction(2) does where the handler has taken the signal's place.
fn set_action(memory: ThreadMemory<'_>, [signal, new, old, size, ..]: [u64; 6]) -> Answer {
    let index = trap::SIGNALS.iter().position(|taken| *taken as u64 == signal & 0xffff_ffff);
    let (Some(index), Some(base)) = (index, trap::base_in(memory)) else { return Answer::NotOurs };
    // Before an exec, a process may be in its parent's memory with actions of its own.
    if size != 8 || shares_memory_with_parent(memory.tid()) {
        return Answer::NotOurs;
    }
    let set = || {
        let before = trap::action(memory, base, index)?;
        let mut wanted = [0; size_of::<trap::Action>()];
        if new != 0 {
            memory.read(new, &mut wanted)?;
        }
        if old != 0 {
            memory.write(old, &before)?;
        }
        if new != 0 {
            trap::set_action(memory, base, index, &wanted)?;
        }
        Ok(0)
    };
    Answer::Done(set())
}

/// Whether the process of a thread is in the memory of its parent, as after vfork(2).
fn shares_memory_with_parent(tid: u32) -> bool {
    let parent = Status::of(tid).and_then(|status| status.number("PPid:"));
    parent.is_some_and(|parent| share_memory(tid, parent))
}

/// Whether some other process traces a thread.
fn is_traced(tid: u32) -> bool {
    let tracer = Status::of(tid).and_then(|status| status.tracer());
    tracer.is_some_and(|tracer| tracer != std::process::id())
}

/// Whether the flags of a mapping ask for a shared one.
fn is_shared(flags: u64) -> bool {
    matches!(flags as i32 & libc::MAP_TYPE, libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE)
}
