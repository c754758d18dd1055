//! The tree as a FUSE file system.
//!
//! Everything but the device files is fixed, and read as it is. Of the device files:
//!
//! - An inode is one open file, and the inode number, which any descriptor or mapping can be asked for without a round
//!   trip, tells which (`inodes`).
//! - They are regular files, as the kernel asks the tree about no others; but programs look for character devices. What
//!   a program is told that asks about one is changed before it sees it (`stat` in [`crate::way::trap`]).
//! - Their last close arrives as RELEASE, also when a program is killed.
//! - **They have no bytes.** A mapping of a file beyond its end raises SIGBUS at every access, which is how register
//!   accesses come to [`crate::way::trap`]. But some programs check a regular file's size before they map it. So where a
//!   file looks like one (that of a group's device, and `resourceN`), every program that asks is told a size that covers
//!   all regions, and a listener is told none: the kernel takes that answer for its mappings. [`crate::way::listen`] asks before every mapping. Should a program ask again later, an
//!   access in a mapping first arrives here as a read of a page, is refused, and raises SIGBUS all the same.
//! - [`crate::way::listen`] answers most reads and writes of regions. What comes here instead, as it is about BAR 0 or
//!   made by `read` or io_uring, is the same request. After such a write the kernel takes the file to be longer, with
//!   the same effect as after a question.
//!
//! The thread that serves the tree waits for nothing: programs wait for it while they hold locks of their own memory,
//! which devices and listeners may want. It touches no device, and leaves to others what may wait, or has descriptors
//! (`apart`).

mod apart;
mod bridge;
mod inodes;
mod nodes;
mod sys;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyPoll, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use ioasid_vfio::device::region::{COUNT, file_offset};

use crate::names::FIRST_DEVICE_INODE;
use crate::request::given::{GivenFile, Ready};
use crate::server::{Server, driver_line};
use crate::way::trap::is_asking;
use crate::way::{CharDevice, Tracing};
use apart::Teller;
use inodes::Inodes;
use nodes::{DeviceFile, Node, Nodes};

/// How long names and attributes of what is fixed stay valid.
const FOR_EVER: Duration = Duration::from_secs(86_400);
/// Bytes that a `/sys` file seems to have, as on Linux.
const SYS_FILE: u64 = 4096;

/// The file system, to be served on a descriptor of `/dev/fuse`.
pub struct Tree {
    server: Arc<Server>,
    nodes: Nodes,
    /// The device files that were looked up and not forgotten.
    inodes: Arc<Mutex<Inodes>>,
    tracing: Arc<dyn Tracing>,
    teller: Teller,
    started: SystemTime,
}

/// The kernel cannot do what is needed of FUSE.
const NO_DIRECT_MMAP: &str =
    "this kernel's FUSE cannot map device files (FUSE_DIRECT_IO_ALLOW_MMAP): Linux 6.6 or later is needed";

impl Tree {
    /// The tree of `server`. By `tracing`, programs see device files as character devices.
    #[must_use]
    pub fn new(server: Arc<Server>, tracing: Arc<dyn Tracing>) -> Self {
        let nodes = Nodes::new(server.devices(), server.groups(), server.is_selftest());
        let teller = Teller::new();
        Self { server, nodes, inodes: Arc::default(), tracing, teller, started: SystemTime::now() }
    }

    /// Serves the tree on `descriptor`, a `/dev/fuse` that has been mounted, and returns when the kernel has accepted
    /// it; requests are then answered on a thread of their own until the file system is gone.
    ///
    /// # Errors
    /// If the kernel's FUSE lacks something.
    pub fn serve(self, descriptor: OwnedFd) -> io::Result<()> {
        let server = self.server.clone();
        let workers = server.start_workers()?;
        apart::serve(self, descriptor, move || {
            // No more closes will be heard of: the last process that saw the tree is gone, or somebody unmounted it.
            server.close_all();
            workers.add(Box::new(move || drop(server)));
        })
    }

    fn device(&self, inode: INodeNo) -> Option<DeviceFile> {
        lock(&self.inodes).get(inode.0)
    }

    fn node(&self, inode: INodeNo) -> Option<&Node> {
        self.nodes.get(usize::try_from(inode.0).ok()?.checked_sub(1)?)
    }

    /// Whether a node is there now.
    fn is_shown(&self, number: usize) -> bool {
        self.nodes.needs_bound(number).is_none_or(|devices| self.server.is_some_bound(devices))
    }

    fn attributes(&self, inode: INodeNo, request: &Request) -> Option<(FileAttr, Duration)> {
        let (kind, perm, size, valid) = if inode.0 >= FIRST_DEVICE_INODE {
            let (perm, size) = match self.device(inode)? {
                DeviceFile::Resource(number, bar) => {
                    let device = self.server.devices().get(number)?;
                    (0o600, device.vfio.function().spec().bar(bar)?.size)
                }
                // As a character device has it; and accesses to what is mapped raise SIGBUS at once.
                device if device.number().is_some() => (0o666, 0),
                _ => (0o666, file_offset(COUNT)),
            };
            // FUSE tells the number of the thread.
            let size = if self.server.is_listener(request.pid()) { 0 } else { size };
            (FileType::RegularFile, perm, size, Duration::ZERO)
        } else {
            match self.node(inode)? {
                Node::Directory(_) => (FileType::Directory, 0o755, 0, FOR_EVER),
                Node::ToBeGiven => (FileType::Directory, 0o111, 0, FOR_EVER),
                Node::Link(target) => (FileType::Symlink, 0o777, target.len() as u64, FOR_EVER),
                Node::Text(_) | Node::Bytes(_) | Node::Config(_) | Node::Uevent(..) => {
                    (FileType::RegularFile, 0o444, SYS_FILE, FOR_EVER)
                }
                Node::Attribute(attribute) if attribute.is_readable() => {
                    (FileType::RegularFile, 0o644, SYS_FILE, FOR_EVER)
                }
                Node::Attribute(_) => (FileType::RegularFile, 0o200, SYS_FILE, FOR_EVER),
                Node::Switch => (FileType::RegularFile, 0o644, 0, FOR_EVER),
                Node::Device(_) => return None,
            }
        };
        let time = self.started;
        let attributes = FileAttr {
            ino: inode,
            size,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            // The user's own: in a user namespace without root, root's files cannot be written.
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        Some((attributes, valid))
    }

    /// Tells of an inode by a name that is good for as long as `valid`.
    fn reply_entry(&self, request: &Request, inode: INodeNo, valid: Duration, reply: ReplyEntry) {
        match self.attributes(inode, request) {
            Some((attributes, attributes_valid)) => {
                reply.entry_with_ttls(&attributes_valid, &valid, &attributes, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Uses the file that a request gave a program, if the inode is one.
    fn with_given<T>(&self, inode: INodeNo, use_it: impl FnOnce(&Arc<dyn GivenFile>) -> T) -> Option<T> {
        self.server.with_file(inode.0, |file| file.given().map(use_it))?
    }
}

fn lock(inodes: &Mutex<Inodes>) -> MutexGuard<'_, Inodes> {
    inodes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a device file, and returns how the kernel shall treat it.
fn open_device(
    server: &Server,
    inode: INodeNo,
    device: DeviceFile,
    flags: OpenFlags,
) -> Result<FopenFlags, rustix::io::Errno> {
    if ioasid_inject::fails() {
        return Err(rustix::io::Errno::NOMEM);
    }
    let writable = flags.acc_mode() != OpenAccMode::O_RDONLY;
    let file = match device {
        DeviceFile::Iommu => server.open_iommu(),
        DeviceFile::Container => server.open_container(),
        DeviceFile::Group(group) => server.open_group(group)?,
        DeviceFile::Vfio(number) => server.open_device(number, writable)?,
        DeviceFile::Resource(number, bar) => server.open_resource(number, bar, writable)?,
        DeviceFile::Given(name) => server.take_given(name).ok_or(rustix::io::Errno::NOENT)?,
    };
    // Every read comes here.
    let mut flags = FopenFlags::FOPEN_DIRECT_IO;
    // Closing needs no news but the last.
    flags.set(FopenFlags::FOPEN_NOFLUSH, !file.is_closed_by_somebody());
    let is_stream = file.given().is_some_and(|given| !given.is_seekable());
    flags.set(FopenFlags::FOPEN_STREAM | FopenFlags::FOPEN_NONSEEKABLE, is_stream);
    // Two files of one inode could not be told apart.
    server.opened(inode.0, file).map_err(|file| {
        server.elsewhere(move || drop(file));
        rustix::io::Errno::STALE
    })?;
    Ok(flags)
}

/// Whether root asks, or the user that runs this.
fn is_owner(request: &Request) -> bool {
    [0, rustix::process::geteuid().as_raw()].contains(&request.uid())
}

/// Answers a thread that opens a file. One that came by a name that leads to an open file looks it up again; one that
/// did not, as by /proc/PID/fd, cannot have it.
fn reply_opened(
    reply: ReplyOpen,
    opened: Result<FopenFlags, rustix::io::Errno>,
    inodes: &Mutex<Inodes>,
    inode: INodeNo,
    tid: u32,
) {
    match opened {
        Err(rustix::io::Errno::STALE) => {
            let looks_again = lock(inodes).is_to_look_again(tid);
            reply.error(if looks_again { Errno::ESTALE } else { Errno::EBUSY });
        }
        Ok(flags) => {
            lock(inodes).opened(Some(inode.0), tid);
            reply.opened(FileHandle(0), flags);
        }
        Err(errno) => {
            lock(inodes).opened(None, tid);
            reply.error(Errno::from_i32(errno.raw_os_error()));
        }
    }
}

impl Filesystem for Tree {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config
            .add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP)
            .map_err(|_| io::Error::new(io::ErrorKind::Unsupported, NO_DIRECT_MMAP))?;
        // The kernel holds back no news of a close: a request that finds something in use asks the tree a question, and
        // knows with the answer that all closes from before have arrived.
        let _ = config.set_max_background(u16::MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_str();
        let found = match self.node(parent) {
            Some(Node::Directory(entries)) => name.and_then(|name| entries.get(name)).copied(),
            // What was not given yet is nobody's.
            Some(Node::ToBeGiven) if self.server.is_listener(request.pid()) => {
                let Some(name) = name.and_then(|name| name.parse().ok()) else { return reply.error(Errno::ENOENT) };
                let inode = self.server.new_inode();
                lock(&self.inodes).add(inode, DeviceFile::Given(name));
                return self.reply_entry(request, INodeNo(inode), Duration::ZERO, reply);
            }
            _ => None,
        };
        let Some(number) = found.filter(|number| self.is_shown(*number)) else { return reply.error(Errno::ENOENT) };
        let (inode, valid) = match self.nodes.get(number) {
            Some(Node::Device(device)) => {
                let new = || self.server.new_inode();
                let inode = lock(&self.inodes).look_up(number, *device, request.pid(), new);
                (INodeNo(inode), Duration::ZERO)
            }
            _ if self.nodes.needs_bound(number).is_some() => (INodeNo(number as u64 + 1), Duration::ZERO),
            _ => (INodeNo(number as u64 + 1), FOR_EVER),
        };
        self.reply_entry(request, inode, valid, reply);
    }

    fn forget(&self, _request: &Request, inode: INodeNo, lookups: u64) {
        lock(&self.inodes).forget(inode.0, lookups);
    }

    fn getattr(&self, request: &Request, inode: INodeNo, _file: Option<FileHandle>, reply: ReplyAttr) {
        let Some((attributes, valid)) = self.attributes(inode, request) else { return reply.error(Errno::ENOENT) };
        let tid = request.pid();
        match self.device(inode).and_then(DeviceFile::number) {
            Some(number) if !self.server.is_listener(tid) => {
                let file_system = self.server.file_system();
                let (tracing, device) = (self.tracing.clone(), CharDevice { inode: inode.0, file_system, number });
                let show = move |_: &Server| {
                    if is_asking(tid) {
                        // Under a debugger, it sees what is there.
                        let _ = tracing.show(tid, device);
                    }
                    Ok(())
                };
                self.teller.answer_later(&self.server, show, move |_| reply.attr(&valid, &attributes));
            }
            _ => reply.attr(&valid, &attributes),
        }
    }

    /// Accepts and ignores changes, as of O_TRUNC: the files have nothing to change.
    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        file: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.getattr(request, inode, file, reply);
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        match self.node(inode) {
            Some(Node::Link(target)) => reply.data(target.as_bytes()),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // FUSE tells the number of the thread.
        let tid = request.pid();
        match self.device(inode) {
            // It may wait for a file that is being closed.
            Some(device @ DeviceFile::Group(_)) => {
                let open = move |server: &Server| open_device(server, inode, device, flags);
                let inodes = self.inodes.clone();
                let reply = move |opened| reply_opened(reply, opened, &inodes, inode, tid);
                self.teller.answer_later(&self.server, open, reply);
            }
            Some(DeviceFile::Resource(..)) if !is_owner(request) => reply.error(Errno::EACCES),
            // It was looked up by a listener, and is for that one to open.
            Some(DeviceFile::Given(_)) if !self.server.is_listener(request.pid()) => reply.error(Errno::EACCES),
            Some(device) => {
                let open = || open_device(&self.server, inode, device, flags);
                reply_opened(reply, self.server.failures().performing(tid, open), &self.inodes, inode, tid);
            }
            // The owner's to write, who is the one that runs this.
            None if matches!(self.node(inode), Some(Node::Attribute(_)))
                && flags.acc_mode() != OpenAccMode::O_RDONLY
                && !is_owner(request) =>
            {
                reply.error(Errno::EACCES);
            }
            None => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH),
        }
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _file: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size as usize;
        if let Some((read, is_seekable)) = self.with_given(inode, |file| (file.read(size), file.is_seekable())) {
            return match read {
                Ok(bytes) if is_seekable => {
                    let rest = bytes.get(offset as usize..).unwrap_or(&[]);
                    reply.data(&rest[..rest.len().min(size)]);
                }
                Ok(bytes) => reply.data(&bytes),
                Err(errno) => reply.error(Errno::from_i32(errno.raw_os_error())),
            };
        }
        if self.device(inode).is_some() {
            // A page for a mapping belongs to nobody.
            if owner.is_none() {
                return reply.error(Errno::EIO);
            }
            let read = move |server: &Server| {
                let file = server.open_inode(inode.0).filter(|file| file.has_regions());
                let mut data = vec![0; size];
                let read = file.ok_or(rustix::io::Errno::INVAL)?.read(offset, &mut data)?;
                data.truncate(read);
                Ok(data)
            };
            return self.teller.answer_later(&self.server, read, |read| match read {
                Ok(data) => reply.data(&data),
                Err(errno) => reply.error(Errno::from_i32(errno.raw_os_error())),
            });
        }
        let rest = move |bytes: &[u8]| bytes.get(offset as usize..).unwrap_or(&[]).iter().take(size).copied().collect();
        let bytes: Vec<u8> = match self.node(inode) {
            Some(Node::Text(text)) => rest(text.as_bytes()),
            Some(Node::Bytes(bytes)) => rest(bytes),
            Some(Node::Uevent(number, text)) => {
                let driver = self.server.devices().get(*number).map(|device| driver_line(device));
                rest(format!("{}{text}", driver.unwrap_or_default()).as_bytes())
            }
            Some(Node::Attribute(attribute)) => match self.server.read_attribute(*attribute) {
                Some(text) => rest(text.as_bytes()),
                None => return reply.error(Errno::EIO),
            },
            // A device may be asked for its own registers, which may be another process's.
            Some(Node::Config(number)) => {
                let number = *number;
                let read = move |server: &Server| {
                    let mut config = [0; 4096];
                    if let Some(device) = server.devices().get(number) {
                        device.vfio.function().config_read(0, &mut config);
                    }
                    let bytes: Vec<u8> = rest(&config);
                    Ok(bytes)
                };
                return self.teller.answer_later(&self.server, read, |read: Result<_, rustix::io::Errno>| match read {
                    Ok(bytes) => reply.data(&bytes),
                    Err(errno) => reply.error(Errno::from_i32(errno.raw_os_error())),
                });
            }
            Some(Node::Directory(_)) => return reply.error(Errno::EISDIR),
            _ => return reply.error(Errno::EINVAL),
        };
        reply.data(&bytes);
    }

    fn write(
        &self,
        request: &Request,
        inode: INodeNo,
        _file: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = |written| match written {
            Ok(bytes) => reply.written(bytes as u32),
            Err(errno) => reply.error(Errno::from_i32(rustix::io::Errno::raw_os_error(errno))),
        };
        match self.node(inode) {
            Some(Node::Switch) => return written(Ok(data.len())),
            Some(Node::Attribute(attribute)) => {
                let (attribute, text) = (*attribute, data.to_vec());
                // FUSE tells the number of the thread.
                let tid = request.pid();
                let write = move |server: &Server| server.write_attribute(attribute, &text, tid).map(|()| text.len());
                return self.teller.answer_later(&self.server, write, written);
            }
            _ => {}
        }
        // A write, and an answer to a device, run the device's code.
        let bytes = data.to_vec();
        let write = move |server: &Server| {
            let file = server.open_inode(inode.0).ok_or(rustix::io::Errno::INVAL)?;
            match file.given() {
                Some(given) => given.write(&bytes),
                None => file.write(offset, &bytes),
            }
        };
        self.teller.answer_later(&self.server, write, written);
    }

    /// Never says that there is no such thing, as the kernel would ask no more for any file.
    fn poll(
        &self,
        _request: &Request,
        inode: INodeNo,
        _file: FileHandle,
        notifier: PollNotifier,
        _events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let waits = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
        let poll = |file: &Arc<dyn GivenFile>| file.poll(waits.then(|| self.teller.wake(inode.0, notifier)));
        // As the kernel says of files that cannot be waited for.
        let ready = self.with_given(inode, poll).unwrap_or(Ready { read: true, write: true });
        let mut events = PollEvents::empty();
        events.set(PollEvents::POLLIN | PollEvents::POLLRDNORM, ready.read);
        events.set(PollEvents::POLLOUT | PollEvents::POLLWRNORM, ready.write);
        reply.poll(events);
    }

    /// A descriptor is being closed.
    fn flush(&self, _request: &Request, inode: INodeNo, _file: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // Whether the closing program lives shows in its memory, whose locks other threads may hold that wait for the
        // tree.
        let flushed = move |server: &Server| {
            server.flushed(inode.0);
            Ok(())
        };
        self.teller.answer_later(&self.server, flushed, |_| reply.ok());
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        _file: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if self.device(inode).is_some() {
            self.teller.forget(inode.0);
            lock(&self.inodes).released(inode.0);
            self.server.released(inode.0);
        }
        reply.ok();
    }

    fn readdir(&self, _request: &Request, inode: INodeNo, _file: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(Node::Directory(entries)) = self.node(inode) else { return reply.error(Errno::ENOTDIR) };
        let own = [(".", FileType::Directory), ("..", FileType::Directory)];
        let entries = entries.iter().filter(|(_, number)| self.is_shown(**number));
        let rest = entries.map(|(name, &number)| {
            let kind = match self.nodes.get(number) {
                Some(Node::Directory(_)) => FileType::Directory,
                Some(Node::Link(_)) => FileType::Symlink,
                Some(Node::Device(device)) if device.number().is_some() => FileType::CharDevice,
                _ => FileType::RegularFile,
            };
            (name.as_str(), kind)
        });
        for (next, (name, kind)) in (1u64..).zip(own.into_iter().chain(rest)).skip(offset as usize) {
            if reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
