//! Dirty tracking: every write is noted, nothing else is, and no finer or coarser than was asked for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasid::memory::{RemoteMemory, Segment, TableSpace};
use ioasid::{
    Access, Device, DirtyError, DmaPort, GroupId, Hwpt, Ioas, Iova, IovaRange, Machine, Placement, Rid, Silent,
};
use proptest::prelude::*;

use common::{Bench, PAGE, map, range};

const BASE: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn attach(device: &Device, ioas: &Arc<Ioas>) -> Arc<Hwpt> {
    device.context().hwpt(device.attach(None, ioas).unwrap()).unwrap()
}

/// The pages of `range` that are dirty, by their number.
fn dirty(hwpt: &Hwpt, range: IovaRange, page: u64, clear: bool) -> BTreeSet<u64> {
    let pages = (range.len_minus_one() + 1) / page;
    let mut bitmap = vec![0; pages.div_ceil(64) as usize];
    hwpt.read_dirty(range, page, clear, &mut bitmap).unwrap();
    (0..pages).filter(|page| bitmap[*page as usize / 64] >> (page % 64) & 1 == 1).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Write { page: u64, offset: u64, length: u64 },
    Read { page: u64 },
    Copy { from: u64, to: u64 },
    Add { page: u64 },
    Borrow { page: u64, length: u64, write: bool },
    Map { page: u64, pages: u64 },
    Unmap { page: u64 },
    Look { page: u64, pages: u64, clear: bool },
}

const SPACE: u64 = 2048;

fn step() -> impl Strategy<Value = Step> {
    let page = || prop_oneof![0..40u64, 500..530u64, 0..SPACE];
    prop_oneof![
        4 => (page(), 0..PAGE, 1..3 * PAGE).prop_map(|(page, offset, length)| Step::Write { page, offset, length }),
        2 => page().prop_map(|page| Step::Read { page }),
        1 => (page(), page()).prop_map(|(from, to)| Step::Copy { from, to }),
        1 => page().prop_map(|page| Step::Add { page }),
        1 => (page(), 1..3 * PAGE, any::<bool>()).prop_map(|(page, length, write)| Step::Borrow { page, length, write }),
        2 => (page(), prop_oneof![1..40u64, Just(512)]).prop_map(|(page, pages)| Step::Map { page, pages }),
        1 => page().prop_map(|page| Step::Unmap { page }),
        3 => (page(), 1..700u64, any::<bool>()).prop_map(|(page, pages, clear)| Step::Look { page, pages, clear }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_log_agrees_with_the_list_of_writes(steps in prop::collection::vec(step(), 1..100)) {
        let bench = Bench::new();
        let (_endpoint, mut port, ioas, device) = bench.one_device();
        let hwpt = attach(&device, &ioas);
        map(&ioas, BASE, 512).unwrap();
        hwpt.start_dirty_tracking(PAGE).unwrap();
        let mut mapped: Vec<(u64, u64)> = vec![(0, 512)];
        let mut model = BTreeSet::new();
        let at = |page: u64| Iova(BASE + page * PAGE);
        let pages = |page: u64, offset: u64, length: u64| page..=page + (offset + length - 1) / PAGE;
        for step in steps {
            let is_mapped = |page: u64| mapped.iter().any(|&(first, pages)| (first..first + pages).contains(&page));
            match step {
                Step::Write { page, offset, length } => {
                    let touched = pages(page, offset, length);
                    // Up to the first page that is missing it is written.
                    model.extend(touched.take_while(|&page| is_mapped(page)));
                    let _ = port.write(Iova(at(page).0 + offset), &vec![1; length as usize]);
                }
                Step::Read { page } => {
                    prop_assert_eq!(port.read(at(page), &mut [0; 8]).is_ok(), is_mapped(page));
                }
                Step::Copy { from, to } => {
                    let done = port.copy(at(from), at(to), PAGE).is_ok();
                    prop_assert_eq!(done, is_mapped(from) && is_mapped(to));
                    model.extend(done.then_some(to));
                }
                Step::Add { page } => {
                    model.extend(port.fetch_add(at(page), 1).is_ok().then_some(page));
                }
                Step::Borrow { page, length, write } => {
                    let access = if write { Access::WRITE } else { Access::READ };
                    let there = pages(page, 0, length).take_while(|&page| is_mapped(page));
                    model.extend(there.filter(|_| write));
                    prop_assert_eq!(port.slices(at(page), length, access).is_ok(), pages(page, 0, length).all(is_mapped));
                }
                Step::Map { page, pages } => {
                    if !(page..page + pages).any(is_mapped) {
                        map(&ioas, at(page).0, pages).unwrap();
                        mapped.push((page, pages));
                    }
                }
                Step::Unmap { page } => {
                    let Some(found) = mapped.iter().position(|&(first, pages)| (first..first + pages).contains(&page))
                    else { continue };
                    let (first, pages) = mapped.swap_remove(found);
                    ioas.unmap(range(at(first).0, pages * PAGE)).unwrap();
                    model.retain(|page| !(first..first + pages).contains(page));
                }
                Step::Look { page, pages, clear } => {
                    let wanted: BTreeSet<u64> =
                        model.range(page..page + pages).map(|dirty| dirty - page).collect();
                    prop_assert_eq!(dirty(&hwpt, range(at(page).0, pages * PAGE), PAGE, clear), wanted);
                    model.retain(|dirty| !clear || !(page..page + pages).contains(dirty));
                }
            }
        }
    }
}

#[test]
fn large_pages_are_split_only_as_far_as_asked() {
    for (granule, noted) in [(u64::MAX, 0..512), (2 * MIB, 0..512), (64 << 10, 3..4), (PAGE, 3..4)] {
        let bench = Bench::new();
        let (_endpoint, mut port, ioas, device) = bench.one_device();
        let hwpt = attach(&device, &ioas);
        map(&ioas, BASE, 1024).unwrap();
        let tables = bench.machine.resources().1;
        hwpt.start_dirty_tracking(granule).unwrap();
        assert_eq!(bench.machine.resources().1 - tables, if granule < 2 * MIB { 2 } else { 0 });
        port.write(Iova(BASE + 3 * PAGE), &[1]).unwrap();
        let whole = range(BASE, 4 * MIB);
        assert_eq!(dirty(&hwpt, whole, PAGE, false), noted.collect(), "granule {granule:#x}");
        // Coarser questions get coarser answers.
        assert_eq!(dirty(&hwpt, whole, 2 * MIB, false), BTreeSet::from([0]));
        // What is mapped later is as fine.
        map(&ioas, BASE + 8 * MIB, 512).unwrap();
        port.write(Iova(BASE + 8 * MIB), &[1]).unwrap();
        let later = dirty(&hwpt, range(BASE + 8 * MIB, 2 * MIB), PAGE, false).len();
        assert_eq!(later, if granule < 2 * MIB { 1 } else { 512 });
    }
}

#[test]
fn starting_again_begins_with_nothing_and_after_the_end_nothing_is_known() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let hwpt = attach(&device, &ioas);
    map(&ioas, BASE, 2).unwrap();
    let whole = range(BASE, 2 * PAGE);
    assert_eq!(hwpt.read_dirty(whole, PAGE, false, &mut [0]), Err(DirtyError::Off));
    // In the IOTLB, with leave to write, before anything is tracked.
    port.write(Iova(BASE), &[1]).unwrap();
    hwpt.start_dirty_tracking(PAGE).unwrap();
    assert!(dirty(&hwpt, whole, PAGE, false).is_empty());
    port.write(Iova(BASE), &[1]).unwrap();
    assert_eq!(dirty(&hwpt, whole, PAGE, false), BTreeSet::from([0]));
    hwpt.start_dirty_tracking(PAGE).unwrap();
    assert!(dirty(&hwpt, whole, PAGE, false).is_empty());
    hwpt.stop_dirty_tracking();
    port.write(Iova(BASE), &[1]).unwrap();
    assert_eq!(hwpt.read_dirty(whole, PAGE, false, &mut [0]), Err(DirtyError::Off));
}

#[test]
fn tracking_that_cannot_be_made_finer_goes_on_as_it_was() {
    // One chunk of tables, and more to split than it has room for.
    let machine = Machine::with_tables(Arc::new(Silent), TableSpace::private(2 << 20).unwrap());
    let endpoint = machine.add_endpoint(Rid::new(0, 0, 1, 0).unwrap(), GroupId(1)).unwrap();
    endpoint.set_bus_master(true).unwrap();
    let context = machine.context();
    let (ioas, device) = (context.ioas_alloc().unwrap(), context.bind(&endpoint).unwrap());
    map(&ioas, BASE, 512 * 1024).unwrap();
    let hwpt = attach(&device, &ioas);
    hwpt.start_dirty_tracking(2 * MIB).unwrap();
    let mut port = endpoint.port();
    port.write(Iova(BASE), &[1]).unwrap();
    assert!(matches!(hwpt.start_dirty_tracking(PAGE), Err(DirtyError::Table(_))));
    port.write(Iova(BASE + 600 * MIB), &[1]).unwrap();
    let dirty = dirty(&hwpt, range(BASE, 2048 * MIB), 2 * MIB, true);
    assert_eq!(dirty, BTreeSet::from([0, 300]));
}

#[test]
fn bits_that_are_set_stay_set_and_bad_questions_get_named_errors() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let hwpt = attach(&device, &ioas);
    map(&ioas, BASE, 4).unwrap();
    assert_eq!(hwpt.start_dirty_tracking(PAGE + 1), Err(DirtyError::PageSize(PAGE + 1)));
    hwpt.start_dirty_tracking(PAGE).unwrap();
    port.write(Iova(BASE + PAGE), &[1]).unwrap();
    let whole = range(BASE, 4 * PAGE);
    let mut bitmap = [1 << 3 | 1 << 60];
    hwpt.read_dirty(whole, PAGE, true, &mut bitmap).unwrap();
    assert_eq!(bitmap, [1 << 1 | 1 << 3 | 1 << 60]);
    let ask = |range, page| hwpt.read_dirty(range, page, false, &mut [0]);
    assert_eq!(ask(whole, 0), Err(DirtyError::PageSize(0)));
    assert_eq!(ask(whole, 2049), Err(DirtyError::PageSize(2049)));
    for cut in [range(BASE + 1, PAGE), range(BASE, PAGE + 1)] {
        assert_eq!(ask(cut, PAGE), Err(DirtyError::Range(cut, PAGE)));
    }
    // Half a page of the table's is not one.
    assert_eq!(ask(range(BASE, 2048), 2048), Err(DirtyError::Range(range(BASE, 2048), 2048)));
    assert_eq!(ask(range(BASE, 65 * PAGE), PAGE), Err(DirtyError::ShortBitmap(2, 1)));
    assert!(matches!(ask(IovaRange::ALL, PAGE), Err(DirtyError::ShortBitmap(..))));
}

#[test]
fn bits_may_stand_for_less_than_a_page_and_for_what_no_table_can_map() {
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let hwpt = attach(&device, &ioas);
    let end = 1 << 48;
    map(&ioas, end - PAGE, 1).unwrap();
    hwpt.start_dirty_tracking(PAGE).unwrap();
    port.write(Iova(end - 1), &[1]).unwrap();
    // The last page and one that cannot be mapped.
    assert_eq!(dirty(&hwpt, range(end - PAGE, 2 * PAGE), PAGE, false), BTreeSet::from([0]));
    assert_eq!(dirty(&hwpt, range(end - PAGE, 2 * PAGE), 1024, true), BTreeSet::from([0, 1, 2, 3]));
    assert_eq!(dirty(&hwpt, range(u64::MAX - PAGE + 1, PAGE), PAGE, false), BTreeSet::new());
    assert_eq!(dirty(&hwpt, range(end - PAGE, PAGE), PAGE, false), BTreeSet::new());
}

#[test]
fn what_was_written_by_other_means_is_noted_if_somebody_says_so() {
    let bench = Bench::new();
    let (_endpoint, _port, ioas, device) = bench.one_device();
    let hwpt = attach(&device, &ioas);
    map(&ioas, BASE, 2).unwrap();
    let (segment, _file) = Segment::memfd(PAGE).unwrap();
    ioas.map(Placement::Fixed(Iova(BASE + 2 * PAGE)), PAGE, Access::READ, || Ok(vec![segment])).unwrap();
    assert!(!hwpt.mark_dirty(Iova(BASE)).unwrap(), "nothing is tracked");
    hwpt.start_dirty_tracking(PAGE).unwrap();
    assert!(hwpt.mark_dirty(Iova(BASE + PAGE + 7)).unwrap());
    assert!(!hwpt.mark_dirty(Iova(BASE + 2 * PAGE)).unwrap(), "nobody may write it");
    assert!(!hwpt.mark_dirty(Iova(BASE + 3 * PAGE)).unwrap(), "nothing is mapped");
    assert_eq!(dirty(&hwpt, range(BASE, 4 * PAGE), PAGE, true), BTreeSet::from([1]));
}

#[test]
fn writes_to_memory_that_is_not_mapped_here_are_noted_too() {
    struct Nowhere;
    impl RemoteMemory for Nowhere {
        fn read(&self, _: u64, data: &mut [u8]) -> io::Result<()> {
            data.fill(0);
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
    }
    let bench = Bench::new();
    let (_endpoint, mut port, ioas, device) = bench.one_device();
    let hwpt = attach(&device, &ioas);
    let memory = || Ok(vec![Segment::remote(Arc::new(Nowhere), 0, 4 * PAGE)]);
    ioas.map(Placement::Fixed(Iova(BASE)), 4 * PAGE, Access::all(), memory).unwrap();
    hwpt.start_dirty_tracking(PAGE).unwrap();
    port.read(Iova(BASE), &mut [0; 8]).unwrap();
    for round in 0..2 {
        port.write(Iova(BASE + 2 * PAGE), &[1; 8]).unwrap();
        assert_eq!(dirty(&hwpt, range(BASE, 4 * PAGE), PAGE, true), BTreeSet::from([2]), "round {round}");
    }
}

/// Increments words of random pages, until told to stop.
fn writer(port: &mut DmaPort, pages: u64, mut seed: u64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        port.fetch_add(Iova(BASE + seed % pages * PAGE), 1).unwrap();
    }
}

#[test]
fn copying_what_is_dirty_until_nothing_is_gives_the_same_memory() {
    const PAGES: u64 = 600;
    let bench = Bench::new();
    let (endpoint, mut port, ioas, device) = bench.one_device();
    let hwpt = attach(&device, &ioas);
    map(&ioas, BASE, PAGES).unwrap();
    hwpt.start_dirty_tracking(PAGE).unwrap();
    let whole = range(BASE, PAGES * PAGE);
    let stop = AtomicBool::new(false);
    let mut copy = vec![0u64; PAGES as usize];
    let mut transfer = |dirty: BTreeSet<u64>| {
        for page in dirty {
            let mut word = [0; 8];
            port.read(Iova(BASE + page * PAGE), &mut word).unwrap();
            copy[page as usize] = u64::from_ne_bytes(word);
        }
    };
    std::thread::scope(|scope| {
        for seed in [7, 77] {
            let (mut port, stop) = (endpoint.port(), &stop);
            scope.spawn(move || writer(&mut port, PAGES, seed, stop));
        }
        for _ in 0..300 {
            transfer(dirty(&hwpt, whole, PAGE, true));
        }
        stop.store(true, Ordering::Relaxed);
    });
    transfer(dirty(&hwpt, whole, PAGE, true));
    let mut now = vec![0; (PAGES * PAGE) as usize];
    port.read(Iova(BASE), &mut now).unwrap();
    for (page, copied) in copy.into_iter().enumerate() {
        let start = page * PAGE as usize;
        assert_eq!(u64::from_ne_bytes(now[start..start + 8].try_into().unwrap()), copied, "page {page}");
    }
}
