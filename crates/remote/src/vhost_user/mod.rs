//! The protocol vhost-user: a virtio device's queues, served by another process.
//!
//! ```text
//!   back_end: a device here, for a VMM elsewhere       front_end: a device elsewhere, for programs here
//!       │ Device, Ioas                                      │ Translations: a mirror
//!   ┌───▼───────────────────────────────────────────────────▼──┐
//!   │ requests     one at a time, with deadlines               │
//!   ├──────────────────────────────────────────────────────────┤
//!   │ wire         messages as pure data                       │
//!   └──────────────────────────────────────────────────────────┘
//! ```

mod back_end;
mod front_end;
mod requests;
pub mod wire;

pub use back_end::{BackEnd, Device, Misses, ServeError, ServedRing};
pub use front_end::{
    BackEndEvent, ConnectError, FollowError, FrontEnd, GiveError, Inflight, Memory, Miss, Ring, Translations,
};
pub use requests::RequestError;
