//! What hardware cannot be asked about: how often and where memory is accessed, what is refused, and instructions that
//! not every processor has.

use ioasid_mmio::{AccessFault, Error, Memory, Registers, Vectors, flags, step};

/// Vector registers; all but one group may be missing.
struct Vector {
    values: [[u8; 64]; 32],
    masks: [u64; 8],
    exist: bool,
}

impl Vector {
    fn new() -> Self {
        let values = std::array::from_fn(|index| std::array::from_fn(|byte| (16 * index + byte) as u8));
        Self { values, masks: [0; 8], exist: true }
    }
}

impl Vectors for Vector {
    fn load(&mut self, index: usize) -> Option<[u8; 64]> {
        self.exist.then(|| self.values[index])
    }
    fn store(&mut self, index: usize, value: &[u8; 64]) -> bool {
        self.values[index] = *value;
        self.exist
    }
    fn mask(&mut self, index: usize) -> Option<u64> {
        self.exist.then(|| self.masks[index])
    }
    fn set_mask(&mut self, index: usize, value: u64) -> bool {
        self.masks[index] = value;
        self.exist
    }
    fn mmx(&mut self, _: usize) -> Option<u64> {
        None
    }
    fn set_mmx(&mut self, _: usize, _: u64) -> bool {
        false
    }
}

/// One access, as the device sees it.
#[derive(Debug, PartialEq, Eq)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
}
use Access::{Read, Write};

/// A device on all addresses, whose every byte reads as 0x11, and which notes all accesses.
#[derive(Default)]
struct Device(Vec<Access>);

impl Memory for Device {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), AccessFault> {
        bytes.fill(0x11);
        self.0.push(Read(address, bytes.len()));
        Ok(())
    }
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessFault> {
        self.0.push(Write(address, bytes.to_vec()));
        Ok(())
    }
}

const RIP: u64 = 0x40_0000;
const RBX: u64 = 0x1000;

fn registers() -> Registers {
    let mut regs = Registers { rip: RIP, rflags: 0x202, ..Registers::default() };
    regs.gpr = std::array::from_fn(|index| 0x100 * index as u64);
    regs.gpr[3] = RBX;
    regs
}

/// Performs `code` with RBX at 0x1000.
fn run(code: &[u8]) -> (Registers, Vec<Access>) {
    let (mut regs, mut device) = (registers(), Device::default());
    step(&mut regs, &mut Vector::new(), &mut device, code).expect("the instruction is performed");
    (regs, device.0)
}

/// Performs `code`, which must fail and change nothing.
fn fail(mut regs: Registers, code: &[u8]) -> (Error, Vec<Access>) {
    let (before, mut device) = (regs, Device::default());
    let error = step(&mut regs, &mut Vector::new(), &mut device, code).expect_err("the instruction fails");
    assert_eq!(regs, before);
    (error, device.0)
}

#[test]
fn each_operand_is_one_access_of_its_size() {
    /// Name, code, and for each access whether it is a store, and its size.
    type Case = (&'static str, &'static [u8], &'static [(bool, usize)]);
    let cases: &[Case] = &[
        ("mov eax, [rbx]", &[0x8b, 0x03], &[(false, 4)]),
        ("mov rax, [rbx]", &[0x48, 0x8b, 0x03], &[(false, 8)]),
        ("movzx eax, byte ptr [rbx]", &[0x0f, 0xb6, 0x03], &[(false, 1)]),
        ("mov [rbx], ax", &[0x66, 0x89, 0x03], &[(true, 2)]),
        ("add [rbx], eax", &[0x01, 0x03], &[(false, 4), (true, 4)]),
        ("cmp [rbx], eax", &[0x39, 0x03], &[(false, 4)]),
        ("cmove eax, [rbx]", &[0x0f, 0x44, 0x03], &[(false, 4)]),
        ("sete [rbx]", &[0x0f, 0x94, 0x03], &[(true, 1)]),
        ("bt [rbx], eax", &[0x0f, 0xa3, 0x03], &[(false, 4)]),
        ("movups xmm0, [rbx]", &[0x0f, 0x10, 0x03], &[(false, 16)]),
        ("vmovups ymm0, [rbx]", &[0xc5, 0xfc, 0x10, 0x03], &[(false, 32)]),
        ("vmovups [rbx], zmm0", &[0x62, 0xf1, 0x7c, 0x48, 0x11, 0x03], &[(true, 64)]),
        ("cmpxchg16b [rbx]", &[0x48, 0x0f, 0xc7, 0x0b], &[(false, 16), (true, 16)]),
        ("push qword ptr [rbx]", &[0xff, 0x33], &[(false, 8), (true, 8)]),
        ("prefetcht0 [rbx]", &[0x0f, 0x18, 0x0b], &[]),
        ("clflush [rbx]", &[0x0f, 0xae, 0x3b], &[]),
    ];
    for (name, code, expected) in cases {
        let (regs, accesses) = run(code);
        let accesses: Vec<_> = accesses
            .iter()
            .map(|access| match access {
                Read(_, length) => (false, *length),
                Write(_, bytes) => (true, bytes.len()),
            })
            .collect();
        assert_eq!(accesses, *expected, "{name}");
        assert_eq!(regs.rip, RIP + code.len() as u64, "{name}");
    }
}

#[test]
fn a_failed_compare_exchange_writes_back_what_it_read() {
    // lock cmpxchg [rbx], ecx
    let (regs, accesses) = run(&[0xf0, 0x0f, 0xb1, 0x0b]);
    assert_eq!(accesses, [Read(RBX, 4), Write(RBX, vec![0x11; 4])]);
    assert_eq!(regs.gpr[0], 0x1111_1111);
    assert_eq!(regs.rflags & flags::ZF, 0);
}

#[test]
fn a_masked_store_touches_only_the_selected_elements() {
    let (mut regs, mut device, mut vectors) = (registers(), Device::default(), Vector::new());
    vectors.masks[1] = 0b1010;
    // vmovdqu32 [rbx] {k1}, xmm0
    step(&mut regs, &mut vectors, &mut device, &[0x62, 0xf1, 0x7e, 0x09, 0x7f, 0x03]).unwrap();
    assert_eq!(device.0, [Write(RBX + 4, vec![4, 5, 6, 7]), Write(RBX + 12, vec![12, 13, 14, 15])]);
}

#[test]
fn a_masked_load_of_nothing_is_no_access() {
    // vmovdqu32 xmm0 {k1}, [rbx]
    let (_, accesses) = run(&[0x62, 0xf1, 0x7e, 0x09, 0x6f, 0x03]);
    assert_eq!(accesses, []);
}

#[test]
fn a_masked_broadcast_reads_only_what_it_needs() {
    for (mask, expected) in [(0, vec![]), (0b10_0000, vec![Read(RBX + 4, 4)]), (0xffff, vec![Read(RBX, 16)])] {
        let (mut regs, mut device, mut vectors) = (registers(), Device::default(), Vector::new());
        vectors.masks[1] = mask;
        // vbroadcasti32x4 zmm0 {k1}, [rbx]
        let code = [0x62, 0xf2, 0x7d, 0x49, 0x5a, 0x03];
        step(&mut regs, &mut vectors, &mut device, &code).expect("the instruction is performed");
        assert_eq!(device.0, expected, "{mask:#x}");
    }
    // vpandd zmm0 {k1}, zmm0, dword ptr [rbx]{1to16}
    assert_eq!(run(&[0x62, 0xf1, 0x7d, 0x59, 0xdb, 0x03]).1, []);
}

#[test]
fn a_bit_offset_wraps_with_a_32_bit_address() {
    let mut regs = registers();
    (regs.gpr[3], regs.gpr[1]) = (0xffff_fff0, 0x100);
    let mut device = Device::default();
    // bt [ebx], ecx
    let code = [0x67, 0x0f, 0xa3, 0x0b];
    step(&mut regs, &mut Vector::new(), &mut device, &code).expect("the instruction is performed");
    assert_eq!(device.0, [Read(0x10, 4)]);
}

#[test]
fn movdir64b_is_one_load_and_one_store_of_64_bytes() {
    let mut regs = registers();
    regs.gpr[0] = 0x2000;
    let mut device = Device::default();
    // movdir64b rax, [rbx + 5]
    let code = [0x66, 0x0f, 0x38, 0xf8, 0x43, 0x05];
    step(&mut regs, &mut Vector::new(), &mut device, &code).unwrap();
    assert_eq!(device.0, [Read(RBX + 5, 64), Write(0x2000, vec![0x11; 64])]);
    regs = registers();
    regs.gpr[0] = 0x2020;
    assert_eq!(fail(regs, &code), (Error::Misaligned { address: 0x2020, alignment: 64 }, vec![]));
}

#[test]
fn movdir64b_with_prefix_67_takes_32_bits_of_either_address() {
    let mut regs = registers();
    regs.gpr[0] = 0xffff_ffff_0000_2000;
    regs.gpr[3] |= 0xffff_ffff_0000_0000;
    let mut device = Device::default();
    // movdir64b eax, [ebx]
    step(&mut regs, &mut Vector::new(), &mut device, &[0x67, 0x66, 0x0f, 0x38, 0xf8, 0x03]).unwrap();
    assert_eq!(device.0, [Read(RBX, 64), Write(0x2000, vec![0x11; 64])]);
}

/// A shared work queue that takes one command.
#[derive(Default)]
struct Queue(Option<[u8; 64]>);

impl Memory for Queue {
    fn read(&mut self, _: u64, bytes: &mut [u8]) -> Result<(), AccessFault> {
        bytes.fill(0x22);
        Ok(())
    }
    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), AccessFault> {
        Err(AccessFault)
    }
    fn enqueue(&mut self, address: u64, command: &[u8; 64]) -> Result<bool, AccessFault> {
        assert_eq!(address, 0x2000);
        Ok(self.0.replace(*command).is_none())
    }
}

#[test]
fn enqcmd_says_in_zf_whether_to_try_again() {
    // enqcmd rax, [rbx]
    let code = [0xf2, 0x0f, 0x38, 0xf8, 0x03];
    let mut queue = Queue::default();
    for zf in [0, flags::ZF] {
        let mut regs = Registers { rflags: 0x202 | flags::ARITHMETIC, ..registers() };
        regs.gpr[0] = 0x2000;
        step(&mut regs, &mut Vector::new(), &mut queue, &code).expect("the instruction is performed");
        assert_eq!(regs.rflags, 0x202 | zf);
        assert_eq!(regs.rip, RIP + 5);
    }
    let mut command = [0x22; 64];
    command[..4].fill(0);
    assert_eq!(queue.0, Some(command));
    let mut regs = registers();
    regs.gpr[0] = 0x2000;
    let error = Error::AccessFault { address: 0x2000, length: 64, write: true };
    assert_eq!(fail(regs, &code), (error, vec![Read(RBX, 64)]));
}

#[test]
fn movdiri_is_one_store() {
    // movdiri [rbx], eax; movdiri [rbx], rcx
    assert_eq!(run(&[0x0f, 0x38, 0xf9, 0x03]).1, [Write(RBX, vec![0; 4])]);
    assert_eq!(run(&[0x48, 0x0f, 0x38, 0xf9, 0x0b]).1, [Write(RBX, 0x100u64.to_le_bytes().to_vec())]);
}

#[test]
fn a_repeated_instruction_stops_after_4096_bytes_and_goes_on() {
    let mut regs = registers();
    regs.gpr[1] = 1500;
    regs.gpr[6] = 0x1_0000;
    regs.gpr[7] = 0x2_0000;
    let mut device = Device::default();
    // rep movsd
    let code = [0xf3, 0xa5];
    step(&mut regs, &mut Vector::new(), &mut device, &code).unwrap();
    assert_eq!((regs.rip, regs.gpr[1], device.0.len()), (RIP, 476, 2048));
    assert_eq!((regs.gpr[6], regs.gpr[7]), (0x1_1000, 0x2_1000));
    step(&mut regs, &mut Vector::new(), &mut device, &code).unwrap();
    assert_eq!((regs.rip, regs.gpr[1], device.0.len()), (RIP + 2, 0, 3000));
}

/// A device whose accesses fail from a certain one on.
struct Failing(usize);

impl Memory for Failing {
    fn read(&mut self, _: u64, bytes: &mut [u8]) -> Result<(), AccessFault> {
        bytes.fill(0);
        self.0 = self.0.checked_sub(1).ok_or(AccessFault)?;
        Ok(())
    }
    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), AccessFault> {
        self.0 = self.0.checked_sub(1).ok_or(AccessFault)?;
        Ok(())
    }
}

#[test]
fn completed_iterations_stand_when_a_later_one_fails() {
    let mut regs = registers();
    (regs.gpr[1], regs.gpr[6], regs.gpr[7]) = (10, 0x1_0000, 0x2_0000);
    let mut memory = Failing(5);
    // rep movsd: two iterations are two accesses each; the third fails at its store.
    let code = [0xf3, 0xa5];
    assert_eq!(step(&mut regs, &mut Vector::new(), &mut memory, &code), Ok(()));
    assert_eq!((regs.rip, regs.gpr[1], regs.gpr[6], regs.gpr[7]), (RIP, 8, 0x1_0008, 0x2_0008));
    let middle = regs;
    let error = Error::AccessFault { address: 0x1_0008, length: 4, write: false };
    assert_eq!(step(&mut regs, &mut Vector::new(), &mut memory, &code), Err(error));
    assert_eq!(regs, middle);
}

#[test]
fn the_resume_flag_is_cleared_once_the_instruction_is_done() {
    let mut regs = Registers { rflags: 0x202 | flags::RF, ..registers() };
    step(&mut regs, &mut Vector::new(), &mut Device::default(), &[0x8b, 0x03]).unwrap();
    assert_eq!(regs.rflags, 0x202);
}

#[test]
fn a_missing_vector_register_costs_no_access() {
    // movups xmm0, [rbx]; movups [rbx], xmm0; vmovdqu32 xmm0 {k1}, [rbx]; kmovw k1, [rbx]; movq mm0, [rbx]
    let codes: [&[u8]; 5] = [
        &[0x0f, 0x10, 0x03],
        &[0x0f, 0x11, 0x03],
        &[0x62, 0xf1, 0x7e, 0x09, 0x6f, 0x03],
        &[0xc5, 0xf8, 0x90, 0x0b],
        &[0x0f, 0x6f, 0x03],
    ];
    for code in codes {
        let (mut regs, mut device) = (registers(), Device::default());
        let mut vectors = Vector { exist: false, ..Vector::new() };
        let result = step(&mut regs, &mut vectors, &mut device, code);
        assert_eq!((result, device.0, regs), (Err(Error::NoVectorState), vec![], registers()), "{code:02x?}");
    }
}

#[test]
fn what_is_not_performed_is_named() {
    let unsupported = |code: &[u8]| match fail(registers(), code) {
        (Error::Unsupported { mnemonic }, accesses) if accesses.is_empty() => mnemonic,
        other => panic!("{other:?}"),
    };
    assert_eq!(unsupported(&[0xf2, 0x0f, 0x58, 0x03]), "addsd");
    assert_eq!(unsupported(&[0xdd, 0x03]), "fld");
    assert_eq!(unsupported(&[0x0f, 0x05]), "syscall");
    assert_eq!(unsupported(&[0xff, 0x2b]), "jmp");
    assert_eq!(unsupported(&[0x74, 0x05]), "je");
    assert_eq!(unsupported(&[0x8c, 0x03]), "mov");
    // What these do depends on the processor's maker.
    assert_eq!(unsupported(&[0x66, 0xff, 0x13]), "call");
    assert_eq!(unsupported(&[0x66, 0xc3]), "ret");
}

#[test]
fn code_that_ends_early_or_means_nothing_is_refused() {
    for code in [&[][..], &[0x8b], &[0x8b, 0x83, 0, 0], &[0x06], &[0xf0, 0x8b, 0x03], &[0x66; 16]] {
        assert_eq!(fail(registers(), code), (Error::Undecodable, vec![]), "{code:02x?}");
    }
}

#[test]
fn errors_say_what_was_asked() {
    let error = Error::AccessFault { address: 0x1000, length: 4, write: true };
    assert_eq!(error.to_string(), "store of 4 bytes at 0x1000 failed");
    let error = Error::Misaligned { address: 0x1004, alignment: 16 };
    assert_eq!(error.to_string(), "address 0x1004 must be a multiple of 16");
}

#[test]
fn an_address_wraps_around() {
    let mut regs = registers();
    regs.gpr[3] = u64::MAX;
    let mut device = Device::default();
    // mov eax, [rbx + 4]
    step(&mut regs, &mut Vector::new(), &mut device, &[0x8b, 0x43, 0x04]).unwrap();
    assert_eq!(device.0, [Read(3, 4)]);
}

/// Answers at random, and refuses now and then.
struct Hostile(u64);

impl Hostile {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

impl Memory for Hostile {
    fn read(&mut self, _: u64, bytes: &mut [u8]) -> Result<(), AccessFault> {
        assert!(matches!(bytes.len(), 1 | 2 | 4 | 8 | 16 | 32 | 64));
        for byte in &mut *bytes {
            *byte = self.next() as u8;
        }
        if self.next().is_multiple_of(64) { Err(AccessFault) } else { Ok(()) }
    }
    fn write(&mut self, _: u64, bytes: &[u8]) -> Result<(), AccessFault> {
        assert!(matches!(bytes.len(), 1 | 2 | 4 | 8 | 16 | 32 | 64));
        if self.next().is_multiple_of(64) { Err(AccessFault) } else { Ok(()) }
    }
}

#[test]
fn no_code_panics_or_changes_registers_when_it_fails() {
    let mut random = Hostile(0x9e37_79b9_7f4a_7c15);
    let mut memory = Hostile(1);
    let mut performed = 0;
    for _ in 0..400_000 {
        let mut code = [0; 15];
        for byte in &mut code {
            *byte = random.next() as u8;
        }
        // Random bytes seldom begin with what leads to the interesting parts of the opcode map.
        match random.next() % 8 {
            0 => code[0] = 0x0f,
            1 => code[..2].copy_from_slice(&[0x66, 0x0f]),
            2 => code[..2].copy_from_slice(&[0xf3, 0x0f]),
            3 => code[0] = 0xc4,
            4 => (code[0], code[1]) = (0x62, code[1] & 0x7f | 0x70),
            5 => code[..2].copy_from_slice(&[0xf2, 0x0f]),
            _ => {}
        }
        let mut regs = Registers {
            gpr: std::array::from_fn(|_| random.next() >> (random.next() % 64)),
            rip: random.next(),
            rflags: random.next(),
            fs_base: random.next(),
            gs_base: random.next(),
        };
        if random.next().is_multiple_of(16) {
            regs.rip = u64::MAX - random.next() % 16;
        }
        let mut vectors = Vector::new();
        vectors.masks = std::array::from_fn(|_| random.next());
        let before = regs;
        let length = if random.next().is_multiple_of(4) { random.next() as usize % 16 } else { 15 };
        match step(&mut regs, &mut vectors, &mut memory, &code[..length]) {
            Ok(()) => performed += 1,
            Err(_) => assert_eq!(regs, before, "{code:02x?}"),
        }
    }
    assert!(performed > 40_000, "only {performed} instructions were performed");
}

#[test]
fn a_register_access_is_one_access_and_nothing_else() {
    /// Counts accesses.
    struct Counter(usize);

    impl Memory for Counter {
        fn read(&mut self, _address: u64, bytes: &mut [u8]) -> Result<(), AccessFault> {
            self.0 += 1;
            bytes.fill(0);
            Ok(())
        }

        fn write(&mut self, _address: u64, _bytes: &[u8]) -> Result<(), AccessFault> {
            self.0 += 1;
            Ok(())
        }
    }

    let performed = |code: &[u8]| {
        let mut memory = Counter(0);
        let result = ioasid_mmio::step_register_access(&mut Registers::default(), &mut memory, code);
        assert_eq!(memory.0, usize::from(result.is_ok()), "{code:x?}");
        result
    };
    let accesses: [&[u8]; 10] = [
        &[0x8b, 0x03],                         // mov eax, [rbx]
        &[0x89, 0x0b],                         // mov [rbx], ecx
        &[0xc7, 0x03, 1, 0, 0, 0],             // mov dword [rbx], 1
        &[0x0f, 0xb6, 0x03],                   // movzx eax, byte [rbx]
        &[0x48, 0x63, 0x03],                   // movsxd rax, dword [rbx]
        &[0x0f, 0xc3, 0x0b],                   // movnti [rbx], ecx
        &[0x39, 0x0b],                         // cmp [rbx], ecx
        &[0xf6, 0x03, 1],                      // test byte [rbx], 1
        &[0x23, 0x03],                         // and eax, [rbx]
        &[0x48, 0xa1, 0, 0, 0, 0, 0, 0, 0, 0], // mov rax, [0]
    ];
    for code in accesses {
        assert_eq!(performed(code), Ok(()), "{code:x?}");
    }
    let others: [&[u8]; 12] = [
        &[],
        &[0x8b],             // not complete
        &[0x8b, 0xc3],       // mov eax, ebx
        &[0x64, 0x8b, 0x03], // mov eax, fs:[rbx]
        &[0x65, 0x89, 0x0b], // mov gs:[rbx], ecx
        &[0x21, 0x0b],       // and [rbx], ecx
        &[0x87, 0x03],       // xchg [rbx], eax
        &[0xa4],             // movsb
        &[0xff, 0x33],       // push [rbx]
        &[0x8c, 0x1b],       // mov [rbx], ds
        &[0x0f, 0x10, 0x03], // movups xmm0, [rbx]
        &[0xcc],             // int3
    ];
    for code in others {
        assert!(performed(code).is_err(), "{code:x?}");
    }
}
