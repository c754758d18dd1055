//! Requests of the disk, right and wrong.

use ioasid::memory::Pages;
use ioasid::{Access, Iova, IovaRange};
use ioasid_devices::virtio::registers::Register;

use crate::bench::{
    Bench, CONFIGURATION, EVENT_INDEX, INDIRECT, LENGTH, MEMORY, NEXT, Ring, VERSION_1, WRITE, wait_until,
};
use crate::ends::Served;

const HEADER: u64 = MEMORY + 0x8_0000;
const STATUS: u64 = HEADER + 0x100;
const DATA: u64 = MEMORY + 0x10_0000;
const SECTORS: u64 = 2048;

struct Disk {
    bench: Bench,
    ring: Ring,
}

impl Disk {
    fn new(options: &[&str]) -> Self {
        let bench = Bench::new("virtio-blk", options);
        let ring = bench.begin(VERSION_1 | EVENT_INDEX | bench.offered() & 0xffff, 1).remove(0);
        Self { bench, ring }
    }

    /// Has a request done; its status, and how many bytes the device says that it wrote.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.bench.write(HEADER, &header);
        self.bench.write(STATUS, &[0xee]);
        let chain = [&[(HEADER, 16, false)][..], data, &[(STATUS, 1, true)]].concat();
        self.bench.offer(&mut self.ring, &chain);
        self.bench.notify(&self.ring);
        let (_, written) = self.bench.wait(&mut self.ring);
        (self.bench.read(STATUS, 1)[0], written)
    }
}

#[test]
fn what_is_written_is_read() {
    let path = std::env::temp_dir().join(format!("ioasid-virtio-{}", std::process::id()));
    let image = format!("image={}", path.display());
    let (copies, direct) = (Served::new("read", &["memory=1M"], 1), Served::new("share", &["memory=1M"], 1));
    for options in [&["memory=1M"][..], &[&image, "size=1M"], &[&copies.option()], &[&direct.option(), "share"]] {
        let mut disk = Disk::new(options);
        assert_eq!(disk.bench.load(CONFIGURATION, 8), SECTORS);
        let mut expected = vec![0u8; 1 << 20];
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..300 {
            let count = random.u64(1..64);
            let sector = random.u64(0..=SECTORS - count);
            let (at, bytes) = ((sector * 512) as usize, (count * 512) as usize);
            // In one piece, or in two.
            let cut = random.usize(1..bytes) as u32;
            let pieces = |writes: bool| match cut % 2 {
                0 => vec![(DATA, bytes as u32, writes)],
                _ => vec![(DATA, cut, writes), (DATA + 0x4_0000, bytes as u32 - cut, writes)],
            };
            let split = if cut.is_multiple_of(2) { bytes } else { cut as usize };
            match random.u8(0..4) {
                0 | 1 => {
                    let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(bytes).collect();
                    disk.bench.write(DATA, &data[..split]);
                    disk.bench.write(DATA + 0x4_0000, &data[split..]);
                    assert_eq!(disk.request(1, sector, &pieces(false)), (0, 1));
                    expected[at..at + bytes].copy_from_slice(&data);
                }
                2 => {
                    assert_eq!(disk.request(0, sector, &pieces(true)), (0, bytes as u32 + 1));
                    let found = [disk.bench.read(DATA, split), disk.bench.read(DATA + 0x4_0000, bytes - split)];
                    assert_eq!(found.concat(), expected[at..at + bytes]);
                }
                _ => {
                    let mut segment = sector.to_le_bytes().to_vec();
                    segment.extend((count as u32).to_le_bytes());
                    segment.extend([0; 4]);
                    disk.bench.write(DATA, &segment);
                    let kind = [11, 13][random.usize(0..2)];
                    assert_eq!(disk.request(kind, 0, &[(DATA, 16, false)]), (0, 1));
                    expected[at..at + bytes].fill(0);
                }
            }
        }
        assert_eq!(disk.request(4, 0, &[]), (0, 1), "flush");
        if path.exists() {
            assert_eq!(std::fs::read(&path).unwrap(), expected);
        }
        assert_eq!(disk.request(8, 0, &[(DATA, 20, true)]), (0, 21));
        assert_eq!(disk.bench.read(DATA, 20), b"ioasid 0000:00:01.0\0");
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn what_cannot_be_done_is_said_and_touches_nothing() {
    let mut disk = Disk::new(&["memory=1M"]);
    disk.bench.write(DATA, &[7; 4096]);
    assert_eq!(disk.request(1, 0, &[(DATA, 4096, false)]), (0, 1));
    let nowhere = 0xdead_0000;
    for (kind, sector, data, status) in [
        // Beyond the end, by one sector, by all of them.
        (0, SECTORS, &[(DATA, 512, true)][..], 1),
        (1, SECTORS - 1, &[(DATA, 1024, false)], 1),
        (1, u64::MAX, &[(DATA, 512, false)], 1),
        (1, u64::MAX / 512, &[(DATA, 512, false)], 1),
        // No whole sectors.
        (1, 0, &[(DATA, 511, false)], 1),
        (1, 0, &[(DATA, 512, false), (DATA, 1, false)], 1),
        // Memory that there is not.
        (1, 0, &[(nowhere, 512, false)], 1),
        (0, 0, &[(nowhere, 512, true)], 1),
        (0, 0, &[(u64::MAX - 511, 512, true)], 1),
        (0, 0, &[(MEMORY + LENGTH - 256, 512, true)], 1),
        // The wrong way round.
        (0, 0, &[(DATA, 512, false)], 1),
        (1, 0, &[(DATA, 512, true)], 1),
        (8, 0, &[(DATA, 20, false)], 1),
        (8, 0, &[], 1),
        // Segments that are none.
        (11, 0, &[(DATA, 15, false)], 1),
        (11, 0, &[], 1),
        (13, 0, &[(DATA, 16, false)], 2),
        (13, 0, &[(DATA, 16, false), (DATA, 16, false)], 1),
        // What there is not.
        (2, 0, &[], 2),
        (99, 0, &[(DATA, 512, true)], 2),
        (u32::MAX, 0, &[], 2),
    ] {
        assert_eq!(disk.request(kind, sector, data), (status, 1), "{kind} at {sector}: {data:x?}");
    }
    assert_eq!(disk.request(0, 0, &[(DATA + 0x1000, 4096, true)]), (0, 4097));
    assert_eq!(disk.bench.read(DATA + 0x1000, 4096), [7; 4096]);
    // Chains without a status, or without anything: they are done, and nothing is written.
    for chain in [
        &[(HEADER, 16, false)][..],
        &[(HEADER, 16, false), (DATA, 16, false)],
        &[(HEADER, 8, false), (STATUS, 1, true)],
    ] {
        disk.bench.write(STATUS, &[0xee]);
        disk.bench.offer(&mut disk.ring, chain);
        disk.bench.notify(&disk.ring);
        let (_, written) = disk.bench.wait(&mut disk.ring);
        assert_eq!(written, u32::from(chain.len() == 2 && chain[1].2));
    }
    // A chain that goes in a circle has an end.
    let descriptor =
        [&HEADER.to_le_bytes()[..], &16u32.to_le_bytes(), &1u16.to_le_bytes(), &0u16.to_le_bytes()].concat();
    disk.bench.write(disk.ring.at, &descriptor);
    disk.bench.publish(&mut disk.ring, 0);
    disk.bench.notify(&disk.ring);
    wait_until("it needs a reset", || disk.bench.needs_reset());
}

/// Linux makes requests of as many segments as a disk allows, also where its queue is shorter.
#[test]
fn a_request_has_more_parts_than_the_queue() {
    let (copies, direct) = (Served::new("parts", &["memory=1M"], 1), Served::new("shared", &["memory=1M"], 1));
    for options in [&["memory=1M"][..], &[&copies.option()], &[&direct.option(), "share"]] {
        let bench = Bench::new("virtio-blk", options);
        let ring = bench.begin(VERSION_1 | INDIRECT, 1).remove(0);
        let mut disk = Disk { bench, ring };
        let table = MEMORY + 0x20_0000;
        for (kind, writes) in [(1, false), (0, true)] {
            let data: Vec<u8> = (0..300u32 * 512).map(|at| (at / 512 + at) as u8).collect();
            disk.bench.write(DATA, if writes { &[0; 300 * 512] } else { &data });
            let mut header = vec![kind];
            header.extend([0; 15]);
            disk.bench.write(HEADER, &header);
            disk.bench.write(STATUS, &[0xee]);
            let mut parts = vec![(HEADER, 16, false)];
            // Backwards, so that no two are one.
            parts.extend((0..300).rev().map(|part| (DATA + 512 * part, 512, writes)));
            parts.push((STATUS, 1, true));
            let last = parts.len() - 1;
            for (place, (address, length, writes)) in (0..).zip(&parts) {
                let flags = if *writes { WRITE } else { 0 } | if place < last { NEXT } else { 0 };
                let mut descriptor = address.to_le_bytes().to_vec();
                descriptor.extend(u32::to_le_bytes(*length));
                descriptor.extend(flags.to_le_bytes());
                descriptor.extend((place as u16 + 1).to_le_bytes());
                disk.bench.write(table + 16 * place as u64, &descriptor);
            }
            disk.bench.offer_table(&mut disk.ring, table, 16 * parts.len() as u32);
            disk.bench.notify(&disk.ring);
            disk.bench.wait(&mut disk.ring);
            assert_eq!(disk.bench.read(STATUS, 1), [0], "{options:?}");
            assert_eq!(disk.bench.read(DATA, data.len()), data, "{options:?}");
        }
    }
}

#[test]
fn a_disk_that_is_read_only_is_not_written() {
    let path = std::env::temp_dir().join(format!("ioasid-virtio-ro-{}", std::process::id()));
    std::fs::write(&path, [3; 1024]).unwrap();
    let mut disk = Disk::new(&[&format!("image={}", path.display()), "readonly", "serial=mine"]);
    assert_ne!(disk.bench.offered() & 1 << 5, 0);
    for kind in [1, 11, 13] {
        assert_eq!(disk.request(kind, 0, &[(DATA, 512, false)]), (1, 1));
    }
    assert_eq!(disk.request(0, 1, &[(DATA, 512, true)]), (0, 513));
    assert_eq!(disk.bench.read(DATA, 512), [3; 512]);
    assert_eq!(disk.request(8, 0, &[(DATA, 20, true)]), (0, 21));
    assert_eq!(&disk.bench.read(DATA, 5), b"mine\0");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn an_unmap_and_a_protection_hold_against_the_device() {
    let mut disk = Disk::new(&["memory=1M"]);
    disk.bench.write(DATA, &[1; 512]);
    assert_eq!(disk.request(1, 0, &[(DATA, 512, false)]), (0, 1));
    let all = IovaRange::new(MEMORY, LENGTH).unwrap();
    disk.bench.ioas.protect(all, Access::READ).unwrap();
    disk.bench.offer(&mut disk.ring, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    disk.bench.notify(&disk.ring);
    wait_until("it needs a reset, as it cannot say that it is done", || disk.bench.needs_reset());
    assert_eq!(disk.bench.read(DATA, 512), [1; 512]);
}

/// The same, of a back end that has the memory: what was unmapped it asks for, and does not get.
#[test]
fn an_unmap_holds_against_a_back_end_and_so_does_bus_master() {
    let served = Served::new("unmap", &["memory=1M"], 1);
    let mut disk = Disk::new(&[&served.option(), "share"]);
    let data = IovaRange::new(DATA, 0x1000).unwrap();
    // It has found its ring, which is then mapped in three parts.
    assert_eq!(disk.request(4, 0, &[]), (0, 1));
    let pages = Pages::of_file(disk.bench.memory.clone(), 0, LENGTH, true);
    let map = |bench: &Bench, from: u64, to: u64| {
        bench.ioas.map_pages(Some(Iova(from)), &pages, from - MEMORY, to - from, Access::all()).unwrap();
    };
    disk.bench.ioas.unmap(IovaRange::ALL).unwrap();
    for (from, to) in [(MEMORY, DATA), (DATA, DATA + 0x1000), (DATA + 0x1000, MEMORY + LENGTH)] {
        map(&disk.bench, from, to);
    }
    for round in 1..20 {
        disk.bench.write(DATA, &[round; 4096]);
        assert_eq!(disk.request(1, 0, &[(DATA, 4096, false)]), (0, 1));
        disk.bench.write(DATA, &[0; 4096]);
        disk.bench.ioas.unmap(data).unwrap();
        assert_eq!(disk.request(0, 0, &[(DATA, 4096, true)]), (1, 1));
        assert_eq!(disk.bench.read(DATA, 4096), [0; 4096]);
        map(&disk.bench, DATA, DATA + 0x1000);
        assert_eq!(disk.request(0, 0, &[(DATA, 4096, true)]), (0, 4097));
        assert_eq!(disk.bench.read(DATA, 4096), [round; 4096]);
        // What is offered meanwhile is done when it may reach memory again.
        disk.bench.built.bus_master.set_bus_master(false);
        disk.bench.write(DATA, &[0; 4096]);
        disk.bench.write(HEADER, &[0; 16]);
        disk.bench.write(STATUS, &[0xee]);
        disk.bench.offer(&mut disk.ring, &[(HEADER, 16, false), (DATA, 4096, true), (STATUS, 1, true)]);
        disk.bench.notify(&disk.ring);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!((disk.bench.read(DATA, 4096), disk.bench.read(STATUS, 1)), (vec![0; 4096], vec![0xee]));
        disk.bench.built.bus_master.set_bus_master(true);
        disk.bench.wait(&mut disk.ring);
        assert_eq!((disk.bench.read(DATA, 4096), disk.bench.read(STATUS, 1)), (vec![round; 4096], vec![0]));
    }
    // A ring that is not mapped.
    disk.bench.set(Register::DeviceStatus, 0);
    disk.bench.ioas.unmap(IovaRange::ALL).unwrap();
    disk.bench.begin(VERSION_1, 1);
    wait_until("it needs a reset, as it does not find the ring", || disk.bench.needs_reset());
}

/// However a request is cut into parts, it is the same request (2.7.4.1).
#[test]
fn parts_are_cut_anywhere() {
    let mut disk = Disk::new(&["memory=1M"]);
    let written = HEADER + 0x1000;
    for (number, cuts) in [&[0u32][..], &[8], &[16], &[3, 16, 20], &[528], &[1, 2, 3, 400]].into_iter().enumerate() {
        let mut all = vec![1, 0, 0, 0, 0, 0, 0, 0, number as u8, 0, 0, 0, 0, 0, 0, 0];
        all.extend([0x40 + number as u8; 512]);
        disk.bench.write(HEADER, &all);
        disk.bench.write(written, &[0xee; 600]);
        let edges: Vec<u32> = [&[0], cuts, &[528]].concat();
        let mut chain: Vec<_> = edges
            .windows(2)
            .filter(|pair| pair[0] < pair[1])
            .map(|pair| (HEADER + u64::from(pair[0]), pair[1] - pair[0], false))
            .collect();
        chain.push((written, 1, true));
        disk.bench.offer(&mut disk.ring, &chain);
        disk.bench.notify(&disk.ring);
        disk.bench.wait(&mut disk.ring);
        assert_eq!(disk.bench.read(written, 1), [0], "{cuts:?}");
        // Read back, with the status behind the data in one part, or in two.
        disk.bench.write(HEADER, &[0]);
        let chain = match number % 2 {
            0 => vec![(HEADER, 16, false), (written, 513, true)],
            _ => vec![(HEADER, 16, false), (written, 100, true), (written + 100, 413, true)],
        };
        disk.bench.offer(&mut disk.ring, &chain);
        disk.bench.notify(&disk.ring);
        assert_eq!(disk.bench.wait(&mut disk.ring).1, 513);
        assert_eq!(disk.bench.read(written, 514), [&[0x40 + number as u8; 512][..], &[0, 0xee]].concat(), "{cuts:?}");
    }
}
