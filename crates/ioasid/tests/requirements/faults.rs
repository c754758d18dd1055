//! A13 to A18: processes' address spaces, and what happens on a miss.

use std::ptr;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioasid::memory::{Pages, Process, Segment};
use ioasid::{
    Access, AttachError, BusAddress, CopyError, DmaError, EndpointOptions, FaultQueueOptions, FaultReason, GroupId,
    HwptOptions, Iova, OnMiss, PageGroup, PageRequest, PageRequestError, PageRequestInterface, PageResponse, Pasid,
    PresenceError, QueueCounts, Reach, Recovery, RequestedAccess, TakenGroup, UnknownCookie,
};
use rustix::mm::{MapFlags, ProtFlags};

use crate::common::{Bench, PAGE, map, range};

/// Memory of this process that nobody has touched.
#[allow(unsafe_code, reason = "maps memory, which is leaked")]
fn untouched(pages: usize, prot: ProtFlags) -> u64 {
    // SAFETY: a new mapping, leaked.
    unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), pages * 4096, prot, MapFlags::PRIVATE).unwrap() as u64 }
}

#[allow(unsafe_code, reason = "reads memory that it made")]
fn byte_at(address: u64) -> u8 {
    // SAFETY: within a mapping that the caller leaked.
    unsafe { ptr::read_volatile(address as *const u8) }
}

fn group(requests: &[u64], access: RequestedAccess) -> (PageGroup, mpsc::Receiver<PageResponse>) {
    let (told, answer) = mpsc::channel();
    let requests = requests.iter().map(|&iova| PageRequest { pasid: None, iova, access }).collect();
    let tell = Box::new(move |response| {
        // Who gave up listening does not mind.
        let _ = told.send(response);
    });
    (PageGroup { number: 7, requests, answer: tell }, answer)
}

fn own_process() -> Process {
    Process::open_for_sva(std::process::id()).unwrap()
}

#[test]
fn a13_sva_is_a_way_to_fill_a_table_that_ends_with_its_process() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    let context = device.context();
    let sva = context.hwpt_alloc_sva(own_process()).unwrap();
    let pasid = Pasid::new(5);
    device.attach(pasid, &sva).unwrap();
    // A tuned map beside it, on the same device.
    map(&ioas, 0x1000, 1).unwrap();
    device.attach(None, &ioas).unwrap();
    port.write(Iova(0x1000), &[1]).unwrap();

    let at = |address: u64| BusAddress { pasid, iova: Iova(address) };
    let rw = untouched(4, ProtFlags::READ | ProtFlags::WRITE);
    // Pages that were never touched come in, one after the other.
    port.write(at(rw + 4090), b"across a page").unwrap();
    assert_eq!((byte_at(rw + 4090), byte_at(rw + 4095), byte_at(rw + 4096)), (b'a', b's', b' '));
    let mut found = [0xff; 16];
    port.read(at(rw + 2 * 4096), &mut found).unwrap();
    assert_eq!(found, [0; 16]);
    // Protections are the process's.
    let read_only = untouched(1, ProtFlags::READ);
    port.read(at(read_only), &mut found).unwrap();
    assert_eq!(port.write(at(read_only), &[1]).unwrap_err().reason, FaultReason::NotPermitted);
    let none = untouched(1, ProtFlags::empty());
    assert_eq!(port.read(at(none), &mut found).unwrap_err().reason, FaultReason::NotPermitted);
    assert_eq!(port.read(at(0x10), &mut found).unwrap_err().reason, FaultReason::NotMapped);
    // What is protected or unmapped is so at once.
    #[allow(unsafe_code, reason = "of a mapping that it made")]
    // SAFETY: nobody else uses the page.
    unsafe {
        rustix::mm::mprotect(rw as *mut _, 4096, rustix::mm::MprotectFlags::READ).unwrap();
        rustix::mm::munmap((rw + 4096) as *mut _, 4096).unwrap();
    }
    assert_eq!(port.write(at(rw), &[1]).unwrap_err().reason, FaultReason::NotPermitted);
    assert_eq!(port.write(at(rw + 4096), &[1]).unwrap_err().reason, FaultReason::NotMapped);

    // A process that ends takes its address space along, and DMA is stopped, not misdirected.
    let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let process = Process::open_for_sva(child.id()).unwrap();
    let stack = process.vmas().at_or_after(0x1000).unwrap().unwrap().start;
    let theirs = context.hwpt_alloc_sva(process).unwrap();
    device.attach(pasid, &theirs).unwrap();
    port.read(at(stack), &mut found).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(port.read(at(stack), &mut found).unwrap_err().reason, FaultReason::MemoryGone);
    assert!(Process::open_for_sva(child.id()).is_err(), "no SVA without a process");
    let plain = Process::open(std::process::id()).unwrap();
    assert!(context.hwpt_alloc_sva(plain).is_err());
    // Who cannot wait for a page cannot have it.
    let cannot = EndpointOptions::default().recovery(Recovery::None);
    let rid = "0000:00:09.0".parse().unwrap();
    let cannot = context.bind(&bench.machine.add_endpoint_with(rid, GroupId(9), cannot).unwrap()).unwrap();
    assert!(matches!(cannot.attach(pasid, &sva), Err(AttachError::CannotWait(_))));
    assert_eq!(endpoint.parked_faults(), 0);
}

#[test]
fn a14_the_address_space_says_what_happens_on_a_fault_with_a_pasid_and_without() {
    for pasid in [None, Pasid::new(3)] {
        let bench = Bench::new();
        let (endpoint, mut port, ioas, device) = bench.one_device();
        let context = device.context();
        let queue = context.fault_queue_alloc().unwrap();
        map(&ioas, 0x10_0000, 4).unwrap();
        ioas.make_fault(range(0x10_0000, 4 * PAGE)).unwrap();
        let table = |on_miss| {
            let options = HwptOptions::default().on_miss(on_miss).pasids(true);
            context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap()
        };
        let at = BusAddress { pasid, iova: Iova(0x10_0000) };
        // Refused.
        device.attach(pasid, table(OnMiss::Abort)).unwrap();
        assert_eq!(port.write(at, &[1]).unwrap_err().reason, FaultReason::NotPresent);
        assert_eq!(bench.log.faults.lock().unwrap().len(), 1);
        // An event, and the device waits for what comes of it.
        device.attach(pasid, table(OnMiss::Queue(queue.clone()))).unwrap();
        let writer = std::thread::spawn(move || (port.write(at, &[2]), port));
        let taken = taken(&queue);
        assert_eq!((taken.requests[0].iova, taken.requests[0].pasid), (0x10_0000, pasid));
        ioas.populate(range(0x10_0000, PAGE)).unwrap();
        queue.answer(taken.cookie, PageResponse::Success).unwrap();
        let (written, mut port) = writer.join().unwrap();
        written.unwrap();
        // Brought in from what is behind the mapping, without anybody.
        device.attach(pasid, table(OnMiss::Resolve)).unwrap();
        let beyond = BusAddress { pasid, iova: Iova(0x10_1000) };
        assert_eq!(ioas.faults_at(beyond.iova), Some(true));
        port.write(beyond, &[3]).unwrap();
        assert_eq!(ioas.faults_at(beyond.iova), Some(false));
        let nowhere = BusAddress { pasid, iova: Iova(0x20_0000) };
        assert_eq!(port.write(nowhere, &[3]).unwrap_err().reason, FaultReason::NotMapped);
        // The device and its driver had no part in it.
        assert_eq!(endpoint.recovery(), Recovery::Stall);
    }
}

/// The next group, when it is there.
fn taken(queue: &ioasid::FaultQueue) -> TakenGroup {
    let (told, arrived) = mpsc::channel();
    queue.on_arrival(Arc::new(move || {
        // Whoever waited may have what it wanted.
        let _ = told.send(());
    }));
    loop {
        if let Some(group) = queue.take(usize::MAX).unwrap() {
            return group;
        }
        arrived.recv_timeout(Duration::from_secs(20)).expect("a page request");
    }
}

#[test]
fn a16_formats_are_queried_and_ranges_invalidated_unmapped_and_made_to_fault_here() {
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    device.attach(None, &ioas).unwrap();
    assert_eq!(ioas.page_sizes(), 1 << 12 | 1 << 21 | 1 << 30);
    let (ranges, alignment) = ioas.iova_ranges();
    assert_eq!((ranges.iter().count(), alignment), (2, PAGE));
    // 4 MiB in large pages, of which one small page is made to fault.
    let (memory, file) = Segment::memfd(4 << 20).unwrap();
    let pages = Pages::of_file(file, 0, 4 << 20, true);
    drop(memory);
    ioas.map_pages(Some(Iova(0x4000_0000)), &pages, 0, 4 << 20, Access::all()).unwrap();
    let hole = 0x4000_0000 + (1 << 20);
    port.write(Iova(hole), &[5]).unwrap();
    ioas.make_fault(range(hole, PAGE)).unwrap();
    assert_eq!(port.write(Iova(hole), &[6]).unwrap_err().reason, FaultReason::NotPresent);
    port.write(Iova(hole - 1), &[6]).unwrap();
    port.write(Iova(hole + PAGE), &[6]).unwrap();
    assert_eq!(ioas.populate(range(hole, PAGE)).unwrap(), PAGE);
    let mut found = [0];
    port.read(Iova(hole), &mut found).unwrap();
    assert_eq!(found, [5], "the same memory");
    assert_eq!(ioas.populate(range(hole, PAGE)).unwrap(), 0);
    // What is wrong is said, and changes nothing.
    let before = ioas.areas();
    assert!(matches!(ioas.make_fault(range(hole + 1, PAGE)), Err(PresenceError::Unaligned(..))));
    assert!(matches!(ioas.make_fault(range(0x1000, PAGE)), Err(PresenceError::Empty(_))));
    assert!(matches!(ioas.populate(range(0x1000, PAGE)), Err(PresenceError::Empty(_))));
    assert_eq!(ioas.areas(), before);
    // Absent memory is unmapped like any other, and what was one mapping as a whole.
    ioas.make_fault(range(hole, PAGE)).unwrap();
    ioas.unmap(range(0x4000_0000, 4 << 20)).unwrap();
    assert_eq!(port.write(Iova(hole), &[6]).unwrap_err().reason, FaultReason::NotMapped);
    device.detach(None).unwrap();
    assert_eq!(bench.machine.resources(), (0, 0));
}

#[test]
fn a16_lazy_memory_is_held_only_where_it_was_needed() {
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    let context = device.context();
    let fetched = Arc::new(Mutex::new(Vec::new()));
    let (log, (memory, _file)) = (fetched.clone(), Segment::memfd(1 << 20).unwrap());
    let pages = Pages::new(0, 1 << 20, true, move |offset, length| {
        log.lock().unwrap().push((offset, length));
        let whole = memory.clone();
        drop(whole);
        Ok(vec![Segment::memfd(length)?.0])
    });
    ioas.map_pages(Some(Iova(0x10_0000)), &pages, 0, 1 << 20, Access::all()).unwrap();
    ioas.make_fault(range(0x10_0000, 1 << 20)).unwrap();
    let options = HwptOptions::default().on_miss(OnMiss::Resolve);
    let hwpt = context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap();
    device.attach(None, &hwpt).unwrap();
    assert_eq!((fetched.lock().unwrap().len(), bench.machine.resources().0), (0, 0), "nobody needed anything");
    port.write(Iova(0x13_4567), &[1]).unwrap();
    assert_eq!(*fetched.lock().unwrap(), [(0x3_0000, 0x1_0000)]);
    port.write(Iova(0x13_fff0), &[1; 32]).unwrap();
    assert_eq!(*fetched.lock().unwrap(), [(0x3_0000, 0x1_0000), (0x4_0000, 0x1_0000)]);
}

#[test]
fn a17_answers_go_the_way_that_requests_came_once_and_to_nobody_else() {
    let bench = Bench::new();
    let (endpoint, _, ioas, device) = bench.one_device();
    let context = device.context();
    let depth = FaultQueueOptions::default().depth(2);
    let queue = context.fault_queue_alloc_with(depth).unwrap();
    let options = HwptOptions::default().on_miss(OnMiss::Queue(queue.clone()));
    let hwpt = context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap();
    device.attach(None, &hwpt).unwrap();
    // Many at a time, and one more than fit, which is counted and answered.
    let asked: Vec<_> = (0..3).map(|n| group(&[n << 12, n << 12 | 0x1000], RequestedAccess::READ)).collect();
    let answers: Vec<_> = asked
        .into_iter()
        .map(|(group, answer)| {
            endpoint.request_pages(group);
            answer
        })
        .collect();
    assert_eq!(answers[2].try_recv(), Ok(PageResponse::Failure));
    assert_eq!(queue.counts(), QueueCounts { overflowed: 1, timed_out: 0 });
    let first = queue.take(8).unwrap().unwrap();
    let second = queue.take(8).unwrap().unwrap();
    assert_eq!((first.requests.len(), second.requests[0].iova), (2, 0x1000));
    // In any order; not twice, not what was never asked, and not by another context's queue.
    let elsewhere = bench.machine.context().fault_queue_alloc().unwrap();
    assert_eq!(elsewhere.answer(second.cookie, PageResponse::Success), Err(UnknownCookie(second.cookie)));
    queue.answer(second.cookie, PageResponse::Success).unwrap();
    queue.answer(first.cookie, PageResponse::Invalid).unwrap();
    assert_eq!(queue.answer(first.cookie, PageResponse::Success), Err(UnknownCookie(first.cookie)));
    assert_eq!((answers[0].try_recv(), answers[1].try_recv()), (Ok(PageResponse::Invalid), Ok(PageResponse::Success)));
}

#[test]
fn a17_nobody_waits_for_ever() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    let context = device.context();
    let options = FaultQueueOptions::default().timeout(Duration::from_millis(20));
    let queue = context.fault_queue_alloc_with(options).unwrap();
    let options = HwptOptions::default().on_miss(OnMiss::Queue(queue.clone()));
    let hwpt = context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap();
    device.attach(None, &hwpt).unwrap();
    // One that nobody takes, and one that is taken and not answered.
    let (one, answer) = group(&[0x1000], RequestedAccess::READ);
    endpoint.request_pages(one);
    queue.take(1).unwrap().unwrap();
    assert_eq!(port.read(Iova(0x1000), &mut [0]).unwrap_err().reason, FaultReason::NotMapped);
    assert_eq!(answer.recv_timeout(Duration::from_secs(20)), Ok(PageResponse::Failure));
    assert_eq!(queue.counts().timed_out, 2);
    // A device that is reset gives up, and so does one that is detached while its transaction waits.
    for end in [true, false] {
        endpoint.set_bus_master(true).unwrap();
        let patient = context.fault_queue_alloc().unwrap();
        let options = HwptOptions::default().on_miss(OnMiss::Queue(patient.clone()));
        let hwpt = context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap();
        device.attach(None, &hwpt).unwrap();
        let reader = std::thread::spawn(move || (port.read(Iova(0x1000), &mut [0]), port));
        let _taken = taken(&patient);
        if end {
            endpoint.set_bus_master(false).unwrap();
        } else {
            device.detach(None).unwrap();
        }
        let (read, back) = reader.join().unwrap();
        assert!(read.is_err());
        port = back;
    }
}

#[test]
fn a17_a_device_asks_page_by_page_and_a_group_is_answered_as_one() {
    let bench = Bench::new();
    let rid = "0000:00:03.0".parse().unwrap();
    let options = EndpointOptions::default().recovery(Recovery::PageRequests);
    let endpoint = bench.machine.add_endpoint_with(rid, GroupId(3), options).unwrap();
    endpoint.set_bus_master(true).unwrap();
    let context = bench.machine.context();
    let (device, ioas) = (context.bind(&endpoint).unwrap(), context.ioas_alloc().unwrap());
    map(&ioas, 0x10_0000, 4).unwrap();
    ioas.make_fault(range(0x10_0000, 4 * PAGE)).unwrap();
    let queue = context.fault_queue_alloc().unwrap();
    let options = HwptOptions::default().on_miss(OnMiss::Queue(queue.clone()));
    let hwpt = context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap();
    device.attach(None, &hwpt).unwrap();
    // What it can ask about is refused as such, and nobody is told of a bug.
    let mut port = endpoint.port();
    let refused = port.write(Iova(0x10_0000), &[1]).unwrap_err();
    assert_eq!((refused.reason, refused.recoverable), (FaultReason::NotPresent, true));
    assert!(bench.log.faults.lock().unwrap().is_empty());

    let pages = PageRequestInterface::new(&endpoint, 3);
    let request = |iova| PageRequest { pasid: None, iova, access: RequestedAccess::WRITE };
    let (told, answer) = mpsc::channel();
    let last = move || -> Option<Box<dyn FnOnce(PageResponse) + Send>> {
        let told = told.clone();
        Some(Box::new(move |response| told.send(response).unwrap()))
    };
    pages.request(5, request(0x10_0000), None).unwrap();
    pages.request(5, request(0x10_1000), None).unwrap();
    assert!(!queue.has_groups(), "the last has not come");
    let with_pasid = PageRequest { pasid: Pasid::new(1), ..request(0) };
    assert_eq!(pages.request(5, with_pasid, None), Err(PageRequestError::MixedPasids(5)));
    pages.request(5, request(0x10_2000), last()).unwrap();
    assert_eq!(pages.request(6, request(0), last()), Err(PageRequestError::TooMany(3)));
    let group = queue.take(8).unwrap().unwrap();
    assert_eq!((group.number, group.requests.len(), pages.outstanding()), (5, 3, 3));
    ioas.populate(range(0x10_0000, 3 * PAGE)).unwrap();
    queue.answer(group.cookie, PageResponse::Success).unwrap();
    assert_eq!((answer.recv().unwrap(), pages.outstanding()), (PageResponse::Success, 0));
    port.write(Iova(0x10_0000), &[1; 3 * 4096]).unwrap();
    // A no is what was refused in the end, and the observer is told.
    pages.request(7, request(0x10_3000), last()).unwrap();
    let group = queue.take(8).unwrap().unwrap();
    queue.answer(group.cookie, PageResponse::Invalid).unwrap();
    assert_eq!((answer.recv().unwrap(), bench.log.faults.lock().unwrap().len()), (PageResponse::Invalid, 1));
    // A reset forgets what was begun.
    pages.request(8, request(0), None).unwrap();
    pages.reset();
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn a18_software_reaches_an_address_space_by_table_or_by_device_and_pasid() {
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    let context = device.context();
    map(&ioas, 0x1000, 2).unwrap();
    let options = HwptOptions::default().on_miss(OnMiss::Resolve).pasids(true);
    let hwpt = context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap();
    let pasid = Pasid::new(4);
    let by_device = Reach::of_device(device.endpoint(), pasid);
    let nothing = context.copy_to(&by_device, Iova(0x1000), &[1]);
    assert!(matches!(nothing, Err(CopyError::NotAttached(_))));
    device.attach(pasid, &hwpt).unwrap();
    context.copy_to(by_device, Iova(0x1ffe), &[1, 2, 3, 4]).unwrap();
    let mut found = [0; 4];
    port.read(BusAddress { pasid, iova: Iova(0x1ffe) }, &mut found).unwrap();
    assert_eq!(found, [1, 2, 3, 4]);
    // By the table, and what is not present comes in on the way.
    ioas.make_fault(range(0x1000, 2 * PAGE)).unwrap();
    context.copy_from(&hwpt, Iova(0x1ffe), &mut found).unwrap();
    assert_eq!(found, [1, 2, 3, 4]);
    // A process's own, too.
    let sva = context.hwpt_alloc_sva(own_process()).unwrap();
    let address = untouched(1, ProtFlags::READ | ProtFlags::WRITE);
    context.copy_to(&sva, Iova(address), b"hello").unwrap();
    assert_eq!(byte_at(address), b'h');
    // What cannot be is said, with where, and no device is blamed.
    let Err(CopyError::Refused(DmaError { at, write, reason, .. })) = context.copy_to(&hwpt, Iova(0x2ffe), &[0; 4])
    else {
        panic!("beyond what is mapped")
    };
    assert_eq!((at.iova.0, write, reason), (0x3000, true, FaultReason::NotMapped));
    assert!(bench.log.faults.lock().unwrap().is_empty());
    let stranger = Reach::of_device(&bench.endpoint(2, 2), None);
    assert!(matches!(context.copy_to(stranger, Iova(0), &[0]), Err(CopyError::NotBound(_))));
    assert!(matches!(bench.machine.context().copy_to(&hwpt, Iova(0), &[0]), Err(CopyError::Missing(_))));
    // A number is a page table only if what has it is one.
    assert!([999, ioas.id().into(), device.id().into()].into_iter().all(|id| context.reach(id).is_none()));
    context.copy_to(context.reach(hwpt.id().into()).unwrap(), Iova(0x1000), &[0]).unwrap();
    device.detach(pasid).unwrap();
    context.destroy(hwpt.id()).unwrap();
    assert!(matches!(context.copy_to(&hwpt, Iova(0x1000), &[0]), Err(CopyError::Missing(id)) if id == hwpt.id()));
}
