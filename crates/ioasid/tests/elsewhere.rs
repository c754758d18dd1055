//! A device that is elsewhere: its mirror has what it is attached to, and nothing when it is attached to nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ioasid::memory::{Pages, Segment};
use ioasid::{
    Access, AttachError, Context, Endpoint, EndpointOptions, GroupId, Ioas, Iova, IovaRange, Machine, Mirror,
    MirrorCapabilities, MirrorError, MirrorRun, Silent, UnmapError,
};

const PAGE: u64 = 4096;

/// The device, as far as it knows what is mapped.
#[derive(Default)]
struct Elsewhere {
    mapped: Mutex<BTreeSet<u64>>,
    refuses: AtomicBool,
    /// It cannot say that nothing reaches what it unmaps.
    is_lost: AtomicBool,
}

impl Elsewhere {
    fn pages(&self) -> Vec<u64> {
        self.mapped.lock().unwrap().iter().map(|at| at / PAGE).collect()
    }
}

impl Mirror for Elsewhere {
    fn capabilities(&self) -> MirrorCapabilities {
        MirrorCapabilities::default()
    }

    fn map(&self, run: &MirrorRun<'_>) -> Result<(), MirrorError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(MirrorError::Failed("on purpose".into()));
        }
        assert!(self.mapped.lock().unwrap().insert(run.range.start()), "mapped twice");
        Ok(())
    }

    fn unmap(&self, runs: &mut dyn Iterator<Item = IovaRange>) -> Result<(), MirrorError> {
        for run in runs {
            self.mapped.lock().unwrap().retain(|at| !(run.start()..=run.last()).contains(at));
        }
        if self.is_lost.load(Ordering::SeqCst) { Err(MirrorError::Reachable) } else { Ok(()) }
    }
}

struct Bench {
    machine: Arc<Machine>,
    context: Arc<Context>,
    memory: Arc<Pages>,
    elsewhere: Arc<Elsewhere>,
    endpoint: Arc<Endpoint>,
}

impl Bench {
    fn new() -> Self {
        let machine = Machine::new(Arc::new(Silent));
        let (context, file) = (machine.context(), Segment::memfd(16 * PAGE).unwrap().1);
        let elsewhere = Arc::new(Elsewhere::default());
        let options = EndpointOptions::default().mirrored(elsewhere.clone());
        let endpoint = machine.add_endpoint_with("0000:00:01.0".parse().unwrap(), GroupId(0), options).unwrap();
        Self { machine, context, memory: Pages::of_file(file, 0, 16 * PAGE, true), elsewhere, endpoint }
    }

    fn ioas(&self, pages: &[u64]) -> Arc<Ioas> {
        let ioas = self.context.ioas_alloc().unwrap();
        pages.iter().for_each(|page| self.map(&ioas, *page));
        ioas
    }

    fn map(&self, ioas: &Ioas, page: u64) {
        ioas.map_pages(Some(Iova(page * PAGE)), &self.memory, 0, PAGE, Access::all()).unwrap();
    }
}

fn page(number: u64) -> IovaRange {
    IovaRange::new(number * PAGE, PAGE).unwrap()
}

#[test]
fn it_has_what_it_is_attached_to() {
    let bench = Bench::new();
    let (one, other) = (bench.ioas(&[1, 2]), bench.ioas(&[7]));
    let device = bench.context.bind(&bench.endpoint).unwrap();
    assert!(bench.elsewhere.pages().is_empty());
    device.attach(None, &one).unwrap();
    assert_eq!(bench.elsewhere.pages(), [1, 2]);
    bench.map(&one, 5);
    one.unmap(page(2)).unwrap();
    assert_eq!(bench.elsewhere.pages(), [1, 5]);
    device.attach(None, &other).unwrap();
    assert_eq!(bench.elsewhere.pages(), [7]);
    bench.map(&one, 2);
    bench.map(&other, 8);
    assert_eq!(bench.elsewhere.pages(), [7, 8]);
    device.detach(None).unwrap();
    assert!(bench.elsewhere.pages().is_empty());
    bench.map(&other, 9);
    assert!(bench.elsewhere.pages().is_empty());
    device.attach(None, &one).unwrap();
    drop(device);
    assert!(bench.elsewhere.pages().is_empty());
}

#[test]
fn it_loses_what_is_parked_or_closed() {
    let bench = Bench::new();
    let ioas = bench.ioas(&[1]);
    let device = bench.context.bind(&bench.endpoint).unwrap();
    let table = device.attach(None, &ioas).unwrap();
    bench.context.park(table).unwrap();
    assert!(bench.elsewhere.pages().is_empty());
    device.attach(None, &ioas).unwrap();
    assert_eq!(bench.elsewhere.pages(), [1]);
    bench.context.close().unwrap();
    assert!(bench.elsewhere.pages().is_empty());
}

#[test]
fn what_it_cannot_have_is_not_attached() {
    let bench = Bench::new();
    let (one, other) = (bench.ioas(&[1]), bench.ioas(&[7]));
    let device = bench.context.bind(&bench.endpoint).unwrap();
    bench.elsewhere.refuses.store(true, Ordering::SeqCst);
    assert!(matches!(device.attach(None, &one), Err(AttachError::Mirror(_))));
    assert_eq!(device.attached_to(None), None);
    bench.elsewhere.refuses.store(false, Ordering::SeqCst);
    let table = device.attach(None, &one).unwrap();
    // It goes back to what it had, where it can.
    assert!(matches!(device.attach_if(None, &other, |_| false), Err(AttachError::NotConfirmed)));
    assert_eq!((device.attached_to(None), bench.elsewhere.pages()), (Some(table), vec![1]));
    bench.elsewhere.refuses.store(true, Ordering::SeqCst);
    assert!(one.map_pages(Some(Iova(8 * PAGE)), &bench.memory, 0, PAGE, Access::all()).is_err());
    assert_eq!(one.areas().len(), 1);
}

#[test]
fn what_it_may_still_reach_stays_and_is_said() {
    for detaches_first in [false, true] {
        let bench = Bench::new();
        let ioas = bench.ioas(&[1, 2]);
        let device = bench.context.bind(&bench.endpoint).unwrap();
        device.attach(None, &ioas).unwrap();
        bench.elsewhere.is_lost.store(true, Ordering::SeqCst);
        if detaches_first {
            device.detach(None).unwrap();
        }
        // Of all that it may reach: it is not asked a second time.
        for number in [1, 2] {
            assert!(matches!(ioas.unmap(page(number)), Err(UnmapError::Mirror(_))), "page {number}");
        }
        // The address space goes on without it.
        for number in [1, 3] {
            bench.map(&ioas, number);
            ioas.unmap(page(number)).unwrap();
        }
        // It is added again when it is attached anew, and has what there is.
        bench.map(&ioas, 4);
        bench.elsewhere.is_lost.store(false, Ordering::SeqCst);
        bench.elsewhere.mapped.lock().unwrap().clear();
        device.attach(None, &ioas).unwrap();
        assert_eq!(bench.elsewhere.pages(), [4]);
        drop(device);
        let _ = &bench.machine;
    }
}

/// Threads that attach, detach, map and unmap: whenever one has detached or unmapped, the device has nothing of it.
#[test]
fn it_follows_while_others_change_things() {
    let bench = Bench::new();
    let spaces = [bench.ioas(&[1, 2]), bench.ioas(&[7])];
    let device = bench.context.bind(&bench.endpoint).unwrap();
    let ends = AtomicBool::new(false);
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _end = End(&ends);
            for round in 0..2000 {
                device.attach(None, &spaces[round % 2]).unwrap();
                if round % 3 == 0 {
                    device.detach(None).unwrap();
                    assert!(bench.elsewhere.pages().is_empty());
                }
            }
        });
        for (space, number) in [(&spaces[0], 9), (&spaces[1], 11)] {
            let (bench, ends) = (&bench, &ends);
            scope.spawn(move || {
                while !ends.load(Ordering::SeqCst) {
                    bench.map(space, number);
                    space.unmap(page(number)).unwrap();
                    assert!(!bench.elsewhere.pages().contains(&number));
                }
            });
        }
    });
    device.attach(None, &spaces[0]).unwrap();
    assert_eq!(bench.elsewhere.pages(), [1, 2]);
}
