//! What one device writes, by its own log: each page of it, nothing else, and nothing of other devices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasid::{Access, DirtyError, Endpoint, Iova, IovaRange};
use proptest::prelude::*;

use common::{Bench, PAGE, map, range};

const BASE: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// Pages that are mapped: two large ones, some small ones behind them, and then a gap.
const PAGES: u64 = 1024 + 40;
/// Those that are logged: from the middle of a large page on, to somewhere behind what is mapped; without a hole.
const LOGGED: [(u64, u64); 2] = [(300, 500), (900, 200)];

fn at(page: u64) -> Iova {
    Iova(BASE + page * PAGE)
}

/// The pages of `range` that the device has written, by their number.
fn written(endpoint: &Endpoint, range: IovaRange, page: u64, clear: bool) -> BTreeSet<u64> {
    let pages = range.len_minus_one() / page + 1;
    let mut bitmap = vec![0; pages.div_ceil(64) as usize];
    endpoint.read_write_log(range, page, clear, &mut bitmap).unwrap();
    (0..pages).filter(|page| bitmap[*page as usize / 64] >> (page % 64) & 1 == 1).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Write { other: bool, page: u64, offset: u64, length: u64 },
    Read { page: u64 },
    Copy { from: u64, to: u64 },
    Add { page: u64 },
    Borrow { page: u64, length: u64, write: bool },
    Again,
    Look { page: u64, pages: u64, clear: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let page = || prop_oneof![290..310u64, 795..805u64, 895..905u64, 1020..1070u64, 0..PAGES];
    let write = (any::<bool>(), page(), 0..PAGE, prop_oneof![1..3 * PAGE, Just(40 * PAGE)]);
    prop_oneof![
        5 => write.prop_map(|(other, page, offset, length)| Step::Write { other, page, offset, length }),
        2 => page().prop_map(|page| Step::Read { page }),
        1 => (page(), page()).prop_map(|(from, to)| Step::Copy { from, to }),
        1 => page().prop_map(|page| Step::Add { page }),
        1 => (page(), 1..3 * PAGE, any::<bool>()).prop_map(|(page, length, write)| Step::Borrow { page, length, write }),
        1 => Just(Step::Again),
        3 => (page(), 1..700u64, any::<bool>()).prop_map(|(page, pages, clear)| Step::Look { page, pages, clear }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_log_agrees_with_the_list_of_writes(steps in prop::collection::vec(step(), 1..100)) {
        let bench = Bench::new();
        let (endpoint, mut port, ioas, device) = bench.one_device();
        let second = bench.endpoint(2, 2);
        second.set_bus_master(true).unwrap();
        let second_device = device.context().bind(&second).unwrap();
        second_device.attach(None, &ioas).unwrap();
        device.attach(None, &ioas).unwrap();
        let mut other = second.port();
        map(&ioas, BASE, PAGES).unwrap();
        // In the IOTLB, with leave to write.
        (0..PAGES).for_each(|page| port.write(at(page), &[1]).unwrap());
        endpoint.start_write_log(&LOGGED.map(|(page, pages)| range(at(page).0, pages * PAGE)), PAGE).unwrap();
        let mut model = BTreeSet::new();
        let pages = |page: u64, offset: u64, length: u64| page..=page + (offset + length - 1) / PAGE;
        let is_mapped = |page: &u64| *page < PAGES;
        let is_logged = |page: &u64| LOGGED.iter().any(|(first, pages)| (*first..first + pages).contains(page));
        for step in steps {
            match step {
                Step::Write { other: false, page, offset, length } => {
                    // Up to the first page that is missing it is written.
                    model.extend(pages(page, offset, length).take_while(is_mapped).filter(is_logged));
                    let _ = port.write(Iova(at(page).0 + offset), &vec![1; length as usize]);
                }
                Step::Write { other: true, page, offset, length } => {
                    let _ = other.write(Iova(at(page).0 + offset), &vec![1; length as usize]);
                }
                Step::Read { page } => prop_assert_eq!(port.read(at(page), &mut [0; 8]).is_ok(), is_mapped(&page)),
                Step::Copy { from, to } => {
                    let done = port.copy(at(from), at(to), PAGE).is_ok();
                    prop_assert_eq!(done, is_mapped(&from) && is_mapped(&to));
                    model.extend(Some(to).filter(is_logged).filter(|_| done));
                }
                Step::Add { page } => {
                    let done = port.fetch_add(at(page), 1).is_ok();
                    model.extend(Some(page).filter(is_logged).filter(|_| done));
                }
                Step::Borrow { page, length, write } => {
                    let access = if write { Access::WRITE } else { Access::READ };
                    let there = pages(page, 0, length).take_while(is_mapped).filter(is_logged);
                    model.extend(there.filter(|_| write));
                    prop_assert_eq!(port.slices(at(page), length, access).is_ok(), pages(page, 0, length).all(|page| is_mapped(&page)));
                }
                Step::Again => {
                    // What it is attached to makes no difference.
                    ioas.unmap(range(BASE, PAGES * PAGE)).unwrap();
                    device.detach(None).unwrap();
                    map(&ioas, BASE, PAGES).unwrap();
                    device.attach(None, &ioas).unwrap();
                }
                Step::Look { page, pages, clear } => {
                    let wanted: BTreeSet<u64> = model.range(page..page + pages).map(|page_number| page_number - page).collect();
                    prop_assert_eq!(written(&endpoint, range(at(page).0, pages * PAGE), PAGE, clear), wanted);
                    model.retain(|written| !clear || !(page..page + pages).contains(written));
                }
            }
        }
        // At the end, without the log, writes are as fast as ever, and nothing is known.
        endpoint.stop_write_log();
        port.write(at(300), &[1]).unwrap();
        prop_assert_eq!(endpoint.read_write_log(range(BASE, PAGE), PAGE, true, &mut [0]), Err(DirtyError::Off));
    }
}

#[test]
fn bad_requests_get_named_errors_and_change_nothing() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    device.attach(None, &ioas).unwrap();
    map(&ioas, BASE, 4).unwrap();
    let start = |ranges: &[IovaRange], page| endpoint.start_write_log(ranges, page);
    let (first, second) = (range(BASE, 2 * PAGE), range(BASE + PAGE, PAGE));
    assert_eq!(start(&[first], 0), Err(DirtyError::PageSize(0)));
    assert_eq!(start(&[first], 2048), Err(DirtyError::PageSize(2048)));
    assert_eq!(start(&[first], PAGE + 1), Err(DirtyError::PageSize(PAGE + 1)));
    assert_eq!(
        start(&[range(BASE, PAGE), range(BASE + 1, PAGE)], PAGE),
        Err(DirtyError::Range(range(BASE + 1, PAGE), PAGE))
    );
    assert_eq!(start(&[second, first], PAGE), Err(DirtyError::Overlap(second)));
    assert!(matches!(start(&[IovaRange::ALL], PAGE), Err(DirtyError::TooManyPages(..))));
    assert!(!endpoint.has_write_log());
    start(&[first], PAGE).unwrap();
    assert_eq!(start(&[first], PAGE), Err(DirtyError::On));
    port.write(at(1), &[1]).unwrap();
    let read = |range, page, bitmap: &mut [u64]| endpoint.read_write_log(range, page, true, bitmap);
    assert_eq!(read(first, 3, &mut [0]), Err(DirtyError::PageSize(3)));
    assert_eq!(read(range(BASE, 65 * PAGE), PAGE, &mut [0]), Err(DirtyError::ShortBitmap(2, 1)));
    // Bits that are set stay set.
    let mut bitmap = [1 << 60];
    read(first, PAGE, &mut bitmap).unwrap();
    assert_eq!(bitmap, [1 << 60 | 1 << 1]);
}

#[test]
fn answers_are_as_coarse_as_the_question() {
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    device.attach(None, &ioas).unwrap();
    map(&ioas, BASE, 2048).unwrap();
    // In pages of 64 KiB.
    endpoint.start_write_log(&[range(BASE, 8 * MIB)], 64 << 10).unwrap();
    port.write(Iova(BASE + 2 * MIB + 0x1_2345), &[1]).unwrap();
    let whole = range(BASE, 8 * MIB);
    assert_eq!(written(&endpoint, whole, 2 * MIB, false), BTreeSet::from([1]));
    assert_eq!(written(&endpoint, whole, PAGE, false), (512 + 16..512 + 32).collect());
    // A part of a page is told, and stays.
    let part = range(BASE + 2 * MIB + 0x1_4000, PAGE);
    assert_eq!(written(&endpoint, part, PAGE, true), BTreeSet::from([0]));
    assert_eq!(written(&endpoint, part, 1024, true), (0..4).collect());
    assert_eq!(written(&endpoint, whole, 64 << 10, true), BTreeSet::from([33]));
    assert_eq!(written(&endpoint, whole, 64 << 10, true), BTreeSet::new());
}

#[test]
fn copying_what_was_written_until_nothing_is_gives_the_same_memory() {
    const WORDS: u64 = 600;
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    device.attach(None, &ioas).unwrap();
    map(&ioas, BASE, WORDS).unwrap();
    let whole = range(BASE, WORDS * PAGE);
    let stop = AtomicBool::new(false);
    let mut copy = vec![0u64; WORDS as usize];
    let mut transfer = |pages: BTreeSet<u64>| {
        for page in pages {
            let mut word = [0; 8];
            port.read(at(page), &mut word).unwrap();
            copy[page as usize] = u64::from_ne_bytes(word);
        }
    };
    std::thread::scope(|scope| {
        for seed in [7u64, 77] {
            let (mut port, stop) = (endpoint.port(), &stop);
            scope.spawn(move || {
                let mut seed = seed;
                while !stop.load(Ordering::Relaxed) {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    port.fetch_add(at(seed % WORDS), 1).unwrap();
                }
            });
        }
        // While they write.
        endpoint.start_write_log(&[whole], PAGE).unwrap();
        transfer((0..WORDS).collect());
        for _ in 0..300 {
            transfer(written(&endpoint, whole, PAGE, true));
        }
        stop.store(true, Ordering::Relaxed);
    });
    transfer(written(&endpoint, whole, PAGE, true));
    let mut now = vec![0; (WORDS * PAGE) as usize];
    port.read(Iova(BASE), &mut now).unwrap();
    for (page, copied) in copy.into_iter().enumerate() {
        let start = page * PAGE as usize;
        assert_eq!(u64::from_ne_bytes(now[start..start + 8].try_into().unwrap()), copied, "page {page}");
    }
}
