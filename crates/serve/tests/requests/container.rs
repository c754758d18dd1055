//! VFIO's old requests on `/dev/iommu`: what a container tells of itself.

use ioasid_uapi::iommufd as uapi;
use ioasid_uapi::vfio::CapHeader;
use ioasid_uapi::vfio::container as vfio;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::setup::{ARGUMENT, DATA, Setup};

const WHOLE: usize = size_of::<vfio::Type1Info>();

/// A container whose address space is that of the setup.
fn container() -> Setup {
    let setup = Setup::new();
    let ioas_id = setup.objects.ioas;
    let set = uapi::VfioIoas { size: 12, ioas_id, op: uapi::VFIO_IOAS_SET, reserved: 0 };
    setup.raw(uapi::VFIO_IOAS, set.as_bytes()).unwrap();
    setup
}

/// What it tells a program with so much room.
fn info(setup: &Setup, argsz: u32) -> (vfio::Type1Info, Vec<u8>) {
    setup.program.put(ARGUMENT, &[0xaa; 512]);
    let known = (argsz as usize).min(WHOLE);
    let ask = vfio::Type1Info { argsz, ..Default::default() };
    setup.raw(vfio::IOMMU_GET_INFO, &ask.as_bytes()[..known]).unwrap();
    let bytes = setup.program.get(ARGUMENT, 512);
    (vfio::Type1Info::read_from_bytes(&bytes[..WHOLE]).unwrap(), bytes)
}

#[test]
fn a_container_tells_its_page_sizes_and_a_chain_of_capabilities() {
    let setup = container();
    let (told, bytes) = info(&setup, 512);
    assert_eq!((told.flags, told.cap_offset), (0b11, WHOLE as u32));
    assert_eq!(told.iova_pgsizes & (told.iova_pgsizes - 1), told.iova_pgsizes - 4096, "4 KiB is the smallest");
    let header = |at: usize| CapHeader::read_from_prefix(&bytes[at..]).unwrap().0;
    let first = header(WHOLE);
    assert_eq!((first.id, first.version), (vfio::TYPE1_INFO_DMA_AVAIL, 1));
    let (available, _) = vfio::Type1InfoDmaAvail::read_from_prefix(&bytes[WHOLE..]).unwrap();
    assert_eq!(available.avail, u32::MAX);
    let at = first.next as usize;
    assert!(at >= WHOLE + size_of::<vfio::Type1InfoDmaAvail>() && at.is_multiple_of(8));
    let second = header(at);
    assert_eq!((second.id, second.version, second.next), (vfio::TYPE1_INFO_CAP_IOVA_RANGE, 1, 0));
    let (count, rest) = vfio::Type1InfoCapIovaRange::read_from_prefix(&bytes[at..]).unwrap();
    let (ranges, _) = <[vfio::IovaRange]>::ref_from_prefix_with_elems(rest, count.nr_iovas as usize).unwrap();
    // The same as by the other request.
    let ioas_id = setup.objects.ioas;
    let ask = uapi::IoasIovaRanges { size: 32, ioas_id, num_iovas: 8, allowed_iovas: DATA, ..Default::default() };
    let other = setup.ask(uapi::IOAS_IOVA_RANGES, ask).unwrap();
    let expected = setup.program.get(DATA, ranges.len() * 16);
    assert_eq!((ranges.len(), ranges.as_bytes()), (other.num_iovas as usize, &expected[..]));
    assert_eq!(told.argsz as usize, at + size_of::<vfio::Type1InfoCapIovaRange>() + expected.len());
    assert_eq!(bytes[told.argsz as usize], 0xaa, "and nothing behind it");
}

#[test]
fn with_too_little_room_a_container_tells_how_much_it_takes() {
    let setup = container();
    let needed = info(&setup, 512).0.argsz;
    let (told, bytes) = info(&setup, needed - 1);
    assert_eq!((told.argsz, told.cap_offset), (needed, 0));
    assert_eq!(bytes[WHOLE], 0xaa, "no part of a capability");
    assert_eq!(info(&setup, needed).0.cap_offset, WHOLE as u32);
    // A program that knows no capabilities.
    let (told, bytes) = info(&setup, 16);
    assert_eq!((told.argsz, told.flags), (needed, 0b11));
    assert_eq!(bytes[16], 0xaa);
    let short = vfio::Type1Info { argsz: 15, ..Default::default() };
    assert_eq!(setup.raw(vfio::IOMMU_GET_INFO, short.as_bytes()), Err(Errno::INVAL));
}
