//! Every request, with everything failing that can fail on its way: the first, the second, and so on, one at a time.
//!
//! Whatever fails, nothing is changed and nothing is kept; and when nothing fails any more, the request does exactly
//! what it does where nothing ever failed.

use ioasid_uapi::iommufd as uapi;
use ioasid_uapi::iommufd::selftest::{self as test, TestCmd, command, data};
use ioasid_uapi::vfio::container as vfio;
use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::extra;
use super::setup::{ARGUMENT, DATA, IOVA, MAPPED, PAGE, Setup, State};

/// Makes what has to be there, and returns the request's number and its argument.
type Make = dyn Fn(&Setup) -> (u32, Vec<u8>);

pub struct Case {
    pub name: &'static str,
    pub make: Box<Make>,
}

pub fn case<T: IntoBytes + Immutable>(name: &'static str, number: u32, make: impl Fn(&Setup) -> T + 'static) -> Case {
    Case { name, make: Box::new(move |setup| (number, make(setup).as_bytes().to_vec())) }
}

fn test_case<T: IntoBytes + Immutable>(
    name: &'static str,
    op: u32,
    make: impl Fn(&Setup) -> (u32, T) + 'static,
) -> Case {
    case(name, test::TEST_CMD, move |setup| {
        let (id, body) = make(setup);
        let mut request = TestCmd { size: size_of::<TestCmd>() as u32, op, id, ..TestCmd::default() };
        request.body.as_mut_bytes()[..size_of::<T>()].copy_from_slice(body.as_bytes());
        request
    })
}

/// Puts `value` where requests find what their arguments point to.
fn put<T: IntoBytes + Immutable>(setup: &Setup, value: &T) {
    setup.put_data(value.as_bytes());
}

/// A file in which nothing needs what is mapped, with one more area.
fn two_areas(setup: &Setup) {
    let map = Setup::map(&setup.objects, IOVA + 0x10_0000);
    setup.ask(uapi::IOAS_MAP, map).unwrap();
}

fn destroy(name: &'static str, id: impl Fn(&Setup) -> u32 + 'static) -> Case {
    case(name, uapi::DESTROY, move |setup| uapi::Destroy { size: 8, id: id(setup) })
}

fn address_spaces() -> Vec<Case> {
    let ranges = |num_iovas| {
        move |setup: &Setup| uapi::IoasIovaRanges {
            size: 32,
            ioas_id: setup.objects.ioas,
            num_iovas,
            allowed_iovas: DATA,
            ..Default::default()
        }
    };
    let map = |flags| {
        move |setup: &Setup| {
            let map = Setup::map(&setup.objects, IOVA + 0x10_0000);
            uapi::IoasMap { flags, ..map }
        }
    };
    let option = |op, option_id, val64| {
        move |setup: &Setup| {
            let object_id = if option_id == uapi::OPTION_HUGE_PAGES { setup.objects.empty } else { 0 };
            uapi::IommuOption { size: 24, option_id, op, object_id, val64, ..Default::default() }
        }
    };
    vec![
        case("IOAS_ALLOC", uapi::IOAS_ALLOC, |_| uapi::IoasAlloc { size: 12, ..Default::default() }),
        case("IOAS_IOVA_RANGES", uapi::IOAS_IOVA_RANGES, ranges(8)),
        case("IOAS_IOVA_RANGES without room", uapi::IOAS_IOVA_RANGES, ranges(0)),
        case("IOAS_ALLOW_IOVAS", uapi::IOAS_ALLOW_IOVAS, |setup| {
            let range = |start, last| uapi::IovaRange { start, last };
            put(setup, &[range(IOVA, IOVA + 0xff_ffff), range(IOVA + 0x200_0000, IOVA + 0x2ff_ffff)]);
            uapi::IoasAllowIovas {
                size: 24,
                ioas_id: setup.objects.ioas,
                num_iovas: 2,
                allowed_iovas: DATA,
                ..Default::default()
            }
        }),
        case("IOAS_MAP", uapi::IOAS_MAP, map(7)),
        case("IOAS_MAP anywhere", uapi::IOAS_MAP, map(6)),
        case("IOAS_MAP_FILE", uapi::IOAS_MAP_FILE, |setup| setup.map_file()),
        case("IOAS_COPY", uapi::IOAS_COPY, |setup| uapi::IoasCopy {
            size: size_of::<uapi::IoasCopy>() as u32,
            flags: 6,
            dst_ioas_id: setup.objects.empty,
            src_ioas_id: setup.objects.ioas,
            length: 2 * PAGE,
            dst_iova: 0,
            src_iova: IOVA,
        }),
        case("IOAS_COPY within", uapi::IOAS_COPY, |setup| uapi::IoasCopy {
            size: size_of::<uapi::IoasCopy>() as u32,
            flags: 7,
            dst_ioas_id: setup.objects.ioas,
            src_ioas_id: setup.objects.ioas,
            length: 4 * PAGE,
            dst_iova: IOVA + 0x20_0000,
            src_iova: IOVA,
        }),
        case("IOAS_UNMAP", uapi::IOAS_UNMAP, |setup| {
            two_areas(setup);
            uapi::IoasUnmap { size: 24, ioas_id: setup.objects.ioas, iova: IOVA + 0x10_0000, length: 4 * PAGE }
        }),
        case("IOAS_UNMAP of more than is mapped", uapi::IOAS_UNMAP, |setup| {
            two_areas(setup);
            uapi::IoasUnmap { size: 24, ioas_id: setup.objects.ioas, iova: IOVA + 0x8_0000, length: 0x80_0000 }
        }),
        case("OPTION to get", uapi::OPTION, option(uapi::OPTION_OP_GET, uapi::OPTION_HUGE_PAGES, 0)),
        case("OPTION to set", uapi::OPTION, option(uapi::OPTION_OP_SET, uapi::OPTION_HUGE_PAGES, 0)),
        case("OPTION of the limit", uapi::OPTION, option(uapi::OPTION_OP_GET, uapi::OPTION_RLIMIT_MODE, 0)),
        case("IOAS_NOIOMMU_GET_PA", uapi::IOAS_NOIOMMU_GET_PA, |setup| uapi::IoasNoiommuGetPa {
            size: 40,
            ioas_id: setup.objects.ioas,
            iova: IOVA,
            length: PAGE,
            ..Default::default()
        }),
        case("IOAS_CHANGE_PROCESS", uapi::IOAS_CHANGE_PROCESS, |_| uapi::IoasChangeProcess { size: 8, reserved: 0 }),
    ]
}

fn page_tables() -> Vec<Case> {
    let alloc = |flags| move |setup: &Setup| uapi::HwptAlloc { flags, ..setup.hwpt_alloc() };
    let nested = |on_viommu: bool| {
        move |setup: &Setup| uapi::HwptAlloc {
            flags: uapi::HWPT_FAULT_ID_VALID,
            fault_id: setup.objects.fault_queue,
            pt_id: if on_viommu { setup.objects.viommu } else { setup.objects.parent },
            data_type: data::HWPT_DATA_SELFTEST,
            data_len: 8,
            data_uptr: DATA,
            ..setup.hwpt_alloc()
        }
    };
    let bitmap = |flags| {
        move |setup: &Setup| {
            let hwpt_id = setup.objects.tracked;
            let track = uapi::HwptSetDirtyTracking { size: 16, flags: 1, hwpt_id, reserved: 0 };
            setup.ask(uapi::HWPT_SET_DIRTY_TRACKING, track).unwrap();
            put(setup, &0b1010_u64);
            let dirty = command::Dirty {
                iova: IOVA,
                length: 4 * PAGE,
                page_size: PAGE,
                uptr: DATA,
                ..command::Dirty::default()
            };
            setup.test(test::TEST_OP_DIRTY, hwpt_id, dirty).unwrap();
            put(setup, &0_u64);
            uapi::HwptGetDirtyBitmap {
                size: 48,
                hwpt_id,
                flags,
                iova: IOVA,
                length: 4 * PAGE,
                page_size: PAGE,
                data: DATA,
                ..Default::default()
            }
        }
    };
    let invalidate = |viommu: bool| {
        move |setup: &Setup| {
            put(setup, &[0_u64; 4]);
            uapi::HwptInvalidate {
                size: 32,
                hwpt_id: if viommu { setup.objects.viommu } else { setup.objects.nested },
                data_uptr: DATA,
                data_type: if viommu {
                    data::VIOMMU_INVALIDATE_DATA_SELFTEST
                } else {
                    data::HWPT_INVALIDATE_DATA_SELFTEST
                },
                entry_len: if viommu { 16 } else { 8 },
                entry_num: 2,
                reserved: 0,
            }
        }
    };
    vec![
        case("HWPT_ALLOC", uapi::HWPT_ALLOC, alloc(0)),
        case("HWPT_ALLOC of a parent", uapi::HWPT_ALLOC, alloc(uapi::HWPT_ALLOC_NEST_PARENT)),
        case("HWPT_ALLOC with tracking", uapi::HWPT_ALLOC, alloc(uapi::HWPT_ALLOC_DIRTY_TRACKING)),
        case("HWPT_ALLOC that nests", uapi::HWPT_ALLOC, nested(false)),
        case("HWPT_ALLOC that nests on a virtual IOMMU", uapi::HWPT_ALLOC, nested(true)),
        case("GET_HW_INFO", uapi::GET_HW_INFO, |setup| uapi::HwInfo {
            size: 40,
            dev_id: setup.objects.device,
            data_len: 16,
            data_uptr: DATA,
            ..Default::default()
        }),
        case("HWPT_SET_DIRTY_TRACKING", uapi::HWPT_SET_DIRTY_TRACKING, |setup| uapi::HwptSetDirtyTracking {
            size: 16,
            flags: 1,
            hwpt_id: setup.objects.tracked,
            reserved: 0,
        }),
        case("HWPT_GET_DIRTY_BITMAP", uapi::HWPT_GET_DIRTY_BITMAP, bitmap(0)),
        case("HWPT_GET_DIRTY_BITMAP that clears nothing", uapi::HWPT_GET_DIRTY_BITMAP, bitmap(1)),
        case("HWPT_INVALIDATE", uapi::HWPT_INVALIDATE, invalidate(false)),
        case("HWPT_INVALIDATE of a virtual IOMMU", uapi::HWPT_INVALIDATE, invalidate(true)),
        case("FAULT_QUEUE_ALLOC", uapi::FAULT_QUEUE_ALLOC, |_| uapi::FaultAlloc { size: 16, ..Default::default() }),
        destroy("DESTROY of an address space", |setup| setup.objects.empty),
        destroy("DESTROY of a page table", |setup| setup.objects.tracked),
        destroy("DESTROY of a nested page table", |setup| setup.objects.nested),
    ]
}

fn virtual_iommus() -> Vec<Case> {
    let second = |setup: &Setup| setup.ask(uapi::VIOMMU_ALLOC, setup.viommu_alloc()).unwrap().out_viommu_id;
    let gone = |setup: &Setup, id| {
        setup.ask(uapi::DESTROY, uapi::Destroy { size: 8, id }).unwrap();
    };
    vec![
        case("VIOMMU_ALLOC", uapi::VIOMMU_ALLOC, |setup| setup.viommu_alloc()),
        case("VDEVICE_ALLOC", uapi::VDEVICE_ALLOC, move |setup| {
            gone(setup, setup.objects.virtual_device);
            setup.vdevice_alloc()
        }),
        case("VEVENTQ_ALLOC", uapi::VEVENTQ_ALLOC, move |setup| uapi::VeventqAlloc {
            viommu_id: second(setup),
            ..setup.veventq_alloc()
        }),
        case("HW_QUEUE_ALLOC", uapi::HW_QUEUE_ALLOC, move |setup| {
            gone(setup, setup.objects.hw_queue);
            setup.hw_queue_alloc()
        }),
        destroy("DESTROY of a virtual IOMMU", second),
        destroy("DESTROY of a virtual device", |setup| setup.objects.virtual_device),
        destroy("DESTROY of a hardware queue", |setup| setup.objects.hw_queue),
    ]
}

fn old_requests() -> Vec<Case> {
    let choose = |op| {
        move |setup: &Setup| {
            chosen(setup);
            uapi::VfioIoas { size: 12, ioas_id: setup.objects.empty, op, reserved: 0 }
        }
    };
    fn chosen(setup: &Setup) {
        let choice = uapi::VfioIoas { size: 12, ioas_id: setup.objects.ioas, op: uapi::VFIO_IOAS_SET, reserved: 0 };
        setup.ask(uapi::VFIO_IOAS, choice).unwrap();
    }
    let unmap = |size| {
        move |setup: &Setup| {
            chosen(setup);
            two_areas(setup);
            vfio::Type1DmaUnmap { argsz: 24, flags: 0, iova: IOVA + 0x10_0000, size }
        }
    };
    vec![
        case("VFIO_IOAS to get", uapi::VFIO_IOAS, choose(uapi::VFIO_IOAS_GET)),
        case("VFIO_IOAS to set", uapi::VFIO_IOAS, choose(uapi::VFIO_IOAS_SET)),
        case("VFIO_IOAS to clear", uapi::VFIO_IOAS, choose(uapi::VFIO_IOAS_CLEAR)),
        case("VFIO_IOMMU_GET_INFO", vfio::IOMMU_GET_INFO, |setup| {
            chosen(setup);
            vfio::Type1Info { argsz: 256, ..Default::default() }
        }),
        case("VFIO_IOMMU_MAP_DMA", vfio::IOMMU_MAP_DMA, |setup| {
            chosen(setup);
            vfio::Type1DmaMap { argsz: 32, flags: 3, vaddr: MAPPED, iova: IOVA + 0x20_0000, size: PAGE }
        }),
        case("VFIO_IOMMU_UNMAP_DMA", vfio::IOMMU_UNMAP_DMA, unmap(4 * PAGE)),
        case("VFIO_IOMMU_UNMAP_DMA of more than is mapped", vfio::IOMMU_UNMAP_DMA, unmap(64 * PAGE)),
    ]
}

/// What programs do with devices, by way of the test device.
fn devices() -> Vec<Case> {
    let map = |setup: &Setup| {
        setup.ask(uapi::IOAS_MAP, uapi::IoasMap { ioas_id: setup.objects.empty, ..Setup::map(&setup.objects, IOVA) })
    };
    vec![
        test_case("a device attached", test::TEST_OP_MOCK_DOMAIN, move |setup| {
            map(setup).unwrap();
            (setup.objects.empty, command::MockDomain::default())
        }),
        test_case("a device attached to another", test::TEST_OP_MOCK_DOMAIN_REPLACE, move |setup| {
            map(setup).unwrap();
            (setup.objects.stdev, command::MockDomainReplace { pt_id: setup.objects.empty })
        }),
        test_case("an access", test::TEST_OP_CREATE_ACCESS, |setup| {
            (setup.objects.ioas, command::CreateAccess { flags: 1, ..Default::default() })
        }),
        test_case("a reserved range", test::TEST_OP_ADD_RESERVED, |setup| {
            (setup.objects.ioas, command::AddReserved { start: IOVA + 0x30_0000, length: PAGE })
        }),
    ]
}

/// What a request left: its result, the argument and what it points to, and all objects.
type Left = (Result<i64, Errno>, [Vec<u8>; 2], State);

fn left(setup: &Setup, result: Result<i64, Errno>) -> Left {
    (result, [ARGUMENT, DATA].map(|address| setup.program.get(address, 256)), setup.state())
}

/// The request where nothing fails, and in how many ways it can.
fn points(Case { name, make }: &Case) -> u32 {
    let clean = Setup::new();
    let (number, bytes) = make(&clean);
    let expected = clean.raw(number, &bytes);
    let expected = left(&clean, expected);
    clean.dispose(name);

    let mut setup = Setup::new();
    let (mut number, mut bytes) = make(&setup);
    for nth in 1.. {
        setup.program.put(ARGUMENT, &bytes);
        let before = setup.state();
        let (result, unused) = ioasid_inject::failing(nth, || setup.file.ioctl(number, ARGUMENT, &setup.program));
        if unused > 0 {
            assert_eq!(left(&setup, result), expected, "{name}, after failures");
            setup.dispose(name);
            return nth - 1;
        }
        match result {
            Err(error) => {
                assert_eq!(setup.state(), before, "{name}: failure {nth} ({error}) changed something");
                setup.program.forget_reserved();
            }
            // It could do without: nothing else may be different.
            Ok(_) => {
                assert_eq!(left(&setup, result), expected, "{name}, without what failure {nth} was");
                setup.dispose(name);
                setup = Setup::new();
                (number, bytes) = make(&setup);
            }
        }
    }
    unreachable!()
}

/// All of them.
pub fn cases() -> Vec<Case> {
    [address_spaces(), page_tables(), virtual_iommus(), old_requests(), devices(), extra::cases()]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn whatever_fails_in_a_request_nothing_is_changed_and_nothing_leaks() {
    let (cases, mut all) = (cases(), 0);
    for case in &cases {
        let points = points(case);
        // The argument at least is read.
        assert!(points >= 1, "{}", case.name);
        println!("{points:4}  {}", case.name);
        all += points;
    }
    println!("{all:4}  failures in {} requests", cases.len());
}
