//! Messages that are none, and clients that stop: an error or the end, and the next one works.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Instant;

use ioasid_remote::Ended;
use ioasid_remote::vfio_user::ServeError;
use ioasid_remote::vfio_user::wire::{CommandId, DmaFlags, Header, RegionAccess, Version};
use zerocopy::IntoBytes;
use zerocopy::native_endian::{U16, U32, U64};

use crate::peer::{PATIENCE, Peer, memfd, server, wait_until};

/// Every command, with payloads that are wrong for it.
#[test]
fn a_wrong_command_is_refused_and_the_next_one_works() {
    let server = server("edu", &[]);
    let mut peer = Peer::enabled(&server, true);
    let file = memfd(0x1000, 0);
    for command in CommandId::ALL {
        let lengths: &[usize] = match command {
            CommandId::DeviceReset => &[],
            CommandId::DeviceFeature => &[0, 7],
            _ => &[0, 1, 3, 7],
        };
        for length in lengths {
            assert!(peer.call(command, &vec![0xFF; *length]).is_err(), "{command} of {length} bytes");
        }
        // Numbers that are as large as can be; these two have none that matters.
        if !matches!(command, CommandId::DeviceReset | CommandId::DeviceGetInfo) {
            assert!(peer.call(command, &[0xFF; 64]).is_err(), "{command} of ones");
        }
        let others = [file.as_fd(); 2];
        assert!(peer.call_with(command, &[0; 64], &others).is_err(), "{command} with descriptors");
        assert_eq!(peer.read(0, 0, 4), [0xed, 0, 0, 1], "after {command}");
    }
    for number in [0, 14, 19, 1000, u16::MAX] {
        let header = Header { command: U16::new(number), ..Header::command(9, CommandId::Version, 0) };
        peer.send_header(&header, &[], &[]);
        let (reply, ..) = crate::peer::receive(&peer.socket).unwrap();
        assert_eq!(reply, header.refusal(22));
    }
    let long = RegionAccess { offset: U64::new(0), region: U32::new(0), count: U32::new(1 << 20 | 1) };
    assert_eq!(peer.call(CommandId::RegionRead, long.as_bytes()), Err(22));
    assert_eq!(peer.map(0x1000, 0x1000, DmaFlags::READ, Some((&file, 0))), Ok(()));
}

#[test]
fn a_command_that_wants_no_reply_gets_none() {
    let mut peer = Peer::enabled(&server("edu", &[]), true);
    let access = RegionAccess { offset: U64::new(4), region: U32::new(0), count: U32::new(4) };
    let payload = [access.as_bytes(), &[1, 2, 3, 4]].concat();
    peer.send_header(&Header::command(1, CommandId::RegionWrite, payload.len()).without_reply(), &payload, &[]);
    // Nor does one that is refused.
    peer.send_header(&Header::command(2, CommandId::RegionRead, 3).without_reply(), &[0; 3], &[]);
    assert_eq!(peer.read(0, 4, 4), [!1, !2, !3, !4]);
}

#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    let server = server("edu", &[]);
    let header = Header::command(1, CommandId::DeviceReset, 0);
    for (bad, why) in [
        (Header { size: U32::new(15), ..header }, "15 bytes"),
        (Header { size: U32::new(u32::MAX), ..header }, "4294967295 bytes"),
        (Header { flags: U32::new(2), ..header }, "type 2"),
        (header.reply(0), "a reply to no command"),
    ] {
        let mut peer = Peer::new(&server, true);
        peer.send_header(&bad, &[], &[]);
        let ended = peer.ended().unwrap();
        assert!(ended.to_string().contains(why), "{ended}");
    }
    Peer::new(&server, true);
}

#[test]
fn who_does_not_begin_with_a_version_is_let_go() {
    let server = server("edu", &[]);
    let mut peer = Peer::silent(&server);
    peer.send(CommandId::DeviceReset, &[], &[]);
    assert!(matches!(peer.ended(), Err(ServeError::Ended(Ended::Protocol(_)))));
    let mut peer = Peer::silent(&server);
    let version = Version { major: 1, ..Version::with(Default::default()) };
    assert_eq!(peer.call(CommandId::Version, &version.encode()), Err(22));
    assert!(matches!(peer.ended(), Err(ServeError::Version(_))));
    let mut peer = Peer::silent(&server);
    assert_eq!(peer.call(CommandId::Version, b"\0\0\x01\0{\"capabilities\":[1"), Err(22));
    assert!(matches!(peer.ended(), Err(ServeError::Version(_))));
    // One that says nothing has so long.
    let start = Instant::now();
    assert!(matches!(Peer::silent(&server).ended(), Err(ServeError::Ended(Ended::Silent("VERSION", _)))));
    assert!(start.elapsed() >= PATIENCE);
    Peer::new(&server, true);
}

#[test]
fn one_that_stops_in_the_middle_is_given_up() {
    let server = server("edu", &[]);
    for (size, sent) in [(0, 5), (100, 16), (100, 60)] {
        let mut peer = Peer::new(&server, true);
        let mut message = Header::command(1, CommandId::RegionWrite, size).as_bytes().to_vec();
        message.resize(16 + size, 0);
        peer.socket.write_all(&message[..sent]).unwrap();
        assert!(matches!(peer.ended().unwrap(), Ended::Stalled), "{sent} of {} bytes", 16 + size);
    }
    // Or goes there.
    let mut peer = Peer::new(&server, true);
    peer.socket.write_all(&[0; 5]).unwrap();
    assert!(matches!(peer.end().unwrap(), Ended::Closed));
    Peer::new(&server, true);
}

#[test]
fn one_that_takes_no_replies_is_given_up() {
    let server = server("edu", &[]);
    let mut peer = Peer::new(&server, true);
    peer.socket.set_nonblocking(true).unwrap();
    let access = RegionAccess { offset: U64::new(0), region: U32::new(7), count: U32::new(4096) };
    let message = [Header::command(1, CommandId::RegionRead, 16).as_bytes(), access.as_bytes()].concat();
    // As many as fit, and again, until there is no room on either side.
    let start = Instant::now();
    while start.elapsed() < PATIENCE / 2 {
        let _ = peer.socket.write(&message);
    }
    assert!(matches!(peer.ended().unwrap(), Ended::Stalled | Ended::Closed | Ended::Protocol(_)));
    Peer::new(&server, true);
}

#[test]
fn what_a_client_passes_is_closed() {
    let server = server("edu", &[]);
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Other tests open and close, too: in the end there are as few as now.
    let before = count();
    let mut peer = Peer::new(&server, true);
    let file = memfd(0x1000, 0);
    for _ in 0..200 {
        let many = [file.as_fd(); 200];
        assert!(peer.call_with(CommandId::DeviceReset, &[], &many).is_err());
    }
    peer.map(0x1000, 0x1000, DmaFlags::READ, Some((&file, 0))).unwrap();
    drop((peer, file));
    wait_until("descriptors are closed", || count() < before + 200);
}

#[test]
fn thousands_of_mappings_of_a_file_take_one_descriptor() {
    let server = server("edu", &[]);
    let mut peer = Peer::new(&server, true);
    let file = memfd(0x1000, 0);
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = count();
    for page in 0..3000 {
        peer.map(page * 0x2000, 0x1000, DmaFlags::READ, Some((&file, 0))).unwrap();
    }
    assert!(count() < before + 1000, "{before} before, {} now", count());
    peer.unmap(0, 0, 2).unwrap();
}
