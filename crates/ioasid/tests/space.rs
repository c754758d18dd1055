//! Where an address space maps, what of, and when the memory is brought in.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ioasid::memory::{Account, Identity, ImportError, OverLimit, Pages, PinError, Segment};
use ioasid::{
    Access, AttachError, BindError, CutError, EndpointOptions, GroupId, Ioas, IommuKind, Iova, IovaRange, MapError,
    Placement, Ranges, Rid, RuleError,
};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};

use common::{Bench, PAGE, map, range};

/// Pages whose memory is brought in as often as the counter says; `None` as long as the file is not there.
struct Lazy {
    pages: Arc<Pages>,
    file: Arc<File>,
    fetched: Arc<AtomicUsize>,
}

fn lazy(pages: u64, writable: bool) -> Lazy {
    let (_, file) = Segment::memfd(pages * PAGE).unwrap();
    let (fetched, mine) = (Arc::new(AtomicUsize::new(0)), file.clone());
    let count = fetched.clone();
    let pages = Pages::new(0, pages * PAGE, writable, move |offset, length| {
        count.fetch_add(1, Ordering::Relaxed);
        let gone = mine.metadata()?.len() == 0;
        if gone { Err(ImportError::Gone) } else { Ok(vec![Segment::file(&mine, offset, length, true)?]) }
    });
    Lazy { pages, file, fetched }
}

impl Lazy {
    fn fetched(&self) -> usize {
        self.fetched.load(Ordering::Relaxed)
    }
}

#[test]
fn memory_is_brought_in_for_the_first_device_and_let_go_with_the_last() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let memory = lazy(4, true);
    let attach = || device.attach(None, &ioas).unwrap();
    ioas.map_pages(Some(Iova(0x10000)), &memory.pages, 0, 4 * PAGE, Access::all()).unwrap();
    assert_eq!((memory.fetched(), bench.machine.resources()), (0, (0, 0)));
    for n in 1..3 {
        attach();
        // A second mapping of the same pages, now and later, needs nothing more.
        let again = ioas.map_pages(None, &memory.pages, PAGE, PAGE, Access::all()).unwrap();
        assert_eq!((memory.fetched(), bench.machine.resources().0), (n, 1));
        port.write(Iova(0x10000 + PAGE), &[n as u8]).unwrap();
        let mut byte = [0];
        port.read(again, &mut byte).unwrap();
        assert_eq!(byte, [n as u8]);
        ioas.unmap(range(again.0, PAGE)).unwrap();
        device.detach(None).unwrap();
        assert_eq!(bench.machine.resources(), (0, 0));
    }
    // Memory that is gone by then keeps the device out, and everything else as it was.
    memory.file.set_len(0).unwrap();
    let refused = device.attach(None, &ioas);
    assert!(matches!(refused, Err(AttachError::Pages(PinError::Memory(ImportError::Gone)))));
    assert_eq!((ioas.areas().len(), bench.machine.resources()), (1, (0, 0)));
    memory.file.set_len(4 * PAGE).unwrap();
    attach();
    port.write(Iova(0x10000), &[1]).unwrap();
}

#[test]
fn an_address_space_without_devices_maps_bytes_and_pages_with_one() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let memory = lazy(4, true);
    assert_eq!(ioas.iova_ranges().1, 1);
    let iova = ioas.map_pages(Some(Iova(0x12345)), &memory.pages, 5, 0x123, Access::all()).unwrap();
    assert_eq!(ioas.areas()[0].range, range(0x12345, 0x123));
    let refused = device.attach(None, &ioas);
    assert!(matches!(refused, Err(AttachError::Misaligned(at, PAGE)) if at == range(0x12345, 0x123)));
    ioas.unmap(range(iova.0, 0x123)).unwrap();
    // IOVA, length and the offset in the memory's page: each of them has to be.
    for (iova, offset, length) in [(PAGE + 1, 0, PAGE), (PAGE, 0, PAGE - 1), (PAGE, 1, PAGE)] {
        ioas.map_pages(Some(Iova(iova)), &memory.pages, offset, length, Access::all()).unwrap();
        assert!(matches!(device.attach(None, &ioas), Err(AttachError::Misaligned(..))), "{iova:#x}");
        ioas.unmap(IovaRange::ALL).unwrap();
    }
    device.attach(None, &ioas).unwrap();
    assert_eq!(ioas.iova_ranges().1, PAGE);
    for (iova, offset, length) in [(PAGE + 1, 0, PAGE), (PAGE, 0, PAGE - 1), (PAGE, 1, PAGE)] {
        let refused = ioas.map_pages(Some(Iova(iova)), &memory.pages, offset, length, Access::all());
        assert!(matches!(refused, Err(MapError::Unaligned(..))), "{iova:#x}");
        let refused = ioas.map_pages(None, &memory.pages, offset, length, Access::all());
        assert_eq!(refused.is_err(), offset != 0 || length != PAGE);
        ioas.unmap(IovaRange::ALL).unwrap();
    }
    // The last two pages, in the middle of the IOVA space.
    ioas.map_pages(Some(Iova(0x7000)), &memory.pages, 2 * PAGE, 2 * PAGE, Access::all()).unwrap();
    port.write(Iova(0x8fff), &[7]).unwrap();
    let mut byte = [0];
    memory.file.read_exact_at(&mut byte, 4 * PAGE - 1).unwrap();
    assert_eq!(byte, [7]);
    let beyond = ioas.map_pages(None, &memory.pages, 2 * PAGE, 3 * PAGE, Access::all());
    assert!(matches!(beyond, Err(MapError::BeyondPages(..))));
}

#[test]
fn what_is_allowed_is_where_automatic_mappings_go_and_what_devices_must_not_reserve() {
    let bench = Bench::new();
    let (_endpoint, _port, ioas, device) = bench.one_device();
    assert_eq!(ioas.allow_iovas(&[range(0x5000, 0x3000), range(0x7000, 0x1000)]), Err(RuleError::BadRanges));
    assert_eq!(ioas.allow_iovas(&[IovaRange::inclusive(5, 5).unwrap()]), Err(RuleError::BadRanges));
    ioas.allow_iovas(&[range(0x20_0000, 0x3000), range(0x5000, 0x2000)]).unwrap();
    let memory = lazy(1, true);
    let next = || ioas.map_pages(None, &memory.pages, 0, PAGE, Access::all());
    let places: Vec<u64> = std::iter::from_fn(|| next().ok()).map(|iova| iova.0).collect();
    assert_eq!(places, [0x5000, 0x6000, 0x20_0000, 0x20_1000, 0x20_2000]);
    assert!(matches!(next(), Err(MapError::NoSpace(PAGE))));
    // An IOVA of the program's own choice is no concern of that.
    ioas.map_pages(Some(Iova(0x9000)), &memory.pages, 0, PAGE, Access::all()).unwrap();
    // The window for interrupts, which the device reserves.
    let window = range(0xfee0_0000, 0x10_0000);
    ioas.allow_iovas(&[window]).unwrap();
    assert!(matches!(device.attach(None, &ioas), Err(AttachError::Conflict(at)) if at == window));
    ioas.allow_iovas(&[]).unwrap();
    device.attach(None, &ioas).unwrap();
    assert!(matches!(ioas.allow_iovas(&[window]), Err(RuleError::Reserved(_))));
    assert!(ioas.map_pages(None, &memory.pages, 0, PAGE, Access::all()).is_ok(), "as before the refusal");
}

#[test]
fn what_the_owner_reserves_is_not_mapped() {
    let bench = Bench::new();
    let (.., ioas, _device) = bench.one_device();
    map(&ioas, 0x8000, 1).unwrap();
    assert!(matches!(ioas.reserve(range(0x7000, 0x1001)), Err(RuleError::Mapped(at)) if at == range(0x8000, PAGE)));
    ioas.allow_iovas(&[range(0x1000, 0x1000)]).unwrap();
    assert!(matches!(ioas.reserve(range(0x1fff, 1)), Err(RuleError::Reserved(_))));
    ioas.reserve(range(0x2000, 0x1000)).unwrap();
    assert!(matches!(map(&ioas, 0x2000, 1), Err(MapError::Reserved(_))));
    assert!(matches!(ioas.allow_iovas(&[range(0, 0x10000)]), Err(RuleError::Reserved(_))));
    let (ranges, _) = ioas.iova_ranges();
    assert_eq!(ranges.iter().collect::<Vec<_>>(), [range(0, 0x2000), IovaRange::inclusive(0x3000, u64::MAX).unwrap()]);
}

#[test]
fn without_large_pages_everything_is_made_of_the_processors() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    assert!(ioas.has_large_pages());
    let memory = lazy(1, true);
    ioas.map_pages(Some(Iova(0x1800)), &memory.pages, 0x800, 0x800, Access::all()).unwrap();
    assert!(matches!(ioas.set_large_pages(false), Err(RuleError::Misaligned(at, PAGE)) if at == range(0x1800, 0x800)));
    assert!(ioas.has_large_pages());
    ioas.unmap(IovaRange::ALL).unwrap();
    ioas.set_large_pages(false).unwrap();
    assert_eq!(ioas.iova_ranges().1, PAGE);
    let refused = ioas.map_pages(Some(Iova(0x1800)), &memory.pages, 0x800, 0x800, Access::all());
    assert!(matches!(refused, Err(MapError::Unaligned(..))));
    map(&ioas, 0x20_0000, 512).unwrap();
    let hwpt = device.context().hwpt(device.attach(None, &ioas).unwrap()).unwrap();
    hwpt.start_dirty_tracking(u64::MAX).unwrap();
    port.write(Iova(0x20_0000), &[1]).unwrap();
    let mut bitmap = [0; 8];
    hwpt.read_dirty(range(0x20_0000, 512 * PAGE), PAGE, false, &mut bitmap).unwrap();
    assert_eq!(bitmap, [1, 0, 0, 0, 0, 0, 0, 0], "a page of 2 MiB would be dirty as a whole");
    ioas.set_large_pages(true).unwrap();
    assert!(matches!(ioas.set_large_pages(false), Err(RuleError::InUse)));
}

#[test]
fn a_copy_shares_the_memory_and_its_rights() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let other = device.context().ioas_alloc().unwrap();
    let (memory, read_only) = (lazy(4, true), lazy(1, false));
    ioas.map_pages(Some(Iova(0x10000)), &memory.pages, 0, 4 * PAGE, Access::READ).unwrap();
    ioas.map_pages(Some(Iova(0x14000)), &read_only.pages, 0, PAGE, Access::READ).unwrap();
    let copy = |to: &Ioas, iova: Option<u64>, from: u64, length: u64, access: Access| {
        to.copy(iova.map(Iova), &ioas, Iova(from), length, access)
    };
    // Part of one, with more rights than the source has; then over both, into two areas.
    copy(&other, Some(0x1000), 0x11000, 2 * PAGE, Access::all()).unwrap();
    copy(&other, Some(0x8000), 0x13000, 2 * PAGE, Access::READ).unwrap();
    assert_eq!(other.areas().len(), 3);
    for (from, length) in [(0xf000, PAGE), (0x14000, 2 * PAGE), (0x20000, 1), (u64::MAX, 1)] {
        let refused = copy(&other, None, from, length, Access::READ);
        assert!(matches!(refused, Err(MapError::SourceNotMapped(..))), "{from:#x}");
    }
    assert!(matches!(copy(&other, None, 0x14000, PAGE, Access::all()), Err(MapError::PagesReadOnly)));
    assert!(matches!(copy(&other, Some(0x8000), 0x10000, PAGE, Access::READ), Err(MapError::Occupied(_))));
    assert!(matches!(copy(&other, None, 0x10000, 0, Access::READ), Err(MapError::Empty)));
    // Into itself.
    let itself = copy(&ioas, None, 0x10000, PAGE, Access::READ).unwrap();
    ioas.unmap(range(itself.0, PAGE)).unwrap();

    device.attach(None, &other).unwrap();
    assert_eq!((memory.fetched(), read_only.fetched()), (2, 1), "what is mapped, and no more");
    port.write(Iova(0x1000), &[9]).unwrap();
    let mut byte = [0];
    memory.file.read_exact_at(&mut byte, PAGE).unwrap();
    assert_eq!(byte, [9]);
    assert!(port.write(Iova(0x9000), &[9]).is_err(), "only for reading");
    port.read(Iova(0x8fff), &mut [0, 0]).unwrap();
    // The source goes, and the copies stay.
    ioas.unmap(IovaRange::ALL).unwrap();
    port.write(Iova(0x1000), &[8]).unwrap();
    assert_eq!(other.unmap(range(0x8000, 2 * PAGE)).unwrap(), 2 * PAGE);
    assert_eq!(bench.machine.resources().0, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// An automatic IOVA is allowed, free, has the place in its block that the memory has, and is the lowest of those.
    #[test]
    fn automatic_iovas_are_free_and_aligned(
        taken in prop::collection::vec((1..64u64, 1..8u64), 0..12),
        allowed in prop::collection::vec((1..64u64, 1..16u64), 0..3),
        requests in prop::collection::vec((0..32u64, 1..9u64), 1..12),
    ) {
        let bench = Bench::new();
        let (.., ioas, _device) = bench.one_device();
        for (page, pages) in taken {
            let _ = map(&ioas, page * PAGE, pages);
        }
        let allowed: Vec<_> = allowed.iter().map(|&(page, pages)| range(page * PAGE, pages * PAGE)).collect();
        let rules = ioas.allow_iovas(&allowed).is_ok() && !allowed.is_empty();
        for (address, pages) in requests {
            let (address, length) = (address * PAGE, pages * PAGE);
            let memory = Pages::new(address, length, true, |_, _| Err(ImportError::Gone));
            let is_free = |candidate: IovaRange| {
                let inside = |allowed: &IovaRange| allowed.overlaps(&candidate);
                // Ranges that touch are one.
                let within = (candidate.start()..=candidate.last()).step_by(PAGE as usize)
                    .all(|page| allowed.iter().any(|range| range.contains(&IovaRange::inclusive(page, page + PAGE - 1).unwrap())));
                (!rules || within && allowed.iter().any(inside))
                    && ioas.areas().iter().all(|area| !area.range.overlaps(&candidate))
            };
            let block = length.next_power_of_two();
            let lowest = (1..=300u64).map(|page| range(page * PAGE, length))
                .find(|&candidate| candidate.start() % block == address % block && is_free(candidate));
            match ioas.map_pages(None, &memory, 0, length, Access::READ) {
                Ok(iova) => prop_assert_eq!(Some(range(iova.0, length)), lowest),
                Err(error) => prop_assert!(lowest.is_none() && matches!(error, MapError::NoSpace(_)), "{}", error),
            }
        }
    }
}

#[test]
fn devices_behind_different_iommus_have_tables_of_different_formats() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let options = EndpointOptions::behind(&bench.machine.iommu(IommuKind::Mock));
    let mock = bench.machine.add_endpoint_with(Rid::new(0, 0, 2, 0).unwrap(), GroupId(2), options).unwrap();
    mock.set_bus_master(true).unwrap();
    let (mut mock_port, mock) = (mock.port(), device.context().bind(&mock).unwrap());
    let memory = lazy(4, true);
    let base = 1 << 24;
    // In units of the mock's, where it translates.
    let hwpt = mock.attach(None, &ioas).unwrap();
    assert_eq!(ioas.iova_ranges(), (Ranges::union([range(base, (1 << 31) - base)]), 2048));
    let refused = ioas.map_pages(Some(Iova(base - 2048)), &memory.pages, 0, 2048, Access::all());
    assert!(matches!(refused, Err(MapError::Reserved(_))));
    ioas.map_pages(Some(Iova(base + 2048)), &memory.pages, 2048, 3 * 2048, Access::all()).unwrap();
    mock_port.write(Iova(base + 4 * 2048 - 1), &[5]).unwrap();
    assert!(mock_port.write(Iova(base + 2047), &[5]).is_err());
    let mut byte = [0];
    memory.file.read_exact_at(&mut byte, 4 * 2048 - 1).unwrap();
    assert_eq!(byte, [5]);
    // A table of the other format does not fit what is mapped, and the mock's is none for the other device.
    assert!(matches!(device.attach(None, &ioas), Err(AttachError::Misaligned(..))));
    let wrong = device.attach(None, device.context().target(hwpt.into()).unwrap());
    assert!(matches!(wrong, Err(AttachError::WrongFormat(id)) if id == hwpt));
    ioas.unmap(IovaRange::ALL).unwrap();
    ioas.map_pages(Some(Iova(base)), &memory.pages, 0, 2 * PAGE, Access::all()).unwrap();
    let other = device.attach(None, &ioas).unwrap();
    assert_ne!(other, hwpt);
    assert_eq!(ioas.iova_ranges().1, PAGE);
    mock_port.write(Iova(base), &[6]).unwrap();
    port.read(Iova(base), &mut byte).unwrap();
    assert_eq!(byte, [6]);
    let mock_table = device.context().hwpt(hwpt).unwrap();
    mock_table.start_dirty_tracking(PAGE).unwrap();
    mock_port.write(Iova(base + PAGE), &[7]).unwrap();
    let mut bitmap = [0];
    mock_table.read_dirty(range(base, 2 * PAGE), PAGE, true, &mut bitmap).unwrap();
    assert_eq!(bitmap, [2]);
    ioas.unmap(IovaRange::ALL).unwrap();
    assert!(mock_port.write(Iova(base), &[6]).is_err() && port.write(Iova(base), &[6]).is_err());
}

#[test]
fn what_a_page_table_leads_to_can_be_told_apart() {
    let bench = Bench::new();
    let (_, _, ioas, device) = bench.one_device();
    let (segment, file) = Segment::memfd(4 * PAGE).unwrap();
    let found = file.metadata().unwrap();
    let byte = |offset| Identity::File { device: found.dev(), inode: found.ino(), offset };
    let memory = || Ok(vec![segment.clone()]);
    ioas.map(Placement::Fixed(Iova(0x10_0000)), 4 * PAGE, Access::all(), memory).unwrap();
    assert_eq!(bench.machine.pinned().count(byte(0)), 0, "nobody needs it yet");

    let hwpt = device.context().hwpt(device.attach(None, &ioas).unwrap()).unwrap();
    assert_eq!(hwpt.memory_at(Iova(0x10_1008)).unwrap(), Some(byte(0x1008)));
    assert_eq!(hwpt.memory_at(Iova(0x10_4000)).unwrap(), None);
    // Other pages of the same file, which are brought in by themselves.
    let pages = Pages::of_file(file.clone(), PAGE, PAGE, true);
    ioas.map_pages(Some(Iova(0x20_0000)), &pages, 0, PAGE, Access::all()).unwrap();
    assert_eq!(hwpt.memory_at(Iova(0x20_0000)).unwrap(), Some(byte(PAGE)));
    ioas.map_pages(Some(Iova(0x30_0000)), &pages, 0, PAGE, Access::all()).unwrap();
    let pinned = bench.machine.pinned();
    assert_eq!([0, PAGE, 2 * PAGE, 4 * PAGE].map(|offset| pinned.count(byte(offset))), [1, 2, 1, 0]);
    drop(device);
    assert_eq!(bench.machine.pinned().count(byte(PAGE)), 0);
}

/// A DMA buffer of the pages of a file, by the kernel's udmabuf, if it has that and lets us.
///
/// Source: Linux `include/uapi/linux/udmabuf.h`.
#[allow(unsafe_code, reason = "an ioctl that there is no wrapper for")]
fn udmabuf(file: &File, length: u64) -> Option<File> {
    let device = File::open("/dev/udmabuf").ok()?;
    let create = [file.as_raw_fd() as u64, 0, length];
    // SAFETY: `UDMABUF_CREATE` reads two numbers of 32 bits (descriptor and flags) and two of 64 (offset and size).
    let made = unsafe { libc::ioctl(device.as_raw_fd(), 0x4018_7542, &raw const create) };
    assert!(made >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made it for us.
    Some(unsafe { File::from_raw_fd(made) })
}

#[test]
fn a_dma_buffer_is_mapped_where_the_kernel_makes_one() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create(c"udmabuf", flags).unwrap());
    file.set_len(2 * PAGE).unwrap();
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    let Some(buffer) = udmabuf(&file, 2 * PAGE) else {
        println!("not tried: there is no /dev/udmabuf");
        return;
    };
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    let pages = Pages::of_file(buffer, 0, 2 * PAGE, true);
    ioas.map_pages(Some(Iova(0x10_0000)), &pages, 0, 2 * PAGE, Access::all()).unwrap();
    device.attach(None, &ioas).unwrap();
    port.write(Iova(0x10_0ffe), &[1, 2, 3, 4]).unwrap();
    let mut found = [0; 4];
    file.read_exact_at(&mut found, PAGE - 2).unwrap();
    assert_eq!(found, [1, 2, 3, 4]);
}

#[test]
fn a_requester_leaves_the_bus_when_it_is_not_bound() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    device.attach(None, &ioas).unwrap();
    assert!(!bench.machine.remove_endpoint(&endpoint));
    let context = device.context().clone();
    drop(device);
    assert!(bench.machine.remove_endpoint(&endpoint));
    assert!(!bench.machine.remove_endpoint(&endpoint));
    assert!(matches!(context.bind(&endpoint), Err(BindError::Removed)));
    assert!(port.read(Iova(0), &mut [0]).is_err());
    // The place is free, and so is its group.
    let other = bench.machine.context();
    assert!(other.bind(&bench.endpoint(1, 1)).is_ok());
}

/// Counts what is charged, up to a limit.
struct Counted {
    bytes: AtomicU64,
    limit: u64,
}

impl Account for Counted {
    fn charge(&self, bytes: u64) -> Result<(), OverLimit> {
        let add = |now: u64| Some(now + bytes).filter(|&wanted| wanted <= self.limit);
        let changed = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        changed.map(drop).map_err(|now| OverLimit { limit: self.limit, wanted: now + bytes })
    }
    fn release(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[test]
fn pinned_memory_is_counted_once_and_exactly_as_long_as_it_is_pinned() {
    let bench = Bench::new();
    let (_, _, ioas, device) = bench.one_device();
    let account = |limit| Arc::new(Counted { bytes: AtomicU64::new(0), limit });
    let (small, large) = (account(3 * PAGE), account(64 * PAGE));
    let charged = |account: &Counted| account.bytes.load(Ordering::Relaxed) / PAGE;
    let pages = |length, account: &Arc<Counted>| {
        let file = Segment::memfd(length * PAGE).unwrap().1;
        let pages = Pages::of_file(file, 0, length * PAGE, true);
        pages.charge_to(Some(account.clone())).unwrap();
        pages
    };
    let map = |pages: &Arc<Pages>, iova| ioas.map_pages(Some(Iova(iova)), pages, 0, pages.length(), Access::all());
    let two = pages(2, &small);
    map(&two, 0x1_0000).unwrap();
    map(&two, 0x2_0000).unwrap();
    assert_eq!(charged(&small), 0, "nobody needs it yet");
    device.attach(None, &ioas).unwrap();
    assert_eq!(charged(&small), 2);
    let error = map(&pages(2, &small), 0x3_0000);
    let over = OverLimit { limit: 3 * PAGE, wanted: 4 * PAGE };
    assert!(matches!(error, Err(MapError::Pages(PinError::OverLimit(error))) if error == over));
    assert_eq!((charged(&small), ioas.areas().len()), (2, 2));
    map(&pages(1, &small), 0x3_0000).unwrap();

    // Somebody else answers, if he may; else it stays as it was.
    let tight = account(PAGE);
    assert!(two.charge_to(Some(tight.clone())).is_err());
    assert_eq!((charged(&tight), charged(&small)), (0, 3));
    assert!(two.charge_to(Some(large.clone())).unwrap().is_some());
    assert_eq!((charged(&large), charged(&small)), (2, 1));
    ioas.unmap(range(0x1_0000, 2 * PAGE)).unwrap();
    assert_eq!(charged(&large), 2);
    ioas.unmap(range(0x2_0000, 2 * PAGE)).unwrap();
    assert_eq!((charged(&large), charged(&small)), (0, 1));
    // What cannot be brought in is not counted.
    let gone = Pages::new(0, PAGE, true, |_, _| Err(ImportError::Gone));
    gone.charge_to(Some(small.clone())).unwrap();
    assert!(map(&gone, 0x4_0000).is_err());
    drop(device);
    assert_eq!(charged(&small), 0);
}

#[test]
fn an_area_that_is_cut_is_unmapped_in_parts() {
    let bench = Bench::new();
    let (_, mut port, ioas, device) = bench.one_device();
    let base = 0x4000_0000;
    ioas.set_large_pages(false).unwrap();
    let hwpt = device.context().hwpt(device.attach(None, &ioas).unwrap()).unwrap();
    assert_eq!(ioas.page_sizes(), 1 << 12 | 1 << 21 | 1 << 30);
    map(&ioas, base, 1024).unwrap();
    let before = hwpt.memory_at(Iova(base + 513 * PAGE)).unwrap().unwrap();
    assert_eq!(ioas.cut(Iova(base + 1)), Err(CutError::Unaligned(base + 1, PAGE)));
    for cut in [base, base + 1024 * PAGE, base + 2000 * PAGE, 0, u64::MAX] {
        ioas.cut(Iova(cut)).unwrap();
    }
    assert_eq!(ioas.areas().len(), 1, "there was nothing to cut");
    ioas.cut(Iova(base + 513 * PAGE)).unwrap();
    ioas.cut(Iova(base + 512 * PAGE)).unwrap();
    assert_eq!(ioas.unmap(range(base + 512 * PAGE, PAGE)), Ok(PAGE));
    assert_eq!(hwpt.memory_at(Iova(base + 513 * PAGE)).unwrap(), Some(before));
    assert_eq!(hwpt.memory_at(Iova(base + 512 * PAGE)).unwrap(), None);
    assert!(port.read(Iova(base + 512 * PAGE), &mut [0]).is_err());
    let sizes: Vec<_> = ioas.areas().iter().map(|area| area.range).collect();
    assert_eq!(sizes, [range(base, 512 * PAGE), range(base + 513 * PAGE, 511 * PAGE)]);
    assert_eq!(ioas.unmap(IovaRange::ALL), Ok(1023 * PAGE));

    ioas.set_large_pages(true).unwrap();
    map(&ioas, base, 1024).unwrap();
    assert_eq!(ioas.cut(Iova(base + PAGE)), Err(CutError::LargePages(base + PAGE)));
}
