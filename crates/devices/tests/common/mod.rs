//! A device on a bench: memory with permissions, a sink that remembers, and registers by name.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of the bench")]
#![allow(clippy::unwrap_used, reason = "only tests use the bench")]

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ioasid::{BusAddress, FaultReason, Iova};
use ioasid_devices::ioat::Ioat;
use ioasid_devices::ioat::spec::descriptor::{Control, Descriptor, OP_COPY, OP_FILL};
use ioasid_devices::ioat::spec::registers::{ChannelError, State, Status};
use ioasid_devices::{Dma, DmaError, Interrupts};
use zerocopy::IntoBytes;

/// How long anything may take before a test calls it a hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const CHANCNT: u64 = 0x00;
pub const XFERCAP: u64 = 0x01;
pub const GENCTRL: u64 = 0x02;
pub const INTRCTRL: u64 = 0x03;
pub const ATTNSTATUS: u64 = 0x04;
pub const CBVER: u64 = 0x08;
pub const INTRDELAY: u64 = 0x0C;
pub const DMACAP: u64 = 0x10;
pub const DCAOFFSET: u64 = 0x14;
pub const CHANCTRL: u64 = 0x80;
pub const DMA_COMP: u64 = 0x82;
pub const CHANCMD: u64 = 0x84;
pub const DMACOUNT: u64 = 0x86;
pub const CHANSTS: u64 = 0x88;
pub const CHAINADDR: u64 = 0x90;
pub const CHANCMP: u64 = 0x98;
pub const CDAR: u64 = 0xA0;
pub const CHANERR: u64 = 0xA8;
pub const CHANERRMASK: u64 = 0xAC;
pub const DCACTRL: u64 = 0xB0;

pub const RESET: u8 = 0x20;
pub const RESUME: u8 = 0x10;
pub const ABORT: u8 = 0x08;
pub const SUSPEND: u8 = 0x04;

/// Memory that may be read and written, from here on.
pub const RAM: u64 = 0x10_0000;
pub const RAM_SIZE: usize = 4 << 20;
/// A page that may be read only, and one that may be written only; both inside the vector behind the fake.
pub const READ_ONLY: u64 = RAM + RAM_SIZE as u64;
pub const WRITE_ONLY: u64 = READ_ONLY + 0x1000;
/// An address with nothing behind it.
pub const NOWHERE: u64 = 0x7000_0000;

const PAGE: usize = 0x1000;

/// The bench's memory; clones share it.
#[derive(Clone)]
pub struct Memory(Arc<(Mutex<Inside>, Condvar)>);

struct Inside {
    bytes: Vec<u8>,
    /// Copies wait before they begin.
    hold: bool,
    /// A write to this address waits after it is made.
    hold_after_write: Option<u64>,
    /// Accesses that wait.
    held: usize,
    accesses: u64,
}

impl Memory {
    fn new() -> Self {
        let bytes = vec![0; RAM_SIZE + 2 * PAGE];
        let inside = Inside { bytes, hold: false, hold_after_write: None, held: 0, accesses: 0 };
        Self(Arc::new((Mutex::new(inside), Condvar::new())))
    }

    /// Where `[iova, iova + len)` lies in the vector, or the first address that may not be accessed.
    fn place(iova: u64, len: u64, write: bool) -> Result<usize, DmaError> {
        let end = if write { READ_ONLY } else { WRITE_ONLY };
        let mut at = iova;
        let last = iova.checked_add(len.max(1) - 1).ok_or(refused(iova, write))?;
        loop {
            let ok = (RAM..end).contains(&at) || (write && (WRITE_ONLY..WRITE_ONLY + PAGE as u64).contains(&at));
            if !ok {
                return Err(refused(at, write));
            }
            match (at | 0xFFF) + 1 {
                next if next > last => return Ok((iova - RAM) as usize),
                next => at = next,
            }
        }
    }

    /// The program's own look at its memory.
    pub fn get(&self, iova: u64, len: usize) -> Vec<u8> {
        let at = (iova - RAM) as usize;
        self.0.0.lock().unwrap().bytes[at..at + len].to_vec()
    }

    pub fn get_u64(&self, iova: u64) -> u64 {
        u64::from_le_bytes(self.get(iova, 8).try_into().unwrap())
    }

    pub fn set(&self, iova: u64, data: &[u8]) {
        let at = (iova - RAM) as usize;
        self.0.0.lock().unwrap().bytes[at..at + data.len()].copy_from_slice(data);
    }

    /// Makes copies wait inside the device's DMA until [`Memory::release`].
    pub fn hold(&self) {
        self.0.0.lock().unwrap().hold = true;
    }

    /// Makes the device wait inside its next write to `iova`, with the data written, until [`Memory::release`].
    pub fn hold_after_write(&self, iova: u64) {
        self.0.0.lock().unwrap().hold_after_write = Some(iova);
    }

    /// Waits until the device is inside an access that is held.
    pub fn wait_until_held(&self) {
        let (inside, changed) = &*self.0;
        let guard = inside.lock().unwrap();
        let (guard, timeout) = changed.wait_timeout_while(guard, PATIENCE, |inside| inside.held == 0).unwrap();
        assert!(!timeout.timed_out(), "no access began");
        drop(guard);
    }

    pub fn release(&self) {
        let mut inside = self.0.0.lock().unwrap();
        inside.hold = false;
        inside.hold_after_write = None;
        self.0.1.notify_all();
    }

    /// How many hold this memory: the test, the bench, the device.
    pub fn owners(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// How often the device accessed memory, refused accesses included.
    pub fn accesses(&self) -> u64 {
        self.0.0.lock().unwrap().accesses
    }
}

fn refused(iova: u64, write: bool) -> DmaError {
    DmaError::new(Iova(iova).into(), write, FaultReason::NotMapped)
}

impl Dma for Memory {
    fn read(&mut self, at: BusAddress, data: &mut [u8]) -> Result<(), DmaError> {
        let iova = at.iova.0;
        let mut inside = self.0.0.lock().unwrap();
        inside.accesses += 1;
        let at = Self::place(iova, data.len() as u64, false)?;
        data.copy_from_slice(&inside.bytes[at..at + data.len()]);
        Ok(())
    }

    fn write(&mut self, at: BusAddress, data: &[u8]) -> Result<(), DmaError> {
        let iova = at.iova.0;
        let (inside, changed) = &*self.0;
        let mut inside = inside.lock().unwrap();
        inside.accesses += 1;
        let at = Self::place(iova, data.len() as u64, true)?;
        inside.bytes[at..at + data.len()].copy_from_slice(data);
        if inside.hold_after_write == Some(iova) {
            inside.held += 1;
            changed.notify_all();
            inside = changed.wait_while(inside, |inside| inside.hold_after_write.is_some()).unwrap();
            inside.held -= 1;
        }
        Ok(())
    }

    fn copy(&mut self, from: BusAddress, to: BusAddress, len: u64) -> Result<(), DmaError> {
        let (inside, changed) = &*self.0;
        let mut inside = inside.lock().unwrap();
        inside.held += 1;
        changed.notify_all();
        inside = changed.wait_while(inside, |inside| inside.hold).unwrap();
        inside.held -= 1;
        inside.accesses += 1;
        let source = Self::place(from.iova.0, len, false)?;
        let destination = Self::place(to.iova.0, len, true)?;
        inside.bytes.copy_within(source..source + len as usize, destination);
        Ok(())
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
    messages: usize,
    line: bool,
}

impl Sink {
    pub fn messages(&self) -> usize {
        self.seen.lock().unwrap().messages
    }

    pub fn line(&self) -> bool {
        self.seen.lock().unwrap().line
    }

    pub fn wait_for_messages(&self, count: usize) {
        self.wait(|seen| seen.messages >= count, "message");
    }

    pub fn wait_for_line(&self, level: bool) {
        self.wait(|seen| seen.line == level, "line");
    }

    fn wait(&self, there: impl Fn(&Seen) -> bool, what: &str) {
        let guard = self.seen.lock().unwrap();
        let (_guard, timeout) = self.changed.wait_timeout_while(guard, PATIENCE, |seen| !there(seen)).unwrap();
        assert!(!timeout.timed_out(), "no {what}");
    }
}

impl Interrupts for Sink {
    fn raise(&self, vector: u16) {
        assert_eq!(vector, 0);
        self.seen.lock().unwrap().messages += 1;
        self.changed.notify_all();
    }

    fn set_intx(&self, asserted: bool) {
        self.seen.lock().unwrap().line = asserted;
        self.changed.notify_all();
    }
}

/// The device and what it is connected to.
pub struct Bench {
    pub device: Arc<Ioat>,
    pub memory: Memory,
    pub sink: Arc<Sink>,
}

impl Bench {
    pub fn new() -> Self {
        let memory = Memory::new();
        let sink = Arc::new(Sink::default());
        let device = Ioat::new(Box::new(memory.clone()), Arc::clone(&sink) as Arc<dyn Interrupts>);
        Self { device, memory, sink }
    }

    /// A bench with a chain at `chain`, ready for its doorbell.
    pub fn armed(chain: u64) -> Self {
        let bench = Self::new();
        bench.w64(CHAINADDR, chain);
        bench
    }

    pub fn r8(&self, offset: u64) -> u8 {
        let mut data = [0; 1];
        self.device.read(0, offset, &mut data);
        data[0]
    }

    pub fn r16(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.device.read(0, offset, &mut data);
        u16::from_le_bytes(data)
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

    pub fn w8(&self, offset: u64, value: u8) {
        self.device.write(0, offset, &[value]);
    }

    pub fn w16(&self, offset: u64, value: u16) {
        self.device.write(0, offset, &value.to_le_bytes());
    }

    pub fn w32(&self, offset: u64, value: u32) {
        self.device.write(0, offset, &value.to_le_bytes());
    }

    pub fn w64(&self, offset: u64, value: u64) {
        self.device.write(0, offset, &value.to_le_bytes());
    }

    pub fn config_r32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        assert!(self.device.config_read(offset, &mut data));
        u32::from_le_bytes(data)
    }

    pub fn config_w32(&self, offset: u16, value: u32) {
        assert!(self.device.config_write(offset, &value.to_le_bytes()));
    }

    pub fn status(&self) -> Status {
        Status(self.r64(CHANSTS))
    }

    pub fn state(&self) -> State {
        self.status().state()
    }

    pub fn errors(&self) -> ChannelError {
        ChannelError::from_bits(self.r32(CHANERR)).unwrap()
    }

    pub fn wait_for(&self, state: State) {
        wait_until(&format!("{state:?}"), || self.state() == state);
    }

    /// Puts a descriptor at `at`.
    pub fn put(&self, at: u64, descriptor: Descriptor) {
        self.memory.set(at, descriptor.as_bytes());
    }
}

impl Drop for Bench {
    /// A test that fails while copies are held must fail, not hang.
    fn drop(&mut self) {
        self.memory.release();
    }
}

/// Polls, as drivers do, until `there`.
pub fn wait_until(what: &str, mut there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::yield_now();
    }
}

/// A copy.
pub fn copy(from: u64, to: u64, size: u32, control: Control, next: u64) -> Descriptor {
    raw(OP_COPY, from, to, size, control.bits(), next)
}

/// A fill.
pub fn fill(pattern: u64, to: u64, size: u32, control: Control, next: u64) -> Descriptor {
    raw(OP_FILL, pattern, to, size, control.bits(), next)
}

/// Any descriptor.
pub fn raw(op: u8, source: u64, destination: u64, size: u32, control: u32, next: u64) -> Descriptor {
    Descriptor {
        size: size.into(),
        control: (control | u32::from(op) << 24).into(),
        source: source.into(),
        destination: destination.into(),
        next: next.into(),
        ..Descriptor::default()
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index as u8).wrapping_mul(31).wrapping_add((index >> 8) as u8) ^ seed).collect()
}
