//! QEMU's educational device, register by register.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ioasid::{BusAddress, FaultReason};
use ioasid_devices::edu::{ADDRESS_MASK, BUFFER, Edu, command, reason, status};
use ioasid_devices::{Dma, DmaError, Interrupts};
use ioasid_vfio::Model;

const IDENTIFICATION: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const INTERRUPT_STATUS: u64 = 0x24;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
/// Bytes of memory, from address 0 on.
const RAM: usize = 0x4000;

#[derive(Clone)]
struct Memory(Arc<Inside>);

struct Inside {
    bytes: Mutex<Vec<u8>>,
    /// Accesses wait as long as this is set.
    holds: AtomicBool,
    accesses: AtomicU32,
}

impl Memory {
    fn at<T>(
        &self,
        at: BusAddress,
        length: usize,
        write: bool,
        use_it: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, DmaError> {
        self.0.accesses.fetch_add(1, Ordering::SeqCst);
        while self.0.holds.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let first = at.iova.0 as usize;
        let mut bytes = self.0.bytes.lock().unwrap();
        let found = bytes.get_mut(first..first + length);
        found.map(use_it).ok_or(DmaError::new(at, write, FaultReason::NotMapped))
    }
}

impl Dma for Memory {
    fn read(&mut self, at: BusAddress, data: &mut [u8]) -> Result<(), DmaError> {
        self.at(at, data.len(), false, |bytes| data.copy_from_slice(bytes))
    }

    fn write(&mut self, at: BusAddress, data: &[u8]) -> Result<(), DmaError> {
        self.at(at, data.len(), true, |bytes| bytes.copy_from_slice(data))
    }

    fn copy(&mut self, _from: BusAddress, _to: BusAddress, _len: u64) -> Result<(), DmaError> {
        unreachable!("it moves bytes to and from its own memory")
    }
}

#[derive(Default)]
struct Sink {
    messages: AtomicU32,
    line: AtomicBool,
}

impl Interrupts for Sink {
    fn raise(&self, vector: u16) {
        assert_eq!(vector, 0);
        self.messages.fetch_add(1, Ordering::SeqCst);
    }

    fn set_intx(&self, asserted: bool) {
        self.line.store(asserted, Ordering::SeqCst);
    }
}

struct Bench {
    device: Arc<Edu>,
    memory: Memory,
    sink: Arc<Sink>,
}

impl Bench {
    fn new() -> Self {
        let inside =
            Inside { bytes: Mutex::new(vec![0; RAM]), holds: AtomicBool::new(false), accesses: AtomicU32::new(0) };
        let memory = Memory(Arc::new(inside));
        let sink = Arc::new(Sink::default());
        Self { device: Edu::new(Box::new(memory.clone()), sink.clone()), memory, sink }
    }

    fn r32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn r64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.device.read(0, offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn w32(&self, offset: u64, value: u32) {
        self.device.write(0, offset, &value.to_le_bytes());
    }

    fn w64(&self, offset: u64, value: u64) {
        self.device.write(0, offset, &value.to_le_bytes());
    }

    fn factorial(&self, of: u32) -> u32 {
        self.w32(FACTORIAL, of);
        wait_until(|| self.r32(STATUS) & status::COMPUTING == 0);
        self.r32(FACTORIAL)
    }

    fn start(&self, source: u64, destination: u64, count: u64, command: u64) {
        self.w64(SOURCE, source);
        self.w64(DESTINATION, destination);
        self.w64(COUNT, count);
        self.w64(COMMAND, command | command::START);
    }

    fn transfer(&self, source: u64, destination: u64, count: u64, command: u64) {
        self.start(source, destination, count, command);
        wait_until(|| self.r64(COMMAND) & command::START == 0);
    }

    fn fill(&self, first: usize, bytes: &[u8]) {
        self.memory.0.bytes.lock().unwrap()[first..first + bytes.len()].copy_from_slice(bytes);
    }

    fn bytes(&self, first: usize, length: usize) -> Vec<u8> {
        self.memory.0.bytes.lock().unwrap()[first..first + length].to_vec()
    }

    fn messages(&self) -> u32 {
        self.sink.messages.load(Ordering::SeqCst)
    }

    fn line(&self) -> bool {
        self.sink.line.load(Ordering::SeqCst)
    }
}

fn wait_until(what: impl Fn() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never happens");
        std::thread::yield_now();
    }
}

#[test]
fn registers_have_their_widths_and_places() {
    let bench = Bench::new();
    assert_eq!(bench.r32(IDENTIFICATION), 0x0100_00ed);
    bench.w32(LIVENESS, 0x1234_5678);
    assert_eq!(bench.r32(LIVENESS), !0x1234_5678);
    bench.w64(SOURCE, 0x1_2345_6789);
    assert_eq!((bench.r64(SOURCE), bench.r32(SOURCE)), (0x1_2345_6789, 0x2345_6789));
    // Another width, another place, another BAR, and what can only be written.
    assert_eq!([bench.r64(IDENTIFICATION), bench.r64(RAISE), bench.r64(0xf_fff8)], [u64::MAX; 3]);
    assert_eq!([bench.r32(SOURCE + 4), bench.r32(0x0c), bench.r32(RAISE), bench.r32(ACKNOWLEDGE)], [u32::MAX; 4]);
    for length in [1, 2, 16, 64] {
        let mut data = vec![0; length];
        bench.device.read(0, IDENTIFICATION, &mut data);
        assert_eq!(data, vec![0xff; length]);
        bench.device.write(0, LIVENESS, &data);
    }
    let mut other = [0; 4];
    bench.device.read(1, IDENTIFICATION, &mut other);
    assert_eq!((other, bench.r32(LIVENESS)), ([0xff; 4], !0x1234_5678));
    bench.w32(IDENTIFICATION, 0);
    bench.w32(INTERRUPT_STATUS, 1);
    assert_eq!((bench.r32(IDENTIFICATION), bench.r32(INTERRUPT_STATUS)), (0x0100_00ed, 0));
}

#[test]
fn factorials_are_computed_modulo_2_to_the_32() {
    let bench = Bench::new();
    for (of, wanted) in [(0, 1), (1, 1), (5, 120), (12, 479_001_600), (13, 1_932_053_504), (33, 1 << 31)] {
        assert_eq!(bench.factorial(of), wanted, "{of}!");
    }
    assert_eq!([34, 35, 1 << 31, u32::MAX].map(|of| bench.factorial(of)), [0; 4]);
    assert_eq!((bench.messages(), bench.r32(INTERRUPT_STATUS)), (0, 0));
    bench.w32(STATUS, u32::MAX);
    assert_eq!(bench.r32(STATUS), status::INTERRUPT);
    bench.factorial(3);
    wait_until(|| bench.messages() == 1);
    assert_eq!((bench.r32(INTERRUPT_STATUS), bench.line()), (reason::FACTORIAL, true));
    bench.w32(ACKNOWLEDGE, reason::FACTORIAL);
    assert_eq!((bench.r32(INTERRUPT_STATUS), bench.line()), (0, false));
}

#[test]
fn reasons_are_added_and_taken_away() {
    let bench = Bench::new();
    bench.w32(RAISE, 0);
    assert_eq!((bench.messages(), bench.line()), (0, false));
    bench.w32(RAISE, 0x30);
    bench.w32(RAISE, 0x0c);
    assert_eq!((bench.r32(INTERRUPT_STATUS), bench.messages(), bench.line()), (0x3c, 2, true));
    bench.w32(ACKNOWLEDGE, 0x1c);
    assert_eq!((bench.r32(INTERRUPT_STATUS), bench.line()), (0x20, true));
    bench.w32(ACKNOWLEDGE, u32::MAX);
    assert_eq!((bench.messages(), bench.line()), (2, false));
}

#[test]
fn bytes_go_to_the_device_and_back() {
    let bench = Bench::new();
    bench.fill(0x1000, &[7; 100]);
    bench.transfer(0x1000, BUFFER + 16, 100, 0);
    bench.transfer(BUFFER + 16, 0x2000, 100, command::TO_MEMORY | command::INTERRUPT);
    wait_until(|| bench.messages() == 1);
    assert_eq!((bench.bytes(0x2000, 100), bench.bytes(0x2064, 4)), (vec![7; 100], vec![0; 4]));
    assert_eq!((bench.r32(INTERRUPT_STATUS), bench.line()), (reason::DMA, true));
    assert_eq!(bench.r64(COMMAND), command::TO_MEMORY | command::INTERRUPT);
    // It has no lines for the rest of an address.
    bench.transfer(BUFFER + 16, 0x3000 | !ADDRESS_MASK, 100, command::TO_MEMORY);
    assert_eq!(bench.bytes(0x3000, 100), vec![7; 100]);
}

#[test]
fn a_transfer_that_may_not_be_ends_without_a_byte() {
    let bench = Bench::new();
    bench.fill(0x1000, &[9; 0x1000]);
    let far = [(BUFFER - 1, 2), (BUFFER + 4095, 2), (BUFFER, 4097), (0, 1), (u64::MAX, 2), (BUFFER, u64::MAX)];
    for (own, count) in far {
        bench.transfer(own, 0x1000, count, command::TO_MEMORY);
        bench.transfer(0x1000, own, count, 0);
    }
    assert_eq!((bench.bytes(0x1000, 0x1000), bench.memory.0.accesses.load(Ordering::SeqCst)), (vec![9; 0x1000], 0));
    // What memory refuses.
    bench.transfer(BUFFER, RAM as u64 - 8, 16, command::TO_MEMORY | command::INTERRUPT);
    wait_until(|| bench.messages() == 1);
    assert_eq!(bench.bytes(RAM - 8, 8), [0; 8]);
}

#[test]
fn nothing_changes_while_a_transfer_runs() {
    let bench = Bench::new();
    bench.memory.0.holds.store(true, Ordering::SeqCst);
    bench.start(0x1000, BUFFER, 8, 0);
    for offset in [SOURCE, DESTINATION, COUNT, COMMAND] {
        bench.w64(offset, 0x77);
    }
    let now = [SOURCE, DESTINATION, COUNT, COMMAND].map(|offset| bench.r64(offset));
    assert_eq!(now, [0x1000, BUFFER, 8, command::START]);
    bench.memory.0.holds.store(false, Ordering::SeqCst);
    wait_until(|| bench.r64(COMMAND) == 0);
}

#[test]
fn a_reset_waits_for_the_access_and_forgets_the_rest() {
    let bench = Bench::new();
    bench.fill(0, &[5; 8]);
    bench.transfer(0, BUFFER, 8, 0);
    bench.w32(RAISE, 1);
    bench.memory.0.holds.store(true, Ordering::SeqCst);
    let before = bench.memory.0.accesses.load(Ordering::SeqCst);
    bench.start(BUFFER, 0x1000, 8, command::TO_MEMORY | command::INTERRUPT);
    wait_until(|| bench.memory.0.accesses.load(Ordering::SeqCst) > before);
    let resets = std::thread::spawn({
        let device = bench.device.clone();
        move || device.reset()
    });
    wait_until(|| bench.r64(COMMAND) == 0);
    assert!(!resets.is_finished(), "an access is under way");
    bench.memory.0.holds.store(false, Ordering::SeqCst);
    resets.join().unwrap();
    assert_eq!((bench.messages(), bench.line(), bench.r32(INTERRUPT_STATUS)), (1, false, 0));
    // Its memory is as at power-on.
    bench.transfer(BUFFER, 0, 8, command::TO_MEMORY);
    assert_eq!(bench.bytes(0, 8), [0; 8]);
}

#[test]
fn a_driver_of_many_threads_never_hangs_it() {
    let bench = Bench::new();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let (bench, mut state) = (&bench, seed);
            scope.spawn(move || {
                for _ in 0..20_000 {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let offset = [FACTORIAL, STATUS, RAISE, ACKNOWLEDGE, SOURCE, DESTINATION, COUNT, COMMAND]
                        [state as usize % 8];
                    match state >> 8 & 0xff {
                        0 => bench.device.reset(),
                        1..80 => drop(bench.r64(offset)),
                        _ => bench.w32(offset, (state >> 16) as u32 & 0x4_0fff),
                    }
                }
            });
        }
    });
    bench.device.reset();
    assert!(!bench.line());
    assert_eq!(bench.factorial(6), 720);
}
