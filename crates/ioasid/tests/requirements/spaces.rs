//! A1 to A12: contexts, address spaces, and who may use them.

use ioasid::memory::Segment;
use ioasid::{
    Access, AttachError, BindError, DestroyError, FaultReason, GuestFormat, GuestTable, HwptError, HwptOptions, Iova,
    MapError, Pasid, Placement, UnmapError,
};

use crate::common::{Bench, PAGE, map, parent, range};

fn pasid(number: u32) -> Option<Pasid> {
    Pasid::new(number)
}

#[test]
fn a01_who_holds_the_context_controls_what_is_in_it_and_nothing_else_does() {
    let bench = Bench::new();
    let (one, other) = (bench.machine.context(), bench.machine.context());
    let ioas = [one.ioas_alloc().unwrap(), one.ioas_alloc().unwrap()];
    let id = ioas[1].id().0.get();
    // The number means nothing elsewhere, not even to a device that is there.
    let device = other.bind(&bench.endpoint(1, 1)).unwrap();
    assert!(matches!(device.attach(None, &ioas[1]), Err(AttachError::Missing(_))));
    assert_eq!(other.destroy(id), Err(DestroyError::Missing(id)));
    assert!(other.ioas(id).is_none() && !other.has(id));
    // A number that is taken there stands for something else.
    assert_eq!(device.id(), ioas[0].id());
    assert!(other.ioas(device.id()).is_none() && one.ioas(device.id()).is_some());
    assert!(one.destroy(id).is_ok());
}

#[test]
fn a02_many_address_spaces_share_one_space_of_numbers_and_are_counted() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let spaces: Vec<_> = (0..100).map(|_| context.ioas_alloc().unwrap()).collect();
    let device = context.bind(&bench.endpoint(1, 1)).unwrap();
    let hwpt = device.attach(None, &spaces[3]).unwrap();
    let mut numbers: Vec<u32> = spaces.iter().map(|ioas| ioas.id().0.get()).collect();
    numbers.extend([device.id().0.get(), hwpt.0.get()]);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 102, "no two objects have one number");
    // What is referred to stays; what is not goes.
    for (n, ioas) in spaces.iter().enumerate() {
        let id = ioas.id().0.get();
        assert_eq!(context.destroy(id), if n == 3 { Err(DestroyError::Busy(id)) } else { Ok(()) });
    }
    device.detach(None).unwrap();
    context.destroy(spaces[3].id().0.get()).unwrap();
}

#[test]
fn a03_open_allocate_map_open_a_device_authorise() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    map(&ioas, 0x1000, 1).unwrap();
    let endpoint = bench.endpoint(1, 1);
    let mut port = endpoint.port();
    let refused = |port: &mut ioasid::DmaPort| port.write(Iova(0x1000), &[1]).map_err(|error| error.reason);
    assert_eq!(refused(&mut port), Err(FaultReason::NotAttached), "a device that nobody opened");
    let device = context.bind(&endpoint).unwrap();
    assert_eq!(refused(&mut port), Err(FaultReason::NotAttached), "opened, and not authorised");
    device.attach(None, &ioas).unwrap();
    assert_eq!(refused(&mut port), Ok(()));
}

#[test]
fn a04_a_consumer_resolves_context_and_number_and_takes_a_reference() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let (ioas, queue) = (context.ioas_alloc().unwrap(), context.fault_queue_alloc().unwrap());
    let device = context.bind(&bench.endpoint(1, 1)).unwrap();
    // The right kind, and there.
    assert!([0, 999, queue.id().into(), device.id().into()].into_iter().all(|id| context.target(id).is_none()));
    device.attach(None, context.target(ioas.id().into()).unwrap()).unwrap();
    assert_eq!(context.destroy(ioas.id()), Err(DestroyError::Busy(ioas.id().0.get())));
    // What is right for another machine's context is not right here.
    let elsewhere = Bench::new();
    assert!(matches!(elsewhere.machine.context().bind(&bench.endpoint(2, 2)), Err(BindError::OtherMachine)));
}

#[test]
fn a05_authorising_and_mapping_are_separate_and_withdrawing_undoes_both_of_authorising() {
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    let context = device.context().clone();
    let id = ioas.id().0.get();
    // Authorised before anything is mapped, and mapped without the device's knowledge.
    let hwpt = device.attach(None, &ioas).unwrap();
    map(&ioas, 0x1000, 1).unwrap();
    port.write(Iova(0x1000), &[1]).unwrap();
    assert_eq!(context.destroy(id), Err(DestroyError::Busy(id)), "authorising took a reference");
    device.detach(None).unwrap();
    assert_eq!(
        port.write(Iova(0x1000), &[1]).unwrap_err().reason,
        FaultReason::NotAttached,
        "the IOMMU was programmed"
    );
    assert!(!context.has(hwpt.0.get()));
    assert_eq!(ioas.size(), (1, PAGE), "what is mapped stays");
    context.destroy(id).unwrap();
}

#[test]
fn a06_authorising_works_while_dma_runs_and_a_pasid_that_was_not_authorised_reaches_nothing() {
    let bench = Bench::new();
    let (endpoint, _, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 1).unwrap();
    device.attach(None, &ioas).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (told, began) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let mut port = endpoint.port();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                port.write(Iova(0x1000), &[1; 64]).unwrap();
                let _ = told.send(());
            }
        });
        began.recv().unwrap();
        let mut port = endpoint.port();
        for number in 1..200 {
            let at = ioasid::BusAddress { pasid: pasid(number), iova: Iova(0x1000) };
            assert_eq!(port.write(at, &[2]).unwrap_err().reason, FaultReason::NotAttached);
            device.attach(pasid(number), &ioas).unwrap();
            port.write(at, &[2]).unwrap();
            device.detach(pasid(number)).unwrap();
            assert_eq!(port.write(at, &[2]).unwrap_err().reason, FaultReason::NotAttached);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        running.join().unwrap();
    });
}

#[test]
fn a07_what_is_shared_comes_from_a_context_and_from_nothing_hidden() {
    let bench = Bench::new();
    let memory = || Ok(vec![Segment::memfd(PAGE).unwrap().0]);
    // Two contexts on one machine, even of one process, with the same addresses and the same devices' numbers.
    let make = |slot| {
        let context = bench.machine.context();
        let ioas = context.ioas_alloc().unwrap();
        ioas.map(Placement::Fixed(Iova(0x1000)), PAGE, Access::all(), memory).unwrap();
        let endpoint = bench.endpoint(slot, slot.into());
        let device = context.bind(&endpoint).unwrap();
        device.attach(None, &ioas).unwrap();
        (context, ioas, device, endpoint.port())
    };
    let (mut one, mut other) = (make(1), make(2));
    one.3.write(Iova(0x1000), &[7]).unwrap();
    let mut found = [0];
    other.3.read(Iova(0x1000), &mut found).unwrap();
    assert_eq!(found, [0]);
    one.1.unmap(range(0x1000, PAGE)).unwrap();
    other.3.read(Iova(0x1000), &mut found).unwrap();
    // A copy crosses contexts only in the hands of who has both address spaces.
    assert!(one.0.ioas(999u32).is_none());
    one.1.copy(Some(Iova(0x1000)), &other.1, Iova(0x1000), PAGE, Access::READ).unwrap();
    assert_eq!(one.3.write(Iova(0x1000), &[1]).unwrap_err().reason, FaultReason::NotPermitted);
}

#[test]
fn a08_one_owner_maps_for_every_consumer() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    let endpoints = [1, 2, 3].map(|slot| bench.endpoint(slot, slot.into()));
    let mut ports = endpoints.each_ref().map(|endpoint| endpoint.port());
    let devices = endpoints.each_ref().map(|endpoint| context.bind(endpoint).unwrap());
    let tables: Vec<_> = devices.iter().map(|device| device.attach(None, &ioas).unwrap()).collect();
    assert!(tables.iter().all(|table| *table == tables[0]), "one table for all");
    map(&ioas, 0x1000, 1).unwrap();
    ports[0].write(Iova(0x1000), &[5]).unwrap();
    for port in &mut ports {
        let mut found = [0];
        port.read(Iova(0x1000), &mut found).unwrap();
        assert_eq!(found, [5]);
    }
    ioas.unmap(range(0x1000, PAGE)).unwrap();
    assert!(ports.iter_mut().all(|port| port.read(Iova(0x1000), &mut [0]).is_err()));
}

#[test]
fn a09_an_address_space_becomes_routing_only_when_it_is_attached_by_rid_and_by_pasid_alike() {
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    map(&ioas, 0x1000, 1).unwrap();
    assert_eq!(bench.machine.resources(), (0, 0), "before, it is a list: no page table, no memory held");
    for key in [None, pasid(0), pasid(1), pasid((1 << 20) - 1)] {
        let at = ioasid::BusAddress { pasid: key, iova: Iova(0x1000) };
        assert_eq!(port.write(at, &[1]).unwrap_err().reason, FaultReason::NotAttached);
        let hwpt = device.attach(key, &ioas).unwrap();
        assert_eq!(device.attached_to(key), Some(hwpt));
        port.write(at, &[1]).unwrap();
        ioas.unmap(range(0x1000, PAGE)).unwrap();
        assert_eq!(port.write(at, &[1]).unwrap_err().reason, FaultReason::NotMapped);
        map(&ioas, 0x1000, 1).unwrap();
        device.detach(key).unwrap();
        assert_eq!(port.write(at, &[1]).unwrap_err().reason, FaultReason::NotAttached);
        assert_eq!(bench.machine.resources(), (0, 0));
    }
}

#[test]
fn a10_each_level_of_nesting_is_an_object_that_names_its_parent() {
    let bench = Bench::new();
    let (_, _, ioas, device) = bench.one_device();
    let context = device.context();
    let parent = context.hwpt_alloc(device.endpoint(), &ioas, parent()).unwrap();
    let table = GuestTable { format: GuestFormat::X86_64, root: 0x1000 };
    let nested = context.hwpt_alloc_nested(&parent, table).unwrap();
    assert!(std::sync::Arc::ptr_eq(nested.parent(), &parent) && std::sync::Arc::ptr_eq(parent.ioas(), &ioas));
    assert!(context.nest_parent(nested.id().into()).is_none(), "no format here has a third level");
    let plain = context.hwpt_alloc(device.endpoint(), &ioas, HwptOptions::default()).unwrap();
    assert!(matches!(context.hwpt_alloc_nested(&plain, table), Err(HwptError::NotAParent(_))));
    let busy = |id: u32| context.destroy(id) == Err(DestroyError::Busy(id));
    assert!(busy(parent.id().0.get()) && busy(ioas.id().0.get()));
    for id in [nested.id(), parent.id(), plain.id(), ioas.id()] {
        context.destroy(id.0.get()).unwrap();
    }
}

#[test]
fn a11_authorising_checks_what_the_hardware_demands() {
    let bench = Bench::new();
    // A group is claimed by one context, and has one address space for each PASID.
    let (one, other) = (bench.endpoint(1, 7), bench.endpoint(2, 7));
    let context = bench.machine.context();
    let (first, second) = (context.bind(&one).unwrap(), context.bind(&other).unwrap());
    assert!(matches!(bench.machine.context().bind(&bench.endpoint(3, 7)), Err(BindError::GroupBusy)));
    let spaces = [context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap()];
    first.attach(None, &spaces[0]).unwrap();
    assert!(matches!(second.attach(None, &spaces[1]), Err(AttachError::GroupElsewhere(_))));
    second.attach(None, &spaces[0]).unwrap();
    // Interrupts go where nothing can be mapped.
    assert!(matches!(map(&spaces[0], 0xfee0_0000, 1), Err(MapError::Reserved(_))));
    map(&spaces[1], 0xfee0_0000, 1).unwrap();
    let third = context.bind(&bench.endpoint(4, 4)).unwrap();
    assert!(matches!(third.attach(None, &spaces[1]), Err(AttachError::Conflict(_))));
    // A PASID is as wide as the device has them.
    let narrow = ioasid::EndpointOptions::default().pasid_bits(4);
    let rid = "0000:00:05.0".parse().unwrap();
    let narrow = context.bind(&bench.machine.add_endpoint_with(rid, ioasid::GroupId(5), narrow).unwrap()).unwrap();
    assert!(matches!(narrow.attach(pasid(16), &spaces[0]), Err(AttachError::PasidTooWide(..))));
    narrow.attach(pasid(15), &spaces[0]).unwrap();
}

#[test]
fn a12_one_table_serves_devices_with_and_without_pasids_and_turning_them_on_changes_nothing() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    let plain = ioasid::EndpointOptions::default().pasid_bits(0);
    let other = bench.machine.add_endpoint_with("0000:00:02.0".parse().unwrap(), ioasid::GroupId(2), plain).unwrap();
    other.set_bus_master(true).unwrap();
    let context = device.context();
    let without = context.bind(&other).unwrap();
    map(&ioas, 0x1000, 1).unwrap();
    let hwpt = device.attach(None, &ioas).unwrap();
    assert_eq!(without.attach(None, &ioas).unwrap(), hwpt);
    port.write(Iova(0x1000), &[9]).unwrap();
    // Later the guest turns PASIDs on: the same table, beside what there was.
    assert_eq!(device.attach(pasid(3), &ioas).unwrap(), hwpt);
    let resources = bench.machine.resources();
    let mut found = [0; 3];
    port.read(Iova(0x1000), &mut found[..1]).unwrap();
    port.read(ioasid::BusAddress { pasid: pasid(3), iova: Iova(0x1000) }, &mut found[1..2]).unwrap();
    other.port().read(Iova(0x1000), &mut found[2..]).unwrap();
    assert_eq!((found, bench.machine.resources()), ([9; 3], resources));
    // And off again.
    device.detach(pasid(3)).unwrap();
    port.read(Iova(0x1000), &mut found[..1]).unwrap();
    assert!(matches!(ioas.unmap(range(0x1800, 16)), Err(UnmapError::NotWhole(_))));
    assert_eq!(endpoint.parked_faults(), 0);
}
