//! Queues that programs read: what each field tells, and what an answer does.

use std::sync::Arc;

use ioasid_serve::request::given::{GivenFile, Ready};
use ioasid_uapi::iommufd as uapi;
use ioasid_uapi::iommufd::selftest::{self as test, command, data};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::setup::{DATA, Objects, Setup};

const FAULT: usize = size_of::<uapi::HwptPgfault>();

/// A guest's page table, of which page requests go to the fault queue.
fn table_with_faults(setup: &Setup, dev_id: u32, flags: u32) -> u32 {
    let nested = uapi::HwptAlloc {
        flags: uapi::HWPT_FAULT_ID_VALID | flags,
        dev_id,
        pt_id: setup.objects.parent,
        fault_id: setup.objects.fault_queue,
        data_type: data::HWPT_DATA_SELFTEST,
        data_len: 8,
        data_uptr: DATA,
        ..setup.hwpt_alloc()
    };
    setup.ask(uapi::HWPT_ALLOC, nested).unwrap().out_hwpt_id
}

/// A setup in which page requests of the mock device go to the fault queue, and that.
fn with_faults() -> (Setup, Arc<dyn GivenFile>) {
    let setup = Setup::new();
    let Objects { stdev, device, .. } = setup.objects;
    let pt_id = table_with_faults(&setup, device, 0);
    setup.test(test::TEST_OP_MOCK_DOMAIN_REPLACE, stdev, command::MockDomainReplace { pt_id }).unwrap();
    let first = setup.program.descriptors()[0];
    let file = setup.program.given(first).unwrap();
    (setup, file)
}

fn fault(setup: &Setup, grpid: u32) {
    let body = command::TriggerIopf { dev_id: setup.objects.device, grpid, perm: 3, addr: 0x1234_5000, pasid: 0 };
    setup.test(test::TEST_OP_TRIGGER_IOPF, 0, body).unwrap();
}

fn read_fault(file: &dyn GivenFile) -> uapi::HwptPgfault {
    uapi::HwptPgfault::read_from_bytes(&file.read(FAULT).unwrap()).unwrap()
}

#[test]
fn a_fault_queue_tells_who_needs_what_and_where() {
    let (setup, file) = with_faults();
    assert_eq!(file.poll(None), Ready { read: false, write: true });
    assert!(file.read(FAULT).unwrap().is_empty());
    fault(&setup, 7);
    assert_eq!(file.poll(None), Ready { read: true, write: true });
    assert_eq!(file.read(FAULT - 1), Err(Errno::SPIPE));
    let found = read_fault(&*file);
    let expected = uapi::HwptPgfault {
        flags: uapi::PGFAULT_FLAGS_LAST_PAGE,
        dev_id: setup.objects.device,
        grpid: 7,
        perm: 3,
        addr: 0x1234_5000,
        cookie: found.cookie,
        ..Default::default()
    };
    assert_eq!(found, expected);
    assert_eq!(file.poll(None), Ready { read: false, write: true });
    fault(&setup, 8);
    let other = read_fault(&*file);
    assert_eq!(other.grpid, 8);
    assert_ne!(other.cookie, found.cookie);
}

#[test]
fn an_answer_is_taken_once_and_only_if_it_is_one() {
    let (setup, file) = with_faults();
    let response = |cookie, code| uapi::HwptPageResponse { cookie, code };
    fault(&setup, 1);
    fault(&setup, 2);
    let cookies = [read_fault(&*file).cookie, read_fault(&*file).cookie];
    let write = |responses: &[uapi::HwptPageResponse]| {
        file.write(&responses.iter().flat_map(|one| one.as_bytes().to_vec()).collect::<Vec<_>>())
    };
    assert_eq!(file.write(&[0; 7]), Err(Errno::SPIPE));
    assert_eq!(write(&[]), Ok(0));
    assert_eq!(write(&[response(cookies[0], 7)]), Err(Errno::INVAL), "no code of an answer");
    assert_eq!(write(&[response(cookies[0] + 100, 0)]), Err(Errno::INVAL), "no such group");
    // As far as they are answers.
    let both = [
        response(cookies[1], uapi::PAGE_RESP_INVALID),
        response(cookies[1], uapi::PAGE_RESP_SUCCESS),
        response(cookies[0], uapi::PAGE_RESP_SUCCESS),
    ];
    assert_eq!(write(&both), Ok(size_of::<uapi::HwptPageResponse>()));
    assert_eq!(write(&both[2..]), Ok(size_of::<uapi::HwptPageResponse>()));
    assert_eq!(write(&both[2..]), Err(Errno::INVAL), "it was answered");
}

#[test]
fn a_fault_with_a_pasid_tells_it() {
    let (setup, file) = with_faults();
    let flags = command::MockDomainFlags { dev_flags: test::MOCK_FLAGS_DEVICE_PASID, ..Default::default() };
    let made = setup.test(test::TEST_OP_MOCK_DOMAIN_FLAGS, setup.objects.ioas, flags).unwrap();
    let dev_id = made.out_idev_id;
    let pt_id = table_with_faults(&setup, dev_id, uapi::HWPT_ALLOC_PASID);
    let replace = command::MockDomainReplace { pt_id };
    setup.test(test::TEST_OP_MOCK_DOMAIN_REPLACE, made.out_stdev_id, replace).unwrap();
    setup.test(test::TEST_OP_PASID_ATTACH, made.out_stdev_id, command::PasidAttach { pasid: 9, pt_id }).unwrap();
    let body = command::TriggerIopf { dev_id, grpid: 3, perm: 1, addr: 0x8000, pasid: 9 };
    setup.test(test::TEST_OP_TRIGGER_IOPF, 0, body).unwrap();
    let found = read_fault(&*file);
    let flags = uapi::PGFAULT_FLAGS_LAST_PAGE | uapi::PGFAULT_FLAGS_PASID_VALID;
    assert_eq!((found.flags, found.dev_id, found.pasid, found.perm), (flags, dev_id, 9, 1));
}
