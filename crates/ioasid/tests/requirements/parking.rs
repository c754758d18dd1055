//! A19: destroying while somebody may still use it.

use ioasid::{
    AttachError, BusAddress, DestroyError, DmaPort, FaultReason, GuestFormat, GuestTable, HwptOptions, Iova, Pasid,
    PasidError,
};

use crate::common::{Bench, map, parent};

fn write(port: &mut DmaPort, pasid: Option<Pasid>) -> Result<(), FaultReason> {
    port.write(BusAddress { pasid, iova: Iova(0x1000) }, &[1]).map_err(|error| error.reason)
}

#[test]
fn a19_a_page_table_that_is_destroyed_stops_dma_and_its_id_waits_for_the_last_holder() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    let context = device.context();
    let second = context.bind(&bench.endpoint(2, 2)).unwrap();
    map(&ioas, 0x1000, 1).unwrap();
    let make = || {
        let options = HwptOptions::default().pasids(true);
        context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap()
    };
    let table = make();
    let hwpt = u32::from(table.id());
    device.attach(None, &table).unwrap();
    device.attach(Pasid::new(2), &table).unwrap();
    second.attach(None, &table).unwrap();
    assert_eq!(write(&mut port, None), Ok(()));
    assert_eq!(context.destroy(hwpt), Err(DestroyError::Busy(hwpt)), "as on Linux");
    context.park(hwpt).unwrap();
    assert_eq!([None, Pasid::new(2)].map(|pasid| write(&mut port, pasid)), [Err(FaultReason::Parked); 2]);
    // The id means nothing, and is nobody else's.
    assert!(matches!(device.attach(None, &table), Err(AttachError::Missing(_))));
    drop(table);
    assert_eq!(bench.machine.resources(), (0, 0), "what it was is gone");
    // Nobody is blamed, and it is counted.
    assert!(bench.log.faults.lock().unwrap().is_empty());
    assert_eq!(endpoint.parked_faults(), 2);
    assert!(!context.has(hwpt));
    assert_eq!(context.destroy(hwpt), Err(DestroyError::Missing(hwpt)));
    let make = || u32::from(make().id());
    assert_ne!(make(), hwpt);
    // In any order of letting go: replaced, detached, closed.
    device.attach(None, &ioas).unwrap();
    assert_eq!(write(&mut port, None), Ok(()));
    device.detach(Pasid::new(2)).unwrap();
    assert_ne!(make(), hwpt);
    drop(second);
    assert!([make(), make()].contains(&hwpt), "used again");
}

#[test]
fn a19_a_pasid_that_is_freed_stops_dma_and_is_parked_until_the_last_holder_has_let_go() {
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    let context = device.context();
    map(&ioas, 0x1000, 1).unwrap();
    let pasid = context.pasid_alloc(1, 1).unwrap();
    // It belongs to the context that allocated it.
    let other = bench.machine.context();
    let stranger = other.bind(&bench.endpoint(2, 2)).unwrap();
    let strange = other.ioas_alloc().unwrap();
    let refused = stranger.attach(Some(pasid), &strange);
    assert!(matches!(refused, Err(AttachError::PasidElsewhere(_))));
    assert_eq!(other.pasid_free(pasid), Err(PasidError::NotAllocated(pasid)));
    assert_eq!(other.hold_pasid(pasid).err(), Some(PasidError::NotAllocated(pasid)));

    device.attach(Some(pasid), &ioas).unwrap();
    let driver = context.hold_pasid(pasid).unwrap();
    assert_eq!(write(&mut port, Some(pasid)), Ok(()));
    context.pasid_free(pasid).unwrap();
    assert_eq!(write(&mut port, Some(pasid)), Err(FaultReason::Parked));
    assert!(driver.is_parked() && bench.log.faults.lock().unwrap().is_empty());
    for context in [context, &other] {
        assert_eq!(context.pasid_alloc(1, 1), Err(PasidError::Full(1, 1)));
    }
    assert_eq!(context.pasid_free(pasid), Err(PasidError::NotAllocated(pasid)), "once");
    let refused = device.attach(Some(pasid), &ioas);
    assert!(matches!(refused, Err(AttachError::PasidElsewhere(_))), "not revived");
    device.detach(Some(pasid)).unwrap();
    assert_eq!(other.pasid_alloc(1, 1), Err(PasidError::Full(1, 1)), "the driver has it still");
    drop(driver);
    assert_eq!(other.pasid_alloc(1, 1), Ok(pasid));
    assert_eq!(bench.machine.resources(), (0, 0));
    // With the context, what nobody else holds is free.
    drop((stranger, strange, other));
    assert_eq!(bench.machine.pasids_in_use(), 0);
}

#[test]
fn a19_an_automatic_page_table_that_nobody_uses_goes_and_its_id_waits_for_attachments_that_are_parked() {
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    let context = device.context();
    map(&ioas, 0x1000, 1).unwrap();
    let pasid = context.pasid_alloc(1, 1).unwrap();
    let table = device.attach(Some(pasid), &ioas).unwrap();
    assert_eq!(device.attach(None, &ioas).unwrap(), table, "the same for both");
    context.pasid_free(pasid).unwrap();
    assert_eq!(write(&mut port, None), Ok(()));
    // The last that uses it.
    device.detach(None).unwrap();
    assert!(!context.has(table.0.get()));
    assert_eq!(bench.machine.resources(), (0, 0));
    let next = context.fault_queue_alloc().unwrap();
    assert_ne!(next.id(), table, "the PASID's attachment has it still");
    device.detach(Some(pasid)).unwrap();
    assert_eq!(context.fault_queue_alloc().unwrap().id(), table);
    assert_eq!(context.pasid_alloc(1, 1), Ok(pasid));
}

#[test]
fn a19_a_context_that_is_closed_ends_what_its_devices_reach_in_any_order() {
    for device_first in [true, false] {
        let bench = Bench::new();
        let (endpoint, mut port, ioas, device) = bench.one_device();
        let context = device.context().clone();
        map(&ioas, 0x1000, 1).unwrap();
        let pasid = context.pasid_alloc(1, 9).unwrap();
        let parent = context.hwpt_alloc(device.endpoint(), &ioas, parent()).unwrap();
        let table = GuestTable { format: GuestFormat::X86_64, root: 0x1000 };
        let nested = context.hwpt_alloc_nested(&parent, table).unwrap();
        assert_eq!(context.park(parent.id()), Err(DestroyError::Busy(parent.id().0.get())), "one is nested on it");
        device.attach(None, &ioas).unwrap();
        device.attach(Some(pasid), &parent).unwrap();
        device.attach(Pasid::new(77), &nested).unwrap();
        assert_eq!((write(&mut port, None), write(&mut port, Some(pasid))), (Ok(()), Ok(())));
        drop((parent, nested));
        if device_first {
            drop(device);
            context.close().unwrap();
        } else {
            context.close().unwrap();
            let all = [None, Some(pasid), Pasid::new(77)].map(|pasid| write(&mut port, pasid));
            assert_eq!(all, [Err(FaultReason::Parked); 3]);
            assert!(matches!(device.attach(None, &ioas), Err(AttachError::Closed)));
            assert_eq!(context.pasid_alloc(1, 9), Err(PasidError::Full(1, 9)));
            assert_eq!(bench.machine.pasids_in_use(), 2, "the device holds them");
            drop(device);
        }
        drop((context, ioas));
        assert_eq!((bench.machine.resources(), bench.machine.pasids_in_use()), ((0, 0), 0));
        assert!(write(&mut port, None).is_err());
        // Its group is free for the next.
        assert!(bench.machine.context().bind(&endpoint).is_ok());
    }
}

#[test]
fn a19_an_automatic_table_goes_with_the_last_who_uses_it_and_its_id_with_the_last_who_is_parked() {
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    let context = device.context();
    map(&ioas, 0x1000, 1).unwrap();
    let freed = context.pasid_alloc(1, 9).unwrap();
    let hwpt = device.attach(Some(freed), &ioas).unwrap();
    assert_eq!(device.attach(None, &ioas).unwrap(), hwpt);
    context.pasid_free(freed).unwrap();
    assert_eq!((write(&mut port, Some(freed)), write(&mut port, None)), (Err(FaultReason::Parked), Ok(())));
    device.detach(None).unwrap();
    assert_eq!(bench.machine.resources(), (0, 0), "nobody uses it");
    assert!(!context.has(hwpt.0.get()));
    assert_ne!(device.attach(None, &ioas).unwrap(), hwpt, "the id is held");
    device.detach(Some(freed)).unwrap();
    device.detach(None).unwrap();
    assert_eq!(device.attach(None, &ioas).unwrap(), hwpt);
}
