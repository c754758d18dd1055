//! What is pinned, by whom it is paid, and for how long it is held.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ioasid::memory::{Account, ImportError, OverLimit, Pages, Segment, TableSpace};
use ioasid::{
    Access, DirtyError, FaultQueueOptions, FaultReason, HwptOptions, Iova, IovaRange, Machine, OnMiss, PinnedRange,
    PresenceError, Silent, UnmapError,
};

use crate::*;

#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    fn pages(&self) -> u64 {
        self.0.load(Ordering::Relaxed) / PAGE
    }
}

impl Account for Count {
    fn charge(&self, bytes: u64) -> Result<(), OverLimit> {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn release(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A tenant with eight pages at 0x10000, and who pays for them.
fn eight_pages() -> (Tenant, Arc<Count>) {
    let tenant = Tenant::of(&machine(), 1);
    let account = Arc::new(Count::default());
    let pages = pages(8 * PAGE);
    pages.charge_to(Some(account.clone())).unwrap();
    tenant.ioas.map_pages(Some(Iova(0x10000)), &pages, 0, 8 * PAGE, Access::all()).unwrap();
    assert_eq!(account.pages(), 8);
    (tenant, account)
}

#[test]
fn what_was_made_to_fault_is_not_held() {
    let (tenant, account) = eight_pages();
    tenant.ioas.make_fault(range(0x10000, 7 * PAGE)).unwrap();
    assert_eq!(account.pages(), 1, "seven pages of eight fault, and are held still");
    tenant.endpoint.port().write(Iova(0x17000), &[1]).unwrap();
    assert_eq!(tenant.ioas.populate(range(0x12000, 2 * PAGE)).unwrap(), 2 * PAGE);
    assert_eq!(account.pages(), 3);
    tenant.ioas.unmap(IovaRange::ALL).unwrap();
    assert_eq!(account.pages(), 0);
}

#[test]
fn what_faults_and_comes_in_is_whole_pages() {
    let (tenant, account) = eight_pages();
    for odd in [range(0x10800, PAGE), range(0x10000, PAGE / 2), range(0x11001, PAGE), range(0x10800, PAGE / 2)] {
        assert!(matches!(tenant.ioas.make_fault(odd), Err(PresenceError::Unaligned(..))), "{odd}");
        assert!(matches!(tenant.ioas.populate(odd), Err(PresenceError::Unaligned(..))), "{odd}");
    }
    assert_eq!((account.pages(), tenant.ioas.size().0), (8, 1));
}

#[test]
fn pages_of_one_area_that_come_in_at_once_are_fetched_once_each() {
    const PAGES: u64 = 32;
    let machine = machine();
    let tenant = Tenant::detached(&machine, 1);
    let hwpt = tenant.hwpt(HwptOptions::default());
    tenant.device.attach(None, &hwpt).unwrap();
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = fetched.clone();
    let pages = Pages::new(0, PAGES * PAGE, true, move |_, length| {
        count.fetch_add(1, Ordering::Relaxed);
        // So that others come in meanwhile.
        std::thread::yield_now();
        Ok(vec![Segment::memfd(length)?.0])
    });
    tenant.ioas.map_pages(Some(Iova(0x10000)), &pages, 0, PAGES * PAGE, Access::all()).unwrap();
    tenant.ioas.make_fault(range(0x10000, PAGES * PAGE)).unwrap();
    fetched.store(0, Ordering::Relaxed);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let ioas = &tenant.ioas;
            scope.spawn(move || {
                for page in (thread..PAGES).step_by(4) {
                    assert_eq!(ioas.populate(range(0x10000 + page * PAGE, PAGE)).unwrap(), PAGE);
                }
            });
        }
    });
    assert_eq!(fetched.load(Ordering::Relaxed) as u64, PAGES, "what comes in beside a page does not let it go");
}

#[test]
fn a_page_comes_in_though_what_is_around_it_cannot() {
    let tenant = Tenant::detached(&machine(), 1);
    let hwpt = tenant.hwpt(HwptOptions::default().on_miss(OnMiss::Resolve));
    tenant.device.attach(None, &hwpt).unwrap();
    let gone = Arc::new(AtomicBool::new(false));
    let is_gone = gone.clone();
    let lost = Pages::new(0, PAGE, true, move |_, length| match is_gone.load(Ordering::Relaxed) {
        true => Err(ImportError::Gone),
        false => Ok(vec![Segment::memfd(length)?.0]),
    });
    // Both in one block of 64 KiB, and the page that is there not the first in it.
    tenant.ioas.map_pages(Some(Iova(0x10000)), &lost, 0, PAGE, Access::all()).unwrap();
    map(&tenant.ioas, 0x13000, PAGE);
    tenant.ioas.make_fault(range(0x10000, 4 * PAGE)).unwrap();
    gone.store(true, Ordering::Relaxed);
    let mut port = tenant.endpoint.port();
    port.write(Iova(0x13008), &[1]).unwrap();
    assert_eq!(port.write(Iova(0x10008), &[1]).unwrap_err().reason, FaultReason::NotPresent);
}

#[test]
fn what_was_unmapped_is_not_held_for_a_copy_of_one_page() {
    let (tenant, account) = eight_pages();
    tenant.ioas.copy(Some(Iova(0x80000)), &tenant.ioas, Iova(0x10000), PAGE, Access::all()).unwrap();
    assert_eq!(account.pages(), 8, "once, however often it is mapped");
    tenant.endpoint.port().write(Iova(0x10000), &[1]).unwrap();
    tenant.ioas.unmap(range(0x10000, 8 * PAGE)).unwrap();
    assert_eq!(account.pages(), 1, "one page is mapped");
    let mut byte = [0];
    tenant.endpoint.port().read(Iova(0x80000), &mut byte).unwrap();
    assert_eq!(byte, [1]);
}

#[test]
fn an_account_that_was_given_is_charged() {
    let tenant = Tenant::of(&machine(), 1);
    let account = Arc::new(Count::default());
    let pages = pages(PAGE);
    let _also = pages.clone();
    pages.charge_to(Some(account.clone())).unwrap();
    tenant.ioas.map_pages(Some(Iova(0x1000)), &pages, 0, PAGE, Access::all()).unwrap();
    assert_eq!(account.pages(), 1, "nobody was charged, and nobody told");
}

#[test]
fn a_device_asks_for_many_slices() {
    let tenant = Tenant::detached(&machine(), 1);
    let pages = [pages(PAGE), pages(PAGE)];
    for n in 0..20_000u64 {
        let iova = Some(Iova((n + 16) * PAGE));
        tenant.ioas.map_pages(iova, &pages[n as usize % 2], 0, PAGE, Access::all()).unwrap();
    }
    tenant.device.attach(None, &tenant.ioas).unwrap();
    let mut port = tenant.endpoint.port();
    let slices = port.slices(Iova(16 * PAGE), 20_000 * PAGE, Access::READ).unwrap();
    // Two pages may happen to lie beside each other here, in one order, and then they are one slice.
    assert!(slices.len() >= 10_000);
    assert_eq!(slices.iter().map(|slice| slice.len() as u64).sum::<u64>(), 20_000 * PAGE);
}

#[test]
fn unmap_of_many_pinned_areas() {
    let tenant = Tenant::of(&machine(), 1);
    let (pins, calls) = (Arc::new(Mutex::new(Vec::<PinnedRange>::new())), Arc::new(AtomicUsize::new(0)));
    let (told, count) = (pins.clone(), calls.clone());
    let let_go = move |range: IovaRange| {
        count.fetch_add(1, Ordering::Relaxed);
        told.lock().unwrap().retain(|pin| !pin.range().overlaps(&range));
    };
    let access = tenant.context.access(Some(Box::new(let_go))).unwrap();
    access.attach(&tenant.ioas).unwrap();
    for n in 1..=1000 {
        map(&tenant.ioas, n * PAGE, PAGE);
        pins.lock().unwrap().push(access.pin(Iova(n * PAGE), PAGE, Access::READ).unwrap());
    }
    assert_eq!(tenant.ioas.unmap(range(PAGE, 1000 * PAGE)), Ok(1000 * PAGE));
    assert_eq!((pins.lock().unwrap().len(), calls.load(Ordering::Relaxed)), (0, 1), "one notice for all");
}

#[test]
fn a_pin_that_is_kept_fails_the_unmap_and_nothing_else() {
    let tenant = Tenant::of(&machine(), 1);
    map(&tenant.ioas, 0x1000, 2 * PAGE);
    let access = tenant.context.access(Some(Box::new(|_| ()))).unwrap();
    access.attach(&tenant.ioas).unwrap();
    let pin = access.pin(Iova(0x1000), PAGE, Access::all()).unwrap();
    assert_eq!(tenant.ioas.unmap(IovaRange::ALL), Err(UnmapError::Pinned(IovaRange::ALL)));
    tenant.endpoint.port().write(Iova(0x1000), &[3]).unwrap();
    let mut byte = [0];
    pin.read(0, &mut byte).unwrap();
    assert_eq!(byte, [3]);
    // From another thread, after the access is gone.
    drop(access);
    std::thread::spawn(move || {
        pin.write(1, &[4]).unwrap();
        drop(pin);
    })
    .join()
    .unwrap();
    tenant.endpoint.port().read(Iova(0x1001), &mut byte).unwrap();
    assert_eq!((byte, tenant.ioas.unmap(IovaRange::ALL)), ([4], Ok(2 * PAGE)));
}

fn shared_tables() -> (Arc<Machine>, std::fs::File) {
    let tables = TableSpace::shared(8 << 20).unwrap();
    let file = tables.file().unwrap().try_clone().unwrap();
    (Machine::with_tables(Arc::new(Silent), tables), file)
}

#[test]
fn shared_tables_cannot_be_cut_short() {
    let (machine, file) = shared_tables();
    let tenant = Tenant::of(&machine, 1);
    assert!(file.set_len(0).is_err());
    // Nor by somebody who opens it for writing.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    if let Ok(writable) = std::fs::OpenOptions::new().write(true).open(path) {
        assert!(writable.set_len(0).is_err() && writable.write_all_at(&[1], 0).is_err());
    }
    map(&tenant.ioas, 0x1000, PAGE);
    tenant.endpoint.port().write(Iova(0x1000), &[1]).unwrap();
}

#[test]
fn shared_tables_written_by_safe_code_lead_to_freed_memory() {
    let (machine, file) = shared_tables();
    let tenants = [1, 2].map(|slot| Tenant::of(&machine, slot));
    tenants.iter().for_each(|tenant| map(&tenant.ioas, 0x1000, PAGE));
    // Tenant 0's leaf, where tenant 1's is.
    let mut bytes = vec![0u8; 2 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let words: Vec<u64> = bytes.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
    let leaves: Vec<usize> = (0..words.len()).filter(|n| n % 512 == 1 && words[*n] & 3 == 3).collect();
    assert_eq!(leaves.len(), 2);
    assert!(file.write_all_at(&words[leaves[0]].to_ne_bytes(), leaves[1] as u64 * 8).is_err());
    tenants[0].ioas.unmap(range(0x1000, PAGE)).unwrap();
    tenants[1].endpoint.port().read(Iova(0x1000), &mut [0; 4]).unwrap();
}

#[test]
fn a_queue_without_a_deadline() {
    let tenant = Tenant::detached(&machine(), 1);
    let queue = tenant.with_queue(FaultQueueOptions::default().depth(4).timeout(Duration::MAX));
    tenant.endpoint.request_pages(one_page(0x1000, |_| ()));
    assert!(queue.has_groups());
}

#[test]
fn dirty_tracking_with_a_granule_of_one_byte() {
    let tenant = Tenant::of(&machine(), 1);
    map(&tenant.ioas, 0x1000, PAGE);
    let hwpt = tenant.hwpt(HwptOptions::default());
    for granule in [0, 1, 2048, 3 * PAGE] {
        assert_eq!(hwpt.start_dirty_tracking(granule), Err(DirtyError::PageSize(granule)));
    }
    let mut bits = [0];
    assert_eq!(hwpt.read_dirty(range(0x1000, PAGE), PAGE, false, &mut bits), Err(DirtyError::Off));
    hwpt.start_dirty_tracking(PAGE).unwrap();
    tenant.device.attach(None, &hwpt).unwrap();
    tenant.endpoint.port().write(Iova(0x1000), &[1]).unwrap();
    hwpt.read_dirty(range(0x1000, PAGE), PAGE, false, &mut bits).unwrap();
    assert_eq!(bits, [1]);
}

#[test]
fn reversed_ranges_are_errors() {
    assert_eq!((IovaRange::inclusive(5, 1), IovaRange::inclusive(0x5000, 0x1000)), (None, None));
    assert_eq!((IovaRange::new(5, 0), IovaRange::new(u64::MAX, 2)), (None, None));
    // So those that take one cannot be given another; the ends of the space are no exception.
    let tenant = Tenant::of(&machine(), 1);
    map(&tenant.ioas, 0x1000, PAGE);
    for range in [IovaRange::ALL, range(0, 1), range(u64::MAX, 1)] {
        assert!(tenant.ioas.bytes_in(range) <= PAGE && tenant.ioas.absent_bytes(range) <= PAGE);
        let _ = tenant.ioas.make_fault(range);
    }
    assert_eq!(tenant.ioas.bytes_in(range(0x1000, PAGE)), PAGE);
}

#[test]
fn an_attach_brings_memory_in_without_locking_the_areas() {
    let tenant = Tenant::detached(&machine(), 1);
    let (go, wait) = mpsc::channel::<()>();
    let (wait, began) = (Mutex::new(wait), Arc::new(AtomicBool::new(false)));
    let begin = began.clone();
    let slow = Pages::new(0, PAGE, true, move |_, length| {
        begin.store(true, Ordering::Release);
        let _ = wait.lock().unwrap().recv();
        Ok(vec![Segment::memfd(length)?.0])
    });
    tenant.ioas.map_pages(Some(Iova(0x1000)), &slow, 0, PAGE, Access::all()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| tenant.device.attach(None, &tenant.ioas).unwrap());
        while !began.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        // All of this goes on while the memory comes: to look, to map, to unmap, to make a page table of another space.
        assert_eq!(tenant.ioas.size(), (1, PAGE));
        map(&tenant.ioas, 0x8000, PAGE);
        tenant.ioas.unmap(range(0x8000, PAGE)).unwrap();
        let other = tenant.context.ioas_alloc().unwrap();
        map(&other, 0x1000, PAGE);
        tenant.context.hwpt_alloc(tenant.device.endpoint(), &other, Default::default()).unwrap();
        go.send(()).unwrap();
    });
    tenant.endpoint.port().write(Iova(0x1000), &[1]).unwrap();
}

#[test]
fn latency() {
    // One tenant unmaps many page tables; another's maps go on meanwhile.
    let machine = machine();
    let (big, small) = (Tenant::of(&machine, 1), Tenant::of(&machine, 2));
    let gib = Pages::new(0, 1 << 30, true, |_, length| Ok(vec![Segment::memfd(length)?.0]));
    for n in 0..16u64 {
        // A page out of step, so that all pages are small.
        let iova = Iova((1 << 40) + n * ((1 << 30) + PAGE));
        big.ioas.map_pages(Some(iova), &gib, 0, 1 << 30, Access::all()).unwrap();
    }
    let (rounds, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                map(&small.ioas, 0x1000, PAGE);
                small.ioas.unmap(range(0x1000, PAGE)).unwrap();
                rounds.fetch_add(1, Ordering::Release);
            }
        });
        while rounds.load(Ordering::Acquire) < 10 {
            std::thread::yield_now();
        }
        let before = rounds.load(Ordering::Acquire);
        big.ioas.unmap(IovaRange::ALL).unwrap();
        let meanwhile = rounds.load(Ordering::Acquire) - before;
        done.store(true, Ordering::Release);
        assert!(meanwhile > 0, "the other tenant stood still");
    });
    small.ioas.unmap(IovaRange::ALL).unwrap();
    let (windows, tables) = machine.resources();
    assert!(windows == 0 && tables < 20, "{windows} windows, {tables} tables");
}
