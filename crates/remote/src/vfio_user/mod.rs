//! The protocol vfio-user.
//!
//! ```text
//!   server: a device here, for a VMM elsewhere         client: a device elsewhere, for programs here
//!       │ Session, Ioas                                     │ Model, Mirror
//!   ┌───▼───────────────────────────────────────────────────▼──┐
//!   │ connection   calls, commands, deadlines                  │
//!   ├──────────────────────────────────────────────────────────┤
//!   │ wire         messages as pure data                       │
//!   └──────────────────────────────────────────────────────────┘
//! ```

pub mod client;
mod connection;
pub mod server;
pub mod wire;

pub use client::{Attended, ClientOptions, ConnectError, MemoryBy, Remote};
pub use server::{ServeError, Server};
