//! The requests on a container of the old rules: what each refuses, and what they tell of written pages.

use std::os::fd::OwnedFd;

use ioasid_uapi::vfio::container::{
    self, Bitmap, DMA_MAP_FLAG_READ, DMA_MAP_FLAG_VADDR, DMA_MAP_FLAG_WRITE, DMA_UNMAP_FLAG_ALL,
    DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, DMA_UNMAP_FLAG_VADDR, DirtyBitmap, DirtyBitmapGet, Type1DmaMap, Type1DmaUnmap,
    Type1Info, Type1InfoCapMigration, Type1InfoDmaAvail,
};
use ioasid_uapi::vfio::{CapHeader, group};
use zerocopy::{FromBytes, IntoBytes};

use super::modes::{NAME, device, group_of, map, number, open, set_container, unmap};
use super::random::Random;
use super::{LENGTH, RING, SOURCE, TARGET};
use crate::driver::{Engine, Memory, ioctl};

const PAGE: u64 = 4096;
/// The most mappings of a container.
const MOST: u32 = 65535;

/// A container of a version, with the first device's group in it.
struct Setup {
    group: OwnedFd,
    container: OwnedFd,
    memory: Memory,
}

impl Setup {
    fn new(kind: u32) -> Self {
        let (group, container) = (open(&group_of(NAME)).unwrap(), open("/dev/vfio/vfio").unwrap());
        set_container(&group, &container).unwrap();
        number(&container, container::SET_IOMMU, kind.into()).unwrap();
        Self { group, container, memory: Memory::new(LENGTH, libc::MAP_SHARED) }
    }

    fn ask<T>(&self, request: u32, mut argument: T) -> Result<T, i32> {
        ioctl(&self.container, request, &mut argument).map(|_| argument)
    }

    /// Maps so many pages, of the memory's first.
    fn map(&self, iova: u64, pages: u64) {
        map(&self.container, self.memory.address, iova, pages * PAGE).unwrap();
    }

    fn unmap(&self, flags: u32, iova: u64, size: u64) -> Result<u64, i32> {
        let request = Type1DmaUnmap { argsz: 24, flags, iova, size };
        Ok(self.ask(container::IOMMU_UNMAP_DMA, request)?.size)
    }

    fn engine(&self) -> Engine {
        Engine::of(device(&self.group, NAME).unwrap())
    }

    /// How many more mappings there can be, and what precedes it.
    fn info(&self) -> (Type1Info, Type1InfoCapMigration, u32) {
        let mut room = [0u64; 64];
        room[0] = size_of_val(&room) as u64;
        let answer = self.ask(container::IOMMU_GET_INFO, room).unwrap();
        let bytes = answer.as_bytes();
        let (info, _) = Type1Info::read_from_prefix(bytes).unwrap();
        let at = |offset: u32| &bytes[offset as usize..];
        let (migration, _) = Type1InfoCapMigration::read_from_prefix(at(info.cap_offset)).unwrap();
        let (available, _) = Type1InfoDmaAvail::read_from_prefix(at(migration.header.next)).unwrap();
        assert_eq!((migration.header.id, available.header.id), (2, 3));
        let (ranges, _) = CapHeader::read_from_prefix(at(available.header.next)).unwrap();
        assert_eq!((ranges.id, ranges.next), (container::TYPE1_INFO_CAP_IOVA_RANGE, 0));
        (info, migration, available.avail)
    }
}

/// What is refused, with which error, and what works.
pub fn errors() {
    let setup = Setup::new(container::TYPE1V2_IOMMU);
    let (vaddr, read, both) = (setup.memory.address, DMA_MAP_FLAG_READ, DMA_MAP_FLAG_READ | DMA_MAP_FLAG_WRITE);
    setup.map(0x1_0000, 4);
    let good = Type1DmaMap { argsz: 32, flags: both, vaddr, iova: 0x10_0000, size: PAGE };
    let maps = [
        ("argsz", Type1DmaMap { argsz: 31, ..good }, libc::EINVAL),
        ("an unknown flag", Type1DmaMap { flags: 1 << 3, ..good }, libc::EINVAL),
        ("no access", Type1DmaMap { flags: 0, ..good }, libc::EINVAL),
        ("access and address", Type1DmaMap { flags: read | DMA_MAP_FLAG_VADDR, ..good }, libc::EINVAL),
        ("nothing", Type1DmaMap { size: 0, ..good }, libc::EINVAL),
        ("half a page", Type1DmaMap { size: PAGE / 2, ..good }, libc::EINVAL),
        ("an odd IOVA", Type1DmaMap { iova: 0x10_0010, ..good }, libc::EINVAL),
        ("an odd address", Type1DmaMap { vaddr: vaddr + 8, ..good }, libc::EINVAL),
        ("IOVA beyond the end", Type1DmaMap { iova: u64::MAX - PAGE + 1, size: 2 * PAGE, ..good }, libc::EOVERFLOW),
        ("address beyond the end", Type1DmaMap { vaddr: u64::MAX - PAGE + 1, size: 2 * PAGE, ..good }, libc::EOVERFLOW),
        ("mapped already", Type1DmaMap { iova: 0x1_3000, ..good }, libc::EEXIST),
        ("over the end of a mapping", Type1DmaMap { iova: 0x1_3000, size: 2 * PAGE, ..good }, libc::EEXIST),
        ("for interrupts", Type1DmaMap { iova: 0xfee0_0000, ..good }, libc::EINVAL),
        ("beyond the page tables", Type1DmaMap { iova: 1 << 60, ..good }, libc::EINVAL),
        ("no memory", Type1DmaMap { vaddr: PAGE, ..good }, libc::EFAULT),
        ("memory with an end", Type1DmaMap { vaddr: PAGE, size: 4 * PAGE, ..good }, libc::EFAULT),
        ("a new address of nothing", Type1DmaMap { flags: DMA_MAP_FLAG_VADDR, ..good }, libc::ENOENT),
        (
            "a new address of what has one",
            Type1DmaMap { flags: DMA_MAP_FLAG_VADDR, iova: 0x1_0000, ..good },
            libc::EINVAL,
        ),
    ];
    for (what, request, errno) in maps {
        assert_eq!(setup.ask(container::IOMMU_MAP_DMA, request).map(drop), Err(errno), "map: {what}");
    }
    let good = Type1DmaUnmap { argsz: 24, flags: 0, iova: 0x1_0000, size: 4 * PAGE };
    let bad_bitmap = DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
    let unmaps = [
        ("argsz", Type1DmaUnmap { argsz: 23, ..good }, libc::EINVAL),
        ("an unknown flag", Type1DmaUnmap { flags: 1 << 3, ..good }, libc::EINVAL),
        ("a bitmap of all", Type1DmaUnmap { flags: bad_bitmap | DMA_UNMAP_FLAG_ALL, ..good }, libc::EINVAL),
        ("a bitmap without room", Type1DmaUnmap { flags: bad_bitmap, ..good }, libc::EINVAL),
        ("all, and a range", Type1DmaUnmap { flags: DMA_UNMAP_FLAG_ALL, ..good }, libc::EINVAL),
        ("nothing", Type1DmaUnmap { size: 0, ..good }, libc::EINVAL),
        ("half a page", Type1DmaUnmap { size: PAGE / 2, ..good }, libc::EINVAL),
        ("an odd IOVA", Type1DmaUnmap { iova: 0x1_0008, ..good }, libc::EINVAL),
        ("beyond the end", Type1DmaUnmap { iova: u64::MAX - PAGE + 1, size: 2 * PAGE, ..good }, libc::EOVERFLOW),
        ("the first half", Type1DmaUnmap { size: 2 * PAGE, ..good }, libc::EINVAL),
        ("the second half", Type1DmaUnmap { iova: 0x1_2000, size: 2 * PAGE, ..good }, libc::EINVAL),
        ("the middle", Type1DmaUnmap { iova: 0x1_1000, size: PAGE, ..good }, libc::EINVAL),
    ];
    for (what, request, errno) in unmaps {
        assert_eq!(setup.ask(container::IOMMU_UNMAP_DMA, request).map(drop), Err(errno), "unmap: {what}");
    }
    let bitmap = Bitmap { pgsize: PAGE, size: 8, data: vaddr };
    let get = |bitmap, iova, size| Get::new(DirtyBitmapGet { iova, size, bitmap });
    let off = get(bitmap, 0x1_0000, 4 * PAGE);
    assert_eq!(setup.ask(container::IOMMU_DIRTY_PAGES, off).map(drop), Err(libc::EINVAL), "nothing is noted");
    setup.ask(container::IOMMU_DIRTY_PAGES, DirtyBitmap { argsz: 8, flags: 1 }).unwrap();
    let gets = [
        ("argsz", Get { head: DirtyBitmap { argsz: 47, flags: 4 }, ..get(bitmap, 0x1_0000, 4 * PAGE) }, libc::EINVAL),
        ("two requests", Get { head: DirtyBitmap { argsz: 48, flags: 5 }, ..off }, libc::EINVAL),
        ("no request", Get { head: DirtyBitmap { argsz: 48, flags: 0 }, ..off }, libc::EINVAL),
        ("an unknown one", Get { head: DirtyBitmap { argsz: 48, flags: 8 }, ..off }, libc::EINVAL),
        ("nothing", get(bitmap, 0x1_0000, 0), libc::EINVAL),
        ("half a page", get(bitmap, 0x1_0000, PAGE / 2), libc::EINVAL),
        ("half a mapping", get(bitmap, 0x1_0000, 2 * PAGE), libc::EINVAL),
        ("large pages", get(Bitmap { pgsize: 2 << 20, ..bitmap }, 0, 2 << 20), libc::EINVAL),
        ("no page size", get(Bitmap { pgsize: 0, ..bitmap }, 0x1_0000, 4 * PAGE), libc::EINVAL),
        ("a short bitmap", get(bitmap, 0x1_0000, 65 * PAGE), libc::EINVAL),
        ("an empty bitmap", get(Bitmap { size: 0, ..bitmap }, 0x1_0000, 4 * PAGE), libc::EINVAL),
        ("a bitmap of the kernel's", get(Bitmap { data: 1 << 63, ..bitmap }, 0x1_0000, 4 * PAGE), libc::EINVAL),
        ("a bitmap nowhere", get(Bitmap { data: PAGE, ..bitmap }, 0x1_0000, 4 * PAGE), libc::EFAULT),
        ("beyond the end", get(bitmap, u64::MAX - PAGE + 1, 2 * PAGE), libc::EOVERFLOW),
    ];
    for (what, request, errno) in gets {
        assert_eq!(setup.ask(container::IOMMU_DIRTY_PAGES, request).map(drop), Err(errno), "dirty: {what}");
    }
    for argsz in [0, 15] {
        let request = Type1Info { argsz, ..Default::default() };
        assert_eq!(setup.ask(container::IOMMU_GET_INFO, request).map(drop), Err(libc::EINVAL));
    }
    for request in [container::IOMMU_GET_INFO, container::IOMMU_MAP_DMA, container::IOMMU_UNMAP_DMA] {
        assert_eq!(number(&setup.container, request, PAGE), Err(libc::EFAULT));
    }
    assert_eq!(number(&setup.container, group::GET_STATUS, 0), Err(libc::ENOTTY));
    assert_eq!(number(&setup.group, container::IOMMU_GET_INFO, 0), Err(libc::ENOTTY));
    // Nothing of all that has changed anything.
    assert_eq!(setup.unmap(0, 0, 1 << 32), Ok(4 * PAGE));

    drop(setup);
    let first = Setup::new(container::TYPE1_IOMMU);
    let start = DirtyBitmap { argsz: 8, flags: container::DIRTY_PAGES_FLAG_START };
    assert_eq!(first.ask(container::IOMMU_DIRTY_PAGES, start).map(drop), Err(libc::EACCES));
}

/// Mappings that are unmapped in part, or with others, by each version.
pub fn cuts() {
    let second = Setup::new(container::TYPE1V2_IOMMU);
    for iova in [0x1_0000, 0x2_0000, 0x3_0000] {
        second.map(iova, 4);
    }
    // Several, and the holes between them; nothing; all.
    assert_eq!(second.unmap(0, 0x1_0000, 0x1_4000), Ok(8 * PAGE));
    assert_eq!(second.unmap(0, 0x1_0000, 0x1_4000), Ok(0));
    assert_eq!(second.unmap(DMA_UNMAP_FLAG_ALL, 0, 0), Ok(4 * PAGE));
    assert_eq!(second.unmap(DMA_UNMAP_FLAG_ALL, 0, 0), Ok(0));
    drop(second);

    let first = Setup::new(container::TYPE1_IOMMU);
    for iova in [0x1_0000, 0x1_4000, 0x2_0000] {
        first.map(iova, 4);
    }
    // One that begins before is left, and stops it; one that ends behind goes as a whole.
    assert_eq!(first.unmap(0, 0x1_1000, 0x1_4000), Ok(0));
    assert_eq!(first.unmap(0, 0x1_0000, 0x5000), Ok(8 * PAGE));
    assert_eq!(first.unmap(0, 0x1_f000, 2 * PAGE), Ok(4 * PAGE));
    assert_eq!(first.unmap(DMA_UNMAP_FLAG_ALL, 0, 0), Ok(0));
}

/// Addresses that are taken away and given anew, while a device goes on.
pub fn addresses() {
    let setup = Setup::new(container::TYPE1V2_IOMMU);
    assert_eq!(number(&setup.container, container::CHECK_EXTENSION, container::UPDATE_VADDR.into()), Ok(1));
    let (ring, target) = (Memory::new(4096, libc::MAP_SHARED), Memory::new(LENGTH, libc::MAP_SHARED));
    let length = LENGTH as u64;
    map(&setup.container, ring.address, RING, PAGE).unwrap();
    map(&setup.container, setup.memory.address, SOURCE, length).unwrap();
    map(&setup.container, target.address, TARGET, length).unwrap();
    let engine = setup.engine();
    setup.memory.fill(3);
    assert_eq!(setup.unmap(DMA_UNMAP_FLAG_VADDR, SOURCE, length), Ok(length));
    assert_eq!(setup.unmap(DMA_UNMAP_FLAG_VADDR, SOURCE, length), Err(libc::EINVAL));
    assert_eq!(setup.unmap(DMA_UNMAP_FLAG_VADDR | DMA_UNMAP_FLAG_ALL, 0, 0), Err(libc::EINVAL));
    engine.copy(&ring, RING, SOURCE, TARGET, LENGTH).unwrap();
    assert!(target.holds(3));
    let again = |iova, size| {
        let request = Type1DmaMap { argsz: 32, flags: DMA_MAP_FLAG_VADDR, vaddr: setup.memory.address, iova, size };
        setup.ask(container::IOMMU_MAP_DMA, request).map(drop)
    };
    assert_eq!(again(SOURCE, length / 2), Err(libc::EINVAL));
    assert_eq!(again(SOURCE + length / 2, length / 2), Err(libc::EINVAL));
    assert_eq!(again(SOURCE, length), Ok(()));
    assert_eq!(again(SOURCE, length), Err(libc::EINVAL));
    // What has no address can be unmapped, and what comes in its place has one.
    assert_eq!(setup.unmap(DMA_UNMAP_FLAG_VADDR, TARGET, length), Ok(length));
    assert_eq!(setup.unmap(0, TARGET, length), Ok(length));
    map(&setup.container, target.address, TARGET, length).unwrap();
    assert_eq!(again(TARGET, length), Err(libc::EINVAL));
    setup.memory.fill(4);
    engine.copy(&ring, RING, SOURCE, TARGET, LENGTH).unwrap();
    assert!(target.holds(4));
}

/// As many mappings as there can be, and what is told of how many more.
pub fn limit() {
    let setup = Setup::new(container::TYPE1V2_IOMMU);
    let (info, migration, available) = setup.info();
    assert_eq!((info.iova_pgsizes & 0xfff, info.iova_pgsizes & PAGE, available), (0, PAGE, MOST));
    assert_eq!((migration.pgsize_bitmap, migration.max_dirty_bitmap_size), (PAGE, 1 << 28));
    for page in 0..u64::from(MOST) {
        setup.map(0x1000_0000 + 2 * page * PAGE, 1);
    }
    assert_eq!(setup.info().2, 0);
    let one_more = |iova| map(&setup.container, setup.memory.address, iova, PAGE);
    assert_eq!((one_more(0), one_more(0x1000_0000)), (Err(libc::ENOSPC), Err(libc::EEXIST)));
    assert_eq!(unmap(&setup.container, 0x1000_0000, PAGE), Ok(PAGE));
    assert_eq!((setup.info().2, one_more(0)), (1, Ok(0)));
    assert_eq!(setup.unmap(DMA_UNMAP_FLAG_ALL, 0, 0), Ok(u64::from(MOST) * PAGE));
}

/// What a device writes here and there, against what is known to have been written.
pub fn dirty() {
    let setup = Setup::new(container::TYPE1V2_IOMMU);
    let (ring, source) = (Memory::new(4096, libc::MAP_SHARED), Memory::new(LENGTH, libc::MAP_SHARED));
    let length = LENGTH as u64;
    let pages = LENGTH / PAGE as usize;
    map(&setup.container, ring.address, RING, PAGE).unwrap();
    map(&setup.container, source.address, SOURCE, length).unwrap();
    // In two mappings.
    let half = length / 2;
    let map_target = || {
        map(&setup.container, setup.memory.address, TARGET, half).unwrap();
        map(&setup.container, setup.memory.address + half, TARGET + half, half).unwrap();
    };
    map_target();
    let engine = setup.engine();
    setup
        .ask(container::IOMMU_DIRTY_PAGES, DirtyBitmap { argsz: 8, flags: container::DIRTY_PAGES_FLAG_START })
        .unwrap();
    let mut random = Random::new(13);
    let mut written = vec![false; pages];
    for round in 0..200 {
        for _ in 0..random.below(4) {
            let from = random.below(length - 1);
            let bytes = 1 + random.below((length - from).min(3 * PAGE));
            engine.copy(&ring, RING, SOURCE, TARGET + from, bytes as usize).unwrap();
            (from / PAGE..=(from + bytes - 1) / PAGE).for_each(|page| written[page as usize] = true);
        }
        // Bits of what is mapped are set or cleared, and those behind stay.
        let mut bits = vec![u64::MAX; pages / 64 + 1];
        let bitmap = Bitmap { pgsize: PAGE, size: (pages / 8) as u64, data: bits.as_mut_ptr() as u64 };
        if round % 10 == 9 {
            // With the mappings.
            let unmap = Type1DmaUnmap { argsz: 48, flags: DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, iova: TARGET, size: length };
            let bad = UnmapTelling { unmap, bitmap: Bitmap { data: PAGE, ..bitmap } };
            assert_eq!(setup.ask(container::IOMMU_UNMAP_DMA, bad).map(drop), Err(libc::EFAULT));
            // It is mapped still, for writing too.
            engine.copy(&ring, RING, SOURCE, TARGET + PAGE, 8).unwrap();
            written[1] = true;
            let unmapped = setup.ask(container::IOMMU_UNMAP_DMA, UnmapTelling { unmap, bitmap }).unwrap();
            assert_eq!(unmapped.unmap.size, length);
            map_target();
        } else {
            setup
                .ask(container::IOMMU_DIRTY_PAGES, Get::new(DirtyBitmapGet { iova: TARGET, size: length, bitmap }))
                .unwrap();
        }
        let told: Vec<bool> = (0..pages).map(|page| bits[page / 64] >> (page % 64) & 1 == 1).collect();
        assert_eq!((told, bits[pages / 64]), (std::mem::replace(&mut written, vec![false; pages]), u64::MAX));
    }
    setup.ask(container::IOMMU_DIRTY_PAGES, DirtyBitmap { argsz: 8, flags: container::DIRTY_PAGES_FLAG_STOP }).unwrap();
    engine.copy(&ring, RING, SOURCE, TARGET, LENGTH).unwrap();
}

/// UNMAP_DMA with a bitmap.
#[derive(Clone, Copy)]
#[repr(C)]
struct UnmapTelling {
    unmap: Type1DmaUnmap,
    bitmap: Bitmap,
}

/// DIRTY_PAGES with its GET_BITMAP.
#[derive(Clone, Copy)]
#[repr(C)]
struct Get {
    head: DirtyBitmap,
    get: DirtyBitmapGet,
}

impl Get {
    fn new(get: DirtyBitmapGet) -> Self {
        Self { head: DirtyBitmap { argsz: 48, flags: container::DIRTY_PAGES_FLAG_GET_BITMAP }, get }
    }
}
