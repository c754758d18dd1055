//! A client of vfio-user, and a server that answers some of its commands with anything.
#![no_main]
#![allow(dead_code, unused_imports, unreachable_pub, reason = "files of tests, of which this needs a part")]

#[path = "../../crates/remote/tests/client/bench.rs"]
mod bench;
#[path = "../../crates/remote/tests/client/hostile.rs"]
mod hostile;

use ioasid_remote::MemoryBy;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let memory_by = [MemoryBy::Tables, MemoryBy::Files, MemoryBy::Messages][bytes.len() % 3];
    hostile::use_whatever(&hostile::anything(bytes.to_vec()), memory_by);
});
