//! A client of vfio-user, and a server that answers some of its commands with anything.
#![no_main]
#![allow(dead_code, unused_imports, unreachable_pub, reason = "files of tests, of which this needs a part")]

#[path = "../../crates/remote/tests/client/bench.rs"]
mod bench;
#[path = "../../crates/remote/tests/client/hostile.rs"]
mod hostile;

use std::ffi::{CStr, c_char};

use ioasid_remote::vfio_user::MemoryBy;

/// The server is part of this process. One that has files and is cut off never ends, so that what it may reach stays
/// pinned for good, as the address space promises. Nothing else may leak.
#[unsafe(no_mangle)]
extern "C" fn __lsan_default_suppressions() -> *const c_char {
    const PINNED_FOR_GOOD: &CStr = c"leak:ioasid::ioas::Ioas>::cut_off";
    PINNED_FOR_GOOD.as_ptr()
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let memory_by = [MemoryBy::Tables, MemoryBy::Files, MemoryBy::Messages][bytes.len() % 3];
    hostile::use_whatever(&hostile::anything(bytes.to_vec()), memory_by);
});
