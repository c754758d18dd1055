//! vfio-user 0.1 as pure data: what is in a message, and what is wrong with one.
//!
//! ```text
//!   0        2         4       8       12      16
//!   ├────────┼─────────┼───────┼───────┼───────┼──────────────────────┐
//!   │ id     │ command │ size  │ flags │ errno │ what the command has │  + descriptors beside the first byte
//!   └────────┴─────────┴───────┴───────┴───────┴──────────────────────┘
//! ```
//! Numbers are in the order of bytes that the machine has.
//!
//! Source: vfio-user protocol specification, docs/interop/vfio-user.rst of QEMU 10.1.

mod command;
mod header;
mod version;

pub use command::{
    Command, DeviceInfo, DmaAccess, DmaFlags, DmaMap, DmaUnmap, DmaWritten, Feature, IoFds, IrqInfo, IrqSet,
    IrqSetFlags, MigrationData, MostBytes, RegionAccess, RegionInfo, Request, SharedTables, SparseArea, SparseAreas,
    UnmapFlags, WriteMulti,
};
pub use header::{CommandId, HEADER_SIZE, Header, Kind};
pub use version::{Capabilities, MAJOR, MINOR, TwinSocket, Version, VersionError};

use thiserror::Error;

/// The most bytes that one message moves to or from memory or a region, unless the peer has said less.
pub const MAX_TRANSFER: u64 = 1 << 20;

/// The most bytes of a whole message: what the longest command has beside its data is less than 4 KiB.
pub const MAX_MESSAGE: usize = MAX_TRANSFER as usize + 4096;

/// Bits of an address in tables that are shared (SHARED_TABLES). IOVAs have one less.
pub const ADDRESS_BITS: u32 = 48;

/// In tables that are shared: from here on addresses are IOVAs, which are reached by messages.
pub const BY_MESSAGE: u64 = 1 << (ADDRESS_BITS - 1);

/// The most descriptors beside one message: as many as Linux passes at once (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = crate::socket::MAX_DESCRIPTORS;

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageError {
    /// It is shorter than its header, or longer than any message.
    #[error("a message of {0} bytes: there are {HEADER_SIZE} to {MAX_MESSAGE}")]
    Size(u32),
    /// It is neither a command nor a reply.
    #[error("a message of type {0}: 0 is a command, 1 a reply")]
    Kind(u32),
    /// There is no such command, or it is for the other side.
    #[error("there is no command {0} for this side")]
    Command(u16),
    /// It ends before its fields, or has another number of bytes than it says.
    #[error("a {0} command of {1} bytes: it says otherwise")]
    Length(CommandId, usize),
    /// It moves more than was agreed on.
    #[error("{0} bytes at once: at most {MAX_TRANSFER}")]
    Transfer(u64),
    /// It has more descriptors than it can have, or fewer.
    #[error("a {0} command with {1} descriptors")]
    Descriptors(CommandId, usize),
    /// A flag that there is not, or several of which there is one.
    #[error("flags {1:#x} of a {0} command")]
    Flags(CommandId, u32),
}
