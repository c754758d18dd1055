//! The server, as clients see it that speak the protocol as they like.
#![allow(clippy::unwrap_used, reason = "only tests use it")]
#![allow(unreachable_pub, reason = "what tests share is in modules")]

mod bad_input;
mod device;
mod dma;
mod hostile;
mod peer;
mod tables;
