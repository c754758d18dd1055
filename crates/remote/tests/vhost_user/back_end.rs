//! Our back end, and front ends that are right and wrong.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ioasid::Access;
use ioasid_remote::vhost_user::wire::{
    BackendRequest, ConfigHead, Header, IotlbKind, IotlbMessage, MAX_PAYLOAD, RequestId, SingleRegion, VringFile,
    feature,
};
use zerocopy::IntoBytes;
use zerocopy::native_endian::{U32, U64};

use crate::driver::{DATA, FEATURES, Front, GUEST, LENGTH, PROTOCOL, USER, counter, disk, region, state, table};
use crate::peer::{PATIENCE, receive, reply_number, send, wait_until};

#[test]
fn a_disk_is_written_and_read_and_goes_on_where_it_was() {
    let (back_end, mut random) = (disk(), fastrand::Rng::with_seed(3));
    let mut front = Front::at_work(&back_end);
    for _ in 0..20 {
        front.check(&mut random);
        // Out of the ring and in again.
        let base = front.ask(RequestId::GetVringBase, state(0, 0).as_bytes(), &[]).unwrap();
        assert_eq!(base >> 32, u64::from(front.word(0x2002)));
        front.set_up();
    }
    assert_eq!(front.ended().to_string(), "the peer has closed the connection");
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let (back_end, mut random) = (disk(), fastrand::Rng::with_seed(4));
    let mut front = Front::at_work(&back_end);
    let memory = front.memory.clone();
    let (file, pair, call) = (memory.as_fd(), UnixStream::pair().unwrap(), counter());
    let no_memory = pair.0.as_fd();
    let number = |number: u64| number.to_ne_bytes().to_vec();
    let vring = |index: u8, has_file| number(VringFile { index, has_file }.encode());
    let single = |region| SingleRegion { padding: U64::new(0), region }.as_bytes().to_vec();
    let config = |offset: u32, size: u32, bytes: usize| {
        let head = ConfigHead { offset: U32::new(offset), size: U32::new(size), flags: U32::new(0) };
        [head.as_bytes(), &vec![0; bytes]].concat()
    };
    let iotlb = |kind: u8, iova: u64, size: u64, user: u64| {
        let message = IotlbMessage::new(IotlbKind::Update, iova, size, user, Access::all());
        IotlbMessage { kind, ..message }.as_bytes().to_vec()
    };
    let one = region(GUEST, LENGTH, USER, 0);
    let overlapping = [one, region(GUEST + 0x1000, 0x1000, USER + LENGTH, 0)];
    let cases: Vec<(RequestId, Vec<u8>, Vec<BorrowedFd<'_>>)> = vec![
        // Features that there are not.
        (RequestId::SetFeatures, number(FEATURES | 1 << 60), vec![]),
        (RequestId::SetFeatures, vec![0; 7], vec![]),
        (RequestId::SetProtocolFeatures, number(1 << 40), vec![]),
        // Memory: too many, too few descriptors, none that is memory, that wraps, that is in its own way, too long.
        (RequestId::SetMemTable, table(&[one]), vec![]),
        (RequestId::SetMemTable, table(&[one]), vec![file, file]),
        (RequestId::SetMemTable, table(&[one]), vec![no_memory]),
        (RequestId::SetMemTable, table(&[one; 9]), vec![file; 9]),
        (RequestId::SetMemTable, table(&[region(u64::MAX, LENGTH, USER, 0)]), vec![file]),
        (RequestId::SetMemTable, table(&[region(GUEST, 0, USER, 0)]), vec![file]),
        (RequestId::SetMemTable, table(&[region(GUEST, LENGTH, USER, u64::MAX)]), vec![file]),
        (RequestId::SetMemTable, table(&overlapping), vec![file; 2]),
        (RequestId::SetMemTable, table(&[one])[..20].to_vec(), vec![file]),
        (RequestId::AddMemReg, single(overlapping[1]), vec![file]),
        (RequestId::AddMemReg, single(region(0, LENGTH, 0, 0)), vec![]),
        (RequestId::RemMemReg, single(overlapping[1]), vec![]),
        // Rings: that there are not, of no size, without what they need.
        (RequestId::SetVringNum, state(1, 64).as_bytes().to_vec(), vec![]),
        (RequestId::SetVringNum, state(0, 0).as_bytes().to_vec(), vec![]),
        (RequestId::SetVringNum, state(0, 63).as_bytes().to_vec(), vec![]),
        (RequestId::SetVringNum, state(0, 1 << 16).as_bytes().to_vec(), vec![]),
        (RequestId::SetVringBase, state(u32::MAX, 0).as_bytes().to_vec(), vec![]),
        (RequestId::SetVringEnable, state(7, 1).as_bytes().to_vec(), vec![]),
        (RequestId::SetVringAddr, vec![0; 39], vec![]),
        (RequestId::SetVringKick, vring(0, false), vec![]),
        (RequestId::SetVringKick, vring(0, true), vec![]),
        (RequestId::SetVringKick, vring(0, true), vec![file]),
        (RequestId::SetVringKick, vring(3, true), vec![call.as_fd()]),
        (RequestId::SetVringCall, vring(0, true), vec![file]),
        (RequestId::SetVringErr, vring(0, true), vec![no_memory]),
        (RequestId::SetVringCall, number(1 << 9), vec![]),
        // What is not offered, and what there is not.
        (RequestId::SetConfig, config(0, 4, 4), vec![]),
        (RequestId::GetConfig, config(0, 4, 3), vec![]),
        (RequestId::GetConfig, config(u32::MAX, 4, 4), vec![]),
        (RequestId::SetStatus, number(1), vec![]),
        (RequestId::GetInflightFd, vec![0; 24], vec![]),
        (RequestId::SetInflightFd, vec![0; 24], vec![file]),
        (RequestId::SetBackendReqFd, vec![], vec![]),
        (RequestId::SetBackendReqFd, vec![], vec![file]),
        // Translations of no kind, and where there are none.
        (RequestId::IotlbMsg, iotlb(0, 0, 4096, USER), vec![]),
        (RequestId::IotlbMsg, iotlb(1, 0, 4096, USER), vec![]),
        (RequestId::IotlbMsg, iotlb(9, 0, 4096, USER), vec![]),
        (RequestId::IotlbMsg, iotlb(2, 0x5000_0000, 4096, 0x1234), vec![]),
        (RequestId::IotlbMsg, iotlb(2, 0x5000_0123, 4096, USER), vec![]),
    ];
    for (number, (id, payload, files)) in cases.iter().enumerate() {
        let answer = front.ask(*id, payload, files).unwrap_or_else(|| panic!("{number}: {id} ended it"));
        assert_ne!(answer, 0, "{number}: {id}");
        front.check(&mut random);
    }
    // A request that there is not.
    for request in [0, 6, 19, 33, 99, u32::MAX] {
        assert!(send(&front.socket, Header::request(request, 0, true), &[], &[]));
        assert_eq!(receive(&front.socket).unwrap().number(), 1);
    }
    front.check(&mut random);
    drop(front);
    // Where nobody is told that something was refused, that is the end; the next front end has a disk that works.
    for (id, payload, files) in &cases {
        let front = Front::new(&back_end);
        front.agree();
        front.set_up();
        assert!(front.say(*id, payload, files));
        let before = Instant::now();
        let is_over = || receive(&front.socket).is_none();
        assert!(is_over() && before.elapsed() < PATIENCE, "{id}");
        assert!(front.ended().to_string().starts_with("the peer broke the protocol: "), "{id}");
    }
    Front::at_work(&back_end).check(&mut random);
}

#[test]
fn messages_that_are_none_end_it_and_the_next_front_end_has_a_disk() {
    let (back_end, mut random) = (disk(), fastrand::Rng::with_seed(5));
    let good = Header::request(1, 0, false);
    let long = U32::new(MAX_PAYLOAD as u32 + 1);
    for (header, words) in [
        (Header { flags: U32::new(0), ..good }, "a message of version 0"),
        (Header { flags: U32::new(3), ..good }, "a message of version 3"),
        (Header { size: long, ..good }, "a message with 4097 bytes"),
        (Header { size: U32::new(u32::MAX), ..good }, "a message with 4294967295 bytes"),
        (good.reply(0), "a reply to no command"),
    ] {
        let front = Front::at_work(&back_end);
        assert!(send(&front.socket, header, &[], &[]));
        assert!(receive(&front.socket).is_none());
        let ended = front.ended().to_string();
        assert!(ended.contains(words), "{ended}");
    }
    // One that stops in the middle.
    let front = Front::at_work(&back_end);
    let start = Instant::now();
    assert!(send(&front.socket, Header { size: U32::new(8), ..Header::request(2, 0, true) }, &[1, 2], &[]));
    assert!(receive(&front.socket).is_none());
    assert!(start.elapsed() < PATIENCE * 4);
    assert_eq!(front.ended().to_string(), "the peer stopped in the middle of a message");
    // One that takes no replies.
    let front = Front::at_work(&back_end);
    let start = Instant::now();
    while send(&front.socket, Header::request(1, 0, true), &[], &[]) {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(front.ended().to_string(), "the peer stopped in the middle of a message");
    Front::at_work(&back_end).check(&mut random);
}

#[test]
fn memory_that_is_cut_short_is_refused_until_it_is_passed_again() {
    let (back_end, mut random) = (disk(), fastrand::Rng::with_seed(6));
    let mut front = Front::at_work(&back_end);
    for length in [DATA, 0x1000, 0] {
        front.check(&mut random);
        front.memory.set_len(length).unwrap();
        let _ = rustix::io::write(&front.kick, &1u64.to_ne_bytes());
        if length == DATA {
            front.offer(0, 0, GUEST + DATA, 4096);
        }
        wait_until("the error is told", || rustix::io::read(&front.error, &mut [0; 8]).is_ok());
        // Nothing that is in it is done, and nothing else is waited for.
        assert_eq!(front.ask(RequestId::SetOwner, &[], &[]), Some(0));
        front.memory.set_len(LENGTH).unwrap();
        front.begin_anew();
    }
    drop(front);
    Front::at_work(&back_end).check(&mut random);
}

/// A front end whose addresses are translated, and the socket by which it is asked.
fn translated(back_end: &std::sync::Arc<ioasid_remote::vhost_user::BackEnd>) -> (Front, UnixStream) {
    let front = Front::new(back_end);
    let (here, there) = UnixStream::pair().unwrap();
    assert!(front.say(RequestId::SetProtocolFeatures, &PROTOCOL.to_ne_bytes(), &[]));
    assert_eq!(front.ask(RequestId::SetBackendReqFd, &[], &[there.as_fd()]), Some(0));
    let features = FEATURES | feature::ACCESS_PLATFORM;
    assert_eq!(front.ask(RequestId::SetFeatures, &features.to_ne_bytes(), &[]), Some(0));
    (front, here)
}

/// Answers what the back end asks for, until it has asked for `last`.
fn answer_misses(front: &Front, events: &UnixStream, last: u64) {
    loop {
        let message = receive(events).unwrap();
        let BackendRequest::Miss(miss) = BackendRequest::decode(1, &message.payload).unwrap() else { panic!() };
        let iova = miss.iova.get();
        let update = IotlbMessage::new(IotlbKind::Update, iova, 4096, USER + iova - GUEST, Access::all());
        assert!(front.say(RequestId::IotlbMsg, update.as_bytes(), &[]));
        assert!(reply_number(events, &message, 0));
        if iova == last {
            return;
        }
    }
}

#[test]
fn what_is_taken_back_is_not_reached_and_is_asked_for_again() {
    let back_end = disk();
    let (mut front, events) = translated(&back_end);
    let memory = table(&[region(0, LENGTH, USER, 0)]);
    assert_eq!(front.ask(RequestId::SetMemTable, &memory, &[front.memory.as_fd()]), Some(0));
    let [descriptors, driver, device] = [GUEST, GUEST + 0x1000, GUEST + 0x2000].map(U64::new);
    let address = ioasid_remote::vhost_user::wire::VringAddress { descriptors, driver, device, ..Default::default() };
    let file = VringFile { index: 0, has_file: true }.encode().to_ne_bytes();
    for (id, payload, files) in [
        (RequestId::SetVringNum, state(0, 64).as_bytes(), &[][..]),
        (RequestId::SetVringAddr, address.as_bytes(), &[]),
        (RequestId::SetVringKick, &file, &[front.kick.as_fd()]),
        (RequestId::SetVringEnable, state(0, 1).as_bytes(), &[]),
    ] {
        assert_eq!(front.ask(id, payload, files), Some(0), "{id}");
    }
    front.offer(0, 0, GUEST + DATA, 4096);
    answer_misses(&front, &events, GUEST + DATA);
    assert_eq!(front.wait(), 0);
    for round in 0..50 {
        let forget = IotlbMessage::new(IotlbKind::Invalidate, GUEST + DATA, 4096, 0, Access::empty());
        assert_eq!(front.ask(RequestId::IotlbMsg, forget.as_bytes(), &[]), Some(0));
        // What was there is the front end's alone.
        front.memory.write_all_at(&[round; 4096], DATA).unwrap();
        front.offer(0, 0, GUEST + DATA, 4096);
        if round % 2 == 0 {
            answer_misses(&front, &events, GUEST + DATA);
            assert_eq!(front.wait(), 0);
        } else {
            let message = receive(&events).unwrap();
            assert!(reply_number(&events, &message, 1));
            assert_eq!(front.wait(), 1);
        }
        let mut data = [0; 4096];
        front.memory.read_exact_at(&mut data, DATA).unwrap();
        assert_eq!(data, [if round % 2 == 0 { 0 } else { round }; 4096]);
    }
    // One that does not answer: the request comes to an end, and nothing else waits for that.
    let forget = IotlbMessage::new(IotlbKind::Invalidate, GUEST + DATA, 4096, 0, Access::empty());
    assert_eq!(front.ask(RequestId::IotlbMsg, forget.as_bytes(), &[]), Some(0));
    front.offer(0, 0, GUEST + DATA, 4096);
    let start = Instant::now();
    assert!(receive(&events).is_some());
    assert_eq!(front.ask(RequestId::SetOwner, &[], &[]), Some(0));
    assert!(start.elapsed() < PATIENCE / 2);
    assert_eq!(front.wait(), 1);
    assert!(start.elapsed() < PATIENCE * 4);
    // Replies to nothing, and requests where replies come.
    assert!(send(&events, Header::request(1, 8, false), &[0; 8], &[]));
    assert!(receive(&front.socket).is_none());
    assert_eq!(front.ended().to_string(), "the peer broke the protocol: a command where it sends replies only");
}

#[test]
fn a_front_end_without_translations_is_not_asked() {
    let back_end = disk();
    let mut front = Front::new(&back_end);
    let (events, there) = UnixStream::pair().unwrap();
    front.agree();
    assert_eq!(front.ask(RequestId::SetBackendReqFd, &[], &[there.as_fd()]), Some(0));
    front.set_up();
    let start = Instant::now();
    front.offer(0, 0, 0xdead_0000, 4096);
    assert_eq!(front.wait(), 1);
    assert!(start.elapsed() < PATIENCE);
    events.set_nonblocking(true).unwrap();
    assert!(receive(&events).is_none());
    // Translations without a way to ask for them are none.
    let features = FEATURES | feature::ACCESS_PLATFORM;
    let front = Front::new(&disk());
    assert!(front.say(RequestId::SetFeatures, &features.to_ne_bytes(), &[]));
    assert!(front.ended().to_string().contains("no way to ask for them"));
}
