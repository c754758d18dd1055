//! DMA allocates nothing and waits for no lock of an address space, hit or miss; unmapping, detaching and reading the
//! dirty log allocate nothing either.

#![allow(unsafe_code, reason = "counts allocations in a global allocator")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use ioasid::memory::Segment;
use ioasid::{Access, FaultReason, GroupId, Ioas, Iova, IovaRange, Machine, Observer, Placement, Rid, UnmapError};

use common::{Bench, PAGE, map, range};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    /// Asked at each allocation of this thread, once at a time.
    static PROBE: Cell<Option<fn()>> = const { Cell::new(None) };
}

// SAFETY: passes everything on.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        if let Some(probe) = PROBE.take() {
            probe();
            PROBE.set(Some(probe));
        }
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often this thread allocates in `work`.
fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn dma_allocates_nothing_whether_it_hits_or_walks() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    // Two areas far from each other, so that every level of the tables is walked.
    let (near, far) = (0x10_0000, 1 << 40);
    map(&ioas, near, 64).unwrap();
    map(&ioas, far, 64).unwrap();
    device.attach(None, &ioas).unwrap();
    let mut data = [0; 3 * PAGE as usize];
    // What a port keeps for itself it gets at its first access of a kind.
    port.copy(Iova(near), Iova(far), 8).unwrap();
    drop(port.slices(Iova(near), 3 * PAGE, Access::READ).unwrap());
    for state in ["walking", "hitting"] {
        let count = allocations(|| {
            for base in [near, far] {
                port.read(Iova(base + 8 * PAGE + 5), &mut data).unwrap();
                port.write(Iova(base + 16 * PAGE + 5), &data).unwrap();
                port.copy(Iova(base + 24 * PAGE), Iova(base + 32 * PAGE), 3 * PAGE).unwrap();
                port.fetch_add(Iova(base + 40 * PAGE), 1).unwrap();
                port.slices(Iova(base + 48 * PAGE), 3 * PAGE, Access::all()).unwrap().finish().unwrap();
                port.read(Iova(base + 64 * PAGE), &mut [0]).unwrap_err();
            }
        });
        // The log of the test's own observer grows with each fault.
        let told = bench.log.faults.lock().unwrap().len();
        assert!(count <= told, "{count} allocations when {state}");
    }
}

thread_local! {
    static SPACE: RefCell<Option<Arc<Ioas>>> = const { RefCell::new(None) };
    static INSIDE: Cell<usize> = const { Cell::new(0) };
}

/// Counts what is allocated where nobody may wait, inside the gate, as an unmap by this thread would never end there.
fn count_inside() {
    SPACE.with_borrow(|space| {
        let nothing = space.as_ref().unwrap().unmap(range(1 << 45, PAGE));
        INSIDE.set(INSIDE.get() + usize::from(matches!(nothing, Err(UnmapError::WouldDeadlock(_)))));
    });
}

#[test]
fn room_for_many_slices_is_made_outside_of_the_gate() {
    const SLICES: u64 = 5000;
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    // One page again and again: no two slices are one.
    let memory = Segment::memfd(PAGE).unwrap().0;
    for page in 0..SLICES {
        let segment = memory.clone();
        ioas.map(Placement::Fixed(Iova(page * PAGE)), PAGE, Access::READ, || Ok(vec![segment])).unwrap();
    }
    device.attach(None, &ioas).unwrap();
    // What a thread keeps for itself it gets at its first access of the kind.
    drop(port.slices(Iova(0), 8, Access::READ).unwrap());
    SPACE.set(Some(ioas.clone()));
    PROBE.set(Some(count_inside));
    let slices = port.slices(Iova(0), SLICES * PAGE, Access::READ).unwrap();
    PROBE.set(None);
    assert_eq!((slices.len() as u64, INSIDE.get()), (SLICES, 0));
    drop(slices);
    // The probe does find what is allocated inside: `add` goes on in the access that there is.
    let mut slices = port.slices(Iova(0), SLICES * PAGE, Access::READ).unwrap();
    PROBE.set(Some(count_inside));
    for _ in 0..4 {
        slices.add(Iova(0), SLICES * PAGE).unwrap();
    }
    PROBE.set(None);
    assert!(INSIDE.get() > 0);
    drop(slices);
    // However long a device says that a transaction is: what is not there ends it.
    let refused = port.slices(Iova(0), u64::MAX, Access::READ).unwrap_err();
    assert_eq!((refused.at.iova.0, refused.reason), (SLICES * PAGE, FaultReason::NotMapped));
    SPACE.set(None);
}

#[test]
fn taking_away_allocates_nothing() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    (0..64).for_each(|n| drop(map(&ioas, n << 21, 2)));
    let hwpt = device.context().hwpt(device.attach(None, &ioas).unwrap()).unwrap();
    hwpt.start_dirty_tracking(PAGE).unwrap();
    port.write(Iova(1 << 21), &[1]).unwrap();
    let mut bitmap = [0; 1024];
    assert_eq!(allocations(|| hwpt.read_dirty(range(0, 64 << 20), PAGE, true, &mut bitmap).unwrap()), 0);
    assert_eq!(allocations(|| assert_eq!(ioas.unmap(range(1 << 21, 2 * PAGE)), Ok(2 * PAGE))), 0);
    assert_eq!(allocations(|| assert!(ioas.unmap(IovaRange::ALL).is_ok())), 0);
    drop(hwpt);
    assert_eq!(allocations(|| device.detach(None).unwrap()), 0);
}

/// Stops whoever unmaps a certain page, in the middle of it.
struct Stopper {
    reached: SyncSender<()>,
    go_on: Mutex<Receiver<()>>,
}

const STOP: u64 = 0x20_0000;

impl Observer for Stopper {
    fn unmapped(&self, _ioas: u64, range: IovaRange) {
        if range.start() == STOP {
            self.reached.send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
    }
}

#[test]
fn dma_waits_for_no_lock_of_who_unmaps() {
    let ((reached, is_reached), (go_on, goes_on)) = (sync_channel(1), sync_channel(1));
    let machine = Machine::new(Arc::new(Stopper { reached, go_on: Mutex::new(goes_on) }));
    let endpoint = machine.add_endpoint(Rid::new(0, 0, 1, 0).unwrap(), GroupId(1)).unwrap();
    endpoint.set_bus_master(true).unwrap();
    let context = machine.context();
    let (ioas, device) = (context.ioas_alloc().unwrap(), context.bind(&endpoint).unwrap());
    map(&ioas, 0x10_0000, 64).unwrap();
    map(&ioas, STOP, 1).unwrap();
    device.attach(None, &ioas).unwrap();
    let mut port = endpoint.port();
    std::thread::scope(|scope| {
        scope.spawn(|| ioas.unmap(range(STOP, PAGE)).unwrap());
        is_reached.recv().unwrap();
        // It holds the address space's locks. Walks and hits go on:
        for _ in 0..2 {
            (0..64).for_each(|n| port.write(Iova(0x10_0000 + n * PAGE), &[1]).unwrap());
        }
        // And so does mapping elsewhere.
        map(&ioas, 0x30_0000, 1).unwrap();
        port.write(Iova(0x30_0000), &[1]).unwrap();
        go_on.send(()).unwrap();
    });
    assert!(port.write(Iova(STOP), &[1]).is_err());
}
