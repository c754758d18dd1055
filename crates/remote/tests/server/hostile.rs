//! A hostile client: random messages at random times. Nothing panics, hangs or leaks, and who comes next has a device
//! that works.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ioasid_remote::vfio_user::wire::{CommandId, DmaFlags, DmaMap, DmaUnmap, Header, IrqSet, RegionAccess};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::IntoBytes;
use zerocopy::native_endian::{U16, U32, U64};

use crate::peer::{Peer, memfd, server};

/// With a fixed seed: a failure can be had again.
struct Random(fastrand::Rng);

impl Random {
    fn next(&mut self) -> u64 {
        self.0.u64(..)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0.u64(..end)
    }

    fn number(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => self.next(),
            3 => self.below(8),
            4 => 1 << self.below(64),
            _ => self.below(16) * 0x1000,
        }
    }

    fn payload(&mut self, command: CommandId) -> Vec<u8> {
        let access = |random: &mut Self, count: u64| RegionAccess {
            offset: U64::new(if random.below(4) == 0 { random.number() } else { random.below(0x200) & !3 }),
            region: U32::new([0, 7, random.number() as u32][random.below(3) as usize]),
            count: U32::new(count as u32),
        };
        match command {
            CommandId::DmaMap => DmaMap {
                argsz: U32::new(32),
                flags: U32::new(self.below(18) as u32),
                offset: U64::new(self.number()),
                address: U64::new(self.number()),
                size: U64::new(self.number()),
            }
            .as_bytes()
            .to_vec(),
            CommandId::DmaUnmap => DmaUnmap {
                argsz: U32::new(24),
                flags: U32::new([0, 0, 2][self.below(3) as usize]),
                address: U64::new(self.number()),
                size: U64::new(self.number()),
            }
            .as_bytes()
            .to_vec(),
            CommandId::DeviceSetIrqs => {
                let [flags, index, start, count] = [0x20 | self.below(64), self.below(7), self.below(3), self.below(4)];
                let [flags, index, start, count] = [flags, index, start, count].map(|value| U32::new(value as u32));
                let set = IrqSet { argsz: U32::new(20), flags, index, start, count };
                [set.as_bytes(), &[1; 4]].concat()
            }
            CommandId::RegionRead => {
                let count = if self.below(16) == 0 { self.number() } else { 1 << self.below(7) };
                access(self, count).as_bytes().to_vec()
            }
            CommandId::RegionWrite => {
                let data: Vec<u8> = (0..1 << self.below(4)).map(|_| self.next() as u8).collect();
                [access(self, data.len() as u64).as_bytes(), &data].concat()
            }
            _ => (0..self.below(80)).map(|_| [0, 1, 0xFF, self.next() as u8][self.below(4) as usize]).collect(),
        }
    }
}

#[test]
fn random_messages_do_no_harm() {
    let seconds = std::env::var("IOASID_REMOTE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut random = Random(fastrand::Rng::with_seed(0x9E37_79B9_7F4A_7C15));
    let (mut messages, mut clients) = (0u64, 0u64);
    let servers = [server("edu", &[]), server("ioat", &[]), server("nvme", &["memory=1M"]), server("dsa", &[])];
    let file = memfd(0x8000, 7);
    while Instant::now() < end {
        let server = &servers[clients as usize % servers.len()];
        let mut peer = Peer::enabled(server, random.below(4) != 0);
        clients += 1;
        peer.socket.set_nonblocking(true).unwrap();
        let counter = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        for _ in 0..random.below(400) {
            let command = CommandId::ALL[random.below(17) as usize];
            let payload = random.payload(command);
            let descriptors: Vec<_> = match (command, random.below(4)) {
                (CommandId::DmaMap, 1..) => vec![file.as_fd()],
                (CommandId::DeviceSetIrqs, 1..) => vec![counter.as_fd(); random.below(3) as usize],
                (_, 0) => vec![file.as_fd(); random.below(3) as usize],
                _ => Vec::new(),
            };
            let mut header = Header::command(random.next() as u16, command, payload.len());
            if random.below(500) == 0 {
                header.size = U32::new(random.number() as u32);
            }
            if random.below(500) == 0 {
                header.flags = U32::new(random.below(64) as u32);
            }
            if random.below(50) == 0 {
                header.command = U16::new(random.below(20) as u16);
            }
            peer.send_header(&header, &payload, &descriptors);
            messages += 1;
            // It takes replies, or does not; it answers for its memory with what comes, or does not.
            while random.below(3) != 0 {
                if std::io::Read::read(&mut &peer.socket, &mut [0; 4096]).is_err() {
                    break;
                }
            }
            if random.below(8) == 0
                && let Some(twin) = &peer.twin
            {
                let noise: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
                twin.set_nonblocking(true).unwrap();
                let _ = (&*twin).write(&noise);
            }
        }
        drop(peer);
        // Another finds a device as after power-on, and memory as it is.
        if clients % 8 == 0 {
            let edu = &servers[0];
            let mut peer = Peer::enabled(edu, true);
            assert_eq!(peer.read(0, 0, 4), [0xed, 0, 0, 1]);
            let own = memfd(0x1000, 9);
            peer.map(0x10_0000, 0x1000, DmaFlags::all(), Some((&own, 0))).unwrap();
            peer.dma(0x10_0000, 64, false);
            peer.dma(0x10_0100, 64, true);
            let mut data = [0; 64];
            std::os::unix::fs::FileExt::read_exact_at(&own, &mut data, 0x100).unwrap();
            assert_eq!(data, [9; 64]);
        }
    }
    println!("{messages} messages of {clients} clients");
}
