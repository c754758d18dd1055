//! A front end of vhost-user, and a back end that answers some requests with anything, and asks for what it likes.
#![no_main]
#![allow(dead_code, unused_imports, unreachable_pub, reason = "files of tests, of which this needs a part")]

#[path = "../../crates/remote/tests/vhost_user/driver.rs"]
mod driver;
#[path = "../../crates/remote/tests/vhost_user/front_end.rs"]
mod front_end;
#[path = "../../crates/remote/tests/vhost_user/hostile.rs"]
mod hostile;
#[path = "../../crates/remote/tests/vhost_user/peer.rs"]
mod peer;

use std::ffi::{CStr, c_char};

/// The back end is part of this process. One that was told of memory and is cut off never ends, so that what it may
/// reach stays pinned for good, as the address space promises. While a thread begins or ends, the search for leaks finds
/// memory of its that nobody refers to. Nothing else may leak.
#[unsafe(no_mangle)]
extern "C" fn __lsan_default_suppressions() -> *const c_char {
    const PINNED_OR_ENDING: &CStr = c"leak:ioasid::ioas::Ioas>::cut_off\nleak:__cxa_thread_atexit_impl";
    PINNED_OR_ENDING.as_ptr()
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let back_end = hostile::any_back_end(bytes);
    hostile::use_whatever(&back_end);
    back_end.end();
});
