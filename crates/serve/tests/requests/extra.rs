//! Requests that Linux does not have: what is wrong with them, what they leave, and that they are documented.

use std::path::Path;

use ioasid_uapi::description::HEADERS;
use ioasid_uapi::ioasid as uapi;
use ioasid_uapi::iommufd;
use ioasid_uapi::vfio::container as vfio;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::errno::{Asker, Request, fields, forms, request};
use super::failing::{Case, case};
use super::program::{MEMORY_FILE, NOWHERE, PIDFD};
use super::setup::{ARGUMENT, DATA, IOVA, Objects, PAGE, Setup};

/// Where four pages are mapped that nobody needs.
const SPARE: u64 = IOVA + 0x10_0000;

fn size<T>() -> u32 {
    size_of::<T>() as u32
}

fn pasid_alloc() -> uapi::PasidAlloc {
    uapi::PasidAlloc { size: size::<uapi::PasidAlloc>(), min: 1, max: 9, ..Default::default() }
}

/// A PASID of the context's.
fn a_pasid(setup: &Setup) -> u32 {
    setup.ask(uapi::PASID_ALLOC, pasid_alloc()).unwrap().out_pasid
}

fn paging(objects: &Objects) -> uapi::HwptAlloc {
    uapi::HwptAlloc {
        size: size::<uapi::HwptAlloc>(),
        dev_id: objects.device,
        pt_id: objects.ioas,
        ..Default::default()
    }
}

fn nested(objects: &Objects) -> uapi::HwptAlloc {
    uapi::HwptAlloc { dev_id: 0, pt_id: objects.parent, kind: uapi::HWPT_NESTED, root: 0x1000, ..paging(objects) }
}

fn guest_pasids(objects: &Objects) -> uapi::HwptAlloc {
    uapi::HwptAlloc { kind: uapi::HWPT_GUEST_PASIDS, pasid_bits: 8, ..nested(objects) }
}

fn sva() -> uapi::HwptAlloc {
    uapi::HwptAlloc { size: size::<uapi::HwptAlloc>(), kind: uapi::HWPT_SVA, pidfd: PIDFD, ..Default::default() }
}

fn invalidate(hwpt_id: u32) -> uapi::HwptInvalidate {
    uapi::HwptInvalidate { size: size::<uapi::HwptInvalidate>(), hwpt_id, ..Default::default() }
}

fn queue() -> uapi::FaultQueueAlloc {
    uapi::FaultQueueAlloc { size: size::<uapi::FaultQueueAlloc>(), depth: 5, timeout_ms: 100, ..Default::default() }
}

fn presence(objects: &Objects, op: u32) -> uapi::IoasPresence {
    uapi::IoasPresence {
        size: size::<uapi::IoasPresence>(),
        ioas_id: objects.ioas,
        op,
        iova: SPARE,
        length: 2 * PAGE,
        ..Default::default()
    }
}

fn copy(objects: &Objects, flags: u32) -> uapi::Copy {
    uapi::Copy {
        size: size::<uapi::Copy>(),
        flags,
        id: objects.parent,
        iova: IOVA,
        length: 64,
        user_va: DATA,
        ..Default::default()
    }
}

fn enqcmd(pasid: u32) -> uapi::Enqcmd {
    uapi::Enqcmd { size: size::<uapi::Enqcmd>(), number: 1, pasid, ..Default::default() }
}

/// Maps [`SPARE`].
fn with_spare(setup: &Setup) {
    setup.ask(iommufd::IOAS_MAP, Setup::map(&setup.objects, SPARE)).unwrap();
}

/// All of them. What is named to be right is not tried.
fn requests(setup: &Setup) -> Vec<Request> {
    let objects = setup.objects;
    let free = uapi::PasidFree { size: 8, pasid: 77 };
    let park = uapi::Park { size: 8, id: 999 };
    let spaces = [objects.ioas, objects.empty];
    // Those that the second id may be; the nested ones are refused for what they are.
    let tables = [objects.automatic, objects.parent, objects.tracked, objects.nested];
    let get = uapi::FaultQueueGet { size: 24, fault_id: objects.fault_queue, ..Default::default() };
    let mut alloc = request("HWPT_ALLOC", uapi::HWPT_ALLOC, paging(&objects), size_of::<uapi::HwptAlloc>())
        .flags(4, 7)
        .reserved(&[(60, 4)])
        .id(12, Errno::NOENT, &[objects.device])
        .id(16, Errno::INVAL, &spaces);
    alloc.ids[1].missing = Errno::NOENT;
    let mut forget = request(
        "HWPT_INVALIDATE",
        uapi::HWPT_INVALIDATE,
        invalidate(objects.nested),
        size_of::<uapi::HwptInvalidate>(),
    )
    .flags(4, 1)
    .reserved(&[(20, 4)])
    .id(8, Errno::INVAL, &[objects.nested]);
    forget.ids[0].missing = Errno::NOENT;
    vec![
        request("PASID_ALLOC", uapi::PASID_ALLOC, pasid_alloc(), 24).flags(4, 0).reserved(&[(20, 4)]),
        request("PASID_FREE", uapi::PASID_FREE, free, 8),
        request("PARK", uapi::PARK, park, 8),
        alloc,
        forget,
        request("FAULT_QUEUE_ALLOC", uapi::FAULT_QUEUE_ALLOC, queue(), 24).flags(4, 0),
        request("FAULT_QUEUE_GET", uapi::FAULT_QUEUE_GET, get, 24).id(4, Errno::NOENT, &[objects.fault_queue]),
        request("IOAS_PRESENCE", uapi::IOAS_PRESENCE, presence(&objects, 0), 40).reserved(&[(12, 4)]).id(
            4,
            Errno::NOENT,
            &spaces,
        ),
        request("COPY", uapi::COPY, copy(&objects, 0), 40).flags(4, 7).id(8, Errno::NOENT, &tables),
        request("ENQCMD", uapi::ENQCMD, enqcmd(77), 16).flags(4, 1),
    ]
}

#[test]
fn what_is_wrong_with_one_of_our_own_requests_is_said_and_changes_nothing() {
    let setup = Setup::new();
    with_spare(&setup);
    let mut asker = Asker { setup: &setup, rows: 0 };
    let requests = requests(&setup);
    for request in &requests {
        forms(&mut asker, request);
        fields(&mut asker, request);
    }
    pasids(&mut asker);
    tables(&mut asker);
    memory(&mut asker);
    println!("{} rows over {} requests", asker.rows, requests.len());
    assert!(asker.rows >= 200);
}

fn pasids(asker: &mut Asker<'_>) {
    let alloc = pasid_alloc();
    for (what, alloc, errno) in [
        ("an empty range", uapi::PasidAlloc { min: 9, max: 8, ..alloc }, Errno::INVAL),
        ("what is too wide", uapi::PasidAlloc { min: 1 << 20, max: u32::MAX, ..alloc }, Errno::INVAL),
    ] {
        asker.row(&format!("a PASID of {what}"), uapi::PASID_ALLOC, alloc.as_bytes(), errno);
    }
    let only = uapi::PasidAlloc { min: 3, max: 3, ..alloc };
    asker.setup.ask(uapi::PASID_ALLOC, only).unwrap();
    asker.row("the only PASID", uapi::PASID_ALLOC, only.as_bytes(), Errno::NOSPC);
    for pasid in [0, 4, 1 << 20, u32::MAX] {
        let free = uapi::PasidFree { size: 8, pasid };
        asker.row(&format!("freeing PASID {pasid}"), uapi::PASID_FREE, free.as_bytes(), Errno::NOENT);
    }
    for (what, enqcmd, errno) in [
        ("what was not allocated", enqcmd(4), Errno::NOENT),
        ("what is too wide", enqcmd(1 << 20), Errno::INVAL),
        ("a number that is too wide", uapi::Enqcmd { number: 1 << 20, ..enqcmd(3) }, Errno::INVAL),
        ("nothing, with a number", uapi::Enqcmd { flags: uapi::ENQCMD_UNBIND, ..enqcmd(3) }, Errno::INVAL),
    ] {
        asker.row(&format!("ENQCMD with {what}"), uapi::ENQCMD, enqcmd.as_bytes(), errno);
    }
}

fn tables(asker: &mut Asker<'_>) {
    let objects = asker.setup.objects;
    let (paging, nested, guest, sva) = (paging(&objects), nested(&objects), guest_pasids(&objects), sva());
    for (what, alloc, errno) in [
        ("of no kind", uapi::HwptAlloc { kind: 4, ..paging }, Errno::OPNOTSUPP),
        ("of an IOAS and a process", uapi::HwptAlloc { pidfd: PIDFD, ..paging }, Errno::INVAL),
        ("of an IOAS, with a root", uapi::HwptAlloc { root: 0x1000, ..paging }, Errno::INVAL),
        ("that does something else on a miss", uapi::HwptAlloc { on_miss: 3, ..paging }, Errno::OPNOTSUPP),
        ("that asks no queue", uapi::HwptAlloc { on_miss: 1, fault_id: 999, ..paging }, Errno::NOENT),
        ("that asks an IOAS", uapi::HwptAlloc { on_miss: 1, fault_id: objects.ioas, ..paging }, Errno::NOENT),
        ("that refuses, with a queue", uapi::HwptAlloc { fault_id: objects.fault_queue, ..paging }, Errno::INVAL),
        ("nested, with a flag of others", uapi::HwptAlloc { flags: 1, ..nested }, Errno::OPNOTSUPP),
        ("nested, of a device", uapi::HwptAlloc { dev_id: objects.device, ..nested }, Errno::INVAL),
        ("nested on nothing", uapi::HwptAlloc { pt_id: 999, ..nested }, Errno::NOENT),
        ("nested on an IOAS", uapi::HwptAlloc { pt_id: objects.ioas, ..nested }, Errno::INVAL),
        ("nested on no parent", uapi::HwptAlloc { pt_id: objects.tracked, ..nested }, Errno::INVAL),
        ("nested on nested", uapi::HwptAlloc { pt_id: objects.nested, ..nested }, Errno::INVAL),
        ("of no format", uapi::HwptAlloc { format: 8, ..nested }, Errno::OPNOTSUPP),
        ("that is not aligned", uapi::HwptAlloc { root: 0x1008, ..nested }, Errno::INVAL),
        ("nested, with levels", uapi::HwptAlloc { levels: 1, ..nested }, Errno::INVAL),
        ("of PASIDs that are too wide", uapi::HwptAlloc { pasid_bits: 21, ..guest }, Errno::INVAL),
        ("of PASIDs in no form", uapi::HwptAlloc { format: 6, ..guest }, Errno::OPNOTSUPP),
        ("of SMMUv3's PASIDs, with levels", uapi::HwptAlloc { levels: 1, ..guest }, Errno::INVAL),
        ("of AMD's PASIDs, without levels", uapi::HwptAlloc { format: 3, ..guest }, Errno::INVAL),
        ("of RISC-V's PASIDs, with many levels", uapi::HwptAlloc { format: 5, levels: 256, ..guest }, Errno::INVAL),
        ("that sends others nowhere", uapi::HwptAlloc { without_pasid: 3, ..guest }, Errno::OPNOTSUPP),
        ("of PASIDs that is not aligned", uapi::HwptAlloc { root: 0x1020, ..guest }, Errno::INVAL),
        ("of no process", uapi::HwptAlloc { pidfd: -1, ..sva }, Errno::BADF),
        ("of a file", uapi::HwptAlloc { pidfd: MEMORY_FILE, ..sva }, Errno::INVAL),
        ("of a process, with a queue", uapi::HwptAlloc { fault_id: objects.fault_queue, ..sva }, Errno::INVAL),
        ("of a process, with flags", uapi::HwptAlloc { flags: 4, ..sva }, Errno::OPNOTSUPP),
    ] {
        asker.row(&format!("a page table {what}"), uapi::HWPT_ALLOC, alloc.as_bytes(), errno);
    }
    let forget = invalidate(objects.nested);
    for (what, forget, errno) in [
        ("of no scope", uapi::HwptInvalidate { scope: 3, ..forget }, Errno::OPNOTSUPP),
        ("of all, from somewhere on", uapi::HwptInvalidate { start: 1, ..forget }, Errno::INVAL),
        ("of all, of a PASID", uapi::HwptInvalidate { flags: 1, pasid: 1, ..forget }, Errno::INVAL),
        ("of a range that ends before", uapi::HwptInvalidate { scope: 1, start: 1, last: 0, ..forget }, Errno::INVAL),
        (
            "of a PASID that is too wide",
            uapi::HwptInvalidate { scope: 2, flags: 1, pasid: 1 << 20, ..forget },
            Errno::INVAL,
        ),
        ("of none, with a number", uapi::HwptInvalidate { scope: 2, pasid: 1, ..forget }, Errno::INVAL),
    ] {
        asker.row(&format!("invalidation {what}"), uapi::HWPT_INVALIDATE, forget.as_bytes(), errno);
    }
    // What is needed by more than devices is busy, and so is what is no page table and needed.
    for (kind, id) in objects.all() {
        if [objects.ioas, objects.device, objects.parent, objects.fault_queue, objects.viommu].contains(&id) {
            let park = uapi::Park { size: 8, id };
            asker.row(&format!("parking {kind}"), uapi::PARK, park.as_bytes(), Errno::BUSY);
        }
    }
    for (what, queue) in [
        ("too deep", uapi::FaultQueueAlloc { depth: 65_537, ..queue() }),
        ("for too long", uapi::FaultQueueAlloc { timeout_ms: 3_600_001, ..queue() }),
    ] {
        asker.row(&format!("a fault queue {what}"), uapi::FAULT_QUEUE_ALLOC, queue.as_bytes(), Errno::INVAL);
    }
}

fn memory(asker: &mut Asker<'_>) {
    let objects = asker.setup.objects;
    for op in [uapi::PRESENCE_FAULT, uapi::PRESENCE_POPULATE] {
        let presence = presence(&objects, op);
        for (what, presence, errno) in [
            ("nothing", uapi::IoasPresence { length: 0, ..presence }, Errno::INVAL),
            ("what wraps", uapi::IoasPresence { iova: !0 << 12, ..presence }, Errno::OVERFLOW),
            ("half a page", uapi::IoasPresence { length: PAGE / 2, ..presence }, Errno::INVAL),
            ("between pages", uapi::IoasPresence { iova: SPARE + 8, ..presence }, Errno::INVAL),
            ("where nothing is", uapi::IoasPresence { iova: SPARE + 0x80_0000, ..presence }, Errno::NOENT),
        ] {
            asker.row(&format!("presence {op} of {what}"), uapi::IOAS_PRESENCE, presence.as_bytes(), errno);
        }
    }
    let third = uapi::IoasPresence { op: 2, ..presence(&objects, 0) };
    asker.row("a third operation", uapi::IOAS_PRESENCE, third.as_bytes(), Errno::OPNOTSUPP);
    // The hardware queue keeps what it is in.
    let kept = uapi::IoasPresence { iova: IOVA + PAGE, length: PAGE, ..presence(&objects, 0) };
    asker.row("a cut through what is kept", uapi::IOAS_PRESENCE, kept.as_bytes(), Errno::BUSY);

    let device = |flags, pasid| uapi::Copy { id: objects.device, pasid, ..copy(&objects, flags) };
    let copy = copy(&objects, 0);
    for (what, copy, errno) in [
        ("nothing", uapi::Copy { length: 0, ..copy }, Errno::INVAL),
        ("too much", uapi::Copy { length: (1 << 20) + 1, ..copy }, Errno::MSGSIZE),
        ("what wraps", uapi::Copy { iova: !0, ..copy }, Errno::OVERFLOW),
        ("to nowhere", uapi::Copy { user_va: NOWHERE, ..copy }, Errno::FAULT),
        ("from nowhere", uapi::Copy { user_va: NOWHERE, flags: uapi::COPY_TO, ..copy }, Errno::FAULT),
        ("where nothing is mapped", uapi::Copy { iova: IOVA + 0x80_0000, ..copy }, Errno::FAULT),
        ("beyond what is mapped", uapi::Copy { iova: IOVA + 4 * PAGE - 8, ..copy }, Errno::FAULT),
        ("with a PASID, of no device", uapi::Copy { flags: uapi::COPY_PASID, ..copy }, Errno::INVAL),
        ("with a PASID that is not said", device(uapi::COPY_DEVICE, 1), Errno::INVAL),
        ("with a PASID that is too wide", device(uapi::COPY_DEVICE | uapi::COPY_PASID, 1 << 20), Errno::INVAL),
        ("with a PASID that is not attached", device(uapi::COPY_DEVICE | uapi::COPY_PASID, 1), Errno::NOENT),
        ("of what is no device", uapi::Copy { flags: uapi::COPY_DEVICE, ..copy }, Errno::NOENT),
    ] {
        asker.row(&format!("a copy {what}"), uapi::COPY, copy.as_bytes(), errno);
    }
    let asked = uapi::HwptAlloc { on_miss: 1, fault_id: objects.fault_queue, ..paging(&objects) };
    let asked = asker.setup.ask(uapi::HWPT_ALLOC, asked).unwrap().out_hwpt_id;
    let later = uapi::Copy { id: asked, iova: IOVA + 0x80_0000, ..copy };
    asker.row("a copy of what somebody else brings in", uapi::COPY, later.as_bytes(), Errno::AGAIN);
}

/// For the test that has everything fail that can.
pub fn cases() -> Vec<Case> {
    let alloc =
        |name, alloc: fn(&Objects) -> uapi::HwptAlloc| case(name, uapi::HWPT_ALLOC, move |setup| alloc(&setup.objects));
    vec![
        case("IOASID_PASID_ALLOC", uapi::PASID_ALLOC, |_| pasid_alloc()),
        case("IOASID_PASID_FREE", uapi::PASID_FREE, |setup| uapi::PasidFree { size: 8, pasid: a_pasid(setup) }),
        case("IOASID_PARK", uapi::PARK, |setup| uapi::Park { size: 8, id: setup.objects.automatic }),
        alloc("IOASID_HWPT_ALLOC", paging),
        alloc("IOASID_HWPT_ALLOC with a queue", |objects| uapi::HwptAlloc {
            on_miss: uapi::ON_MISS_QUEUE,
            fault_id: objects.fault_queue,
            ..paging(objects)
        }),
        alloc("IOASID_HWPT_ALLOC of a guest", nested),
        alloc("IOASID_HWPT_ALLOC of a guest's PASIDs", guest_pasids),
        alloc("IOASID_HWPT_ALLOC of a process", |_| sva()),
        case("IOASID_HWPT_INVALIDATE", uapi::HWPT_INVALIDATE, |setup| invalidate(setup.objects.nested)),
        case("IOASID_HWPT_INVALIDATE of a PASID", uapi::HWPT_INVALIDATE, |setup| uapi::HwptInvalidate {
            scope: uapi::INVALIDATE_PASID,
            flags: 1,
            pasid: 5,
            ..invalidate(setup.objects.nested)
        }),
        case("IOASID_FAULT_QUEUE_ALLOC", uapi::FAULT_QUEUE_ALLOC, |_| queue()),
        case("IOASID_FAULT_QUEUE_GET", uapi::FAULT_QUEUE_GET, |setup| uapi::FaultQueueGet {
            size: 24,
            fault_id: setup.objects.fault_queue,
            ..Default::default()
        }),
        case("IOASID_IOAS_PRESENCE to fault", uapi::IOAS_PRESENCE, |setup| {
            with_spare(setup);
            presence(&setup.objects, uapi::PRESENCE_FAULT)
        }),
        case("IOASID_IOAS_PRESENCE to populate", uapi::IOAS_PRESENCE, |setup| {
            with_spare(setup);
            let all = uapi::IoasPresence { length: 4 * PAGE, ..presence(&setup.objects, uapi::PRESENCE_FAULT) };
            setup.ask(uapi::IOAS_PRESENCE, all).unwrap();
            presence(&setup.objects, uapi::PRESENCE_POPULATE)
        }),
        case("IOASID_COPY from", uapi::COPY, |setup| copy(&setup.objects, 0)),
        case("IOASID_COPY to a device's", uapi::COPY, |setup| uapi::Copy {
            id: setup.objects.device,
            ..copy(&setup.objects, uapi::COPY_DEVICE | uapi::COPY_TO)
        }),
        case("IOASID_ENQCMD", uapi::ENQCMD, |setup| enqcmd(a_pasid(setup))),
        case("IOASID_ENQCMD to unbind", uapi::ENQCMD, |_| uapi::Enqcmd {
            flags: uapi::ENQCMD_UNBIND,
            number: 0,
            ..enqcmd(0)
        }),
    ]
}

#[test]
fn a_populate_tells_how_much_it_brought_in_and_one_that_fails_nothing() {
    let setup = Setup::new();
    with_spare(&setup);
    let all = uapi::IoasPresence { length: 4 * PAGE, ..presence(&setup.objects, uapi::PRESENCE_FAULT) };
    setup.ask(uapi::IOAS_PRESENCE, all).unwrap();
    let populate = uapi::IoasPresence { out_length: 77, ..presence(&setup.objects, uapi::PRESENCE_POPULATE) };
    assert_eq!(setup.ask(uapi::IOAS_PRESENCE, populate).unwrap().out_length, 2 * PAGE);
    assert_eq!(setup.ask(uapi::IOAS_PRESENCE, populate).unwrap().out_length, 0, "it is there");
    setup.ask(uapi::IOAS_PRESENCE, all).unwrap();
    setup.program.lose_what_is_mapped();
    assert_eq!(setup.raw(uapi::IOAS_PRESENCE, populate.as_bytes()), Err(Errno::FAULT));
    let size = size_of::<uapi::IoasPresence>();
    let left = uapi::IoasPresence::read_from_bytes(&setup.program.get(ARGUMENT, size)).unwrap();
    assert_eq!(left.out_length, 77, "as it was");
}

#[test]
fn a24_old_requests_and_new_ones_share_one_address_space() {
    let setup = Setup::new();
    let Objects { ioas, device, .. } = setup.objects;
    let choose = iommufd::VfioIoas { size: 12, ioas_id: ioas, op: iommufd::VFIO_IOAS_SET, reserved: 0 };
    setup.ask(iommufd::VFIO_IOAS, choose).unwrap();
    // What an old program maps is there for who attached by the new requests, and the other way round.
    let map = vfio::Type1DmaMap { argsz: 32, flags: 3, vaddr: super::setup::MAPPED, iova: SPARE, size: PAGE };
    setup.raw(vfio::IOMMU_MAP_DMA, map.as_bytes()).unwrap();
    setup.program.put(super::setup::MAPPED, &[9; 64]);
    let by_device = uapi::Copy { id: device, iova: SPARE, ..copy(&setup.objects, uapi::COPY_DEVICE) };
    setup.ask(uapi::COPY, by_device).unwrap();
    assert_eq!(setup.program.get(DATA, 64), [9; 64]);
    let unmap = iommufd::IoasUnmap { size: 24, ioas_id: ioas, iova: SPARE, length: PAGE };
    setup.ask(iommufd::IOAS_UNMAP, unmap).unwrap();
    assert_eq!(setup.raw(uapi::COPY, by_device.as_bytes()), Err(Errno::FAULT));
}

#[test]
fn a25_every_request_is_documented_with_its_errors_and_used_by_an_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let document = read("docs/uapi.md");
    let examples =
        ["pasid.c", "sva.c", "faults.c", "guest.c"].map(|name| read(&format!("examples/uapi/{name}"))).concat()
            + &read("examples/uapi/common.h")
            + &read("examples/dsa/src/device.rs");
    let header = HEADERS.iter().find(|header| header.path == "include/ioasid.h").unwrap();
    let constants = header.constants.concat();
    let is_request = |value: u64| (0x3bc0..0x3c00).contains(&value);
    let requests: Vec<_> = constants.iter().filter(|constant| is_request(constant.value)).collect();
    assert_eq!(requests.len(), 10);
    for request in requests {
        let name = request.c_name;
        assert!(document.contains(&format!("\n### {name}\n")), "{name} has no section");
        assert!(examples.contains(name), "{name} is in no example");
        let number = format!("| {:#x}   | [{name}]", request.value & 0xff);
        assert!(document.contains(&number), "{name} is not in the list by {number}");
    }
    // Kinds, operations and the like, by name, if not by the name of a whole group of formats.
    for constant in constants.iter().filter(|constant| !is_request(constant.value)) {
        let known = document.contains(constant.c_name) || constant.c_name.starts_with("IOASID_GUEST_");
        let used = known || examples.contains(constant.c_name) || constant.c_name.starts_with("IOASID_COPY_");
        assert!(used || constant.c_name.starts_with("IOASID_WITHOUT_"), "{} is nowhere explained", constant.c_name);
    }
}
