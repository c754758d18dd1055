//! The protocol vhost-user: a virtio device's queues, served by another process.
//!
//! ```text
//!   front_end: a device elsewhere, for programs here
//!   ┌───▼────────────────────────────────────────┐
//!   │ requests   one at a time, with deadlines   │
//!   ├────────────────────────────────────────────┤
//!   │ wire       messages as pure data           │
//!   └────────────────────────────────────────────┘
//! ```

mod front_end;
mod requests;
pub mod wire;

pub use front_end::{BackEndEvent, ConnectError, FrontEnd, Memory, Ring};
pub use requests::RequestError;
