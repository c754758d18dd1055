//! Messages of vfio-user: taken apart by both sides, and sent to a server by a client that may send anything.
#![no_main]
#![allow(dead_code, unreachable_pub, reason = "files of tests, of which this needs a part")]

#[path = "../../crates/remote/tests/server/peer.rs"]
mod peer;

use std::io::Write;
use std::sync::{Arc, LazyLock};

use ioasid_remote::vfio_user::Server;
use ioasid_remote::vfio_user::wire::{Command, Header, Request, Version};
use zerocopy::FromBytes;

static SERVER: LazyLock<Arc<Server>> = LazyLock::new(|| peer::server("edu", &[]));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok((header, payload)) = Header::read_from_prefix(bytes) else { return };
    let _ = (header.kind(), header.payload(), Version::decode(payload));
    let _ = Request::decode(header.command.get(), payload, usize::from(bytes[0] & 3));
    let _ = Command::decode(header.command.get(), payload, usize::from(bytes[0] & 3));
    let client = peer::Peer::enabled(&SERVER, bytes[0] & 4 != 0);
    client.socket.set_nonblocking(true).expect("a socket");
    let _ = (&client.socket).write_all(bytes);
});
