//! A20 to A22, A26 and A27: virtual PASIDs, parts of devices, and devices of all kinds.

use std::sync::{Arc, mpsc};

use ioasid::{
    AttachError, BindError, BusAddress, CopyError, DmaPort, Endpoint, EndpointOptions, FaultReason, GroupId,
    HwptOptions, Iova, MediateError, OnMiss, PageGroup, PageRequest, PageResponse, PartPasids, Pasid, Reach, Recovery,
    RequestedAccess, VirtualPasids,
};

use crate::common::{Bench, PAGE, map, range};

fn pasid(number: u32) -> Option<Pasid> {
    Pasid::new(number)
}

fn write(port: &mut DmaPort, pasid: Option<Pasid>, value: u8) -> Result<(), FaultReason> {
    port.write(BusAddress { pasid, iova: Iova(0x1000) }, &[value]).map_err(|error| error.reason)
}

fn read(port: &mut DmaPort, pasid: Option<Pasid>) -> Result<u8, FaultReason> {
    let mut value = [0];
    port.read(BusAddress { pasid, iova: Iova(0x1000) }, &mut value).map_err(|error| error.reason)?;
    Ok(value[0])
}

fn part(bench: &Bench, parent: &Arc<Endpoint>, slot: u8, pasids: PartPasids) -> Arc<Endpoint> {
    let rid = ioasid::Rid::new(1, 0, slot, 0).unwrap();
    let part = bench.machine.add_part(parent, rid, GroupId(u32::from(slot) + 100), pasids).unwrap();
    part.set_bus_master(true).unwrap();
    part
}

#[test]
fn a20_a_virtual_processors_table_is_empty_until_somebody_fills_it_with_what_a_context_holds() {
    let bench = Bench::new();
    let (context, other) = (bench.machine.context(), bench.machine.context());
    let table = VirtualPasids::new();
    assert!((0..1 << 12).all(|number| table.physical(pasid(number)).is_none()), "off until asked for");
    let physical = context.pasid_alloc(40, 50).unwrap();
    // Only who holds the context can name it.
    assert!(other.hold_pasid(physical).is_err());
    assert!(table.set(pasid(5), context.hold_pasid(physical).unwrap()).is_none());
    assert_eq!((table.physical(pasid(5)), table.physical(Some(physical))), (Some(physical), None));
    // That it is there authorises no device: transactions with it reach nothing.
    let endpoint = bench.endpoint(1, 1);
    let device = context.bind(&endpoint).unwrap();
    assert_eq!(write(&mut endpoint.port(), Some(physical), 1), Err(FaultReason::NotAttached));
    drop(device);
    // As long as it can be named it is nobody else's.
    context.pasid_free(physical).unwrap();
    assert!(other.pasid_alloc(40, 40).is_err());
    assert!(table.remove(pasid(5)).unwrap().is_parked());
    assert_eq!((table.physical(pasid(5)), other.pasid_alloc(40, 40)), (None, Ok(physical)));
}

#[test]
fn a21_a_driver_keeps_a_table_and_a_device_says_that_it_can() {
    let bench = Bench::new();
    let parent = bench.endpoint(1, 1);
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    map(&ioas, 0x1000, 1).unwrap();
    // A device that has no PASIDs has no parts; one that does not say that it can, no virtual ones.
    let without = EndpointOptions::default().pasid_bits(0);
    let without = bench.machine.add_endpoint_with("0000:00:02.0".parse().unwrap(), GroupId(2), without).unwrap();
    let made = bench.machine.add_part(&without, "0001:00:01.0".parse().unwrap(), GroupId(3), PartPasids::None);
    assert_eq!(made.err(), Some(MediateError::NoPasids));
    let plain = context.bind(&part(&bench, &parent, 1, PartPasids::None)).unwrap();
    assert!(matches!(plain.attach(pasid(5), &ioas), Err(AttachError::PasidTooWide(..))));
    plain.attach(None, &ioas).unwrap();

    let able = part(&bench, &parent, 2, PartPasids::Translated);
    let device = context.bind(&able).unwrap();
    let table = able.virtual_pasids().unwrap().clone();
    assert_eq!(table.physical(pasid(5)), None);
    device.attach(pasid(5), &ioas).unwrap();
    let physical = table.physical(pasid(5)).unwrap();
    // What the driver puts on the bus reaches what was attached; what the owner said does not.
    let mut port = parent.port();
    assert_eq!(write(&mut port, Some(physical), 3), Ok(()));
    assert!(physical == Pasid::new(5).unwrap() || write(&mut port, pasid(5), 3).is_err());
    device.detach(pasid(5)).unwrap();
    assert_eq!((table.physical(pasid(5)), write(&mut port, Some(physical), 3)), (None, Err(FaultReason::NotAttached)));
}

#[test]
fn a22_identity_and_translated_beside_whole_devices_in_one_context() {
    let bench = Bench::new();
    let (parent, whole) = (bench.endpoint(1, 1), bench.endpoint(2, 2));
    let context = bench.machine.context();
    let spaces = [(); 3].map(|()| context.ioas_alloc().unwrap());
    for ioas in &spaces {
        map(ioas, 0x1000, 1).unwrap();
    }
    let allocated = context.pasid_alloc(30, 40).unwrap();
    let identity = part(&bench, &parent, 1, PartPasids::Identity);
    let translated = part(&bench, &parent, 2, PartPasids::Translated);
    let devices = [&identity, &translated, &whole].map(|endpoint| context.bind(endpoint).unwrap());
    // One number, three devices, three address spaces.
    for (device, ioas) in devices.iter().zip(&spaces) {
        device.attach(Some(allocated), ioas).unwrap();
    }
    assert!(matches!(devices[0].attach(pasid(5), &spaces[0]), Err(AttachError::PasidElsewhere(_))));
    assert_eq!(identity.virtual_pasids().unwrap().physical(Some(allocated)), Some(allocated));
    let physical = translated.virtual_pasids().unwrap().physical(Some(allocated)).unwrap();
    assert_ne!(physical, allocated);
    let (mut port, mut own) = (parent.port(), whole.port());
    write(&mut port, Some(allocated), 1).unwrap();
    write(&mut port, Some(physical), 2).unwrap();
    write(&mut own, Some(allocated), 3).unwrap();
    let found = [read(&mut port, Some(allocated)), read(&mut port, Some(physical)), read(&mut own, Some(allocated))];
    assert_eq!(found, [Ok(1), Ok(2), Ok(3)]);
    // A number that nobody allocated, which the second's owner chose.
    devices[1].attach(pasid(7), &spaces[1]).unwrap();
    let chosen = translated.virtual_pasids().unwrap().physical(pasid(7)).unwrap();
    // Freed, it ends wherever it was attached, whatever it is on the bus.
    context.pasid_free(allocated).unwrap();
    let found = [read(&mut port, Some(allocated)), read(&mut port, Some(physical)), read(&mut own, Some(allocated))];
    assert_eq!(found, [Err(FaultReason::Parked); 3]);
    assert_eq!(read(&mut port, Some(chosen)), Ok(2));
    assert!(context.pasid_alloc(allocated.get(), allocated.get()).is_err(), "they hold it");
    drop(devices);
    assert_eq!(bench.machine.pasids_in_use(), 0);
}

#[test]
fn a22_one_pasid_that_is_the_same_on_the_bus_is_of_one_part_at_a_time() {
    let bench = Bench::new();
    let parent = bench.endpoint(1, 1);
    let context = bench.machine.context();
    let spaces = [(); 2].map(|()| context.ioas_alloc().unwrap());
    for ioas in &spaces {
        map(ioas, 0x1000, 1).unwrap();
    }
    let allocated = context.pasid_alloc(30, 40).unwrap();
    let devices = [1, 2].map(|slot| context.bind(&part(&bench, &parent, slot, PartPasids::Identity)).unwrap());
    let attach = |n: usize| devices[n].attach(Some(allocated), &spaces[n]);
    attach(0).unwrap();
    let mut port = parent.port();
    write(&mut port, Some(allocated), 1).unwrap();
    assert!(matches!(attach(1), Err(AttachError::PasidElsewhere(_))), "it would be what the other's means");
    assert_eq!(devices[1].attached_to(Some(allocated)), None);
    devices[1].detach(Some(allocated)).unwrap();
    assert_eq!(read(&mut port, Some(allocated)), Ok(1));
    devices[0].detach(Some(allocated)).unwrap();
    attach(1).unwrap();
    assert_eq!(read(&mut port, Some(allocated)), Ok(0));
    context.pasid_free(allocated).unwrap();
    assert!(matches!(attach(1), Err(AttachError::PasidElsewhere(_))), "not revived");
    assert_eq!(read(&mut port, Some(allocated)), Err(FaultReason::Parked));
    drop(devices);
    assert_eq!(bench.machine.pasids_in_use(), 0);
}

#[test]
fn a22_parts_of_one_device_belong_to_different_contexts_and_meet_nowhere() {
    let bench = Bench::new();
    let parent = bench.endpoint(1, 1);
    let parts = [1, 2].map(|slot| part(&bench, &parent, slot, PartPasids::Translated));
    let whole = bench.machine.context().bind(&parent);
    assert!(matches!(whole, Err(BindError::AlreadyBound)), "not as a whole any more");
    let contexts = parts.each_ref().map(|_| bench.machine.context());
    let spaces = contexts.each_ref().map(|context| context.ioas_alloc().unwrap());
    for ioas in &spaces {
        map(ioas, 0x1000, 1).unwrap();
    }
    let bind = |n: usize| contexts[n].bind(&parts[n]).unwrap();
    let devices = [bind(0), bind(1)];
    let mut port = parent.port();
    let bus: Vec<Pasid> = (0..2)
        .map(|n| {
            devices[n].attach(None, &spaces[n]).unwrap();
            parts[n].virtual_pasids().unwrap().physical(None).unwrap()
        })
        .collect();
    assert_ne!(bus[0], bus[1]);
    assert_eq!(write(&mut port, None, 1), Err(FaultReason::NotAttached), "the parent itself reaches nothing");
    (0..2).for_each(|n| write(&mut port, Some(bus[n]), n as u8 + 1).unwrap());
    assert_eq!(bus.iter().map(|pasid| read(&mut port, Some(*pasid)).unwrap()).collect::<Vec<_>>(), [1, 2]);
    // One stops being bus master, and only it stops. A fault is told by the name that its owner knows.
    parts[0].set_bus_master(false).unwrap();
    bench.log.faults.lock().unwrap().clear();
    assert_eq!(write(&mut port, Some(bus[0]), 9), Err(FaultReason::NotBusMaster));
    assert_eq!(write(&mut port, Some(bus[1]), 9), Ok(()));
    let told = bench.log.faults.lock().unwrap()[0];
    assert_eq!((told.rid, told.pasid), (parts[0].rid(), None));
    parts[0].set_bus_master(true).unwrap();
    assert_eq!(write(&mut port, Some(bus[0]), 9), Ok(()));
    // What one takes away or closes is its own.
    spaces[0].unmap(range(0x1000, PAGE)).unwrap();
    contexts[0].close().unwrap();
    assert_eq!(write(&mut port, Some(bus[0]), 9), Err(FaultReason::Parked));
    assert_eq!(read(&mut port, Some(bus[1])), Ok(9));
    drop(devices);
    assert_eq!((bench.machine.resources(), bench.machine.pasids_in_use()), ((0, 0), 0));
}

#[test]
fn a26_a_control_queue_gets_a_small_buffer_in_a_pasid_of_its_own() {
    let bench = Bench::new();
    let (_, mut port, guest, device) = bench.one_device();
    let context = device.context();
    map(&guest, 0, 256).unwrap();
    device.attach(None, &guest).unwrap();
    // The mediating software's own queue, of one page, which the guest's address space has nothing of.
    let control = context.ioas_alloc().unwrap();
    map(&control, 0x1000, 1).unwrap();
    let pasid = context.pasid_alloc(1, 100).unwrap();
    device.attach(Some(pasid), &control).unwrap();
    write(&mut port, Some(pasid), 1).unwrap();
    write(&mut port, None, 2).unwrap();
    assert_eq!((read(&mut port, Some(pasid)), read(&mut port, None)), (Ok(1), Ok(2)));
    let beyond = BusAddress { pasid: Some(pasid), iova: Iova(0x2000) };
    assert_eq!(port.write(beyond, &[1]).unwrap_err().reason, FaultReason::NotMapped);
    guest.unmap(ioasid::IovaRange::ALL).unwrap();
    assert_eq!(read(&mut port, Some(pasid)), Ok(1), "whatever the guest does");
}

#[test]
fn a27_whatever_it_is_a_device_is_bound_attached_and_detached_alike() {
    let bench = Bench::new();
    // A PCI function, a platform device (no segment has it, no PASIDs, stalls), a CXL device that asks for
    // pages, and a part of a device.
    let platform = EndpointOptions::default().pasid_bits(0).dirty_tracking(false).recovery(Recovery::Stall);
    let cxl = EndpointOptions::default().recovery(Recovery::PageRequests);
    let add = |rid: &str, group, options| {
        bench.machine.add_endpoint_with(rid.parse().unwrap(), GroupId(group), options).unwrap()
    };
    let parent = bench.endpoint(3, 3);
    let part = part(&bench, &parent, 4, PartPasids::None);
    let kinds = [
        (bench.endpoint(1, 1), None),
        (add("ffff:00:00.0", 11, platform), None),
        (add("0002:00:00.0", 12, cxl), None),
        (part, Some(parent)),
    ];
    for (endpoint, requester) in kinds {
        endpoint.set_bus_master(true).unwrap();
        let context = bench.machine.context();
        let ioas = context.ioas_alloc().unwrap();
        map(&ioas, 0x1000, 1).unwrap();
        let device = context.bind(&endpoint).unwrap();
        let hwpt = device.attach(None, &ioas).unwrap();
        assert_eq!(device.attached_to(None), Some(hwpt));
        let on_bus = endpoint.virtual_pasids().map(|table| table.physical(None).unwrap());
        let mut port = requester.as_ref().unwrap_or(&endpoint).port();
        write(&mut port, on_bus, 6).unwrap();
        assert_eq!(read(&mut port, on_bus), Ok(6));
        device.detach(None).unwrap();
        assert_eq!(read(&mut port, on_bus), Err(FaultReason::NotAttached));
        assert_eq!(device.attached_to(None), None);
    }
}

#[test]
fn a22_a_parts_page_requests_carry_its_own_names_and_end_with_its_bus_mastering() {
    let bench = Bench::new();
    let options = EndpointOptions::default().recovery(Recovery::PageRequests);
    let parent = bench.machine.add_endpoint_with("0000:00:05.0".parse().unwrap(), GroupId(5), options).unwrap();
    parent.set_bus_master(true).unwrap();
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    let owned = part(&bench, &parent, 1, PartPasids::Translated);
    let device = context.bind(&owned).unwrap();
    let queue = context.fault_queue_alloc().unwrap();
    let options = HwptOptions::default().on_miss(OnMiss::Queue(queue.clone())).pasids(true);
    let hwpt = context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap();
    let answers = [None, pasid(9)].map(|own| {
        device.attach(own, &hwpt).unwrap();
        let on_bus = owned.virtual_pasids().unwrap().physical(own);
        let (told, answer) = mpsc::channel();
        let requests = vec![PageRequest { pasid: on_bus, iova: 0x1000, access: RequestedAccess::READ }];
        let tell = Box::new(move |response| told.send(response).unwrap());
        parent.request_pages(PageGroup { number: 3, requests, answer: tell });
        let taken = queue.take(1).unwrap().unwrap();
        assert_eq!((taken.device, taken.requests[0].pasid), (device.id().into(), own));
        answer
    });
    owned.set_bus_master(false).unwrap();
    assert_eq!(answers.map(|answer| answer.try_recv()), [Ok(PageResponse::Invalid); 2]);
}

#[test]
fn a18_software_copies_by_a_part_and_its_pasids() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let device = context.bind(&part(&bench, &bench.endpoint(1, 1), 1, PartPasids::Translated)).unwrap();
    for (own, value) in [(None, 1), (pasid(9), 2)] {
        let ioas = context.ioas_alloc().unwrap();
        map(&ioas, 0x1000, 1).unwrap();
        device.attach(own, &ioas).unwrap();
        context.copy_to(Reach::of_device(device.endpoint(), own), Iova(0x1000), &[value]).unwrap();
    }
    for (own, value) in [(None, 1), (pasid(9), 2)] {
        let mut data = [0];
        context.copy_from(Reach::of_device(device.endpoint(), own), Iova(0x1000), &mut data).unwrap();
        assert_eq!(data, [value]);
    }
    let other = context.copy_from(Reach::of_device(device.endpoint(), pasid(8)), Iova(0x1000), &mut [0]);
    assert!(matches!(other, Err(CopyError::NotAttached(_))));
}
