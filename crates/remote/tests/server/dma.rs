//! What the device reaches: what is mapped, as it is mapped, as long as it is mapped.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasid_remote::vfio_user::wire::{Command, DmaFlags, Header};
use zerocopy::IntoBytes;

use crate::peer::{Peer, memfd, receive, send, server, wait_until};

const BOTH: DmaFlags = DmaFlags::READ.union(DmaFlags::WRITE);

fn bytes(file: &std::fs::File, at: u64, count: usize) -> Vec<u8> {
    let mut data = vec![0; count];
    file.read_exact_at(&mut data, at).unwrap();
    data
}

/// Answers the device's reads and writes with `memory`, which is at `base`, until the socket closes.
fn answer(socket: &UnixStream, base: u64, memory: &Mutex<Vec<u8>>, counts: &AtomicBool) {
    while let Some((header, payload, _)) = receive(socket) {
        answer_one(socket, &header, &payload, base, memory);
        counts.store(true, Ordering::SeqCst);
    }
}

fn answer_one(socket: &UnixStream, header: &Header, payload: &[u8], base: u64, memory: &Mutex<Vec<u8>>) {
    match Command::decode(header.command.get(), payload, 0).unwrap() {
        Command::DmaRead(access) => {
            let at = (access.address.get() - base) as usize;
            let data = memory.lock().unwrap()[at..at + access.count.get() as usize].to_vec();
            let reply = [access.as_bytes(), &data].concat();
            send(socket, &header.reply(reply.len()), &reply, &[]);
        }
        Command::DmaWrite(access, data) => {
            let at = (access.address.get() - base) as usize;
            memory.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
            // 12 bytes, as the specification has it.
            send(socket, &header.reply(12), &access.as_bytes()[..12], &[]);
        }
    }
}

#[test]
fn a_file_is_reached_as_it_is_mapped() {
    let mut peer = Peer::enabled(&server("edu", &[]), true);
    let file = memfd(0x4000, 1);
    peer.map(0x10_0000, 0x1000, BOTH, Some((&file, 0x2000))).unwrap();
    file.write_all_at(&[5; 64], 0x2000).unwrap();
    peer.dma(0x10_0000, 64, false);
    peer.dma(0x10_0100, 64, true);
    assert_eq!(bytes(&file, 0x2100, 65), [&[5; 64][..], &[1]].concat());
    // What is mapped for reading is not written.
    peer.map(0x20_0000, 0x1000, DmaFlags::READ, Some((&file, 0x1000))).unwrap();
    peer.dma(0x20_0000, 64, true);
    assert_eq!(bytes(&file, 0x1000, 64), [1; 64]);
    // Nothing else is reached.
    peer.dma(0x10_0fc0, 0x80, true);
    assert_eq!(bytes(&file, 0x3000, 64), [1; 64]);
}

#[test]
fn memory_without_a_file_is_reached_by_messages() {
    for twin in [true, false] {
        let mut peer = Peer::enabled(&server("edu", &[]), twin);
        peer.map(0x10_0000, 0x2000, BOTH, None).unwrap();
        let memory = Mutex::new((0..=255).cycle().take(0x2000).collect::<Vec<u8>>());
        if let Some(socket) = peer.twin.take() {
            let asked = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let answers = scope.spawn(|| answer(&socket, 0x10_0000, &memory, &asked));
                peer.dma(0x10_0f80, 256, false);
                peer.dma(0x10_1800, 256, true);
                socket.shutdown(std::net::Shutdown::Both).unwrap();
                answers.join().unwrap();
            });
            assert!(asked.into_inner());
        } else {
            for (iova, to_memory) in [(0x10_0f80, false), (0x10_1800, true)] {
                peer.start_dma_and_answer(iova, 256, to_memory, |socket, header, payload| {
                    answer_one(socket, header, payload, 0x10_0000, &memory);
                });
            }
        }
        let memory = memory.into_inner().unwrap();
        assert_eq!(memory[0x1800..0x1900], memory[0xf80..0x1080], "twin: {twin}");
    }
}

#[test]
fn an_unmap_that_was_answered_holds() {
    let mut peer = Peer::enabled(&server("edu", &[]), true);
    let (file, other) = (memfd(0x1000, 0), memfd(0x1000, 0));
    for round in 0..200u32 {
        peer.map(0x10_0000, 0x1000, BOTH, Some((&file, 0))).unwrap();
        peer.start_dma(0x10_0000, 4096, true);
        peer.unmap(0x10_0000, 0x1000, 0).unwrap();
        let seen = bytes(&file, 0, 4096);
        peer.map(0x10_0000, 0x1000, BOTH, Some((&other, 0))).unwrap();
        peer.wait_for_dma();
        assert_eq!(bytes(&file, 0, 4096), seen, "round {round}");
        peer.unmap(0x10_0000, 0x1000, 0).unwrap();
        file.write_all_at(&[0xAA; 4096], 0).unwrap();
    }
}

#[test]
fn mappings_are_unmapped_as_a_whole() {
    let mut peer = Peer::new(&server("edu", &[]), true);
    let file = memfd(0x4000, 0);
    peer.map(0x1000, 0x2000, BOTH, Some((&file, 0))).unwrap();
    peer.map(0x3000, 0x1000, BOTH, None).unwrap();
    let (exists, invalid) = (17, 22);
    assert_eq!(peer.map(0x2000, 0x1000, BOTH, None), Err(exists));
    for (address, size) in [(0x1000, 0x1000), (0x2000, 0x1000), (0, 0x2000), (0x2000, 0x8000)] {
        assert_eq!(peer.unmap(address, size, 0), Err(invalid), "{address:#x} {size:#x}");
    }
    // As Linux has it: nothing may be there, or several.
    peer.unmap(0x8000, 0x1000, 0).unwrap();
    peer.unmap(0, 0x8000, 0).unwrap();
    peer.map(0x1000, 0x2000, BOTH, Some((&file, 0))).unwrap();
    assert_eq!((peer.unmap(0x1000, 0, 0), peer.unmap(u64::MAX, 2, 0)), (Err(invalid), Err(invalid)));
    assert_eq!((peer.unmap(0, 0, 1), peer.unmap(0x1000, 0x2000, 2)), (Err(invalid), Err(invalid)));
    let reply = peer.unmap(0x1000, 0x2000, 0).unwrap();
    assert_eq!(reply[8..], [0x1000u64.to_ne_bytes(), 0x2000u64.to_ne_bytes()].concat());
    peer.map(0x1000, 0x1000, BOTH, Some((&file, 0))).unwrap();
    // All, also if there is nothing.
    peer.unmap(0, 0, 2).unwrap();
    peer.unmap(0, 0, 2).unwrap();
    peer.map(0x1000, 0x2000, BOTH, Some((&file, 0))).unwrap();
}

#[test]
fn a_file_that_is_cut_short_is_a_refused_dma() {
    let mut peer = Peer::enabled(&server("edu", &[]), true);
    let file = memfd(0x2000, 3);
    peer.map(0x10_0000, 0x2000, BOTH, Some((&file, 0))).unwrap();
    peer.dma(0x10_0000, 64, false);
    file.set_len(0x1000).unwrap();
    peer.dma(0x10_1000, 64, false);
    peer.dma(0x10_1000, 64, true);
    file.set_len(0x2000).unwrap();
    // What is there still goes on.
    peer.dma(0x10_0100, 64, true);
    assert_eq!(bytes(&file, 0x100, 64), [3; 64]);
}

#[test]
fn files_that_could_be_slow_or_are_none_are_refused() {
    let mut peer = Peer::new(&server("edu", &[]), true);
    let (ends, _pipe) = std::io::pipe().unwrap();
    let directory = std::fs::File::open("/").unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let program = std::fs::File::open("/proc/self/exe").unwrap();
    let others: [&dyn AsFd; 4] = [&ends, &directory, &socket, &program];
    for file in others {
        assert_eq!(peer.map(0x1000, 0x1000, DmaFlags::READ, Some((file, 0))), Err(22));
    }
    let file = memfd(0x1000, 0);
    let read_only = std::fs::File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap();
    assert!(peer.map(0x1000, 0x1000, BOTH, Some((&read_only, 0))).is_err());
    for (offset, size) in [(0, 0x2000), (0x1000, 0x1000), (1, 0x1000), (u64::MAX - 0xfff, 0x1000), (0, 0), (0, 7)] {
        assert!(peer.map(0x1000, size, BOTH, Some((&file, offset))).is_err(), "{offset:#x} {size:#x}");
    }
    assert!(peer.map(0x1001, 0x1000, BOTH, None).is_err());
    assert_eq!(peer.map(0x1000, 0x1000, DmaFlags::empty(), None), Err(22));
    // Where messages that interrupt go is no memory.
    assert_eq!(peer.map(0xfee0_0000, 0x1000, BOTH, None), Err(22));
    peer.map(0x1000, 0x1000, BOTH, Some((&file, 0))).unwrap();
}

#[test]
fn a_client_that_does_not_answer_for_its_memory_is_given_up() {
    let server = server("edu", &[]);
    let mut peer = Peer::enabled(&server, true);
    peer.map(0x10_0000, 0x1000, BOTH, None).unwrap();
    peer.start_dma(0x10_0000, 64, false);
    // The transfer waits for the client, which is given up; the device goes on.
    peer.wait_for_dma();
    let file = memfd(0x1000, 9);
    peer.map(0x20_0000, 0x1000, BOTH, Some((&file, 0))).unwrap();
    peer.dma(0x20_0000, 64, false);
    peer.dma(0x20_0100, 64, true);
    assert_eq!(bytes(&file, 0x100, 64), [9; 64]);
    // While a transfer waits, the client goes: nobody waits for it longer.
    drop(peer);
    let mut peer = Peer::enabled(&server, true);
    peer.map(0x10_0000, 0x1000, BOTH, None).unwrap();
    peer.start_dma(0x10_0000, 64, false);
    drop(peer);
    let mut next = Peer::enabled(&server, true);
    wait_until("the device is free", || next.read64(0x98) & 1 == 0);
}
