//! vhost-user as pure data: what is in a message, and what is wrong with one.
//!
//! ```text
//!   0         4       8      12
//!   ├─────────┼───────┼──────┼──────────────────────┐
//!   │ request │ flags │ size │ what the request has │  + descriptors beside the first byte
//!   └─────────┴───────┴──────┴──────────────────────┘
//! ```
//! Numbers are in the order of bytes that the machine has. Messages have no number of their own: one is answered before
//! the next is, in each direction.
//!
//! Source: Vhost-user Protocol, docs/interop/vhost-user.rst of QEMU 10.1; `linux/vhost_types.h` of Linux 6.18.

mod header;
mod payload;

pub use header::{BackendRequestId, HEADER_SIZE, Header, RequestId};
pub use payload::{
    BackendRequest, ConfigHead, InflightPlace, IotlbKind, IotlbMessage, MemoryHead, MemoryRegion, Request,
    SingleRegion, VringAddress, VringFile, VringState,
};
use thiserror::Error;

/// The most bytes behind a header.
pub const MAX_PAYLOAD: usize = 4096;

/// The most regions in one SET_MEM_TABLE.
pub const MAX_REGIONS: usize = 8;

/// The most bytes of a device's configuration.
pub const MAX_CONFIG: usize = 256;

/// Features of virtio that have to do with the protocol.
pub mod feature {
    /// There are protocol features (VHOST_USER_F_PROTOCOL_FEATURES).
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Writes to memory are logged (VHOST_F_LOG_ALL).
    pub const LOG_ALL: u64 = 1 << 26;
    /// Addresses are translated (VIRTIO_F_ACCESS_PLATFORM).
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// Features of the protocol (VHOST_USER_PROTOCOL_F_…).
pub mod protocol {
    /// There are several queues, or pairs of them.
    pub const MQ: u64 = 1 << 0;
    /// Any request is answered, if that is asked for.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The back end has requests of its own.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// The back end has the device's configuration.
    pub const CONFIG: u64 = 1 << 9;
    /// Requests under way are kept where the next back end finds them.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// The device can be reset.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// Regions of memory come and go one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageError {
    /// It is of another version.
    #[error("a message of version {0}: there is 1")]
    Version(u32),
    /// It is longer than any message.
    #[error("a message with {0} bytes: there are at most {MAX_PAYLOAD}")]
    Size(u32),
    /// There is no such request, or it is for the other side.
    #[error("there is no request {0} for this side")]
    Request(u32),
    /// It has another number of bytes than the request has.
    #[error("{1} bytes of a {0} request")]
    Length(&'static str, usize),
    /// It has more descriptors than it can have, or fewer.
    #[error("a {0} request with {1} descriptors")]
    Descriptors(&'static str, usize),
    /// A number that there is not.
    #[error("{1:#x} in a {0} request")]
    Value(&'static str, u64),
}
