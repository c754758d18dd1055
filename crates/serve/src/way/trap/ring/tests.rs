use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use ioasid::{Machine, Silent};
use rustix::fs::fstat;

use super::*;
use crate::request::file::{Closer, OpenFile};
use crate::watch::{Options, Watcher};

/// `mov eax, [rbx]`, and `mov [rbx], ecx`
const LOAD: &[u8] = &[0x8b, 0x03];
const STORE: &[u8] = &[0x89, 0x0b];
/// Of rbx, rax and rcx in a frame.
const RBX: usize = 11;
const RAX: usize = 13;
const RCX: usize = 14;
const RIP: usize = 16;

struct Nobody;

impl Watcher for Nobody {}

/// One register, and what was done to it.
#[derive(Default)]
struct Device {
    value: AtomicU32,
    accesses: AtomicUsize,
    /// Loads meet here.
    slow: Option<Barrier>,
}

impl OpenFile for Device {
    fn load(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        if let Some(barrier) = &self.slow {
            barrier.wait();
        }
        assert!(offset + data.len() as u64 <= LENGTH as u64);
        let value = self.value.load(Ordering::Relaxed).to_ne_bytes();
        data.iter_mut().zip(value).for_each(|(byte, value)| *byte = value);
        Ok(())
    }

    fn store(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        assert!(offset + data.len() as u64 <= LENGTH as u64);
        if let Ok(value) = data.try_into() {
            self.value.store(u32::from_ne_bytes(value), Ordering::Relaxed);
        }
        Ok(())
    }

    fn close(&self, _by: Closer, _watcher: &dyn Watcher) {}
}

/// A ring of this process, a device of which this process has mapped the registers, and the program's side of the ring.
struct Setup {
    server: Arc<Server>,
    device: Arc<Device>,
    registers: SharedMapping,
    ring: Ring,
    program: SharedMapping,
}

impl Setup {
    fn new(device: Device) -> Self {
        let server = Server::new(Machine::new(Arc::new(Silent)), vec![], Arc::new(Nobody), Options::default());
        let file = memfd_create(c"registers", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, LENGTH as u64).unwrap();
        let device = Arc::new(device);
        assert!(server.opened(fstat(&file).unwrap().st_ino, device.clone()).is_ok());
        let registers = map(&file).unwrap();
        server.mounted(file).unwrap();
        let (ring, file) = Ring::new(Arc::new(Process::open(std::process::id()).unwrap())).unwrap();
        Self { server, device, registers, ring, program: map(file).unwrap() }
    }

    fn address(&self) -> u64 {
        self.registers.0.as_ptr() as u64
    }

    /// Asks, as the handler does, for the instruction at a slot, which is about a register.
    fn ask(&self, number: usize, about: u64, code: &[u8]) {
        let slot = &self.program.slots[number];
        slot.address.store(about, Ordering::Relaxed);
        slot.registers[RBX].store(about, Ordering::Relaxed);
        slot.registers[RCX].store(0x1234_5678, Ordering::Relaxed);
        slot.registers[RIP].store(0x1000, Ordering::Relaxed);
        let mut bytes = [0; 16];
        bytes[..code.len()].copy_from_slice(code);
        let words: [u64; 2] = zerocopy::transmute!(bytes);
        slot.instruction.iter().zip(words).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        slot.detail.store(code.len() as u32, Ordering::Relaxed);
        self.program.states[number].store(ASKED, Ordering::SeqCst);
    }

    /// The result in a slot, which is free then.
    fn result(&self, slot: usize) -> u32 {
        assert_eq!(self.program.states[slot].swap(0, Ordering::SeqCst), ANSWERED);
        self.program.slots[slot].detail.load(Ordering::Relaxed)
    }

    fn accesses(&self) -> usize {
        self.device.accesses.load(Ordering::Relaxed)
    }
}

#[test]
fn accesses_are_performed_and_the_registers_changed() {
    let setup = Setup::new(Device::default());
    assert!(!setup.ring.answer(&setup.server), "nothing is asked");
    setup.ask(3, setup.address() + 8, STORE);
    setup.ask(14, setup.address() + 8, LOAD);
    assert!(setup.ring.answer(&setup.server));
    assert_eq!((setup.result(3), setup.result(14)), (DONE, DONE));
    let word = |slot: usize, word: usize| setup.program.slots[slot].registers[word].load(Ordering::Relaxed);
    assert_eq!(word(14, RAX), 0x1234_5678);
    assert_eq!((word(3, RIP), word(14, RIP)), (0x1002, 0x1002));
    setup.ask(2, setup.address() + 8, LOAD);
    setup.ring.finish(2, &setup.server);
    assert_eq!(setup.result(2), DONE);
    assert_eq!(setup.accesses(), 3);
    assert!(!setup.ring.answer(&setup.server), "each once");
}

#[test]
fn what_is_more_than_a_register_access_is_asked_for_otherwise() {
    let setup = Setup::new(Device::default());
    let register = setup.address();
    let refused: [(u64, &[u8]); 9] = [
        // movsd; fs mov eax, [rbx]; movd xmm0, [rbx]; push [rbx]; or [rbx], ecx; int3; half an instruction; nothing
        (register, &[0xa5]),
        (register, &[0x64, 0x8b, 0x03]),
        (register, &[0x66, 0x0f, 0x6e, 0x03]),
        (register, &[0xff, 0x33]),
        (register, &[0x09, 0x0b]),
        (register, &[0xcc]),
        (register, &LOAD[..1]),
        (register, &[]),
        // No register: memory of this very process.
        (setup.program.0.as_ptr() as u64, STORE),
    ];
    for (about, code) in refused {
        setup.ask(0, about, code);
        setup.ring.answer(&setup.server);
        assert_eq!(setup.result(0), ASK_OTHERWISE, "{code:x?}");
    }
    // Beyond the last register, and registers that the thread does not stand for.
    setup.ask(0, register + LENGTH as u64 - 2, LOAD);
    setup.ask(1, register, LOAD);
    setup.program.slots[1].registers[RBX].store(register + 64, Ordering::Relaxed);
    setup.ring.answer(&setup.server);
    assert_eq!((setup.result(0), setup.result(1)), (ASK_OTHERWISE, ASK_OTHERWISE));
    assert_eq!(setup.accesses(), 0);
}

#[test]
fn a_thread_that_waits_for_an_access_goes_on_when_it_is_done() {
    let setup = Setup::new(Device { slow: Some(Barrier::new(2)), ..Device::default() });
    setup.ring.finish(0, &setup.server);
    setup.ring.finish(usize::MAX, &setup.server);
    setup.ask(0, setup.address(), LOAD);
    std::thread::scope(|scope| {
        scope.spawn(|| setup.ring.answer(&setup.server));
        while setup.program.states[0].load(Ordering::Acquire) != TAKEN {
            std::hint::spin_loop();
        }
        let waits = scope.spawn(|| {
            setup.ring.finish(0, &setup.server);
            setup.result(0)
        });
        // Others do not wait for it.
        setup.ring.finish(1, &setup.server);
        assert!(!waits.is_finished());
        // Whatever the program writes there, it waits.
        setup.program.states[0].store(ASKED, Ordering::SeqCst);
        assert!(!setup.ring.answer(&setup.server), "it is under way already");
        if let Some(barrier) = &setup.device.slow {
            barrier.wait();
        }
        assert_eq!(waits.join().unwrap(), DONE);
    });
}

#[test]
fn a_program_may_write_anything_at_any_time() {
    let setup = Setup::new(Device::default());
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = 0x9e37_79b9_7f4a_7c15u64;
            while !ends.load(Ordering::Relaxed) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let number = (random >> 32) as usize % SLOTS;
                let slot = &setup.program.slots[number];
                let value = random >> 24;
                match random % 5 {
                    0 => slot.registers[value as usize % WORDS].store(value, Ordering::Relaxed),
                    1 => slot.instruction[value as usize % 2].store(value, Ordering::Relaxed),
                    2 => slot.detail.store(value as u32, Ordering::Relaxed),
                    3 => slot.address.store(setup.address() + value % 0x2000, Ordering::Relaxed),
                    _ => setup.program.states[number].store(value as u32 % 6, Ordering::Relaxed),
                }
            }
        });
        for _ in 0..20_000 {
            setup.ring.answer(&setup.server);
        }
        ends.store(true, Ordering::Relaxed);
    });
    assert_eq!(setup.ring.under_way().slots, 0);
    // And after all that it works.
    setup.ask(5, setup.address(), STORE);
    setup.ring.answer(&setup.server);
    assert_eq!(setup.result(5), DONE);
}

#[test]
fn the_file_keeps_its_length() {
    let process = Arc::new(Process::open(std::process::id()).unwrap());
    let (_ring, file) = Ring::new(process).unwrap();
    assert_eq!(ftruncate(&file, 0), Err(Errno::PERM));
    assert_eq!(fcntl_add_seals(&file, SealFlags::WRITE), Err(Errno::PERM));
}
