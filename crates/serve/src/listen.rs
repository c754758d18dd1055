//! System calls of the program that are answered here.
//!
//! The kernel stops the calling thread and puts a notification on the listener; the answer takes the place of the
//! call. While a call is being answered its thread stands still, so its arguments do not change; the memory that they
//! point to may, by another thread, and is therefore copied once and then judged.
//!
//! A process number in a notification means that process only as long as the notification is valid. So whatever was
//! opened by the number is used only if the notification was still valid afterwards.
#![allow(unsafe_code, reason = "seccomp's ioctls and process_vm_readv have no safe wrappers")]

use std::fs;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use ioasid::memory::{Account, Identity, ImportError, PAGE_SIZE, Pages, Process};
use ioasid::{Access, Context, Pasid, PasidHold};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, geteuid, pidfd_getfd, pidfd_open};

use crate::accounts::{Both, Whose};
use crate::ask::Question;
use crate::failures;
use crate::permission::may_reach;
use crate::processes::Purpose;
use crate::request::given::GivenFile;
use crate::request::vfio::VfioFile;
use crate::request::{Caller, Capability};
use crate::server::{OpenFile, Server};
use crate::status;

/// Makes sure that a process's register accesses are performed, before it maps registers.
pub trait Tracing: Send + Sync {
    /// Returns when every thread of the process that `tid` belongs to is traced.
    ///
    /// # Errors
    /// If the process cannot be traced: somebody else traces it, or it is gone.
    fn trace(&self, tid: u32) -> io::Result<()>;
}

/// How long a request waits for files that are being closed.
const CLOSES: Duration = Duration::from_secs(1);
/// The longest read or write of a device file in one call; the rest is for the program's next call, as for any file.
const LONGEST: u64 = 1 << 20;
/// The most parts of a vectored read or write (`IOV_MAX`).
const MOST_PARTS: u64 = 1024;

/// Lets `pidfd_open` take any thread's number (Linux 6.9); before, only that of a process.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// What becomes of a trapped call.
enum Answer {
    /// It returns this.
    Done(Result<i64, Errno>),
    /// It is not about one of our files: the kernel goes on with it.
    NotOurs,
}

/// Answers system calls until no process is under the filter any more.
///
/// Several threads may do this on the same listener.
pub struct Listener {
    server: Arc<Server>,
    tracing: Arc<dyn Tracing>,
    descriptor: Arc<OwnedFd>,
}

impl Listener {
    /// Answers what arrives on `descriptor`, the result of [`crate::filter::install`].
    #[must_use]
    pub fn new(server: Arc<Server>, tracing: Arc<dyn Tracing>, descriptor: Arc<OwnedFd>) -> Self {
        let sync_wake_up: u64 = 1;
        // SAFETY: takes its argument by value. Older kernels refuse it, and are only slower for it.
        unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, sync_wake_up) };
        Self { server, tracing, descriptor }
    }

    /// Answers until the last process under the filter is gone.
    pub fn run(&self) {
        self.server.add_listener();
        loop {
            // SAFETY: plain integers; the kernel wants them zero.
            let mut call: libc::seccomp_notif = unsafe { zeroed() };
            // SAFETY: the structure is the one that the request number was made from.
            let received =
                unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut call) };
            if received != 0 {
                match io::Error::last_os_error().raw_os_error() {
                    // A thread was killed between its notification and our receiving it, or nobody is left.
                    Some(libc::EINTR) => continue,
                    Some(libc::ENOENT) if self.has_processes() => continue,
                    _ => return,
                }
            }
            self.reply(&call, self.answer(&call));
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
        if number == libc::SYS_openat {
            return self.open(call);
        }
        let mut caller = Calling { listener: self, id: call.id, tid: call.pid, inode: 0 };
        let descriptor = if number == libc::SYS_mmap { args[4] } else { args[0] };
        let file = match caller.descriptor(descriptor as i32) {
            Ok(file) => file,
            // Running out of something here must not look like another file.
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Answer::Done(Err(errno)),
            Err(_) => return Answer::NotOurs,
        };
        let Some((inode, open)) = self.server.file_and_inode_of(&file) else { return Answer::NotOurs };
        caller.inode = inode;
        let Ok(mode) = rustix::fs::fcntl_getfl(&file) else { return Answer::NotOurs };
        if mode.contains(OFlags::PATH) {
            // The kernel knows what such a descriptor cannot do.
            return Answer::NotOurs;
        }
        match open {
            OpenFile::Iommu(iommu) if number == libc::SYS_ioctl => {
                let perform = || iommu.ioctl(args[1] as u32, args[2], &caller);
                let request = || self.server.failures().performing(call.pid, perform);
                // In use, or, to a test, pinned.
                Answer::Done(self.after_closes(&file, &[Errno::BUSY, Errno::IO], request))
            }
            OpenFile::Iommu(iommu) if number == libc::SYS_mmap => {
                let (shared, execute) = (is_shared(args[3]), args[2] & libc::PROT_EXEC as u64 != 0);
                self.mmap(iommu.check_mmap(args[5], args[1], shared, execute), &file, &caller)
            }
            // The kernel would say that there is nothing to read, and not ask the tree.
            OpenFile::Given(given) if number == libc::SYS_read && args[2] == 0 => {
                Answer::Done(given.read(0).map(|bytes| bytes.len() as i64))
            }
            // Reads and writes are for the tree.
            OpenFile::Iommu(_) | OpenFile::Given(_) => Answer::NotOurs,
            OpenFile::Vfio(vfio) => match number {
                libc::SYS_ioctl => {
                    let request = || vfio.ioctl(args[1] as u32, args[2], &caller);
                    Answer::Done(self.after_closes(&file, &[Errno::BUSY, Errno::INVAL], request))
                }
                libc::SYS_mmap => self.mmap(vfio.check_mmap(args[5], args[1], is_shared(args[3])), &file, &caller),
                _ => {
                    let refused = if writes(number) { OFlags::RDONLY } else { OFlags::WRONLY };
                    if mode & OFlags::RWMODE == refused {
                        return Answer::Done(Err(Errno::BADF));
                    }
                    Answer::Done(transfer(&vfio, &caller, number, args))
                }
            },
        }
    }

    /// Opens what Linux's own tests look for in /proc, and is not as they expect it.
    fn open(&self, call: &libc::seccomp_notif) -> Answer {
        let caller = Calling { listener: self, id: call.id, tid: call.pid, inode: 0 };
        let Some(path) = caller.string(call.data.args[1]) else { return Answer::NotOurs };
        let fail_nth = || Some(self.server.failures().file(failures::thread_of(&path, call.pid)?));
        let status = || status::file(status::process_of(&path)?, self.server.accounts());
        match fail_nth().or_else(status) {
            Some(file) => Answer::Done(caller.reserve().and_then(|number| {
                caller.install(number, file)?;
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
        file: &OwnedFd,
        in_use: &[Errno],
        request: impl Fn() -> Result<i64, Errno>,
    ) -> Result<i64, Errno> {
        match request() {
            Err(errno) if in_use.contains(&errno) && self.server.open_files() > 1 => {
                self.server.ask(file, Question::FileSystem);
                self.server.drain(CLOSES);
                request()
            }
            result => result,
        }
    }

    /// Prepares a mapping of registers, if it was found right, which the kernel then makes.
    fn mmap(&self, checked: Result<(), Errno>, file: &OwnedFd, caller: &Calling<'_>) -> Answer {
        if let Err(errno) = checked {
            return Answer::Done(Err(errno));
        }
        if self.tracing.trace(caller.tid).is_err() {
            return Answer::Done(Err(Errno::PERM));
        }
        // To this thread the file has no bytes, and asking makes that true for its mappings: see `tree`.
        self.server.ask(file, Question::Attributes);
        Answer::NotOurs
    }
}

/// Whether the flags of a mapping ask for a shared one.
fn is_shared(flags: u64) -> bool {
    matches!(flags as i32 & libc::MAP_TYPE, libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE)
}

/// Whether a call, of those that move data, writes the file.
fn writes(call: i64) -> bool {
    matches!(call, libc::SYS_pwrite64 | libc::SYS_pwritev | libc::SYS_pwritev2)
}

/// A read or write of a device file, in one piece or in several.
fn transfer(vfio: &VfioFile, caller: &Calling<'_>, call: i64, args: [u64; 6]) -> Result<i64, Errno> {
    let [_, buffer, length, offset, ..] = args;
    let write = writes(call);
    if matches!(call, libc::SYS_pread64 | libc::SYS_pwrite64) {
        return part(vfio, caller, write, buffer, length, offset);
    }
    if length > MOST_PARTS {
        return Err(Errno::INVAL);
    }
    let mut done = 0i64;
    for n in 0..length {
        let mut parts = [0; 16];
        caller.read(buffer.wrapping_add(16 * n), &mut parts)?;
        let (address, length) = parts.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).map_err(|_| Errno::FAULT);
        let length = number(length)?;
        match part(vfio, caller, write, number(address)?, length, offset.wrapping_add(done as u64)) {
            Ok(moved) => {
                done += moved;
                if (moved as u64) < length {
                    break;
                }
            }
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn part(
    vfio: &VfioFile,
    caller: &Calling<'_>,
    write: bool,
    address: u64,
    length: u64,
    offset: u64,
) -> Result<i64, Errno> {
    let mut data = vec![0; length.min(LONGEST) as usize];
    let moved = if write {
        caller.read(address, &mut data)?;
        vfio.write(offset, &data)?
    } else {
        let moved = vfio.read(offset, &mut data)?;
        caller.write(address, &data[..moved])?;
        moved
    };
    Ok(moved as i64)
}

/// The thread that made a call.
struct Calling<'a> {
    listener: &'a Listener,
    id: u64,
    tid: u32,
    /// Of the file that the call is made on.
    inode: u64,
}

impl Calling<'_> {
    /// The text at an address, if it is a short one.
    fn string(&self, address: u64) -> Option<String> {
        let mut bytes = [0; 64];
        // It may end shortly before a page that is not there.
        let length = bytes.len().min((PAGE_SIZE - address % PAGE_SIZE) as usize);
        copy_from_process(self.tid, address, &mut bytes[..length]).ok()?;
        self.still_there().ok()?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        String::from_utf8(bytes[..end].to_vec()).ok()
    }

    /// Who it runs as.
    fn uid(&self) -> Option<u32> {
        Some(fs::metadata(format!("/proc/{}", self.tid)).ok()?.uid())
    }

    /// Whether the thread is still waiting for this answer, so that its number means what it meant.
    fn still_there(&self) -> Result<(), Errno> {
        let listener = self.listener.descriptor.as_raw_fd();
        // SAFETY: the request reads a u64.
        match unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &self.id) } {
            0 => Ok(()),
            _ => Err(Errno::SRCH),
        }
    }
}

/// Fails if what is about to be done has to.
fn fail_for(errno: Errno) -> Result<(), Errno> {
    if ioasid_inject::fails() { Err(errno) } else { Ok(()) }
}

/// Whether a thread, or with 0 this one, has a capability in its user namespace.
fn has_capability(tid: u32, capability: Capability) -> bool {
    // Linux `include/uapi/linux/capability.h`, version 3.
    let mut header = [0x2008_0522, tid];
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: the header is two numbers, and version 3 has two sets of three.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    let [effective, ..] = sets[0];
    got == 0 && effective >> capability as u32 & 1 != 0
}

/// Whether the process that a pidfd is has not ended.
fn is_running(pidfd: &OwnedFd) -> bool {
    // SAFETY: signal 0 is none, and no information goes with it.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), 0, std::ptr::null::<libc::siginfo_t>(), 0) == 0
    }
}

/// The process that a thread belongs to.
pub(crate) fn process_of(tid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{}/status", tid.as_raw_nonzero())).ok()?;
    let number = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())?;
    Pid::from_raw(number)
}

/// Copies memory of a process, all or nothing as far as the caller is told.
pub(crate) fn copy_from_process(tid: u32, address: u64, data: &mut [u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: data.len() };
    // SAFETY: `local` is `data`; the other address is in the other process and checked by the kernel.
    let copied = unsafe { libc::process_vm_readv(tid as i32, &local, 1, &remote, 1, 0) };
    if copied == data.len() as isize { Ok(()) } else { Err(Errno::FAULT) }
}

/// Copies memory to a process, all or nothing as far as the caller is told.
pub(crate) fn copy_to_process(tid: u32, address: u64, data: &[u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: data.len() };
    // SAFETY: `local` is `data`, which is only read; the other address is checked by the kernel.
    let copied = unsafe { libc::process_vm_writev(tid as i32, &local, 1, &remote, 1, 0) };
    if copied == data.len() as isize { Ok(()) } else { Err(Errno::FAULT) }
}

impl Caller for Calling<'_> {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        fail_for(Errno::FAULT)?;
        copy_from_process(self.tid, address, data)?;
        self.still_there()
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno> {
        fail_for(Errno::FAULT)?;
        self.still_there()?;
        copy_to_process(self.tid, address, data)
    }

    fn descriptor(&self, number: i32) -> Result<OwnedFd, Errno> {
        fail_for(Errno::MFILE)?;
        // What stands for none here (as -1 does) must not be asked for.
        if number < 0 {
            return Err(Errno::BADF);
        }
        let tid = Pid::from_raw(self.tid as i32).ok_or(Errno::SRCH)?;
        let thread = pidfd_open(tid, PidfdFlags::empty())
            .or_else(|_| pidfd_open(tid, PidfdFlags::from_bits_retain(PIDFD_THREAD)))
            .or_else(|_| pidfd_open(process_of(tid).ok_or(Errno::SRCH)?, PidfdFlags::empty()))?;
        self.still_there()?;
        pidfd_getfd(thread, number, PidfdGetfdFlags::empty())
    }

    fn is_capable(&self, capability: Capability) -> bool {
        let namespace = |process: &str| Some(fs::metadata(format!("/proc/{process}/ns/user")).ok()?.ino());
        let has = has_capability(self.tid, capability)
            // Where nobody has it, as in many containers, root is still root.
            || (!has_capability(0, capability) && geteuid().is_root() && self.uid() == Some(0));
        has && namespace(&self.tid.to_string()) == namespace("self") && self.still_there().is_ok()
    }

    fn account(&self, by_process: bool) -> Option<Arc<dyn Account>> {
        let server = &self.listener.server;
        let process = || Some(process_of(Pid::from_raw(self.tid as i32)?)?.as_raw_nonzero().get() as u32);
        let pinned = || Some(server.accounts().of(Whose::Pinned(process()?), u64::MAX));
        if self.is_capable(Capability::IpcLock) {
            return server.is_selftest().then(pinned)?;
        }
        let whose = if by_process { Whose::Process(process()?) } else { Whose::User(self.uid()?) };
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is large enough, and no new one is given.
        let got = unsafe { libc::prlimit(self.tid as i32, libc::RLIMIT_MEMLOCK, std::ptr::null(), &mut limit) };
        if got != 0 || self.still_there().is_err() {
            limit.rlim_cur = 0;
        }
        let account = server.account(whose, limit.rlim_cur);
        Some(if server.is_selftest() { Arc::new(Both(account, pinned()?)) } else { account })
    }

    fn has_mapped(&self, offset: u64, length: u64) -> bool {
        let Ok(process) = self.listener.server.process(self.tid, Purpose::Mapping) else { return false };
        let mut next = 0;
        while let Ok(Some(vma)) = process.vmas().at_or_after(next) {
            let ours = vma.inode == self.inode && self.listener.server.is_device_file(vma.dev);
            if ours && vma.offset < offset + length && offset < vma.offset + (vma.end - vma.start) {
                return true;
            }
            next = vma.end;
        }
        false
    }

    fn context(&self, number: i32) -> Result<Arc<Context>, Errno> {
        match self.listener.server.file_of(self.descriptor(number)?) {
            Some(OpenFile::Iommu(iommu)) => Ok(iommu.context().clone()),
            _ => Err(Errno::BADFD),
        }
    }

    fn given(&self, number: i32) -> Option<Arc<dyn GivenFile>> {
        match self.listener.server.file_of(self.descriptor(number).ok()?)? {
            OpenFile::Given(file) => Some(file),
            _ => None,
        }
    }

    fn reserve(&self) -> Result<i32, Errno> {
        fail_for(Errno::MFILE)?;
        self.listener.server.reserve_descriptor(&self.listener.descriptor, self.id)
    }

    fn install(&self, number: i32, file: Arc<dyn GivenFile>) -> Result<(), Errno> {
        fail_for(Errno::NFILE)?;
        self.listener.server.give(file, &*self.listener.descriptor, self.id, number)
    }

    fn process(&self, pidfd: i32) -> Result<Arc<Process>, Errno> {
        let pidfd = self.descriptor(pidfd)?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).map_err(|_| Errno::INVAL)?;
        let number = info.lines().find_map(|line| line.strip_prefix("Pid:")).ok_or(Errno::INVAL)?;
        let pid = number.trim().parse::<u32>().map_err(|_| Errno::SRCH)?;
        if !may_reach(self.tid, pid) {
            return Err(Errno::PERM);
        }
        let process = self.listener.server.process(pid, Purpose::Sva);
        let process = process.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::SRCH))?;
        // What was opened by the number was opened of the process that the pidfd is, and of no program that it became
        // since.
        if !is_running(&pidfd) {
            return Err(Errno::SRCH);
        }
        if !may_reach(self.tid, pid) {
            return Err(Errno::PERM);
        }
        self.still_there()?;
        Ok(process)
    }

    fn bind_enqcmd(&self, bound: Option<(Pasid, PasidHold)>) -> Result<(), Errno> {
        let server = &self.listener.server;
        let tid = Pid::from_raw(self.tid as i32).ok_or(Errno::SRCH)?;
        let pid = process_of(tid).ok_or(Errno::SRCH)?.as_raw_nonzero().get() as u32;
        let process = server.process(pid, Purpose::Mapping).map_err(|_| Errno::SRCH)?;
        self.still_there()?;
        server.enqcmd().bind(pid, process, bound);
        Ok(())
    }

    fn pages(&self, address: u64, length: u64, writable: bool) -> Result<Arc<Pages>, ImportError> {
        fail_for(Errno::NOMEM).map_err(io::Error::from)?;
        let process = self.listener.server.process(self.tid, Purpose::Mapping)?;
        self.still_there().map_err(io::Error::from)?;
        let server = self.listener.server.clone();
        let access = if writable { Access::all() } else { Access::READ };
        Ok(Pages::new(address, length, writable, move |offset, length| {
            // Registers are reached through the device that has them, not through a mapping of theirs (Linux: EFAULT).
            process.import(address + offset, length, access, |vma| !server.is_device_file(vma.dev))
        }))
    }

    fn identity(&self, address: u64) -> Option<Identity> {
        let process = self.listener.server.process(self.tid, Purpose::Mapping).ok()?;
        self.still_there().ok()?;
        process.identity(address)
    }
}
