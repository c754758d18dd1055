//! A client of vfio-user, and a server that answers some of its commands with anything.
#![no_main]
#![allow(dead_code, unused_imports, unreachable_pub, reason = "files of tests, of which this needs a part")]

#[path = "../../crates/remote/tests/client/bench.rs"]
mod bench;
#[path = "../../crates/remote/tests/client/hostile.rs"]
mod hostile;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioasid::Access;
use ioasid_remote::wire::Header;
use ioasid_remote::{ClientOptions, MemoryBy, Remote};
use zerocopy::IntoBytes;

/// What is left of the input.
struct Input(Vec<u8>);

impl Input {
    fn take(&mut self, count: usize) -> Vec<u8> {
        let count = count.min(self.0.len());
        self.0.drain(..count).collect()
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).first().copied()
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let input = Arc::new(Mutex::new(Input(bytes.to_vec())));
    let server = bench::Listening::with(move |socket| {
        hostile::serve(socket, |mut socket, header, _| {
            let mut input = input.lock().expect("no panic");
            // At the end of the input, and for most of it, the server is as it should be.
            let Some(how) = input.byte().filter(|how| how % 4 == 0) else { return false };
            let length = usize::from(input.byte().unwrap_or(0));
            let payload = input.take(length);
            let reply = match how / 4 % 4 {
                0 => [header.reply(payload.len()).as_bytes(), &payload].concat(),
                1 => [Header { id: (header.id.get() ^ 1).into(), ..header.reply(payload.len()) }.as_bytes(), &payload].concat(),
                2 => [header.refusal(u32::from(how)).as_bytes(), &payload].concat(),
                _ => payload,
            };
            let _ = socket.write_all(&reply);
            true
        });
    });
    let memory = [MemoryBy::Tables, MemoryBy::Files, MemoryBy::Messages][bytes.len() % 3];
    let options = ClientOptions { socket: server.path.clone(), patience: Duration::from_millis(20), memory };
    let Ok(remote) = Remote::connect(options) else { return };
    let bench = bench::Bench::of(remote);
    let file = bench::memory(0x2000, 1);
    for round in 0..4 {
        let _ = bench.map_file(0x1000, &file, Access::all());
        let mut data = [0; 4];
        let _ = bench.session().mapped_read(round * 4, &mut data);
        let _ = bench.session().mapped_write(round * 4, &data);
        let _ = bench.unmap(0x1000, 0x2000);
    }
    let _ = bench.device.detach(None);
});
