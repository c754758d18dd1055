//! vhost-user: our front end with back ends that do what they like, and our back end with such front ends.
#![allow(clippy::unwrap_used, reason = "only tests use it")]
#![allow(unreachable_pub, reason = "what tests share is in modules")]

mod back_end;
mod driver;
mod front_end;
mod hostile;
mod peer;
