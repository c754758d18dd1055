//! What a port is as guest memory, as claims.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemory};

use super::*;
use crate::memory::{RemoteMemory, Segment};
use crate::{
    Context, Device, Endpoint, Fault, GroupId, Hwpt, Ioas, IovaRange, Machine, Observer, Placement, Rid, UnmapError,
};

const PAGE: u64 = 4096;
const BASE: u64 = 0x10_0000;

#[derive(Default)]
struct Faults(Mutex<Vec<(u64, bool, FaultReason)>>);

impl Observer for Faults {
    fn fault(&self, fault: &Fault) {
        self.0.lock().unwrap().push((fault.iova.0, fault.write, fault.reason));
    }
}

impl Faults {
    fn take(&self) -> Vec<(u64, bool, FaultReason)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A device with four pages at [`BASE`], each a mapping of its own: three to read and write, and one to read.
struct Bench {
    faults: Arc<Faults>,
    memory: PortMemory,
    ioas: Arc<Ioas>,
    hwpt: Arc<Hwpt>,
    device: Device,
    endpoint: Arc<Endpoint>,
    /// Another device's view of the same address space, which is never inside for long.
    witness: PortMemory,
    _devices: (Arc<Context>, Device),
}

fn bench() -> Bench {
    bench_with(None)
}

fn bench_with(pasid: Option<Pasid>) -> Bench {
    let faults = Arc::new(Faults::default());
    let machine = Machine::new(faults.clone());
    let endpoints = [1, 2].map(|n| machine.add_endpoint(Rid::new(0, 0, n, 0).unwrap(), GroupId(n.into())).unwrap());
    let context = machine.context();
    let ioas = context.ioas_alloc().unwrap();
    for page in 0..4 {
        let access = if page < 3 { Access::all() } else { Access::READ };
        map(&ioas, page, access, Segment::memfd(PAGE).unwrap().0);
    }
    let [device, other] = [0, 1].map(|n| context.bind(&endpoints[n]).unwrap());
    let hwpt = device.attach(pasid, &ioas).unwrap();
    other.attach(pasid, &ioas).unwrap();
    let [memory, witness] = [0, 1].map(|n| {
        endpoints[n].set_bus_master(true).unwrap();
        PortMemory::new(endpoints[n].port(), pasid)
    });
    let ([endpoint, _], hwpt) = (endpoints, context.hwpt(hwpt).unwrap());
    Bench { faults, memory, ioas, hwpt, device, endpoint, witness, _devices: (context, other) }
}

fn map(ioas: &Ioas, page: u64, access: Access, memory: Segment) {
    ioas.map(Placement::Fixed(Iova(BASE + page * PAGE)), memory.length(), access, || Ok(vec![memory])).unwrap();
}

fn at(offset: u64) -> GuestAddress {
    GuestAddress(BASE + offset)
}

fn page(page: u64) -> IovaRange {
    IovaRange::new(BASE + page * PAGE, PAGE).unwrap()
}

impl Bench {
    fn slice(&self, offset: u64, count: usize) -> VolatileSlice<'_, Hold<'_>> {
        self.memory.get_slices(at(offset), count, Permissions::ReadWrite).unwrap().next().unwrap().unwrap()
    }

    /// Unmaps the first page in another thread, and returns when it is out of the table. The result comes when no DMA
    /// uses it any more.
    fn unmap_elsewhere<'s>(&self, scope: &'s thread::Scope<'s, '_>) -> mpsc::Receiver<Result<u64, UnmapError>> {
        let (ioas, (done, result)) = (self.ioas.clone(), mpsc::channel());
        scope.spawn(move || done.send(ioas.unmap(page(0))));
        while self.witness.check_range(at(0), 1, Permissions::Read) {
            thread::yield_now();
        }
        result
    }
}

#[test]
fn what_is_written_across_pages_and_mappings_is_read_back() {
    for pasid in [None, Pasid::new(7)] {
        let bench = bench_with(pasid);
        let data: Vec<u8> = (0..2 * PAGE).map(|n| (n % 251) as u8).collect();
        bench.memory.write_slice(&data, at(PAGE / 2)).unwrap();
        let mut found = vec![0; data.len()];
        bench.memory.read_slice(&mut found, at(PAGE / 2)).unwrap();
        assert_eq!(found, data);
        let pieces = bench.memory.get_slices(at(PAGE / 2), data.len(), Permissions::Read).unwrap();
        let lengths: Vec<_> = pieces.map(|piece| piece.unwrap().len() as u64).collect();
        assert_eq!(lengths, [PAGE / 2, PAGE, PAGE / 2]);
        assert_eq!(bench.faults.take(), []);
        assert_eq!(bench.endpoint.traffic(), (4 * PAGE, 2 * PAGE));
    }
}

#[test]
fn nothing_is_an_empty_iterator_and_no_fault() {
    let bench = bench();
    assert!(bench.memory.get_slices(at(9 * PAGE), 0, Permissions::Read).unwrap().next().is_none());
    assert!(bench.memory.check_range(at(9 * PAGE), 0, Permissions::Read));
    assert_eq!(bench.memory.read(&mut [], at(9 * PAGE)).unwrap(), 0);
    assert_eq!(bench.faults.take(), []);
}

#[test]
fn values_are_loaded_and_stored_in_one_access_where_they_are_aligned() {
    let bench = bench();
    bench.memory.store(0x1234u16.to_le(), at(2), Ordering::Release).unwrap();
    assert_eq!(bench.memory.load::<u16>(at(2), Ordering::Acquire).unwrap().to_le(), 0x1234);
    bench.memory.store(u64::MAX, at(PAGE - 8), Ordering::SeqCst).unwrap();
    assert_eq!(bench.memory.load::<u64>(at(PAGE - 8), Ordering::SeqCst).unwrap(), u64::MAX);
    assert!(bench.memory.load::<u64>(at(4), Ordering::Relaxed).is_err(), "misaligned");
    assert!(bench.memory.store(0u16, at(PAGE - 1), Ordering::Relaxed).is_err(), "across pages");
}

#[test]
fn a_refused_access_changes_nothing_and_is_reported() {
    let bench = bench();
    bench.memory.write_slice(&[7; 16], at(3 * PAGE - 16)).unwrap();
    let refused = bench.memory.write_slice(&[1; 16], at(3 * PAGE)).unwrap_err();
    let GuestMemoryError::IOError(error) = refused else { panic!("{refused}") };
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    let inner = error.get_ref().unwrap().downcast_ref::<DmaError>().unwrap();
    assert_eq!((inner.at.iova.0, inner.write, inner.reason), (BASE + 3 * PAGE, true, FaultReason::NotPermitted));
    assert_eq!(bench.faults.take(), [(BASE + 3 * PAGE, true, FaultReason::NotPermitted)]);
    assert_eq!(bench.memory.read_obj::<u128>(at(3 * PAGE)).unwrap(), 0);

    let refused = bench.memory.read_obj::<u8>(at(4 * PAGE)).unwrap_err();
    assert!(matches!(refused, GuestMemoryError::InvalidGuestAddress(address) if address == at(4 * PAGE)));
    assert_eq!(bench.faults.take(), [(BASE + 4 * PAGE, false, FaultReason::NotMapped)]);
    assert!(bench.memory.read_obj::<u8>(GuestAddress(u64::MAX)).is_err());
    assert_eq!(bench.faults.take(), [(u64::MAX, false, FaultReason::NotMapped)]);

    // As with any guest memory, what lies before is written.
    let refused = bench.memory.write_slice(&[9; 32], at(3 * PAGE - 16)).unwrap_err();
    assert!(matches!(refused, GuestMemoryError::PartialBuffer { expected: 32, completed: 16 }));
    assert_eq!(bench.faults.take(), [(BASE + 3 * PAGE, true, FaultReason::NotPermitted)]);
    // The port is not left inside.
    bench.ioas.unmap(IovaRange::ALL).unwrap();
}

#[test]
fn a_range_is_checked_to_its_last_byte_and_without_a_fault() {
    let bench = bench();
    let check = |offset, count, permissions| bench.memory.check_range(at(offset), count, permissions);
    assert!(check(0, 4 * PAGE as usize, Permissions::Read));
    assert!(check(1, 3 * PAGE as usize - 1, Permissions::ReadWrite));
    assert!(!check(1, 3 * PAGE as usize, Permissions::Write));
    assert!(!check(1, 4 * PAGE as usize, Permissions::Read));
    assert!(!check(0, usize::MAX, Permissions::Read));
    assert!(!bench.memory.check_range(GuestAddress(u64::MAX), 2, Permissions::Read));
    bench.device.detach(None).unwrap();
    assert!(!check(0, 1, Permissions::Read));
    assert_eq!((bench.faults.take(), bench.endpoint.traffic()), (vec![], (0, 0)));
}

#[test]
fn an_unmap_waits_for_the_last_slice_of_all_that_were_made_of_one() {
    let bench = bench();
    thread::scope(|scope| {
        let slice = bench.slice(0, 64);
        let (clone, part) = (slice.clone(), slice.subslice(8, 8).unwrap());
        let unmapped = bench.unmap_elsewhere(scope);
        let is_waiting = || unmapped.recv_timeout(Duration::from_millis(50)) == Err(mpsc::RecvTimeoutError::Timeout);
        assert!(is_waiting());
        drop(slice);
        clone.write_obj(5u8, 8).unwrap();
        drop(clone);
        assert!(is_waiting());
        assert_eq!(part.read_obj::<u8>(0).unwrap(), 5);
        drop(part);
        assert_eq!(unmapped.recv().unwrap(), Ok(PAGE));
    });
    assert!(bench.memory.read_obj::<u8>(at(0)).is_err());
}

#[test]
fn what_is_borrowed_meanwhile_is_part_of_the_same_access() {
    let bench = bench();
    thread::scope(|scope| {
        let outer = bench.slice(0, 8);
        bench.memory.write_obj(3u64, at(PAGE)).unwrap();
        let inner = bench.slice(PAGE, 8);
        let unmapped = bench.unmap_elsewhere(scope);
        drop(outer);
        assert_eq!(unmapped.recv_timeout(Duration::from_millis(50)), Err(mpsc::RecvTimeoutError::Timeout));
        assert_eq!(inner.read_obj::<u64>(0).unwrap(), 3);
        // A translation that was not cached, in the middle of the access.
        assert_eq!(bench.memory.read_obj::<u8>(at(2 * PAGE)).unwrap(), 0);
        drop(inner);
        assert_eq!(unmapped.recv().unwrap(), Ok(PAGE));
    });
}

#[test]
fn a_thread_does_not_wait_for_itself() {
    let bench = bench();
    let slice = bench.slice(0, 8);
    assert!(matches!(bench.ioas.unmap(page(0)), Err(UnmapError::WouldDeadlock(_))));
    slice.write_obj(1u64, 0).unwrap();
    drop(slice);
    assert_eq!(bench.ioas.unmap(page(0)).unwrap(), PAGE);
}

#[test]
fn it_can_be_given_to_another_thread() {
    let bench = bench();
    bench.memory.write_obj(5u8, at(0)).unwrap();
    let memory = bench.memory;
    assert_eq!(thread::spawn(move || memory.read_obj::<u8>(at(0)).unwrap()).join().unwrap(), 5);
}

#[test]
fn a_leaked_slice_holds_until_the_memory_is_dropped() {
    let bench = bench();
    std::mem::forget(bench.slice(0, 8));
    bench.memory.write_obj(1u8, at(0)).unwrap();
    assert!(matches!(bench.ioas.unmap(page(0)), Err(UnmapError::WouldDeadlock(_))));
    drop(bench.memory);
    assert_eq!(bench.ioas.unmap(page(0)).unwrap(), PAGE);
}

#[test]
fn an_access_after_leaked_slices_of_the_port_ends_theirs() {
    let Bench { ioas, endpoint, .. } = &bench();
    let mut port = endpoint.port();
    std::mem::forget(port.slices(Iova(BASE), 8, Access::READ).unwrap());
    assert!(matches!(ioas.unmap(page(0)), Err(UnmapError::WouldDeadlock(_))));
    port.read(Iova(BASE), &mut [0]).unwrap();
    assert_eq!(ioas.unmap(page(0)).unwrap(), PAGE);
    assert!(port.read(Iova(BASE), &mut [0]).is_err());
}

#[test]
fn a_write_is_in_the_dirty_log_of_the_page_table() {
    let bench = bench();
    bench.hwpt.start_dirty_tracking(PAGE).unwrap();
    bench.memory.read_obj::<u8>(at(0)).unwrap();
    bench.memory.write_obj(1u8, at(PAGE)).unwrap();
    let dirty = || {
        let mut bitmap = [0];
        bench.hwpt.read_dirty(IovaRange::new(BASE, 4 * PAGE).unwrap(), PAGE, true, &mut bitmap).unwrap();
        bitmap[0]
    };
    assert_eq!(dirty(), 0b10);
    bench.memory.write_obj(1u8, at(PAGE)).unwrap();
    bench.memory.store(1u8, at(2 * PAGE), Ordering::Relaxed).unwrap();
    assert_eq!(dirty(), 0b110);
    assert_eq!(dirty(), 0);
}

/// Memory that is nowhere to be mapped.
struct Far;

impl RemoteMemory for Far {
    fn read(&self, _address: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(1);
        Ok(())
    }
    fn write(&self, _address: u64, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn memory_of_another_process_is_refused_with_the_reason() {
    let bench = bench();
    map(&bench.ioas, 4, Access::all(), Segment::remote(Arc::new(Far), 0, PAGE));
    assert!(!bench.memory.check_range(at(4 * PAGE), 1, Permissions::Read));
    let refused = bench.memory.read_obj::<u8>(at(4 * PAGE)).unwrap_err().to_string();
    assert!(refused.contains("another process's own"), "{refused}");
    assert_eq!(bench.faults.take(), [(BASE + 4 * PAGE, false, FaultReason::NotLocal)]);
}

#[test]
fn more_translations_than_a_new_cache_holds_are_all_found_again() {
    let bench = bench();
    let pages = 2000;
    let each = (0..pages).map(|_| Segment::memfd(PAGE).unwrap().0).collect();
    let start = 1 << 30;
    bench.ioas.map(Placement::Fixed(Iova(start)), pages * PAGE, Access::all(), || Ok(each)).unwrap();
    for _ in 0..3 {
        for page in 0..pages {
            let at = GuestAddress(start + page * PAGE);
            let before: u64 = bench.memory.read_obj(at).unwrap();
            bench.memory.write_obj(before + page, at).unwrap();
        }
    }
    let found = |page: u64| bench.memory.read_obj::<u64>(GuestAddress(start + page * PAGE)).unwrap();
    assert!((0..pages).all(|page| found(page) == 3 * page));
}

#[test]
fn a_virtio_queue_runs_over_a_port() {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    let bench = bench();
    let memory = &bench.memory;
    let mut queue = Queue::new(16).unwrap();
    queue.try_set_desc_table_address(at(0)).unwrap();
    queue.try_set_avail_ring_address(at(0x400)).unwrap();
    queue.try_set_used_ring_address(at(0x800)).unwrap();
    queue.set_ready(true);
    assert!(queue.is_valid(memory));

    // What is to be read lies across a page boundary; so does the place for the answer.
    let chain = [Descriptor::new(BASE + PAGE - 4, 8, NEXT, 1), Descriptor::new(BASE + 2 * PAGE - 2, 8, WRITE, 0)];
    for (index, descriptor) in chain.into_iter().enumerate() {
        memory.write_obj(RawDescriptor::from(descriptor), at(16 * index as u64)).unwrap();
    }
    memory.write_obj(0x0102_0304_0506_0708u64, at(PAGE - 4)).unwrap();
    memory.store(1u16.to_le(), at(0x402), Ordering::Release).unwrap();

    let chain = queue.iter(memory).unwrap().next().unwrap();
    let head = chain.head_index();
    {
        let mut reader = chain.clone().reader(memory).unwrap();
        let mut writer = chain.writer(memory).unwrap();
        assert!(matches!(bench.ioas.unmap(page(1)), Err(UnmapError::WouldDeadlock(_))), "all of it is held");
        let value: u64 = reader.read_obj().unwrap();
        writer.write_obj(!value).unwrap();
    }
    queue.add_used(memory, head, 8).unwrap();
    assert_eq!(memory.read_obj::<u64>(at(2 * PAGE - 2)).unwrap(), !0x0102_0304_0506_0708);
    assert_eq!(memory.load::<u16>(at(0x802), Ordering::Acquire).unwrap(), 1);

    // The same descriptor, once what it points to is gone.
    bench.ioas.unmap(page(1)).unwrap();
    memory.store(2u16.to_le(), at(0x402), Ordering::Release).unwrap();
    let chain = queue.iter(memory).unwrap().next().unwrap();
    assert!(chain.reader(memory).is_err());
    assert_eq!(bench.faults.take(), [(BASE + PAGE, false, FaultReason::NotMapped)]);
}

#[test]
fn who_borrows_from_a_port_that_came_with_a_leaked_slice_holds_it() {
    let (done, told) = mpsc::channel();
    thread::spawn(move || {
        // The rest of it stays.
        let bench = bench();
        let (memory, ioas) = (bench.memory, bench.ioas);
        let at = GuestAddress(BASE);
        let memory = thread::spawn(move || {
            std::mem::forget(memory.get_slices(at, 8, Permissions::Read).unwrap().next());
            memory
        });
        let memory = memory.join().unwrap();
        let slice = memory.get_slices(at, 8, Permissions::Read).unwrap().next().unwrap().unwrap();
        let refused = ioas.unmap(IovaRange { start: BASE, last: BASE + PAGE - 1 });
        drop(slice);
        done.send(refused).unwrap();
    });
    // Without an error it waits for itself.
    let refused = told.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(matches!(refused, Err(UnmapError::WouldDeadlock(_))));
}

#[test]
fn it_says_what_it_is() {
    let bench = bench_with(Pasid::new(7));
    assert_eq!(format!("{:?}", bench.memory), "PortMemory { pasid: Some(Pasid(7)), .. }");
}
