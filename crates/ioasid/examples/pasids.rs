//! PASIDs: one device reaches several address spaces, and what is taken away from it is parked until it lets go.

use std::error::Error;
use std::sync::Arc;

use ioasid::memory::Segment;
use ioasid::{Access, BusAddress, DmaPort, FaultReason, GroupId, Iova, Machine, Pasid, Placement, Silent};

const PAGE: u64 = 4096;

fn write(port: &mut DmaPort, pasid: Option<Pasid>, value: u8) -> Result<(), FaultReason> {
    port.write(BusAddress { pasid, iova: Iova(0x1000) }, &[value]).map_err(|error| error.reason)
}

fn read(port: &mut DmaPort, pasid: Option<Pasid>) -> Result<u8, FaultReason> {
    let mut value = [0];
    port.read(BusAddress { pasid, iova: Iova(0x1000) }, &mut value).map_err(|error| error.reason)?;
    Ok(value[0])
}

fn main() -> Result<(), Box<dyn Error>> {
    let machine = Machine::new(Arc::new(Silent));
    let endpoint = machine.add_endpoint("0000:00:01.0".parse()?, GroupId(0))?;
    endpoint.set_bus_master(true)?;
    let context = machine.context();
    let device = context.bind(&endpoint)?;
    let mut port = endpoint.port();

    // Three address spaces with memory of their own at the same IOVA: one for transactions without a PASID, two for
    // PASIDs.
    let pasids = [None, Some(context.pasid_alloc(1, 100)?), Some(context.pasid_alloc(1, 100)?)];
    for pasid in pasids {
        let ioas = context.ioas_alloc().ok_or("no ids")?;
        ioas.map(Placement::Fixed(Iova(0x1000)), PAGE, Access::all(), || Ok(vec![Segment::memfd(PAGE)?.0]))?;
        device.attach(pasid, &ioas)?;
    }
    for (pasid, value) in pasids.into_iter().zip(1..) {
        write(&mut port, pasid, value).map_err(|reason| reason.to_string())?;
    }
    assert_eq!(pasids.map(|pasid| read(&mut port, pasid)), [Ok(1), Ok(2), Ok(3)]);

    // Freed while the device is attached with it: DMA stops at once, and the number waits for the device.
    let [_, Some(first), Some(second)] = pasids else { return Err("two PASIDs".into()) };
    context.pasid_free(first)?;
    assert_eq!(write(&mut port, Some(first), 9), Err(FaultReason::Parked));
    assert_eq!(endpoint.parked_faults(), 1);
    assert!(context.pasid_alloc(first.get(), first.get()).is_err(), "parked, and given to no context");
    device.detach(Some(first))?;
    assert_eq!(context.pasid_alloc(first.get(), first.get()), Ok(first));

    // A page table is parked in the same way, under the devices that are attached to it.
    let table = device.attached_to(Some(second)).ok_or("attached")?;
    assert!(context.destroy(table).is_err(), "a device is attached to it");
    context.park(table)?;
    assert_eq!(read(&mut port, Some(second)), Err(FaultReason::Parked));
    assert_eq!(read(&mut port, None), Ok(1), "the others go on");
    println!("PASIDs {first} and {second} of one device had address spaces of their own, until they were parked");
    Ok(())
}
