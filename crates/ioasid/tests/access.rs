//! Software's access to what is mapped: what it reaches, and that it lets go before an unmap returns.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ioasid::memory::{ImportError, Pages, Segment};
use ioasid::{
    Access, AccessAttachError, AccessError, Context, DestroyError, Ioas, IoasAccess, Iova, IovaRange, PinnedRange,
    Placement, UnmapError,
};

use common::{Bench, PAGE, range};

const BASE: u64 = 0x10_0000;

/// An access that keeps what it pinned in a list, and lets go as it is told.
struct Mediator {
    access: IoasAccess,
    pinned: Arc<Mutex<Vec<PinnedRange>>>,
    told: Arc<Mutex<Vec<IovaRange>>>,
}

impl Mediator {
    fn new(context: &Arc<Context>, ioas: &Arc<Ioas>) -> Self {
        let (pinned, told) = (Arc::new(Mutex::new(Vec::<PinnedRange>::new())), Arc::new(Mutex::new(Vec::new())));
        let (list, log) = (pinned.clone(), told.clone());
        let unmap = move |range: IovaRange| {
            log.lock().unwrap().push(range);
            list.lock().unwrap().retain(|pinned| !pinned.range().overlaps(&range));
        };
        let access = context.access(Some(Box::new(unmap))).unwrap();
        access.attach(ioas).unwrap();
        Self { access, pinned, told }
    }

    fn pin(&self, iova: u64, length: u64) -> Result<(), AccessError> {
        let mut pinned = self.pinned.lock().unwrap();
        pinned.push(self.access.pin(Iova(iova), length, Access::READ)?);
        Ok(())
    }
}

/// Maps so many pages of new memory, with `access`, and returns that.
fn map(ioas: &Ioas, iova: u64, pages: u64, access: Access) -> Segment {
    let (segment, _) = Segment::memfd(pages * PAGE).unwrap();
    let memory = segment.clone();
    ioas.map(Placement::Fixed(Iova(iova)), pages * PAGE, access, || Ok(vec![memory])).unwrap();
    segment
}

#[test]
fn it_reads_and_writes_what_is_mapped_across_areas_and_no_further() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    let access = context.access(None).unwrap();
    let mut data = [0; 8];
    assert!(matches!(access.read(Iova(BASE), &mut data), Err(AccessError::NotAttached)));
    access.attach(&ioas).unwrap();
    map(&ioas, BASE, 1, Access::all());
    map(&ioas, BASE + PAGE, 1, Access::all());
    map(&ioas, BASE + 2 * PAGE, 1, Access::READ);

    access.write(Iova(BASE + PAGE - 3), b"straddle").unwrap();
    access.read(Iova(BASE + PAGE - 3), &mut data).unwrap();
    assert_eq!(&data, b"straddle");
    // The same memory by DMA.
    let endpoint = bench.endpoint(1, 1);
    let device = context.bind(&endpoint).unwrap();
    device.attach(None, &ioas).unwrap();
    let mut port = endpoint.port();
    port.read(Iova(BASE + PAGE - 3), &mut data).unwrap();
    assert_eq!(&data, b"straddle");

    assert!(matches!(access.read(Iova(BASE), &mut []), Err(AccessError::Empty)));
    assert!(matches!(access.read(Iova(u64::MAX), &mut data), Err(AccessError::Overflow(..))));
    assert!(matches!(access.read(Iova(BASE + 3 * PAGE - 1), &mut data), Err(AccessError::NotMapped(_))));
    assert!(matches!(access.read(Iova(BASE - 1), &mut data), Err(AccessError::NotMapped(_))));
    // What fails half-way changes nothing.
    assert!(matches!(access.write(Iova(BASE + 2 * PAGE - 4), b"overflow"), Err(AccessError::NotPermitted(_))));
    access.read(Iova(BASE + 2 * PAGE - 4), &mut data).unwrap();
    assert_eq!(data, [0; 8]);
    assert!(matches!(access.pin(Iova(BASE), 1, Access::READ), Err(AccessError::CannotPin)));
    drop(device);
    assert_eq!(bench.machine.resources(), (0, 0));
}

#[test]
fn memory_is_brought_in_as_far_as_it_is_needed() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (log, (segment, _)) = (asked.clone(), Segment::memfd(PAGE).unwrap());
    // Only its fourth page is there.
    let pages = Pages::new(0, 8 * PAGE, true, move |offset, length| {
        log.lock().unwrap().push((offset, length));
        if (offset, length) == (3 * PAGE, PAGE) { Ok(vec![segment.clone()]) } else { Err(ImportError::Gone) }
    });
    ioas.map_pages(Some(Iova(BASE)), &pages, 0, 8 * PAGE, Access::all()).unwrap();
    let mediator = Mediator::new(&context, &ioas);
    mediator.access.write(Iova(BASE + 3 * PAGE + 5), &[7]).unwrap();
    assert_eq!(bench.machine.resources(), (0, 0), "nobody pinned it");
    mediator.pin(BASE + 3 * PAGE, 1).unwrap();
    mediator.pin(BASE + 3 * PAGE, PAGE).unwrap();
    let mut byte = [0];
    mediator.access.read(Iova(BASE + 3 * PAGE + 5), &mut byte).unwrap();
    assert_eq!((byte, bench.machine.resources().0), ([7], 1));
    assert_eq!(*asked.lock().unwrap(), [(3 * PAGE, PAGE); 2], "what is pinned is not brought in again");
    assert!(matches!(mediator.pin(BASE + 2 * PAGE, 2 * PAGE), Err(AccessError::Pages(_))));
    // What could not be pinned does not keep it.
    mediator.pinned.lock().unwrap().clear();
    assert_eq!(ioas.unmap(range(BASE, 8 * PAGE)), Ok(8 * PAGE));
    assert!(mediator.told.lock().unwrap().is_empty());
}

#[test]
fn an_unmap_has_it_let_go_and_waits_for_that() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    map(&ioas, BASE, 4, Access::all());
    map(&ioas, BASE + 4 * PAGE, 4, Access::all());
    let mediator = Mediator::new(&context, &ioas);
    mediator.pin(BASE + PAGE, PAGE).unwrap();
    mediator.pin(BASE + 3 * PAGE, 2 * PAGE).unwrap();
    mediator.pin(BASE + 6 * PAGE, PAGE).unwrap();
    assert_eq!(ioas.unmap(range(BASE, 4 * PAGE)), Ok(4 * PAGE));
    assert_eq!(*mediator.told.lock().unwrap(), [range(BASE, 4 * PAGE)]);
    let left: Vec<_> = mediator.pinned.lock().unwrap().iter().map(PinnedRange::range).collect();
    assert_eq!(left, [range(BASE + 6 * PAGE, PAGE)]);
    assert_eq!(ioas.unmap(IovaRange::ALL), Ok(4 * PAGE));
    assert!(matches!(mediator.pin(BASE, PAGE), Err(AccessError::NotMapped(_))));
    // The notice is of the areas in which something is pinned, and of no others.
    for area in 0..3 {
        map(&ioas, BASE + area * PAGE, 1, Access::all());
    }
    mediator.pin(BASE + PAGE, PAGE).unwrap();
    assert_eq!(ioas.unmap(range(BASE, 3 * PAGE)), Ok(3 * PAGE));
    assert_eq!(mediator.told.lock().unwrap().last(), Some(&range(BASE + PAGE, PAGE)));
    assert_eq!(bench.machine.resources(), (0, 0));
}

#[test]
fn who_does_not_let_go_makes_the_unmap_fail_and_nothing_is_changed() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    map(&ioas, BASE, 2, Access::all());
    let deaf = context.access(Some(Box::new(|_| ()))).unwrap();
    deaf.attach(&ioas).unwrap();
    let pinned = deaf.pin(Iova(BASE), PAGE, Access::all()).unwrap();
    let all = range(BASE, 2 * PAGE);
    assert_eq!(ioas.unmap(all), Err(UnmapError::Pinned(all)));
    assert_eq!(ioas.areas().len(), 1);
    // And it may be pinned again.
    drop(deaf.pin(Iova(BASE + PAGE), PAGE, Access::all()).unwrap());
    drop(pinned);
    assert_eq!(ioas.unmap(all), Ok(2 * PAGE));
}

#[test]
fn pinning_wants_whole_pages_of_the_memory() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let (bytes, pages) = (context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap());
    let (_, file) = Segment::memfd(2 * PAGE).unwrap();
    let memory = Pages::of_file(file, 0, 2 * PAGE, true);
    bytes.map_pages(Some(Iova(BASE)), &memory, 16, PAGE, Access::all()).unwrap();
    let access = context.access(Some(Box::new(|_| ()))).unwrap();
    let refused = access.attach(&bytes);
    assert!(matches!(refused, Err(AccessAttachError::Misaligned(_, PAGE))), "{refused:?}");
    access.attach(&pages).unwrap();
    let odd = pages.map_pages(Some(Iova(BASE)), &memory, 16, PAGE, Access::all());
    assert!(odd.is_err());
    pages.map_pages(Some(Iova(BASE)), &memory, 0, 2 * PAGE, Access::READ).unwrap();
    assert!(matches!(access.pin(Iova(BASE + 8), 8, Access::READ), Err(AccessError::Unaligned(_))));
    assert!(matches!(access.pin(Iova(BASE), 8, Access::WRITE), Err(AccessError::NotPermitted(_))));
    assert!(matches!(access.pin(Iova(BASE), 0, Access::READ), Err(AccessError::Empty)));
    let pinned = access.pin(Iova(BASE), PAGE + 1, Access::READ).unwrap();
    assert!(pinned.is_contiguous());
    assert_eq!(pinned.identity(PAGE), Some(pinned.identity(0).unwrap().plus(PAGE)));
    drop(pinned);
    // Without it, mappings may be of bytes again.
    drop(access);
    pages.map_pages(Some(Iova(BASE + 4 * PAGE)), &memory, 16, 3, Access::READ).unwrap();
}

#[test]
fn an_address_space_stays_as_long_as_an_access_is_attached() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let (one, other) = (context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap());
    let ids = [&one, &other].map(|ioas| ioas.id().0.get());
    map(&one, BASE, 1, Access::all());
    map(&other, BASE, 1, Access::all());
    let mediator = Mediator::new(&context, &one);
    assert!(matches!(mediator.access.attach(&other), Err(AccessAttachError::State)));
    let elsewhere = bench.machine.context().ioas_alloc().unwrap();
    assert!(matches!(mediator.access.replace(&elsewhere), Err(AccessAttachError::Missing(id)) if id == elsewhere.id()));
    assert_eq!(context.destroy(ids[0]), Err(DestroyError::Busy(ids[0])));
    assert_eq!(context.destroy(mediator.access.id()), Err(DestroyError::Busy(mediator.access.id().into())));

    mediator.access.write(Iova(BASE), &[1]).unwrap();
    mediator.pin(BASE, PAGE).unwrap();
    mediator.access.replace(&one).unwrap();
    assert_eq!(mediator.pinned.lock().unwrap().len(), 1, "it is where it was");
    mediator.access.replace(&other).unwrap();
    assert!(mediator.pinned.lock().unwrap().is_empty());
    let mut byte = [9];
    mediator.access.read(Iova(BASE), &mut byte).unwrap();
    assert_eq!(byte, [0]);
    context.destroy(ids[0]).unwrap();
    assert_eq!(context.destroy(ids[1]), Err(DestroyError::Busy(ids[1])));
    let id = u32::from(mediator.access.id());
    drop(mediator);
    assert_eq!(context.destroy(id), Err(DestroyError::Missing(id)));
    context.destroy(ids[1]).unwrap();
}

#[test]
fn pins_and_unmaps_at_once_leave_nothing_pinned() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    let mediators: Vec<_> = (0..2).map(|_| Mediator::new(&context, &ioas)).collect();
    let done = AtomicBool::new(false);
    let pinned: usize = thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..300 {
                map(&ioas, BASE, 4, Access::all());
                thread::sleep(Duration::from_micros(50));
                assert_eq!(ioas.unmap(range(BASE, 4 * PAGE)), Ok(4 * PAGE));
            }
            done.store(true, Ordering::Relaxed);
        });
        let pinners: Vec<_> = mediators
            .iter()
            .map(|mediator| {
                let done = &done;
                scope.spawn(move || {
                    let mut pinned = 0;
                    while !done.load(Ordering::Relaxed) {
                        match mediator.pin(BASE + PAGE, 2 * PAGE) {
                            Ok(()) => pinned += 1,
                            Err(AccessError::NotMapped(_) | AccessError::Unmapping(_)) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    pinned
                })
            })
            .collect();
        pinners.into_iter().map(|pinner| pinner.join().unwrap()).sum()
    });
    assert!(pinned > 0);
    assert!(mediators.iter().all(|mediator| mediator.pinned.lock().unwrap().is_empty()));
    assert_eq!(bench.machine.resources(), (0, 0));
}
