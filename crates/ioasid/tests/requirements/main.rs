//! A test for each rule on I/O address spaces, named after it. docs/requirements.md says which rule is which.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "files of one test program")]

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod guests;
mod parking;
mod parts;
mod spaces;
