//! Devices of other processes, and devices for other processes, by the protocol vfio-user.
//!
//! ```text
//!   server: a device here, for a VMM elsewhere         client: a device elsewhere, for programs here
//!       │ Session, Ioas                                     │ Model, Mirror
//!   ┌───▼───────────────────────────────────────────────────▼──┐
//!   │ connection   calls, commands, descriptors, deadlines     │
//!   ├──────────────────────────────────────────────────────────┤
//!   │ wire         messages as pure data                       │
//!   └──────────────────────────────────────────────────────────┘
//! ```
//! Every byte that comes is the other side's, and so is its timing: what is no message ends the connection or is
//! refused, a peer that does not answer is given up after a stated time, and neither leaves anything behind.

pub mod client;
mod connection;
pub mod server;
pub mod wire;

pub use client::{Attended, ClientOptions, ConnectError, MemoryBy, Remote};
pub use connection::Ended;
pub use server::{ServeError, Server};
