//! What only the thread can do for a program that traces.

use std::io;
use std::sync::Arc;

use ioasid::memory::Process;

/// Does for a process what only the thread can do that traces.
pub trait Tracing: Send + Sync {
    /// Makes sure that register accesses of the process that `tid` belongs to are performed, when the system call has
    /// returned that the thread is in.
    ///
    /// # Errors
    /// If the process cannot be traced: another process traces it, or it is gone.
    fn trace(&self, tid: u32) -> io::Result<()>;

    /// Has `process` followed, that `tid` belongs to, when the system call has returned that the thread is in: what
    /// becomes of its memory.
    ///
    /// # Errors
    /// As [`Tracing::trace`]; `EPERM` if the process filters its own system calls.
    fn follow(&self, tid: u32, process: Arc<Process>) -> io::Result<()>;

    /// Has the thread see a character device, when the system call has returned that it is in: one that asks about a
    /// file.
    ///
    /// # Errors
    /// As [`Tracing::trace`].
    fn show(&self, tid: u32, device: CharDevice) -> io::Result<()>;
}

/// A device file, as programs see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CharDevice {
    /// Its inode in the tree.
    pub inode: u64,
    /// The device number of the tree's file system.
    pub file_system: u64,
    /// The numbers that it would have as a character device.
    pub number: (u32, u32),
}
