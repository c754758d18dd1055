//! Objects and their lives: what is refused, what it leaves unchanged, and that nothing stays.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ioasid::memory::{PinError, Segment};
use ioasid::{
    Access, AttachError, BindError, DestroyError, EndpointOptions, External, FaultQueueOptions, FaultReason, GroupId,
    GuestFormat, GuestTable, HwQueueOptions, HwptError, HwptOptions, IommuKind, Iova, IovaRange, Leftover, MapError,
    NestedOptions, OnMiss, Pasid, Placement, Recovery, Rid, TableFormat, UnmapError,
};
use proptest::prelude::*;

use common::{Bench, PAGE, map, range};

#[test]
fn a_group_belongs_to_one_context_until_its_last_device_is_unbound() {
    let bench = Bench::new();
    let (a, b) = (bench.endpoint(1, 7), bench.endpoint(2, 7));
    let (one, two) = (bench.machine.context(), bench.machine.context());
    let (first, second) = (one.bind(&a).unwrap(), one.bind(&b).unwrap());
    drop(first);
    assert_eq!(two.bind(&a).err(), Some(BindError::GroupBusy));
    drop(second);
    assert!(two.bind(&a).is_ok());
}

#[test]
fn a_table_is_shared_by_devices_and_goes_with_the_last() {
    let bench = Bench::new();
    let (a, b) = (bench.endpoint(1, 1), bench.endpoint(2, 2));
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    let id = u32::from(ioas.id());
    map(&ioas, 0x1000, 1).unwrap();
    let (da, db) = (context.bind(&a).unwrap(), context.bind(&b).unwrap());
    let table = da.attach(None, &ioas).unwrap();
    assert_eq!(db.attach(None, &ioas).unwrap(), table);
    assert_eq!(context.destroy(id), Err(DestroyError::Busy(id)));
    assert_eq!(context.destroy(table.0.get()), Err(DestroyError::Busy(table.0.get())));
    da.detach(None).unwrap();
    assert_eq!(context.destroy(id), Err(DestroyError::Busy(id)));
    db.detach(None).unwrap();
    assert_eq!(context.destroy(table.0.get()), Err(DestroyError::Missing(table.0.get())));
    assert_eq!(context.destroy(id), Ok(()));
    assert_eq!(context.destroy(da.id()), Err(DestroyError::Busy(da.id().0.get())));
}

#[test]
fn attaching_to_something_else_fails_and_keeps_what_was_there() {
    let bench = Bench::new();
    let endpoint = bench.endpoint(1, 1);
    let mut port = endpoint.port();
    let context = bench.machine.context();
    let (good, bad) = (context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap());
    map(&good, 0x1000, 1).unwrap();
    // Where interrupts go on x86, and beyond what the table can address.
    map(&bad, 0xfee0_0000, 1).unwrap();
    let device = context.bind(&endpoint).unwrap();
    device.attach(None, &good).unwrap();
    assert!(matches!(device.attach(None, &bad), Err(AttachError::Conflict(_))));
    // What was destroyed, and what another context has with the same number.
    let gone = context.ioas_alloc().unwrap();
    context.destroy(gone.id()).unwrap();
    let elsewhere = bench.machine.context().ioas_alloc().unwrap();
    for other in [&gone, &elsewhere] {
        assert!(matches!(device.attach(None, other), Err(AttachError::Missing(id)) if id == other.id()));
    }
    // A number is a target only if what has it can be one.
    assert!([99, 0, device.id().into()].into_iter().all(|id| context.target(id).is_none()));
    assert_eq!(context.target(good.id().into()).map(|target| target.id()), Some(good.id()));
    port.write(Iova(0x1000), &[1]).unwrap();
    bad.unmap(IovaRange::ALL).unwrap();
    map(&bad, 1 << 48, 1).unwrap();
    assert!(matches!(device.attach(None, &bad), Err(AttachError::Conflict(_))));
    port.write(Iova(0x1000), &[1]).unwrap();
}

#[test]
fn an_attachment_that_is_not_confirmed_keeps_what_was_there() {
    let bench = Bench::new();
    let endpoint = bench.endpoint(1, 1);
    let mut port = endpoint.port();
    let context = bench.machine.context();
    let (before, after) = (context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap());
    let ids = [&before, &after].map(|ioas| ioas.id().0.get());
    map(&before, 0x1000, 1).unwrap();
    let device = context.bind(&endpoint).unwrap();
    let table = device.attach(None, &before).unwrap();
    let mut asked = None;
    let refuse = |id| {
        asked = Some(id);
        false
    };
    assert!(matches!(device.attach_if(None, &after, refuse), Err(AttachError::NotConfirmed)));
    // The table that was made for it is gone, and nothing of its address space is in use.
    assert!(asked.is_some_and(|id| id != table && !context.has(id.0.get())));
    assert_eq!(device.attached_to(None), Some(table));
    assert!(matches!(device.attach_if(None, &before, |_| false), Err(AttachError::NotConfirmed)));
    port.write(Iova(0x1000), &[1]).unwrap();
    assert_eq!(context.destroy(ids[1]), Ok(()));
    device.detach(None).unwrap();
    assert_eq!(context.destroy(ids[0]), Ok(()));
}

#[test]
fn every_reason_for_a_fault_is_told_apart() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    let mut reason = |at: u64, write: bool| {
        let result = if write { port.write(Iova(at), &[0; 8]) } else { port.read(Iova(at), &mut [0; 8]) };
        result.map_err(|error| (error.at.iova.0, error.reason)).err()
    };
    assert_eq!(reason(0x1000, true), Some((0x1000, FaultReason::NotAttached)));
    device.attach(None, &ioas).unwrap();
    assert_eq!(reason(0x1000, true), Some((0x1000, FaultReason::NotMapped)));
    let read_only = || Ok(vec![Segment::memfd(PAGE).unwrap().0]);
    ioas.map(Placement::Fixed(Iova(0x1000)), PAGE, Access::READ, read_only).unwrap();
    assert_eq!(reason(0x1000, false), None);
    assert_eq!(reason(0x1000, true), Some((0x1000, FaultReason::NotPermitted)));
    assert_eq!(reason(0x1ffc, false), Some((0x2000, FaultReason::NotMapped)), "the first byte that is refused");
    assert_eq!(reason(u64::MAX - 3, false), Some((u64::MAX - 3, FaultReason::NotMapped)));
    endpoint.set_bus_master(false).unwrap();
    assert_eq!(reason(0x1000, false), Some((0x1000, FaultReason::NotBusMaster)));
    let (short, file) = Segment::memfd(2 * PAGE).unwrap();
    ioas.map(Placement::Fixed(Iova(0x8000)), 2 * PAGE, Access::all(), || Ok(vec![short])).unwrap();
    file.set_len(0).unwrap();
    endpoint.set_bus_master(true).unwrap();
    assert_eq!(reason(0x8000, false), Some((0x8000, FaultReason::MemoryGone)));
    assert_eq!(bench.log.faults.lock().unwrap().len(), 7);
}

#[test]
fn data_crosses_pages_and_segments() {
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    device.attach(None, &ioas).unwrap();
    let pieces = [1, 3, 700, 2].map(|pages| Segment::memfd(pages * PAGE).unwrap().0);
    let length = 706 * PAGE;
    let at = ioas.map(Placement::Automatic { like: 0 }, length, Access::all(), || Ok(pieces.to_vec())).unwrap();
    map(&ioas, 0x4000_0000, 706).unwrap();
    let data: Vec<u8> = (0..length).map(|n| ((n * 31) >> 3) as u8).collect();
    port.write(at, &data).unwrap();
    port.copy(at, Iova(0x4000_0000), length).unwrap();
    let mut back = vec![0; length as usize];
    port.read(Iova(0x4000_0000), &mut back).unwrap();
    assert!(back == data);
    let mut part = vec![0; 9000];
    port.read(Iova(at.0 + 2 * PAGE - 7), &mut part).unwrap();
    assert!(part == data[(2 * PAGE - 7) as usize..][..9000]);
}

#[test]
fn what_is_left_behind_is_told_and_torn_down_whatever_goes_first() {
    for device_first in [true, false] {
        let bench = Bench::new();
        let endpoint = bench.endpoint(1, 1);
        let mut port = endpoint.port();
        let context = bench.machine.context();
        let ioas = context.ioas_alloc().unwrap();
        map(&ioas, 0, 16).unwrap();
        let device = context.bind(&endpoint).unwrap();
        device.attach(None, &ioas).unwrap();
        port.write(Iova(0), &[1; 4]).unwrap();
        drop(ioas);
        if device_first {
            drop(device);
            drop(context);
        } else {
            drop(context);
            assert!(port.write(Iova(0), &[1; 4]).is_ok(), "the device keeps its context");
            drop(device);
        }
        assert!(port.write(Iova(0), &[1; 4]).is_err());
        let left = bench.log.left.lock().unwrap();
        assert!(matches!(left[0], Leftover::Attachment { .. }));
        assert!(matches!(left[1], Leftover::Ioas { areas: 1, bytes: 0x1_0000, .. }));
        assert_eq!((left.len(), bench.machine.resources()), (2, (0, 0)));
    }
}

#[test]
fn ids_of_one_context_mean_nothing_in_another() {
    let bench = Bench::new();
    let (one, two) = (bench.machine.context(), bench.machine.context());
    let ioas = one.ioas_alloc().unwrap();
    assert!(two.ioas(ioas.id()).is_none());
    assert!(matches!(two.destroy(ioas.id()), Err(DestroyError::Missing(_))));
}

#[test]
fn an_address_space_is_not_destroyed_under_an_attach() {
    let bench = Bench::new();
    let endpoint = bench.endpoint(1, 1);
    let context = bench.machine.context();
    let device = context.bind(&endpoint).unwrap();
    let (next, destroyed) = (std::sync::atomic::AtomicU32::new(0), std::sync::atomic::AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                match next.load(Ordering::Relaxed) {
                    u32::MAX => return,
                    0 => {}
                    id => drop(destroyed.fetch_add(context.destroy(id).is_ok().into(), Ordering::Relaxed)),
                }
            }
        });
        // Until the other thread has had its turns.
        for _ in (0..).take_while(|n| *n < 3000 || destroyed.load(Ordering::Relaxed) == 0) {
            let ioas = context.ioas_alloc().unwrap();
            let id = ioas.id().0.get();
            next.store(id, Ordering::Relaxed);
            if let Ok(table) = device.attach(None, &ioas) {
                assert!(Arc::ptr_eq(&context.ioas(id).unwrap(), &ioas), "attached to what is destroyed");
                assert_eq!(context.destroy(table.0.get()), Err(DestroyError::Busy(table.0.get())));
                device.detach(None).unwrap();
            }
            next.store(0, Ordering::Relaxed);
            let _ = context.destroy(id);
        }
        next.store(u32::MAX, Ordering::Relaxed);
    });
    drop(device);
    drop(context);
    assert!(bench.log.left.lock().unwrap().is_empty());
    assert_eq!(bench.machine.resources(), (0, 0));
}

#[test]
fn a_device_is_bound_once_and_only_on_its_own_machine() {
    let (here, there) = (Bench::new(), Bench::new());
    let endpoint = here.endpoint(1, 1);
    assert_eq!(there.machine.context().bind(&endpoint).err(), Some(BindError::OtherMachine));
    let context = here.machine.context();
    let device = context.bind(&endpoint).unwrap();
    assert_eq!(context.bind(&endpoint).err(), Some(BindError::AlreadyBound));
    drop(device);
    assert!(context.bind(&endpoint).is_ok());
}

#[test]
fn a_read_only_file_is_not_mapped_for_writing() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    let file = Segment::memfd(PAGE).unwrap().1;
    let segment = Segment::file(&file, 0, PAGE, false).unwrap();
    let map = |access| ioas.map(Placement::Fixed(Iova(0)), PAGE, access, || Ok(vec![segment.clone()]));
    assert!(matches!(map(Access::all()), Err(MapError::Pages(PinError::ReadOnly))));
    assert!(ioas.areas().is_empty());
    assert!(map(Access::READ).is_ok());
}

#[test]
fn a_range_that_is_being_mapped_is_kept_and_cannot_be_unmapped() {
    let bench = Bench::new();
    let context = bench.machine.context();
    let ioas = context.ioas_alloc().unwrap();
    let result = ioas.map(Placement::Fixed(Iova(0x8000)), PAGE, Access::all(), || {
        assert!(matches!(map(&ioas, 0x8000, 1), Err(MapError::Occupied(_))));
        assert!(matches!(ioas.unmap(range(0x8000, PAGE)), Err(UnmapError::Busy(_))));
        assert!(matches!(ioas.unmap(IovaRange::ALL), Err(UnmapError::Busy(_))));
        assert!(map(&ioas, 0x9000, 1).is_ok(), "the rest of the space is free");
        Ok(vec![Segment::memfd(2 * PAGE).unwrap().0])
    });
    assert!(matches!(result, Err(MapError::Pages(PinError::WrongLength(..)))));
    assert!(map(&ioas, 0x8000, 1).is_ok(), "and is not kept after a failure");
}

#[test]
fn a_file_that_is_cut_short_under_many_accesses_is_survived() {
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    device.attach(None, &ioas).unwrap();
    // More pages than a process may have mappings, so that one mapping for each fault would be too many.
    let pages = 80_000;
    let (segment, file) = Segment::memfd(pages * PAGE).unwrap();
    ioas.map(Placement::Fixed(Iova(0)), pages * PAGE, Access::all(), || Ok(vec![segment])).unwrap();
    file.set_len(0).unwrap();
    for page in (0..pages).step_by(2) {
        assert!(port.write(Iova(page * PAGE), &[1]).is_err());
    }
    map(&ioas, 1 << 40, 1).unwrap();
    port.write(Iova(1 << 40), &[1]).unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Map {
        at: u64,
        pages: u64,
    },
    /// Anywhere, with the place in its block of memory that lies at a multiple of 2 MiB, or of a page only.
    MapAnywhere {
        pages: u64,
        aligned: bool,
    },
    Unmap {
        at: u64,
        pages: u64,
    },
    UnmapAll,
    Attach(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let page =
        || prop_oneof![0..24u64, Just(0xfedff), Just(0xfee00), Just(0xfeeff), Just((1 << 36) - 1), Just(1 << 36)];
    prop_oneof![
        3 => (page(), 1..9u64).prop_map(|(at, pages)| Step::Map { at, pages }),
        5 => (1..9u64, any::<bool>()).prop_map(|(pages, aligned)| Step::MapAnywhere { pages, aligned }),
        4 => (page(), 1..12u64).prop_map(|(at, pages)| Step::Unmap { at, pages }),
        1 => Just(Step::UnmapAll),
        2 => any::<bool>().prop_map(Step::Attach),
    ]
}

/// Page ranges that devices cannot use: interrupts, and beyond 48 bits.
fn reserved(start: u64, pages: u64) -> bool {
    (start < 0xfef00 && start + pages > 0xfee00) || start + pages > 1 << 36
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn an_address_space_agrees_with_a_list_of_areas(steps in prop::collection::vec(step(), 1..60)) {
        let bench = Bench::new();
        let (_, mut port, ioas, device) = bench.one_device();
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        let mut attached = false;
        let overlaps = |model: &BTreeMap<u64, u64>, at: u64, pages: u64| {
            model.iter().any(|(&start, &length)| start < at + pages && at < start + length)
        };
        for step in steps {
            match step {
                Step::Map { at, pages } => {
                    let refused = overlaps(&model, at, pages) || (attached && reserved(at, pages));
                    let result = map(&ioas, at * PAGE, pages);
                    prop_assert_eq!(result.is_err(), refused, "{:?}", result);
                    if !refused {
                        model.insert(at, pages);
                    }
                }
                Step::MapAnywhere { pages, aligned } => {
                    let segment = || Ok(vec![Segment::memfd(pages * PAGE).unwrap().0]);
                    let like = if aligned { 1 << 21 } else { PAGE };
                    let at = ioas.map(Placement::Automatic { like }, pages * PAGE, Access::all(), segment).unwrap();
                    let block = pages.next_power_of_two();
                    let free = |at: &u64| !(overlaps(&model, *at, pages) || attached && reserved(*at, pages));
                    let lowest = (1..).filter(|at| at % block == like / PAGE % block).find(free);
                    prop_assert_eq!(Some(at.0 / PAGE), lowest);
                    model.insert(at.0 / PAGE, pages);
                }
                Step::Unmap { at, pages } => {
                    let inside: Vec<u64> =
                        model.iter().filter(|&(&s, &l)| at <= s && s + l <= at + pages).map(|(&s, _)| s).collect();
                    let cut = model.iter().filter(|&(&s, &l)| s < at + pages && at < s + l).count() != inside.len();
                    let result = ioas.unmap(range(at * PAGE, pages * PAGE));
                    if cut {
                        prop_assert!(matches!(result, Err(UnmapError::NotWhole(_))));
                    } else if inside.is_empty() {
                        prop_assert!(matches!(result, Err(UnmapError::Empty(_))));
                    } else {
                        let bytes: u64 = inside.iter().map(|start| model[start] * PAGE).sum();
                        prop_assert_eq!(result, Ok(bytes));
                        inside.iter().for_each(|start| { model.remove(start); });
                    }
                }
                Step::UnmapAll => {
                    prop_assert_eq!(ioas.unmap(IovaRange::ALL), Ok(model.values().sum::<u64>() * PAGE));
                    model.clear();
                }
                Step::Attach(true) => {
                    let conflict = model.iter().any(|(&start, &pages)| reserved(start, pages));
                    let result = device.attach(None, &ioas);
                    prop_assert_eq!(result.is_ok(), !conflict || attached);
                    attached |= result.is_ok();
                }
                Step::Attach(false) => {
                    device.detach(None).unwrap();
                    attached = false;
                }
            }
            let areas: Vec<_> = ioas.areas().iter().map(|area| (area.range.start() / PAGE, area.range.last() / PAGE)).collect();
            let expected: Vec<_> = model.iter().map(|(&start, &pages)| (start, start + pages - 1)).collect();
            prop_assert_eq!(areas, expected);
            for page in [0, 3, 11, 23, 0xfedff, 0xfef00, (1 << 36) - 1] {
                let mapped = attached && overlaps(&model, page, 1);
                prop_assert_eq!(port.write(Iova(page * PAGE + 9), &[1, 2]).is_ok(), mapped, "page {:#x}", page);
            }
        }
        drop(device);
        drop(ioas);
        prop_assert_eq!(bench.machine.resources(), (0, 0));
    }
}

#[test]
fn pasids_want_page_tables_that_were_made_for_them() {
    let bench = Bench::new();
    let options = EndpointOptions::behind(&bench.machine.iommu(IommuKind::Mock)).pasid_bits(8);
    let endpoint = bench.machine.add_endpoint_with(Rid::new(0, 0, 1, 0).unwrap(), GroupId(1), options).unwrap();
    let context = bench.machine.context();
    let (device, ioas) = (context.bind(&endpoint).unwrap(), context.ioas_alloc().unwrap());
    let table = |pasids| context.hwpt_alloc(&endpoint, &ioas, HwptOptions::default().pasids(pasids)).unwrap();
    let (with, without) = (table(true), table(false));
    let (one, wide) = (Pasid::new(255), Pasid::new(256));

    assert!(matches!(device.attach(wide, &with), Err(AttachError::PasidTooWide(_, 8))));
    assert!(matches!(device.attach(one, &without), Err(AttachError::NotForPasids)));
    // The mock's automatic tables are not made for PASIDs.
    assert!(matches!(device.attach(one, &ioas), Err(AttachError::NotForPasids)));
    device.attach(None, &without).unwrap();
    assert!(matches!(device.attach(one, &with), Err(AttachError::NotForPasids)));
    device.attach(None, &with).unwrap();
    device.attach(one, &with).unwrap();
    assert!(matches!(device.attach(None, &without), Err(AttachError::NotForPasids)));
    assert_eq!(device.attached_to(None), Some(with.id()));
    device.detach(one).unwrap();
    assert_eq!(device.attached_to(one), None);
    device.attach(None, &without).unwrap();
}

#[test]
fn a_table_for_tracked_devices_takes_no_others() {
    let bench = Bench::new();
    let (_, _, ioas, tracked) = bench.one_device();
    let options = EndpointOptions::default().dirty_tracking(false);
    let endpoint = bench.machine.add_endpoint_with(Rid::new(0, 0, 2, 0).unwrap(), GroupId(2), options).unwrap();
    let context = tracked.context();
    let other = context.bind(&endpoint).unwrap();
    let options = HwptOptions::default().dirty_tracking(true);
    let hwpt = context.hwpt_alloc(tracked.endpoint(), &ioas, options.clone()).unwrap();
    tracked.attach(None, &hwpt).unwrap();
    let refused = other.attach(None, &hwpt);
    assert!(matches!(refused, Err(AttachError::NoDirtyTracking(id)) if id == hwpt.id()));
    let refused = context.hwpt_alloc(&endpoint, &ioas, options);
    assert!(matches!(refused, Err(HwptError::NoDirtyTracking)));
    let options = HwptOptions::default().format(TableFormat::Mock);
    let refused = context.hwpt_alloc(&endpoint, &ioas, options);
    assert!(matches!(refused, Err(HwptError::WrongFormat(TableFormat::Mock))));
    other.attach(None, &ioas).unwrap();
}

#[test]
fn what_an_external_object_stands_for_is_told_once() {
    #[derive(Default)]
    struct Counted(AtomicUsize);
    impl External for Counted {
        fn destroyed(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let bench = Bench::new();
    let context = bench.machine.context();
    let objects = [Arc::new(Counted::default()), Arc::new(Counted::default())];
    let add = |object: &Arc<Counted>| context.add_external(|_| Ok::<Arc<dyn External>, ()>(object.clone())).unwrap();
    let ids = objects.each_ref().map(|object| add(object).unwrap().0.get());
    assert_eq!(context.add_external(Err).unwrap().map_err(|id| id.0.get()), Err(3));
    assert!(!context.has(3u32));
    context.destroy(ids[0]).unwrap();
    assert!(matches!(context.destroy(ids[0]), Err(DestroyError::Missing(_))));
    drop(context);
    assert_eq!(objects.map(|object| object.0.load(Ordering::Relaxed)), [1, 1]);
}

#[test]
fn options_are_what_was_chained_and_nothing_else() {
    let queue = FaultQueueOptions::default().depth(3).timeout(Duration::from_secs(7));
    assert_eq!((queue.depth, queue.timeout), (3, Duration::from_secs(7)));
    let table = HwptOptions::default().format(TableFormat::Sv48).nest_parent(true).dirty_tracking(true).pasids(true);
    let table = table.on_miss(OnMiss::Resolve);
    assert_eq!((table.format, table.nest_parent), (Some(TableFormat::Sv48), true));
    assert!(table.dirty_tracking && table.pasids && matches!(table.on_miss, OnMiss::Resolve));
    let table = table.nest_parent(false).pasids(false);
    assert!(!table.nest_parent && !table.pasids && table.dirty_tracking);
    let machine = Bench::new().machine;
    let own = IovaRange::new(0x1000, 0x1000).unwrap();
    let device = EndpointOptions::behind(&machine.iommu(IommuKind::RiscV)).reserve(own).pasid_bits(9);
    let device = device.dirty_tracking(false).recovery(Recovery::None);
    assert_eq!(device.iommu.map(|iommu| iommu.kind()), Some(IommuKind::RiscV));
    assert_eq!((device.reserved, device.pasid_bits), (vec![own], 9));
    assert_eq!((device.dirty_tracking, device.recovery), (false, Recovery::None));
    let guests = GuestTable { format: GuestFormat::X86_64, root: 0x1000 };
    let nested = NestedOptions::from(guests).pasids(false).on_miss(OnMiss::Resolve).extension(5u8);
    assert!(!nested.pasids && matches!(nested.on_miss, OnMiss::Resolve) && nested.extension.is_some());
    let queue = HwQueueOptions::new(1, own).after(Some(0));
    assert_eq!((queue.index, queue.memory, queue.after), (1, own, Some(0)));
}
