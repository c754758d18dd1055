//! What a device has written, by its own log (VFIO_DEVICE_FEATURE), against a list of what it was told to write.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use ioasid_uapi::vfio::feature::{self, DmaLoggingControl, DmaLoggingRange, DmaLoggingReport};

use super::modes::open;
use super::random::Random;
use super::{RING, SOURCE, TARGET};
use crate::driver::{Engine, Memory, Space, ioctl};

const PAGE: u64 = 4096;
/// Pages of the target; and those of it that are logged, in two ranges.
const PAGES: u64 = 512;
const LOGGED: [(u64, u64); 2] = [(16, 100), (200, 300)];

#[repr(C)]
struct Feature<T> {
    argsz: u32,
    flags: u32,
    data: T,
}

fn feature<T>(device: &OwnedFd, flags: u32, data: &mut T) -> Result<i32, i32>
where
    T: Copy,
{
    let mut request = Feature { argsz: size_of::<Feature<T>>() as u32, flags, data: *data };
    let done = ioctl(device, feature::DEVICE_FEATURE, &mut request);
    *data = request.data;
    done
}

fn start(device: &OwnedFd, page_size: u64, ranges: &[DmaLoggingRange]) -> Result<i32, i32> {
    let num_ranges = ranges.len() as u32;
    let mut control = DmaLoggingControl { page_size, num_ranges, reserved: 0, ranges: ranges.as_ptr() as u64 };
    feature(device, feature::DMA_LOGGING_START | feature::SET, &mut control)
}

fn stop(device: &OwnedFd) -> Result<i32, i32> {
    feature(device, feature::DMA_LOGGING_STOP | feature::SET, &mut ())
}

fn report(device: &OwnedFd, iova: u64, length: u64, page_size: u64, bitmap: &mut [u64]) -> Result<i32, i32> {
    let mut report = DmaLoggingReport { iova, length, page_size, bitmap: bitmap.as_mut_ptr() as u64 };
    feature(device, feature::DMA_LOGGING_REPORT | feature::GET, &mut report)
}

/// The pages of the target that were written.
fn written(device: &OwnedFd, first: u64, pages: u64) -> BTreeSet<u64> {
    let mut bitmap = vec![0u64; pages.div_ceil(64) as usize];
    report(device, TARGET + first * PAGE, pages * PAGE, PAGE, &mut bitmap).unwrap();
    (0..pages).filter(|page| bitmap[*page as usize / 64] >> (page % 64) & 1 == 1).map(|page| first + page).collect()
}

/// Copies to random places, and asks for random parts.
pub fn exact() {
    let space = Space::new();
    let engine = Engine::open(0, &space.iommu);
    let (ring, source) = (Memory::new(4096, libc::MAP_SHARED), Memory::new(64 << 10, libc::MAP_SHARED));
    let target = Memory::new((PAGES * PAGE) as usize, libc::MAP_SHARED);
    space.map_rw(&ring, RING);
    space.map_rw(&source, SOURCE);
    space.map_rw(&target, TARGET);
    engine.attach(space.ioas);
    let device = &engine.file;
    errors(device);
    let range = |&(page, pages): &(u64, u64)| DmaLoggingRange { iova: TARGET + page * PAGE, length: pages * PAGE };
    start(device, PAGE, &LOGGED.each_ref().map(range)).unwrap();
    let mut random = Random::new(17);
    let mut model = BTreeSet::new();
    for _ in 0..3000 {
        let longest = if random.below(4) == 0 { 64 << 10 } else { 300 };
        let length = 1 + random.below(longest);
        let offset = random.below(PAGES * PAGE - length);
        engine.copy(&ring, RING, SOURCE, TARGET + offset, length as usize).unwrap();
        let pages = offset / PAGE..=(offset + length - 1) / PAGE;
        model.extend(pages.filter(|page| LOGGED.iter().any(|(first, count)| (*first..first + count).contains(page))));
        if random.below(8) == 0 {
            let (first, pages) = (random.below(PAGES / 2), 1 + random.below(PAGES / 2));
            let wanted: BTreeSet<u64> = model.range(first..first + pages).copied().collect();
            assert_eq!(written(device, first, pages), wanted);
            model.retain(|page| !wanted.contains(page));
        }
    }
    assert_eq!(written(device, 0, PAGES), model);
    // It ends with the last file of the device.
    engine.detach();
    drop(engine);
    let engine = Engine::open(0, &space.iommu);
    assert_eq!(report(&engine.file, TARGET, PAGE, PAGE, &mut [0]), Err(libc::EINVAL));
    drop(engine);
    for (iova, memory) in [(RING, &ring), (SOURCE, &source), (TARGET, &target)] {
        space.unmap(iova, memory.length);
    }
    space.destroy();
}

fn errors(device: &OwnedFd) {
    let range = |iova, length| DmaLoggingRange { iova, length };
    let good = range(TARGET, PAGE);
    for (ranges, page, errno) in [
        (&[][..], PAGE, libc::EINVAL),
        (&[good; 257], PAGE, libc::E2BIG),
        (&[good, good], PAGE, libc::EINVAL),
        (&[good], 0, libc::EINVAL),
        (&[good], 1024, libc::EINVAL),
        (&[good], 6000, libc::EINVAL),
        (&[good], 2 << 20, libc::EINVAL),
        (&[range(TARGET + 1, PAGE)], PAGE, libc::EINVAL),
        (&[range(TARGET, 100)], PAGE, libc::EINVAL),
        (&[range(TARGET, 0)], PAGE, libc::EINVAL),
        (&[range(u64::MAX - PAGE + 1, 2 * PAGE)], PAGE, libc::EOVERFLOW),
        (&[range(0, 1 << 60)], PAGE, libc::E2BIG),
    ] {
        assert_eq!(start(device, page, ranges), Err(errno), "{ranges:?} of {page}");
    }
    let mut nowhere = DmaLoggingControl { page_size: PAGE, num_ranges: 1, reserved: 0, ranges: 64 };
    assert_eq!(feature(device, feature::DMA_LOGGING_START | feature::SET, &mut nowhere), Err(libc::EFAULT));
    let mut short = Feature { argsz: 24, flags: feature::DMA_LOGGING_START | feature::SET, data: nowhere };
    assert_eq!(ioctl(device, feature::DEVICE_FEATURE, &mut short), Err(libc::EINVAL));
    // Without a log.
    assert_eq!(report(device, TARGET, PAGE, PAGE, &mut [0]), Err(libc::EINVAL));
    assert_eq!(stop(device), Ok(0));
    start(device, PAGE, &[good]).unwrap();
    assert_eq!(start(device, PAGE, &[good]), Err(libc::EINVAL));
    for (iova, length, page, errno) in [
        (TARGET, PAGE, 2048, libc::EINVAL),
        (TARGET, PAGE, 5000, libc::EINVAL),
        (TARGET, 0, PAGE, libc::EINVAL),
        (u64::MAX - PAGE + 1, 2 * PAGE, PAGE, libc::EOVERFLOW),
    ] {
        assert_eq!(report(device, iova, length, page, &mut [0]), Err(errno));
    }
    let mut nowhere = DmaLoggingReport { iova: TARGET, length: PAGE, page_size: PAGE, bitmap: 64 };
    assert_eq!(feature(device, feature::DMA_LOGGING_REPORT | feature::GET, &mut nowhere), Err(libc::EFAULT));
    assert_eq!(stop(device), Ok(0));
    // A part of a device has no log of its own, and says so.
    if let Ok(part) = open("/dev/vfio/devices/vfio1") {
        Engine::bind(&part, &open("/dev/iommu").unwrap()).unwrap();
        assert_eq!(start(&part, PAGE, &[good]), Err(libc::ENOTTY));
    }
}
