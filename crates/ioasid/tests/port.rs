//! What a device model can do through its port, and what it is refused.

#![allow(unsafe_code, reason = "looks at memory that devices write")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::time::Duration;

use ioasid::memory::{RemoteMemory, Segment, TableSpace};
use ioasid::{
    Access, AttachError, BusAddress, DirtyError, DmaError, DmaPort, FaultReason, GroupId, Iova, IovaRange, Machine,
    MapError, Pasid, Placement, Rid, Silent, UnmapError, WouldDeadlock,
};
use proptest::prelude::*;

use common::{Bench, PAGE, map, range};

/// Memory that is not mapped here.
struct Elsewhere(Mutex<Vec<u8>>);

impl Elsewhere {
    fn segment(pages: u64) -> Segment {
        let bytes = pages * PAGE;
        Segment::remote(Arc::new(Self(Mutex::new(vec![0; bytes as usize]))), 0, bytes)
    }
}

impl RemoteMemory for Elsewhere {
    fn read(&self, address: u64, data: &mut [u8]) -> io::Result<()> {
        data.copy_from_slice(&self.0.lock().unwrap()[address as usize..][..data.len()]);
        Ok(())
    }
    fn write(&self, address: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap()[address as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

fn word(port: &mut DmaPort, at: u64) -> u64 {
    let mut word = [0; 8];
    port.read(Iova(at), &mut word).unwrap();
    u64::from_ne_bytes(word)
}

#[test]
fn atomics_of_two_ports_lose_nothing() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 1).unwrap();
    device.attach(None, &ioas).unwrap();
    const EACH: u64 = 100_000;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut port = endpoint.port();
            scope.spawn(move || {
                for _ in 0..EACH {
                    port.fetch_add(Iova(0x1008), 1).unwrap();
                    let mut seen = 0;
                    while let Err(now) = swap(&mut port, 0x1010, seen, seen + 1) {
                        seen = now;
                    }
                }
            });
        }
    });
    assert_eq!((word(&mut port, 0x1008), word(&mut port, 0x1010)), (2 * EACH, 2 * EACH));
    assert_eq!(port.compare_and_swap(Iova(0x1008), 1, 2), Ok(2 * EACH), "what was there, and nothing is changed");
    assert_eq!(word(&mut port, 0x1008), 2 * EACH);
}

/// As `compare_exchange` has it.
fn swap(port: &mut DmaPort, at: u64, current: u64, new: u64) -> Result<(), u64> {
    let found = port.compare_and_swap(Iova(at), current, new).unwrap();
    if found == current { Ok(()) } else { Err(found) }
}

#[test]
fn an_atomic_that_cannot_be_is_a_named_error_and_changes_nothing() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 1).unwrap();
    let file = || Ok(vec![Segment::memfd(PAGE).unwrap().0]);
    ioas.map(Placement::Fixed(Iova(0x2000)), PAGE, Access::READ, file).unwrap();
    ioas.map(Placement::Fixed(Iova(0x3000)), PAGE, Access::all(), || Ok(vec![Elsewhere::segment(1)])).unwrap();
    device.attach(None, &ioas).unwrap();
    let cases = [
        (0x1001, FaultReason::Misaligned),
        (0x1ffc, FaultReason::Misaligned),
        (0x2000, FaultReason::NotPermitted),
        (0x3000, FaultReason::NotLocal),
        (0x4000, FaultReason::NotMapped),
        (u64::MAX - 7, FaultReason::NotMapped),
    ];
    for (at, reason) in cases {
        let refused = Err(DmaError::new(Iova(at).into(), true, reason));
        assert_eq!(port.fetch_add(Iova(at), 1), refused);
        assert_eq!(port.compare_and_swap(Iova(at), 0, 1), refused);
    }
    assert_eq!(bench.log.faults.lock().unwrap().len(), 2 * cases.len(), "each is told once");
    assert!([0x1000, 0x1ff8, 0x2000, 0x3000].iter().all(|&at| word(&mut port, at) == 0));
}

#[test]
fn slices_are_as_long_as_what_lies_together_and_lead_to_the_memory() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 3).unwrap();
    map(&ioas, 0x4000, 1).unwrap();
    device.attach(None, &ioas).unwrap();
    let mut slices = port.slices(Iova(0x1800), 0x3000, Access::all()).unwrap();
    let lengths = |slices: &ioasid::Slices<'_>| slices.iter().map(|slice| slice.len()).collect::<Vec<_>>();
    assert_eq!(lengths(&slices), [0x2800, 0x800]);
    slices.add(Iova(0x1000), 8).unwrap();
    assert_eq!(lengths(&slices), [0x2800, 0x800, 8], "a range of its own, wherever it lies");
    // SAFETY: as long as the slices live.
    unsafe { slices[1].as_ptr().write(7) };
    slices.finish().unwrap();
    let mut byte = [0];
    port.read(Iova(0x4000), &mut byte).unwrap();
    assert_eq!(byte, [7]);
    assert!(port.slices(Iova(0x1000), 0, Access::READ).unwrap().is_empty());
}

#[test]
fn slices_that_cannot_be_had_hold_nothing_up() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 1).unwrap();
    ioas.map(Placement::Fixed(Iova(0x8000)), PAGE, Access::all(), || Ok(vec![Elsewhere::segment(1)])).unwrap();
    device.attach(None, &ioas).unwrap();
    let mut reason = |at, length| port.slices(Iova(at), length, Access::READ).err().map(|e| (e.at.iova.0, e.reason));
    assert_eq!(reason(0x1ff0, 0x20), Some((0x2000, FaultReason::NotMapped)));
    assert_eq!(reason(0x8000, 8), Some((0x8000, FaultReason::NotLocal)));
    assert_eq!(reason(u64::MAX, 2), Some((u64::MAX, FaultReason::NotMapped)));
    let mut slices = port.slices(Iova(0x1000), 8, Access::READ).unwrap();
    assert_eq!(slices.add(Iova(0x1ff0), 0x20).map_err(|error| error.reason), Err(FaultReason::NotMapped));
    assert_eq!(slices.len(), 1, "what was borrowed before stays so");
    drop(slices);
    ioas.unmap(range(0x1000, PAGE)).unwrap();
}

#[test]
fn a_thread_that_holds_slices_is_told_so_when_it_would_wait_for_itself() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 1).unwrap();
    let table = device.context().hwpt(device.attach(None, &ioas).unwrap()).unwrap();
    table.start_dirty_tracking(PAGE).unwrap();
    let slices = port.slices(Iova(0x1000), 8, Access::all()).unwrap();

    assert_eq!(ioas.unmap(range(0x1000, PAGE)), Err(UnmapError::WouldDeadlock(WouldDeadlock::HoldsSlices)));
    assert_eq!(device.detach(None), Err(WouldDeadlock::HoldsSlices));
    assert!(matches!(device.attach(None, &ioas), Err(AttachError::WouldDeadlock(_))));
    // To look without clearing takes a lock, too, for which somebody may be queueing.
    for clear in [false, true] {
        let refused = table.read_dirty(range(0x1000, PAGE), PAGE, clear, &mut [0]);
        assert!(matches!(refused, Err(DirtyError::WouldDeadlock(_))));
    }
    assert!(table.start_dirty_tracking(PAGE).is_err());
    // SAFETY: they still live.
    unsafe { slices[0].as_ptr().write(1) };
    assert!(matches!(map(&ioas, 0x2000, 1), Err(MapError::WouldDeadlock(_))));
    assert_eq!(endpoint.set_bus_master(false), Err(WouldDeadlock::HoldsSlices));
    // What need not wait works: to look at the ports, and DMA by another port.
    endpoint.port().write(Iova(0x1000), &[1]).unwrap();
    assert!(endpoint.traffic().1 > 0 && bench.machine.view().len() == 1);

    drop(slices);
    assert_eq!(ioas.unmap(range(0x1000, PAGE)), Ok(PAGE));
    assert_eq!(device.detach(None), Ok(()));
}

#[test]
fn a_holder_sees_the_ports_and_is_refused_while_another_waits_for_it() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 1).unwrap();
    device.attach(None, &ioas).unwrap();
    let slices = port.slices(Iova(0x1000), 8, Access::READ).unwrap();
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| ioas.unmap(range(0x1000, PAGE)).unwrap());
        // Until it waits, which it does with all of its locks held: then nothing new can be mapped there.
        while ioas.size().0 != 0 {
            std::thread::yield_now();
        }
        assert_eq!(ioas.unmap(IovaRange::ALL), Err(UnmapError::WouldDeadlock(WouldDeadlock::HoldsSlices)));
        assert_eq!(device.detach(None), Err(WouldDeadlock::HoldsSlices));
        let _ = (endpoint.traffic(), bench.machine.view());
        drop(endpoint.port());
        assert!(!unmap.is_finished());
        drop(slices);
        unmap.join().unwrap();
    });
}

#[test]
fn slices_that_are_leaked_are_over_with_the_next_access_or_the_port() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 2).unwrap();
    device.attach(None, &ioas).unwrap();
    // In a thread of its own, which stays the one that holds something.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::mem::forget(port.slices(Iova(0x1000), 8, Access::READ).unwrap());
            port.read(Iova(0x1000), &mut [0]).unwrap();
            let mut other = endpoint.port();
            std::mem::forget(other.slices(Iova(0x1000), 8, Access::READ).unwrap());
        });
    });
    ioas.unmap(range(0x1000, 2 * PAGE)).unwrap();
    assert!(port.read(Iova(0x1000), &mut [0]).is_err());
}

#[test]
fn a_length_that_a_device_made_up_costs_nothing() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 1).unwrap();
    device.attach(None, &ioas).unwrap();
    for length in [1 << 32, 1 << 57, u64::MAX] {
        assert_eq!(
            port.slices(Iova(0x1000), length, Access::READ).err().map(|e| e.reason),
            Some(FaultReason::NotMapped)
        );
    }
}

#[test]
fn what_is_no_memory_is_refused_and_keeps_nothing() {
    let bench = Bench::new();
    let (_endpoint, _port, ioas, device) = bench.one_device();
    let at = || Placement::Fixed(Iova(0x1000));
    let memory = |address, length| Segment::remote(Arc::new(Elsewhere(Mutex::default())), address, length);
    for segments in [
        vec![memory(0, 100), memory(0, PAGE - 100)],
        vec![memory(0, 0), memory(0, PAGE)],
        vec![memory(!0xfff, 2 * PAGE)],
        vec![memory(0, !0xfff), memory(0, 2 * PAGE)],
    ] {
        assert!(ioas.map(at(), PAGE, Access::READ, || Ok(segments)).is_err());
    }
    let panics = std::panic::AssertUnwindSafe(|| ioas.map(at(), PAGE, Access::READ, || panic!("on purpose")));
    std::panic::catch_unwind(panics).unwrap_err();
    map(&ioas, 0x1000, 1).unwrap();
    device.attach(None, &ioas).unwrap();
}

#[test]
fn an_unmap_waits_until_another_threads_slices_are_dropped() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 1).unwrap();
    device.attach(None, &ioas).unwrap();
    let slices = port.slices(Iova(0x1000), 8, Access::all()).unwrap();
    let dropped = AtomicBool::new(false);
    let (begun, begin) = mpsc::channel();
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| {
            begun.send(()).unwrap();
            ioas.unmap(range(0x1000, PAGE)).unwrap();
            assert!(dropped.load(Ordering::SeqCst), "it returned while slices were held");
        });
        begin.recv().unwrap();
        // Long enough for one that does not wait.
        std::thread::sleep(Duration::from_millis(20));
        assert!(!unmap.is_finished());
        dropped.store(true, Ordering::SeqCst);
        drop(slices);
        unmap.join().unwrap();
    });
}

#[test]
fn out_of_table_memory_is_an_error_and_everything_stays_as_it_was() {
    // One chunk: 512 tables.
    let machine = Machine::with_tables(Arc::new(Silent), TableSpace::private(2 << 20).unwrap());
    let endpoint = machine.add_endpoint(Rid::new(0, 0, 1, 0).unwrap(), GroupId(1)).unwrap();
    endpoint.set_bus_master(true).unwrap();
    let context = machine.context();
    let (ioas, device) = (context.ioas_alloc().unwrap(), context.bind(&endpoint).unwrap());
    device.attach(None, &ioas).unwrap();
    let mut port = endpoint.port();
    // Each in tables of its own.
    let at = |n: u64| (n + 1) << 30;
    let full = (0..).find(|&n| map(&ioas, at(n), 1).is_err()).unwrap();
    assert!((100..512).contains(&full), "{full} areas");
    let before = machine.resources();
    let refused = map(&ioas, at(full), 1);
    assert!(matches!(refused, Err(MapError::Mirror(_))), "{refused:?}");
    assert_eq!((machine.resources(), ioas.size().0), (before, full as usize));
    assert!((0..full).all(|n| port.write(Iova(at(n)), &[1]).is_ok()));
    assert_eq!(port.write(Iova(at(full)), &[1]).unwrap_err().reason, FaultReason::NotMapped);
    ioas.unmap(range(at(0), PAGE)).unwrap();
    map(&ioas, at(full), 1).unwrap();
    port.write(Iova(at(full)), &[1]).unwrap();
}

#[test]
fn maps_of_different_ranges_go_on_beside_each_other() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    device.attach(None, &ioas).unwrap();
    // In the same table of the lowest level, by turns.
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let ioas = &ioas;
            scope.spawn(move || {
                for turn in 0..200 {
                    for n in (thread..64).step_by(2) {
                        map(ioas, (1 << 21) + n * PAGE, 1).unwrap();
                    }
                    for n in (thread..64).step_by(2).filter(|_| turn != 199) {
                        ioas.unmap(range((1 << 21) + n * PAGE, PAGE)).unwrap();
                    }
                }
            });
        }
    });
    assert!((0..64u64).all(|n| port.write(Iova((1 << 21) + n * PAGE), &[1]).is_ok()));
}

/// What can happen to what a port may have cached.
#[derive(Debug, Clone)]
enum Step {
    Map { ioas: usize, page: u64, pages: u64, memory: u64, access: Access },
    Unmap { ioas: usize, page: u64 },
    Attach { pasid: usize, ioas: usize },
    Detach { pasid: usize },
    Touch { pasid: usize, page: u64, word: u64, write: bool },
}

/// Pages of IOVA and of memory that the steps are about: room for large pages.
const SPACE: u64 = 4096;

/// Memory in which every word is another, and what is in it: all cases go on with what those before left.
static MEMORY: LazyLock<(Arc<File>, Vec<AtomicU64>)> = LazyLock::new(|| {
    let length = (SPACE + 1100) * PAGE;
    let (_, file) = Segment::memfd(length).unwrap();
    let words: Vec<u64> = (0..length / 8).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    file.write_all_at(&bytes, 0).unwrap();
    (file, words.into_iter().map(AtomicU64::new).collect())
});

fn step() -> impl Strategy<Value = Step> {
    let page = || prop_oneof![0..64u64, (0..8u64).prop_map(|n| n * 512), 0..SPACE];
    let pages = || prop_oneof![3 => 1..20u64, 1 => Just(512u64), 1 => 500..1100u64];
    let access = prop_oneof![3 => Just(Access::all()), 1 => Just(Access::READ)];
    prop_oneof![
        3 => (0..2usize, page(), pages(), page(), access)
            .prop_map(|(ioas, page, pages, memory, access)| Step::Map { ioas, page, pages, memory, access }),
        2 => (0..2usize, page()).prop_map(|(ioas, page)| Step::Unmap { ioas, page }),
        1 => (0..3usize, 0..2usize).prop_map(|(pasid, ioas)| Step::Attach { pasid, ioas }),
        1 => (0..3usize).prop_map(|pasid| Step::Detach { pasid }),
        10 => (0..3usize, page(), 0..512u64, any::<bool>())
            .prop_map(|(pasid, page, word, write)| Step::Touch { pasid, page, word, write }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// One port through all of it, with its caches: whatever it reaches is what the areas say at that moment.
    #[test]
    fn a_port_agrees_with_the_areas_whatever_it_has_cached(steps in prop::collection::vec(step(), 1..120)) {
        let bench = Bench::new();
        let endpoint = bench.endpoint(1, 1);
        let (mut port, context) = (endpoint.port(), bench.machine.context());
        let device = context.bind(&endpoint).unwrap();
        let spaces = [context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap()];
        // PASIDs that share a place in the context cache.
        let pasids = [None, Pasid::new(1), Pasid::new(257)];
        let (file, words) = &*MEMORY;

        let base = 1u64 << 30;
        let mut areas = [BTreeMap::<u64, (u64, u64, Access)>::new(), BTreeMap::new()];
        let mut attached = [None; 3];
        let find = |areas: &BTreeMap<u64, (u64, u64, Access)>, page: u64| {
            let (&first, &(pages, memory, access)) = areas.range(..=page).next_back()?;
            (page - first < pages).then_some((memory + (page - first), access))
        };
        for step in steps {
            match step {
                Step::Map { ioas, page, pages, memory, access } => {
                    let segment = || Ok(vec![Segment::file(file, memory * PAGE, pages * PAGE, true).unwrap()]);
                    let at = Placement::Fixed(Iova(base + page * PAGE));
                    let free = (page..page + pages).all(|page| find(&areas[ioas], page).is_none());
                    prop_assert_eq!(spaces[ioas].map(at, pages * PAGE, access, segment).is_ok(), free);
                    if free {
                        areas[ioas].insert(page, (pages, memory, access));
                    }
                }
                Step::Unmap { ioas, page } => {
                    let Some((&first, &(pages, ..))) = areas[ioas].range(..=page).next_back() else { continue };
                    areas[ioas].remove(&first);
                    spaces[ioas].unmap(range(base + first * PAGE, pages * PAGE)).unwrap();
                }
                Step::Attach { pasid, ioas } => {
                    device.attach(pasids[pasid], &spaces[ioas]).unwrap();
                    attached[pasid] = Some(ioas);
                }
                Step::Detach { pasid } => {
                    device.detach(pasids[pasid]).unwrap();
                    attached[pasid] = None;
                }
                Step::Touch { pasid, page, word, write } => {
                    let at = BusAddress { pasid: pasids[pasid], iova: Iova(base + page * PAGE + word * 8) };
                    let mut data = [0; 8];
                    let result = if write { port.write(at, &[0xee; 8]) } else { port.read(at, &mut data) };
                    let wanted = match attached[pasid].map(|ioas| find(&areas[ioas], page)) {
                        None => Err(FaultReason::NotAttached),
                        Some(None) => Err(FaultReason::NotMapped),
                        Some(Some((_, access))) if write && access == Access::READ => Err(FaultReason::NotPermitted),
                        Some(Some((memory, _))) => Ok(&words[(memory * 512 + word) as usize]),
                    };
                    prop_assert_eq!(result.map_err(|error| error.reason), wanted.map(|_| ()));
                    if let Ok(cell) = wanted {
                        if write {
                            cell.store(u64::from_ne_bytes([0xee; 8]), Ordering::Relaxed);
                        } else {
                            prop_assert_eq!(u64::from_ne_bytes(data), cell.load(Ordering::Relaxed));
                        }
                    }
                }
            }
        }
    }
}
