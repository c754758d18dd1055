//! The ways in by which what programs do arrives: the file system, system calls, single instructions.

pub mod listen;
mod tracing;
pub mod trap;
pub mod tree;

pub use tracing::{CharDevice, Tracing};
