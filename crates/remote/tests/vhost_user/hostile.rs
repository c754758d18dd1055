//! Peers that say anything, at any time, beside a pair whose content is checked: that is as if it were alone.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ioasid::memory::{Pages, Segment};
use ioasid::{Access, Iova, IovaRange, Silent};
use ioasid_remote::vhost_user::wire::{
    BackendRequestId, Header, IotlbKind, IotlbMessage, RequestId, SingleRegion, VringAddress, VringFile,
};
use ioasid_remote::vhost_user::{BackEnd, FrontEnd, Memory, Ring, Translations};
use zerocopy::IntoBytes;
use zerocopy::native_endian::{U32, U64};

use crate::driver::{FEATURES, Front, GUEST, LENGTH, PROTOCOL, USER, counter, disk, region, state, table};
use crate::front_end::{Attached, serve};
use crate::peer::{Listening, send};

/// A front end that makes its messages of these bytes.
pub fn any_front_end(back_end: &Arc<BackEnd>, bytes: &[u8]) {
    let mut input = VecDeque::from(bytes.to_vec());
    let mut front = Front::new(back_end);
    if next(&mut input) & 1 == 0 {
        front.agree();
        front.set_up();
    }
    front.socket.set_nonblocking(true).unwrap();
    let (events, there) = UnixStream::pair().unwrap();
    events.set_nonblocking(true).unwrap();
    while !input.is_empty() {
        let which = usize::from(next(&mut input)) % (RequestId::ALL.len() + 2);
        let Some(id) = RequestId::ALL.get(which).copied() else {
            // A request of the disk's, or a reply to what it was asked.
            if which.is_multiple_of(2) {
                let [kind, sector, data] = std::array::from_fn(|_| number(&mut input));
                front.offer(kind as u32, sector, data, next(&mut input).into());
            } else {
                send(&events, Header::request(1, 8, false).reply(8), &number(&mut input).to_ne_bytes(), &[]);
            }
            continue;
        };
        let payload = payload(id, &mut input);
        let how = next(&mut input);
        let own: BorrowedFd<'_> = match id {
            RequestId::SetVringKick | RequestId::SetVringCall | RequestId::SetVringErr => front.kick.as_fd(),
            RequestId::SetBackendReqFd => there.as_fd(),
            _ => front.memory.as_fd(),
        };
        let files = match how % 8 {
            0 => vec![own; usize::from(how / 8) % 4],
            1 => vec![front.socket.as_fd()],
            _ if matches!(id, RequestId::SetMemTable) => vec![own; payload.len().saturating_sub(8) / 32],
            _ if RequestId::SetVringKick as u32 <= id as u32 && id as u32 <= RequestId::SetVringErr as u32 => vec![own],
            _ if matches!(id, RequestId::SetBackendReqFd | RequestId::AddMemReg) => vec![own],
            _ => Vec::new(),
        };
        let mut header = Header::request(id as u32, payload.len(), how & 16 == 0);
        match how {
            200 => header.size = U32::new(number(&mut input) as u32),
            201 => header.flags = U32::new(number(&mut input) as u32),
            202 => header.request = U32::new(number(&mut input) as u32),
            _ => {}
        }
        send(&front.socket, header, &payload, &files);
        // It takes replies, or does not.
        if how & 32 == 0 {
            let _ = std::io::Read::read(&mut &front.socket, &mut [0; 4096]);
        }
    }
}

fn next(input: &mut VecDeque<u8>) -> u8 {
    input.pop_front().unwrap_or(0)
}

/// A number as one is got wrong: at an end, or one of those that are right.
fn number(input: &mut VecDeque<u8>) -> u64 {
    let which = next(input);
    let near = u64::from(next(input)) << 12;
    match which % 10 {
        0 => 0,
        1 => u64::MAX,
        2 => near >> 12,
        3 => u64::MAX - near,
        4 => 1 << (which / 10 % 64),
        5 => USER + near,
        6 => GUEST,
        7 => FEATURES,
        8 => PROTOCOL,
        _ => GUEST + near,
    }
}

/// As long as it is to be, mostly.
fn payload(id: RequestId, input: &mut VecDeque<u8>) -> Vec<u8> {
    let index = u32::from(next(input) % 3);
    match id {
        RequestId::SetMemTable => {
            let regions: Vec<_> = (0..next(input) % 4)
                .map(|_| {
                    region(number(input), u64::from(next(input)) << 10, number(input), u64::from(next(input)) << 12)
                })
                .collect();
            table(&regions)
        }
        RequestId::AddMemReg | RequestId::RemMemReg => {
            let region = region(number(input), LENGTH, number(input), 0);
            SingleRegion { padding: U64::new(0), region }.as_bytes().to_vec()
        }
        RequestId::SetVringNum | RequestId::SetVringBase | RequestId::SetVringEnable | RequestId::GetVringBase => {
            state(index, [0, 1, 2, 64, number(input) as u32][usize::from(next(input) % 5)]).as_bytes().to_vec()
        }
        RequestId::SetVringAddr => {
            let [descriptors, driver, device] = std::array::from_fn(|_| U64::new(number(input)));
            VringAddress { index: U32::new(index), descriptors, driver, device, ..VringAddress::default() }
                .as_bytes()
                .to_vec()
        }
        RequestId::SetVringKick | RequestId::SetVringCall | RequestId::SetVringErr => {
            let file = VringFile { index: index as u8, has_file: next(input) & 7 != 0 };
            file.encode().to_ne_bytes().to_vec()
        }
        RequestId::IotlbMsg => {
            let [iova, size, user] = std::array::from_fn(|_| number(input));
            let message = IotlbMessage::new(IotlbKind::Update, iova, size, user, Access::all());
            let (kind, access) = (next(input) % 5, next(input) % 4);
            IotlbMessage { kind, access, ..message }.as_bytes().to_vec()
        }
        RequestId::SetFeatures | RequestId::SetProtocolFeatures | RequestId::SetStatus => {
            number(input).to_ne_bytes().to_vec()
        }
        _ => {
            let length = usize::from(next(input)) % 40;
            std::iter::repeat_with(|| next(input)).take(length).collect()
        }
    }
}

/// A back end that answers some requests with what is in `bytes`, the others as it should, and asks for what it likes.
pub fn any_back_end(bytes: &[u8]) -> Listening {
    let input = Mutex::new(VecDeque::from(bytes.to_vec()));
    Listening::with(move |socket| {
        let mut events: Option<UnixStream> = None;
        serve(&socket, |message| {
            let mut input = input.lock().unwrap();
            if message.is(RequestId::SetBackendReqFd) {
                let file = message.files.first().and_then(|file| file.try_clone().ok());
                events = file.map(UnixStream::from);
            }
            let how = next(&mut input);
            if let Some(events) = events.as_ref().filter(|_| how % 8 == 1) {
                events.set_nonblocking(true).unwrap();
                let (iova, kind, access) = (number(&mut input), next(&mut input) % 5, next(&mut input) % 4);
                let miss = IotlbMessage::new(IotlbKind::Miss, iova, number(&mut input), 0, Access::all());
                let miss = IotlbMessage { kind: if kind == 0 { kind } else { miss.kind }, access, ..miss };
                let request = [BackendRequestId::IotlbMsg as u32, 2, 77][usize::from(next(&mut input)) % 3];
                send(events, Header::request(request, size_of::<IotlbMessage>(), how & 8 == 0), miss.as_bytes(), &[]);
                let _ = std::io::Read::read(&mut &*events, &mut [0; 4096]);
            }
            if !how.is_multiple_of(4) || input.is_empty() {
                return false;
            }
            let length = usize::from(next(&mut input)).min(input.len());
            let payload: Vec<u8> = input.drain(..length).collect();
            let header = message.header.reply(payload.len());
            let header = match how / 4 % 8 {
                0 => Header { request: U32::new(message.header.request.get() ^ 1), ..header },
                1 => Header { size: U32::new(u32::MAX), ..header },
                2 => Header { flags: U32::new(how.into()), ..header },
                _ => header,
            };
            let spare = counter();
            send(&socket, header, &payload, &vec![spare.as_fd(); usize::from(how / 32) % 3])
        });
    })
}

/// Bytes that it is passed. Those that it may still reach when it is cut off stay for good, as it is in this process.
const PASSED: u64 = 0x4000;

/// Does with a back end what a device does with it, whatever comes of it.
pub fn use_whatever(back_end: &Listening) {
    let patience = Duration::from_millis(20);
    let Ok(link) = FrontEnd::connect(&back_end.path, patience) else { return };
    let link = Arc::new(link);
    let Attached { device, ioas, translations, .. } =
        &Attached::new(Arc::new(Silent), Translations::new(patience, |_| {}));
    let (_, file) = Segment::memfd(PASSED).unwrap();
    let pages = Pages::of_file(file.clone(), 0, PASSED, true);
    let (kick, call) = (counter(), counter());
    let _ = link.read_config(60);
    let _ = link.agree(link.features());
    if link.translates() {
        let _ = translations.follow(&link, || {});
    } else {
        let file = Arc::new(file.try_clone().unwrap().into());
        let _ = link.set_memory(&[Memory { guest: 0, size: PASSED, user: USER, file, offset: 0 }]);
    }
    for index in 0..3 {
        let _ = ioas.map_pages(Some(Iova(GUEST)), &pages, 0, PASSED, Access::all());
        let _ = translations.give(&link, GUEST, 0x1000, Access::READ);
        let (kick, call) = (kick.as_fd(), call.as_fd());
        let [descriptors, driver, device] = [GUEST, GUEST + 0x1000, GUEST + 0x2000];
        let _ = link.start(&[Ring { index, size: 64, descriptors, driver, device, base: 0, kick, call }]);
        let _ = link.stop(&[index]);
        let _ = ioas.unmap(IovaRange::new(GUEST, PASSED).unwrap());
        if !link.translates() {
            let _ = link.event();
        }
    }
    translations.set_bus_master(false);
    let _ = device.detach(None);
    link.cut_off(ioasid_remote::Ended::Closed);
}

fn seconds() -> u64 {
    std::env::var("IOASID_REMOTE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

fn noise(random: &mut fastrand::Rng, longest: usize) -> Vec<u8> {
    let length = random.usize(0..longest);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// Drives a disk of its own, whose content is checked, while others do as they like.
fn beside(end: Instant, others: impl Fn(&mut fastrand::Rng) + Send) -> (u64, u64) {
    std::thread::scope(|scope| {
        let others = scope.spawn(move || {
            let (mut random, mut count) = (fastrand::Rng::with_seed(21), 0);
            while Instant::now() < end {
                others(&mut random);
                count += 1;
            }
            count
        });
        let back_end = disk();
        let (mut front, mut random, mut checks) = (Front::at_work(&back_end), fastrand::Rng::with_seed(22), 0);
        while Instant::now() < end {
            front.check(&mut random);
            checks += 1;
        }
        (others.join().unwrap(), checks)
    })
}

#[test]
fn front_ends_that_say_anything_do_no_harm() {
    let back_end = disk();
    let (front_ends, checks) = beside(Instant::now() + Duration::from_secs(seconds()), |random| {
        any_front_end(&back_end, &noise(random, 2000));
        // Whoever comes next has a disk.
        if random.u8(..8) == 0 {
            Front::at_work(&back_end).check(random);
        }
    });
    println!("{front_ends} front ends that say anything; {checks} checks");
    assert!(front_ends > 10 && checks > 10, "{front_ends} {checks}");
}

#[test]
fn back_ends_that_say_anything_do_no_harm() {
    let (back_ends, checks) = beside(Instant::now() + Duration::from_secs(seconds()), |random| {
        let back_end = any_back_end(&noise(random, 200));
        use_whatever(&back_end);
        back_end.end();
    });
    println!("{back_ends} back ends that say anything; {checks} checks");
    assert!(back_ends > 10 && checks > 10, "{back_ends} {checks}");
}
