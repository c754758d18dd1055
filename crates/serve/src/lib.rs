//! `/dev/iommu` and `/dev/vfio` for unmodified programs.
//!
//! A program that was started for it finds a file system with the device files and the part of `/sys` that belongs to
//! them. What it does with them arrives here on three ways, all of which end in the same request code:
//!
//! ```text
//!   open, close, stat, readlink, read of /sys files ──► FUSE ─────────────► tree
//!   ioctl, mmap, pread, pwrite of device files ───────► seccomp listener ─► listen ──► request ──► ioasid, vfio
//!   load or store in a mapped register ───────────────► SIGBUS, ptrace ───► trap
//! ```
//!
//! - [`request`]: what a request means. Knows nothing of FUSE, seccomp or processes: it takes a request and a
//!   [`request::Caller`], through which it reaches the caller's memory and descriptors.
//! - [`tree`]: the file system.
//! - [`listen`]: system calls of the program, answered from outside of it.
//! - [`trap`]: single instructions of the program, performed from outside of it.
//! - [`filter`]: the seccomp filter that decides which system calls come here at all.
//! - [`Server`]: what they share: the machine, and which open file is what.

mod accounts;
mod ask;
mod enqcmd;
mod failures;
pub mod filter;
pub mod listen;
mod permission;
mod processes;
pub mod request;
mod server;
mod status;
pub mod trap;
pub mod tree;

pub use server::{Options, PciDevice, Server, Watcher};
