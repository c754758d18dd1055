//! `/dev/iommu` and `/dev/vfio` for unmodified programs.
//!
//! A program that was started for it finds a file system with the device files and the part of `/sys` that belongs to
//! them. What it does with them arrives here on three ways, all of which end in the same request code:
//!
//! ```text
//!   open, close, stat, readlink, read of /sys files ──► FUSE ─────────────► way::tree
//!   ioctl, mmap, pread, pwrite of device files ───────► seccomp listener ─► way::listen ──► request ──► ioasid, vfio
//!   load or store in a mapped register ───────────────► SIGBUS, ptrace ───► way::trap
//! ```
//!
//! Each folder imports only those below it, which `tests/layers.rs` checks:
//!
//! | folder | what |
//! | --- | --- |
//! | [`way`] | the three ways in: the file system, system calls, single instructions |
//! | `server` | what the ways share: the machine, and which open file is what |
//! | [`request`] | what a request means: a folder or file for each kind of device file |
//! | `program` | what is known of programs: accounts, permission, processes, memory |
//! | `watch` | the devices and options of a server, and what it tells |
//! | `bus` | buses behind bridges, and what is open on them |
//! | `driver` | vfio-pci, and which devices it is bound to |
//! | `names` | names and numbers that the tree and the server agree on |
//! | [`descriptors`] | tables of descriptors that have only what is meant |
//!
//! A request knows nothing of FUSE, seccomp or processes: it takes its number, its argument and a [`request::Caller`],
//! through which it reaches the caller's memory and descriptors.

mod bus;
pub mod descriptors;
mod driver;
mod names;
mod program;
pub mod request;
mod server;
mod watch;
pub mod way;

pub use bus::Bus;
pub use driver::Driver;
pub use server::Server;
pub use watch::{Options, PciDevice, Watcher};
