//! What threads could do to each other once: each of these failed, hung or reached freed memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ioasid::memory::Segment;
use ioasid::{
    Access, Context, DestroyError, Device, DmaPort, GuestFormat, GuestTable, HwptError, HwptOptions, Ioas, Iova,
    IovaRange, Placement, RuleError, UnmapError, WouldDeadlock,
};

use common::{Bench, PAGE, map, parent, range};

const ROUNDS: usize = 3000;

/// Ends another thread's loop, also when this one panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Attaches and detaches, so that the automatic page table comes and goes, while `meddle` does something with its id.
fn come_and_go(device: &Device, ioas: &Arc<Ioas>, meddle: impl Fn(&Context, u32) + Send + Sync) {
    let (table, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let context = device.context();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                meddle(context, table.load(Ordering::Relaxed));
            }
        });
        let _ends = Ends(&stop);
        for _ in 0..ROUNDS {
            let id = device.attach(None, ioas).unwrap();
            table.store(id.0.get(), Ordering::Relaxed);
            device.detach(None).unwrap();
            assert!(context.hwpt(id).is_none(), "the last detach takes it along");
        }
    });
}

#[test]
fn what_is_asked_for_by_a_number_that_comes_and_goes_is_not_kept() {
    let bench = Bench::new();
    let (_endpoint, _port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 1).unwrap();
    let table = GuestTable { format: GuestFormat::X86_64, root: 0 };
    let endpoint = device.endpoint();
    come_and_go(&device, &ioas, |context, id| {
        // No automatic table is a parent.
        assert!(context.nest_parent(id).is_none_or(|parent| context.hwpt_alloc_nested(parent, table).is_err()));
        assert!(context.ioas(id).is_none_or(|ioas| context.hwpt_alloc(endpoint, &ioas, parent()).is_err()));
    });
    assert_eq!(device.context().destroy(ioas.id()), Ok(()));
}

#[test]
fn an_automatic_table_is_destroyed_by_its_last_detach_and_nobody_else() {
    let bench = Bench::new();
    let (_endpoint, _port, ioas, device) = bench.one_device();
    let kept = device.context().hwpt_alloc(device.endpoint(), &ioas, parent()).unwrap();
    come_and_go(&device, &ioas, |context, id| assert!(context.destroy(id).is_err()));
    // What the other table holds of the address space, nobody let go in its stead.
    let (space, kept) = (ioas.id().0.get(), kept.id().0.get());
    let destroy = |id| device.context().destroy(id);
    assert_eq!((destroy(space), destroy(kept), destroy(space)), (Err(DestroyError::Busy(space)), Ok(()), Ok(())));
}

#[test]
fn a_copy_moves_its_bytes_once_whoever_loses_memory_meanwhile() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    device.attach(None, &ioas).unwrap();
    map(&ioas, 0x20_0000, 16).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Another's file, in another context, is cut short again and again.
            let (endpoint, context) = (bench.endpoint(2, 2), bench.machine.context());
            let (ioas, device) = (context.ioas_alloc().unwrap(), context.bind(&endpoint).unwrap());
            device.attach(None, &ioas).unwrap();
            let mut port = endpoint.port();
            while !stop.load(Ordering::Relaxed) {
                let (segment, file) = Segment::memfd(PAGE).unwrap();
                ioas.map(Placement::Fixed(Iova(0x1000)), PAGE, Access::all(), || Ok(vec![segment])).unwrap();
                file.set_len(0).unwrap();
                assert!(port.read(Iova(0x1000), &mut [0]).is_err());
                ioas.unmap(range(0x1000, PAGE)).unwrap();
            }
        });
        let _ends = Ends(&stop);
        // To eight bytes further on: bytes that are moved twice are wrong.
        let data: Vec<u8> = (0..40_000).map(|n| (n / 8 % 251) as u8).collect();
        let mut back = vec![0; data.len()];
        for _ in 0..ROUNDS {
            port.write(Iova(0x20_0000), &data).unwrap();
            port.copy(Iova(0x20_0000), Iova(0x20_0008), data.len() as u64).unwrap();
            port.read(Iova(0x20_0008), &mut back).unwrap();
            assert!(back == data);
        }
    });
}

/// Whether `call` returns for a thread that holds slices while another unmaps what they lead to.
fn returns(call: impl FnOnce(&Device, &Arc<Ioas>) + Send + 'static) {
    let (done, told) = mpsc::channel();
    std::thread::spawn(move || {
        let bench = Bench::new();
        let (_endpoint, mut port, ioas, device): (_, DmaPort, _, _) = bench.one_device();
        map(&ioas, 0x1000, 1).unwrap();
        device.attach(None, &ioas).unwrap();
        let slices = port.slices(Iova(0x1000), 8, Access::READ).unwrap();
        let other = ioas.clone();
        let unmap = std::thread::spawn(move || other.unmap(range(0x1000, PAGE)).unwrap());
        while !ioas.areas().is_empty() {
            std::thread::yield_now();
        }
        call(&device, &ioas);
        drop(slices);
        unmap.join().unwrap();
        done.send(()).unwrap();
    });
    // A panic says more than the time that runs out.
    assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(()));
}

#[test]
fn a_holder_of_slices_is_told_instead_of_waiting_for_itself() {
    returns(|device, ioas| {
        let made = device.context().hwpt_alloc(device.endpoint(), ioas, HwptOptions::default());
        assert!(matches!(made.map(drop), Err(HwptError::WouldDeadlock(_))));
    });
    returns(|device, ioas| {
        let destroyed = device.context().destroy(ioas.id());
        assert_eq!(destroyed, Err(DestroyError::WouldDeadlock(WouldDeadlock::HoldsSlices)));
    });
}

#[test]
fn what_waits_for_no_port_returns_while_others_do() {
    returns(|_, ioas| {
        assert!(!ioas.iova_ranges().0.is_empty() && ioas.has_large_pages());
        assert_eq!(ioas.allow_iovas(&[]), Ok(()));
        assert_eq!(ioas.reserve(IovaRange::inclusive(0, 1).unwrap()), Ok(()));
        assert_eq!(ioas.set_large_pages(false), Err(RuleError::InUse));
        assert_eq!(ioas.unmap(range(0x8000, PAGE)), Err(UnmapError::WouldDeadlock(WouldDeadlock::HoldsSlices)));
    });
}

#[test]
fn a_thread_that_ends_may_drop_a_device() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<Device>> = const { std::cell::RefCell::new(None) };
    }
    std::thread::spawn(|| {
        // Used first, so that it goes last.
        KEPT.with(|kept| {
            let bench = Bench::new();
            let (_endpoint, mut port, ioas, device) = bench.one_device();
            map(&ioas, 0x1000, 1).unwrap();
            device.attach(None, &ioas).unwrap();
            drop(port.slices(Iova(0x1000), 8, Access::READ).unwrap());
            *kept.borrow_mut() = Some(device);
        });
    })
    .join()
    .unwrap();
}

#[test]
fn a_page_table_is_parked_or_another_is_nested_on_it_and_never_both() {
    let bench = Bench::new();
    let (_endpoint, _port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 1).unwrap();
    let context = device.context();
    let root = GuestTable { format: GuestFormat::X86_64, root: 0 };
    let (parent, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let (told, made) = mpsc::channel();
    // Whoever asks for all of these keeps others waiting for ids, between their steps.
    let _many: Vec<_> = (0..200).map(|_| context.ioas_alloc().unwrap()).collect();
    std::thread::scope(|scope| {
        let (parent, stop) = (&parent, &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                assert!(context.all_ioas().len() > 200);
            }
        });
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let id = parent.swap(0, Ordering::Relaxed);
                if id != 0 {
                    let parent = context.nest_parent(id);
                    let nested =
                        parent.ok_or(()).and_then(|parent| context.hwpt_alloc_nested(parent, root).map_err(drop));
                    told.send(nested.map(|nested| nested.id().0.get()).ok()).unwrap();
                }
            }
        });
        let _ends = Ends(stop);
        for round in 0..ROUNDS {
            let id = context.hwpt_alloc(device.endpoint(), &ioas, common::parent()).unwrap().id().0.get();
            parent.store(id, Ordering::Relaxed);
            // Sometimes the other is first, and sometimes this one.
            (0..round % 64).for_each(|_| std::hint::spin_loop());
            let parked = context.park(id);
            match (parked, made.recv().unwrap()) {
                (Ok(()), None) => {}
                (Err(DestroyError::Busy(_)), Some(nested)) => {
                    context.park(nested).unwrap();
                    context.park(id).unwrap();
                }
                other => panic!("round {round}: {other:?}"),
            }
        }
    });
}

#[test]
fn what_has_the_id_of_a_page_table_that_went_meanwhile_is_not_parked_in_its_stead() {
    let bench = Bench::new();
    let (_endpoint, _port, ioas, device) = bench.one_device();
    let context = device.context();
    let (table, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = context.park(table.load(Ordering::Relaxed));
            }
        });
        // Who attaches keeps those who park waiting.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                device.attach(None, &ioas).unwrap();
                device.detach(None).unwrap();
            }
        });
        let _ends = Ends(&stop);
        for _ in 0..ROUNDS {
            let hwpt = context.hwpt_alloc(device.endpoint(), &ioas, HwptOptions::default()).unwrap();
            table.store(hwpt.id().0.get(), Ordering::Relaxed);
            let _ = context.destroy(hwpt.id());
            // With the same id, and in use, unless the other destroys it before.
            let next = context.ioas_alloc().unwrap();
            let Some(held) = context.hold(next.id()) else { continue };
            let is_there = || context.ioas(next.id()).is_some_and(|found| Arc::ptr_eq(&found, &next));
            if is_there() {
                std::thread::yield_now();
                assert!(is_there(), "it was held");
            }
            table.store(0, Ordering::Relaxed);
            drop(held);
            let _ = context.destroy(next.id());
        }
    });
}
