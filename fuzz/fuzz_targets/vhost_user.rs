//! Messages of vhost-user: taken apart by both sides, and sent to a back end by a front end that may send anything.
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
use std::sync::{Arc, LazyLock};

use ioasid_remote::vhost_user::BackEnd;
use ioasid_remote::vhost_user::wire::{BackendRequest, Header, Request};
use zerocopy::FromBytes;

/// Threads come and go: the engine's that ends page requests in time, and those of the test. While one begins or ends,
/// the search for leaks finds memory of its that nobody refers to.
#[unsafe(no_mangle)]
extern "C" fn __lsan_default_suppressions() -> *const c_char {
    const COME_AND_GO: &CStr = c"leak:ioasid::fault::deadline\nleak:__cxa_thread_atexit_impl";
    COME_AND_GO.as_ptr()
}

static DISK: LazyLock<Arc<BackEnd>> = LazyLock::new(driver::disk);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok((header, payload)) = Header::read_from_prefix(bytes) {
        let _ = header.payload();
        let _ = Request::decode(header.request.get() % 48, payload, usize::from(bytes[0] & 7));
        let _ = BackendRequest::decode(header.request.get() % 4, payload);
    }
    hostile::any_front_end(&DISK, bytes);
});
