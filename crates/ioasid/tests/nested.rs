//! Nested page tables: a guest's own tables over what its parent maps, in every format.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ioasid::memory::{GuestTables, Segment};
use ioasid::{
    Access, AttachError, BusAddress, Context, DestroyError, Device, DmaPort, Endpoint, FaultReason, GuestFormat,
    GuestTable, Hwpt, HwptError, HwptOptions, Ioas, Iova, IovaRange, NestedHwpt, Pasid, Placement,
};
use iopt::format::{Armv8Stage1, Sv39, Sv48, Sv57, VtdSecondStage, X86_64, X86_64FiveLevels};
use iopt::{Arena, EmptyTables, Format, PageTable};
use proptest::prelude::*;

use common::{Bench, PAGE, parent as parent_options, range};

/// Where the guest has its page tables, and how many bytes.
const TABLES: u64 = 8 << 20;
/// Where the guest has its data: 64 pieces of 64 KiB, each behind a hole of as many bytes.
const DATA: u64 = 1 << 30;
const PIECE: u64 = 64 << 10;
const PIECES: u64 = 64;
/// A large page of every format, from where the device has it on.
const LARGE: u64 = 2 << 20;
const LARGE_BASE: u64 = 1 << 34;

/// A machine with a guest, whose physical address space is an IOAS, and a device for the guest.
struct Guest {
    bench: Bench,
    context: Arc<Context>,
    endpoint: Arc<Endpoint>,
    device: Device,
    ioas: Arc<Ioas>,
    parent: Arc<Hwpt>,
    arena: Arc<Arena<GuestTables>>,
    /// All pieces, in a row.
    data: Arc<File>,
}

impl Guest {
    fn new() -> Self {
        let bench = Bench::new();
        let (endpoint, _, ioas, device) = bench.one_device();
        let context = device.context().clone();
        let space = GuestTables::new(TABLES as usize).unwrap();
        let tables = Segment::file(space.file(), 0, TABLES, true).unwrap();
        ioas.map(Placement::Fixed(Iova(0)), TABLES, Access::all(), || Ok(vec![tables])).unwrap();
        let (_, data) = Segment::memfd(PIECES * PIECE).unwrap();
        let parent = context.hwpt_alloc(device.endpoint(), &ioas, parent_options()).unwrap();
        for piece in 0..PIECES {
            let segment = Segment::file(&data, piece * PIECE, PIECE, true).unwrap();
            let at = Placement::Fixed(Iova(gpa(piece * PIECE)));
            ioas.map(at, PIECE, Access::all(), || Ok(vec![segment])).unwrap();
        }
        let arena = Arc::new(Arena::with_memory(space));
        Self { bench, context, endpoint, device, ioas, parent, arena, data }
    }

    /// A new table of the guest's, and the nested HWPT for it.
    fn table<F: Format>(&self, format: GuestFormat) -> (PageTable<F, GuestTables>, Arc<NestedHwpt>) {
        let table = PageTable::<F, _>::new(self.arena.clone()).unwrap();
        let root = GuestTable { format, root: table.root().0 };
        let nested = self.context.hwpt_alloc_nested(&self.parent, root).unwrap();
        (table, nested)
    }

    fn attach(&self, pasid: Option<Pasid>, nested: &Arc<NestedHwpt>) -> DmaPort {
        assert_eq!(self.device.attach(pasid, nested).unwrap(), nested.id());
        self.endpoint.port()
    }

    /// What is at `offset` of all the data.
    fn byte(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.data.read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    }
}

/// Where the guest sees `offset` of all its data.
fn gpa(offset: u64) -> u64 {
    DATA + offset / PIECE * 2 * PIECE + offset % PIECE
}

/// Where of all its data an address of the guest is.
fn offset(gpa: u64) -> Option<u64> {
    let piece = gpa.checked_sub(DATA)? / PIECE;
    (piece < 2 * PIECES && piece.is_multiple_of(2)).then_some(piece / 2 * PIECE + gpa % PIECE)
}

#[derive(Debug, Clone)]
enum Step {
    /// Pages, in the guest's table.
    Map {
        page: u64,
        to: u64,
        pages: u64,
        write: bool,
    },
    /// 2 MiB: a large page to the guest, and not so to its parent.
    MapLarge {
        number: u64,
        to: u64,
        write: bool,
    },
    /// One that was mapped before.
    Unmap {
        which: usize,
    },
    Write {
        at: Place,
        length: usize,
    },
    Read {
        at: Place,
        length: usize,
    },
    /// A piece of the guest's memory goes, or comes back.
    Parent {
        piece: u64,
    },
}

/// An address of the device's.
#[derive(Debug, Clone, Copy)]
enum Place {
    InPage { page: u64, offset: u64 },
    InLarge { number: u64, offset: u64 },
}

fn place() -> impl Strategy<Value = Place> {
    let page = prop_oneof![0..24u64, 500..524u64];
    prop_oneof![
        3 => (page, 0..1u64 << 16).prop_map(|(page, offset)| Place::InPage { page, offset }),
        1 => (0..3u64, 0..LARGE).prop_map(|(number, offset)| Place::InLarge { number, offset }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let page = || prop_oneof![0..24u64, 500..524u64];
    let to = prop_oneof![4 => 0..PIECES, 1 => Just(u64::MAX)];
    let length = || prop_oneof![1..64usize, 1..40_000usize];
    prop_oneof![
        3 => (page(), to, 1..20u64, any::<bool>()).prop_map(|(page, to, pages, write)| Step::Map { page, to, pages, write }),
        1 => any::<usize>().prop_map(|which| Step::Unmap { which }),
        1 => (0..3u64, 0..4u64, any::<bool>()).prop_map(|(number, to, write)| Step::MapLarge { number, to, write }),
        4 => (place(), length()).prop_map(|(at, length)| Step::Write { at, length }),
        4 => (place(), length()).prop_map(|(at, length)| Step::Read { at, length }),
        1 => (0..PIECES).prop_map(|piece| Step::Parent { piece }),
    ]
}

/// Does the steps and two naive look-ups beside them: in the list of what the guest mapped, then in that of its memory.
fn against_two_lists<F: Format>(format: GuestFormat, steps: &[Step]) {
    let guest = Guest::new();
    let (table, nested) = guest.table::<F>(format);
    let pasid = Pasid::new(7);
    let mut port = guest.attach(pasid, &nested);
    let size = 1 << F::PAGE_SHIFT;
    let mut first: BTreeMap<u64, (u64, u64, bool)> = BTreeMap::new();
    let mut gone = [false; PIECES as usize];
    let mut stamp = 0u8;
    for step in steps {
        let mut empty = EmptyTables::none();
        match *step {
            Step::Map { page, to, pages, write } => {
                // To a piece, or to where the guest has nothing.
                let to = if to == u64::MAX { 1 << 40 } else { gpa(to * PIECE) };
                let pages = pages.min(PIECE.div_ceil(size));
                let (iova, length) = (page * size, pages * size);
                let access = if write { Access::all() } else { Access::READ };
                let to = to & !(size - 1);
                if table.map(iova, to, length, access, &mut empty).is_ok() {
                    first.insert(iova, (length, to, write));
                }
            }
            Step::Unmap { which } => {
                let Some((&iova, &(length, ..))) = first.iter().nth(which % first.len().max(1)) else { continue };
                table.unmap(iova, length, &mut empty).unwrap();
                let all = which % 5 == 0;
                nested.invalidate(if all { IovaRange::ALL } else { range(iova, length) }).unwrap();
                first.remove(&iova);
            }
            Step::MapLarge { number, to, write } => {
                let (iova, to) = (LARGE_BASE + number * LARGE, DATA + to * LARGE);
                let access = if write { Access::all() } else { Access::READ };
                if table.map(iova, to, LARGE, access, &mut empty).is_ok() {
                    assert_eq!(table.walk(iova).unwrap().page_shift, LARGE.ilog2(), "{format:?}");
                    first.insert(iova, (LARGE, to, write));
                }
            }
            Step::Write { at, length } | Step::Read { at, length } => {
                let iova = match at {
                    Place::InPage { page, offset } => page * size + offset % size,
                    Place::InLarge { number, offset } => LARGE_BASE + number * LARGE + offset,
                };
                let write = matches!(step, Step::Write { .. });
                // One byte by the two lists.
                let expected = |iova: u64| {
                    let mapping = first.range(..=iova).next_back();
                    match mapping.filter(|(start, (length, ..))| iova - **start < *length) {
                        None => Err(FaultReason::NotMapped),
                        Some((_, (_, _, false))) if write => Err(FaultReason::NotPermitted),
                        Some((start, (_, to, _))) => offset(to + (iova - start))
                            .filter(|offset| !gone[(offset / PIECE) as usize])
                            .ok_or(FaultReason::NotMapped),
                    }
                };
                let bytes = (iova..iova + length as u64).map(expected);
                let refused = (iova..).zip(bytes.clone()).find_map(|(iova, byte)| Some((Iova(iova), byte.err()?)));
                stamp = stamp.wrapping_add(1);
                let mut data = vec![stamp; length];
                let at = BusAddress { pasid, iova: Iova(iova) };
                let done = if write { port.write(at, &data) } else { port.read(at, &mut data) };
                assert_eq!(done.err().map(|error| (error.at.iova, error.reason)), refused, "{format:?}, {step:?}");
                // What lies before the refused one was moved.
                let mut all = vec![0; (PIECES * PIECE) as usize];
                guest.data.read_exact_at(&mut all, 0).unwrap();
                let moved = bytes.map_while(Result::ok).zip(data);
                for (offset, byte) in moved {
                    assert_eq!(all[offset as usize], byte, "{format:?}, {step:?}, {offset:#x}");
                }
            }
            Step::Parent { piece } => {
                let at = range(gpa(piece * PIECE), PIECE);
                let is_gone = &mut gone[piece as usize];
                if *is_gone {
                    let segment = Segment::file(&guest.data, piece * PIECE, PIECE, true).unwrap();
                    guest
                        .ioas
                        .map(Placement::Fixed(Iova(at.start())), PIECE, Access::all(), || Ok(vec![segment]))
                        .unwrap();
                } else {
                    guest.ioas.unmap(at).unwrap();
                }
                *is_gone = !*is_gone;
            }
        }
        // Nobody walks meanwhile, and tables are not cached.
        table.free(empty);
    }
}

macro_rules! for_formats {
    ($($name:ident: $format:ty, $guest:ident;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(64))]
            $(
                #[test]
                fn $name(steps in prop::collection::vec(step(), 1..60)) {
                    against_two_lists::<$format>(GuestFormat::$guest, &steps);
                }
            )*
        }

        #[test]
        fn every_format_is_tried() {
            assert_eq!([$(GuestFormat::$guest),*], GuestFormat::ALL);
        }
    };
}

for_formats! {
    x86_64: X86_64, X86_64;
    x86_64_with_five_levels: X86_64FiveLevels, X86_64FiveLevels;
    armv8_with_4_kib: Armv8Stage1<12>, Armv8Pages4K;
    armv8_with_16_kib: Armv8Stage1<14>, Armv8Pages16K;
    armv8_with_64_kib: Armv8Stage1<16>, Armv8Pages64K;
    sv39: Sv39, Sv39;
    sv48: Sv48, Sv48;
    sv57: Sv57, Sv57;
    vtd_second_stage: VtdSecondStage, VtdSecondStage;
}

/// A guest whose first page of data is at IOVA 0x1000, by a table of x86-64.
fn one_page() -> (Guest, PageTable<X86_64, GuestTables>, Arc<NestedHwpt>, DmaPort) {
    let guest = Guest::new();
    let (table, nested) = guest.table::<X86_64>(GuestFormat::X86_64);
    table.map(0x1000, gpa(0), PAGE, Access::all(), &mut EmptyTables::none()).unwrap();
    let port = guest.attach(None, &nested);
    (guest, table, nested, port)
}

#[test]
fn an_invalidation_forgotten_shows_the_old_page_and_done_right_never_does() {
    let (guest, table, nested, mut port) = one_page();
    let mut empty = EmptyTables::none();
    port.write(Iova(0x1000), &[1]).unwrap();
    table.unmap(0x1000, PAGE, &mut empty).unwrap();
    table.map(0x1000, gpa(PAGE), PAGE, Access::all(), &mut empty).unwrap();
    port.write(Iova(0x1000), &[2]).unwrap();
    assert_eq!((guest.byte(0), guest.byte(PAGE)), (2, 0), "it is cached");
    // Another page's invalidation is none of this one.
    nested.invalidate(range(0x2000, PAGE)).unwrap();
    port.write(Iova(0x1000), &[3]).unwrap();
    assert_eq!((guest.byte(0), guest.byte(PAGE)), (3, 0), "it is cached");
    nested.invalidate(range(0x1000, PAGE)).unwrap();
    port.write(Iova(0x1000), &[4]).unwrap();
    assert_eq!((guest.byte(0), guest.byte(PAGE)), (3, 4));
}

#[test]
fn what_the_parent_unmaps_is_out_of_reach_at_once() {
    let (guest, _table, _nested, mut port) = one_page();
    port.write(Iova(0x1000), &[1]).unwrap();
    guest.ioas.unmap(range(gpa(0), PIECE)).unwrap();
    assert_eq!(port.write(Iova(0x1000), &[2]).unwrap_err().reason, FaultReason::NotMapped);
    assert_eq!(guest.byte(0), 1);
    // So is the table itself.
    guest.ioas.unmap(range(0, TABLES)).unwrap();
    assert_eq!(port.write(Iova(0x1000), &[2]).unwrap_err().reason, FaultReason::GuestTable);
}

#[test]
fn the_parents_dirty_log_has_the_guests_physical_addresses_and_the_marks_in_its_tables() {
    let (guest, table, _nested, mut port) = one_page();
    let dirty = |page: u64| {
        let mut bitmap = [0];
        guest.parent.read_dirty(range(page, PAGE), PAGE, true, &mut bitmap).unwrap();
        bitmap[0] == 1
    };
    guest.parent.start_dirty_tracking(PAGE).unwrap();
    let mut byte = [0];
    port.read(Iova(0x1000), &mut byte).unwrap();
    assert!(!dirty(gpa(0)), "it was read");
    assert!(dirty(table.root().0), "the walk marked the root as accessed");
    for _ in 0..3 {
        // What a read has cached does not let a write pass.
        port.read(Iova(0x1000), &mut byte).unwrap();
        port.write(Iova(0x1000), &[1]).unwrap();
        assert!(dirty(gpa(0)));
        assert!(!dirty(gpa(0)), "it was cleared");
    }
    assert!(!dirty(gpa(PAGE)), "nobody was there");
    // The guest's own marks, as its processor would make them.
    let leaf = X86_64::leaf(gpa(0), X86_64::PAGE_SHIFT, Access::all(), 0) | X86_64::ACCESSED | X86_64::DIRTY;
    let mut tables = vec![0; 1 << 20];
    guest.arena.memory().file().read_exact_at(&mut tables, 0).unwrap();
    assert!(tables.chunks(8).any(|entry| entry == leaf.to_le_bytes()), "{leaf:#x}");
}

#[test]
fn each_pasid_has_its_own_table_and_rid_another() {
    let (guest, _table, _nested, mut port) = one_page();
    let tables: Vec<_> = (1..5u64)
        .map(|n| {
            let (table, nested) = guest.table::<Sv48>(GuestFormat::Sv48);
            table.map(0x1000, gpa(n * PAGE), PAGE, Access::all(), &mut EmptyTables::none()).unwrap();
            guest.attach(Pasid::new(n as u32), &nested);
            (table, nested)
        })
        .collect();
    port.write(Iova(0x1000), &[100]).unwrap();
    for n in 1..5u8 {
        let pasid = Pasid::new(u32::from(n));
        port.write(BusAddress { pasid, iova: Iova(0x1000) }, &[n]).unwrap();
    }
    assert_eq!((0..5).map(|n| guest.byte(n * PAGE)).collect::<Vec<_>>(), [100, 1, 2, 3, 4]);
    drop(tables);
}

#[test]
fn a_table_that_leads_nowhere_or_to_itself_is_a_fault() {
    let guest = Guest::new();
    let entry = |table: u64, level| X86_64::table(iopt::TableAddr(table), level);
    let write = |at: u64, value: u64| {
        let file = guest.arena.memory().file();
        file.write_all_at(&value.to_le_bytes(), at).unwrap();
    };
    let nested = |root: u64| {
        let table = GuestTable { format: GuestFormat::X86_64, root };
        guest.context.hwpt_alloc_nested(&guest.parent, table).unwrap()
    };
    let fault = |nested: &Arc<NestedHwpt>| {
        let mut port = guest.attach(None, nested);
        let reason = port.read(Iova(0), &mut [0]).unwrap_err().reason;
        guest.device.detach(None).unwrap();
        reason
    };
    // The root itself is not there, or beyond what the parent can map.
    assert_eq!(fault(&nested(DATA + PIECE)), FaultReason::GuestTable);
    assert_eq!(fault(&nested(!0xfff)), FaultReason::GuestTable);
    // A table of tables of itself; as a leaf, it is the page that it is in.
    let at = TABLES - PAGE;
    write(at, entry(at, 3));
    let itself = nested(at);
    let mut port = guest.attach(None, &itself);
    let mut bytes = [0; 8];
    port.read(Iova(0), &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes) & !0xfff, at);
    guest.device.detach(None).unwrap();
    // Below, there is nothing.
    write(at, entry(DATA + PIECE, 3));
    assert_eq!(fault(&itself), FaultReason::GuestTable);
    // Tables that the device may not write cannot be marked.
    let (ioas, table) = (guest.context.ioas_alloc().unwrap(), guest.table::<X86_64>(GuestFormat::X86_64).0);
    table.map(0, gpa(0), PAGE, Access::all(), &mut EmptyTables::none()).unwrap();
    let segment = Segment::file(guest.arena.memory().file(), 0, TABLES, false).unwrap();
    ioas.map(Placement::Fixed(Iova(0)), TABLES, Access::READ, || Ok(vec![segment])).unwrap();
    let parent = guest.context.hwpt_alloc(guest.device.endpoint(), &ioas, parent_options()).unwrap();
    let root = GuestTable { format: GuestFormat::X86_64, root: table.root().0 };
    assert_eq!(fault(&guest.context.hwpt_alloc_nested(&parent, root).unwrap()), FaultReason::GuestTable);
}

#[test]
fn a_table_that_is_cut_short_is_gone() {
    let (guest, table, nested, mut port) = one_page();
    port.write(Iova(0x1000), &[1]).unwrap();
    nested.invalidate(IovaRange::ALL).unwrap();
    guest.arena.memory().file().set_len(0).unwrap();
    for _ in 0..2 {
        assert_eq!(port.write(Iova(0x1000), &[1]).unwrap_err().reason, FaultReason::MemoryGone);
    }
    // What goes with the tables' memory must not be touched any more.
    std::mem::forget((guest, table, nested));
}

#[test]
fn what_cannot_be_a_parent_is_refused_and_what_is_in_use_stays() {
    let (guest, _table, nested, port) = one_page();
    let (ids, root) = (|id: ioasid::ObjectId| id.0.get(), *nested.stage());
    let make = |parent| guest.context.hwpt_alloc_nested(parent, root).map(drop);
    let (parent, on_top) = (ids(guest.parent.id()), ids(nested.id()));
    // A number is a parent only if what has it can be one: there is no third stage.
    for id in [on_top, ids(guest.ioas.id()), ids(guest.device.id()), 0, 1000] {
        assert!(guest.context.nest_parent(id).is_none(), "{id}");
    }
    assert!(guest.context.nest_parent(parent).is_some_and(|found| Arc::ptr_eq(found.hwpt(), &guest.parent)));
    let plain = guest.context.hwpt_alloc(guest.device.endpoint(), &guest.ioas, HwptOptions::default()).unwrap();
    assert!(matches!(make(&plain), Err(HwptError::NotAParent(id)) if id == plain.id()));
    // Handles of another context, with the same numbers.
    let elsewhere = Guest::new();
    assert_eq!((elsewhere.parent.id(), elsewhere.ioas.id()), (guest.parent.id(), guest.ioas.id()));
    assert!(matches!(make(&elsewhere.parent), Err(HwptError::Missing(id)) if id == elsewhere.parent.id()));
    let there = guest.context.hwpt_alloc(guest.device.endpoint(), &elsewhere.ioas, parent_options());
    assert!(matches!(there, Err(HwptError::Missing(id)) if id == elsewhere.ioas.id()));
    let for_another = guest.context.hwpt_alloc(elsewhere.device.endpoint(), &guest.ioas, parent_options());
    assert!(matches!(for_another, Err(HwptError::NotBound(_))));
    for format in GuestFormat::ALL {
        let table = GuestTable { format, root: 0x20 };
        let made = guest.context.hwpt_alloc_nested(&guest.parent, table).map(drop);
        assert!(matches!(made, Err(HwptError::Guest(_))), "{format:?}");
    }
    // Everything that others need is in use.
    for id in [ids(guest.ioas.id()), parent, on_top] {
        assert_eq!(guest.context.destroy(id), Err(DestroyError::Busy(id)));
    }
    drop(port);
    guest.device.detach(None).unwrap();
    for id in [on_top, parent, ids(plain.id()), ids(guest.ioas.id())] {
        assert_eq!(guest.context.destroy(id), Ok(()), "{id}");
    }
    assert!(matches!(guest.device.attach(None, &nested), Err(AttachError::Missing(_))));
    assert!(matches!(make(&guest.parent), Err(HwptError::Missing(_))));
}

#[test]
fn nothing_is_left_when_a_context_goes_with_everything_in_it() {
    let (guest, table, nested, mut port) = one_page();
    port.write(Iova(0x1000), &[1]).unwrap();
    let Guest { bench, context, endpoint, device, ioas, parent, arena, .. } = guest;
    drop((port, context, endpoint, ioas, parent, nested, device, table, arena));
    assert_eq!(bench.machine.resources(), (0, 0));
}
