//! The thread that makes a system call: the [`Caller`] of a request.
#![allow(unsafe_code, reason = "seccomp's ioctls and capget have no safe wrappers")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use ioasid::memory::{Account, Identity, ImportError, PAGE_SIZE, Pages, Process};
use ioasid::{Access, Pasid, PasidHold};
use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, geteuid, pidfd_getfd};

use super::descriptor_table::Descriptor;
use super::{Listener, descriptor};
use crate::program::accounts::{Both, Whose};
use crate::program::memory::ThreadMemory;
use crate::program::permission::may_reach;
use crate::program::pidfd::pidfd_of;
use crate::program::processes::Purpose;
use crate::request::file::OpenFile;
use crate::request::{Caller, Capability};

/// The thread that made a call.
pub(super) struct Calling<'a> {
    pub(super) listener: &'a Listener,
    pub(super) id: u64,
    pub(super) tid: u32,
    /// Of the file that the call is made on.
    pub(super) inode: u64,
}

impl Calling<'_> {
    /// One of its descriptors. `None` if it has none of this number. Asks no file system for anything.
    pub(super) fn look_at(&self, number: i32) -> Option<Descriptor> {
        // What stands for none here (as -1 does) must not be asked for.
        let descriptor = self.listener.tables.look_at(self.tid, u32::try_from(number).ok()?)?;
        self.still_there().ok()?;
        Some(descriptor)
    }

    /// Uses its memory.
    pub(super) fn with_memory<T>(&self, use_it: impl FnOnce(ThreadMemory<'_>) -> T) -> T {
        use_it(ThreadMemory::new(self.tid, &|| self.still_there().is_ok()))
    }

    /// The text at an address, if it is a short one.
    pub(super) fn string(&self, address: u64) -> Option<String> {
        let mut bytes = [0; 64];
        // It may end shortly before a page that is not there.
        let length = bytes.len().min((PAGE_SIZE - address % PAGE_SIZE) as usize);
        self.with_memory(|memory| memory.read(address, &mut bytes[..length])).ok()?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        String::from_utf8(bytes[..end].to_vec()).ok()
    }

    /// Gives it a descriptor of a file, and returns the number.
    pub(super) fn give(&self, file: OwnedFd) -> Result<i32, Errno> {
        descriptor::add(&self.listener.descriptor, self.id, file)
    }

    /// Has memory of its process followed, so that a device does not reach what comes in its place. What cannot be
    /// followed is reached as long as it is there.
    fn follow(&self, process: &Arc<Process>) {
        let followers = self.listener.server.followers();
        if followers.is_new(process) && self.listener.tracing.follow(self.tid, process.clone()).is_err() {
            followers.forget(process);
        }
    }

    /// The user that it runs as.
    fn uid(&self) -> Option<u32> {
        Some(fs::metadata(format!("/proc/{}", self.tid)).ok()?.uid())
    }

    /// Whether the thread is still waiting for this answer, so that its number means what it meant.
    pub(super) fn still_there(&self) -> Result<(), Errno> {
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

/// How many bytes a thread may pin (RLIMIT_MEMLOCK). The file can be read by everybody, where prlimit(2) takes a
/// capability.
fn memlock_limit(tid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{tid}/limits")).ok()?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match limit.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

/// Whether the process that a pidfd is has not ended.
fn is_running(pidfd: &OwnedFd) -> bool {
    // SAFETY: signal 0 is none, and no information goes with it.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), 0, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    // A process that this one may not signal is there.
    sent == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

impl Caller for Calling<'_> {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        fail_for(Errno::FAULT)?;
        self.with_memory(|memory| memory.read(address, data))
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno> {
        fail_for(Errno::FAULT)?;
        self.with_memory(|memory| memory.write(address, data))
    }

    fn descriptor(&self, number: i32) -> Result<OwnedFd, Errno> {
        fail_for(Errno::MFILE)?;
        // What stands for none here (as -1 does) must not be asked for.
        if number < 0 {
            return Err(Errno::BADF);
        }
        let thread = pidfd_of(self.tid)?;
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
        let process = || server.process(self.tid, Purpose::Mapping).ok();
        let pinned = || Some(server.accounts().of(Whose::Pinned(process()?), u64::MAX));
        if self.is_capable(Capability::IpcLock) {
            return server.is_selftest().then(pinned)?;
        }
        let whose = if by_process { Whose::Process(process()?) } else { Whose::User(self.uid()?) };
        let limit = memlock_limit(self.tid).filter(|_| self.still_there().is_ok());
        let account = server.account(whose, limit.unwrap_or(0));
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

    fn file(&self, number: i32) -> Result<Arc<dyn OpenFile>, Errno> {
        // One that only names a file is none.
        let found = self.look_at(number).filter(|found| found.readable() || found.writable()).ok_or(Errno::BADF)?;
        self.listener.server.open_file(found.device, found.inode).ok_or(Errno::BADFD)
    }

    fn reserve(&self) -> Result<i32, Errno> {
        fail_for(Errno::MFILE)?;
        descriptor::reserve(&self.listener.descriptor, self.id)
    }

    fn install(&self, number: i32, file: Arc<dyn OpenFile>) -> Result<(), Errno> {
        fail_for(Errno::NFILE)?;
        let opened = self.listener.server.open_given(file)?;
        descriptor::give(&self.listener.descriptor, self.id, opened, number)
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
        // What was opened by the number was opened of the process that the pidfd is, which is now what it was when the
        // kernel was asked about it.
        if !may_reach(self.tid, pid) {
            return Err(Errno::PERM);
        }
        if !is_running(&pidfd) || !process.is_of(pid) {
            return Err(Errno::SRCH);
        }
        self.still_there()?;
        Ok(process)
    }

    fn bind_enqcmd(&self, bound: Option<(Pasid, PasidHold)>) -> Result<(), Errno> {
        let server = &self.listener.server;
        let process = server.process(self.tid, Purpose::Mapping).map_err(|_| Errno::SRCH)?;
        self.still_there()?;
        server.enqcmd().bind(process.pid(), process, bound);
        Ok(())
    }

    fn pages(&self, address: u64, length: u64, writable: bool, peers: bool) -> Result<Arc<Pages>, ImportError> {
        fail_for(Errno::NOMEM).map_err(io::Error::from)?;
        let process = self.listener.server.process(self.tid, Purpose::Mapping)?;
        self.still_there().map_err(io::Error::from)?;
        self.follow(&process);
        let server = self.listener.server.clone();
        let access = if writable { Access::all() } else { Access::READ };
        Ok(Pages::new(address, length, writable, move |offset, length| {
            process.import(address + offset, length, access, |vma| server.mapped(vma.dev, vma.inode, vma.offset, peers))
        }))
    }

    fn identity(&self, address: u64) -> Option<Identity> {
        let process = self.listener.server.process(self.tid, Purpose::Mapping).ok()?;
        self.still_there().ok()?;
        process.identity(address)
    }
}
