//! A device on a bench: memory with PASIDs and pages, whoever answers page requests, and a sink that counts.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "only tests use the bench, and each a part of it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use ioasid::{BusAddress, FaultReason, Iova, Machine, PageGroup, PageRequest, PageResponse, Pasid, PasidHold, Silent};
use ioasid_devices::dsa::spec::command::{ACTIVE, Command, REQUEST_INTERRUPT};
use ioasid_devices::dsa::spec::completion::Record;
use ioasid_devices::dsa::spec::descriptor::{Descriptor, Flags, Operation};
use ioasid_devices::dsa::spec::registers::{
    CMD, CMDSTS, GRPCFG, GRPCFG_SIZE, PORTAL_SIZE, PORTALS_SIZE, QueueConfig, SWERR, WQCFG, WQCFG_SIZE,
};
use ioasid_devices::dsa::{Dsa, DsaOptions};
use ioasid_devices::{Dma, DmaError, Interrupts, PageRequests};
use ioasid_vfio::Model;
use zerocopy::{FromBytes, IntoBytes};

/// How long anything may take before a test calls it a hang.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const PAGE: u64 = 0x1000;
/// Where the bench has memory: without PASID, and with each of [`PASIDS`].
pub const RAM: u64 = 0x10_0000;
pub const RAM_PAGES: u64 = 256;
pub const PASIDS: [u32; 3] = [5, 6, 7];
/// Where completion records are, each 32 bytes.
pub const RECORDS: u64 = RAM;
/// Where buffers are.
pub const SOURCE: u64 = RAM + 0x1_0000;
pub const TARGET: u64 = RAM + 0x5_0000;
/// Nothing is there.
pub const NOWHERE: u64 = 0x7000_0000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    All,
    ReadOnly,
    /// It comes when it is asked for.
    Absent,
}

struct Page {
    bytes: Vec<u8>,
    access: Access,
}

#[derive(Default)]
struct Inside {
    pages: BTreeMap<(Option<u32>, u64), Page>,
    /// Accesses wait before they begin.
    hold: bool,
    held: usize,
    accesses: u64,
    /// Groups that were not answered.
    asked: Vec<PageGroup>,
    raised: Vec<u16>,
    /// Accesses there panic.
    fails_at: u64,
    /// Writes of one byte.
    single: Vec<(u64, u8)>,
}

/// All that the device sees of the world; clones share it.
#[derive(Clone, Default)]
pub struct World(Arc<(Mutex<Inside>, Condvar)>);

impl World {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.0.lock().unwrap()
    }

    /// Waits until it is so; looks whenever something happens.
    fn wait(&self, what: &str, mut so: impl FnMut(&mut Inside) -> bool) -> MutexGuard<'_, Inside> {
        let (guard, timeout) = self.0.1.wait_timeout_while(self.lock(), PATIENCE, |inside| !so(inside)).unwrap();
        assert!(!timeout.timed_out(), "it never came to be that {what}");
        guard
    }

    pub fn get_of(&self, pasid: Option<u32>, at: u64, len: usize) -> Vec<u8> {
        let inside = self.lock();
        (at..at + len as u64).map(|at| inside.pages[&(pasid, at / PAGE)].bytes[(at % PAGE) as usize]).collect()
    }

    pub fn set_of(&self, pasid: Option<u32>, at: u64, data: &[u8]) {
        let mut inside = self.lock();
        for (at, byte) in (at..).zip(data) {
            inside.pages.get_mut(&(pasid, at / PAGE)).unwrap().bytes[(at % PAGE) as usize] = *byte;
        }
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        self.get_of(None, at, len)
    }

    pub fn set(&self, at: u64, data: &[u8]) {
        self.set_of(None, at, data);
    }

    fn set_access(&self, pasid: Option<u32>, at: u64, access: Access) {
        self.lock().pages.get_mut(&(pasid, at / PAGE)).unwrap().access = access;
    }

    /// The page at `at` comes when it is asked for.
    pub fn absent(&self, at: u64) {
        self.set_access(None, at, Access::Absent);
    }

    pub fn absent_of(&self, pasid: u32, at: u64) {
        self.set_access(Some(pasid), at, Access::Absent);
    }

    pub fn present_of(&self, pasid: u32, at: u64) {
        self.set_access(Some(pasid), at, Access::All);
    }

    pub fn set_absent(&self, pasid: Option<u32>, at: u64) {
        self.set_access(pasid, at, Access::Absent);
    }

    pub fn set_present(&self, pasid: Option<u32>, at: u64) {
        self.set_access(pasid, at, Access::All);
    }

    /// Answers the oldest request, if there is one; with success, the page is there then.
    pub fn answer_any(&self, success: bool) {
        let mut inside = self.lock();
        if inside.asked.is_empty() {
            return;
        }
        let group = inside.asked.remove(0);
        let key = (group.requests[0].pasid.map(Pasid::get), group.requests[0].iova / PAGE);
        if let (true, Some(page)) = (success, inside.pages.get_mut(&key)) {
            page.access = Access::All;
        }
        drop(inside);
        (group.answer)(if success { PageResponse::Success } else { PageResponse::Invalid });
    }

    /// The bytes that were written to an address by writes of one byte, in their order.
    pub fn writes_to(&self, at: u64) -> Vec<u8> {
        self.lock().single.iter().filter(|(place, _)| *place == at).map(|(_, byte)| *byte).collect()
    }

    pub fn read_only(&self, at: u64) {
        self.set_access(None, at, Access::ReadOnly);
    }

    pub fn present(&self, at: u64) {
        self.set_access(None, at, Access::All);
    }

    /// Makes accesses wait inside the device's DMA until [`World::release`].
    pub fn hold(&self) {
        self.lock().hold = true;
    }

    pub fn release(&self) {
        self.lock().hold = false;
        self.0.1.notify_all();
    }

    /// Has the device's next access at `at` panic.
    pub fn fail_at(&self, at: u64) {
        self.lock().fails_at = at;
    }

    pub fn wait_until_held(&self) {
        drop(self.wait("an access is held", |inside| inside.held > 0));
    }

    pub fn accesses(&self) -> u64 {
        self.lock().accesses
    }

    /// How many hold this world: the test, the bench, the device.
    pub fn owners(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Waits until this many page requests wait for an answer; what they ask for, by address.
    pub fn requests(&self, count: usize) -> Vec<PageRequest> {
        let inside = self.wait(&format!("{count} pages are asked for"), |inside| inside.asked.len() >= count);
        let mut requests: Vec<_> = inside.asked.iter().flat_map(|group| group.requests.clone()).collect();
        requests.sort_by_key(|request| request.iova);
        requests
    }

    /// Answers the request for the page at `at`; with success, it is there then.
    pub fn answer(&self, at: u64, response: PageResponse) {
        let wanted = |group: &PageGroup| group.requests[0].iova == at & !(PAGE - 1);
        let mut inside = self.wait("the page is asked for", |inside| inside.asked.iter().any(wanted));
        let place = inside.asked.iter().position(wanted).unwrap();
        let group = inside.asked.remove(place);
        if response == PageResponse::Success {
            let key = (group.requests[0].pasid.map(Pasid::get), at / PAGE);
            inside.pages.get_mut(&key).unwrap().access = Access::All;
        }
        drop(inside);
        (group.answer)(response);
    }

    /// Answers the oldest request without making the page present.
    pub fn pretend(&self) {
        let group = self.wait("a page is asked for", |inside| !inside.asked.is_empty()).asked.remove(0);
        (group.answer)(PageResponse::Success);
    }

    pub fn unanswered(&self) -> usize {
        self.lock().asked.len()
    }

    /// Takes a request out, to answer it at any time.
    pub fn take_request(&self) -> PageGroup {
        self.wait("a page is asked for", |inside| !inside.asked.is_empty()).asked.remove(0)
    }

    /// How often a vector was raised.
    pub fn raised(&self, vector: u16) -> usize {
        self.lock().raised.iter().filter(|raised| **raised == vector).count()
    }

    pub fn wait_raised(&self, vector: u16, times: usize) {
        let count = |inside: &mut Inside| inside.raised.iter().filter(|raised| **raised == vector).count();
        drop(self.wait("the vector is raised", |inside| count(inside) >= times));
    }

    fn access(
        &self,
        at: BusAddress,
        len: usize,
        write: bool,
        mut each: impl FnMut(&mut [u8], usize),
    ) -> Result<(), DmaError> {
        let mut inside = self.lock();
        if inside.fails_at == at.iova.0 {
            drop(inside);
            panic!("the memory fails, as the test wants it to");
        }
        inside.held += 1;
        self.0.1.notify_all();
        inside = self.0.1.wait_while(inside, |inside| inside.hold).unwrap();
        inside.held -= 1;
        inside.accesses += 1;
        let mut done = 0;
        while done < len {
            let refused = |recoverable, place: u64| DmaError {
                recoverable,
                ..DmaError::new(BusAddress { iova: Iova(place), ..at }, write, FaultReason::NotMapped)
            };
            let place = at.iova.0.checked_add(done as u64).ok_or(refused(false, at.iova.0))?;
            let key = (at.pasid.map(Pasid::get), place / PAGE);
            let page = inside.pages.get_mut(&key).ok_or(refused(false, place))?;
            match page.access {
                Access::All => {}
                Access::ReadOnly if !write => {}
                Access::ReadOnly => return Err(refused(false, place)),
                Access::Absent => return Err(refused(true, place)),
            }
            let from = (place % PAGE) as usize;
            let here = (len - done).min(PAGE as usize - from);
            each(&mut page.bytes[from..from + here], done);
            done += here;
        }
        drop(inside);
        self.0.1.notify_all();
        Ok(())
    }
}

impl Dma for World {
    fn read(&mut self, at: BusAddress, data: &mut [u8]) -> Result<(), DmaError> {
        let len = data.len();
        self.access(at, len, false, |bytes, done| data[done..done + bytes.len()].copy_from_slice(bytes))
    }

    fn write(&mut self, at: BusAddress, data: &[u8]) -> Result<(), DmaError> {
        if let [byte] = data {
            self.lock().single.push((at.iova.0, *byte));
        }
        self.access(at, data.len(), true, |bytes, done| bytes.copy_from_slice(&data[done..done + bytes.len()]))
    }

    fn copy(&mut self, from: BusAddress, to: BusAddress, len: u64) -> Result<(), DmaError> {
        for done in (0..len).step_by(64) {
            let mut piece = vec![0; (len - done).min(64) as usize];
            let place = |at: BusAddress| BusAddress { iova: Iova(at.iova.0.wrapping_add(done)), ..at };
            self.read(place(from), &mut piece)?;
            self.write(place(to), &piece)?;
        }
        Ok(())
    }
}

impl PageRequests for World {
    fn request(&self, group: PageGroup) {
        self.lock().asked.push(group);
        self.0.1.notify_all();
    }
}

impl Interrupts for World {
    fn raise(&self, vector: u16) {
        self.lock().raised.push(vector);
        self.0.1.notify_all();
    }
}

/// How a queue is configured.
#[derive(Clone, Copy)]
pub struct Queue {
    pub size: u32,
    pub threshold: u32,
    pub dedicated: bool,
    pub block_on_fault: bool,
    pub pasid: Option<u32>,
    pub privileged: bool,
    pub transfer_shift: u32,
    pub batch_shift: u32,
}

impl Queue {
    pub const DEDICATED: Self = Self {
        size: 16,
        threshold: 0,
        dedicated: true,
        block_on_fault: true,
        pasid: None,
        privileged: false,
        transfer_shift: 21,
        batch_shift: 5,
    };
    pub const SHARED: Self = Self { dedicated: false, threshold: 12, pasid: Some(0), ..Self::DEDICATED };

    pub fn words(&self) -> [u32; 4] {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let identity = bit(self.dedicated, QueueConfig::DEDICATED)
            | bit(self.block_on_fault, QueueConfig::BLOCK_ON_FAULT)
            | 1 << 4
            | self.pasid.map_or(0, |pasid| QueueConfig::PASID_ENABLE | pasid << 8)
            | bit(self.privileged, QueueConfig::PRIVILEGED);
        [self.size, self.threshold, identity, self.transfer_shift | self.batch_shift << 5]
    }
}

/// A device on the bench.
pub struct Bench {
    pub world: World,
    pub device: Arc<Dsa>,
}

impl Bench {
    pub fn with(options: DsaOptions) -> Self {
        let world = World::default();
        for pasid in [None].into_iter().chain(PASIDS.map(Some)) {
            for page in 0..RAM_PAGES {
                let page_of = Page { bytes: vec![0; PAGE as usize], access: Access::All };
                world.lock().pages.insert((pasid, RAM / PAGE + page), page_of);
            }
        }
        let port = world.clone();
        let ports = Box::new(move || -> Box<dyn Dma> { Box::new(port.clone()) });
        let device = Dsa::new(options, ports, Arc::new(world.clone()), Arc::new(world.clone()));
        Self { world, device }
    }

    pub fn new() -> Self {
        Self::with(DsaOptions::default())
    }

    /// A device with queue 0 and engine 0 in group 0, enabled.
    pub fn ready(queue: Queue) -> Self {
        let bench = Self::new();
        bench.configure(&[queue], 1);
        bench.enable(1);
        bench
    }

    /// Configures queues from 0 on, with `engines`, a bit for each, in group 0.
    pub fn configure(&self, queues: &[Queue], engines: u64) {
        for (index, queue) in (0..).zip(queues) {
            self.configure_queue(index, queue);
        }
        self.write64(GRPCFG, (1 << queues.len()) - 1);
        self.write64(GRPCFG + 32, engines);
    }

    pub fn configure_queue(&self, index: u64, queue: &Queue) {
        for (word, value) in (0..).zip(queue.words()) {
            self.write32(WQCFG + index * WQCFG_SIZE + 4 * word, value);
        }
    }

    pub fn group(&self, group: u64, queues: u64, engines: u64) {
        self.write64(GRPCFG + group * GRPCFG_SIZE, queues);
        self.write64(GRPCFG + group * GRPCFG_SIZE + 32, engines);
    }

    /// Enables the device and so many queues.
    pub fn enable(&self, queues: u32) {
        assert_eq!(self.command(Command::EnableDevice, 0), 0);
        for queue in 0..queues {
            assert_eq!(self.command(Command::EnableQueue, queue), 0);
        }
    }

    /// Writes a command; returns CMDSTS at once.
    pub fn begin(&self, command: Command, operand: u32) -> u32 {
        self.write32(CMD, (command as u32) << 20 | operand);
        self.read32(CMDSTS)
    }

    /// Performs a command; returns CMDSTS when it is done.
    pub fn command(&self, command: Command, operand: u32) -> u32 {
        let before = self.world.raised(0);
        self.write32(CMD, (command as u32) << 20 | operand | REQUEST_INTERRUPT);
        // An error raises the vector, too.
        for times in before + 1.. {
            self.world.wait_raised(0, times);
            let status = self.read32(CMDSTS);
            if status & ACTIVE == 0 {
                return status;
            }
        }
        unreachable!("it was raised often enough")
    }

    pub fn read(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.device.read(0, offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub fn read32(&self, offset: u64) -> u32 {
        self.read(offset, 4) as u32
    }

    pub fn read64(&self, offset: u64) -> u64 {
        self.read(offset, 8)
    }

    pub fn write32(&self, offset: u64, value: u32) {
        self.device.write(0, offset, &value.to_le_bytes());
    }

    pub fn write64(&self, offset: u64, value: u64) {
        self.device.write(0, offset, &value.to_le_bytes());
    }

    /// State in GENSTS, and of queue 0 in WQCFG.
    pub fn states(&self) -> (u32, u32) {
        (self.read32(0x90) & 3, self.queue_state(0))
    }

    pub fn queue_state(&self, queue: u64) -> u32 {
        self.read32(WQCFG + queue * WQCFG_SIZE + 24) >> 30
    }

    pub fn soft_error(&self) -> [u64; 4] {
        [0, 8, 16, 24].map(|word| self.read64(SWERR + word))
    }

    /// Waits until SWERR is valid.
    pub fn wait_soft_error(&self) -> [u64; 4] {
        // Interrupts are off for it by default, so a drain is what orders it.
        self.drain();
        self.soft_error()
    }

    pub fn clear_soft_error(&self) {
        self.write64(SWERR, 3);
    }

    /// Submits by a posted write, through the unlimited portal of a queue.
    pub fn submit_to(&self, queue: u64, descriptor: &Descriptor) {
        self.device.write(2, queue * PORTALS_SIZE, descriptor.as_bytes());
    }

    pub fn submit(&self, descriptor: &Descriptor) {
        self.submit_to(0, descriptor);
    }

    /// Submits by a deferrable write in the name of `pasid`.
    pub fn enqueue(&self, queue: u64, limited: bool, pasid: u32, descriptor: &Descriptor) -> Option<bool> {
        let named = Descriptor { identity: pasid.into(), ..*descriptor };
        let portal = queue * PORTALS_SIZE + u64::from(limited) * PORTAL_SIZE;
        self.device.enqueue(2, portal, named.as_bytes().try_into().unwrap())
    }

    /// Waits until nothing of any queue is in flight.
    pub fn drain(&self) {
        assert_eq!(self.command(Command::DrainAll, 0) & 0xFF, 0);
    }

    /// The completion record in place `index`, whatever it is.
    pub fn record(&self, index: u64) -> Record {
        self.record_of(None, index)
    }

    pub fn record_of(&self, pasid: Option<u32>, index: u64) -> Record {
        Record::read_from_bytes(&self.world.get_of(pasid, RECORDS + 32 * index, 32)).unwrap()
    }

    /// Waits for the completion record in place `index`.
    pub fn wait_of(&self, pasid: Option<u32>, index: u64) -> Record {
        let (page, at) = ((RECORDS + 32 * index) / PAGE, ((RECORDS + 32 * index) % PAGE) as usize);
        drop(self.world.wait("the record is written", |inside| inside.pages[&(pasid, page)].bytes[at] != 0));
        self.record_of(pasid, index)
    }

    pub fn wait(&self, index: u64) -> Record {
        self.wait_of(None, index)
    }

    /// Submits a descriptor, and waits for its record, which is in place 0.
    pub fn run(&self, descriptor: &Descriptor) -> Record {
        self.world.set(RECORDS, &[0; 32]);
        self.submit(descriptor);
        self.wait(0)
    }
}

/// What keeps a PASID from meaning something else, as a host has it.
pub fn held(number: u32) -> PasidHold {
    static HELD: Mutex<BTreeMap<u32, PasidHold>> = Mutex::new(BTreeMap::new());
    let new = || {
        let context = Machine::new(Arc::new(Silent)).context();
        let pasid = context.pasid_alloc(number, number).unwrap();
        context.hold_pasid(pasid).unwrap()
    };
    HELD.lock().unwrap().entry(number).or_insert_with(new).clone()
}

/// A descriptor whose record goes to place `index`.
pub fn descriptor(operation: Operation, flags: Flags, index: u64, from: u64, to: u64, size: u32) -> Descriptor {
    let flags = flags | Flags::RECORD_VALID | Flags::REQUEST_RECORD;
    Descriptor {
        control: ((operation as u32) << 24 | flags.bits()).into(),
        completion: (RECORDS + 32 * index).into(),
        source: from.into(),
        destination: to.into(),
        size: size.into(),
        ..Descriptor::default()
    }
}

/// A copy whose record goes to place `index`.
pub fn copy(index: u64, from: u64, to: u64, size: u32) -> Descriptor {
    descriptor(Operation::Move, Flags::empty(), index, from, to, size)
}

/// Another one that waits for pages.
pub fn blocking(descriptor: Descriptor) -> Descriptor {
    with_flags(descriptor, Flags::BLOCK_ON_FAULT)
}

pub fn with_flags(descriptor: Descriptor, flags: Flags) -> Descriptor {
    Descriptor { control: (descriptor.control.get() | flags.bits()).into(), ..descriptor }
}

pub fn without_flags(descriptor: Descriptor, flags: Flags) -> Descriptor {
    Descriptor { control: (descriptor.control.get() & !flags.bits()).into(), ..descriptor }
}

/// Another one that raises a vector.
pub fn interrupting(descriptor: Descriptor, vector: u16) -> Descriptor {
    Descriptor { interrupt: vector.into(), ..with_flags(descriptor, Flags::REQUEST_INTERRUPT) }
}

/// A batch of what lies at `list`.
pub fn batch(index: u64, list: u64, count: u32) -> Descriptor {
    descriptor(Operation::Batch, Flags::empty(), index, list, 0, count)
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index as u8).wrapping_mul(31).wrapping_add((index >> 8) as u8) ^ seed).collect()
}
