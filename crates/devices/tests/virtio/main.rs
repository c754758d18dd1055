//! Virtio devices, as drivers see them: registers, queues, and what is wrong with either.
#![allow(clippy::unwrap_used, reason = "only tests use it")]
#![allow(unreachable_pub, reason = "what tests share is in modules")]

mod bench;
mod blk;
mod ends;
mod net;
mod transport;
