//! A controller on a bench: memory with permissions, a sink that counts, and a driver that waits by polling.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "only tests use the bench, and each a part of it")]

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ioasid::{BusAddress, FaultReason, Iova};
use ioasid_devices::nvme::spec::command::{Command, Completion, admin, nvm};
use ioasid_devices::nvme::spec::registers::{Register, cc, csts};
use ioasid_devices::nvme::spec::status::Status;
use ioasid_devices::nvme::{Backing, NamespaceOptions, Nvme, NvmeOptions};
use ioasid_devices::{Dma, DmaError, Interrupts};
use ioasid_vfio::Model;
use zerocopy::{FromBytes, IntoBytes};

/// How long anything may take before a test calls it a hang.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const PAGE: u64 = 0x1000;
/// Memory that may be read and written, from here on.
pub const RAM: u64 = 0x10_0000;
pub const RAM_SIZE: u64 = 16 << 20;
/// Pages that may only be read, and only be written, after it.
pub const READ_ONLY: u64 = RAM + RAM_SIZE;
pub const WRITE_ONLY: u64 = READ_ONLY + 0x1_0000;
const END: u64 = WRITE_ONLY + 0x1_0000;
/// Nothing is there.
pub const NOWHERE: u64 = 0x7000_0000;
/// Where the queues are: 128 KiB each pair.
pub const QUEUES: u64 = RAM;
/// Where data is, and lists.
pub const DATA: u64 = RAM + (10 << 20);
pub const LISTS: u64 = RAM + (9 << 20);

/// The bench's memory; clones share it.
#[derive(Clone)]
pub struct Memory(Arc<Mutex<Vec<u8>>>);

impl Default for Memory {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(vec![0; (END - RAM) as usize])))
    }
}

impl Memory {
    fn place(at: BusAddress, length: u64, write: bool) -> Result<usize, DmaError> {
        let iova = at.iova.0;
        let refused = |at| DmaError::new(Iova(at).into(), write, FaultReason::NotMapped);
        let end = iova.checked_add(length).ok_or_else(|| refused(iova))?;
        let parts = [(RAM, READ_ONLY, true), (READ_ONLY, WRITE_ONLY, !write), (WRITE_ONLY, END, write)];
        let mut next = iova;
        while next < end {
            let part = parts.iter().find(|(start, end, _)| (*start..*end).contains(&next));
            match part {
                Some((_, end, true)) => next = *end,
                _ => return Err(refused(next)),
            }
        }
        Ok((iova - RAM) as usize)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap()
    }

    pub fn get(&self, at: u64, length: usize) -> Vec<u8> {
        self.lock()[(at - RAM) as usize..][..length].to_vec()
    }

    pub fn get_u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.get(at, 4).try_into().unwrap())
    }

    pub fn get_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.get(at, 8).try_into().unwrap())
    }

    pub fn set(&self, at: u64, data: &[u8]) {
        self.lock()[(at - RAM) as usize..][..data.len()].copy_from_slice(data);
    }

    pub fn set_u64(&self, at: u64, value: u64) {
        self.set(at, &value.to_le_bytes());
    }
}

impl Dma for Memory {
    fn read(&mut self, at: BusAddress, data: &mut [u8]) -> Result<(), DmaError> {
        let place = Self::place(at, data.len() as u64, false)?;
        data.copy_from_slice(&self.lock()[place..][..data.len()]);
        Ok(())
    }

    fn write(&mut self, at: BusAddress, data: &[u8]) -> Result<(), DmaError> {
        let place = Self::place(at, data.len() as u64, true)?;
        self.lock()[place..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn copy(&mut self, _: BusAddress, _: BusAddress, _: u64) -> Result<(), DmaError> {
        unreachable!("the controller copies nothing in the host's memory")
    }
}

/// Counts interrupts.
#[derive(Default)]
pub struct Sink {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    messages: Vec<u64>,
    line: bool,
    by_line: bool,
}

impl Sink {
    pub fn messages(&self, vector: u16) -> u64 {
        self.seen.lock().unwrap().messages.get(usize::from(vector)).copied().unwrap_or(0)
    }

    pub fn all_messages(&self) -> u64 {
        self.seen.lock().unwrap().messages.iter().sum()
    }

    pub fn line(&self) -> bool {
        self.seen.lock().unwrap().line
    }

    /// The driver uses the line from now on.
    pub fn use_line(&self) {
        self.seen.lock().unwrap().by_line = true;
    }

    pub fn wait_for_messages(&self, vector: u16, count: u64) {
        wait_until("there are messages", || self.messages(vector) >= count);
    }

    pub fn wait_for_line(&self, level: bool) {
        wait_until("the line is so", || self.line() == level);
    }
}

impl Interrupts for Sink {
    fn raise(&self, vector: u16) {
        let mut seen = self.seen.lock().unwrap();
        let vector = usize::from(vector);
        if seen.messages.len() <= vector {
            seen.messages.resize(vector + 1, 0);
        }
        seen.messages[vector] += 1;
    }

    fn set_intx(&self, asserted: bool) {
        self.seen.lock().unwrap().line = asserted;
    }

    fn sends_messages(&self) -> bool {
        !self.seen.lock().unwrap().by_line
    }
}

/// Waits until it is so.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "it never came to be that {what}");
        std::thread::yield_now();
    }
}

/// A queue pair, as a driver has it.
#[derive(Debug)]
pub struct Pair {
    pub id: u16,
    pub entries: u32,
    pub submissions: u64,
    pub completions: u64,
    pub tail: u32,
    pub head: u32,
    pub phase: bool,
    pub next: u16,
    /// Completions that somebody else waited for.
    pub early: Vec<Completion>,
    /// Doorbells and event indexes in memory.
    pub shadow: Option<(u64, u64)>,
}

impl Pair {
    pub fn new(id: u16, entries: u32) -> Self {
        let base = QUEUES + u64::from(id) * 0x2_0000;
        Self {
            id,
            entries,
            submissions: base,
            completions: base + 0x1_0000,
            tail: 0,
            head: 0,
            phase: true,
            next: 0,
            early: Vec::new(),
            shadow: None,
        }
    }
}

/// The status field of a completion, without the phase.
pub fn status(completion: &Completion) -> Status {
    Status(completion.status.get() >> 1)
}

/// A command.
pub fn command(opcode: u8, namespace: u32) -> Command {
    Command { opcode, namespace: namespace.into(), ..Command::default() }
}

/// Changes that tests make to commands.
pub trait With: Sized {
    fn word(self, number: usize, value: u32) -> Self;
    fn long(self, value: u64) -> Self;
    fn data(self, first: u64, second: u64) -> Self;
    fn flags(self, flags: u8) -> Self;
    fn id(self, id: u16) -> Self;
}

impl With for Command {
    fn word(mut self, number: usize, value: u32) -> Self {
        self.words[number - 10] = value.into();
        self
    }

    fn long(self, value: u64) -> Self {
        self.word(10, value as u32).word(11, (value >> 32) as u32)
    }

    fn data(mut self, first: u64, second: u64) -> Self {
        self.data = [first.into(), second.into()];
        self
    }

    fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    fn id(mut self, id: u16) -> Self {
        self.identifier = id.into();
        self
    }
}

/// Reads `count` blocks from `first` on to [`DATA`], with as many PRPs as that takes.
pub fn read(first: u64, count: u32) -> Command {
    command(nvm::READ, 1).long(first).word(12, count - 1).data(DATA, DATA + PAGE)
}

/// Writes them.
pub fn write(first: u64, count: u32) -> Command {
    Command { opcode: nvm::WRITE, ..read(first, count) }
}

/// The controller and what it is connected to.
pub struct Bench {
    pub device: Arc<Nvme>,
    pub memory: Memory,
    pub sink: Arc<Sink>,
    pub admin: Pair,
}

/// Namespaces in memory, of `bytes` with blocks of `1 << shift`.
pub fn in_memory(bytes: u64, shift: u32) -> NamespaceOptions {
    NamespaceOptions { backing: Backing::Memory(bytes), block_shift: shift, readonly: false, protection: 0 }
}

/// A controller with one namespace, which is in memory.
pub fn options() -> NvmeOptions {
    NvmeOptions { namespaces: vec![in_memory(1 << 20, 9)], ..NvmeOptions::default() }
}

/// An image in a file of its own.
pub struct Image(pub std::path::PathBuf);

impl Image {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ioasid-nvme-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Self(path)
    }

    pub fn namespace(&self, bytes: u64, shift: u32) -> NamespaceOptions {
        let backing = Backing::Image { path: self.0.clone(), size: Some(bytes) };
        NamespaceOptions { backing, block_shift: shift, readonly: false, protection: 0 }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub const CONFIGURATION: u32 = cc::EN | 6 << 16 | 4 << 20;

impl Bench {
    /// With these options, not enabled.
    pub fn with(options: &NvmeOptions) -> Self {
        let memory = Memory::default();
        let sink = Arc::new(Sink::default());
        let device = Nvme::new(options, Box::new(memory.clone()), sink.clone()).unwrap();
        Self { device, memory, sink, admin: Pair::new(0, 32) }
    }

    /// With these namespaces, enabled.
    pub fn of(namespaces: &[NamespaceOptions]) -> Self {
        let mut bench = Self::with(&NvmeOptions { namespaces: namespaces.to_vec(), ..NvmeOptions::default() });
        bench.enable(CONFIGURATION);
        bench
    }

    /// With 1 MiB of blocks of 512 bytes in memory, enabled.
    pub fn new() -> Self {
        Self::of(&[in_memory(1 << 20, 9)])
    }

    pub fn r32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn r64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.device.read(0, offset, &mut data);
        u64::from_le_bytes(data)
    }

    pub fn w32(&self, offset: u64, value: u32) {
        self.device.write(0, offset, &value.to_le_bytes());
    }

    pub fn w64(&self, offset: u64, value: u64) {
        self.device.write(0, offset, &value.to_le_bytes());
    }

    pub fn reg(&self, register: Register) -> u64 {
        let info = register.info();
        if info.width == 8 { self.r64(info.offset) } else { self.r32(info.offset).into() }
    }

    pub fn set(&self, register: Register, value: u64) {
        let info = register.info();
        if info.width == 8 { self.w64(info.offset, value) } else { self.w32(info.offset, value as u32) }
    }

    pub fn csts(&self) -> u32 {
        self.reg(Register::Status) as u32
    }

    /// Sets up the admin queues, and enables.
    pub fn start(&mut self, configuration: u32) {
        self.admin = Pair::new(0, self.admin.entries);
        self.clear(&Pair::new(0, self.admin.entries));
        let size = u64::from(self.admin.entries - 1);
        self.set(Register::AdminQueueAttributes, size << 16 | size);
        self.set(Register::AdminSubmissionQueue, self.admin.submissions);
        self.set(Register::AdminCompletionQueue, self.admin.completions);
        self.set(Register::Configuration, configuration.into());
    }

    pub fn enable(&mut self, configuration: u32) {
        self.start(configuration);
        wait_until("it is ready", || self.csts() & csts::RDY != 0);
    }

    pub fn disable(&self) {
        self.set(Register::Configuration, 0);
        wait_until("it is disabled", || self.csts() & csts::RDY == 0);
    }

    /// Old completions are not there.
    pub fn clear(&self, pair: &Pair) {
        self.memory.set(pair.completions, &vec![0; pair.entries as usize * 16]);
    }

    fn ring(&self, pair: &Pair, which: u64, value: u32, before: u32) {
        let offset = u64::from(pair.id) * 8 + which * 4;
        if let Some((doorbells, events)) = pair.shadow {
            self.memory.set(doorbells + offset, &value.to_le_bytes());
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            let event = self.memory.get_u32(events + offset) as u16;
            let (new, old) = (value as u16, before as u16);
            if new.wrapping_sub(event).wrapping_sub(1) >= new.wrapping_sub(old) {
                return;
            }
        }
        self.w32(0x1000 + offset, value);
    }

    /// Puts a command into the queue, with the next identifier, and rings. Returns the identifier.
    pub fn submit(&self, pair: &mut Pair, command: Command) -> u16 {
        let id = pair.next;
        pair.next += 1;
        self.submit_as(pair, command.id(id));
        id
    }

    pub fn submit_as(&self, pair: &mut Pair, command: Command) {
        self.put(pair, command);
        let before = (pair.tail + pair.entries - 1) % pair.entries;
        self.ring(pair, 0, pair.tail, before);
    }

    /// Puts a command into the queue as it is.
    pub fn put(&self, pair: &mut Pair, command: Command) {
        self.memory.set(pair.submissions + u64::from(pair.tail) * 64, command.as_bytes());
        pair.tail = (pair.tail + 1) % pair.entries;
    }

    pub fn ring_tail(&self, pair: &Pair) {
        self.w32(0x1000 + u64::from(pair.id) * 8, pair.tail);
    }

    /// The next completion, if there is one.
    pub fn poll(&self, pair: &mut Pair) -> Option<Completion> {
        let completion = self.look(pair)?;
        self.take(pair);
        Some(completion)
    }

    /// The next completion, which stays.
    pub fn look(&self, pair: &Pair) -> Option<Completion> {
        let bytes = self.memory.get(pair.completions + u64::from(pair.head) * 16, 16);
        let completion = Completion::read_from_bytes(&bytes).unwrap();
        (completion.status.get() & 1 == u16::from(pair.phase)).then_some(completion)
    }

    /// Moves on to the next.
    pub fn take(&self, pair: &mut Pair) {
        let before = pair.head;
        pair.head += 1;
        if pair.head == pair.entries {
            (pair.head, pair.phase) = (0, !pair.phase);
        }
        self.ring(pair, 1, pair.head, before);
    }

    /// Waits for a completion.
    pub fn wait(&self, pair: &mut Pair) -> Completion {
        let mut found = None;
        wait_until(&format!("queue {} has a completion ({:#x})", pair.id, self.csts()), || {
            found = self.poll(pair);
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits for the completion of a command.
    pub fn wait_for(&self, pair: &mut Pair, id: u16) -> Completion {
        if let Some(index) = pair.early.iter().position(|early| early.identifier.get() == id) {
            return pair.early.remove(index);
        }
        loop {
            let completion = self.wait(pair);
            if completion.identifier.get() == id {
                return completion;
            }
            pair.early.push(completion);
        }
    }

    /// Has a command carried out.
    pub fn run(&self, pair: &mut Pair, command: Command) -> Completion {
        let id = self.submit(pair, command);
        self.wait_for(pair, id)
    }

    /// Has a command carried out; its status.
    pub fn status(&self, pair: &mut Pair, command: Command) -> Status {
        status(&self.run(pair, command))
    }

    /// Has an admin command carried out.
    pub fn admin(&mut self, command: Command) -> Completion {
        let mut pair = std::mem::replace(&mut self.admin, Pair::new(0, 2));
        let completion = self.run(&mut pair, command);
        self.admin = pair;
        completion
    }

    pub fn admin_status(&mut self, command: Command) -> Status {
        status(&self.admin(command))
    }

    /// An admin command that has to be done; its result.
    pub fn done(&mut self, command: Command) -> u64 {
        let completion = self.admin(command);
        assert_eq!(status(&completion), Status::SUCCESS, "{command:?}");
        completion.result.get()
    }

    pub fn set_feature(&mut self, id: u32, value: u32) {
        self.done(command(admin::SET_FEATURES, 0).word(10, id).word(11, value));
    }

    /// Identify; the structure.
    pub fn identify(&mut self, cns: u32, namespace: u32) -> Vec<u8> {
        self.done(command(admin::IDENTIFY, namespace).word(10, cns).data(DATA, 0));
        self.memory.get(DATA, 4096)
    }

    /// A log page.
    pub fn log(&mut self, page: u8, length: u32) -> Vec<u8> {
        self.log_of(page, length, 0)
    }

    /// A log page; flags go to CDW10.
    pub fn log_of(&mut self, page: u8, length: u32, flags: u32) -> Vec<u8> {
        let dwords = length / 4 - 1;
        let word = u32::from(page) | flags | dwords << 16;
        self.done(command(admin::GET_LOG_PAGE, 0xFFFF_FFFF).word(10, word).data(DATA, DATA + PAGE));
        self.memory.get(DATA, length as usize)
    }

    /// Makes a queue pair of `entries`, with vector `id`.
    pub fn pair(&mut self, id: u16, entries: u32) -> Pair {
        let pair = Pair::new(id, entries);
        self.clear(&pair);
        let size = (entries - 1) << 16 | u32::from(id);
        let vector = u32::from(id) << 16 | 0b11;
        self.done(command(admin::CREATE_COMPLETION_QUEUE, 0).word(10, size).word(11, vector).data(pair.completions, 0));
        let queue = u32::from(id) << 16 | 1;
        self.done(command(admin::CREATE_SUBMISSION_QUEUE, 0).word(10, size).word(11, queue).data(pair.submissions, 0));
        pair
    }
}

/// Bytes that differ from place to place.
pub fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| (index as u8).wrapping_mul(31).wrapping_add((index >> 8) as u8) ^ seed).collect()
}
