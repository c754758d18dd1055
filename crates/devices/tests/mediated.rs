//! Two owners, each with a slice of one DSA, who do what they can to reach each other's memory: not one byte crosses.
//!
//! ```text
//!   owner A ──► slice 0 (shared) ────┐                       ┌──► A's memory: every byte is 0xA?
//!     PASIDs 1 to 3, and none        ├─► one DSA ─► parent ──┤      by PASIDs that the owner did not choose
//!   owner B ──► slice 1 (dedicated) ─┘                       └──► B's memory: every byte is 0xB?
//! ```
//! Everything is real: the engine, the parts of a device, the slices and their translation of PASIDs. What an owner's
//! descriptors write into data are bytes that carry the owner's mark, so one byte of the other's in its memory, or of
//! its own in the other's, shows that data crossed. Completion records go to places that the other does not use, and
//! interrupts are counted. In turn an owner does harm, and then work whose result is known.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ioasid::memory::{Pages, Segment};
use ioasid::{
    Access, Context, Device, Endpoint, EndpointOptions, GroupId, Hwpt, HwptOptions, Ioas, Iova, IovaRange, Machine,
    OnMiss, PartPasidTable, PartPasids, Pasid, PasidHold, Recovery, Rid, Silent,
};
use ioasid_devices::dsa::spec::command::{ACTIVE, Command, REQUEST_INTERRUPT};
use ioasid_devices::dsa::spec::completion::Record;
use ioasid_devices::dsa::spec::descriptor::{Descriptor, Flags, Operation};
use ioasid_devices::dsa::spec::registers::{CMD, CMDSTS, MSIXPERM, QueueConfig, QueueMode, SWERR, WQCFG};
use ioasid_devices::dsa::{Dsa, DsaOptions, DsaSlice, PasidTranslation, SliceQueue};
use ioasid_devices::{Dma, Interrupts};
use ioasid_vfio::Model;
use zerocopy::{FromBytes, IntoBytes};

/// Seconds; `IOASID_MEDIATED_SECONDS` changes it.
const LONG: u64 = 30;
/// How long a command may take before the test calls it a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an address space has at the same IOVAs for both owners, and as many bytes of the file behind it, in this order.
const DATA: (u64, u64) = (0x10_0000, 0x1_0000);
const SCRATCH: (u64, u64) = (0x20_0000, 0x4000);
const RECORDS: (u64, u64) = (0x30_0000, 0x1000);
const LISTS: (u64, u64) = (0x40_0000, 0x2000);
/// Where an owner has its data a second time: an address that only it can use.
const OWN: [u64; 2] = [0x4000_0000, 0x5000_0000];
/// Nothing is there.
const NOWHERE: u64 = 0x7000_0000;
/// The mark of an owner, in the high half of each byte.
const MARKS: [u8; 2] = [0xa0, 0xb0];
/// What is taken away from a device and brought back at a time.
const AREA: u64 = 0x4000;
/// Records of an owner: one has the even places, the other the odd ones.
const PLACES: u64 = RECORDS.1 / 32 / 2;
/// Descriptors in a batch, and batches that have a place.
const MEMBERS: u64 = 8;
const BATCHES: u64 = LISTS.1 / 64 / MEMBERS;
/// Address spaces of an owner: without a PASID, and with each of its virtual ones.
const SPACES: usize = 4;

/// A small generator: the test must not depend on how good it is.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
}

/// What happened, of one owner.
#[derive(Debug, Default)]
struct Counts {
    honest: u64,
    interrupts: u64,
    hostile: u64,
    /// Descriptors in a batch with a PASID of the bus, the other's or any.
    foreign_pasids: u64,
    /// Descriptors with an address that only the other has.
    foreign_addresses: u64,
    refused: u64,
    faults: u64,
    aborts: u64,
    resets: u64,
    attached: u64,
    /// PASIDs on the bus that were the other's before.
    inherited: u64,
    bytes_looked_at: u64,
}

#[derive(Default)]
struct Sink(Mutex<[u64; 2]>, Condvar);

impl Interrupts for Sink {
    fn raise(&self, vector: u16) {
        self.0.lock().unwrap()[usize::from(vector)] += 1;
        self.1.notify_all();
    }
}

/// As the program that runs drivers has it.
struct Translation(PartPasidTable);

impl PasidTranslation for Translation {
    fn physical(&self, pasid: Option<Pasid>) -> Option<PasidHold> {
        self.0.hold(pasid)
    }
}

/// An address space with its memory.
struct Space {
    ioas: Arc<Ioas>,
    table: Arc<Hwpt>,
    file: Arc<File>,
    pages: Arc<Pages>,
}

impl Space {
    fn new(context: &Context, device: &Device, owner: usize) -> Self {
        let length = DATA.1 + SCRATCH.1 + RECORDS.1 + LISTS.1;
        let (_, file) = Segment::memfd(length).unwrap();
        file.write_all_at(&vec![MARKS[owner]; length as usize], 0).unwrap();
        let pages = Pages::of_file(file.try_clone().unwrap(), 0, length, true);
        let ioas = context.ioas_alloc().unwrap();
        let options = HwptOptions::default().pasids(true).on_miss(OnMiss::Resolve);
        let table = context.hwpt_alloc(device.endpoint(), &ioas, options).unwrap();
        let space = Self { ioas, table, file, pages };
        let mut offset = DATA.1;
        for (at, length) in [SCRATCH, RECORDS, LISTS] {
            space.map(at, offset, length);
            offset += length;
        }
        (0..DATA.1 / AREA).for_each(|area| space.map_data(owner, area));
        space
    }

    fn map(&self, at: u64, offset: u64, length: u64) {
        self.ioas.map_pages(Some(Iova(at)), &self.pages, offset, length, Access::all()).unwrap();
    }

    fn map_data(&self, owner: usize, area: u64) {
        [DATA.0, OWN[owner]].into_iter().for_each(|at| self.map(at + area * AREA, area * AREA, AREA));
    }

    fn unmap_data(&self, owner: usize, area: u64) {
        for at in [DATA.0, OWN[owner]] {
            self.ioas.unmap(IovaRange::new(at + area * AREA, AREA).unwrap()).unwrap();
        }
    }

    /// Bytes of the file, from an offset in it.
    fn get(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
    }
}

/// Where in the file a place of records or lists is.
const RECORDS_AT: u64 = DATA.1 + SCRATCH.1;
const LISTS_AT: u64 = RECORDS_AT + RECORDS.1;

/// What owners know of each other: all of it.
#[derive(Default)]
struct Shared {
    /// Who was the last to have a PASID on the bus.
    last: Mutex<BTreeMap<Pasid, usize>>,
    stop: AtomicBool,
}

struct Owner<'s> {
    number: usize,
    shared: &'s Shared,
    random: Random,
    mode: QueueMode,
    model: Arc<DsaSlice>,
    sink: Arc<Sink>,
    endpoint: Arc<Endpoint>,
    device: Device,
    spaces: Vec<Space>,
    counts: Counts,
}

fn virtual_pasid(space: usize) -> Option<Pasid> {
    Some(space as u32).filter(|number| *number > 0).and_then(Pasid::new)
}

impl<'s> Owner<'s> {
    fn new(machine: &Arc<Machine>, parent: &Parent, number: usize, shared: &'s Shared) -> Self {
        let rid = Rid::new(1, 0, number as u8 + 1, 0).unwrap();
        let group = GroupId(number as u32);
        let endpoint = machine.add_part(&parent.endpoint, rid, group, PartPasids::Translated).unwrap();
        endpoint.set_bus_master(true).unwrap();
        let translation = Arc::new(Translation(endpoint.virtual_pasids().unwrap()));
        let sink = Arc::new(Sink::default());
        let model = DsaSlice::new(&parent.device, number as u8, translation, sink.clone()).unwrap();
        let context = machine.context();
        let device = context.bind(&endpoint).unwrap();
        let spaces = (0..SPACES).map(|_| Space::new(&context, &device, number)).collect();
        Self {
            number,
            shared,
            random: Random(0x9e37_79b9_7f4a_7c15 + number as u64),
            mode: MODES[number],
            model,
            sink,
            endpoint,
            device,
            spaces,
            counts: Counts::default(),
        }
    }

    fn run(mut self) -> Counts {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.begin_anew();
            self.do_harm();
            self.drain();
            self.look();
            self.begin_anew();
            self.do_work();
        }
        self.model.reset();
        self.look();
        self.counts
    }

    // The slice.

    fn read(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.model.read(0, offset, &mut data);
        u64::from_le_bytes(data)
    }

    /// Performs a command; returns CMDSTS when it is done.
    fn command(&self, command: Command, operand: u32) -> u32 {
        let mut before = self.sink.0.lock().unwrap()[0];
        self.model.write(0, CMD, &((command as u32) << 20 | operand | REQUEST_INTERRUPT).to_le_bytes());
        // An error raises the vector, too.
        loop {
            let raised = self.sink.0.lock().unwrap();
            let (raised, timeout) =
                self.sink.1.wait_timeout_while(raised, PATIENCE, |raised| raised[0] == before).unwrap();
            assert!(!timeout.timed_out(), "{command:?} is not done");
            before = raised[0];
            drop(raised);
            let status = self.read(CMDSTS) as u32;
            if status & ACTIVE == 0 {
                return status;
            }
        }
    }

    fn drain(&self) {
        self.command(Command::DrainAll, 0);
    }

    /// A queue that works: for a dedicated one, in the name of one of the PASIDs, or of none.
    fn begin_anew(&mut self) {
        self.model.reset();
        self.enable(0);
        (0..SPACES).for_each(|space| self.attach(space));
    }

    fn enable(&self, space: usize) {
        if self.mode == QueueMode::Dedicated {
            let word = virtual_pasid(space).map_or(0, |pasid| QueueConfig::PASID_ENABLE | pasid.get() << 8);
            self.model.write(0, WQCFG + 8, &word.to_le_bytes());
        }
        self.command(Command::EnableDevice, 0);
        self.command(Command::EnableQueue, 0);
    }

    /// Hands a descriptor to the slice, until it is accepted, if that is wanted.
    fn submit(&self, space: usize, descriptor: &Descriptor, insist: bool) -> bool {
        let named = Descriptor { identity: (space as u32).into(), ..*descriptor };
        loop {
            let accepted = match self.mode {
                QueueMode::Dedicated => {
                    self.model.write(2, 0, descriptor.as_bytes());
                    true
                }
                QueueMode::Shared => self.model.enqueue(2, 0, named.as_bytes().try_into().unwrap()).unwrap(),
            };
            if accepted || !insist {
                return accepted;
            }
            std::thread::yield_now();
        }
    }

    // Attachments.

    fn attach(&mut self, space: usize) {
        let pasid = virtual_pasid(space);
        if self.device.attached_to(pasid).is_none() {
            self.device.attach(pasid, &self.spaces[space].table).unwrap();
            let physical = self.endpoint.virtual_pasids().unwrap().physical(pasid).unwrap();
            let before = self.shared.last.lock().unwrap().insert(physical, self.number);
            self.counts.inherited += u64::from(before == Some(1 - self.number));
            self.counts.attached += 1;
        }
    }

    // Harm.

    fn do_harm(&mut self) {
        let queue_of = self.random.below(SPACES as u64) as usize;
        if self.mode == QueueMode::Dedicated {
            self.command(Command::ResetQueue, 1);
            self.enable(queue_of);
        }
        for _ in 0..8 + self.random.below(24) {
            let space = match self.mode {
                QueueMode::Dedicated => queue_of,
                QueueMode::Shared => 1 + self.random.below(SPACES as u64 - 1) as usize,
            };
            match self.random.below(16) {
                0 => {
                    let space = self.random.below(SPACES as u64) as usize;
                    self.device.detach(virtual_pasid(space)).unwrap();
                }
                1 => {
                    let space = self.random.below(SPACES as u64) as usize;
                    self.attach(space);
                }
                2 => self.take_away(space),
                3 if self.random.one_in(2) => self.abort(),
                4 if self.random.one_in(8) => {
                    self.counts.resets += 1;
                    self.model.reset();
                    self.enable(queue_of);
                }
                _ => {
                    let batch = self.random.one_in(3);
                    let descriptor = if batch { self.hostile_batch(space) } else { self.hostile(space) };
                    let identity = self.any_identity(space);
                    let accepted = self.submit(identity as usize, &descriptor, false);
                    self.counts.hostile += 1;
                    self.counts.refused += u64::from(!accepted || self.read(SWERR) & 1 != 0);
                    self.model.write(0, SWERR, &3_u64.to_le_bytes());
                }
            }
        }
        // What it had taken away from its own devices, it has again.
        for space in &self.spaces {
            for area in 0..DATA.1 / AREA {
                if space.ioas.bytes_in(IovaRange::new(DATA.0 + area * AREA, AREA).unwrap()) == 0 {
                    space.map_data(self.number, area);
                }
            }
        }
    }

    /// Its own pages fault.
    fn take_away(&mut self, space: usize) {
        let (area, space) = (self.random.below(DATA.1 / AREA), &self.spaces[space]);
        let range = IovaRange::new(DATA.0 + area * AREA, AREA).unwrap();
        self.counts.faults += 1;
        match (space.ioas.bytes_in(range), self.random.below(2)) {
            (0, _) => space.map_data(self.number, area),
            (_, 0) => space.unmap_data(self.number, area),
            _ => space.ioas.make_fault(range).unwrap(),
        }
    }

    fn abort(&mut self) {
        self.counts.aborts += 1;
        let pasid = self.random.below(SPACES as u64) as u32;
        match self.random.below(3) {
            0 => self.command(Command::AbortAll, 0),
            1 => self.command(Command::AbortQueue, 1),
            _ => self.command(Command::AbortPasid, pasid),
        };
    }

    /// A PASID for a descriptor: its own, the other's on the bus, or any.
    fn any_identity(&mut self, space: usize) -> u32 {
        match self.random.below(8) {
            0 => self.foreign_pasid(),
            1 => self.random.below(1 << 20) as u32,
            _ => space as u32,
        }
    }

    fn foreign_pasid(&mut self) -> u32 {
        let last = self.shared.last.lock().unwrap();
        let others: Vec<_> = last.iter().filter(|(_, owner)| **owner != self.number).map(|(pasid, _)| *pasid).collect();
        drop(last);
        let n = self.random.below(1 << 20) as usize;
        if others.is_empty() { n as u32 % 16 } else { others[n % others.len()].get() }
    }

    /// An address to read from or write to. Its own are of bytes that carry its mark.
    fn any_address(&mut self) -> u64 {
        let offset = self.random.below(DATA.1);
        match self.random.below(8) {
            0..5 => DATA.0 + offset,
            5 => {
                self.counts.foreign_addresses += 1;
                OWN[1 - self.number] + offset
            }
            6 => [NOWHERE, u64::MAX - offset][self.random.below(2) as usize],
            _ => OWN[self.number] + offset,
        }
    }

    /// Eight bytes that carry the owner's mark.
    fn pattern(&mut self) -> u64 {
        let mark = MARKS[self.number];
        u64::from_le_bytes([(); 8].map(|()| mark | self.random.below(16) as u8))
    }

    /// Where a record of the owner's goes, or where one of the other's does.
    fn any_record(&mut self) -> u64 {
        let place = 2 * self.random.below(PLACES) + self.number as u64;
        match self.random.below(6) {
            0 => OWN[1 - self.number] + 32 * place,
            _ => RECORDS.0 + 32 * place,
        }
    }

    fn hostile(&mut self, space: usize) -> Descriptor {
        let operation = Operation::ALL[self.random.below(Operation::ALL.len() as u64) as usize];
        let (mut source, mut destination) = (self.any_address(), self.any_address());
        let mut specific = [0; 3];
        let scratch = SCRATCH.0 + self.random.below(SCRATCH.1 / 8) * 8;
        match operation {
            Operation::Fill => source = self.pattern(),
            Operation::ComparePattern => destination = self.pattern(),
            Operation::Dualcast => {
                let other = self.any_address();
                specific[0] = other & !0xfff | destination & 0xfff;
            }
            // What they write is no copy, and goes where no marks are.
            Operation::CreateDelta => specific = [scratch, 4096, 0],
            Operation::ApplyDelta => {
                (source, destination, specific) = (scratch, scratch, [4096, 0, 0]);
            }
            Operation::DifInsert | Operation::DifUpdate | Operation::DifStrip => {
                let foreign = self.random.one_in(2);
                destination = if foreign { OWN[1 - self.number] } else { scratch };
                if operation != Operation::DifInsert {
                    source = scratch;
                }
            }
            Operation::Batch => source = self.any_address() & !63,
            _ => {}
        }
        let size = match self.random.below(8) {
            0 => self.random.below(1 << 32) as u32,
            1 => DATA.1 as u32 + self.random.below(0x1000) as u32,
            2 => 512 * (1 + self.random.below(8) as u32),
            _ => 1 + self.random.below(0x3000) as u32,
        };
        let mut flags = Flags::RECORD_VALID | Flags::REQUEST_RECORD;
        flags.set(Flags::BLOCK_ON_FAULT, self.random.one_in(2));
        flags.set(Flags::REQUEST_INTERRUPT, self.random.one_in(4));
        let any = Flags::from_bits_retain(1 << self.random.below(24));
        flags.set(any, self.random.one_in(8));
        let interrupt = if flags.contains(Flags::REQUEST_INTERRUPT) { self.random.below(4) as u16 } else { 0 };
        Descriptor {
            identity: self.any_identity(space).into(),
            control: ((operation as u32) << 24 | flags.bits() & 0xff_ffff).into(),
            completion: self.any_record().into(),
            source: source.into(),
            destination: destination.into(),
            size: size.into(),
            interrupt: interrupt.into(),
            reserved: 0.into(),
            specific: specific.map(Into::into),
        }
    }

    /// A batch whose members name PASIDs of the bus, or one that lies where the other's memory is.
    fn hostile_batch(&mut self, space: usize) -> Descriptor {
        let place = self.random.below(BATCHES) * MEMBERS * 64;
        for member in 0..MEMBERS {
            self.counts.foreign_pasids += 1;
            let identity = self.foreign_pasid();
            let member_of = Descriptor { identity: identity.into(), ..self.hostile(space) };
            self.spaces[space].put(LISTS_AT + place + member * 64, member_of.as_bytes());
        }
        let list = if self.random.one_in(8) { OWN[1 - self.number] } else { LISTS.0 + place };
        let record = self.any_record();
        batch(list, MEMBERS as u32, record)
    }

    // What must be so.

    /// Looks at all memory of the owner's.
    fn look(&mut self) {
        for (n, space) in self.spaces.iter().enumerate() {
            let data = space.get(0, DATA.1);
            let strange = data.iter().position(|byte| byte & 0xf0 != MARKS[self.number]);
            let strange = strange.map(|at| (at, data[at]));
            assert_eq!(strange, None, "owner {}, space {n}: a byte that is not its own", self.number);
            let records = space.get(RECORDS_AT, RECORDS.1);
            let others = records.chunks(32).skip(1 - self.number).step_by(2);
            let strange = others.flatten().find(|byte| **byte != MARKS[self.number]);
            assert_eq!(strange, None, "owner {}, space {n}: a record of the other's", self.number);
            self.counts.bytes_looked_at += DATA.1 + RECORDS.1;
        }
    }

    // Work.

    fn do_work(&mut self) {
        let space = match self.mode {
            QueueMode::Dedicated => self.random.below(SPACES as u64) as usize,
            QueueMode::Shared => 1 + self.random.below(SPACES as u64 - 1) as usize,
        };
        if self.mode == QueueMode::Dedicated {
            self.command(Command::ResetQueue, 1);
            self.enable(space);
        }
        let permission = virtual_pasid(space).map_or(0, |pasid| 1 << 3 | pasid.get() << 12);
        self.model.write(0, MSIXPERM + 8, &permission.to_le_bytes());
        let before = self.sink.0.lock().unwrap()[1];
        let mut wanted = 0;
        // Each with a piece of the data of its own, from the first half to the second.
        let mut expected = Vec::new();
        for piece in 0..8 {
            let (from, to) = (piece * 0x1000, DATA.1 / 2 + piece * 0x1000);
            let length = 1 + self.random.below(0x1000);
            let bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.pattern().to_le_bytes()).collect();
            self.spaces[space].put(from, &bytes);
            let at = |offset: u64| if piece % 2 == 0 { DATA.0 + offset } else { OWN[self.number] + offset };
            let record = 2 * piece + self.number as u64;
            let interrupts = self.random.one_in(2);
            wanted += u64::from(interrupts);
            let (operation, source) = match self.random.below(4) {
                0 => (Operation::Fill, u64::from_le_bytes(bytes[..8].try_into().unwrap())),
                1 => (Operation::CopyCrc, at(from)),
                2 => (Operation::Compare, at(from)),
                _ => (Operation::Move, at(from)),
            };
            let result = match operation {
                Operation::Fill => bytes[..8].iter().copied().cycle().take(length as usize).collect(),
                Operation::Compare => self.spaces[space].get(to, length),
                _ => bytes[..length as usize].to_vec(),
            };
            let is_same = result == bytes[..length as usize];
            let work = work(operation, source, at(to), length as u32, RECORDS.0 + 32 * record, interrupts);
            self.spaces[space].put(RECORDS_AT + 32 * record, &[0; 32]);
            if piece % 4 == 3 {
                // The same by a batch, beside one that does nothing.
                let place = (piece % BATCHES) * MEMBERS * 64;
                let nothing = Descriptor::default();
                self.spaces[space].put(LISTS_AT + place, [work, nothing].as_bytes());
                let of_batch = RECORDS.0 + 32 * (2 * (PLACES - 1) + self.number as u64);
                self.submit(space, &batch(LISTS.0 + place, 2, of_batch), true);
            } else {
                self.submit(space, &work, true);
            }
            expected.push((record, to, operation, is_same, result));
        }
        self.drain();
        for (place, to, operation, is_same, result) in expected {
            let record = Record::read_from_bytes(&self.spaces[space].get(RECORDS_AT + 32 * place, 32)).unwrap();
            let differs = u8::from(operation == Operation::Compare && !is_same);
            assert_eq!(
                (record.status, record.result),
                (1, differs),
                "owner {}: {operation:?}, {record:?}",
                self.number
            );
            assert!(self.spaces[space].get(to, result.len() as u64) == result, "owner {}: {operation:?}", self.number);
            self.counts.honest += 1;
        }
        let raised = self.sink.0.lock().unwrap()[1] - before;
        assert_eq!(raised, wanted, "owner {}: interrupts", self.number);
        self.counts.interrupts += raised;
    }
}

fn work(operation: Operation, source: u64, to: u64, size: u32, record: u64, interrupts: bool) -> Descriptor {
    let mut flags = Flags::RECORD_VALID | Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT;
    flags.set(Flags::REQUEST_INTERRUPT, interrupts);
    Descriptor {
        control: ((operation as u32) << 24 | flags.bits()).into(),
        completion: record.into(),
        source: source.into(),
        destination: to.into(),
        size: size.into(),
        interrupt: u16::from(interrupts).into(),
        ..Descriptor::default()
    }
}

/// It always waits for the pages of its list, and must not ask for that.
fn batch(list: u64, count: u32, record: u64) -> Descriptor {
    let batch = work(Operation::Batch, list, 0, count, record, false);
    Descriptor { control: (batch.control.get() & !Flags::BLOCK_ON_FAULT.bits()).into(), ..batch }
}

/// One owner's queue is shared, and it names a PASID in each descriptor; the other's names one for all, or none.
const MODES: [QueueMode; 2] = [QueueMode::Shared, QueueMode::Dedicated];

/// A device that no program gets, of which the slices are parts.
struct Parent {
    endpoint: Arc<Endpoint>,
    device: Arc<Dsa>,
}

impl Parent {
    fn new(machine: &Arc<Machine>) -> Self {
        let options = EndpointOptions::default().recovery(Recovery::PageRequests);
        let rid = Rid::new(0, 0, 1, 0).unwrap();
        let endpoint = machine.add_endpoint_with(rid, GroupId(100), options).unwrap();
        endpoint.set_bus_master(true).unwrap();
        let ports = endpoint.clone();
        let port = Box::new(move || -> Box<dyn Dma> { Box::new(ports.port()) });
        // One group, so that both have their work done by the same engines.
        let options = DsaOptions { wqs: 2, groups: 1, engines: 2, ..DsaOptions::default() };
        let device = Dsa::new(options, port, Arc::new(endpoint.clone()), Arc::new(Sink::default()));
        let queue = |mode| SliceQueue {
            mode,
            size: 64,
            threshold: 64,
            priority: 8,
            block_on_fault: true,
            transfer_shift: 31,
            batch_shift: 10,
        };
        device.configure_slices(&MODES.map(queue)).unwrap();
        Self { endpoint, device }
    }
}

#[test]
fn not_one_byte_crosses_between_owners_of_slices_of_one_device() {
    let seconds = std::env::var("IOASID_MEDIATED_SECONDS").map_or(LONG, |text| text.parse().unwrap());
    let machine = Machine::new(Arc::new(Silent));
    let (parent, shared) = (Parent::new(&machine), Shared::default());
    let owners = [0, 1].map(|number| Owner::new(&machine, &parent, number, &shared));
    let counts = std::thread::scope(|scope| {
        // Whoever fails ends the other, too.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stop = &shared.stop;
        let running = owners.map(|owner| {
            scope.spawn(move || {
                let _ends = Ends(stop);
                owner.run()
            })
        });
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end && !stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        running.map(|thread| thread.join().unwrap())
    });

    for (counts, mode) in counts.iter().zip(MODES) {
        let Counts { honest, interrupts, hostile, foreign_pasids, foreign_addresses, .. } = counts;
        let Counts { refused, faults, aborts, resets, attached, inherited, bytes_looked_at, .. } = counts;
        println!("owner of a slice that is {mode:?}");
        let rows = [
            ("descriptors with a known result", *honest, 100),
            ("interrupts that were asked for", *interrupts, 50),
            ("hostile submissions", *hostile, 200),
            ("  refused, or an error was told", *refused, 20),
            ("  members with the bus's PASIDs", *foreign_pasids, 200),
            ("  addresses that the other has", *foreign_addresses, 100),
            ("pages taken away or brought back", *faults, 50),
            ("aborts", *aborts, 20),
            ("resets with work in the device", *resets, 5),
            ("attachments", *attached, 50),
            ("  by a PASID that the other had", *inherited, 20),
            ("bytes looked at", *bytes_looked_at, 1 << 20),
        ];
        rows.iter().for_each(|(name, count, _)| println!("  {name:<34} {count:>12}"));
        let few = rows.iter().find(|(_, count, least)| count < least);
        assert!(few.is_none(), "the test had no power: {few:?}");
    }
    drop(parent);
    assert_eq!((machine.resources(), machine.pasids_in_use()), ((0, 0), 0), "nothing is left");
}
