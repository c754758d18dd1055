//! Memory that devices can be given: what backs it, and where it lies in the physical address space.
//!
//! - [`Segment`]: a run of bytes and what they are: memory of this process, a file mapped here, or the private memory
//!   of another process.
//! - [`Pages`]: segments in a row, each with a window in the physical space. Reference-counted: however often it is
//!   mapped, it exists once.
//! - [`Process`]: another process, whose memory is turned into segments.
//! - [`TableSpace`]: what page tables are made of.
//!
//! ```text
//!   IOVA ──page table──► physical address ──window──► pointer here, or (process, address there)
//! ```

mod account;
mod file_map;
mod file_systems;
mod fragments;
mod guard;
mod identity;
mod pages;
mod phys;
mod pinned;
mod process;
mod segment;
mod tables;
mod vma;

pub use account::{Account, OverLimit};
pub use identity::{Identity, Pinned};
pub(crate) use pages::Pin;
pub use pages::{Pages, PinError};
pub use phys::OutOfPhysicalSpace;
pub(crate) use pinned::PagesSlice;
pub use pinned::{MemoryChunk, PinnedMemory};
pub use process::{ImportError, LostMemory, Mapped, Process};
pub use segment::{FileRange, RemoteMemory, Segment};
pub use tables::{GuestTables, TableSpace};
pub use vma::{Vma, VmaQuery};

pub(crate) use guard::{lost_at, memory_lost};
pub(crate) use phys::{PhysSpace, Window};
pub(crate) use segment::Backing;

/// Bytes in a page of the processor.
pub const PAGE_SIZE: u64 = 4096;
