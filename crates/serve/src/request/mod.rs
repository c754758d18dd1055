//! What requests mean, apart from how they arrive.
//!
//! A handler takes the object that the request is for, the request's number and argument, and a [`Caller`]. It
//! checks everything before it changes anything, and answers with the value or the errno that Linux gives.

mod argument;
mod bitmap;
pub mod file;
pub mod given;
mod hardware;
pub mod iommufd;
mod mapping;
mod object;
mod regions;
pub mod resource;
mod selftest;
pub mod vfio;

pub use ioasid_errno::ToErrno;
pub(crate) use selftest::{Failures, proc_file};

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ioasid::memory::{Account, Identity, ImportError, Pages, Process};
use ioasid::{Pasid, PasidHold};
use rustix::io::Errno;

use file::OpenFile;

/// A capability that a request may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// `CAP_IPC_LOCK`: pins as much memory as it likes.
    IpcLock = 14,
    /// `CAP_SYS_RESOURCE`: changes how that is counted.
    SysResource = 24,
}

/// The program that makes a request, as far as a request needs it.
pub trait Caller {
    /// Copies from its memory.
    ///
    /// # Errors
    /// `EFAULT`, if all of it cannot be read.
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Errno>;

    /// Copies to its memory.
    ///
    /// # Errors
    /// `EFAULT`, if all of it cannot be written.
    fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno>;

    /// A duplicate of one of its descriptors.
    ///
    /// # Errors
    /// `EBADF`, if it has none of this number.
    fn descriptor(&self, number: i32) -> Result<OwnedFd, Errno>;

    /// Whether it has this capability in the machine, not just in a namespace of its own.
    fn is_capable(&self, capability: Capability) -> bool;

    /// The account of its user, or with `by_process` its own; `None` if it may pin as much as it likes
    /// (`CAP_IPC_LOCK`).
    fn account(&self, by_process: bool) -> Option<Arc<dyn Account>>;

    /// Whether it has mapped some of `length` bytes at an offset of the file that the request is made on.
    fn has_mapped(&self, offset: u64, length: u64) -> bool;

    /// The open file that one of its descriptors is.
    ///
    /// # Errors
    /// `EBADF`, if it has none of this number; `EBADFD`, if it is none of those that are served.
    fn file(&self, number: i32) -> Result<Arc<dyn OpenFile>, Errno>;

    /// Sets a descriptor number of it aside, for a file that is closed on exec. As long as there is none, the number is
    /// as good as closed.
    ///
    /// # Errors
    /// `EMFILE` and the like, if it cannot have one more.
    fn reserve(&self) -> Result<i32, Errno>;

    /// Puts a new file where a number was set aside.
    ///
    /// # Errors
    /// `ENFILE` and the like.
    fn install(&self, number: i32, file: Arc<dyn OpenFile>) -> Result<(), Errno>;

    /// The process that one of its descriptors names, whose memory it may reach.
    ///
    /// # Errors
    /// `EBADF`, if it has none of this number; `EINVAL`, if it is no pidfd; `ESRCH`, if the process has ended; `EPERM`,
    /// if this one may not trace that one.
    fn process(&self, pidfd: i32) -> Result<Arc<Process>, Errno>;

    /// Has ENQCMD of its process put the PASID that is held on the bus, which the process knows by this number, in
    /// place of what it did; or, with `None`, fault as on a processor whose IA32_PASID is not valid.
    ///
    /// # Errors
    /// `ESRCH`, if the process has ended.
    fn bind_enqcmd(&self, bound: Option<(Pasid, PasidHold)>) -> Result<(), Errno>;

    /// Its memory at `address`, `length` bytes (both multiples of the page size), for devices to read, and with
    /// `writable` to write; with `peers`, other devices' memory that it has mapped there, too. Whether it is there
    /// turns out when somebody needs it.
    ///
    /// # Errors
    /// See [`ImportError`].
    fn pages(&self, address: u64, length: u64, writable: bool, peers: bool) -> Result<Arc<Pages>, ImportError>;

    /// Which memory it has at `address`; `None` if none is there.
    fn identity(&self, address: u64) -> Option<Identity>;
}
