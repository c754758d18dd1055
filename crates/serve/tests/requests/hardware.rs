//! What each kind of IOMMU tells of itself, and which of a guest's page tables Linux's own requests take behind it.

use std::sync::Arc;

use ioasid::{Device, EndpointOptions, GroupId, IommuKind, Machine, Rid, Silent};
use ioasid_serve::request::iommufd::IommuFile;
use ioasid_uapi::ioasid as own;
use ioasid_uapi::iommufd as uapi;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::program::Program;
use super::setup::{ARGUMENT, DATA, Objects, PAGE, Setup};

/// A setup with a device behind an IOMMU, an address space, and a page table that a guest's can be on.
fn behind(kind: IommuKind) -> (Setup, Device) {
    let machine = Machine::new(Arc::new(Silent));
    let rid: Rid = "0000:00:01.0".parse().unwrap();
    let options = EndpointOptions::behind(&machine.iommu(kind));
    let endpoint = machine.add_endpoint_with(rid, GroupId(1), options).unwrap();
    let file = IommuFile::new(&machine, false);
    let bound = file.context().bind(&endpoint).unwrap();
    let mut setup =
        Setup { machine, file, program: Program::new(), objects: Objects::default(), log: Default::default() };
    setup.objects.device = bound.id().into();
    setup.objects.ioas =
        setup.ask(uapi::IOAS_ALLOC, uapi::IoasAlloc { size: 12, ..Default::default() }).unwrap().out_ioas_id;
    let parent = uapi::HwptAlloc { flags: uapi::HWPT_ALLOC_NEST_PARENT, ..setup.hwpt_alloc() };
    setup.objects.parent = setup.ask(uapi::HWPT_ALLOC, parent).unwrap().out_hwpt_id;
    (setup, bound)
}

/// Its type, and the words of its structure.
fn info(kind: IommuKind) -> (u32, Vec<u64>) {
    let (setup, _device) = behind(kind);
    let dev_id = setup.objects.device;
    let ask = uapi::HwInfo { size: 40, dev_id, data_len: 64, data_uptr: DATA, ..Default::default() };
    let told = setup.ask(uapi::GET_HW_INFO, ask).unwrap();
    let bytes = setup.program.get(DATA, 64);
    let (words, _) = bytes.as_chunks::<8>();
    let used = told.data_len as usize;
    assert!(bytes[used..].iter().all(|byte| *byte == 0), "the rest is zero");
    (told.data_type, words[..used / 8].iter().map(|word| u64::from_le_bytes(*word)).collect())
}

/// A register of these fields: the lowest bit of each, and its value.
fn register(fields: &[(u32, u64)]) -> u64 {
    fields.iter().map(|(bit, value)| value << bit).sum()
}

#[test]
fn vtd_tells_its_capability_registers() {
    // ND, SAGAW, MGAW, ZLR, SLLPS, PSI, MAMV, DWD, DRD, FS1GP, FS5LP
    let capability = |levels, width| {
        [(0, 6), (8, levels), (16, width), (22, 1), (34, 3), (39, 1), (48, 18), (54, 1), (55, 1), (56, 1), (60, 1)]
    };
    // C, QI, PT, NEST, PSS, PASID, SMTS, SSADS, SSTS, FSTS
    let extended = [(0, 1), (1, 1), (6, 1), (26, 1), (35, 19), (40, 1), (43, 1), (45, 1), (46, 1), (47, 1)];
    let four = vec![0, register(&capability(0b00100, 47)), register(&extended)];
    assert_eq!(info(IommuKind::Vtd), (uapi::HW_INFO_TYPE_INTEL_VTD, four));
    let five = vec![0, register(&capability(0b01100, 56)), register(&extended)];
    assert_eq!(info(IommuKind::VtdFiveLevels), (uapi::HW_INFO_TYPE_INTEL_VTD, five));
}

#[test]
fn the_others_tell_their_feature_registers() {
    // PPRSup, GTSup, IASup, GATS, GLXSup, PASmax, HASup, HDSup
    let features = [(1, 1), (4, 1), (6, 1), (12, 1), (14, 2), (32, 19), (49, 1), (52, 1)];
    assert_eq!(info(IommuKind::Amd), (uapi::HW_INFO_TYPE_AMD, vec![register(&features), 0]));
    // S2P, S1P, TTF, COHACC, HTTU, ATS, ASID16, PRI, VMID16, CD2L, TERM_MODEL, ST_LEVEL
    let idr0 = [(0, 1), (1, 1), (2, 2), (4, 1), (6, 2), (10, 1), (12, 1), (16, 1), (18, 1), (19, 1), (26, 1), (27, 1)];
    // SIDSIZE, SSIDSIZE; RIL; OAS, the granules; the version.
    let (idr1, idr3) = ([(0, 16), (6, 20)], [(10, 1)]);
    let (idr5, aidr) = ([(0, 5), (4, 1), (5, 1), (6, 1)], [(0, 2)]);
    let pair = |low: &[(u32, u64)], high: &[(u32, u64)]| register(low) | register(high) << 32;
    let words = vec![0, pair(&idr0, &idr1), pair(&[], &idr3), pair(&[], &idr5), pair(&[], &aidr)];
    assert_eq!(info(IommuKind::SmmuV3), (uapi::HW_INFO_TYPE_ARM_SMMUV3, words));
    assert_eq!(info(IommuKind::RiscV), (uapi::HW_INFO_TYPE_NONE, vec![]));
}

#[test]
fn a_table_of_a_guest_is_vtds() {
    let (setup, _device) = behind(IommuKind::Vtd);
    let alloc = |data: uapi::HwptVtdS1, data_type| {
        setup.put_data(data.as_bytes());
        let data_len = size_of::<uapi::HwptVtdS1>() as u32;
        let pt_id = setup.objects.parent;
        let request = uapi::HwptAlloc { pt_id, data_type, data_len, data_uptr: DATA, ..setup.hwpt_alloc() };
        setup.ask(uapi::HWPT_ALLOC, request).map(|made| made.out_hwpt_id)
    };
    let table = uapi::HwptVtdS1 { pgtbl_addr: 0x1000, addr_width: 48, ..Default::default() };
    let vtd = uapi::HWPT_DATA_VTD_S1;
    let all = uapi::VTD_S1_SRE | uapi::VTD_S1_EAFE | uapi::VTD_S1_WPE;
    for good in [table, uapi::HwptVtdS1 { addr_width: 57, ..table }, uapi::HwptVtdS1 { flags: all, ..table }] {
        assert!(alloc(good, vtd).is_ok(), "{good:?}");
    }
    for (bad, data_type, errno) in [
        (uapi::HwptVtdS1 { addr_width: 39, ..table }, vtd, Errno::INVAL),
        (uapi::HwptVtdS1 { flags: all + 1 + all, ..table }, vtd, Errno::OPNOTSUPP),
        (uapi::HwptVtdS1 { reserved: 1, ..table }, vtd, Errno::OPNOTSUPP),
        (table, vtd + 1, Errno::OPNOTSUPP),
    ] {
        assert_eq!(alloc(bad, data_type), Err(errno), "{bad:?}");
    }
}

#[test]
fn what_is_cached_of_a_guests_table_is_forgotten_as_vtd_says() {
    let (setup, _device) = behind(IommuKind::Vtd);
    setup.put_data(uapi::HwptVtdS1 { pgtbl_addr: 0x1000, addr_width: 48, ..Default::default() }.as_bytes());
    let nested = uapi::HwptAlloc {
        pt_id: setup.objects.parent,
        data_type: uapi::HWPT_DATA_VTD_S1,
        data_len: size_of::<uapi::HwptVtdS1>() as u32,
        data_uptr: DATA,
        ..setup.hwpt_alloc()
    };
    let hwpt_id = setup.ask(uapi::HWPT_ALLOC, nested).unwrap().out_hwpt_id;
    // What comes of entries, and how many were done.
    let invalidate = |entries: &[uapi::HwptVtdS1Invalidate], data_type| {
        setup.put_data(entries.as_bytes());
        let request = uapi::HwptInvalidate {
            size: 32,
            hwpt_id,
            data_uptr: DATA,
            data_type,
            entry_len: size_of::<uapi::HwptVtdS1Invalidate>() as u32,
            entry_num: entries.len() as u32,
            reserved: 0,
        };
        let result = setup.raw(uapi::HWPT_INVALIDATE, request.as_bytes()).map(drop);
        let back = setup.program.get(ARGUMENT, 32);
        (result, uapi::HwptInvalidate::read_from_bytes(&back).unwrap().entry_num)
    };
    let vtd = uapi::HWPT_INVALIDATE_DATA_VTD_S1;
    let page = uapi::HwptVtdS1Invalidate { addr: PAGE, npages: 1, ..Default::default() };
    let all = uapi::HwptVtdS1Invalidate { addr: 0, npages: u64::MAX, ..Default::default() };
    let leaf = uapi::HwptVtdS1Invalidate { flags: uapi::VTD_INV_FLAGS_LEAF, ..page };
    let far = uapi::HwptVtdS1Invalidate { npages: u64::MAX / PAGE, ..page };
    assert_eq!(invalidate(&[page, all, leaf, far], vtd), (Ok(()), 4));
    let refused = [
        (uapi::HwptVtdS1Invalidate { addr: PAGE, ..all }, Errno::INVAL),
        (uapi::HwptVtdS1Invalidate { addr: PAGE + 1, ..page }, Errno::INVAL),
        (uapi::HwptVtdS1Invalidate { flags: 2, ..page }, Errno::OPNOTSUPP),
        (uapi::HwptVtdS1Invalidate { reserved: 1, ..page }, Errno::OPNOTSUPP),
    ];
    for (bad, errno) in refused {
        assert_eq!(invalidate(&[page, bad, page], vtd), (Err(errno), 1), "{bad:?}");
    }
    assert_eq!(invalidate(&[page], vtd + 1), (Err(Errno::INVAL), 0));
}

#[test]
fn other_iommus_take_no_guests_table_from_linuxs_requests() {
    for kind in [IommuKind::Amd, IommuKind::SmmuV3, IommuKind::RiscV] {
        let (setup, _device) = behind(kind);
        let Objects { parent, .. } = setup.objects;
        setup.put_data(&[0; 64]);
        let data = uapi::HwptAlloc { pt_id: parent, data_type: 1, data_len: 24, data_uptr: DATA, ..setup.hwpt_alloc() };
        assert_eq!(setup.ask(uapi::HWPT_ALLOC, data).unwrap_err(), Errno::OPNOTSUPP, "{kind:?}");
        assert_eq!(setup.ask(uapi::VIOMMU_ALLOC, setup.viommu_alloc()).unwrap_err(), Errno::OPNOTSUPP, "{kind:?}");
        let size = size_of::<own::HwptAlloc>() as u32;
        let nested = own::HwptAlloc { size, pt_id: parent, kind: own::HWPT_NESTED, root: PAGE, ..Default::default() };
        let hwpt_id = setup.ask(own::HWPT_ALLOC, nested).unwrap().out_hwpt_id;
        let invalidate = uapi::HwptInvalidate {
            size: 32,
            hwpt_id,
            data_uptr: DATA,
            entry_len: 24,
            entry_num: 1,
            ..Default::default()
        };
        let refused = setup.ask(uapi::HWPT_INVALIDATE, invalidate).map(|answer| answer.entry_num);
        assert_eq!(refused, Err(Errno::OPNOTSUPP), "{kind:?}");
    }
}
