//! The requests of Linux's own tests: what comes back of them.

use ioasid_serve::request::file::{Mapping, OpenFile};
use ioasid_uapi::iommufd as uapi;
use ioasid_uapi::iommufd::selftest::{self as test, command, data};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::setup::{DATA, IOVA, MAPPED, Objects, PAGE, Setup};

#[test]
fn pages_are_pinned_as_the_flags_say() {
    let setup = Setup::new();
    let access = *setup.program.descriptors().last().unwrap() as u32;
    let pin = |body| setup.test(test::TEST_OP_ACCESS_PAGES, access, body);
    let pages = command::AccessPages { iova: IOVA, length: PAGE, uptr: MAPPED, ..Default::default() };
    let first = pin(pages).unwrap().out_access_pages_id;
    let write = command::AccessPages { flags: test::MOCK_FLAGS_ACCESS_WRITE, ..pages };
    assert_eq!(pin(write).unwrap().out_access_pages_id, first + 1);
    assert_eq!(pin(command::AccessPages { flags: 2, ..pages }), Err(Errno::OPNOTSUPP));
    assert_eq!(pin(command::AccessPages { uptr: MAPPED + PAGE, ..pages }), Err(Errno::BADE), "that is not there");
    assert_eq!(pin(command::AccessPages { iova: IOVA + 4 * PAGE, ..pages }), Err(Errno::NOENT));
}

#[test]
fn an_attach_with_a_pasid_tells_the_table() {
    let setup = Setup::new();
    let Objects { ioas, .. } = setup.objects;
    let flags = command::MockDomainFlags { dev_flags: test::MOCK_FLAGS_DEVICE_PASID, ..Default::default() };
    let made = setup.test(test::TEST_OP_MOCK_DOMAIN_FLAGS, ioas, flags).unwrap();
    let alloc = uapi::HwptAlloc { flags: uapi::HWPT_ALLOC_PASID, dev_id: made.out_idev_id, ..setup.hwpt_alloc() };
    let hwpt = setup.ask(uapi::HWPT_ALLOC, alloc).unwrap().out_hwpt_id;
    // Its other transactions have to go to a table for PASIDs first.
    let replace = command::MockDomainReplace { pt_id: hwpt };
    setup.test(test::TEST_OP_MOCK_DOMAIN_REPLACE, made.out_stdev_id, replace).unwrap();
    let attach = |pt_id| {
        let body = command::PasidAttach { pasid: 5, pt_id };
        setup.test(test::TEST_OP_PASID_ATTACH, made.out_stdev_id, body)
    };
    assert_eq!(attach(hwpt).map(|told| (told.pasid, told.pt_id)), Ok((5, hwpt)));
    assert_eq!(attach(hwpt), Err(Errno::BUSY));
    let other = setup.ask(uapi::HWPT_ALLOC, alloc).unwrap().out_hwpt_id;
    let replace = command::PasidReplace { pasid: 5, pt_id: other };
    let told = setup.test(test::TEST_OP_PASID_REPLACE, made.out_stdev_id, replace).unwrap();
    assert_eq!((told.pasid, told.pt_id), (5, other));
}

#[test]
fn registers_of_a_virtual_iommu_are_where_it_says() {
    let setup = Setup::new();
    setup.put_data(data::Viommu { in_data: 7, ..Default::default() }.as_bytes());
    let viommu = uapi::ViommuAlloc { data_uptr: DATA, ..setup.viommu_alloc() };
    let id = setup.ask(uapi::VIOMMU_ALLOC, viommu).unwrap().out_viommu_id;
    let told = data::Viommu::read_from_bytes(&setup.program.get(DATA, size_of::<data::Viommu>())).unwrap();
    assert_eq!((told.out_data, told.out_mmap_length), (7, 2 * PAGE));
    let map = |offset| {
        let mapping = Mapping { offset, length: 2 * PAGE, shared: true, execute: false };
        OpenFile::check_mmap(&setup.file, mapping).unwrap()
    };
    assert_eq!(map(told.out_mmap_offset), Ok(()));
    assert_eq!(map(told.out_mmap_offset + PAGE), Err(Errno::NXIO), "nothing is behind it");
    setup.file.store(told.out_mmap_offset + 8, &[1, 2, 3, 4]).unwrap();
    let mut read = [0; 4];
    setup.file.load(told.out_mmap_offset + 8, &mut read).unwrap();
    assert_eq!(read, [1, 2, 3, 4]);
    // It is gone with the virtual IOMMU.
    setup.ask(uapi::DESTROY, uapi::Destroy { size: 8, id }).unwrap();
    assert_eq!(map(told.out_mmap_offset), Err(Errno::NXIO));
}

#[test]
fn what_a_nested_table_has_cached_is_forgotten_entry_by_entry() {
    let setup = Setup::new();
    setup.put_data(data::Hwpt { iotlb: 0x1234, ..Default::default() }.as_bytes());
    let nested = uapi::HwptAlloc {
        pt_id: setup.objects.parent,
        data_type: data::HWPT_DATA_SELFTEST,
        data_len: 8,
        data_uptr: DATA,
        ..setup.hwpt_alloc()
    };
    let hwpt_id = setup.ask(uapi::HWPT_ALLOC, nested).unwrap().out_hwpt_id;
    let is = |id, iotlb| setup.test(test::TEST_OP_MD_CHECK_IOTLB, hwpt_id, command::CheckIotlb { id, iotlb }).map(drop);
    let forget = |flags, iotlb_id| {
        setup.put_data(data::HwptInvalidate { flags, iotlb_id }.as_bytes());
        let request = uapi::HwptInvalidate {
            size: 32,
            hwpt_id,
            data_uptr: DATA,
            data_type: data::HWPT_INVALIDATE_DATA_SELFTEST,
            entry_len: 8,
            entry_num: 1,
            reserved: 0,
        };
        setup.ask(uapi::HWPT_INVALIDATE, request).unwrap();
    };
    for entry in 0..test::MOCK_NESTED_DOMAIN_IOTLB_NUM {
        assert_eq!((is(entry, 0x1234), is(entry, 0)), (Ok(()), Err(Errno::INVAL)));
    }
    assert_eq!(is(test::MOCK_NESTED_DOMAIN_IOTLB_NUM, 0x1234), Err(Errno::INVAL));
    forget(0, 2);
    assert_eq!((is(1, 0x1234), is(2, 0), is(3, 0x1234)), (Ok(()), Ok(()), Ok(())));
    forget(data::TEST_INVALIDATE_FLAG_ALL, 0);
    assert_eq!((is(0, 0), is(3, 0)), (Ok(()), Ok(())));
}

#[test]
fn an_unmap_tells_how_much_there_was() {
    let setup = Setup::new();
    setup.ask(uapi::IOAS_MAP, Setup::map(&setup.objects, IOVA + 0x10_0000)).unwrap();
    let unmap = uapi::IoasUnmap { size: 24, ioas_id: setup.objects.ioas, iova: IOVA + 0xf_0000, length: 0x10_0000 };
    assert_eq!(setup.ask(uapi::IOAS_UNMAP, unmap).unwrap(), uapi::IoasUnmap { length: 4 * PAGE, ..unmap });
}

#[test]
fn a_device_without_pasids_has_none_to_attach() {
    let setup = Setup::new();
    let body = command::PasidAttach { pasid: 5, pt_id: setup.objects.ioas };
    assert_eq!(setup.test(test::TEST_OP_PASID_ATTACH, setup.objects.stdev, body), Err(Errno::INVAL));
}
