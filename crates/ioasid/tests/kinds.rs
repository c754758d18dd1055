//! Each kind of IOMMU: what it walks, against the memory that was mapped.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ioasid::memory::{Pages, Segment};
use ioasid::{
    Access, AttachError, Device, DmaPort, EndpointError, EndpointOptions, FaultReason, GroupId, HwptError, HwptOptions,
    Ioas, IommuKind, Iova, IovaRange, Machine, MapError, Rid, Silent, TableFormat, ViommuError,
};

const PAGE: u64 = 4096;
/// Room for large pages of every format but the largest.
const LENGTH: u64 = 8 << 20;

struct Bench {
    machine: Arc<Machine>,
    ioas: Arc<Ioas>,
    device: Device,
    port: DmaPort,
    memory: Arc<Pages>,
}

/// A device behind an IOMMU, and memory in which each page begins with its number.
fn bench(kind: IommuKind) -> Bench {
    let machine = Machine::new(Arc::new(Silent));
    let rid = Rid::new(0, 0, 1, 0).unwrap();
    let endpoint = machine.add_endpoint_with(rid, GroupId(1), EndpointOptions::behind(&machine.iommu(kind))).unwrap();
    endpoint.set_bus_master(true).unwrap();
    let context = machine.context();
    let (ioas, device, port) = (context.ioas_alloc().unwrap(), context.bind(&endpoint).unwrap(), endpoint.port());
    let file = Segment::memfd(LENGTH).unwrap().1;
    (0..LENGTH / PAGE).for_each(|page| file.write_all_at(&page.to_ne_bytes(), page * PAGE).unwrap());
    let memory = Pages::of_file(file, 0, LENGTH, true);
    Bench { machine, ioas, device, port, memory }
}

fn read(port: &mut DmaPort, iova: u64) -> Result<u64, FaultReason> {
    let mut word = [0; 8];
    port.read(Iova(iova), &mut word).map(|()| u64::from_ne_bytes(word)).map_err(|error| error.reason)
}

#[test]
fn what_is_mapped_is_found_up_to_the_end_of_the_aperture_and_not_beyond() {
    for kind in IommuKind::ALL {
        let Bench { ioas, device, mut port, memory, .. } = bench(kind);
        device.attach(None, &ioas).unwrap();
        let aperture = kind.format().aperture();
        let end = aperture.last() + 1;
        for (iova, pages) in [(0, 1), (end - PAGE, 1), (1 << 30, 512), (end - (6 << 20), 1024)] {
            ioas.map_pages(Some(Iova(iova)), &memory, 0, pages * PAGE, Access::all()).unwrap();
            for page in [0, pages / 2, pages - 1] {
                assert_eq!(read(&mut port, iova + page * PAGE), Ok(page), "{kind}, {iova:#x}");
            }
            assert_eq!(read(&mut port, iova + pages * PAGE), Err(FaultReason::NotMapped), "{kind}");
        }
        let beyond = ioas.map_pages(Some(Iova(end)), &memory, 0, PAGE, Access::all());
        assert!(matches!(beyond, Err(MapError::Reserved(_))), "{kind}");
        for reserved in kind.reserved() {
            let there = ioas.map_pages(Some(Iova(reserved.start())), &memory, 0, PAGE, Access::all());
            assert!(matches!(there, Err(MapError::Reserved(_))), "{kind}");
        }
        ioas.unmap(IovaRange::ALL).unwrap();
        assert_eq!(read(&mut port, 0), Err(FaultReason::NotMapped));
    }
}

#[test]
fn random_changes_agree_with_a_model_behind_each_kind() {
    for kind in IommuKind::ALL {
        let Bench { machine, ioas, device, mut port, memory } = bench(kind);
        device.attach(None, &ioas).unwrap();
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut random = move |end: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 11) % end
        };
        // By the first page: pages, the first of the memory, and whether devices may write.
        let mut areas: BTreeMap<u64, (u64, u64, bool)> = BTreeMap::new();
        let base = 1 << 30;
        for _ in 0..1500 {
            let (at, most) = (random(4096), [3, 40, 600][random(3) as usize]);
            let pages = random(most) + 1;
            match random(4) {
                0 | 1 => {
                    // In step with the IOVA half of the time, so that large pages fit.
                    let from = if random(2) == 0 { at % 1024 } else { random(1400) };
                    let writable = random(2) == 0;
                    let access = if writable { Access::all() } else { Access::READ };
                    let range = Some(Iova(base + at * PAGE));
                    if ioas.map_pages(range, &memory, from * PAGE, pages * PAGE, access).is_ok() {
                        areas.insert(at, (pages, from, writable));
                    }
                }
                2 => {
                    if let Some((&at, &(pages, ..))) = areas.range(at..).next() {
                        ioas.unmap(IovaRange::new(base + at * PAGE, pages * PAGE).unwrap()).unwrap();
                        areas.remove(&at);
                    }
                }
                _ => {
                    if let Some((&at, (pages, _, writable))) = areas.range_mut(at..).next() {
                        *writable = !*writable;
                        let access = if *writable { Access::all() } else { Access::READ };
                        ioas.protect(IovaRange::new(base + at * PAGE, *pages * PAGE).unwrap(), access).unwrap();
                    }
                }
            }
            for _ in 0..4 {
                let page = random(4700);
                let area = areas.range(..=page).next_back().filter(|(at, (pages, ..))| page < **at + pages);
                let iova = base + page * PAGE;
                let Some((at, (_, from, writable))) = area else {
                    assert_eq!(read(&mut port, iova), Err(FaultReason::NotMapped), "{kind}");
                    continue;
                };
                assert_eq!(read(&mut port, iova), Ok(from + (page - at)), "{kind}");
                assert_eq!(port.write(Iova(iova + 8), &[1]).is_ok(), *writable, "{kind}");
            }
        }
        ioas.unmap(IovaRange::ALL).unwrap();
        assert_eq!(machine.resources().0, 0);
    }
}

#[test]
fn writes_are_tracked_and_faults_are_made_behind_each_kind() {
    for kind in IommuKind::ALL {
        let Bench { ioas, device, mut port, memory, .. } = bench(kind);
        let id = device.attach(None, &ioas).unwrap();
        let base = 1 << 30;
        ioas.map_pages(Some(Iova(base)), &memory, 0, LENGTH, Access::all()).unwrap();
        let hwpt = device.context().hwpt(id).unwrap();
        hwpt.start_dirty_tracking(PAGE).unwrap();
        [1, 511, 512, 1000].iter().for_each(|page| port.write(Iova(base + page * PAGE + 8), &[1]).unwrap());
        let mut bitmap = vec![0u64; 32];
        hwpt.read_dirty(IovaRange::new(base, LENGTH).unwrap(), PAGE, true, &mut bitmap).unwrap();
        let dirty: Vec<u64> =
            (0..LENGTH / PAGE).filter(|page| bitmap[*page as usize / 64] >> (page % 64) & 1 == 1).collect();
        assert_eq!(dirty, [1, 511, 512, 1000], "{kind}");
        hwpt.stop_dirty_tracking();
        // A hole in the middle of a large page.
        let hole = IovaRange::new(base + 600 * PAGE, 3 * PAGE).unwrap();
        ioas.make_fault(hole).unwrap();
        for (page, there) in [(599, true), (600, false), (602, false), (603, true)] {
            assert_eq!(read(&mut port, base + page * PAGE).is_ok(), there, "{kind}, page {page}");
        }
        assert_eq!(ioas.populate(hole).unwrap(), 3 * PAGE);
        assert_eq!(read(&mut port, base + 601 * PAGE), Ok(601));
    }
}

#[test]
fn a_kind_is_known_by_its_name_and_walks_its_own_formats() {
    for kind in IommuKind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
        assert!(kind.walks(kind.format()) && !kind.walks(TableFormat::Mock) && !kind.about().is_empty());
    }
    let unknown = "vt-d".parse::<IommuKind>().unwrap_err().to_string();
    assert_eq!(unknown, "there is no IOMMU `vt-d`: vtd, vtd5, amd, smmuv3, riscv are");
    // Five levels walk four, too, if asked.
    let Bench { ioas, device, .. } = bench(IommuKind::VtdFiveLevels);
    let asked = |format| HwptOptions::default().format(format);
    let made = |format| device.context().hwpt_alloc(device.endpoint(), &ioas, asked(format));
    device.attach(None, made(TableFormat::VtdSecondStage).unwrap()).unwrap();
    assert!(matches!(made(TableFormat::AmdV1).map(drop), Err(HwptError::WrongFormat(TableFormat::AmdV1))));
}

#[test]
fn devices_behind_two_kinds_share_an_address_space_by_a_table_each() {
    let Bench { machine, ioas, device, mut port, memory } = bench(IommuKind::Vtd);
    let rid = Rid::new(0, 0, 2, 0).unwrap();
    let endpoint =
        machine.add_endpoint_with(rid, GroupId(2), EndpointOptions::behind(&machine.iommu(IommuKind::Amd))).unwrap();
    endpoint.set_bus_master(true).unwrap();
    let (other, mut beside) = (device.context().bind(&endpoint).unwrap(), endpoint.port());
    device.attach(None, &ioas).unwrap();
    other.attach(None, &ioas).unwrap();
    ioas.map_pages(Some(Iova(LENGTH)), &memory, 0, LENGTH, Access::READ).unwrap();
    assert_eq!((read(&mut port, LENGTH + PAGE), read(&mut beside, LENGTH + PAGE)), (Ok(1), Ok(1)));
    ioas.unmap(IovaRange::ALL).unwrap();
    assert!(read(&mut port, LENGTH + PAGE).is_err() && read(&mut beside, LENGTH + PAGE).is_err());
    // A table that only one of the two walks.
    let amd = HwptOptions::default().format(TableFormat::AmdV1);
    let table = device.context().hwpt_alloc(other.endpoint(), &ioas, amd).unwrap();
    assert!(matches!(device.attach(None, &table), Err(AttachError::WrongFormat(_))));
}

#[test]
fn two_iommus_of_one_kind_share_tables_and_no_virtual_iommu() {
    let Bench { machine, ioas, device, .. } = bench(IommuKind::SmmuV3);
    let first = device.endpoint().iommu().clone();
    assert!(Arc::ptr_eq(&first, &machine.iommu(IommuKind::SmmuV3)));
    let second = machine.add_iommu(IommuKind::SmmuV3);
    assert_eq!(machine.iommus().iter().map(|iommu| iommu.number()).collect::<Vec<_>>(), [0, 1]);
    let rid = Rid::new(0, 0, 2, 0).unwrap();
    let endpoint = machine.add_endpoint_with(rid, GroupId(2), EndpointOptions::behind(&second)).unwrap();
    let context = device.context();
    let other = context.bind(&endpoint).unwrap();
    assert_eq!(device.attach(None, &ioas).unwrap(), other.attach(None, &ioas).unwrap());
    // What a guest has of one IOMMU does not reach the other, although a page table does.
    let parent = context.hwpt_alloc(&endpoint, &ioas, HwptOptions::default().nest_parent(true)).unwrap();
    let viommu = context.viommu_alloc::<ViommuError>(device.endpoint(), &parent, |_| Ok(Box::new(()))).unwrap();
    assert!(Arc::ptr_eq(viommu.iommu(), &first));
    let refused = context.virtual_device_alloc(&viommu, &endpoint, 1).map(drop);
    assert_eq!(refused, Err(ViommuError::OtherIommu(rid)));
    context.virtual_device_alloc(&viommu, device.endpoint(), 1).unwrap();
}

#[test]
fn a_device_is_behind_an_iommu_of_its_own_machine_and_reserves_what_that_does() {
    let (here, there) = (Machine::new(Arc::new(Silent)), Machine::new(Arc::new(Silent)));
    let foreign = EndpointOptions::behind(&there.iommu(IommuKind::Amd));
    let rid = Rid::new(0, 0, 1, 0).unwrap();
    assert_eq!(here.add_endpoint_with(rid, GroupId(1), foreign).map(drop), Err(EndpointError::OtherMachine));
    // Beside what it reserves itself.
    let own = IovaRange::new(0x10_0000, PAGE).unwrap();
    let options = EndpointOptions::behind(&here.iommu(IommuKind::Amd)).reserve(own);
    let endpoint = here.add_endpoint_with(rid, GroupId(1), options).unwrap();
    let all = IommuKind::Amd.reserved().iter().chain([&own]);
    assert!(all.clone().all(|range| endpoint.reserved().contains(range)));
    assert_eq!(endpoint.reserved().len(), all.count());
    // Where none is named, the first is meant; where there is none, it is a VT-d.
    let next = Rid::new(0, 0, 2, 0).unwrap();
    assert_eq!(here.add_endpoint(next, GroupId(2)).unwrap().iommu().kind(), IommuKind::Amd);
    let empty = Machine::new(Arc::new(Silent));
    assert_eq!(empty.add_endpoint(rid, GroupId(1)).unwrap().iommu().kind(), IommuKind::Vtd);
}

#[test]
fn formats_have_the_pages_and_the_bits_of_their_specifications() {
    let any = |from, to| (from..to).collect::<Vec<u32>>();
    for (format, shifts, bits) in [
        (TableFormat::VtdSecondStage, vec![12, 21, 30], 48),
        (TableFormat::VtdSecondStageFiveLevels, vec![12, 21, 30], 57),
        (TableFormat::AmdV1, any(12, 48), 48),
        (TableFormat::Armv8Stage2, vec![12, 16, 21, 25, 30, 34], 48),
        (TableFormat::Sv48, vec![12, 21, 30, 39], 47),
        (TableFormat::Mock, any(11, 56), 31),
        (TableFormat::MockHuge, vec![12, 20], 56),
    ] {
        let sizes = shifts.iter().map(|shift| 1u64 << shift).sum::<u64>();
        assert_eq!(format.page_sizes(), sizes, "{format:?}");
        assert_eq!(format.aperture().last(), (1 << bits) - 1, "{format:?}");
        let start = if format == TableFormat::Mock { 1 << 24 } else { 0 };
        assert_eq!(format.aperture().start(), start, "{format:?}");
    }
}
