//! Callers' code that the engine calls: each kind calls the engine again, and each panics.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use ioasid::memory::{Account, OverLimit, Pages, PinError, RemoteMemory, Segment};
use ioasid::{
    Access, Context, CutError, Fault, FaultQueueOptions, Ioas, Iova, IovaRange, Leftover, Machine, MapError, Observer,
    PageResponse, Placement, PresenceError, UnmapError, WouldDeadlock,
};

use crate::*;

/// Calls what was given, each time that anything is observed.
#[derive(Default)]
struct Calls(OnceLock<Box<dyn Fn(&str) + Send + Sync>>);

impl Calls {
    fn call(&self, what: &str) {
        self.0.get().into_iter().for_each(|call| call(what));
    }
}

impl Observer for Calls {
    fn fault(&self, _: &Fault) {
        self.call("fault");
    }

    fn unmapped(&self, _: u64, _: IovaRange) {
        self.call("unmapped");
    }

    fn left_behind(&self, _: &Leftover) {
        self.call("left behind");
    }
}

fn observed() -> (Arc<Calls>, Arc<Machine>) {
    let calls = Arc::new(Calls::default());
    (calls.clone(), Machine::new(calls))
}

/// What may be called from anywhere: maps and unmaps another range, and looks.
fn use_engine(ioas: &Ioas) {
    map(ioas, 0x100_0000, PAGE);
    ioas.unmap(range(0x100_0000, PAGE)).unwrap();
    assert!(ioas.areas().iter().all(|area| area.range.start() != 0x100_0000));
}

#[test]
fn an_observer_may_call_the_engine() {
    returns(|| {
        let (calls, machine) = observed();
        let tenant = Tenant::of(&machine, 1);
        map(&tenant.ioas, 0x1000, 2 * PAGE);
        let (ioas, seen, busy) = (Arc::downgrade(&tenant.ioas), Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
        let count = seen.clone();
        let call = move |_: &str| {
            count.fetch_add(1, Ordering::Relaxed);
            // What it does is observed, too.
            if let Some(ioas) = ioas.upgrade()
                && !busy.swap(true, Ordering::Relaxed)
            {
                use_engine(&ioas);
                busy.store(false, Ordering::Relaxed);
            }
        };
        assert!(calls.0.set(Box::new(call)).is_ok());
        tenant.endpoint.port().read(Iova(0x9000), &mut [0]).unwrap_err();
        tenant.ioas.unmap(range(0x1000, 2 * PAGE)).unwrap();
        drop(tenant.device);
        assert!(seen.load(Ordering::Relaxed) >= 5);
    });
}

#[test]
fn a_panic_in_an_observer_leaves_no_area_behind() {
    let (calls, machine) = observed();
    let tenant = Tenant::of(&machine, 1);
    map(&tenant.ioas, 0x1000, PAGE);
    map(&tenant.ioas, 0x2000, PAGE);
    assert!(calls.0.set(Box::new(|_| panic!("an observer's bug"))).is_ok());
    assert!(panics(|| tenant.endpoint.port().read(Iova(0x9000), &mut [0])));
    assert!(panics(|| tenant.ioas.unmap(range(0x1000, 2 * PAGE))));
    assert_eq!(tenant.ioas.size(), (0, 0), "it is unmapped all the same");
    assert_eq!(tenant.ioas.unmap(range(0x2000, PAGE)), Err(UnmapError::Empty(range(0x2000, PAGE))));
    // What is dropped is dropped, and the panic ends there.
    drop((tenant.device, tenant.ioas, tenant.context));
    assert_eq!(machine.resources(), (0, 0));
}

#[test]
fn a_source_of_pages_may_call_the_engine_but_not_wait_for_itself() {
    returns(|| {
        let tenant = Tenant::of(&machine(), 1);
        let (ioas, own) = (tenant.ioas.clone(), Arc::new(OnceLock::<Weak<Pages>>::new()));
        let mine = own.clone();
        let pages = Pages::new(0, 2 * PAGE, true, move |_, length| {
            use_engine(&ioas);
            let own = mine.get().unwrap().upgrade().unwrap();
            let again = ioas.map_pages(Some(Iova(0x50_0000)), &own, 0, PAGE, Access::READ);
            assert!(matches!(again, Err(MapError::Pages(PinError::Recursive))), "{again:?}");
            assert_eq!(ioas.unmap(range(0x1000, 2 * PAGE)), Err(UnmapError::Busy(range(0x1000, 2 * PAGE))));
            Ok(vec![Segment::memfd(length)?.0])
        });
        own.set(Arc::downgrade(&pages)).unwrap();
        tenant.ioas.map_pages(Some(Iova(0x1000)), &pages, 0, 2 * PAGE, Access::all()).unwrap();
        tenant.endpoint.port().write(Iova(0x1000), &[1]).unwrap();
    });
}

#[test]
fn an_area_that_an_attach_brings_in_cannot_be_unmapped_from_its_source() {
    returns(|| {
        let tenant = Tenant::detached(&machine(), 1);
        let ioas = tenant.ioas.clone();
        let pages = Pages::new(0, PAGE, true, move |_, length| {
            use_engine(&ioas);
            let refused = Err(UnmapError::WouldDeadlock(WouldDeadlock::InCallback));
            assert_eq!(ioas.unmap(range(0x1000, PAGE)), refused);
            Ok(vec![Segment::memfd(length)?.0])
        });
        tenant.ioas.map_pages(Some(Iova(0x1000)), &pages, 0, PAGE, Access::all()).unwrap();
        tenant.device.attach(None, &tenant.ioas).unwrap();
        assert_eq!(tenant.ioas.unmap(range(0x1000, PAGE)), Ok(PAGE));
    });
}

#[test]
fn a_panic_in_a_source_of_pages_leaves_nothing_behind() {
    let machine = machine();
    let tenant = Tenant::of(&machine, 1);
    let bad = || Pages::new(0, PAGE, true, |_, _| panic!("a source's bug"));
    let before = machine.resources();
    assert!(panics(|| tenant.ioas.map_pages(Some(Iova(0x1000)), &bad(), 0, PAGE, Access::all())));
    assert!(panics(|| tenant.ioas.map(Placement::Fixed(Iova(0x1000)), PAGE, Access::all(), || panic!("mine"))));
    assert_eq!((machine.resources(), tenant.ioas.size()), (before, (0, 0)));
    // In an attach: the device stays where it is.
    let other = tenant.context.ioas_alloc().unwrap();
    other.map_pages(Some(Iova(0x1000)), &bad(), 0, PAGE, Access::all()).unwrap();
    map(&tenant.ioas, 0x1000, PAGE);
    assert!(panics(|| tenant.device.attach(None, &other)));
    tenant.endpoint.port().write(Iova(0x1000), &[1]).unwrap();
    other.unmap(IovaRange::ALL).unwrap();
    tenant.device.attach(None, &other).unwrap();
}

/// Calls the engine, or panics, when something is charged or released.
struct Charges {
    ioas: Mutex<Option<Arc<Ioas>>>,
    panics: AtomicBool,
}

impl Charges {
    fn told(&self) {
        let ioas = self.ioas.lock().unwrap().clone();
        ioas.iter().for_each(|ioas| use_engine(ioas));
        assert!(!self.panics.load(Ordering::Relaxed), "an account's bug");
    }
}

impl Account for Charges {
    fn charge(&self, _: u64) -> Result<(), OverLimit> {
        self.told();
        Ok(())
    }

    fn release(&self, _: u64) {
        self.told();
    }
}

#[test]
fn an_account_may_call_the_engine_and_its_panic_loses_nothing() {
    returns(|| {
        let machine = machine();
        let tenant = Tenant::of(&machine, 1);
        let account = Arc::new(Charges { ioas: Mutex::new(Some(tenant.ioas.clone())), panics: AtomicBool::new(false) });
        let pages = pages(PAGE);
        pages.charge_to(Some(account.clone())).unwrap();
        let map = || tenant.ioas.map_pages(Some(Iova(0x1000)), &pages, 0, PAGE, Access::all());
        map().unwrap();
        tenant.ioas.unmap(range(0x1000, PAGE)).unwrap();
        account.panics.store(true, Ordering::Relaxed);
        assert!(panics(map));
        assert_eq!(tenant.ioas.size(), (0, 0));
        account.panics.store(false, Ordering::Relaxed);
        map().unwrap();
        // A release comes from a drop, where a panic goes no further.
        account.panics.store(true, Ordering::Relaxed);
        tenant.ioas.unmap(range(0x1000, PAGE)).unwrap();
        *account.ioas.lock().unwrap() = None;
        assert_eq!((machine.resources().0, tenant.ioas.size()), (0, (0, 0)));
    });
}

#[test]
fn an_account_is_told_with_no_lock_held_when_a_pin_keeps_pages_from_coming_in() {
    returns(|| {
        let machine = machine();
        let tenant = Tenant::of(&machine, 1);
        let account = Arc::new(Charges { ioas: Mutex::new(Some(tenant.ioas.clone())), panics: AtomicBool::new(false) });
        let pages = pages(64 * PAGE);
        pages.charge_to(Some(account.clone())).unwrap();
        tenant.ioas.map_pages(Some(Iova(0x10_0000)), &pages, 0, 64 * PAGE, Access::all()).unwrap();
        tenant.ioas.make_fault(range(0x10_0000, 64 * PAGE)).unwrap();
        let access = tenant.context.access(Some(Box::new(|_| ()))).unwrap();
        access.attach(&tenant.ioas).unwrap();
        let pinned = access.pin(Iova(0x10_0000), PAGE, Access::READ).unwrap();
        // It would have to become an area of its own, beside what is pinned.
        let refused = tenant.ioas.populate(range(0x10_4000, PAGE));
        assert!(matches!(refused, Err(PresenceError::Cut(CutError::Busy(0x10_4000)))), "{refused:?}");
        drop((pinned, access));
        assert_eq!(tenant.ioas.populate(range(0x10_4000, PAGE)).unwrap(), PAGE);
        *account.ioas.lock().unwrap() = None;
    });
}

/// Memory that unmaps something when it is read, and says what came of it.
struct Unmaps(Mutex<Option<Arc<Ioas>>>, Mutex<Option<Result<u64, UnmapError>>>);

impl RemoteMemory for Unmaps {
    fn read(&self, _: u64, data: &mut [u8]) -> io::Result<()> {
        if let Some(ioas) = self.0.lock().unwrap().take() {
            *self.1.lock().unwrap() = Some(ioas.unmap(range(0x1000, PAGE)));
        }
        data.fill(0);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        panic!("a bug in memory")
    }
}

#[test]
fn remote_memory_that_calls_the_engine_gets_an_error() {
    returns(|| {
        let tenant = Tenant::of(&machine(), 1);
        map(&tenant.ioas, 0x1000, PAGE);
        let memory = Arc::new(Unmaps(Mutex::new(Some(tenant.ioas.clone())), Mutex::default()));
        let segment = Segment::remote(memory.clone(), 0, PAGE);
        tenant.ioas.map(Placement::Fixed(Iova(0x2000)), PAGE, Access::all(), || Ok(vec![segment])).unwrap();
        tenant.endpoint.port().read(Iova(0x2000), &mut [0; 8]).unwrap();
        let refused = Err(UnmapError::WouldDeadlock(WouldDeadlock::HoldsSlices));
        assert_eq!(memory.1.lock().unwrap().take(), Some(refused));
        // A panic leaves the gate.
        assert!(panics(|| tenant.endpoint.port().write(Iova(0x2000), &[1])));
        assert_eq!(tenant.ioas.unmap(range(0x1000, 2 * PAGE)), Ok(2 * PAGE));
    });
}

#[test]
fn a_panic_in_confirm_leaves_nothing_behind() {
    let machine = machine();
    let Tenant { context, ioas, endpoint, device } = Tenant::detached(&machine, 1);
    assert!(panics(|| device.attach_if(None, &ioas, |_| panic!("mine"))));
    assert_eq!(device.attached_to(None), None);
    assert!(endpoint.port().read(Iova(0x1000), &mut [0]).is_err());
    drop(device);
    assert_eq!(context.destroy(ioas.id()), Ok(()));
    drop(ioas);
    assert_eq!(machine.resources(), (0, 0));
}

#[test]
fn what_is_not_confirmed_goes_back_to_what_was_attached() {
    returns(|| {
        let tenant = Tenant::of(&machine(), 1);
        map(&tenant.ioas, 0x1000, PAGE);
        tenant.endpoint.port().write(Iova(0x1000), &[1]).unwrap();
        let other = tenant.context.ioas_alloc().unwrap();
        let before = tenant.device.attached_to(None);
        let confirm = |_| {
            // It may call the engine.
            use_engine(&tenant.ioas);
            assert_ne!(tenant.device.attached_to(None), before);
            false
        };
        assert!(tenant.device.attach_if(None, &other, confirm).is_err());
        assert_eq!(tenant.device.attached_to(None), before);
        let mut byte = [0];
        tenant.endpoint.port().read(Iova(0x1000), &mut byte).unwrap();
        assert_eq!((byte, tenant.context.destroy(other.id())), ([1], Ok(())));
    });
}

#[test]
fn a_panic_in_one_answer_leaves_other_deadlines() {
    let machine = machine();
    let options = FaultQueueOptions::default().depth(4).timeout(Duration::from_millis(50));
    let (one, other) = (Tenant::detached(&machine, 1), Tenant::detached(&machine, 2));
    let queues = [one.with_queue(options), other.with_queue(options)];
    one.endpoint.request_pages(one_page(0x1000, |_| panic!("a device model's bug")));
    while queues[0].has_groups() {
        std::thread::yield_now();
    }
    let (tell, told) = mpsc::channel();
    other.endpoint.request_pages(one_page(0x1000, move |response| tell.send(response).unwrap()));
    assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(PageResponse::Failure));
}

#[test]
fn an_answer_may_call_the_engine_and_its_panic_leaves_the_others_answered() {
    returns(|| {
        let tenant = Tenant::detached(&machine(), 1);
        let queue = tenant.with_queue(FaultQueueOptions::default());
        let (ioas, context) = (tenant.ioas.clone(), tenant.context.clone());
        let answered = Arc::new(AtomicUsize::new(0));
        let answer = |panics: bool| {
            let (ioas, context, answered) = (ioas.clone(), context.clone(), answered.clone());
            move |_: PageResponse| {
                // By a detach, too: an answer comes with no lock held.
                use_engine(&ioas);
                let made: Option<Arc<Ioas>> = Context::ioas_alloc(&context);
                context.destroy(made.unwrap().id()).unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
                assert!(!panics, "a device model's bug");
            }
        };
        for panics in [true, false, true] {
            tenant.endpoint.request_pages(one_page(0x1000, answer(panics)));
        }
        let first = queue.take(9).unwrap().unwrap();
        assert!(panics(|| queue.answer(first.cookie, PageResponse::Success)));
        assert!(panics(|| tenant.device.detach(None)));
        assert_eq!((answered.load(Ordering::Relaxed), tenant.device.attached_to(None)), (3, None));
        tenant.device.attach(None, &tenant.ioas).unwrap();
    });
}

#[test]
fn an_unmap_notice_may_call_the_engine_and_drop_the_access() {
    returns(|| {
        let tenant = Tenant::of(&machine(), 1);
        map(&tenant.ioas, 0x1000, PAGE);
        let kept = Arc::new(Mutex::new(None));
        let (ioas, told) = (tenant.ioas.clone(), kept.clone());
        let notice = move |range: IovaRange| {
            use_engine(&ioas);
            let refused = Err(UnmapError::WouldDeadlock(WouldDeadlock::InCallback));
            assert!(range == IovaRange::ALL || ioas.unmap(range) == refused);
            // The access goes with the pin.
            let taken = told.lock().unwrap().take();
            drop(taken);
        };
        let access = tenant.context.access(Some(Box::new(notice))).unwrap();
        access.attach(&tenant.ioas).unwrap();
        let pin = access.pin(Iova(0x1000), PAGE, Access::READ).unwrap();
        *kept.lock().unwrap() = Some((pin, access));
        assert_eq!(tenant.ioas.unmap(range(0x1000, PAGE)), Ok(PAGE));
    });
}

#[test]
fn a_panic_in_an_unmap_notice_leaves_everything_mapped() {
    let tenant = Tenant::of(&machine(), 1);
    map(&tenant.ioas, 0x1000, PAGE);
    let access = tenant.context.access(Some(Box::new(|_| panic!("an access's bug")))).unwrap();
    access.attach(&tenant.ioas).unwrap();
    let pin = access.pin(Iova(0x1000), PAGE, Access::READ).unwrap();
    assert!(panics(|| tenant.ioas.unmap(range(0x1000, PAGE))));
    tenant.endpoint.port().write(Iova(0x1000), &[1]).unwrap();
    // Others may pin again, as it was not unmapped.
    drop((pin, access.pin(Iova(0x1000), PAGE, Access::READ).unwrap()));
    drop(access);
    assert_eq!(tenant.ioas.unmap(range(0x1000, PAGE)), Ok(PAGE));
}
