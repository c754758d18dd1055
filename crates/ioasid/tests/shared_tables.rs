//! Page tables that another process shares, and the gate by which it takes translations back: here, both are one
//! process with two machines.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use ioasid::memory::{Segment, TableSpace};
use ioasid::{
    Access, AttachError, Device, DmaPort, Endpoint, FaultReason, GateMember, GateOwner, GuestFormat, GuestTable, Hwpt,
    Ioas, Iova, IovaRange, JoinError, NestedHwpt, NestedOptions, Pasid, Placement, Unacknowledged,
};
use iopt::format::{Marked, VtdSecondStage};
use iopt::{Arena, EmptyTables, PageTable};

use common::{Bench, PAGE, parent, range};

/// Where the member sees the owner's memory.
const DATA: u64 = 1 << 36;
const PAGES: u64 = 64;
const TABLES: usize = 4 << 20;
/// Ports that a gate has passages for.
const PORTS: usize = 511;

/// The side that has the tables and the memory, and the member of its gate.
struct Owner {
    gate: GateOwner,
    member: Arc<GateMember>,
    table: PageTable<Marked<VtdSecondStage>, TableSpace>,
    tables: File,
    memory: Arc<File>,
}

impl Owner {
    fn new() -> Self {
        let arena = Arc::new(Arena::with_memory(TableSpace::shared(TABLES).unwrap()));
        let tables = arena.memory().file().unwrap().try_clone().unwrap();
        let table = PageTable::new(arena).unwrap();
        let (_, memory) = Segment::memfd(PAGES * PAGE).unwrap();
        let gate = GateOwner::new().unwrap();
        let [orders, passages] = gate.files().map(|file| file.try_clone_to_owned().unwrap());
        let member = GateMember::join(orders, passages).unwrap();
        Self { gate, member, table, tables, memory }
    }

    fn map(&self, iova: u64, page: u64, access: Access) {
        self.table.map(iova, DATA + page * PAGE, PAGE, access, &mut EmptyTables::none()).unwrap();
    }

    /// Takes a page out, and waits for the member.
    fn unmap(&self, iova: u64) {
        let mut empty = EmptyTables::none();
        self.table.unmap(iova, PAGE, &mut empty).unwrap();
        self.gate.invalidate(range(iova, PAGE), || true).unwrap();
        self.table.free(empty);
    }

    fn files(&self) -> [OwnedFd; 2] {
        self.gate.files().map(|file| file.try_clone_to_owned().unwrap())
    }

    /// What a device is attached to that is to walk the tables.
    fn options(&self) -> NestedOptions {
        let root = GuestTable { format: GuestFormat::VtdSecondStage, root: self.table.root().0 };
        NestedOptions::from(root).shared(self.member.clone())
    }

    /// Maps what the addresses in the tables mean.
    fn map_below(&self, ioas: &Ioas) {
        let tables = Segment::file(&Arc::new(self.tables.try_clone().unwrap()), 0, TABLES as u64, false).unwrap();
        ioas.map(Placement::Fixed(Iova(0)), TABLES as u64, Access::READ, || Ok(vec![tables])).unwrap();
        let memory = Segment::file(&self.memory, 0, PAGES * PAGE, true).unwrap();
        ioas.map(Placement::Fixed(Iova(DATA)), PAGES * PAGE, Access::all(), || Ok(vec![memory])).unwrap();
    }

    fn byte(&self, page: u64) -> u8 {
        let mut byte = [0];
        self.memory.read_exact_at(&mut byte, page * PAGE).unwrap();
        byte[0]
    }
}

/// The side that has the device.
struct Member {
    bench: Bench,
    endpoint: Arc<Endpoint>,
    device: Device,
    parent: Arc<Hwpt>,
}

impl Member {
    fn new(owner: &Owner) -> Self {
        let bench = Bench::new();
        let (endpoint, _, ioas, device) = bench.one_device();
        owner.map_below(&ioas);
        let parent = device.context().hwpt_alloc(&endpoint, &ioas, parent()).unwrap();
        Self { bench, endpoint, device, parent }
    }

    fn table(&self, owner: &Owner) -> Arc<NestedHwpt> {
        self.device.context().hwpt_alloc_nested(&self.parent, owner.options()).unwrap()
    }

    fn attach(&self, owner: &Owner) -> DmaPort {
        let table = self.table(owner);
        self.device.attach(None, &table).unwrap();
        self.endpoint.port()
    }
}

fn both() -> (Owner, Member, DmaPort) {
    let owner = Owner::new();
    let member = Member::new(&owner);
    let port = member.attach(&owner);
    (owner, member, port)
}

fn reason(result: Result<(), ioasid::DmaError>) -> Option<FaultReason> {
    result.err().map(|error| error.reason)
}

#[test]
fn what_is_mapped_is_reached_as_it_is_allowed_and_no_longer() {
    let (owner, _member, mut port) = both();
    owner.map(0x1000, 3, Access::all());
    owner.map(0x2000, 4, Access::READ);
    owner.map(0x3000, 5, Access::WRITE);
    let mut byte = [0];
    for value in 1..100 {
        port.write(Iova(0x1000), &[value]).unwrap();
        port.read(Iova(0x1000), &mut byte).unwrap();
        assert_eq!((byte[0], owner.byte(3)), (value, value));
        port.read(Iova(0x2000), &mut byte).unwrap();
        assert_eq!(reason(port.write(Iova(0x2000), &[1])), Some(FaultReason::NotPermitted));
        port.write(Iova(0x3000), &[value]).unwrap();
        assert_eq!(owner.byte(5), value);
        assert_eq!(reason(port.read(Iova(0x3000), &mut byte)), Some(FaultReason::NotPermitted));
        assert_eq!(reason(port.read(Iova(0x4000), &mut byte)), Some(FaultReason::NotMapped));
        // The same address, and another page.
        owner.unmap(0x1000);
        assert_eq!(reason(port.write(Iova(0x1000), &[0])), Some(FaultReason::NotMapped));
        owner.map(0x1000, u64::from(value) % 2 * 10 + 10, Access::all());
        port.write(Iova(0x1000), &[value]).unwrap();
        assert_eq!(owner.byte(u64::from(value) % 2 * 10 + 10), value);
        owner.unmap(0x1000);
        owner.map(0x1000, 3, Access::all());
    }
}

#[test]
fn more_orders_than_the_ring_has_are_all_followed() {
    let (owner, _member, mut port) = both();
    for orders in [1, 5, 31, 32, 33, 60] {
        (0..orders).for_each(|page| owner.map(0x10_0000 + page * PAGE, page, Access::all()));
        owner.map(0x1000, 63, Access::all());
        (0..orders).for_each(|page| port.write(Iova(0x10_0000 + page * PAGE), &[1]).unwrap());
        port.write(Iova(0x1000), &[2]).unwrap();
        (0..orders).for_each(|page| owner.unmap(0x10_0000 + page * PAGE));
        for page in 0..orders {
            let refused = reason(port.write(Iova(0x10_0000 + page * PAGE), &[1]));
            assert_eq!(refused, Some(FaultReason::NotMapped), "page {page} of {orders}");
        }
        port.write(Iova(0x1000), &[3]).unwrap();
        owner.unmap(0x1000);
    }
}

/// Ports write without pause; a page that is unmapped is its owner's again, and nobody writes it any more.
#[test]
fn no_byte_is_written_through_what_was_unmapped() {
    const THREADS: usize = 3;
    let (owner, member, _) = both();
    let stop = AtomicBool::new(false);
    let written: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
    (0..16).for_each(|page| owner.map(0x10_0000 + page * PAGE, page, Access::all()));
    thread::scope(|scope| {
        for written in &written {
            let mut port = member.endpoint.port();
            let stop = &stop;
            scope.spawn(move || {
                let data = [0xdd; PAGE as usize];
                for turn in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if port.write(Iova(0x10_0000 + turn % 16 * PAGE), &data).is_ok() {
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        while written.iter().any(|written| written.load(Ordering::Relaxed) < 100) {
            thread::yield_now();
        }
        for turn in 0..3000 {
            let (page, iova) = (turn % 16, 0x10_0000 + turn % 16 * PAGE);
            owner.unmap(iova);
            owner.memory.write_all_at(&[0x11; PAGE as usize], page * PAGE).unwrap();
            (0..300).for_each(|_| std::hint::spin_loop());
            let mut found = [0; PAGE as usize];
            owner.memory.read_exact_at(&mut found, page * PAGE).unwrap();
            if found != [0x11; PAGE as usize] {
                stop.store(true, Ordering::Relaxed);
                panic!("round {turn}: written after the unmap returned");
            }
            owner.map(iova, page, Access::all());
        }
        stop.store(true, Ordering::Relaxed);
    });
    let traffic = member.endpoint.traffic().1;
    assert!(traffic >= 300 * PAGE, "{traffic}");
}

#[test]
fn slices_that_are_held_are_waited_for_as_long_as_the_owner_likes() {
    let (owner, _member, mut port) = both();
    owner.map(0x1000, 0, Access::all());
    let slices = port.slices(Iova(0x1000), 16, Access::all()).unwrap();
    let mut asked = 0;
    let given_up = owner.gate.invalidate(range(0x1000, PAGE), || {
        asked += 1;
        asked < 5
    });
    assert_eq!((given_up, asked), (Err(Unacknowledged), 5));
    let (done, is_done) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            owner.unmap(0x1000);
            done.send(()).unwrap();
        });
        let early = is_done.recv_timeout(Duration::from_millis(50));
        assert!(early.is_err(), "it does not wait");
        slices.finish().unwrap();
        is_done.recv_timeout(Duration::from_secs(10)).unwrap();
    });
    assert_eq!(reason(port.write(Iova(0x1000), &[1])), Some(FaultReason::NotMapped));
}

#[test]
fn what_was_attached_by_the_gate_passes_it_until_it_is_detached() {
    let (owner, member, mut port) = both();
    owner.map(0x1000, 0, Access::all());
    port.write(Iova(0x1000), &[1]).unwrap();
    let other = Owner::new();
    let elsewhere = member.table(&other);
    let refused = member.device.attach(None, &elsewhere).unwrap_err();
    assert!(matches!(refused, AttachError::Shared(JoinError::Elsewhere)), "{refused}");
    port.write(Iova(0x1000), &[2]).unwrap();
    // Detached, it is nobody's, and its ports are in no gate.
    member.device.detach(None).unwrap();
    assert_eq!(reason(port.write(Iova(0x1000), &[3])), Some(FaultReason::NotAttached));
    owner.gate.invalidate(IovaRange::ALL, || false).unwrap();
    for round in 4..20 {
        let table = member.table(&owner);
        member.device.attach(None, &table).unwrap();
        member.device.attach(Pasid::new(7), &table).unwrap();
        member.device.detach(None).unwrap();
        let pasid = ioasid::BusAddress { pasid: Pasid::new(7), iova: Iova(0x1000) };
        port.write(pasid, &[round]).unwrap();
        assert_eq!(owner.byte(0), round);
        owner.unmap(0x1000);
        assert_eq!(reason(port.write(pasid, &[round])), Some(FaultReason::NotMapped));
        owner.map(0x1000, 0, Access::all());
        // Destroyed as it is attached.
        member.device.context().park(table.id()).unwrap();
        assert_eq!(reason(port.write(pasid, &[0])), Some(FaultReason::Parked));
        owner.gate.invalidate(IovaRange::ALL, || false).unwrap();
        member.device.detach(Pasid::new(7)).unwrap();
    }
    assert!(member.bench.log.left.lock().unwrap().is_empty());
}

#[test]
fn a_port_for_which_there_is_no_passage_reaches_nothing() {
    let owner = Owner::new();
    let member = Member::new(&owner);
    owner.map(0x1000, 0, Access::all());
    let mut ports: Vec<_> = (0..=PORTS).map(|_| member.endpoint.port()).collect();
    let table = member.table(&owner);
    let refused = member.device.attach(None, &table).unwrap_err();
    assert!(matches!(refused, AttachError::Shared(JoinError::Full)), "{refused}");
    ports.pop();
    member.device.attach(None, &table).unwrap();
    let mut late = member.endpoint.port();
    assert_eq!(reason(late.write(Iova(0x1000), &[1])), Some(FaultReason::NotAttached));
    for port in &mut ports {
        port.write(Iova(0x1000), &[1]).unwrap();
    }
    owner.unmap(0x1000);
    for port in &mut ports {
        assert_eq!(reason(port.write(Iova(0x1000), &[1])), Some(FaultReason::NotMapped));
    }
    // One that closes leaves its passage to the next.
    drop(late);
    ports.pop();
    owner.map(0x1000, 0, Access::all());
    member.endpoint.port().write(Iova(0x1000), &[2]).unwrap();
    // Attached to something else, nobody is shut out.
    let mut late: Vec<_> = (0..3).map(|_| member.endpoint.port()).collect();
    member.device.attach(None, &member.parent).unwrap();
    late.iter_mut().for_each(|port| port.write(Iova(DATA), &[3]).unwrap());
}

#[test]
fn files_that_are_no_gate_are_refused() {
    let owner = Owner::new();
    let join = |orders: OwnedFd, passages: OwnedFd| match GateMember::join(orders, passages) {
        Err(JoinError::Files(error)) => error.kind(),
        other => panic!("{other:?}"),
    };
    // What could be cut short.
    fn plain() -> OwnedFd {
        rustix::fs::memfd_create("plain", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap()
    }
    let long = || {
        let file = File::from(plain());
        file.set_len(1 << 20).unwrap();
        OwnedFd::from(file)
    };
    let short = || {
        let file = plain();
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::SHRINK).unwrap();
        file
    };
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    for bad in [plain, long, short, null] as [fn() -> OwnedFd; 4] {
        let [orders, passages] = owner.files();
        assert_eq!(join(bad(), passages), io::ErrorKind::InvalidInput);
        assert_eq!(join(orders, bad()), io::ErrorKind::InvalidInput);
    }
    // What has large pages, where the kernel has any.
    let flags = rustix::fs::MemfdFlags::ALLOW_SEALING | rustix::fs::MemfdFlags::HUGETLB;
    if let Ok(huge) = rustix::fs::memfd_create("huge", flags) {
        let huge = File::from(huge);
        huge.set_len(2 << 20).unwrap();
        rustix::fs::fcntl_add_seals(&huge, rustix::fs::SealFlags::SHRINK).unwrap();
        let [orders, passages] = owner.files();
        assert_eq!(join(huge.try_clone().unwrap().into(), passages), io::ErrorKind::InvalidInput);
        assert_eq!(join(orders, huge.into()), io::ErrorKind::InvalidInput);
    }
    // The orders cannot be written by whoever has them.
    let [orders, passages] = owner.files();
    assert!(GateMember::join(passages, orders).is_err());
    let [orders, _] = owner.files();
    assert!(File::from(orders).write_at(&[1], 0).is_err());
    // Nor can the tables, however they are opened.
    let path = format!("/proc/self/fd/{}", owner.tables.as_raw_fd());
    for tables in [owner.tables.try_clone().unwrap(), File::options().read(true).write(true).open(path).unwrap()] {
        assert!(tables.write_at(&[1], 0).is_err());
        assert!(tables.set_len(0).is_err());
    }
    let [orders, passages] = owner.files();
    assert!(File::from(passages).set_len(0).is_err());
    assert!(File::from(orders).set_len(0).is_err());
}

/// Two members would use the same passages, and each would say that the other's ports are out.
#[test]
fn a_gate_has_one_member_at_a_time() {
    let owner = Owner::new();
    let join = || {
        let [orders, passages] = owner.files();
        GateMember::join(orders, passages)
    };
    assert!(matches!(join(), Err(JoinError::Joined)));
    let Owner { gate, member, .. } = owner;
    drop(member);
    for _ in 0..3 {
        let [orders, passages] = gate.files().map(|file| file.try_clone_to_owned().unwrap());
        drop(GateMember::join(orders, passages).unwrap());
    }
}

#[test]
fn a_member_that_writes_what_it_likes_is_given_up() {
    let (owner, _member, mut port) = both();
    owner.map(0x1000, 0, Access::all());
    port.write(Iova(0x1000), &[1]).unwrap();
    let [_, passages] = owner.files();
    let passages = File::from(passages);
    let length = passages.metadata().unwrap().len();
    // So many passages that there are no such, and all of them odd.
    passages.write_all_at(&vec![0xff; length as usize], 0).unwrap();
    assert_eq!(owner.gate.invalidate(range(0x1000, PAGE), || false), Err(Unacknowledged));
    // None at all: then nobody is waited for.
    passages.write_all_at(&[0; 8], 0).unwrap();
    owner.gate.invalidate(range(0x1000, PAGE), || false).unwrap();
}

/// Ports that never pause, while what they are attached to comes and goes.
#[test]
fn a_table_is_attached_and_detached_under_busy_ports() {
    let owner = Owner::new();
    let member = Member::new(&owner);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            let mut port = member.endpoint.port();
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = port.write(Iova(0x1000), &[0xdd; PAGE as usize]);
                }
            });
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..600 {
                owner.map(0x1000, 0, Access::all());
                let table = member.table(&owner);
                let before = member.endpoint.traffic().1;
                member.device.attach(None, &table).unwrap();
                while round % 4 == 0 && member.endpoint.traffic().1 == before {
                    thread::yield_now();
                }
                owner.unmap(0x1000);
                owner.memory.write_all_at(&[0x11; PAGE as usize], 0).unwrap();
                assert_eq!(owner.byte(0), 0x11, "round {round}");
                if round % 2 == 0 {
                    // Detached in the middle of its writes.
                    owner.map(0x1000, 0, Access::all());
                }
                member.device.detach(None).unwrap();
                // Nobody is in the gate any more.
                owner.gate.invalidate(IovaRange::ALL, || false).unwrap();
                owner.table.unmap(0x1000, PAGE, &mut EmptyTables::none()).unwrap();
                member.device.context().destroy(table.id()).unwrap();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        done.unwrap();
    });
}

/// Two parts of one device, in two contexts, each with tables of another process: their ports are the device's, and
/// pass one gate at a time.
#[test]
fn parts_of_a_device_in_two_contexts_share_its_ports() {
    let bench = Bench::new();
    let whole = bench.endpoint(1, 1);
    let stop = AtomicBool::new(false);
    let attached = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            let (mut port, stop) = (whole.port(), &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for pasid in 0..8 {
                        let _ =
                            port.write(ioasid::BusAddress { pasid: Pasid::new(pasid), iova: Iova(0x1000) }, &[1; 64]);
                    }
                }
            });
        }
        let parts: Vec<_> = (0..2u8)
            .map(|number| {
                let (bench, whole, attached) = (&bench, &whole, &attached);
                scope.spawn(move || {
                    let owner = Owner::new();
                    owner.map(0x1000, 0, Access::all());
                    let rid = ioasid::Rid::new(0, 0, 2 + number, 0).unwrap();
                    let group = ioasid::GroupId(2 + u32::from(number));
                    let part = bench.machine.add_part(whole, rid, group, ioasid::PartPasids::None).unwrap();
                    part.set_bus_master(true).unwrap();
                    let context = bench.machine.context();
                    let device = context.bind(&part).unwrap();
                    let ioas = context.ioas_alloc().unwrap();
                    owner.map_below(&ioas);
                    let hwpt = context.hwpt_alloc(&part, &ioas, parent()).unwrap();
                    for _ in 0..2000 {
                        let table = context.hwpt_alloc_nested(&hwpt, owner.options()).unwrap();
                        match device.attach(None, &table) {
                            Ok(_) => {
                                attached.fetch_add(1, Ordering::Relaxed);
                                owner.unmap(0x1000);
                                owner.map(0x1000, 0, Access::all());
                                device.detach(None).unwrap();
                                owner.gate.invalidate(IovaRange::ALL, || false).unwrap();
                            }
                            Err(AttachError::Shared(JoinError::Elsewhere)) => {}
                            Err(error) => panic!("{error}"),
                        }
                        context.destroy(table.id()).unwrap();
                    }
                })
            })
            .collect();
        let ends: Vec<_> = parts.into_iter().map(|part| part.join()).collect();
        stop.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(|end| end.unwrap());
    });
    assert!(attached.into_inner() > 100);
}
