//! A15 and A23: what is a guest's own, its page tables and its table of PASIDs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use ioasid::memory::Pages;
use ioasid::{
    Access, AttachError, BadGuestStage, BadPasidTable, BusAddress, Context, Device, DmaPort, Endpoint, FaultReason,
    GuestFormat, GuestPasidFormat, GuestPasidTable, GuestTable, Hwpt, HwptError, HwptOptions, Ioas, Iova, IovaRange,
    NestedHwpt, NestedOptions, OnMiss, PageResponse, Pasid, WithoutPasid,
};

use crate::common::{Bench, PAGE, range};

/// Bytes of the guest's memory, which begins at guest-physical 0.
const MEMORY: u64 = 16 << 20;

/// How a format of 512 entries a table, and pages of 4 KiB, says where a table or a page is.
#[derive(Clone, Copy)]
struct Entries {
    format: GuestFormat,
    levels: u32,
    table: fn(u64) -> u64,
    page: fn(u64) -> u64,
}

const X86: Entries = Entries { format: GuestFormat::X86_64, levels: 4, table: |pa| pa | 7, page: |pa| pa | 7 };
const ARM: Entries =
    Entries { format: GuestFormat::Armv8Pages4K, levels: 4, table: |pa| pa | 3, page: |pa| pa | 1 << 10 | 1 << 6 | 3 };
/// As a driver has it for programs: IOVAs of 39 bits, and so one level fewer.
const ARM_39_BITS: Entries = Entries { levels: 3, ..ARM };
const RISC_V: Entries =
    Entries { format: GuestFormat::Sv39, levels: 3, table: |pa| pa >> 2 | 1, page: |pa| pa >> 2 | 0xd7 };

struct Guest {
    bench: Bench,
    context: Arc<Context>,
    endpoint: Arc<Endpoint>,
    device: Device,
    ioas: Arc<Ioas>,
    parent: Arc<Hwpt>,
    memory: File,
    /// Where the next table goes.
    next: std::cell::Cell<u64>,
}

impl Guest {
    fn new(on_miss: OnMiss) -> Self {
        let bench = Bench::new();
        let (endpoint, _, ioas, device) = bench.one_device();
        let context = device.context().clone();
        let memory = File::from(rustix::fs::memfd_create(c"guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(MEMORY).unwrap();
        let pages = Pages::of_file(memory.try_clone().unwrap(), 0, MEMORY, true);
        ioas.map_pages(Some(Iova(0)), &pages, 0, MEMORY, Access::all()).unwrap();
        let options = HwptOptions::default().nest_parent(true).pasids(true).on_miss(on_miss);
        let parent = context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap();
        Self { bench, context, endpoint, device, ioas, parent, memory, next: std::cell::Cell::new(1 << 20) }
    }

    fn put(&self, gpa: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.write_all_at(&bytes, gpa).unwrap();
    }

    fn word(&self, gpa: u64) -> u64 {
        let mut word = [0; 8];
        self.memory.read_exact_at(&mut word, gpa).unwrap();
        u64::from_le_bytes(word)
    }

    /// `pages` new pages, empty.
    fn pages(&self, pages: u64) -> u64 {
        self.next.replace(self.next.get() + pages * PAGE)
    }

    /// Maps a page in the guest's table at `root`.
    fn map(&self, entries: Entries, root: u64, iova: u64, gpa: u64) {
        let mut table = root;
        for level in (1..entries.levels).rev() {
            let slot = table + 8 * (iova >> (12 + 9 * level) & 0x1ff);
            if self.word(slot) == 0 {
                self.put(slot, &[(entries.table)(self.pages(1))]);
            }
            let found = self.word(slot);
            table = if entries.format == GuestFormat::Sv39 { found >> 10 << 12 } else { found & 0xf_ffff_f000 };
        }
        self.put(table + 8 * (iova >> 12 & 0x1ff), &[(entries.page)(gpa)]);
    }

    /// A table with a single page.
    fn table(&self, entries: Entries, iova: u64, gpa: u64) -> u64 {
        let root = self.pages(1);
        self.map(entries, root, iova, gpa);
        root
    }

    fn nested(&self, options: impl Into<NestedOptions>) -> Arc<NestedHwpt> {
        self.context.hwpt_alloc_nested(&self.parent, options).unwrap()
    }
}

fn pasid(number: u32) -> Option<Pasid> {
    Pasid::new(number)
}

#[test]
fn a15_a_miss_of_the_guest_goes_to_the_guest_and_one_of_the_host_is_fixed_by_the_host() {
    let guest = Guest::new(OnMiss::Resolve);
    let queue = guest.context.fault_queue_alloc().unwrap();
    let root = guest.table(X86, 0x7000, 0x8_0000);
    let table = GuestTable { format: X86.format, root };
    let options = NestedOptions::from(table).on_miss(OnMiss::Queue(queue.clone()));
    let nested = guest.nested(options);
    guest.device.attach(None, &nested).unwrap();
    let mut port = guest.endpoint.port();
    // The host took away what the guest's page is, and the tables too: the guest never hears of it.
    guest.ioas.make_fault(IovaRange::inclusive(0, MEMORY - 1).unwrap()).unwrap();
    port.write(Iova(0x7000), &[1]).unwrap();
    assert!(!queue.has_groups());
    assert_eq!(guest.word(0x8_0000) & 0xff, 1);
    // What the guest has not mapped, it is asked for.
    let (told, arrived) = mpsc::channel();
    queue.on_arrival(Arc::new(move || told.send(()).unwrap()));
    let writer = std::thread::spawn(move || port.write(Iova(0x9000), &[2]));
    arrived.recv_timeout(Duration::from_secs(20)).unwrap();
    let asked = queue.take(8).unwrap().unwrap();
    assert_eq!(asked.requests[0].iova, 0x9000);
    guest.map(X86, root, 0x9000, 0x9_0000);
    // It answers before the host has what it maps there.
    guest.ioas.make_fault(range(0x9_0000, PAGE)).unwrap();
    queue.answer(asked.cookie, PageResponse::Success).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(guest.word(0x9_0000) & 0xff, 2);
    assert_eq!(guest.ioas.faults_at(Iova(0x9_0000)), Some(false));
    // A guest cannot have the host bring in what is not its own.
    guest.map(X86, root, 0xa000, MEMORY);
    let mut port = guest.endpoint.port();
    assert_eq!(port.write(Iova(0xa000), &[1]).unwrap_err().reason, FaultReason::NotMapped);
}

/// Writes the table's entry for a PASID: which root, and nothing of others.
type Enter = fn(&Guest, &GuestPasidTable, u64, u64);

fn context_descriptor(root: u64, bits: u64) -> [u64; 2] {
    [1 << 41 | 1 << 31 | (64 - bits), root]
}

/// Every form, the pages of its tables, and how an entry is made.
fn forms() -> Vec<(GuestPasidTable, Entries, u64, Enter)> {
    let table = |format, pasid_bits| GuestPasidTable {
        format,
        root: 0,
        pasid_bits,
        without: WithoutPasid::Refused,
        zero_is_none: false,
    };
    vec![
        (table(GuestPasidFormat::SmmuV3Linear, 10), ARM, 16, |guest, table, pasid, root| {
            guest.put(table.root + 64 * pasid, &context_descriptor(root, 48));
        }),
        (table(GuestPasidFormat::SmmuV3Leaves4K, 12), ARM_39_BITS, 1, |guest, table, pasid, root| {
            let first = table.root + 8 * (pasid >> 6);
            if guest.word(first) == 0 {
                guest.put(first, &[guest.pages(1) | 1]);
            }
            guest.put((guest.word(first) & !0xfff) + 64 * (pasid & 63), &context_descriptor(root, 39));
        }),
        (table(GuestPasidFormat::SmmuV3Leaves64K, 12), ARM, 1, |guest, table, pasid, root| {
            let first = table.root + 8 * (pasid >> 10);
            if guest.word(first) == 0 {
                guest.put(first, &[guest.pages(16) | 1]);
            }
            guest.put((guest.word(first) & !0xfff) + 64 * (pasid & 1023), &context_descriptor(root, 48));
        }),
        (table(GuestPasidFormat::AmdGcr3(2, GuestFormat::X86_64), 18), X86, 1, |guest, table, pasid, root| {
            let first = table.root + 8 * (pasid >> 9);
            if guest.word(first) == 0 {
                guest.put(first, &[guest.pages(1) | 1]);
            }
            guest.put((guest.word(first) & !0xfff) + 8 * (pasid & 511), &[root | 1]);
        }),
        (table(GuestPasidFormat::RiscVDirectory(2), 17), RISC_V, 1, |guest, table, pasid, root| {
            let first = table.root + 8 * (pasid >> 8);
            if guest.word(first) == 0 {
                guest.put(first, &[guest.pages(1) >> 2 | 1]);
            }
            guest.put((guest.word(first) >> 10 << 12) + 16 * (pasid & 255), &[1, 8 << 60 | root >> 12]);
        }),
    ]
}

fn read(port: &mut DmaPort, pasid: Option<Pasid>, iova: u64) -> Result<u64, FaultReason> {
    let mut word = [0; 8];
    port.read(BusAddress { pasid, iova: Iova(iova) }, &mut word).map_err(|error| error.reason)?;
    Ok(u64::from_le_bytes(word))
}

#[test]
fn a23_a_guest_owns_all_pasids_in_every_form_and_each_device_is_authorised_still() {
    for (mut table, entries, pages, enter) in forms() {
        let guest = Guest::new(OnMiss::Abort);
        table.root = guest.pages(pages);
        let form = table.format;
        let last = (1 << table.pasid_bits) - 1;
        let data: Vec<u64> = (0..3).map(|_| guest.pages(1)).collect();
        data.iter().zip(0xaa0..).for_each(|(page, value)| guest.put(*page, &[value]));
        for (number, page) in [1, last].into_iter().zip(&data) {
            enter(&guest, &table, number, guest.table(entries, 0x7000, *page));
        }
        let nested = guest.nested(table);
        let other = guest.bench.endpoint(2, 2);
        let bound = guest.context.bind(&other).unwrap();
        let (mut port, mut others) = (guest.endpoint.port(), other.port());
        let here = |port: &mut DmaPort, number: u64| read(port, pasid(number as u32), 0x7000);
        assert_eq!(here(&mut port, 1), Err(FaultReason::NotAttached), "{form:?}: nobody is authorised yet");
        guest.device.attach(None, &nested).unwrap();
        assert_eq!([1, last].map(|number| here(&mut port, number)), [Ok(0xaa0), Ok(0xaa1)], "{form:?}");
        assert_eq!(here(&mut others, 1), Err(FaultReason::NotAttached), "{form:?}: another device");
        // No entry, one too many, and no PASID.
        assert_eq!(here(&mut port, 2), Err(FaultReason::NotAttached), "{form:?}");
        assert_eq!(here(&mut port, last + 1), Err(FaultReason::NotAttached), "{form:?}");
        assert_eq!(read(&mut port, None, 0x7000), Err(FaultReason::NotAttached), "{form:?}");
        assert_eq!(read(&mut port, pasid(1), 0x9000), Err(FaultReason::NotMapped), "{form:?}");
        // What the guest changed and did not say is as it was; said by PASID, that PASID is as it is now.
        enter(&guest, &table, 1, guest.table(entries, 0x7000, data[2]));
        assert_eq!(here(&mut port, 1), Ok(0xaa0), "{form:?}: forgotten on purpose");
        nested.invalidate_pasid(pasid(last as u32)).unwrap();
        assert_eq!(here(&mut port, 1), Ok(0xaa0), "{form:?}: another PASID");
        nested.invalidate_pasid(pasid(1)).unwrap();
        assert_eq!([1, last].map(|number| here(&mut port, number)), [Ok(0xaa2), Ok(0xaa1)], "{form:?}");
        enter(&guest, &table, last, guest.table(entries, 0x7000, data[2]));
        nested.invalidate(IovaRange::ALL).unwrap();
        assert_eq!(here(&mut port, last), Ok(0xaa2), "{form:?}");
        // A PASID that the host attached by itself goes there.
        let own = guest.context.hwpt_alloc_nested(&guest.parent, GuestTable { format: entries.format, root: 0 });
        guest.device.attach(pasid(1), own.unwrap()).unwrap();
        assert!(here(&mut port, 1).is_err(), "{form:?}");
        guest.device.detach(pasid(1)).unwrap();
        assert_eq!(here(&mut port, 1), Ok(0xaa2), "{form:?}");
        // And with the one attachment, all of it ends.
        guest.device.detach(None).unwrap();
        assert_eq!([1, last].map(|number| here(&mut port, number)), [Err(FaultReason::NotAttached); 2], "{form:?}");
        bound.attach(None, &nested).unwrap();
        assert_eq!(here(&mut others, 1), Ok(0xaa2), "{form:?}");
    }
}

#[test]
fn a23_what_has_no_pasid_goes_where_the_table_says() {
    let guest = Guest::new(OnMiss::Abort);
    let root = guest.pages(16);
    let page = guest.pages(1);
    guest.put(page, &[0x77]);
    guest.put(root, &context_descriptor(guest.table(ARM, 0x7000, page), 48));
    let table = |without, zero_is_none| GuestPasidTable {
        format: GuestPasidFormat::SmmuV3Linear,
        root,
        pasid_bits: 4,
        without,
        zero_is_none,
    };
    let mut port = guest.endpoint.port();
    for (without, zero_is_none, none, zero) in [
        (WithoutPasid::Refused, false, Err(FaultReason::NotAttached), Ok(0x77)),
        (WithoutPasid::EntryZero, true, Ok(0x77), Err(FaultReason::NotAttached)),
        (WithoutPasid::EntryZero, false, Ok(0x77), Ok(0x77)),
    ] {
        guest.device.attach(None, guest.nested(table(without, zero_is_none))).unwrap();
        assert_eq!((read(&mut port, None, 0x7000), read(&mut port, pasid(0), 0x7000)), (none, zero), "{without:?}");
    }
    guest.device.attach(None, guest.nested(table(WithoutPasid::Bypass, false))).unwrap();
    assert_eq!(read(&mut port, None, page), Ok(0x77), "the guest's own address");
    assert_eq!(read(&mut port, None, MEMORY), Err(FaultReason::NotMapped));
}

#[test]
fn a23_tables_that_lead_nowhere_in_circles_or_outside_are_faults_and_end() {
    for (mut table, _, pages, enter) in forms() {
        let guest = Guest::new(OnMiss::Abort);
        table.root = guest.pages(pages);
        // To itself, beyond the guest's memory, and to the top of the space.
        for (number, root) in [(1, table.root), (2, MEMORY), (3, 0xf_ffff_f000)] {
            enter(&guest, &table, number, root);
        }
        guest.device.attach(None, guest.nested(table)).unwrap();
        let mut port = guest.endpoint.port();
        for number in 1..4 {
            let found = read(&mut port, pasid(number), 0x7000);
            assert!(matches!(
                found,
                Err(FaultReason::GuestTable | FaultReason::NotMapped | FaultReason::NotPermitted) | Ok(_)
            ));
            // Whatever it is, it lies in the guest's memory: nothing else is mapped.
            assert!(number == 1 || found == Err(FaultReason::GuestTable), "{:?} {number}: {found:?}", table.format);
        }
    }
    // What no hardware could read is refused when it is made.
    let guest = Guest::new(OnMiss::Abort);
    let good = GuestPasidTable {
        format: GuestPasidFormat::SmmuV3Linear,
        root: 0,
        pasid_bits: 20,
        without: WithoutPasid::Refused,
        zero_is_none: true,
    };
    let made = |table: GuestPasidTable| match guest.context.hwpt_alloc_nested(&guest.parent, table) {
        Err(HwptError::Guest(BadGuestStage::Pasids(bad))) => Some(bad),
        _ => None,
    };
    assert_eq!(made(good), None);
    assert_eq!(made(GuestPasidTable { root: 8, ..good }), Some(BadPasidTable::Unaligned(8, 64)));
    assert_eq!(made(GuestPasidTable { pasid_bits: 21, ..good }), Some(BadPasidTable::TooWide(21, 20)));
    for format in [
        GuestPasidFormat::AmdGcr3(0, GuestFormat::X86_64),
        GuestPasidFormat::AmdGcr3(1, GuestFormat::Sv39),
        GuestPasidFormat::RiscVDirectory(4),
    ] {
        assert_eq!(made(GuestPasidTable { format, ..good }), Some(BadPasidTable::NoSuchFormat(format)));
    }
    let narrow = GuestPasidTable { format: GuestPasidFormat::RiscVDirectory(1), pasid_bits: 9, ..good };
    assert_eq!(made(narrow), Some(BadPasidTable::TooWide(9, 8)));
    // It is for all PASIDs, so it is attached to none.
    let nested = guest.nested(good);
    assert!(matches!(guest.device.attach(pasid(1), &nested), Err(AttachError::OwnsPasids(_))));
}
