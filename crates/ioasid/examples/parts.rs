//! Parts of a device: two owners share one device, which tells their work apart by PASIDs that neither of them chooses.
//!
//! ```text
//!   part 1, no PASID ──► parent, PASID 1 ──► what the first owner maps
//!   part 2, PASID 5  ──► parent, PASID 2 ──► what the second owner maps
//! ```

use std::error::Error;
use std::sync::Arc;

use ioasid::memory::Segment;
use ioasid::{
    Access, BusAddress, Device, DmaPort, Endpoint, FaultReason, GroupId, Ioas, Iova, IovaRange, Machine, PartPasids,
    Pasid, Placement, Silent,
};

const PAGE: u64 = 4096;

/// An owner of a part, in a context of its own, with a page at 0x1000.
struct Owner {
    part: Arc<Endpoint>,
    ioas: Arc<Ioas>,
    device: Device,
}

impl Owner {
    fn new(machine: &Arc<Machine>, parent: &Arc<Endpoint>, number: u8) -> Result<Self, Box<dyn Error>> {
        let rid = format!("0001:00:{number:02x}.0").parse()?;
        let part = machine.add_part(parent, rid, GroupId(100 + u32::from(number)), PartPasids::Translated)?;
        part.set_bus_master(true)?;
        let context = machine.context();
        let (ioas, device) = (context.ioas_alloc().ok_or("no ids")?, context.bind(&part)?);
        ioas.map(Placement::Fixed(Iova(0x1000)), PAGE, Access::all(), || Ok(vec![Segment::memfd(PAGE)?.0]))?;
        Ok(Self { part, ioas, device })
    }
}

/// The parent does work for an owner: what that calls its PASID is translated by the part's table, or refused.
fn work(port: &mut DmaPort, owner: &Owner, pasid: Option<Pasid>, value: u8) -> Result<(), String> {
    let table = owner.part.virtual_pasids().ok_or("a part has a table")?;
    let on_bus = table.physical(pasid).ok_or("the owner has no such PASID")?;
    let at = BusAddress { pasid: Some(on_bus), iova: Iova(0x1000) };
    port.write(at, &[value]).map_err(|error| error.reason.to_string())
}

fn main() -> Result<(), Box<dyn Error>> {
    let machine = Machine::new(Arc::new(Silent));
    let parent = machine.add_endpoint("0000:00:01.0".parse()?, GroupId(0))?;
    parent.set_bus_master(true)?;
    let (one, two) = (Owner::new(&machine, &parent, 1)?, Owner::new(&machine, &parent, 2)?);
    assert!(machine.context().bind(&parent).is_err(), "it has parts, and is bound as a whole no more");

    // Each owner attaches its part as any device.
    let five = Pasid::new(5);
    one.device.attach(None, &one.ioas)?;
    two.device.attach(five, &two.ioas)?;
    let mut port = parent.port();
    work(&mut port, &one, None, 1)?;
    work(&mut port, &two, five, 2)?;
    assert!(work(&mut port, &one, five, 9).is_err(), "the number means something to the second owner only");

    // What one owner takes away is its own.
    one.ioas.unmap(IovaRange::ALL)?;
    assert_eq!(work(&mut port, &one, None, 3), Err(FaultReason::NotMapped.to_string()));
    work(&mut port, &two, five, 4)?;
    two.part.set_bus_master(false)?;
    assert_eq!(work(&mut port, &two, five, 5), Err(FaultReason::NotBusMaster.to_string()));
    println!("two owners had a part of {} each, and neither reached what the other maps", parent.rid());
    Ok(())
}
