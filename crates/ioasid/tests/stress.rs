//! The completion guarantee, by content: after an unmap, a detach, a replacement or the loss of bus mastering has
//! returned, not one byte is read or written through the old translation.
//!
//! Devices read, write and copy in one buffer without a pause. Another thread gives them a buffer there and takes it
//! away again. Taken away, the buffer is filled with a secret: if a device's data ever shows the secret, or the buffer
//! ever shows a device's data, a DMA came too late. Meanwhile the dirty log is read without a pause.

#![allow(unsafe_code, reason = "looks at memory that devices write")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::fd::AsFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ioasid::memory::{Mapped, Process, Segment};
use ioasid::{Access, Device, Endpoint, GroupId, Hwpt, HwptOptions, Iova, IovaRange, Machine, Placement, Rid, Silent};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

/// What each device has of the buffer for itself, so that two share a page and no byte: two that write one byte at once
/// race, as on hardware, and a tool that looks for races could not tell that from one of ours.
const SHARE: usize = 6 * 1024;
const PAGE: u64 = 4096;
const LENGTH: usize = 3 * SHARE + 2048;
const AT: Iova = Iova(0x7_f000);
const ELSEWHERE: Iova = Iova(0x100_0000);
const OPEN: u64 = 0x1111_1111_1111_1111;
const WRITTEN: u64 = 0x2222_2222_2222_2222;
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// Seconds; `IOASID_STRESS_SECONDS` changes it.
const LONG: u64 = 30;

/// Memory that the test sees at `words` and devices reach through `segment`.
struct Buffer {
    words: *mut u64,
    segment: Segment,
}

impl Buffer {
    /// A file that is mapped here a second time for the devices.
    fn file() -> Self {
        let (segment, file) = Segment::memfd(LENGTH as u64).unwrap();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, leaked.
        let words = unsafe { mmap(ptr::null_mut(), LENGTH, prot, MapFlags::SHARED, file.as_fd(), 0).unwrap() };
        Self { words: words.cast(), segment }
    }

    /// Private memory, which devices reach by way of the kernel.
    fn private() -> Self {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, leaked.
        let words = unsafe { mmap_anonymous(ptr::null_mut(), LENGTH, prot, MapFlags::PRIVATE).unwrap() };
        let process = Process::open(std::process::id()).unwrap();
        let segments = process.import(words as u64, LENGTH as u64, Access::all(), |_| Mapped::Memory).unwrap();
        let [segment] = <[Segment; 1]>::try_from(segments).ok().unwrap();
        Self { words: words.cast(), segment }
    }

    fn word(&self, n: usize) -> &AtomicU64 {
        assert!(n < LENGTH / 8);
        // SAFETY: inside the mapping, aligned, and everybody here goes by atomics.
        unsafe { AtomicU64::from_ptr(self.words.add(n)) }
    }

    fn fill(&self, value: u64) {
        (0..LENGTH / 8).for_each(|n| self.word(n).store(value, Ordering::SeqCst));
    }

    fn holds_only(&self, value: u64) -> bool {
        (0..LENGTH / 8).all(|n| self.word(n).load(Ordering::SeqCst) == value)
    }
}

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    fn count(&self, fine: bool) {
        (if fine { &self.done } else { &self.refused }).fetch_add(1, Ordering::Relaxed);
    }
}

fn shows_secret(bytes: &[u8]) -> bool {
    bytes.chunks_exact(8).any(|word| word == SECRET.to_ne_bytes())
}

/// Uses the device until `stop`: reads, writes or copies, each checked.
fn hammer(endpoint: &Arc<Endpoint>, what: u32, stop: &AtomicBool, counts: &Counts) {
    let mut port = endpoint.port();
    let mut data = vec![0; SHARE];
    let pattern = WRITTEN.to_ne_bytes().repeat(SHARE / 8);
    let at = Iova(AT.0 + u64::from(what) * SHARE as u64);
    while !stop.load(Ordering::Relaxed) {
        let result = match what {
            0 => port.read(at, &mut data),
            1 => port.write(at, &pattern),
            _ => port.copy(at, ELSEWHERE, SHARE as u64).and_then(|()| port.read(ELSEWHERE, &mut data)),
        };
        assert!(!shows_secret(&data), "a device read memory that had been taken away");
        counts.count(result.is_ok());
    }
}

/// Reads the dirty log of the buffer again and again until `stop`, and returns how many pages were dirty.
fn harvest(table: &Hwpt, stop: &AtomicBool) -> u64 {
    let range = IovaRange::new(AT.0, LENGTH as u64).unwrap();
    let (mut bitmap, mut dirty) = ([0], 0);
    while !stop.load(Ordering::Relaxed) {
        bitmap[0] = 0;
        table.read_dirty(range, PAGE, true, &mut bitmap).unwrap();
        assert_eq!(bitmap[0] & 1, 0, "the first page is only read");
        dirty += u64::from(bitmap[0].count_ones());
    }
    dirty
}

/// A small generator: the test must not depend on how good it is.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pause(&mut self, longest: Duration) {
        let wait = Duration::from_nanos(self.below(longest.as_nanos() as u64));
        let begin = Instant::now();
        while begin.elapsed() < wait {
            std::hint::spin_loop();
        }
    }
}

#[test]
fn no_byte_moves_through_a_mapping_after_it_was_taken_away() {
    let seconds = std::env::var("IOASID_STRESS_SECONDS").map_or(LONG, |text| text.parse().unwrap());
    let machine = Machine::new(Arc::new(Silent));
    let endpoint = machine.add_endpoint(Rid::new(0, 0, 1, 0).unwrap(), GroupId(0)).unwrap();
    let context = machine.context();
    let (main, other) = (context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap());
    for ioas in [&main, &other] {
        let (sink, _file) = Segment::memfd(LENGTH as u64).unwrap();
        ioas.map(Placement::Fixed(ELSEWHERE), LENGTH as u64, Access::all(), || Ok(vec![sink])).unwrap();
    }
    let buffers = [Buffer::file(), Buffer::private()];
    let device: Device = context.bind(&endpoint).unwrap();
    let table = context.hwpt_alloc(&endpoint, &main, HwptOptions::default().dirty_tracking(true)).unwrap();
    table.start_dirty_tracking(PAGE).unwrap();
    device.attach(None, &table).unwrap();
    endpoint.set_bus_master(true).unwrap();

    let (stop, counts) = (AtomicBool::new(false), [Counts::default(), Counts::default(), Counts::default()]);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut taken = [0u64; 4];
    let dirty = std::thread::scope(|scope| {
        let harvest = scope.spawn(|| harvest(&table, &stop));
        for (what, counts) in (0..).zip(&counts) {
            let (endpoint, stop) = (&endpoint, &stop);
            scope.spawn(move || hammer(endpoint, what, stop, counts));
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            let buffer = &buffers[random.below(2) as usize];
            buffer.fill(OPEN);
            let segment = buffer.segment.clone();
            let range = IovaRange::new(AT.0, LENGTH as u64).unwrap();
            main.map(Placement::Fixed(AT), LENGTH as u64, Access::all(), || Ok(vec![segment])).unwrap();
            random.pause(Duration::from_micros(300));
            let way = random.below(4) as usize;
            match way {
                0 => assert_eq!(main.unmap(range).unwrap(), LENGTH as u64),
                1 => device.detach(None).unwrap(),
                2 => drop(device.attach(None, &other).unwrap()),
                _ => endpoint.set_bus_master(false).unwrap(),
            }
            taken[way] += 1;
            // From here on the buffer is ours alone.
            buffer.fill(SECRET);
            random.pause(Duration::from_micros(100));
            assert!(buffer.holds_only(SECRET), "a device wrote to memory that had been taken away (way {way})");
            buffer.fill(OPEN);
            if way != 0 {
                main.unmap(range).unwrap();
            }
            device.attach(None, &table).unwrap();
            endpoint.set_bus_master(true).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        harvest.join().unwrap()
    });
    println!("pages found dirty: {dirty}");
    assert!(dirty > 20, "the test had no power: {dirty} pages found dirty");

    println!("taken away by unmap, detach, replacement, bus master: {taken:?}");
    for (what, counts) in ["reads", "writes", "copies"].into_iter().zip(&counts) {
        let (done, refused) = (counts.done.load(Ordering::Relaxed), counts.refused.load(Ordering::Relaxed));
        println!("{what:<7} {done:>10} done {refused:>10} refused");
        assert!(done > 100 && refused > 100, "the test had no power: {done} {what} done, {refused} refused");
    }
    assert!(taken.iter().all(|&count| count > 20), "the test had no power: {taken:?}");

    device.detach(None).unwrap();
    drop(device);
    context.destroy(table.id()).unwrap();
    context.destroy(main.id()).unwrap();
    context.destroy(other.id()).unwrap();
    drop((table, main, other, context));
    assert_eq!(machine.resources(), (0, 0), "windows and tables are all given back");
}
