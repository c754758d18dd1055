//! What the public drivers do, step by step: the same registers, widths and order, with what each step waits for or
//! would take as a failure. Written from what the drivers do, not from their text.

#[path = "../common/mod.rs"]
mod common;

mod dpdk;
mod linux;
mod vfio_selftest;
