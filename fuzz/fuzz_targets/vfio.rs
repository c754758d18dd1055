//! Sequences of requests on VFIO's files, by a program that may make up all of it.
#![no_main]
#![allow(dead_code, unreachable_pub, reason = "files of a test program, of which this needs a part")]

#[path = "../../crates/serve/tests/requests/program.rs"]
mod program;
#[path = "../../crates/serve/tests/requests/sequence.rs"]
mod sequence;
#[path = "../../crates/serve/tests/requests/setup.rs"]
mod setup;
#[path = "../../crates/serve/tests/requests/vfio_sequence.rs"]
mod vfio_sequence;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(vfio_sequence::perform(bytes)));
