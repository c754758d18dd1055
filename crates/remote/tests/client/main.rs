//! The client: our own server's device as one here, and servers that do what they like.
#![allow(clippy::unwrap_used, reason = "only tests use it")]
#![allow(unreachable_pub, reason = "what tests share is in modules")]

mod bench;
mod device;
mod hostile;
mod tables;
