//! Parts of devices: what is handed out cannot undo what a detach relies on.

use std::sync::Arc;

use ioasid::{BusAddress, Context, Device, Endpoint, GroupId, HwptOptions, Ioas, Iova, Machine, PartPasids, Pasid};

use crate::*;

struct Attached {
    _machine: Arc<Machine>,
    parent: Arc<Endpoint>,
    part: Arc<Endpoint>,
    context: Arc<Context>,
    ioas: Arc<Ioas>,
    device: Device,
    pasid: Pasid,
}

/// A part that is attached, and its PASID on the bus.
fn attached() -> Attached {
    let machine = machine();
    let parent = endpoint(&machine, 1);
    let part = machine.add_part(&parent, rid(2), GroupId(2), PartPasids::None).unwrap();
    let context = machine.context();
    let ioas = context.ioas_alloc().unwrap();
    map(&ioas, 0x1000, PAGE);
    let device = context.bind(&part).unwrap();
    let options = HwptOptions::default().pasids(true);
    let hwpt = context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap();
    device.attach(None, &hwpt).unwrap();
    parent.set_bus_master(true).unwrap();
    part.set_bus_master(true).unwrap();
    let pasid = part.virtual_pasids().unwrap().physical(None).unwrap();
    Attached { _machine: machine, parent, part, context, ioas, device, pasid }
}

#[test]
fn detach_ends_dma_whatever_was_done_to_the_public_table() {
    let Attached { parent, part, device, pasid, .. } = attached();
    let mut port = parent.port();
    let at = BusAddress { pasid: Some(pasid), iova: Iova(0x1000) };
    port.write(at, &[1, 2, 3, 4]).unwrap();
    // All that it lets others do: look, and hold.
    let table = part.virtual_pasids().unwrap();
    let held = table.hold(None).unwrap();
    assert_eq!((table.numbers(), held.pasid()), (vec![None], pasid));
    device.detach(None).unwrap();
    assert!(port.write(at, &[1, 2, 3, 4]).is_err(), "DMA goes on after detach returned Ok");
    assert_eq!(table.physical(None), None);
}

#[test]
fn use_after_free_from_safe_code() {
    let Attached { _machine, parent, part, context, ioas, device, pasid } = attached();
    let mut port = parent.port();
    let at = BusAddress { pasid: Some(pasid), iova: Iova(0x1000) };
    port.write(at, &[1, 2, 3, 4]).unwrap();
    drop(part.virtual_pasids());
    drop((ioas, device, context));
    assert!(port.read(at, &mut [0; 4]).is_err(), "memory that was unmapped");
    assert_eq!(_machine.resources(), (0, 0));
}

#[test]
fn a_part_that_was_not_made_leaves_the_parent_alone() {
    let machine = machine();
    let (parent, _other) = (endpoint(&machine, 1), endpoint(&machine, 2));
    assert!(machine.add_part(&parent, rid(2), GroupId(9), PartPasids::None).is_err());
    assert!(machine.context().bind(&parent).is_ok(), "nobody can ever have it");
}

#[test]
fn a_parent_without_parts_can_be_unplugged() {
    let machine = machine();
    let parent = endpoint(&machine, 1);
    let part = machine.add_part(&parent, rid(2), GroupId(9), PartPasids::None).unwrap();
    assert!(!machine.remove_endpoint(&parent), "it has a part");
    assert!(machine.remove_endpoint(&part));
    drop(part);
    assert!(machine.remove_endpoint(&parent));
}
