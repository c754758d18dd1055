//! What a client learns of the device, its registers and its interrupts.

use std::os::fd::{AsFd, OwnedFd};

use ioasid_remote::vfio_user::wire::{CommandId, DeviceInfo, Feature, IoFds, IrqInfo, RegionInfo, WriteMulti};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::native_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::peer::{Peer, server, wait_until};

fn signals(eventfd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(eventfd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

fn counter() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

#[test]
fn a_client_learns_what_the_device_is() {
    let mut peer = Peer::new(&server("edu", &[]), true);
    let info = DeviceInfo { argsz: U32::new(16), ..DeviceInfo::default() };
    let reply = peer.call(CommandId::DeviceGetInfo, info.as_bytes()).unwrap();
    let info = DeviceInfo::read_from_bytes(&reply).unwrap();
    assert_eq!([info.argsz, info.flags, info.regions, info.irqs].map(U32::get), [16, 3, 9, 5]);
    let sizes = (0..9).map(|index| {
        let info = RegionInfo { argsz: U32::new(32), index: U32::new(index), ..RegionInfo::default() };
        let reply = peer.call(CommandId::DeviceGetRegionInfo, info.as_bytes());
        reply.map(|reply| {
            let info = RegionInfo::read_from_bytes(&reply).unwrap();
            assert_eq!((info.argsz.get(), info.index.get(), info.offset.get()), (32, index, 0));
            (info.size.get(), info.flags.get())
        })
    });
    let none = Ok((0, 0));
    assert_eq!(
        sizes.collect::<Vec<_>>(),
        [Ok((1 << 20, 3)), none, none, none, none, none, none, Ok((4096, 3)), Err(22)]
    );
    let counts = (0..6).map(|index| {
        let info = IrqInfo { argsz: U32::new(16), index: U32::new(index), ..IrqInfo::default() };
        let reply = peer.call(CommandId::DeviceGetIrqInfo, info.as_bytes());
        reply.map(|reply| IrqInfo::read_from_bytes(&reply).unwrap().count.get())
    });
    assert_eq!(counts.collect::<Vec<_>>(), [Ok(1), Ok(1), Ok(0), Ok(1), Ok(1), Err(22)]);
    assert_eq!(peer.read(7, 0, 4), [0x34, 0x12, 0xe8, 0x11]);
    let none = IoFds { argsz: U32::new(16), ..IoFds::default() };
    assert_eq!(peer.call(CommandId::DeviceGetRegionIoFds, none.as_bytes()).unwrap(), none.as_bytes());
    // Nothing to be had beyond a reset, and nothing to be moved elsewhere.
    let feature = Feature { argsz: U32::new(8), flags: U32::new(1 << 18 | 1) };
    assert_eq!(peer.call(CommandId::DeviceFeature, feature.as_bytes()), Err(25));
    assert_eq!(peer.call(CommandId::MigDataRead, &[0; 8]), Err(22));
}

#[test]
fn a_client_without_room_is_told_how_much_is_needed() {
    let mut peer = Peer::new(&server("edu", &[]), false);
    let info = RegionInfo { argsz: U32::new(8), ..RegionInfo::default() };
    assert_eq!(peer.call(CommandId::DeviceGetRegionInfo, info.as_bytes()), Err(22));
}

#[test]
fn registers_are_read_and_written() {
    let mut peer = Peer::enabled(&server("edu", &[]), true);
    assert_eq!(peer.read(0, 0, 4), [0xed, 0, 0, 1]);
    peer.write(0, 4, &0x1234_5678u32.to_le_bytes());
    assert_eq!(peer.read(0, 4, 4), (!0x1234_5678u32).to_le_bytes());
    // Several at once, of which those up to the first that is refused are done.
    let write = |offset, region, value: u32| WriteMulti {
        offset: U64::new(offset),
        region: U32::new(region),
        count: U32::new(4),
        data: u64::from(value).to_le_bytes(),
    };
    let mut multi = U64::new(3).as_bytes().to_vec();
    for each in [write(4, 0, 1), write(4, 0, 2), write(0, 3, 0)] {
        multi.extend(each.as_bytes());
    }
    assert_eq!(peer.call(CommandId::RegionWriteMulti, &multi), Ok(2u64.to_ne_bytes().to_vec()));
    assert_eq!(peer.read(0, 4, 4), (!2u32).to_le_bytes());
    peer.call(CommandId::DeviceReset, &[]).unwrap();
    assert_eq!(peer.read(0, 4, 4), [0; 4]);
    assert_eq!((peer.try_read(1, 0, 4), peer.try_read(0, 1 << 20, 4)), (Err(22), Err(22)));
    assert_eq!(peer.try_read(0, 1 << 40, 4), Err(22));
    assert_eq!(peer.try_read(u32::MAX, 0, 4), Err(22));
}

#[test]
fn a_device_interrupts_by_eventfds() {
    let mut peer = Peer::enabled(&server("edu", &[]), true);
    let (message, line) = (counter(), counter());
    const EVENTFD: u32 = 0x24;
    peer.set_irqs([1, 0, 1, EVENTFD], &[message.as_fd()]).unwrap();
    peer.write(0, 0x60, &1u32.to_le_bytes());
    assert_eq!(signals(&message), 1);
    peer.write(0, 0x64, &1u32.to_le_bytes());
    // None beside the message takes it away.
    peer.set_irqs([1, 0, 1, EVENTFD], &[]).unwrap();
    peer.write(0, 0x60, &1u32.to_le_bytes());
    assert_eq!(signals(&message), 0);
    peer.write(0, 0x64, &1u32.to_le_bytes());
    peer.set_irqs([1, 0, 0, 0x21], &[]).unwrap();
    // The line stays up until it is acknowledged, and is masked once it has signalled.
    peer.set_irqs([0, 0, 1, EVENTFD], &[line.as_fd()]).unwrap();
    peer.write(0, 0x60, &1u32.to_le_bytes());
    assert_eq!(signals(&line), 1);
    peer.set_irqs([0, 0, 1, 0x11], &[]).unwrap();
    assert_eq!(signals(&line), 1);
    peer.write(0, 0x64, &1u32.to_le_bytes());
    peer.set_irqs([0, 0, 1, 0x11], &[]).unwrap();
    assert_eq!(signals(&line), 0);
    // What is no eventfd is none.
    let file = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(peer.set_irqs([0, 0, 1, EVENTFD], &[file.as_fd()]), Err(22));
}

#[test]
fn the_next_client_finds_the_device_as_after_power_on() {
    let server = server("edu", &[]);
    let mut first = Peer::enabled(&server, true);
    first.write(0, 4, &7u32.to_le_bytes());
    let message = counter();
    first.set_irqs([1, 0, 1, 0x24], &[message.as_fd()]).unwrap();
    // It is the only one meanwhile.
    let second = Peer::silent(&server);
    drop(second);
    first.end().unwrap();
    let mut next = Peer::enabled(&server, false);
    assert_eq!(next.read(0, 4, 4), [0; 4]);
    next.write(0, 0x60, &1u32.to_le_bytes());
    wait_until("nothing is signalled", || signals(&message) == 0);
}
