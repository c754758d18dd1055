//! Mirrors from outside of the crate: one that keeps what it is told in a list, against a model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use ioasid::memory::{Pages, PinnedMemory, Segment};
use ioasid::{
    Access, ConnectError, Context, CutError, GroupId, Ioas, Iova, IovaRange, Machine, MapError, Mirror,
    MirrorCapabilities, MirrorError, MirrorRun, Placement, PresenceError, ProtectError, Rid, Silent, UnmapError,
};

const PAGE: u64 = 4096;

/// What a mirror does at a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Fails,
    Panics,
}

/// Follows an address space by a list of runs with their memory.
#[derive(Default)]
struct List {
    runs: Mutex<BTreeMap<u64, Run>>,
    /// Calls that can fail, so far.
    calls: AtomicUsize,
    /// The call that goes wrong, counted from 0, and how.
    wrong: Mutex<Option<(usize, Wrong)>>,
    /// Where it waits when it maps.
    gate: Mutex<Option<mpsc::Receiver<()>>>,
    waits: AtomicBool,
}

struct Run {
    last: u64,
    access: Access,
    memory: Arc<PinnedMemory>,
    /// Where the run begins in the memory.
    offset: u64,
}

impl List {
    /// Counts a call, and goes wrong if it is the one.
    fn call(&self) -> Result<(), MirrorError> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let wrong = *self.wrong.lock().unwrap();
        match wrong.filter(|(at, _)| *at == call) {
            Some((_, Wrong::Fails)) => Err(MirrorError::Failed("on purpose".into())),
            Some((_, Wrong::Panics)) => panic!("on purpose"),
            None => Ok(()),
        }
    }

    fn fails_at(&self, call: usize, wrong: Wrong) {
        self.calls.store(0, Ordering::Relaxed);
        *self.wrong.lock().unwrap() = Some((call, wrong));
    }

    fn is_well(&self) {
        *self.wrong.lock().unwrap() = None;
    }

    /// What it maps, page by page: what is allowed, and the first byte there.
    fn pages(&self) -> BTreeMap<u64, (Access, u8)> {
        let mut pages = BTreeMap::new();
        for (&start, run) in &*self.runs.lock().unwrap() {
            for at in (start..=run.last).step_by(PAGE as usize) {
                let mut byte = [0xff];
                if run.access.contains(Access::READ) {
                    run.memory.read(run.offset + (at - start), &mut byte).unwrap();
                }
                pages.insert(at / PAGE, (run.access, byte[0]));
            }
        }
        pages
    }
}

impl Mirror for List {
    fn capabilities(&self) -> MirrorCapabilities {
        MirrorCapabilities::default().with_reserved(vec![IovaRange::new(0x1f_0000, PAGE).unwrap()])
    }

    fn map(&self, run: &MirrorRun<'_>) -> Result<(), MirrorError> {
        if self.waits.load(Ordering::Acquire) {
            self.gate.lock().unwrap().as_ref().unwrap().recv().unwrap();
        }
        self.call()?;
        let (range, memory) = (run.range, Arc::new(run.memory()));
        assert_eq!(memory.len(), range.len_minus_one() + 1);
        assert_eq!(memory.chunks().iter().map(|chunk| chunk.length).sum::<u64>(), memory.len());
        let mut runs = self.runs.lock().unwrap();
        assert!(
            runs.range(..=range.last()).next_back().is_none_or(|(_, run)| run.last < range.start()),
            "mapped twice"
        );
        runs.insert(range.start(), Run { last: range.last(), access: run.access, memory, offset: 0 });
        Ok(())
    }

    fn unmap(&self, unmapped: &mut dyn Iterator<Item = IovaRange>) -> Result<(), MirrorError> {
        for range in unmapped {
            let mut runs = self.runs.lock().unwrap();
            let starts: Vec<u64> = runs.range(range.start()..=range.last()).map(|(start, _)| *start).collect();
            for start in starts {
                assert!(runs.remove(&start).unwrap().last <= range.last(), "{range} cuts a run");
            }
        }
        Ok(())
    }

    fn split(&self, Iova(at): Iova) -> Result<(), MirrorError> {
        self.call()?;
        let mut runs = self.runs.lock().unwrap();
        if let Some((&start, run)) = runs.range_mut(..at).next_back()
            && run.last >= at
        {
            let (last, offset) = (run.last, run.offset + (at - start));
            let upper = Run { last, access: run.access, memory: run.memory.clone(), offset };
            run.last = at - 1;
            runs.insert(at, upper);
        }
        Ok(())
    }

    fn protect(&self, run: &MirrorRun<'_>, before: Access) -> Result<(), MirrorError> {
        self.call()?;
        let mut runs = self.runs.lock().unwrap();
        let changed: Vec<u64> = runs.range(run.range.start()..=run.range.last()).map(|(start, _)| *start).collect();
        for start in changed {
            let mine = runs.get_mut(&start).unwrap();
            assert_eq!(mine.access, before);
            // The memory was pinned for what was allowed.
            mine.memory = Arc::new(run.memory());
            mine.offset = start - run.range.start();
            mine.access = run.access;
        }
        Ok(())
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn access(&mut self) -> Access {
        [Access::READ, Access::WRITE, Access::all()][self.below(3) as usize]
    }
}

/// One page of the model: what is allowed, which page of the memory it is, whether devices fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Page {
    access: Access,
    memory: u64,
    absent: bool,
}

/// An area of the model: how many pages it has.
type Areas = BTreeMap<u64, u64>;

struct Bench {
    _machine: Arc<Machine>,
    context: Arc<Context>,
    ioas: Arc<Ioas>,
    memory: Arc<Pages>,
}

/// Pages of IOVA, and of the memory; each page of that begins with its number.
const SPACE: u64 = 128;
const MEMORY: u64 = 64;

impl Bench {
    fn new() -> Self {
        let machine = Machine::new(Arc::new(Silent));
        let context = machine.context();
        let file = Segment::memfd(MEMORY * PAGE).unwrap().1;
        (0..MEMORY).for_each(|page| file.write_all_at(&[page as u8], page * PAGE).unwrap());
        let memory = Pages::of_file(file, 0, MEMORY * PAGE, true);
        let ioas = context.ioas_alloc().unwrap();
        Self { _machine: machine, context, ioas, memory }
    }
}

fn pages_of(start: u64, count: u64) -> IovaRange {
    IovaRange::new(start * PAGE, count * PAGE).unwrap()
}

/// One address space, and what should be in it.
struct Model {
    pages: BTreeMap<u64, Page>,
    areas: Areas,
}

impl Model {
    fn overlaps(&self, start: u64, count: u64) -> bool {
        self.areas.iter().any(|(&at, &length)| at < start + count && start < at + length)
    }

    /// The areas in a range, and whether it cuts one.
    fn areas_in(&self, start: u64, count: u64) -> (Vec<u64>, bool) {
        let touched: Vec<_> =
            self.areas.iter().filter(|&(&at, &length)| at < start + count && start < at + length).collect();
        let cut = touched.iter().any(|&(&at, &length)| at < start || at + length > start + count);
        (touched.into_iter().map(|(&at, _)| at).collect(), cut)
    }

    /// What a mirror should have.
    fn mirrored(&self) -> BTreeMap<u64, (Access, u8)> {
        let present = self.pages.iter().filter(|(_, page)| !page.absent);
        let byte = |page: &Page| if page.access.contains(Access::READ) { page.memory as u8 } else { 0xff };
        present.map(|(&at, page)| (at, (page.access, byte(page)))).collect()
    }

    fn cut(&mut self, at: u64) {
        if let Some((&start, length)) = self.areas.range_mut(..at).next_back()
            && start + *length > at
        {
            let upper = start + *length - at;
            *length = at - start;
            self.areas.insert(at, upper);
        }
    }
}

/// Does a random step in an address space, as it should be; `false` if a mirror made it fail, and then nothing is
/// changed.
fn step(bench: &Bench, ioas: &Ioas, model: &mut Model, random: &mut Random) -> bool {
    let (start, count) = (random.below(SPACE), random.below(8) + 1);
    let range = pages_of(start, count);
    match random.below(10) {
        0..4 => {
            let (from, access) = (random.below(MEMORY - count), random.access());
            let mapped = ioas.map_pages(Some(Iova(start * PAGE)), &bench.memory, from * PAGE, count * PAGE, access);
            match mapped {
                Err(MapError::Mirror(_)) => return false,
                Err(MapError::Occupied(_)) => assert!(model.overlaps(start, count)),
                Err(other) => panic!("{other}"),
                Ok(_) => {
                    assert!(!model.overlaps(start, count));
                    model.areas.insert(start, count);
                    for n in 0..count {
                        model.pages.insert(start + n, Page { access, memory: from + n, absent: false });
                    }
                }
            }
        }
        4..6 => {
            let (inside, cut) = model.areas_in(start, count);
            match ioas.unmap(range) {
                Ok(_) => assert!(!cut && !inside.is_empty()),
                Err(UnmapError::NotWhole(_)) => {
                    return {
                        assert!(cut);
                        true
                    };
                }
                Err(UnmapError::Empty(_)) => {
                    return {
                        assert!(inside.is_empty());
                        true
                    };
                }
                Err(other) => panic!("{other}"),
            }
            for at in inside {
                let length = model.areas.remove(&at).unwrap();
                (at..at + length).for_each(|page| assert!(model.pages.remove(&page).is_some()));
            }
        }
        6 => {
            // A copy into itself, of what lies together.
            let (from, access) = (random.below(SPACE), random.access());
            let whole = (from..from + count).all(|page| model.pages.contains_key(&page));
            match ioas.copy(Some(Iova(start * PAGE)), ioas, Iova(from * PAGE), count * PAGE, access) {
                Err(MapError::Mirror(_)) => return false,
                Err(MapError::SourceNotMapped(..)) => assert!(!whole),
                Err(MapError::Occupied(_)) => assert!(model.overlaps(start, count)),
                Err(other) => panic!("{other}"),
                Ok(_) => {
                    assert!(whole && !model.overlaps(start, count));
                    // An area for each piece.
                    let mut at = 0;
                    while at < count {
                        let (&area, &length) = model.areas.range(..=from + at).next_back().unwrap();
                        let piece = (area + length - (from + at)).min(count - at);
                        model.areas.insert(start + at, piece);
                        at += piece;
                    }
                    for n in 0..count {
                        let page = Page { access, absent: false, ..model.pages[&(from + n)] };
                        model.pages.insert(start + n, page);
                    }
                }
            }
        }
        7 => {
            let (inside, cut) = model.areas_in(start, count);
            let access = random.access();
            match ioas.protect(range, access) {
                Err(ProtectError::Mirror(_)) => return false,
                Err(ProtectError::NotWhole(_)) => assert!(cut),
                Err(ProtectError::Empty(_)) => assert!(inside.is_empty()),
                Err(other) => panic!("{other}"),
                Ok(()) => {
                    assert!(!cut && !inside.is_empty());
                    let changed = model.pages.range_mut(start..start + count);
                    changed.for_each(|(_, page)| page.access = access);
                }
            }
        }
        8 => {
            let (inside, _) = model.areas_in(start, count);
            match ioas.make_fault(range) {
                Err(PresenceError::Mirror(_)) => return false,
                Err(PresenceError::Empty(_)) => assert!(inside.is_empty()),
                Err(other) => panic!("{other}"),
                Ok(()) => {
                    [start, start + count].into_iter().for_each(|at| model.cut(at));
                    model.pages.range_mut(start..start + count).for_each(|(_, page)| page.absent = true);
                }
            }
        }
        _ => {
            let absent = model.pages.range(start..start + count).filter(|(_, page)| page.absent).count() as u64;
            match ioas.populate(range) {
                Err(PresenceError::Mirror(_)) => return false,
                Err(PresenceError::Empty(_)) => assert!(model.areas_in(start, count).0.is_empty()),
                Err(other) => panic!("{other}"),
                Ok(bytes) => {
                    assert_eq!(bytes, absent * PAGE);
                    // What was absent of each area became an area of its own.
                    let parts: Vec<(u64, u64)> = {
                        let areas =
                            model.areas.iter().filter(|&(&at, &length)| at < start + count && start < at + length);
                        let part = |(&at, &length): (&u64, &u64)| (at.max(start), (at + length).min(start + count));
                        areas.map(part).filter(|(at, _)| model.pages[at].absent).collect()
                    };
                    for (at, end) in parts {
                        [at, end].into_iter().for_each(|at| model.cut(at));
                    }
                    model.pages.range_mut(start..start + count).for_each(|(_, page)| page.absent = false);
                }
            }
        }
    }
    true
}

fn check(ioas: &Ioas, model: &Model, mirrors: &[&List]) {
    let areas: Areas =
        ioas.areas().iter().map(|area| (area.range.start() / PAGE, (area.range.len_minus_one() + 1) / PAGE)).collect();
    assert_eq!(areas, model.areas);
    for area in ioas.areas() {
        let page = model.pages[&(area.range.start() / PAGE)];
        assert_eq!((area.access, area.absent), (page.access, page.absent));
    }
    mirrors.iter().for_each(|mirror| assert_eq!(mirror.pages(), model.mirrored()));
}

#[test]
fn a_mirror_follows_ten_thousand_random_changes() {
    let bench = Bench::new();
    let (one, other) = (Arc::new(List::default()), Arc::new(List::default()));
    let mut model = Model { pages: BTreeMap::new(), areas: Areas::new() };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    bench.ioas.add_mirror(one.clone()).unwrap();
    for n in 0..10_000 {
        assert!(step(&bench, &bench.ioas, &mut model, &mut random));
        check(&bench.ioas, &model, &[&one]);
        // Another comes, is filled with what there is, and goes.
        if n % 1000 == 500 {
            bench.ioas.add_mirror(other.clone()).unwrap();
        } else if n % 1000 == 900 {
            let mirror: Arc<dyn Mirror> = other.clone();
            bench.ioas.remove_mirror(&mirror).unwrap();
            other.runs.lock().unwrap().clear();
        }
        if (500..900).contains(&(n % 1000)) {
            assert_eq!(other.pages(), model.mirrored());
        }
    }
    bench.ioas.unmap(IovaRange::ALL).unwrap();
    assert!(one.pages().is_empty());
}

#[test]
fn a_mirror_that_fails_or_panics_at_any_call_leaves_everything_as_it_was() {
    for wrong in [Wrong::Fails, Wrong::Panics] {
        let bench = Bench::new();
        // The one that fails stands between two that do not.
        let mirrors = [(); 3].map(|()| Arc::new(List::default()));
        mirrors.iter().for_each(|mirror| bench.ioas.add_mirror(mirror.clone()).unwrap());
        let mut model = Model { pages: BTreeMap::new(), areas: Areas::new() };
        let (mut random, mut failed) = (Random(0x1234_5678_9abc_def1), 0);
        for _ in 0..1500 {
            // The same step again and again, with each of its calls failing in turn.
            for call in 0.. {
                let seed = random.0;
                // A mirror that panics while rights are changed is cut off, as nobody knows what it lets through.
                if wrong == Wrong::Panics && is_protect(seed) {
                    mirrors[1].is_well();
                } else {
                    mirrors[1].fails_at(call, wrong);
                }
                let done = step(&bench, &bench.ioas, &mut model, &mut random);
                mirrors[1].is_well();
                check(&bench.ioas, &model, &[&mirrors[0], &mirrors[1], &mirrors[2]]);
                if done {
                    break;
                }
                failed += 1;
                random.0 = seed;
            }
        }
        assert!(failed > 300, "{failed}");
    }
}

/// Whether the step from here changes rights.
fn is_protect(seed: u64) -> bool {
    let mut random = Random(seed);
    random.below(SPACE);
    random.below(8);
    random.below(10) == 7
}

#[test]
fn a_mirror_that_cannot_be_filled_is_left_empty_and_is_none() {
    let bench = Bench::new();
    for n in 0..8 {
        bench.ioas.map_pages(Some(Iova(n * 2 * PAGE)), &bench.memory, n * PAGE, PAGE, Access::all()).unwrap();
    }
    let mirror = Arc::new(List::default());
    for (call, wrong) in (0..8).flat_map(|call| [(call, Wrong::Fails), (call, Wrong::Panics)]) {
        mirror.fails_at(call, wrong);
        let refused = bench.ioas.add_mirror(mirror.clone());
        assert!(matches!(refused, Err(ConnectError::Mirror(_))), "{refused:?}");
        assert!(mirror.pages().is_empty());
    }
    mirror.is_well();
    bench.ioas.add_mirror(mirror.clone()).unwrap();
    assert_eq!(mirror.pages().len(), 8);
}

#[test]
fn what_a_mirror_reserves_is_nobodys() {
    let bench = Bench::new();
    let mirror = Arc::new(List::default());
    bench.ioas.add_mirror(mirror.clone()).unwrap();
    let there = bench.ioas.map_pages(Some(Iova(0x1f_0000)), &bench.memory, 0, PAGE, Access::READ);
    assert!(matches!(there, Err(MapError::Reserved(_))));
    let odd = bench.ioas.map_pages(Some(Iova(0x1800)), &bench.memory, 0, 0x800, Access::READ);
    assert!(matches!(odd, Err(MapError::Unaligned(..))));
    let other = bench.context.ioas_alloc().unwrap();
    other.map_pages(Some(Iova(0x1f_0000)), &bench.memory, 0, PAGE, Access::READ).unwrap();
    assert!(matches!(other.add_mirror(mirror), Err(ConnectError::Conflict(_))));
}

#[test]
fn a_mirror_that_blocks_holds_up_no_mapping_of_another_address_space() {
    let bench = Bench::new();
    let mirror = Arc::new(List::default());
    let (go, gate) = mpsc::channel();
    *mirror.gate.lock().unwrap() = Some(gate);
    bench.ioas.add_mirror(mirror.clone()).unwrap();
    mirror.waits.store(true, Ordering::Release);
    let other = bench.context.ioas_alloc().unwrap();
    std::thread::scope(|scope| {
        let blocked = scope.spawn(|| bench.ioas.map_pages(Some(Iova(0x1000)), &bench.memory, 0, PAGE, Access::all()));
        while mirror.gate.try_lock().is_ok() {
            std::thread::yield_now();
        }
        // In another address space of the same context, with a device; and in this one, what needs no mirror.
        let endpoint = bench._machine.add_endpoint(Rid::new(0, 0, 1, 0).unwrap(), GroupId(1)).unwrap();
        let device = bench.context.bind(&endpoint).unwrap();
        device.attach(None, &other).unwrap();
        for n in 0..100 {
            let memory = || Ok(vec![Segment::memfd(PAGE)?.0]);
            other.map(Placement::Fixed(Iova(n * PAGE)), PAGE, Access::all(), memory).unwrap();
        }
        other.unmap(IovaRange::ALL).unwrap();
        assert_eq!((bench.ioas.size(), bench.ioas.iova_ranges().1), ((0, 0), PAGE));
        go.send(()).unwrap();
        blocked.join().unwrap().unwrap();
    });
    assert_eq!(mirror.pages().len(), 1);
}

/// Breaks its contract: it panics when it is to unmap.
struct Breaks;

impl Mirror for Breaks {
    fn capabilities(&self) -> MirrorCapabilities {
        MirrorCapabilities::default()
    }

    fn map(&self, _: &MirrorRun<'_>) -> Result<(), MirrorError> {
        Ok(())
    }

    fn unmap(&self, _: &mut dyn Iterator<Item = IovaRange>) -> Result<(), MirrorError> {
        panic!("on purpose");
    }
}

#[test]
fn a_mirror_that_breaks_its_contract_is_cut_off_and_said_to_be() {
    let bench = Bench::new();
    let list = Arc::new(List::default());
    bench.ioas.add_mirror(Arc::new(Breaks)).unwrap();
    bench.ioas.add_mirror(list.clone()).unwrap();
    bench.ioas.map_pages(Some(Iova(0x1000)), &bench.memory, 0, PAGE, Access::all()).unwrap();
    let whole = IovaRange::new(0x1000, PAGE).unwrap();
    assert_eq!(bench.ioas.unmap(whole), Err(UnmapError::Mirror(whole)));
    assert_eq!((bench.ioas.size(), list.pages().len()), ((0, 0), 0), "it is unmapped from all others");
    assert_eq!(bench._machine.resources().0, 1, "what it may still reach stays");
    // It is asked for nothing any more.
    bench.ioas.map_pages(Some(Iova(0x1000)), &bench.memory, 0, PAGE, Access::all()).unwrap();
    assert_eq!(bench.ioas.unmap(whole), Ok(PAGE));
}

/// Maps what it is to, and says that it has failed and what is there may be reached.
struct Unsure {
    /// Where each run that it has begins. It holds no memory.
    has: Mutex<BTreeSet<u64>>,
    /// It does not unmap it, either.
    keeps: bool,
}

impl Unsure {
    fn count(&self) -> usize {
        self.has.lock().unwrap().len()
    }
}

impl Mirror for Unsure {
    fn capabilities(&self) -> MirrorCapabilities {
        MirrorCapabilities::default()
    }

    fn map(&self, run: &MirrorRun<'_>) -> Result<(), MirrorError> {
        self.has.lock().unwrap().insert(run.range.start());
        Err(MirrorError::Reachable)
    }

    fn unmap(&self, unmapped: &mut dyn Iterator<Item = IovaRange>) -> Result<(), MirrorError> {
        if self.keeps {
            return Err(MirrorError::Reachable);
        }
        let mut has = self.has.lock().unwrap();
        unmapped.for_each(|run| _ = has.remove(&run.start()));
        Ok(())
    }
}

#[test]
fn a_mirror_that_fails_to_map_and_may_be_reached_is_told_to_unmap() {
    for keeps in [false, true] {
        let bench = Bench::new();
        let mirror = Arc::new(Unsure { has: Mutex::default(), keeps });
        bench.ioas.add_mirror(mirror.clone()).unwrap();
        let map = || bench.ioas.map_pages(Some(Iova(0x1000)), &bench.memory, 0, PAGE, Access::all());
        assert!(matches!(map(), Err(MapError::Mirror(MirrorError::Reachable))));
        assert_eq!((bench.ioas.size(), mirror.count()), ((0, 0), usize::from(keeps)));
        assert_eq!(bench._machine.resources().0, usize::from(keeps), "what it may still reach stays");
        // One that keeps it is asked for nothing any more.
        assert_eq!(map().is_ok(), keeps);
        // The same when it is to follow what is mapped.
        let bench = Bench::new();
        bench.ioas.map_pages(Some(Iova(0x1000)), &bench.memory, 0, PAGE, Access::all()).unwrap();
        let mirror = Arc::new(Unsure { has: Mutex::default(), keeps });
        let refused = bench.ioas.add_mirror(mirror.clone()).unwrap_err();
        assert!(matches!(refused, ConnectError::Mirror(MirrorError::Reachable)), "{refused}");
        assert_eq!(mirror.count(), usize::from(keeps));
        assert_eq!(bench._machine.resources().0, usize::from(keeps), "what it may still reach stays");
        let unmapped = if keeps { Err(UnmapError::Mirror(pages_of(1, 1))) } else { Ok(PAGE) };
        assert_eq!(bench.ioas.unmap(pages_of(1, 1)), unmapped);
        assert_eq!(bench._machine.resources().0, usize::from(keeps), "what it may still reach stays");
    }
}

/// A list that says when it is to map its eighth page, and waits there.
struct Stops {
    list: List,
    reached: mpsc::SyncSender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Mirror for Stops {
    fn capabilities(&self) -> MirrorCapabilities {
        MirrorCapabilities::default()
    }

    fn map(&self, run: &MirrorRun<'_>) -> Result<(), MirrorError> {
        if run.range.start() == 8 * PAGE {
            self.reached.send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
        self.list.map(run)
    }

    fn unmap(&self, unmapped: &mut dyn Iterator<Item = IovaRange>) -> Result<(), MirrorError> {
        self.list.unmap(unmapped)
    }
}

/// What is in no area yet when a mirror that has it is cut off.
#[test]
fn what_comes_while_a_mirror_is_cut_off_may_be_reached_by_it() {
    let bench = Bench::new();
    let (reached, is_reached) = mpsc::sync_channel(0);
    let (go_on, goes_on) = mpsc::channel();
    bench.ioas.add_mirror(Arc::new(Breaks)).unwrap();
    bench.ioas.add_mirror(Arc::new(Stops { list: List::default(), reached, go_on: Mutex::new(goes_on) })).unwrap();
    bench.ioas.map_pages(Some(Iova(PAGE)), &bench.memory, 0, PAGE, Access::all()).unwrap();
    std::thread::scope(|scope| {
        let map = || bench.ioas.map_pages(Some(Iova(8 * PAGE)), &bench.memory, PAGE, PAGE, Access::all());
        let coming = scope.spawn(map);
        is_reached.recv().unwrap();
        assert_eq!(bench.ioas.unmap(pages_of(1, 1)), Err(UnmapError::Mirror(pages_of(1, 1))));
        go_on.send(()).unwrap();
        coming.join().unwrap().unwrap();
    });
    assert_eq!(bench.ioas.unmap(pages_of(8, 1)), Err(UnmapError::Mirror(pages_of(8, 1))));
    assert_eq!(bench._machine.resources().0, 2, "what it may still reach stays");
}

#[test]
fn what_changes_while_a_mirror_is_filled_is_in_it_on_either_side_and_nothing_if_that_fails() {
    for fails in [false, true] {
        let bench = Bench::new();
        let map = |page: u64, pages: u64| {
            let memory = &bench.memory;
            bench.ioas.map_pages(Some(Iova(page * PAGE)), memory, 0, pages * PAGE, Access::all()).unwrap();
        };
        [1, 4, 8, 12].into_iter().for_each(|page| map(page, 1));
        let ((reached, is_reached), (go, goes)) = (mpsc::sync_channel(1), mpsc::channel());
        let mirror = Arc::new(Stops { list: List::default(), reached, go_on: Mutex::new(goes) });
        std::thread::scope(|scope| {
            let joins = scope.spawn(|| bench.ioas.add_mirror(mirror.clone()));
            is_reached.recv().unwrap();
            // It has been filled up to the fourth page, and the eighth is on its way.
            map(2, 1);
            map(6, 2);
            map(9, 2);
            bench.ioas.unmap(pages_of(4, 1)).unwrap();
            map(3, 3);
            bench.ioas.unmap(pages_of(12, 1)).unwrap();
            map(14, 1);
            if fails {
                mirror.list.fails_at(0, Wrong::Fails);
            }
            go.send(()).unwrap();
            assert_eq!(joins.join().unwrap().is_err(), fails);
        });
        let pages: Vec<u64> = mirror.list.pages().into_keys().collect();
        let all = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14];
        assert_eq!(pages, if fails { &[][..] } else { &all });
        bench.ioas.unmap(IovaRange::ALL).unwrap();
        assert!(mirror.list.pages().is_empty());
    }
}

#[test]
fn a_cut_is_one_in_every_mirror_or_none() {
    let bench = Bench::new();
    let list = Arc::new(List::default());
    bench.ioas.set_large_pages(false).unwrap();
    bench.ioas.add_mirror(list.clone()).unwrap();
    bench.ioas.map_pages(Some(Iova(0x1000)), &bench.memory, 0, 4 * PAGE, Access::all()).unwrap();
    bench.ioas.cut(Iova(0x3000)).unwrap();
    bench.ioas.unmap(pages_of(1, 2)).unwrap();
    assert_eq!(list.pages().keys().copied().collect::<Vec<_>>(), [3, 4]);
    // One that cannot have it in two parts.
    let never = mpsc::sync_channel(0).0;
    let go_on = Mutex::new(mpsc::channel().1);
    bench.ioas.add_mirror(Arc::new(Stops { list: List::default(), reached: never, go_on })).unwrap();
    assert_eq!(bench.ioas.cut(Iova(0x4000)), Err(CutError::Mirror(0x4000)));
    assert_eq!(bench.ioas.unmap(pages_of(3, 1)), Err(UnmapError::NotWhole(pages_of(3, 1))));
    assert_eq!(bench.ioas.unmap(pages_of(3, 2)), Ok(2 * PAGE));
    assert!(list.pages().is_empty());
}
