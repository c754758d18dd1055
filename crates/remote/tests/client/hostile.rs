//! Servers that lie, stall, flood, refuse and go: the device is gone then, the memory is as it was, and nobody waits
//! longer than was said.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ioasid::{Access, UnmapError};
use ioasid_remote::Ended;
use ioasid_remote::vfio_user::wire::{
    Capabilities, CommandId, DeviceInfo, DmaAccess, Header, IrqInfo, Kind, RegionAccess, RegionInfo, Version,
};
use ioasid_remote::vfio_user::{ClientOptions, ConnectError, MemoryBy, Remote};
use zerocopy::native_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::bench::{Bench, Listening, PATIENCE, bytes, memory, options, wait_until};

/// Answers a client as a server with a small device does, but for what `wrong` says: whether it has taken care of a
/// message itself.
pub fn serve(socket: OwnedFd, wrong: impl Fn(&UnixStream, &Header, &[u8]) -> bool) {
    let mut socket = UnixStream::from(socket);
    let mut header = [0; 16];
    while socket.read_exact(&mut header).is_ok() {
        let header = Header::read_from_bytes(&header).unwrap();
        let mut payload = vec![0; header.payload().unwrap()];
        if socket.read_exact(&mut payload).is_err() {
            return;
        }
        if wrong(&socket, &header, &payload) || header.kind() == Ok(Kind::Command { wants_reply: false }) {
            continue;
        }
        let reply = answer(&header, &payload);
        if socket.write_all(&[header.reply(reply.len()).as_bytes(), &reply].concat()).is_err() {
            return;
        }
    }
}

/// What a server with a device of one BAR of 4 KiB says.
fn answer(header: &Header, payload: &[u8]) -> Vec<u8> {
    match CommandId::from_number(header.command.get()).unwrap() {
        CommandId::Version => Version::with(Capabilities { max_msg_fds: 8, ..Capabilities::default() }).encode(),
        CommandId::DeviceGetInfo => {
            let [argsz, flags, regions, irqs] = [16, 3, 9, 5].map(U32::new);
            DeviceInfo { argsz, flags, regions, irqs }.as_bytes().to_vec()
        }
        CommandId::DeviceGetRegionInfo => {
            let info = RegionInfo::read_from_bytes(payload).unwrap();
            let size = [4096, 0, 0, 0, 0, 0, 0, 256][info.index.get() as usize];
            RegionInfo { size: U64::new(size), ..info }.as_bytes().to_vec()
        }
        CommandId::DeviceGetIrqInfo => {
            IrqInfo { count: U32::new(1), flags: U32::new(1), ..IrqInfo::read_from_bytes(payload).unwrap() }
                .as_bytes()
                .to_vec()
        }
        CommandId::RegionRead => {
            let access = RegionAccess::read_from_bytes(payload).unwrap();
            let mut data = vec![0; access.count.get() as usize];
            if (access.region.get(), access.offset.get()) == (7, 0) {
                data.copy_from_slice(&[0x34, 0x12, 0x78, 0x56]);
            }
            [access.as_bytes(), &data].concat()
        }
        CommandId::DmaUnmap => payload.to_vec(),
        _ => Vec::new(),
    }
}

/// A server that answers some commands with what is in `input`, and the others as it should.
pub fn anything(input: Vec<u8>) -> Listening {
    let input = Mutex::new(VecDeque::from(input));
    Listening::with(move |socket| {
        serve(socket, |mut socket, header, _| {
            let mut input = input.lock().unwrap();
            let Some(how) = input.pop_front().filter(|how| how % 4 == 0) else { return false };
            let length = input.pop_front().map_or(0, usize::from).min(input.len());
            let payload: Vec<u8> = input.drain(..length).collect();
            let reply = header.reply(payload.len());
            let head = match how / 4 % 4 {
                0 => reply.as_bytes().to_vec(),
                1 => Header { id: (header.id.get() ^ 1).into(), ..reply }.as_bytes().to_vec(),
                2 => header.refusal(how.into()).as_bytes().to_vec(),
                _ => Vec::new(),
            };
            let _ = socket.write_all(&[head, payload].concat());
            true
        });
    })
}

/// Does with a server's device what programs do, whatever comes of it.
pub fn use_whatever(server: &Listening, memory_by: MemoryBy) {
    let options = ClientOptions { patience: Duration::from_millis(20), ..options(server, memory_by) };
    let Ok(remote) = Remote::connect(options) else { return };
    let Ok(bench) = Bench::of(remote) else { return };
    let file = memory(0x2000, 1);
    for round in 0..4 {
        let _ = bench.map_file(0x1000, &file, Access::all());
        let mut data = [0; 4];
        let _ = bench.session().mapped_read(round * 4, &mut data);
        let _ = bench.session().mapped_write(round * 4, &data);
        let _ = bench.unmap(0x1000, 0x2000);
    }
    let _ = bench.device.detach(None);
}

/// Servers that say anything, beside one whose device is driven all the while: that one is as if it were alone.
#[test]
fn servers_that_say_anything_are_nothing_to_another() {
    let seconds = std::env::var("IOASID_REMOTE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut served, mut moved) = (0u64, 0u64);
    std::thread::scope(|scope| {
        let wrong = scope.spawn(move || {
            let mut random = fastrand::Rng::with_seed(21);
            let mut served = 0;
            while Instant::now() < end {
                let length = random.usize(0..200);
                let input = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
                let how = [MemoryBy::Tables, MemoryBy::Files, MemoryBy::Messages][length % 3];
                use_whatever(&anything(input), how);
                served += 1;
            }
            served
        });
        let server = Listening::to("edu");
        let options = ClientOptions { patience: Duration::from_secs(10), ..options(&server, MemoryBy::Tables) };
        let bench = Bench::new(options);
        while Instant::now() < end {
            let file = memory(0x2000, moved as u8);
            bench.map_file(0x10_0000, &file, Access::all()).unwrap();
            bench.dma(0x10_0000, 4096, false);
            bench.dma(0x10_1000, 4095, true);
            assert_eq!(bytes(&file, 0x1000, 4096), vec![moved as u8; 4096]);
            bench.unmap(0x10_0000, 0x2000).unwrap();
            moved += 1;
        }
        assert_eq!(*bench.ended.lock().unwrap(), [""; 0]);
        served = wrong.join().unwrap();
    });
    println!("{served} servers that say anything; {moved} transfers");
    assert!(served > 10 && moved > 10, "{served} {moved}");
}

fn is(header: &Header, command: CommandId) -> bool {
    header.command.get() == command as u16
}

fn connect(server: &Listening) -> Result<Arc<Remote>, ConnectError> {
    Remote::connect(options(server, MemoryBy::Tables))
}

#[test]
fn a_server_that_does_not_say_what_it_has_to_say_has_no_device() {
    for command in [CommandId::Version, CommandId::DeviceGetInfo, CommandId::DeviceGetRegionInfo, CommandId::RegionRead]
    {
        // It refuses; gives too little; says nothing; goes; answers something else.
        for how in 0..5 {
            let server = Listening::with(move |socket| {
                serve(socket, |mut socket, header, _| {
                    if !is(header, command) {
                        return false;
                    }
                    let message = match how {
                        0 => header.refusal(22).as_bytes().to_vec(),
                        1 => [header.reply(1).as_bytes(), &[0]].concat(),
                        2 => Vec::new(),
                        3 => {
                            let _ = socket.shutdown(std::net::Shutdown::Both);
                            Vec::new()
                        }
                        _ => Header { id: (header.id.get() ^ 1).into(), ..header.reply(0) }.as_bytes().to_vec(),
                    };
                    let _ = socket.write_all(&message);
                    true
                });
            });
            let start = Instant::now();
            let error = connect(&server).unwrap_err();
            assert!(start.elapsed() < PATIENCE * 10, "{command} {how}: {error}");
            assert!(!error.to_string().is_empty());
        }
    }
    let nobody = Listening::with(drop);
    std::fs::remove_file(&nobody.path).unwrap();
    assert!(matches!(connect(&nobody), Err(ConnectError::Connect(..))));
}

#[test]
fn a_server_that_takes_its_time_for_each_answer_has_no_more_for_all() {
    for command in [CommandId::DeviceGetIrqInfo, CommandId::RegionRead] {
        let answered = Arc::new(AtomicU32::new(0));
        let count = answered.clone();
        let server = Listening::with(move |socket| {
            serve(socket, |_, header, _| {
                if is(header, command) {
                    count.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(PATIENCE * 9 / 10);
                }
                false
            });
        });
        match command {
            // There are three.
            CommandId::DeviceGetIrqInfo => drop(connect(&server).unwrap()),
            _ => assert!(matches!(connect(&server), Err(ConnectError::Ended(Ended::Silent(..))))),
        }
        assert!((3..8).contains(&answered.load(Ordering::SeqCst)));
    }
}

#[test]
fn a_server_may_have_for_ever_and_no_time_at_all() {
    let server = Listening::to("edu");
    for patience in [Duration::MAX, Duration::ZERO] {
        // Nothing panics; in a millisecond it may have answered or not.
        let options = ClientOptions { patience, ..options(&server, MemoryBy::Tables) };
        let connected = Remote::connect(options);
        assert!(connected.is_ok() || patience.is_zero(), "{patience:?}");
    }
}

/// A server that is right until a command comes, and then does something else.
fn wrong_at(command: CommandId, what: impl Fn(&UnixStream, &Header, &[u8]) + Send + Sync + 'static) -> Listening {
    let what = Arc::new(what);
    Listening::with(move |socket| {
        let what = what.clone();
        std::thread::spawn(move || {
            serve(socket, |socket, header, payload| {
                let is_it = is(header, command);
                if is_it {
                    what(socket, header, payload);
                }
                is_it
            });
        });
    })
}

#[test]
fn a_server_that_goes_takes_its_device_out() {
    let server = wrong_at(CommandId::DeviceSetIrqs, |socket, _, _| {
        let _ = socket.shutdown(std::net::Shutdown::Both);
    });
    let bench = Bench::new(options(&server, MemoryBy::Tables));
    let file = memory(0x1000, 1);
    bench.map_file(0x1000, &file, Access::all()).unwrap();
    bench.set_irqs(0, ioasid_vfio::device::irq::IrqActions::TRIGGER, Some(&crate::bench::counter()));
    wait_until("it is gone", || {
        bench.read(0);
        bench.is_gone()
    });
    wait_until("it is said", || !bench.ended.lock().unwrap().is_empty());
    assert!(bench.ended.lock().unwrap()[0].contains("closed"));
    // This process is the server's, and lives: what it was passed it may reach still, which is said.
    let start = Instant::now();
    assert!(matches!(bench.unmap(0x1000, 0x1000), Err(UnmapError::Mirror(_))));
    assert!(start.elapsed() >= PATIENCE && start.elapsed() < PATIENCE * 10);
    bench.map_file(0x8000, &file, Access::all()).unwrap();
    bench.unmap(0x8000, 0x1000).unwrap();
    assert_eq!(bytes(&file, 0, 4), [1; 4]);
}

#[test]
fn a_server_that_was_passed_no_files_can_be_unmapped_whatever_it_does() {
    for how in 0..3 {
        let server = wrong_at(CommandId::DmaUnmap, move |mut socket, header, _| {
            let _ = match how {
                0 => socket.write_all(header.refusal(16).as_bytes()),
                1 => socket.shutdown(std::net::Shutdown::Both),
                // It says nothing.
                _ => Ok(()),
            };
        });
        let bench = Bench::new(options(&server, MemoryBy::Messages));
        let file = memory(0x1000, 1);
        bench.map_file(0x1000, &file, Access::all()).unwrap();
        let start = Instant::now();
        bench.unmap(0x1000, 0x1000).unwrap();
        assert!(start.elapsed() < PATIENCE * 10);
        wait_until("it is gone", || {
            bench.read(0);
            bench.is_gone()
        });
        bench.device.detach(None).unwrap();
    }
}

#[test]
fn a_server_that_refuses_a_mapping_refuses_it_for_the_address_space() {
    let server = wrong_at(CommandId::DmaMap, |mut socket, header, _| {
        let _ = socket.write_all(header.refusal(28).as_bytes());
    });
    let bench = Bench::new(options(&server, MemoryBy::Tables));
    assert!(bench.map_file(0x1000, &memory(0x1000, 1), Access::all()).is_err());
    assert!(bench.ioas.areas().is_empty());
    assert_eq!(bench.read(0), 0);
}

#[test]
fn what_a_server_asks_for_is_checked_as_any_dma() {
    let done = Arc::new(AtomicBool::new(false));
    let seen = done.clone();
    // At a register write, it reads and writes what it likes, and takes the replies as they come.
    let server = wrong_at(CommandId::RegionWrite, move |mut socket, header, payload| {
        if payload[8] == 7 {
            let _ = socket.write_all(&[header.reply(16).as_bytes(), &payload[..16]].concat());
            return;
        }
        let mut ask = |command, address, count: u64, data: &[u8]| {
            let access = DmaAccess { address: U64::new(address), count: U64::new(count) };
            let header = Header::command(9, command, 16 + data.len());
            let _ = socket.write_all(&[header.as_bytes(), access.as_bytes(), data].concat());
            let mut reply = [0; 16];
            socket.read_exact(&mut reply).unwrap();
            let reply = Header::read_from_bytes(&reply).unwrap();
            let mut rest = vec![0; reply.payload().unwrap()];
            socket.read_exact(&mut rest).unwrap();
            (reply.kind().unwrap(), rest)
        };
        let refused = |errno| Kind::Reply { error: Some(errno) };
        assert_eq!(ask(CommandId::DmaRead, 0x1000, 4, &[]).1[16..], [1; 4]);
        assert_eq!(ask(CommandId::DmaRead, 0x1ffe, 4, &[]).0, refused(14));
        assert_eq!(ask(CommandId::DmaRead, u64::MAX, 4, &[]).0, refused(14));
        assert_eq!(ask(CommandId::DmaWrite, 0x1000, 4, &[7; 4]).0, refused(14));
        assert_eq!(ask(CommandId::DmaRead, 0x1000, u64::MAX, &[]).0, refused(22));
        assert_eq!(ask(CommandId::DmaWrite, 0x1000, 4, &[7; 3]).0, refused(22));
        assert_eq!(ask(CommandId::DeviceReset, 0, 0, &[]).0, refused(22));
        seen.store(true, Ordering::SeqCst);
    });
    let bench = Bench::new(options(&server, MemoryBy::Tables));
    let file = memory(0x1000, 1);
    bench.map_file(0x1000, &file, Access::READ).unwrap();
    bench.write(0, 1);
    wait_until("it has asked", || done.load(Ordering::SeqCst));
    assert_eq!(bytes(&file, 0, 4), [1; 4]);
}

#[test]
fn a_server_that_floods_is_cut_off() {
    let server = wrong_at(CommandId::RegionRead, |mut socket, header, payload| {
        // Configuration space is there; a register is answered by noise.
        if payload[8] == 7 {
            let reply = answer(header, payload);
            let _ = socket.write_all(&[header.reply(reply.len()).as_bytes(), &reply].concat());
            return;
        }
        let access = DmaAccess { address: U64::new(0x1000), count: U64::new(1 << 20) };
        let message = [Header::command(1, CommandId::DmaRead, 16).as_bytes(), access.as_bytes()].concat();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) && socket.write_all(&message).is_ok() {}
    });
    let bench = Bench::new(options(&server, MemoryBy::Tables));
    let start = Instant::now();
    wait_until("it is gone", || {
        bench.read(0);
        bench.is_gone()
    });
    assert!(start.elapsed() < PATIENCE * 20);
}

#[test]
fn a_server_that_went_is_looked_for_when_the_device_is_closed_and_opened() {
    for how in [MemoryBy::Messages, MemoryBy::Files] {
        let passes_files = how == MemoryBy::Files;
        let server = wrong_at(CommandId::DeviceSetIrqs, |socket, _, _| {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        });
        let mut bench = Bench::new(options(&server, how));
        bench.map_file(0x1000, &memory(0x1000, 1), Access::all()).unwrap();
        bench.set_irqs(0, ioasid_vfio::device::irq::IrqActions::TRIGGER, Some(&crate::bench::counter()));
        wait_until("it is gone", || bench.is_gone());
        // Not while something is mapped for the one that went.
        bench.session().reset();
        assert!(bench.is_gone());
        bench.device.detach(None).unwrap();
        drop(bench.session.take());
        bench.session = Some(bench.vfio.open().unwrap());
        bench.enable();
        // Nor while it may reach what it was passed, as its process is this one.
        assert_eq!(bench.is_gone(), passes_files);
        if !passes_files {
            assert_eq!(bench.read(0), 0);
            assert!(server.served.load(Ordering::SeqCst) >= 2);
        }
        let _ = bench.device.attach(None, &bench.ioas);
        assert_eq!(bench.unmap(0x1000, 0x1000).is_err(), passes_files);
    }
}

/// A server that signals its line as it is given an eventfd, and whose line does not mask itself.
#[test]
fn an_interrupt_of_the_moment_is_not_lost() {
    for automasked in [true, false] {
        let server = Listening::with(move |socket| {
            let socket = UnixStream::from(socket);
            let (fds, twice) = (std::cell::RefCell::new(None), std::cell::Cell::new(0));
            serve_with_descriptors(socket, |mut socket, header, payload, descriptors| {
                if is(header, CommandId::DeviceGetIrqInfo) {
                    let info = IrqInfo::read_from_bytes(payload).unwrap();
                    let flags = U32::new(if automasked { 7 } else { 1 });
                    let info = IrqInfo { count: U32::new(1), flags, ..info };
                    let _ = socket.write_all(&[header.reply(16).as_bytes(), info.as_bytes()].concat());
                    return true;
                }
                if let Some(fd) = descriptors.pop() {
                    let one = 1u64.to_ne_bytes();
                    rustix::io::write(&fd, &one).unwrap();
                    if !automasked {
                        std::thread::sleep(Duration::from_millis(20));
                        rustix::io::write(&fd, &one).unwrap();
                    }
                    *fds.borrow_mut() = Some(fd);
                } else if is(header, CommandId::DeviceSetIrqs) && payload[4] & 0x10 != 0 && twice.get() < 3 {
                    // It is up still.
                    twice.set(twice.get() + 1);
                    rustix::io::write(fds.borrow().as_ref().unwrap(), &1u64.to_ne_bytes()).unwrap();
                }
                false
            });
        });
        let bench = Bench::new(options(&server, MemoryBy::Tables));
        let line = crate::bench::counter();
        bench.set_irqs(0, ioasid_vfio::device::irq::IrqActions::TRIGGER, Some(&line));
        wait_until("the line has signalled", || crate::bench::signals(&line) == 1);
        if !automasked {
            std::thread::sleep(Duration::from_millis(100));
        }
        bench.set_irqs(0, ioasid_vfio::device::irq::IrqActions::UNMASK, None);
        wait_until("the line has signalled again", || crate::bench::signals(&line) == 1);
    }
}

/// As [`serve`], with the descriptors beside each message.
fn serve_with_descriptors(
    mut socket: UnixStream,
    wrong: impl Fn(&UnixStream, &Header, &[u8], &mut Vec<OwnedFd>) -> bool,
) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    loop {
        let mut header = [0; 16];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        let received = recvmsg(&socket, &mut [std::io::IoSliceMut::new(&mut header)], &mut ancillary, flags);
        if !received.is_ok_and(|received| received.bytes == 16) {
            return;
        }
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let header = Header::read_from_bytes(&header).unwrap();
        let mut payload = vec![0; header.payload().unwrap()];
        if socket.read_exact(&mut payload).is_err() {
            return;
        }
        if wrong(&socket, &header, &payload, &mut descriptors)
            || header.kind() == Ok(Kind::Command { wants_reply: false })
        {
            continue;
        }
        let reply = answer(&header, &payload);
        if socket.write_all(&[header.reply(reply.len()).as_bytes(), &reply].concat()).is_err() {
            return;
        }
    }
}
