//! Machines beside each other, and devices that are bound, refused and dropped.

use ioasid::{Access, EndpointError, EndpointOptions, FaultQueueOptions, GroupId, Iova, PageResponse, PartPasids};

use crate::*;

#[test]
fn pages_mapped_in_two_iommus() {
    let (one, other) = (machine(), machine());
    let (shared, secret) = (pages(PAGE), pages(PAGE));
    let elsewhere = Tenant::of(&other, 1);
    elsewhere.ioas.map_pages(Some(Iova(0x1000)), &shared, 0, PAGE, Access::all()).unwrap();
    elsewhere.endpoint.port().write(Iova(0x1000), b"shared").unwrap();
    let (victim, attacker) = (Tenant::of(&one, 1), Tenant::of(&one, 2));
    victim.ioas.map_pages(Some(Iova(0x1000)), &secret, 0, PAGE, Access::all()).unwrap();
    victim.endpoint.port().write(Iova(0x1000), b"secret").unwrap();
    attacker.ioas.map_pages(Some(Iova(0x1000)), &shared, 0, PAGE, Access::all()).unwrap();
    let mut got = [0; 6];
    attacker.endpoint.port().read(Iova(0x1000), &mut got).unwrap();
    assert_ne!(&got, b"secret", "it reads another tenant's memory");
    // These pages are new memory in each machine that brings them in.
    assert_eq!(got, [0; 6]);
}

#[test]
fn pages_mapped_in_two_iommus_use_after_free() {
    let (one, other) = (machine(), machine());
    let shared = pages(PAGE);
    let elsewhere = Tenant::of(&other, 1);
    elsewhere.ioas.map_pages(Some(Iova(0x1000)), &shared, 0, PAGE, Access::all()).unwrap();
    let (victim, attacker) = (Tenant::of(&one, 1), Tenant::of(&one, 2));
    map(&victim.ioas, 0x1000, PAGE);
    attacker.ioas.map_pages(Some(Iova(0x1000)), &shared, 0, PAGE, Access::all()).unwrap();
    let mut port = attacker.endpoint.port();
    port.write(Iova(0x1000), b"mine").unwrap();
    victim.ioas.unmap(range(0x1000, PAGE)).unwrap();
    let mut got = [0; 4];
    port.read(Iova(0x1000), &mut got).unwrap();
    assert_eq!(&got, b"mine");
    drop(elsewhere);
    port.read(Iova(0x1000), &mut got).unwrap();
    assert_eq!((&got, one.resources().0), (b"mine", 1));
}

#[test]
fn a_copy_between_machines_leads_to_the_same_memory_in_each() {
    let (one, other) = (Tenant::of(&machine(), 1), Tenant::of(&machine(), 1));
    let file = Segment::memfd(PAGE).unwrap().1;
    let pages = Pages::of_file(file, 0, PAGE, true);
    one.ioas.map_pages(Some(Iova(0x1000)), &pages, 0, PAGE, Access::all()).unwrap();
    other.ioas.copy(Some(Iova(0x8000)), &one.ioas, Iova(0x1000), PAGE, Access::READ).unwrap();
    one.endpoint.port().write(Iova(0x1000), b"both").unwrap();
    one.ioas.unmap(range(0x1000, PAGE)).unwrap();
    let mut got = [0; 4];
    other.endpoint.port().read(Iova(0x8000), &mut got).unwrap();
    assert_eq!(&got, b"both");
}

#[test]
fn a_part_of_another_machines_device() {
    let (one, other) = (machine(), machine());
    let parent = endpoint(&other, 2);
    assert!(one.add_part(&parent, rid(3), GroupId(3), PartPasids::None).is_err());
    assert!(other.context().bind(&parent).is_ok());
}

#[test]
fn failed_bind_keeps_the_owners_id() {
    let machine = machine();
    let tenant = Tenant::detached(&machine, 1);
    let queue = tenant.with_queue(FaultQueueOptions::default());
    let asked_as = || {
        tenant.endpoint.request_pages(one_page(0x1000, |_| ()));
        let group = queue.take(9).unwrap().unwrap();
        queue.answer(group.cookie, PageResponse::Invalid).unwrap();
        group.device
    };
    assert_eq!(asked_as(), u32::from(tenant.device.id()));
    assert!(machine.context().bind(&tenant.endpoint).is_err());
    assert_eq!(asked_as(), u32::from(tenant.device.id()), "the owner is told of another device");
}

#[test]
fn failed_remove_keeps_the_owners_id() {
    let machine = machine();
    let tenant = Tenant::detached(&machine, 1);
    let queue = tenant.with_queue(FaultQueueOptions::default());
    assert!(!machine.remove_endpoint(&tenant.endpoint));
    tenant.endpoint.request_pages(one_page(0x1000, |_| ()));
    assert_eq!(queue.take(9).unwrap().unwrap().device, u32::from(tenant.device.id()));
}

#[test]
fn nothing_is_reached_through_a_closed_context() {
    use ioasid::{CopyError, HwptError, HwptOptions, Reach, ViommuError};
    let tenant = Tenant::of(&machine(), 1);
    map(&tenant.ioas, 0x1000, PAGE);
    let hwpt = tenant.hwpt(HwptOptions::default().nest_parent(true));
    let context = &tenant.context;
    let viommu = context.viommu_alloc::<ViommuError>(&tenant.endpoint, &hwpt, |_| Ok(Box::new(())));
    let _kept = viommu.unwrap();
    context.close().unwrap();
    for reach in [Reach::from(&hwpt), Reach::of_device(&tenant.endpoint, None)] {
        assert!(matches!(context.copy_to(reach, Iova(0x1000), &[1]), Err(CopyError::Closed)));
    }
    let made = context.hwpt_alloc(tenant.device.endpoint(), &tenant.ioas, HwptOptions::default());
    assert!(matches!(made.map(drop), Err(HwptError::Closed)));
    assert!(tenant.endpoint.port().read(Iova(0x1000), &mut [0]).is_err());
}

#[test]
fn pasid_bits_are_checked() {
    for bits in [21, 32, u32::MAX] {
        let options = EndpointOptions::default().pasid_bits(bits);
        let refused = machine().add_endpoint_with(rid(1), GroupId(1), options).map(drop);
        assert_eq!(refused, Err(EndpointError::PasidBits(bits)));
    }
}
