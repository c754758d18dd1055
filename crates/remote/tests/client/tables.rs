//! Page tables that a server walks: who gets them, what is reached by them, and what an unmap means.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ioasid::memory::{RemoteMemory, Segment};
use ioasid::{
    Access, Endpoint, EndpointOptions, GroupId, IommuKind, Iova, IovaRange, Machine, Placement, Recovery, Silent,
};
use ioasid_remote::vfio_user::{Attended, ClientOptions, MemoryBy, Remote, Server};
use ioasid_vfio::{BarKind, BarSpec, BusMaster, Function, Interrupts, Model, Spec, VfioDevice};

use crate::bench::{Bench, Listening, PATIENCE, bytes, memory, options, wait_until};

const PAGE: u64 = 4096;

#[test]
fn tables_are_shared_if_both_sides_know_how_and_the_servers_can_address_enough() {
    let server = Listening::to("edu");
    for how in [MemoryBy::Tables, MemoryBy::Files, MemoryBy::Messages] {
        assert_eq!(Bench::new(options(&server, how)).remote.memory_by(), how);
    }
    // Its own tables have 47 bits.
    let server = Listening::behind("edu", IommuKind::RiscV);
    let bench = Bench::new(options(&server, MemoryBy::Tables));
    assert_eq!(bench.remote.memory_by(), MemoryBy::Files);
    let file = memory(PAGE, 1);
    bench.map_file(0x1000, &file, Access::all()).unwrap();
    bench.dma(0x1000, 16, false);
    // What is beyond the tables' IOVAs is refused, and nothing is changed.
    let server = Listening::to("edu");
    let bench = Bench::new(options(&server, MemoryBy::Tables));
    assert!(bench.map_file(1 << 47, &file, Access::all()).is_err());
    bench.map_file((1 << 47) - PAGE, &file, Access::all()).unwrap();
}

/// Memory that is in no file.
#[derive(Default)]
struct Private(Mutex<BTreeMap<u64, u8>>);

impl RemoteMemory for Private {
    fn read(&self, address: u64, data: &mut [u8]) -> std::io::Result<()> {
        let bytes = self.0.lock().unwrap();
        (address..).zip(data).for_each(|(at, byte)| *byte = bytes.get(&at).copied().unwrap_or(0));
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> std::io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        (address..).zip(data).for_each(|(at, byte)| _ = bytes.insert(at, *byte));
        Ok(())
    }
}

/// What is mapped, by page: what is allowed, and the first byte there.
type Pages = BTreeMap<u64, (Access, u8)>;

/// Where the device is to leave what it has read. It has 28 bits of address.
const RESULT: u64 = 0x0fff_0000;

/// What the device finds at an address; 0 if it is refused.
fn look(bench: &Bench, result: &std::fs::File, iova: u64) -> u8 {
    bench.dma(RESULT + PAGE, 1, false);
    bench.dma(iova, 1, false);
    bench.dma(RESULT, 1, true);
    bytes(result, 0, 1)[0]
}

#[test]
fn a_device_finds_what_is_mapped_after_thousands_of_changes() {
    let server = Listening::to("edu");
    let bench = Bench::new(options(&server, MemoryBy::Tables));
    bench.ioas.set_large_pages(false).unwrap();
    let result = memory(2 * PAGE, 0);
    bench.map_file(RESULT, &result, Access::all()).unwrap();
    // Files, and what is in none, each page of which begins with its own byte.
    let files: Vec<_> = (0..12u64)
        .map(|file| {
            let there = memory(16 * PAGE, 0);
            (0..16).for_each(|page| there.write_all_at(&[1 + (file * 16 + page) as u8], page * PAGE).unwrap());
            there
        })
        .collect();
    let private = Arc::new(Private::default());
    (0..16).for_each(|page| private.write(page * PAGE, &[200 + page as u8]).unwrap());
    let (mut random, mut pages) = (fastrand::Rng::with_seed(7), Pages::new());
    let mut areas = BTreeMap::<u64, u64>::new();
    for _ in 0..1500 {
        let start = random.u64(0..256);
        let inside = areas.range(..=start).next_back().filter(|(first, count)| start < *first + *count);
        let inside = inside.map(|(first, count)| (*first, *count));
        match (random.u8(0..8), inside) {
            (0..4, None) => {
                let next = areas.range(start..).next().map_or(u64::MAX, |(first, _)| *first);
                let count = random.u64(1..9).min(next - start);
                let (file, from) = (random.usize(0..14), random.u64(0..16 - count + 1));
                let access = [Access::READ, Access::all()][random.usize(0..2)];
                let segment = match files.get(file) {
                    Some(file) => {
                        Segment::file(file, from * PAGE, count * PAGE, access.contains(Access::WRITE)).unwrap()
                    }
                    None => Segment::remote(private.clone(), from * PAGE, count * PAGE),
                };
                let first = files.get(file).map_or(200, |_| 1 + file as u64 * 16) + from;
                let at = Placement::Fixed(Iova(start * PAGE));
                bench.ioas.map(at, count * PAGE, access, || Ok(vec![segment])).unwrap();
                areas.insert(start, count);
                (0..count).for_each(|page| _ = pages.insert(start + page, (access, (first + page) as u8)));
            }
            (4..6, Some((first, count))) => {
                bench.unmap(first * PAGE, count * PAGE).unwrap();
                areas.remove(&first);
                pages.retain(|page, _| !(first..first + count).contains(page));
            }
            (6, Some((first, count))) if start > first => {
                bench.ioas.cut(Iova(start * PAGE)).unwrap();
                areas.insert(first, start - first);
                areas.insert(start, first + count - start);
            }
            (7, Some((first, count))) => {
                let range = IovaRange::new(first * PAGE, count * PAGE).unwrap();
                bench.ioas.protect(range, Access::READ).unwrap();
                (first..first + count).for_each(|page| pages.get_mut(&page).unwrap().0 = Access::READ);
            }
            _ => {}
        }
        let page = random.u64(0..256);
        let expected = pages.get(&page).map_or(0, |(_, byte)| *byte);
        assert_eq!(look(&bench, &result, page * PAGE), expected, "page {page}");
        if let Some((access, byte)) = pages.get_mut(&page)
            && random.u8(0..4) == 0
        {
            // The second byte of the page, so that the first stays what it is.
            bench.dma(RESULT + PAGE + 8, 1, false);
            bench.dma(page * PAGE + 1, 1, true);
            assert_eq!(look(&bench, &result, page * PAGE), *byte, "{access:?}");
        }
    }
    assert!(areas.len() > 5, "{areas:?}");
    bench.unmap(0, 256 * PAGE).unwrap();
    assert_eq!((0..256).map(|page| look(&bench, &result, page * PAGE)).max(), Some(0));
    // Attached to nothing, it finds nothing; and what there is when it is attached again.
    bench.map_file(0x1000, &files[0], Access::all()).unwrap();
    assert_eq!(look(&bench, &result, 0x1000), 1);
    bench.device.detach(None).unwrap();
    bench.dma(0x1000, 1, false);
    bench.device.attach(None, &bench.ioas).unwrap();
    assert_eq!(look(&bench, &result, 0x3000), 3);
}

/// A device without registers, whose DMA the test does.
struct Bare(Arc<Endpoint>);

impl Model for Bare {
    fn read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {}
}

impl BusMaster for Bare {
    fn set_bus_master(&self, enabled: bool) {
        self.0.set_bus_master(enabled).unwrap();
    }
}

fn bare() -> Spec {
    Spec {
        bars: vec![BarSpec { index: 0, size: 4096, kind: BarKind::Memory32, prefetchable: false }],
        ..Spec::new(0x1234, 1, 0xff_0000)
    }
}

/// A server of such a device, and the endpoint that its DMA is made by.
fn serve_bare() -> (Listening, Arc<Endpoint>) {
    let machine = Machine::new(Arc::new(Silent));
    let endpoint = machine.add_endpoint("0000:00:01.0".parse().unwrap(), GroupId(0)).unwrap();
    let model = Arc::new(Bare(endpoint.clone()));
    let function = Function::new(bare(), 0xC000_0000, Interrupts::new(&bare()), model.clone(), model).unwrap();
    let server = Server::new(&machine, endpoint.clone(), VfioDevice::new(Arc::new(function)), PATIENCE);
    (Listening::with(move |socket| drop(server.serve(socket))), endpoint)
}

/// How long devices read, without IOASID_REMOTE_SECONDS.
const SECONDS: u64 = 3;
/// What is in a page while it is mapped, and while it is not.
const MAPPED: u8 = 0x11;
const POISON: u8 = 0xdd;
const SLOTS: u64 = 16;

/// A device of this process, one that walks shared tables and one that asks by messages, on one address space whose
/// mappings come and go: none reads what was unmapped.
#[test]
fn three_kinds_of_devices_read_no_byte_through_what_was_unmapped() {
    let seconds = std::env::var("IOASID_REMOTE_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let machine = Machine::new(Arc::new(Silent));
    let (context, iommu) = (machine.context(), machine.iommu(IommuKind::Vtd));
    let ioas = context.ioas_alloc().unwrap();
    let mut keeps: Vec<(Listening, Attended)> = Vec::new();
    let mut devices = Vec::new();
    let mut readers = Vec::new();
    for (slot, how) in [None, Some(MemoryBy::Tables), Some(MemoryBy::Messages)].into_iter().enumerate() {
        let (rid, group) = (ioasid::Rid::new(0, 0, slot as u8 + 1, 0).unwrap(), GroupId(slot as u32));
        let mut behind = EndpointOptions::behind(&iommu).pasid_bits(0).dirty_tracking(false).recovery(Recovery::None);
        let served = how.map(|how| {
            let (listening, there) = serve_bare();
            let options =
                ClientOptions { socket: listening.path.clone(), patience: Duration::from_secs(10), memory: how };
            let remote = Remote::connect(options).unwrap();
            assert_eq!(remote.memory_by(), how);
            (listening, there, remote)
        });
        if let Some((.., remote)) = &served {
            behind = behind.mirrored(remote.clone());
        }
        let endpoint = machine.add_endpoint_with(rid, group, behind).unwrap();
        let device = context.bind(&endpoint).unwrap();
        device.attach(None, &ioas).unwrap();
        devices.push(device);
        match served {
            None => {
                endpoint.set_bus_master(true).unwrap();
                readers.push(endpoint);
            }
            Some((listening, there, remote)) => {
                let attended = remote.start(&endpoint, Interrupts::new(remote.spec()), |ended| panic!("{ended}"));
                let attended = attended.unwrap();
                attended.reset();
                attended.set_bus_master(true);
                wait_until("the server's device may do DMA", || there.is_bus_master());
                readers.push(there);
                keeps.push((listening, attended));
            }
        }
    }
    let file = memory(SLOTS * PAGE, POISON);
    let (stop, bad) = (AtomicBool::new(false), AtomicU64::new(0));
    let reads = [const { AtomicU64::new(0) }; 3];
    let mut changes = 0;
    std::thread::scope(|scope| {
        for (endpoint, reads) in readers.iter().zip(&reads) {
            let (mut port, stop, bad) = (endpoint.port(), &stop, &bad);
            scope.spawn(move || {
                let mut data = [0; PAGE as usize];
                for turn in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if port.read(Iova(0x10_0000 + turn % SLOTS * PAGE), &mut data).is_ok() {
                        reads.fetch_add(1, Ordering::Relaxed);
                        if data.contains(&POISON) {
                            bad.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        let (mut random, mut mapped) = (fastrand::Rng::with_seed(3), [false; SLOTS as usize]);
        while Instant::now() < end && bad.load(Ordering::Relaxed) == 0 {
            let slot = random.u64(0..SLOTS);
            let iova = 0x10_0000 + slot * PAGE;
            let is_mapped = &mut mapped[slot as usize];
            if *is_mapped {
                ioas.unmap(IovaRange::new(iova, PAGE).unwrap()).unwrap();
                file.write_all_at(&[POISON; PAGE as usize], slot * PAGE).unwrap();
            } else {
                file.write_all_at(&[MAPPED; PAGE as usize], slot * PAGE).unwrap();
                let segment = Segment::file(&file, slot * PAGE, PAGE, true).unwrap();
                ioas.map(Placement::Fixed(Iova(iova)), PAGE, Access::all(), || Ok(vec![segment])).unwrap();
            }
            *is_mapped = !*is_mapped;
            changes += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(bad.into_inner(), 0, "pages were read that had been unmapped");
    let reads = reads.map(AtomicU64::into_inner);
    println!("{changes} changes; reads: {reads:?}");
    assert!(changes > 100 && reads.iter().all(|reads| *reads > 100), "{changes} changes, reads: {reads:?}");
}
