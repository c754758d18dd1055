//! Requests on `/dev/iommu` by a program that is no process: what each answers, and what it leaves.

#![allow(unreachable_pub, reason = "files of one test program")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod container;
mod corpus;
mod errno;
mod extra;
mod failing;
mod hardware;
mod mock;
mod program;
mod queues;
mod sequence;
mod setup;
mod vfio_sequence;
