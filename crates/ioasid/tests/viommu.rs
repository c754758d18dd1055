//! Virtual IOMMUs and page requests: who hears of what, who holds whom, and that nothing waits for ever.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ioasid::{
    Access, AttachError, Context, DestroyError, Device, Endpoint, Event, FaultQueue, GroupTooLarge, GuestFormat,
    GuestTable, HwQueueError, HwQueueOptions, Hwpt, HwptError, HwptOptions, Ioas, Iova, NestParent, NestedHwpt,
    NestedOptions, NotBound, OnMiss, PageGroup, PageRequest, PageResponse, Pasid, Placement, RequestedAccess,
    UnknownCookie, UnmapError, Viommu, ViommuError,
};

use common::{Bench, PAGE, map, parent, range};

struct Guest {
    endpoint: Arc<Endpoint>,
    context: Arc<Context>,
    ioas: Arc<Ioas>,
    device: Device,
    parent: Arc<Hwpt>,
}

impl Guest {
    fn new(bench: &Bench) -> Self {
        let (endpoint, _, ioas, device) = bench.one_device();
        let context = device.context().clone();
        let parent = context.hwpt_alloc(device.endpoint(), &ioas, parent()).unwrap();
        Self { endpoint, context, ioas, device, parent }
    }

    fn viommu(&self) -> Arc<Viommu> {
        let extend = |id| Ok(Box::new(u32::from(id)) as Box<dyn std::any::Any + Send + Sync>);
        self.context.viommu_alloc::<ViommuError>(&self.endpoint, &self.parent, extend).unwrap()
    }

    fn nested(
        &self,
        on: impl Into<NestParent>,
        fault_queue: Option<&Arc<FaultQueue>>,
    ) -> Result<Arc<NestedHwpt>, HwptError> {
        let table = GuestTable { format: GuestFormat::X86_64, root: 0 };
        let on_miss = fault_queue.map_or(OnMiss::Abort, |queue| OnMiss::Queue(queue.clone()));
        let options = NestedOptions::from(table).on_miss(on_miss);
        self.context.hwpt_alloc_nested(on, options)
    }
}

/// A group of so many requests, and the list that its answer goes to.
fn group(number: u32, pasid: Option<Pasid>, requests: u64) -> (PageGroup, Arc<Mutex<Vec<PageResponse>>>) {
    let answers = Arc::new(Mutex::new(Vec::new()));
    let list = answers.clone();
    let request = |n| PageRequest { pasid, iova: n * PAGE, access: RequestedAccess::WRITE };
    let answer = Box::new(move |answer| list.lock().unwrap().push(answer));
    (PageGroup { number, requests: (0..requests).map(request).collect(), answer }, answers)
}

#[test]
fn page_requests_are_taken_in_groups_and_answered_by_cookie() {
    let bench = Bench::new();
    let guest = Guest::new(&bench);
    let queue = guest.context.fault_queue_alloc().unwrap();
    let arrived = Arc::new(AtomicUsize::new(0));
    let count = arrived.clone();
    queue.on_arrival(Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    let options = HwptOptions::default().on_miss(OnMiss::Queue(queue.clone()));
    let hwpt = guest.context.hwpt_alloc(guest.device.endpoint(), &guest.ioas, options).unwrap();
    guest.device.attach(None, &hwpt).unwrap();

    let groups = [1, 3, 1].map(|requests| group(7, None, requests));
    let answers = groups.each_ref().map(|(_, answers)| answers.clone());
    groups.into_iter().for_each(|(group, _)| guest.endpoint.request_pages(group));
    assert_eq!((arrived.load(Ordering::Relaxed), queue.has_groups()), (3, true));
    let first = queue.take(1).unwrap().unwrap();
    assert_eq!((first.cookie, first.device, first.number), (1, guest.device.id().into(), 7));
    assert_eq!(first.requests, [PageRequest { pasid: None, iova: 0, access: RequestedAccess::WRITE }]);
    assert_eq!(queue.take(2), Err(GroupTooLarge(3)));
    let second = queue.take(3).unwrap().unwrap();
    assert_eq!((second.cookie, second.requests.len()), (2, 3));
    // Answers come in any order, once.
    queue.answer(2, PageResponse::Success).unwrap();
    assert_eq!(queue.answer(2, PageResponse::Success), Err(UnknownCookie(2)));
    queue.answer(1, PageResponse::Invalid).unwrap();
    assert_eq!(queue.take(9).unwrap().unwrap().cookie, 3, "none that a late answer could mean");
    assert_eq!(queue.take(9), Ok(None));
    let heard = answers.map(|answers| answers.lock().unwrap().clone());
    assert_eq!(heard, [vec![PageResponse::Invalid], vec![PageResponse::Success], vec![]]);
}

#[test]
fn who_asks_is_answered_even_if_nobody_is_there_or_leaves() {
    let bench = Bench::new();
    let guest = Guest::new(&bench);
    let ask = |pasid| {
        let (group, answers) = group(1, pasid, 1);
        guest.endpoint.request_pages(group);
        answers
    };
    let invalid = vec![PageResponse::Invalid];
    // Attached to nothing, and to what has no queue.
    assert_eq!(*ask(None).lock().unwrap(), invalid);
    guest.device.attach(None, &guest.ioas).unwrap();
    assert_eq!(*ask(None).lock().unwrap(), invalid);

    let queue = guest.context.fault_queue_alloc().unwrap();
    let nested = guest.nested(&guest.parent, Some(&queue)).unwrap();
    let pasid = Pasid::new(9);
    guest.device.attach(None, &nested).unwrap();
    // A PASID of the guest's own table comes by the attachment without one.
    let (waiting, taken) = (ask(pasid), ask(None));
    assert_eq!(queue.take(1).unwrap().unwrap().requests[0].pasid, pasid);
    guest.device.attach(pasid, &nested).unwrap();
    let by_pasid = ask(pasid);
    guest.device.attach(None, &guest.ioas).unwrap();
    assert_eq!([&waiting, &taken].map(|answers| answers.lock().unwrap().clone()), [invalid.clone(), invalid.clone()]);
    assert!(by_pasid.lock().unwrap().is_empty(), "it is attached still");
    assert_eq!(queue.answer(1, PageResponse::Success), Err(UnknownCookie(1)));
    guest.device.detach(pasid).unwrap();
    assert_eq!(*by_pasid.lock().unwrap(), invalid);
    assert!(!queue.has_groups());
}

#[test]
fn a_fault_queue_stays_as_long_as_it_is_needed() {
    let bench = Bench::new();
    let guest = Guest::new(&bench);
    let queue = guest.context.fault_queue_alloc().unwrap();
    let id = u32::from(queue.id());
    let elsewhere = bench.machine.context().fault_queue_alloc().unwrap();
    let refused = guest.nested(&guest.parent, Some(&elsewhere));
    assert!(matches!(refused.map(drop), Err(HwptError::Missing(id)) if id == elsewhere.id()));
    let nested = guest.nested(&guest.parent, Some(&queue)).unwrap();
    assert_eq!(guest.context.destroy(id), Err(DestroyError::Busy(id)));
    guest.context.destroy(nested.id()).unwrap();
    let held = guest.context.hold(queue.id()).unwrap();
    assert_eq!(guest.context.destroy(id), Err(DestroyError::Busy(id)));
    drop(held);
    guest.context.destroy(id).unwrap();
    assert!(guest.context.hold(queue.id()).is_none());
}

#[test]
fn a_device_has_to_be_known_to_the_guest_whose_table_it_is_to_use() {
    let bench = Bench::new();
    let guest = Guest::new(&bench);
    let viommu = guest.viommu();
    assert_eq!(viommu.extension::<u32>(), Some(&viommu.id().into()));
    let nested = guest.nested(&viommu, None).unwrap();
    let refused = guest.device.attach(None, &nested);
    assert!(matches!(refused, Err(AttachError::NoVirtualDevice(id)) if id == nested.id()));
    let make = |id| guest.context.virtual_device_alloc(&viommu, &guest.endpoint, id);
    let known = make(0x99).unwrap();
    assert_eq!((viommu.virtual_id(&guest.endpoint), known.virtual_id()), (Some(0x99), 0x99));
    assert!(Arc::ptr_eq(viommu.device(0x99).unwrap().endpoint(), &guest.endpoint));
    guest.device.attach(None, &nested).unwrap();
    assert_eq!(make(0x88).err(), Some(ViommuError::Exists));
    guest.device.detach(None).unwrap();
    guest.context.destroy(known.id()).unwrap();
    assert!(viommu.device(0x99).is_none());
    make(0x88).unwrap();
}

#[test]
fn a_virtual_device_goes_with_its_device_and_its_id_stays() {
    let bench = Bench::new();
    let guest = Guest::new(&bench);
    let viommu = guest.viommu();
    let Guest { context, device, endpoint, .. } = guest;
    let over = u32::from(viommu.id());
    let known = u32::from(context.virtual_device_alloc(&viommu, &endpoint, 1).unwrap().id());
    assert_eq!(context.destroy(over), Err(DestroyError::Busy(over)));
    drop(device);
    assert_eq!(viommu.virtual_id(&endpoint), None);
    assert_eq!(context.destroy(known), Err(DestroyError::Missing(known)));
    let refused = context.virtual_device_alloc(&viommu, &endpoint, 1).err();
    assert_eq!(refused, Some(ViommuError::NotBound(NotBound(endpoint.rid()))));
    assert!((0..8).all(|_| u32::from(context.ioas_alloc().unwrap().id()) != known));
    context.destroy(over).unwrap();
}

#[test]
fn a_virtual_iommu_needs_a_parent_and_keeps_it() {
    let bench = Bench::new();
    let guest = Guest::new(&bench);
    let make = |device, parent| guest.context.viommu_alloc::<ViommuError>(device, parent, |_| Ok(Box::new(())));
    let plain = guest.context.hwpt_alloc(guest.device.endpoint(), &guest.ioas, HwptOptions::default());
    let plain = plain.unwrap();
    assert_eq!(make(&guest.endpoint, &plain).err(), Some(ViommuError::NotAParent(plain.id())));
    // Neither a device nor a page table of another context, nor a device behind another kind of IOMMU.
    let stranger = bench.endpoint(2, 2);
    assert_eq!(make(&stranger, &guest.parent).err(), Some(ViommuError::NotBound(NotBound(stranger.rid()))));
    let elsewhere = bench.machine.context();
    let bound = elsewhere.bind(&stranger).unwrap();
    assert_eq!(make(&stranger, &guest.parent).err(), Some(ViommuError::NotBound(NotBound(stranger.rid()))));
    let there = elsewhere.viommu_alloc::<ViommuError>(&stranger, &guest.parent, |_| Ok(Box::new(())));
    assert_eq!(there.err(), Some(ViommuError::Missing(guest.parent.id())));
    drop(bound);
    let viommu = make(&guest.endpoint, &guest.parent).unwrap();
    assert!(Arc::ptr_eq(viommu.iommu(), guest.endpoint.iommu()));
    let parent = u32::from(guest.parent.id());
    assert_eq!(guest.context.destroy(parent), Err(DestroyError::Busy(parent)));
    let nested = guest.nested(&viommu, None).unwrap();
    assert_eq!(guest.context.destroy(viommu.id()), Err(DestroyError::Busy(viommu.id().into())));
    guest.context.destroy(nested.id()).unwrap();
    guest.context.destroy(viommu.id()).unwrap();
    guest.context.destroy(parent).unwrap();
    // What fails in the middle leaves nothing.
    let other = guest.context.hwpt_alloc(&guest.endpoint, &guest.ioas, common::parent()).unwrap();
    let failed = guest.context.viommu_alloc::<ViommuError>(&guest.endpoint, &other, |_| Err(ViommuError::NoRoom));
    assert_eq!(failed.err(), Some(ViommuError::NoRoom));
    guest.context.destroy(other.id()).unwrap();
    guest.context.destroy(plain.id()).unwrap();
}

#[test]
fn events_that_find_no_room_are_counted() {
    let bench = Bench::new();
    let guest = Guest::new(&bench);
    let viommu = guest.viommu();
    let make = |depth| guest.context.event_queue_alloc(&viommu, 5, depth);
    assert_eq!(make(0).err(), Some(ViommuError::NoRoom));
    let queue = make(2).unwrap();
    assert_eq!(make(2).err(), Some(ViommuError::Exists));
    assert!(viommu.events(4).is_none());
    let event = |sequence, data: Option<&[u8]>| Some(Event { sequence, data: data.map(<[u8]>::to_vec) });
    let take = || queue.take_if(|_| true);
    assert!(!queue.has_events());
    for n in 0..5 {
        viommu.events(5).unwrap().report(&[n]);
    }
    assert_eq!(queue.take_if(|_| false), None);
    assert_eq!([take(), take()], [event(0, Some(&[0])), event(1, Some(&[1]))]);
    // Three were lost; the last of them is told of.
    assert!(queue.has_events());
    assert_eq!([take(), take()], [event(4, None), None]);
    queue.report(&[5]);
    queue.report(&[6]);
    queue.report(&[7]);
    assert_eq!(take(), event(5, Some(&[5])));
    // With one after it, its number says what was lost.
    queue.report(&[8]);
    assert_eq!([take(), take(), take()], [event(6, Some(&[6])), event(8, Some(&[8])), None]);
    let id = u32::from(queue.id());
    guest.context.destroy(id).unwrap();
    assert!(viommu.events(5).is_none());
    make(1).unwrap();
}

#[test]
fn a_hardware_queue_keeps_its_memory_mapped() {
    let bench = Bench::new();
    let guest = Guest::new(&bench);
    let viommu = guest.viommu();
    let options = HwQueueOptions::new(0, range(0x10_0800, 0x1000));
    let make = |options| guest.context.hw_queue_alloc(&viommu, options);
    assert!(matches!(make(options), Err(HwQueueError::Memory(_))));
    map(&guest.ioas, 0x10_0000, 2).unwrap();
    map(&guest.ioas, 0x10_2000, 1).unwrap();
    assert!(matches!(make(HwQueueOptions::new(0, range(0x10_1800, 0x1000))), Err(HwQueueError::Scattered)));
    let second = HwQueueOptions::new(1, options.memory).after(Some(0));
    assert!(matches!(make(second), Err(HwQueueError::OutOfOrder(0))));
    let first = make(options).unwrap();
    assert_eq!(first.memory().range(), range(0x10_0000, 2 * PAGE));
    assert!(matches!(make(options), Err(HwQueueError::Viommu(ViommuError::Exists))));
    let second = make(second).unwrap();
    let mapped = range(0x10_0000, 2 * PAGE);
    assert_eq!(guest.ioas.unmap(mapped), Err(UnmapError::Locked(mapped)));
    assert_eq!(guest.ioas.unmap(range(0x10_2000, PAGE)), Ok(PAGE));
    let ids = [&first, &second].map(|queue| u32::from(queue.id()));
    drop((first, second));
    assert_eq!(guest.context.destroy(ids[0]), Err(DestroyError::Busy(ids[0])));
    guest.context.destroy(ids[1]).unwrap();
    assert_eq!(guest.ioas.unmap(mapped), Err(UnmapError::Locked(mapped)));
    guest.context.destroy(ids[0]).unwrap();
    assert_eq!(guest.ioas.unmap(mapped), Ok(2 * PAGE));
    // What cannot be read is no queue.
    let write_only = ioasid::memory::Segment::memfd(PAGE).unwrap().0;
    guest.ioas.map(Placement::Fixed(Iova(0)), PAGE, Access::WRITE, || Ok(vec![write_only])).unwrap();
    assert!(make(HwQueueOptions::new(2, range(0, PAGE))).is_err());
}
