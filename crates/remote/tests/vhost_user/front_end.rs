//! Our front end, and what its back end is told of an address space.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ioasid::memory::{Pages, RemoteMemory, Segment};
use ioasid::{
    Access, Context, Device, Endpoint, EndpointOptions, Fault, GroupId, Ioas, IommuKind, Iova, IovaRange, Machine,
    Observer, Placement, Recovery, UnmapError,
};
use ioasid_remote::vhost_user::wire::{
    BackendRequestId, ConfigHead, Header, IotlbKind, IotlbMessage, MemoryHead, MemoryRegion, RequestId, VringState,
    feature, protocol,
};
use ioasid_remote::vhost_user::{ConnectError, FrontEnd, Translations};
use zerocopy::{FromBytes, IntoBytes};

use crate::peer::{Listening, Message, PATIENCE, receive, reply, reply_number, send, wait_until};

/// What back ends here can do.
const PROTOCOL: u64 = protocol::MQ | protocol::REPLY_ACK | protocol::BACKEND_REQ | protocol::CONFIG;
const FEATURES: u64 = 1 << 32 | feature::ACCESS_PLATFORM | feature::PROTOCOL_FEATURES;

/// Answers a front end as a back end does, but for what `wrong` says: whether it has taken care of a message itself.
pub fn serve(socket: &UnixStream, mut wrong: impl FnMut(&Message) -> bool) {
    let mut events = Vec::new();
    while let Some(mut message) = receive(socket) {
        if wrong(&message) {
            continue;
        }
        events.append(&mut message.files);
        let is_answered = match RequestId::from_number(message.header.request.get()).unwrap() {
            RequestId::GetFeatures => reply_number(socket, &message, FEATURES),
            RequestId::GetProtocolFeatures => reply_number(socket, &message, PROTOCOL),
            RequestId::GetQueueNum => reply_number(socket, &message, 2),
            RequestId::GetVringBase | RequestId::GetConfig => reply(socket, &message, &message.payload),
            _ if message.header.needs_reply() => reply_number(socket, &message, 0),
            _ => true,
        };
        if !is_answered {
            return;
        }
    }
}

/// What a back end that asks for translations was told.
enum Told {
    Memory(Vec<(MemoryRegion, OwnedFd)>),
    Iotlb(IotlbMessage),
    Events(UnixStream),
}

/// A back end that keeps what it is told. It acknowledges invalidations so late.
fn keeps(late: Duration) -> (Listening, Receiver<Told>) {
    let (told, here): (Sender<Told>, _) = channel();
    let listening = Listening::with(move |socket| {
        serve(&socket, |message| {
            match RequestId::from_number(message.header.request.get()) {
                Some(RequestId::SetMemTable) => {
                    let (head, rest) = MemoryHead::read_from_prefix(&message.payload).unwrap();
                    let regions = rest.chunks(size_of::<MemoryRegion>()).take(head.regions.get() as usize);
                    let regions = regions.map(|bytes| MemoryRegion::read_from_bytes(bytes).unwrap());
                    let files = message.files.iter().map(|file| file.try_clone().unwrap());
                    let _ = told.send(Told::Memory(regions.zip(files).collect()));
                }
                Some(RequestId::SetBackendReqFd) => {
                    let _ = told.send(Told::Events(UnixStream::from(message.files[0].try_clone().unwrap())));
                }
                Some(RequestId::IotlbMsg) => {
                    let iotlb = IotlbMessage::read_from_bytes(&message.payload).unwrap();
                    let _ = told.send(Told::Iotlb(iotlb));
                    if iotlb.kind() == Some(IotlbKind::Invalidate) {
                        std::thread::sleep(late);
                    }
                }
                _ => {}
            }
            false
        });
    });
    (listening, here)
}

#[derive(Default)]
struct Faults(AtomicU32);

impl Observer for Faults {
    fn fault(&self, _fault: &Fault) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A device at an address space that translations are of.
pub struct Attached {
    _keeps: (Arc<Machine>, Arc<Context>, Arc<Endpoint>),
    pub device: Device,
    pub ioas: Arc<Ioas>,
    pub translations: Arc<Translations>,
}

impl Attached {
    pub fn new(observer: Arc<dyn Observer>, translations: Arc<Translations>) -> Self {
        let machine = Machine::new(observer);
        let iommu = machine.iommu(IommuKind::Vtd);
        let behind = EndpointOptions::behind(&iommu).pasid_bits(0).dirty_tracking(false).recovery(Recovery::None);
        let behind = behind.mirrored(translations.clone());
        let endpoint = machine.add_endpoint_with("0000:00:01.0".parse().unwrap(), GroupId(0), behind).unwrap();
        translations.refuse_as(&endpoint);
        endpoint.set_bus_master(true).unwrap();
        translations.set_bus_master(true);
        let context = machine.context();
        let ioas = context.ioas_alloc().unwrap();
        let device = context.bind(&endpoint).unwrap();
        device.attach(None, &ioas).unwrap();
        Self { _keeps: (machine, context, endpoint), device, ioas, translations }
    }
}

/// A device whose back end is told of an address space.
struct Bench {
    attached: Attached,
    link: Arc<FrontEnd>,
    faults: Arc<Faults>,
    words: Arc<Mutex<Vec<String>>>,
    told: Receiver<Told>,
    events: UnixStream,
    /// The files that the back end has.
    memory: Vec<(MemoryRegion, OwnedFd)>,
    _listening: Listening,
}

impl Bench {
    fn new(late: Duration) -> Self {
        let (listening, told) = keeps(late);
        let faults = Arc::new(Faults::default());
        let words = Arc::<Mutex<Vec<String>>>::default();
        let said = words.clone();
        let translations = Translations::new(PATIENCE, move |what| said.lock().unwrap().push(what.to_owned()));
        let attached = Attached::new(faults.clone(), translations);
        let link = Arc::new(FrontEnd::connect(&listening.path, PATIENCE).unwrap());
        assert!(link.translates());
        attached.translations.follow(&link, || {}).unwrap();
        let Ok(Told::Events(events)) = told.recv() else { panic!("no socket to ask by") };
        events.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let memory = Vec::new();
        Self { attached, link, faults, words, told, events, memory, _listening: listening }
    }

    fn map(&self, iova: u64, file: &Arc<File>, access: Access) {
        let length = file.metadata().unwrap().len();
        let pages = Pages::of_file(file.clone(), 0, length, access.contains(Access::WRITE));
        self.attached.ioas.map_pages(Some(Iova(iova)), &pages, 0, length, access).unwrap();
    }

    fn unmap(&self, iova: u64, length: u64) -> Result<u64, UnmapError> {
        self.attached.ioas.unmap(IovaRange::new(iova, length).unwrap())
    }

    /// Has the back end ask for a translation. Returns what it is replied, and the translation.
    fn ask(&mut self, iova: u64, access: Access) -> (u64, Option<IotlbMessage>) {
        let miss = IotlbMessage::new(IotlbKind::Miss, iova, 4096, 0, access);
        let header = Header::request(BackendRequestId::IotlbMsg as u32, size_of::<IotlbMessage>(), true);
        assert!(send(&self.events, header, miss.as_bytes(), &[]));
        let replied = receive(&self.events).unwrap().number();
        let mut update = None;
        if replied == 0 {
            while update.is_none() {
                match self.told.recv_timeout(Duration::from_secs(20)).unwrap() {
                    Told::Memory(memory) => self.memory = memory,
                    Told::Iotlb(iotlb) => update = Some(iotlb),
                    Told::Events(_) => panic!("another socket to ask by"),
                }
            }
        }
        (replied, update)
    }

    /// What a translation leads to.
    fn at(&self, update: &IotlbMessage) -> (&OwnedFd, u64) {
        let user = update.user.get();
        let mut regions = self.memory.iter();
        let found = regions
            .find(|(region, _)| (region.user.get()..).contains(&user) && user - region.user.get() < region.size.get());
        let (region, file) = found.unwrap();
        (file, user - region.user.get() + region.offset.get())
    }

    /// The invalidation that comes next.
    fn invalidated(&self) -> (u64, u64) {
        match self.told.recv_timeout(Duration::from_secs(20)).unwrap() {
            Told::Iotlb(iotlb) if iotlb.kind() == Some(IotlbKind::Invalidate) => (iotlb.iova.get(), iotlb.size.get()),
            _ => panic!("something else was told"),
        }
    }

    fn was_told_nothing(&self) -> bool {
        self.told.try_recv().is_err()
    }
}

/// Memory that no other process can have.
struct Private;

impl RemoteMemory for Private {
    fn read(&self, _address: u64, data: &mut [u8]) -> std::io::Result<()> {
        data.fill(0);
        Ok(())
    }

    fn write(&self, _address: u64, _data: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

fn memory(bytes: u64) -> Arc<File> {
    Segment::memfd(bytes).unwrap().1
}

/// The bytes that a descriptor leads to.
fn bytes(file: &OwnedFd, at: u64, count: usize) -> Vec<u8> {
    let mut data = vec![0; count];
    File::from(file.try_clone().unwrap()).read_exact_at(&mut data, at).unwrap();
    data
}

#[test]
fn a_back_end_is_told_what_it_asks_for_and_nothing_else() {
    let mut bench = Bench::new(Duration::ZERO);
    let (one, other) = (memory(0x4000), memory(0x2000));
    one.write_all_at(&[1; 0x4000], 0).unwrap();
    one.write_all_at(&[2; 0x1000], 0x3000).unwrap();
    other.write_all_at(&[3; 0x2000], 0).unwrap();
    bench.map(0x10_0000, &one, Access::all());
    bench.map(0x20_0000, &other, Access::READ);
    assert!(bench.was_told_nothing());
    let (replied, update) = bench.ask(0x10_3000, Access::WRITE);
    let update = update.unwrap();
    assert_eq!((replied, update.iova.get(), update.size.get()), (0, 0x10_0000, 0x4000));
    assert_eq!(update.access(), Access::all());
    let (file, at) = bench.at(&update);
    assert_eq!(bytes(file, at + 0x3000, 0x1000), [2; 0x1000]);
    // It has one file, and can write that.
    assert_eq!(bench.memory.len(), 1);
    assert_eq!(bytes(&bench.memory[0].1, 0, 1), [1]);
    let (replied, update) = bench.ask(0x20_1fff, Access::READ);
    let update = update.unwrap();
    assert_eq!((replied, update.iova.get(), update.size.get()), (0, 0x20_0000, 0x2000));
    assert_eq!((update.access(), bench.memory.len()), (Access::READ, 2));
    let (file, at) = bench.at(&update);
    assert_eq!(bytes(file, at, 0x2000), [3; 0x2000]);
    // What it may not write through the address space, it cannot write.
    assert!(File::from(file.try_clone().unwrap()).write_at(&[9], 0).is_err());
    assert_eq!(bench.faults.0.load(Ordering::SeqCst), 0);
}

#[test]
fn what_is_not_mapped_is_refused_and_noted() {
    let mut bench = Bench::new(Duration::ZERO);
    bench.map(0x10_0000, &memory(0x2000), Access::READ);
    let asked =
        [(0x9_f000, Access::READ), (0x10_0000, Access::WRITE), (0x10_2000, Access::READ), (u64::MAX, Access::READ)];
    for (count, (iova, access)) in (1..).zip(asked) {
        assert_eq!(bench.ask(iova, access).0, 1, "{iova:#x}");
        assert_eq!(bench.faults.0.load(Ordering::SeqCst), count);
    }
    assert!(bench.was_told_nothing());
    // What is there, it gets.
    assert_eq!(bench.ask(0x10_0000, Access::READ).0, 0);
}

#[test]
fn memory_of_one_process_alone_is_refused_and_said_once() {
    let mut bench = Bench::new(Duration::ZERO);
    let private = || Ok(vec![Segment::remote(Arc::new(Private), 0, 0x2000)]);
    bench.attached.ioas.map(Placement::Fixed(Iova(0x10_0000)), 0x2000, Access::all(), private).unwrap();
    for _ in 0..3 {
        assert_eq!(bench.ask(0x10_0000, Access::READ).0, 1);
    }
    let words = bench.words.lock().unwrap().clone();
    assert_eq!(
        words,
        ["the back end cannot have what is at IOVA 0x100000: it is in no file, as memory that is mapped shared is"]
    );
}

#[test]
fn an_unmap_returns_when_the_back_end_has_said_that_it_forgets() {
    let late = Duration::from_millis(100);
    let mut bench = Bench::new(late);
    let file = memory(0x4000);
    bench.map(0x10_0000, &file, Access::all());
    bench.map(0x20_0000, &file, Access::all());
    // One that it does not know of, it is not asked to forget.
    assert_eq!(bench.ask(0x10_0000, Access::READ).0, 0);
    let start = Instant::now();
    bench.unmap(0x20_0000, 0x4000).unwrap();
    assert!(bench.was_told_nothing() && start.elapsed() < late);
    bench.unmap(0x10_0000, 0x4000).unwrap();
    assert!(start.elapsed() >= late);
    assert_eq!(bench.invalidated(), (0x10_0000, 0x4000));
    assert_eq!(bench.ask(0x10_0000, Access::READ).0, 1);
    // The same when the device is taken away, and when it may not reach memory.
    for round in 0..2 {
        bench.map(0x30_0000, &file, Access::all());
        assert_eq!(bench.ask(0x30_0000, Access::READ).0, 0);
        match round {
            0 => bench.attached.translations.set_bus_master(false),
            _ => bench.attached.device.detach(None).unwrap(),
        }
        assert_eq!(bench.invalidated(), (0x30_0000, 0x4000));
        assert_eq!(bench.ask(0x30_0000, Access::READ).0, 1);
        if round == 0 {
            bench.attached.translations.set_bus_master(true);
            assert_eq!(bench.ask(0x30_0000, Access::READ).0, 0);
            bench.unmap(0x30_0000, 0x4000).unwrap();
            assert_eq!(bench.invalidated(), (0x30_0000, 0x4000));
        }
    }
}

/// One that takes translations back does not make another believe that it has them back.
#[test]
fn an_unmap_waits_also_while_bus_master_is_switched_off() {
    let late = Duration::from_millis(200);
    let mut bench = Bench::new(late);
    bench.map(0x10_0000, &memory(0x1000), Access::all());
    assert_eq!(bench.ask(0x10_0000, Access::READ).0, 0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let translations = &bench.attached.translations;
        scope.spawn(move || translations.set_bus_master(false));
        // The back end is asked to forget, and has not said that it has.
        assert_eq!(bench.invalidated(), (0x10_0000, 0x1000));
        bench.unmap(0x10_0000, 0x1000).unwrap();
        assert!(start.elapsed() >= late, "{:?}", start.elapsed());
    });
}

#[test]
fn a_mapping_that_is_cut_is_forgotten_in_parts() {
    let mut bench = Bench::new(Duration::ZERO);
    let file = memory(0x4000);
    bench.attached.ioas.set_large_pages(false).unwrap();
    bench.map(0x10_0000, &file, Access::all());
    assert_eq!(bench.ask(0x10_0000, Access::READ).0, 0);
    bench.attached.ioas.cut(Iova(0x10_2000)).unwrap();
    bench.unmap(0x10_0000, 0x2000).unwrap();
    assert_eq!(bench.invalidated(), (0x10_0000, 0x2000));
    assert_eq!(bench.ask(0x10_1000, Access::READ).0, 1);
    let (_, update) = bench.ask(0x10_3000, Access::READ);
    let update = update.unwrap();
    assert_eq!((update.iova.get(), update.size.get()), (0x10_2000, 0x2000));
    assert_eq!(bench.at(&update).1, 0x2000);
}

#[test]
fn a_back_end_that_does_not_forget_is_cut_off_and_not_believed() {
    let mut bench = Bench::new(Duration::from_secs(3600));
    bench.map(0x10_0000, &memory(0x1000), Access::all());
    assert_eq!(bench.ask(0x10_0000, Access::READ).0, 0);
    let start = Instant::now();
    // Its process is this one, and goes on.
    assert!(matches!(bench.unmap(0x10_0000, 0x1000), Err(UnmapError::Mirror(_))));
    assert!(start.elapsed() < PATIENCE * 4, "{:?}", start.elapsed());
    assert!(bench.link.is_gone());
}

/// A driver that switches its device off waits for the back end's answer, and not for the end of its process.
#[test]
fn switching_off_waits_no_longer_than_was_said() {
    let mut bench = Bench::new(Duration::from_secs(3600));
    bench.map(0x10_0000, &memory(0x1000), Access::all());
    assert_eq!(bench.ask(0x10_0000, Access::READ).0, 0);
    let start = Instant::now();
    bench.attached.translations.set_bus_master(false);
    assert!(start.elapsed() < PATIENCE * 2 && bench.link.is_gone(), "{:?}", start.elapsed());
    assert!(matches!(bench.unmap(0x10_0000, 0x1000), Err(UnmapError::Mirror(_))));
}

#[test]
fn a_file_that_grows_is_passed_again_and_one_that_shrinks_is_refused() {
    let mut bench = Bench::new(Duration::ZERO);
    let file = memory(0x1000);
    bench.map(0x10_0000, &file, Access::all());
    assert_eq!(bench.ask(0x10_0000, Access::READ).0, 0);
    assert_eq!(bench.memory[0].0.size.get(), 0x1000);
    file.set_len(0x2000).unwrap();
    file.write_all_at(&[5], 0x1000).unwrap();
    let pages = Pages::of_file(file.clone(), 0, 0x2000, true);
    bench.attached.ioas.map_pages(Some(Iova(0x20_0000)), &pages, 0x1000, 0x1000, Access::all()).unwrap();
    let (_, update) = bench.ask(0x20_0000, Access::READ);
    assert_eq!((bench.memory.len(), bench.memory[0].0.size.get()), (1, 0x2000));
    let (file_there, at) = bench.at(&update.unwrap());
    assert_eq!(bytes(file_there, at, 1), [5]);
    let short = memory(0x2000);
    bench.map(0x30_0000, &short, Access::all());
    short.set_len(0x1000).unwrap();
    assert_eq!(bench.ask(0x30_0000, Access::READ).0, 1);
    assert!(bench.words.lock().unwrap()[0].contains("cut short"));
}

#[test]
fn files_that_nobody_needs_make_room_and_more_than_there_is_room_for_are_refused() {
    let mut bench = Bench::new(Duration::ZERO);
    for number in 0..8 {
        bench.map(0x10_0000 * (number + 1), &memory(0x1000), Access::all());
        assert_eq!(bench.ask(0x10_0000 * (number + 1), Access::READ).0, 0);
    }
    assert_eq!(bench.memory.len(), 8);
    bench.map(0x1000_0000, &memory(0x1000), Access::all());
    assert_eq!(bench.ask(0x1000_0000, Access::READ).0, 1);
    assert!(bench.words.lock().unwrap()[0].contains("more than 8 files"), "{:?}", bench.words);
    bench.unmap(0x10_0000, 0x1000).unwrap();
    assert_eq!(bench.invalidated(), (0x10_0000, 0x1000));
    assert_eq!(bench.ask(0x1000_0000, Access::READ).0, 0);
    assert_eq!(bench.memory.len(), 8);
}

#[test]
fn a_back_end_whose_memory_table_is_refused_keeps_what_it_had() {
    let tables = Arc::new(AtomicU32::new(0));
    let count = tables.clone();
    let listening = Listening::with(move |socket| {
        serve(&socket, |message| {
            // It refuses the second.
            let refuses = message.is(RequestId::SetMemTable) && count.fetch_add(1, Ordering::SeqCst) == 1;
            refuses && reply_number(&socket, message, 1)
        });
    });
    let bench = Bench::new(Duration::ZERO);
    bench.map(0x10_0000, &memory(0x1000), Access::all());
    bench.map(0x20_0000, &memory(0x1000), Access::all());
    let link = Arc::new(FrontEnd::connect(&listening.path, PATIENCE).unwrap());
    bench.attached.translations.follow(&link, || {}).unwrap();
    let give = |iova| bench.attached.translations.give(&link, iova, 0x1000, Access::READ);
    give(0x10_0000).unwrap();
    assert!(give(0x20_0000).unwrap_err().to_string().contains("refuses SET_MEM_TABLE"));
    assert!(!link.is_gone());
    assert_eq!(tables.load(Ordering::SeqCst), 3);
    give(0x20_0000).unwrap();
}

#[test]
fn another_back_end_comes_when_the_one_before_can_reach_nothing() {
    let mut bench = Bench::new(Duration::ZERO);
    let (listening, _told) = keeps(Duration::ZERO);
    let another = || Arc::new(FrontEnd::connect(&listening.path, PATIENCE).unwrap());
    bench.map(0x10_0000, &memory(0x1000), Access::all());
    assert_eq!(bench.ask(0x10_0000, Access::READ).0, 0);
    // It is this process, which goes on, and was told of memory.
    let refused = bench.attached.translations.follow(&another(), || {}).unwrap_err();
    assert_eq!(refused.to_string(), "the back end before this one may still reach memory: end its process first");
    // So this unmap does not hold either.
    assert!(matches!(bench.unmap(0x10_0000, 0x1000), Err(UnmapError::Mirror(_))));

    let bench = Bench::new(Duration::ZERO);
    bench.map(0x10_0000, &memory(0x1000), Access::all());
    let next = another();
    bench.attached.translations.follow(&next, || {}).unwrap();
    assert!(bench.link.is_gone());
    bench.attached.translations.give(&next, 0x10_0000, 0x1000, Access::WRITE).unwrap();
    // The one before is given nothing any more.
    assert!(bench.attached.translations.give(&bench.link, 0x10_0000, 0x1000, Access::READ).is_err());
    bench.unmap(0x10_0000, 0x1000).unwrap();
}

#[test]
fn what_is_under_way_is_noted_where_the_next_back_end_finds_it() {
    let (file, set) = (memory(0x1000), Arc::<Mutex<Vec<(u64, Vec<u8>)>>>::default());
    let (passed, sets) = (file.clone(), set.clone());
    let listening = Listening::with(move |socket| {
        serve(&socket, |message| {
            if message.is(RequestId::GetProtocolFeatures) {
                return reply_number(&socket, message, PROTOCOL | protocol::INFLIGHT_SHMFD);
            }
            if message.is(RequestId::SetInflightFd) {
                let found = rustix::fs::fstat(&message.files[0]).unwrap().st_ino;
                sets.lock().unwrap().push((found, message.payload.clone()));
            }
            let is_asked = message.is(RequestId::GetInflightFd);
            let place = [
                &0x800u64.to_ne_bytes()[..],
                &0x200u64.to_ne_bytes(),
                &message.payload[message.payload.len().saturating_sub(8)..],
            ];
            is_asked && send(&socket, message.header.reply(24), &place.concat(), &[passed.as_fd()])
        });
    });
    let link = FrontEnd::connect_inflight(&listening.path, PATIENCE).unwrap();
    let inflight = link.inflight(3, 64).unwrap().unwrap();
    link.set_inflight(&inflight).unwrap();
    drop(link);
    let next = FrontEnd::connect_inflight(&listening.path, PATIENCE).unwrap();
    next.set_inflight(&inflight).unwrap();
    let place = [&0x800u64.to_ne_bytes()[..], &0x200u64.to_ne_bytes(), &[3, 0, 64, 0, 0, 0, 0, 0]].concat();
    let id = rustix::fs::fstat(&file).unwrap().st_ino;
    assert_eq!(*set.lock().unwrap(), vec![(id, place); 2]);
    drop(next);
    // One that is not to note it is not asked, and is given no place.
    let plain = FrontEnd::connect(&listening.path, PATIENCE).unwrap();
    assert!(plain.inflight(3, 64).unwrap().is_none());
    assert!(plain.set_inflight(&inflight).is_err() && !plain.is_gone());
    // A place that is none.
    for how in 0..3 {
        let listening = Listening::with(move |socket| {
            serve(&socket, |message| match RequestId::from_number(message.header.request.get()) {
                Some(RequestId::GetProtocolFeatures) => {
                    reply_number(&socket, message, PROTOCOL | protocol::INFLIGHT_SHMFD)
                }
                Some(RequestId::GetInflightFd) => match how {
                    0 => reply(&socket, message, &[0; 24]),
                    1 => send(&socket, message.header.reply(20), &[0; 20], &[socket.as_fd()]),
                    _ => send(&socket, message.header.reply(24), &[0; 24], &[socket.as_fd()]),
                },
                _ => false,
            });
        });
        let link = FrontEnd::connect_inflight(&listening.path, PATIENCE).unwrap();
        assert!(link.inflight(1, 64).is_err() && link.is_gone(), "{how}");
    }
}

#[test]
fn a_back_end_that_does_not_say_what_it_can_is_none() {
    for id in
        [RequestId::GetFeatures, RequestId::GetProtocolFeatures, RequestId::GetQueueNum, RequestId::SetBackendReqFd]
    {
        // It says too little; nothing; goes; answers something else; is of another version; is longer than any.
        for how in 0..6 {
            let listening = Listening::with(move |socket| {
                serve(&socket, |message| {
                    if !message.is(id) {
                        return false;
                    }
                    let header = message.header.reply(8);
                    let other = Header { request: 77.into(), ..header };
                    match how {
                        0 => drop(reply(&socket, message, &[0])),
                        1 => {}
                        2 => drop(socket.shutdown(std::net::Shutdown::Both)),
                        3 => drop(send(&socket, other, &[0; 8], &[])),
                        4 => drop(send(&socket, Header { flags: 6.into(), ..header }, &[0; 8], &[])),
                        _ => drop(send(&socket, Header { size: u32::MAX.into(), ..header }, &[], &[])),
                    }
                    true
                });
            });
            let start = Instant::now();
            let error = FrontEnd::connect(&listening.path, PATIENCE).unwrap_err();
            assert!(start.elapsed() < PATIENCE * 5, "{id} {how}: {error}");
            assert!(!error.to_string().is_empty());
        }
    }
    let nobody = Listening::with(drop);
    std::fs::remove_file(&nobody.path).unwrap();
    assert!(matches!(FrontEnd::connect(&nobody.path, PATIENCE), Err(ConnectError::Connect(..))));
}

#[test]
fn a_configuration_of_another_length_is_none_and_a_silent_back_end_is_cut_off() {
    let listening = Listening::with(move |socket| {
        serve(&socket, |message| {
            let is_config = message.is(RequestId::GetConfig);
            if is_config {
                let head = ConfigHead::read_from_prefix(&message.payload).unwrap().0;
                reply(&socket, message, head.as_bytes());
            }
            // And it never comes out of a ring.
            is_config || message.is(RequestId::GetVringBase)
        });
    });
    let link = FrontEnd::connect(&listening.path, PATIENCE).unwrap();
    assert_eq!(link.read_config(60).unwrap_err().to_string(), "the other side refuses GET_CONFIG");
    assert!(!link.is_gone());
    let start = Instant::now();
    assert_eq!(link.stop(&[0]).unwrap_err().to_string(), "the peer did not answer GET_VRING_BASE within 400ms");
    assert!(start.elapsed() < PATIENCE * 3 && link.is_gone());
    wait_until("nothing is asked of it any more", || link.stop(&[0]).is_err());
}

#[test]
fn a_back_end_that_takes_its_time_for_each_ring_has_no_more_for_all() {
    let listening = Listening::with(move |socket| {
        serve(&socket, |message| {
            if message.is(RequestId::GetVringBase) {
                std::thread::sleep(PATIENCE * 2 / 3);
            }
            false
        });
    });
    let link = FrontEnd::connect(&listening.path, PATIENCE).unwrap();
    let start = Instant::now();
    assert!(link.stop(&[0, 1, 2, 3, 4, 5, 6, 7]).is_err() && link.is_gone());
    assert!(start.elapsed() < PATIENCE * 3, "{:?}", start.elapsed());
}

#[test]
fn a_back_end_that_passes_descriptors_has_them_closed() {
    let spare = rustix::fs::memfd_create("ioasid-passed", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let id = spare.as_raw_fd();
    let listening = Listening::with(move |socket| {
        serve(&socket, |message| {
            let is_it = message.is(RequestId::GetVringBase);
            if is_it {
                let state = VringState::read_from_bytes(&message.payload).unwrap();
                send(&socket, message.header.reply(8), state.as_bytes(), &[spare.as_fd(); 3]);
            }
            is_it
        });
    });
    let link = FrontEnd::connect(&listening.path, PATIENCE).unwrap();
    let target = std::fs::read_link(format!("/proc/self/fd/{id}")).unwrap();
    let open = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        files.filter(|file| std::fs::read_link(file.path()).is_ok_and(|link| link == target)).count()
    };
    let before = open();
    for _ in 0..100 {
        link.stop(&[1]).unwrap();
    }
    assert!(open() <= before + 8, "{} {before}", open());
}
