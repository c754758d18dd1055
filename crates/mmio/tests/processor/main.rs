//! [`step`] and the processor do the same, for each instruction of `cases` and many values of registers and memory.
//!
//! The processor runs the instruction on ordinary memory; `step` runs it on a copy. All registers, the flags that the
//! manual defines, and memory must come out equal. What the processor at hand cannot do is left out here; the tests
//! in `semantics` say by hand what it would do.

#![cfg(target_arch = "x86_64")]
#![expect(unsafe_code, reason = "instructions are run as machine code")]

mod cases;
mod native;

use std::collections::{BTreeMap, HashMap};

use cases::Group;
use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register, RflagsBits};
use ioasid_mmio::{AccessFault, Error, Memory, Registers, Vectors, flags, step};
use native::{ARENA, ARENA_SIZE, CODE, LANDING, Processor, State, ZERO};

/// How often each instruction is run.
const ITERATIONS: usize = 300;
/// How many encodings are drawn at random.
const RANDOM_ENCODINGS: usize = 300_000;

/// With a fixed seed: a failure can be had again.
struct Random(fastrand::Rng);

impl Random {
    fn next(&mut self) -> u64 {
        self.0.u64(..)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0.u64(..end)
    }

    /// A number of any size, often at an edge.
    fn number(&mut self) -> u64 {
        let random = self.next();
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => random >> self.below(64),
            5 => self.below(70),
            _ => random,
        }
    }
}

/// The registers of the emulated thread.
struct Emulated(State);

impl Vectors for Emulated {
    fn load(&mut self, index: usize) -> Option<[u8; 64]> {
        self.0.vectors.get(index).copied()
    }
    fn store(&mut self, index: usize, value: &[u8; 64]) -> bool {
        self.0.vectors[index] = *value;
        true
    }
    fn mask(&mut self, index: usize) -> Option<u64> {
        self.0.masks.get(index).copied()
    }
    fn set_mask(&mut self, index: usize, value: u64) -> bool {
        self.0.masks[index] = value;
        true
    }
    fn mmx(&mut self, index: usize) -> Option<u64> {
        self.0.mmx.get(index).copied()
    }
    fn set_mmx(&mut self, index: usize, value: u64) -> bool {
        self.0.mmx[index] = value;
        true
    }
}

/// A copy of the arena, whose accesses fail from a certain one on.
struct Arena {
    bytes: [u8; ARENA_SIZE],
    accesses: usize,
    fail_from: usize,
}

impl Arena {
    fn range(&mut self, address: u64, length: usize) -> Result<std::ops::Range<usize>, AccessFault> {
        assert!(matches!(length, 1 | 2 | 4 | 8 | 16 | 32 | 64), "an access of {length} bytes");
        self.accesses += 1;
        let start = usize::try_from(address.wrapping_sub(ARENA)).map_err(|_| AccessFault)?;
        let end = start.checked_add(length).filter(|&end| end <= ARENA_SIZE).ok_or(AccessFault)?;
        if self.accesses > self.fail_from { Err(AccessFault) } else { Ok(start..end) }
    }
}

impl Memory for Arena {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), AccessFault> {
        let range = self.range(address, bytes.len())?;
        bytes.copy_from_slice(&self.bytes[range]);
        Ok(())
    }
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessFault> {
        let range = self.range(address, bytes.len())?;
        self.bytes[range].copy_from_slice(bytes);
        Ok(())
    }
}

/// An instruction, and all that it starts from.
struct Start {
    state: State,
    arena: [u8; ARENA_SIZE],
}

fn start(instruction: &Instruction, group: Group, processor: &Processor, random: &mut Random) -> Start {
    let mut state = ZERO;
    let mut arena = [0; ARENA_SIZE];
    // Only the middle is ever touched; the rest must stay zero.
    let middle = ARENA_SIZE / 2;
    let few = random.below(4) == 0;
    for chunk in arena[middle - 0x600..middle + 0x600].chunks_exact_mut(8) {
        let number = if few { u64::from_ne_bytes([(random.below(2) * 0xff) as u8; 8]) } else { random.number() };
        chunk.copy_from_slice(&number.to_le_bytes());
    }
    let vector_size = native::vector_size();
    for (index, vector) in state.vectors.iter_mut().enumerate() {
        if index < 16 || vector_size == 64 {
            for chunk in vector[..vector_size].chunks_exact_mut(8) {
                chunk.copy_from_slice(&random.number().to_le_bytes());
            }
        }
    }
    if vector_size == 64 {
        state.masks = std::array::from_fn(|_| random.number());
    }
    state.mmx = std::array::from_fn(|_| random.number());
    state.gpr = std::array::from_fn(|_| random.number());
    // Bits 1 and 9 (interrupts enabled) are always set.
    state.rflags = random.next() & flags::ARITHMETIC | 0x202;

    let target = ARENA
        + middle as u64
        + match group {
            Group::Aligned if random.below(3) > 0 => 64,
            _ => random.below(64),
        };
    let count = random.below(20);
    state.gpr[4] = ARENA + middle as u64 + 8 * random.below(16);
    state.gpr[5] = target;
    match group {
        Group::String => {
            let address_is_narrow =
                instruction.op_kinds().any(|kind| matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI));
            let high = if address_is_narrow { 0xabcd_0000_0000_0000 } else { 0 };
            // What is in the upper half of RCX after no iteration at all depends on who made the processor.
            let count = if address_is_narrow { count.max(1) } else { count };
            state.gpr[6] = target | high;
            state.gpr[7] = (ARENA + middle as u64 + random.below(256)) | high;
            state.gpr[1] = count | high;
            state.rflags |= random.next() & flags::DF;
        }
        Group::Divide => {
            let rax = random.number();
            state.gpr[0] = rax;
            state.gpr[2] = match random.below(4) {
                0 => (rax as i64 >> 63) as u64,
                1 => random.below(4),
                2 => random.number(),
                _ => 0,
            };
        }
        _ => {}
    }
    if instruction.op_kinds().any(|kind| kind == OpKind::MemorySegRDI) {
        state.gpr[7] = target;
    }
    if group == Group::BitOffset {
        let offset = random.below(0x4000) as i64 - 0x2000;
        state.gpr[instruction.op1_register().full_register().number()] = offset as u64;
    }
    if instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
        aim(instruction, target, processor, &mut state, random);
    }
    if instruction.mnemonic() == Mnemonic::Movdir64b {
        // The register holds the address that the bytes go to, which has to be a multiple of 64.
        let off = if random.below(3) > 0 { 0 } else { random.below(64) };
        state.gpr[instruction.op0_register().full_register().number()] = ARENA + middle as u64 + 0x100 + off;
    }
    // RET has no operand: it takes the address from the stack.
    let operand = address_of(instruction, processor, &state);
    let operand = operand.unwrap_or(if group == Group::Jump { state.gpr[4] } else { target });
    // A random encoding's operand may well lie elsewhere.
    let at = usize::try_from(operand.wrapping_sub(ARENA)).unwrap_or(usize::MAX).min(ARENA_SIZE - 16);
    if group == Group::Jump {
        arena[at..at + 8].copy_from_slice(&LANDING.to_le_bytes());
    } else if random.below(3) == 0 && !matches!(instruction.memory_base(), Register::RAX | Register::RDX) {
        // Comparisons with the accumulator should succeed now and then.
        let value = |at: usize| u64::from_le_bytes(arena[at..at + 8].try_into().expect("8 bytes"));
        let half = if instruction.code() == Code::Cmpxchg8b_m64 { 4 } else { 8 };
        state.gpr[0] = value(at);
        state.gpr[2] = value(at + half);
    }
    Start { state, arena }
}

/// Sets the registers of the memory operand such that it lies at `target`.
fn aim(instruction: &Instruction, target: u64, processor: &Processor, state: &mut State, random: &mut Random) {
    let base = instruction.memory_base();
    let index = instruction.memory_index();
    if instruction.mnemonic() == Mnemonic::Xlatb {
        state.gpr[3] = target;
        return;
    }
    if matches!(base, Register::RIP | Register::RSP) {
        return;
    }
    if index != Register::None {
        state.gpr[index.full_register().number()] = random.below(17).wrapping_sub(8);
    }
    let segment = match instruction.memory_segment() {
        Register::FS => processor.fs_base,
        Register::GS => processor.gs_base,
        _ => 0,
    };
    if base != Register::None {
        let number = base.full_register().number();
        state.gpr[number] = 0;
        let rest = address_of(instruction, processor, state).expect("a memory operand");
        let mut value = target.wrapping_sub(rest);
        if base.is_gpr32() {
            // The offset wraps at 32 bits, and the register's upper half is not looked at.
            value = target.wrapping_sub(segment).wrapping_sub(rest.wrapping_sub(segment)) & 0xffff_ffff;
            value |= random.next() << 32;
        }
        state.gpr[number] = value;
    }
}

fn address_of(instruction: &Instruction, processor: &Processor, state: &State) -> Option<u64> {
    let op = (0..instruction.op_count()).find(|&op| instruction.op_kind(op) == OpKind::Memory)?;
    instruction.virtual_address(op, 0, |register, _, _| {
        Some(match register {
            Register::FS => processor.fs_base,
            Register::GS => processor.gs_base,
            Register::ES | Register::CS | Register::SS | Register::DS => 0,
            Register::AL => state.gpr[0] & 0xff,
            gpr => {
                let whole = state.gpr[gpr.full_register().number()];
                if gpr.is_gpr32() { whole & 0xffff_ffff } else { whole }
            }
        })
    })
}

/// The flags that the manual defines after this instruction.
fn defined_flags(instruction: &Instruction, state: &State) -> u64 {
    let undefined = instruction.rflags_undefined();
    let mut defined = flags::ARITHMETIC | flags::DF;
    for (iced, flag) in [
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::OF, flags::OF),
    ] {
        if undefined & iced != 0 {
            defined &= !flag;
        }
    }
    if let Some((count, bits)) = shift_count(instruction, state) {
        if count != 1 {
            defined &= !flags::OF;
        }
        if count >= bits && matches!(instruction.mnemonic(), Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr) {
            defined &= !flags::CF;
        }
    }
    defined
}

/// The count of a shift or rotation, as the processor takes it, and the operand's width.
fn shift_count(instruction: &Instruction, state: &State) -> Option<(u64, u64)> {
    use Mnemonic as M;
    if !matches!(
        instruction.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    ) {
        return None;
    }
    let count = instruction.try_immediate(instruction.op_count() - 1).unwrap_or(state.gpr[1]);
    let bits = 8 * instruction.memory_size().size() as u64;
    Some((count & if bits == 64 { 63 } else { 31 }, bits))
}

/// Whether the manual leaves the whole result open: a double shift by more than the width.
fn is_undefined(instruction: &Instruction, state: &State) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd)
        && shift_count(instruction, state).is_some_and(|(count, bits)| count > bits)
}

/// Whether this processor has the instruction.
fn is_available(instruction: &Instruction) -> bool {
    let leaf_7 = std::arch::x86_64::__cpuid_count(7, 0);
    let extended = std::arch::x86_64::__cpuid(0x8000_0001);
    instruction.cpuid_features().iter().all(|feature| match feature {
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4A => extended.ecx >> 6 & 1 != 0,
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        CpuidFeature::AVX => is_x86_feature_detected!("avx"),
        CpuidFeature::AVX2 => is_x86_feature_detected!("avx2"),
        CpuidFeature::AVX512F => native::vector_size() == 64,
        CpuidFeature::AVX512VL => is_x86_feature_detected!("avx512vl"),
        CpuidFeature::AVX512DQ => is_x86_feature_detected!("avx512dq"),
        CpuidFeature::AVX512BW => is_x86_feature_detected!("avx512bw"),
        CpuidFeature::BMI1 => is_x86_feature_detected!("bmi1"),
        CpuidFeature::BMI2 => is_x86_feature_detected!("bmi2"),
        CpuidFeature::ADX => is_x86_feature_detected!("adx"),
        CpuidFeature::LZCNT => is_x86_feature_detected!("lzcnt"),
        CpuidFeature::POPCNT => is_x86_feature_detected!("popcnt"),
        CpuidFeature::MOVBE => is_x86_feature_detected!("movbe"),
        CpuidFeature::CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
        CpuidFeature::CLFLUSHOPT => leaf_7.ebx >> 23 & 1 != 0,
        CpuidFeature::CLWB => leaf_7.ebx >> 24 & 1 != 0,
        CpuidFeature::MOVDIRI => leaf_7.ecx >> 27 & 1 != 0,
        CpuidFeature::MOVDIR64B => leaf_7.ecx >> 28 & 1 != 0,
        // It needs a shared work queue and a PASID.
        CpuidFeature::ENQCMD => false,
        _ => true,
    })
}

fn registers_of(state: &State, processor: &Processor) -> Registers {
    Registers {
        gpr: state.gpr,
        rip: CODE,
        rflags: state.rflags,
        fs_base: processor.fs_base,
        gs_base: processor.gs_base,
    }
}

/// Performs the instruction, all iterations of it.
fn emulate(code: &[u8], regs: &mut Registers, vectors: &mut Emulated, memory: &mut Arena) -> Result<(), Error> {
    for _ in 0..8 {
        step(regs, vectors, memory, code)?;
        if regs.rip != CODE {
            return Ok(());
        }
    }
    panic!("an instruction that does not end");
}

/// What a comparison went through.
struct Tally {
    instructions: usize,
    /// Runs that both sides ended with the same fault.
    faults: usize,
}

/// How a run ended on both sides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Same,
    SameFault,
    /// Not run on the processor, as `step` does not do it.
    Refused,
    /// The processor does not have it.
    Lacking,
}

/// Runs one instruction both ways, from one state; the error says how they differ.
fn compare_once(
    code: &[u8],
    instruction: &Instruction,
    Start { state, arena }: &Start,
    processor: &mut Processor,
) -> Result<(Outcome, usize), String> {
    let mut regs = registers_of(state, processor);
    let mut vectors = Emulated(*state);
    let mut memory = Arena { bytes: *arena, accesses: 0, fail_from: usize::MAX };
    let expected = match emulate(code, &mut regs, &mut vectors, &mut memory) {
        Ok(()) if regs.rip == CODE + code.len() as u64 || regs.rip == LANDING => None,
        Err(Error::Divide) => Some(libc::SIGFPE),
        Err(Error::Misaligned { .. }) => Some(libc::SIGSEGV),
        Ok(()) | Err(_) => return Ok((Outcome::Refused, 0)),
    };
    let (mut after, mut arena_after) = (*state, *arena);
    let signal = processor.run(&mut after, &mut arena_after);
    if signal == Some(libc::SIGILL) {
        return Ok((Outcome::Lacking, 0));
    }
    if expected != signal {
        return Err(format!("signal {expected:?}, not {signal:?}"));
    }
    if signal.is_some() {
        let is_unchanged = regs == registers_of(state, processor) && vectors.0 == *state && memory.bytes == *arena;
        return if is_unchanged { Ok((Outcome::SameFault, 0)) } else { Err("a fault changed something".into()) };
    }
    for (number, (ours, theirs)) in regs.gpr.iter().zip(&after.gpr).enumerate() {
        if ours != theirs {
            return Err(format!("register {number} is {ours:#x}, not {theirs:#x}"));
        }
    }
    let which = defined_flags(instruction, state);
    let (ours, theirs) = (regs.rflags & which, after.rflags & which);
    if ours != theirs {
        return Err(format!("flags are {ours:#x}, not {theirs:#x}"));
    }
    for (number, (ours, theirs)) in vectors.0.vectors.iter().zip(&after.vectors).enumerate() {
        if ours != theirs {
            return Err(format!("vector {number} is {ours:02x?}, not {theirs:02x?}"));
        }
    }
    if vectors.0.masks != after.masks {
        return Err(format!("masks are {:x?}, not {:x?}", vectors.0.masks, after.masks));
    }
    if vectors.0.mmx != after.mmx {
        return Err(format!("MMX is {:x?}, not {:x?}", vectors.0.mmx, after.mmx));
    }
    if memory.bytes != arena_after {
        let at = memory.bytes.iter().zip(&arena_after).position(|(ours, theirs)| ours != theirs);
        return Err(format!("memory differs from {:#x} on", ARENA + at.unwrap_or(0) as u64));
    }
    Ok((Outcome::Same, memory.accesses))
}

/// Runs a group's instructions both ways.
fn compare(group: Group) -> Tally {
    let mut processor = Processor::new();
    let mut random = Random(fastrand::Rng::with_seed(0x1234_5678_9abc_def1));
    let (mut instructions, mut runs, mut faults, mut lacking) = (0, 0, 0, 0);
    for code in cases::of(group) {
        let instruction = Decoder::with_ip(64, code, CODE, DecoderOptions::AMD).decode();
        let name = format!("{:?} ({code:02x?})", instruction.code());
        assert_eq!(instruction.len(), code.len(), "{name} is decoded as a shorter instruction");
        if !is_available(&instruction) {
            lacking += 1;
            continue;
        }
        instructions += 1;
        processor.set_code(code);
        let mut same = 0;
        for iteration in 0..ITERATIONS {
            let start = start(&instruction, group, &processor, &mut random);
            match compare_once(code, &instruction, &start, &mut processor) {
                Ok((Outcome::Same, accesses)) => {
                    same += 1;
                    if iteration < 40 {
                        failing_accesses_change_nothing(&name, code, &start, accesses, &processor);
                    }
                }
                Ok((Outcome::SameFault, _)) => faults += 1,
                Ok((Outcome::Refused, _)) => panic!("{name}: refused"),
                Ok((Outcome::Lacking, _)) => panic!("{name}: not on this processor"),
                Err(difference) => panic!("{name} #{iteration}: {difference}"),
            }
        }
        assert!(same >= ITERATIONS / 8, "{name}: only {same} comparisons");
        runs += same;
    }
    println!("{group:?}: {instructions} instructions, {runs} runs, {faults} faults, {lacking} not here");
    Tally { instructions, faults }
}

/// Makes each access of the instruction fail in turn.
fn failing_accesses_change_nothing(
    name: &str,
    code: &[u8],
    Start { state, arena }: &Start,
    accesses: usize,
    processor: &Processor,
) {
    for fail_from in 0..accesses.min(70) {
        let before = registers_of(state, processor);
        let mut regs = before;
        let mut vectors = Emulated(*state);
        let mut memory = Arena { bytes: *arena, accesses: 0, fail_from };
        let result = step(&mut regs, &mut vectors, &mut memory, code);
        assert!(vectors.0 == *state, "{name}: vectors changed though access {fail_from} failed");
        match result {
            Err(Error::AccessFault { .. }) => {
                assert_eq!(regs, before, "{name}: registers changed, {fail_from}");
            }
            // Some iterations of a string instruction are done; the next call says what is wrong.
            Ok(()) => {
                assert!(fail_from > 0 && regs.rip == before.rip, "{name}: access {fail_from} did not fail it");
                let middle = regs;
                let again = step(&mut regs, &mut vectors, &mut memory, code);
                assert!(matches!(again, Err(Error::AccessFault { .. })), "{name}: {again:?}");
                assert_eq!(regs, middle);
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn plain_instructions_do_what_the_processor_does() {
    assert!(compare(Group::Plain).instructions > 200);
}

#[test]
fn instructions_that_demand_alignment_do_what_the_processor_does() {
    assert!(compare(Group::Aligned).faults > 0);
}

#[test]
fn string_instructions_do_what_the_processor_does() {
    compare(Group::String);
}

#[test]
fn bit_offsets_reach_as_far_as_on_the_processor() {
    compare(Group::BitOffset);
}

#[test]
fn divisions_give_what_the_processor_gives() {
    assert!(compare(Group::Divide).faults > 0);
}

#[test]
fn jumps_calls_and_returns_go_where_the_processor_goes() {
    compare(Group::Jump);
}

/// Bytes that are likely an instruction with a memory operand: prefixes, an opcode of any map, and a ModRM byte.
fn random_code(random: &mut Random) -> [u8; 15] {
    let mut code = [0; 15];
    for byte in &mut code {
        *byte = random.next() as u8;
    }
    let mut bytes = Vec::new();
    let modrm = (random.next() as u8 & 0x7f) | if random.below(3) == 0 { 0x80 } else { 0 } & 0xbf;
    let opcode = random.next() as u8;
    match random.below(8) {
        0..4 => {
            for prefix in [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x64, 0x65] {
                if random.below(8) == 0 {
                    bytes.push(prefix);
                }
            }
            if random.below(2) == 0 {
                bytes.push(0x40 | random.below(16) as u8);
            }
            let map: &[u8] = match random.below(8) {
                0..3 => &[],
                3..6 => &[0x0f],
                6 => &[0x0f, 0x38],
                _ => &[0x0f, 0x3a],
            };
            bytes.extend(map);
        }
        4 => bytes.extend([0xc5, random.next() as u8]),
        5 => bytes.extend([0xc4, (random.next() as u8 & 0xe0) | (1 + random.below(3) as u8), random.next() as u8]),
        _ => {
            // Of the reserved bits one must be clear and one set.
            let first = (random.next() as u8 & 0xf0) | (1 + random.below(3) as u8);
            bytes.extend([0x62, first, random.next() as u8 | 4, random.next() as u8]);
        }
    }
    bytes.extend([opcode, modrm]);
    code[..bytes.len()].copy_from_slice(&bytes);
    code
}

/// The group whose preparation suits an instruction.
fn group_of(instruction: &Instruction) -> Group {
    let is_string =
        |kind| matches!(kind, OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::MemorySegESI | OpKind::MemoryESEDI);
    match instruction.mnemonic() {
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
            if instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register =>
        {
            Group::BitOffset
        }
        Mnemonic::Div | Mnemonic::Idiv => Group::Divide,
        Mnemonic::Jmp | Mnemonic::Call | Mnemonic::Ret => Group::Jump,
        _ if instruction.op_kinds().any(is_string) => Group::String,
        _ => Group::Aligned,
    }
}

#[test]
fn random_encodings_do_what_the_processor_does() {
    let mut processor = Processor::new();
    let mut random = Random(fastrand::Rng::with_seed(0x0dd0_beef_cafe_f00d));
    let mut compared = HashMap::<Code, usize>::new();
    let mut differences = BTreeMap::new();
    for _ in 0..RANDOM_ENCODINGS {
        let code = random_code(&mut random);
        let instruction = Decoder::with_ip(64, &code, CODE, DecoderOptions::AMD).decode();
        let has_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
        let group = group_of(&instruction);
        if instruction.is_invalid()
            || instruction.is_vsib()
            || !(has_memory || group == Group::String)
            || !is_available(&instruction)
        {
            continue;
        }
        let code = &code[..instruction.len()];
        processor.set_code(code);
        for _ in 0..3 {
            let start = start(&instruction, group, &processor, &mut random);
            let is_outside = address_of(&instruction, &processor, &start.state)
                .is_some_and(|address| address.wrapping_sub(ARENA) >= ARENA_SIZE as u64);
            // A hint does not mind where it points, but the processor does.
            if is_outside || is_undefined(&instruction, &start.state) {
                break;
            }
            match compare_once(code, &instruction, &start, &mut processor) {
                Ok((Outcome::Same | Outcome::SameFault, _)) => {
                    *compared.entry(instruction.code()).or_default() += 1;
                }
                Ok((Outcome::Refused, _)) => break,
                Ok((Outcome::Lacking, _)) => {
                    differences.insert(format!("{:?}", instruction.code()), format!("{code:02x?}: SIGILL"));
                }
                Err(difference) => {
                    differences.insert(format!("{:?}", instruction.code()), format!("{code:02x?}: {difference}"));
                }
            }
        }
    }
    println!("random: {} instructions, {} runs", compared.len(), compared.values().sum::<usize>());
    assert!(differences.is_empty(), "{differences:#?}");
    assert!(compared.len() > 300);
}
