//! Performs the one x86-64 instruction that touched a device register.
//!
//! A program maps a device's registers; the mapping has no memory behind it, so every load and store raises SIGBUS.
//! The program's tracer fetches the thread's registers and the bytes at RIP and calls [`step`], which does what the
//! processor would have done: it decodes the instruction, performs its loads and stores through [`Memory`], updates
//! registers and flags, and moves RIP on. The tracer then writes the registers back and lets the thread run.
//!
//! ```text
//!   program ── SIGBUS ──▶ tracer ── Registers, Vectors, code ──▶ step ──▶ Memory ─┬─▶ device model
//!      ▲                    │                                     │               └─▶ the program's own memory
//!      └──── registers ◀────┴───────────── Ok(()) ◀───────────────┘
//! ```
//!
//! This crate makes no system call and holds no state. Its neighbours are the tracer above (which knows ptrace, and
//! which addresses are registers) and the device models behind [`Memory`]; neither is known here.
//!
//! | file | holds |
//! | --- | --- |
//! | `registers` | the general registers and flags of a stopped thread |
//! | `machine` | one instruction under way: effective addresses, operands, accesses |
//! | `dispatch` | the table from mnemonic to what it does: the list of what is supported |
//! | `alu` | arithmetic and its flags, as pure functions |
//! | `integer`, `control`, `string` | what general-purpose instructions do |
//! | `vector`, `vector_move`, `packed` | vector operands and masks, moves, and arithmetic on them |
//! | `xstate` | the vector registers in the form in which ptrace hands them over |
//!
//! # Invariants
//!
//! - **State changes only after every access succeeded.** An instruction works on a copy of the registers; an error
//!   leaves the caller's as they were, so the tracer may deliver a signal as if the instruction had never begun.
//!   Accesses that had succeeded before the one that failed were performed, as on hardware. String instructions under
//!   REP are the exception that hardware makes too: completed iterations stand, and RIP stays until the last one.
//! - **One access per operand.** A 4-byte load is one 4-byte [`Memory::read`], never four of one byte. A
//!   read-modify-write is one read and one write; only elements that a mask selects are touched.
//! - **Total on hostile input.** Any bytes and any registers give `Ok` or an [`Error`] in bounded time.
//!
//! # Limits
//!
//! 64-bit mode only. Not modelled: alignment checking (EFLAGS.AC), single-stepping (EFLAGS.TF), the shadow stack,
//! and whether the processor has the instruction at all, since it has already begun it. LOCK is accepted and means
//! nothing here: an implementor of [`Memory`] that must not let another thread in between the read and the write of
//! a read-modify-write holds its lock over the whole call of [`step`].
//!
//! Follows Intel's *Software Developer's Manual*, volume 2 (instructions), and volume 1, chapter 13 (XSAVE).

mod alu;
mod control;
mod dispatch;
mod integer;
mod machine;
mod packed;
mod registers;
mod string;
mod vector;
mod vector_move;
mod xstate;

pub use registers::{Registers, flags};
pub use xstate::{Xstate, XstateLayout};

use iced_x86::{Decoder, DecoderOptions, Instruction};

/// The vector, mask and MMX registers of the stopped thread.
///
/// Fetched lazily, as most instructions that touch a device register never name one.
/// `None` and `false` mean that the thread has no such register, or that it could not be fetched.
pub trait Vectors {
    /// Vector register `index` (0 to 31): XMM in the first 16 bytes, YMM in 32, ZMM in 64.
    /// Bytes that the processor does not have read as zero.
    fn load(&mut self, index: usize) -> Option<[u8; 64]>;

    /// Replaces the whole of vector register `index` (0 to 31). Called only after [`load`](Self::load) of the same
    /// register gave a value.
    #[must_use]
    fn store(&mut self, index: usize, value: &[u8; 64]) -> bool;

    /// Mask register k0 to k7.
    fn mask(&mut self, index: usize) -> Option<u64>;

    /// Replaces mask register k0 to k7.
    #[must_use]
    fn set_mask(&mut self, index: usize, value: u64) -> bool;

    /// MMX register mm0 to mm7.
    fn mmx(&mut self, index: usize) -> Option<u64>;

    /// Replaces MMX register mm0 to mm7, and puts the x87 unit into its MMX state.
    #[must_use]
    fn set_mmx(&mut self, index: usize, value: u64) -> bool;
}

/// The stopped thread's address space.
///
/// An address may be that of a device register or of ordinary memory (one MOVS goes from the one to the other); the
/// implementor tells which is which.
pub trait Memory {
    /// Performs one load of exactly `bytes.len()` bytes (1, 2, 4, 8, 16, 32 or 64) at `address`.
    ///
    /// # Errors
    ///
    /// [`AccessFault`] if nothing there can be read; the load then has had no effect.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), AccessFault>;

    /// Performs one store of exactly `bytes.len()` bytes (1, 2, 4, 8, 16, 32 or 64) at `address`.
    ///
    /// # Errors
    ///
    /// [`AccessFault`] if nothing there can be written; the store then has had no effect.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessFault>;

    /// Performs ENQCMD's store of a 64-byte command to the portal of a shared work queue at `address`, and says
    /// whether the queue took it (`false`: try again). The first four bytes are zero: an implementor that has such
    /// queues puts the thread's PASID into bits 0 to 19. By default there are none.
    ///
    /// # Errors
    ///
    /// [`AccessFault`] if no shared work queue is there; the command then has had no effect.
    fn enqueue(&mut self, address: u64, command: &[u8; 64]) -> Result<bool, AccessFault> {
        let _ = (address, command);
        Err(AccessFault)
    }
}

/// What [`Memory`] answers when an access cannot be performed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("the access could not be performed")]
pub struct AccessFault;

/// Why an instruction was not performed. Registers and vectors are then as before the call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are no instruction of 64-bit mode, or end within one.
    #[error("the bytes at the instruction pointer are no complete 64-bit instruction")]
    Undecodable,
    /// An instruction, or a form of it, that this crate does not perform.
    #[error("no support for the instruction {mnemonic} in this form")]
    Unsupported {
        /// The instruction's name, in lower case.
        mnemonic: String,
    },
    /// [`Memory`] refused a load or a store.
    #[error("{} of {length} bytes at {address:#x} failed", if *.write { "store" } else { "load" })]
    AccessFault {
        /// The first byte of the access.
        address: u64,
        /// The size of the access in bytes.
        length: usize,
        /// Whether it was a store.
        write: bool,
    },
    /// The instruction demands an aligned address (the processor raises #GP).
    #[error("address {address:#x} must be a multiple of {alignment}")]
    Misaligned {
        /// The effective address.
        address: u64,
        /// The alignment in bytes that the instruction demands.
        alignment: u64,
    },
    /// A division by zero, or one whose quotient does not fit (the processor raises #DE).
    #[error("the divisor is zero or the quotient does not fit")]
    Divide,
    /// [`Vectors`] does not have a register that the instruction names.
    #[error("a vector register of the instruction is not available")]
    NoVectorState,
}

/// An instruction that a processor may not have, or not be set up for, and which [`step`] performs as if it were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submission {
    /// MOVDIR64B: 64 bytes in one store. A processor without it raises #UD.
    Movdir64b,
    /// ENQCMD: 64 bytes in a deferrable store with the thread's PASID. A processor without it raises #UD, and one that
    /// has no valid PASID #GP.
    Enqcmd,
}

impl Submission {
    /// What begins at `code[0]`, if it is one of them.
    #[must_use]
    pub fn at(code: &[u8]) -> Option<Self> {
        match Decoder::new(64, code, DecoderOptions::NONE).decode().mnemonic() {
            iced_x86::Mnemonic::Movdir64b => Some(Self::Movdir64b),
            iced_x86::Mnemonic::Enqcmd => Some(Self::Enqcmd),
            _ => None,
        }
    }
}

/// Performs the instruction that begins at `code[0]` and at `regs.rip`.
///
/// `code` holds the bytes at RIP, as many as can be read up to 15, the longest instruction; more are ignored.
///
/// A string instruction under REP is performed for at most 4096 bytes per call. If iterations remain, RIP stays at
/// the instruction, whose registers say how much is left: let the thread run, and it traps again; or call again.
///
/// # Errors
///
/// See [`Error`]. In every case `regs` and `vectors` are unchanged. If an iteration of a string instruction other
/// than the first fails, this call succeeds with RIP still at the instruction, and the next one fails.
///
/// # Example
///
/// ```
/// use ioasid_mmio::{AccessFault, Memory, Registers, Vectors, step};
///
/// struct Status;
/// impl Memory for Status {
///     fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), AccessFault> {
///         (address == 0x1004).then(|| bytes.fill(0x11)).ok_or(AccessFault)
///     }
///     fn write(&mut self, _: u64, _: &[u8]) -> Result<(), AccessFault> {
///         Err(AccessFault)
///     }
/// }
/// # struct None_;
/// # impl Vectors for None_ {
/// #     fn load(&mut self, _: usize) -> Option<[u8; 64]> { None }
/// #     fn store(&mut self, _: usize, _: &[u8; 64]) -> bool { false }
/// #     fn mask(&mut self, _: usize) -> Option<u64> { None }
/// #     fn set_mask(&mut self, _: usize, _: u64) -> bool { false }
/// #     fn mmx(&mut self, _: usize) -> Option<u64> { None }
/// #     fn set_mmx(&mut self, _: usize, _: u64) -> bool { false }
/// # }
/// # let mut vectors = None_;
/// let mut regs = Registers { rip: 0x40_0000, ..Registers::default() };
/// regs.gpr[3] = 0x1000; // RBX
/// // mov eax, [rbx + 4]
/// step(&mut regs, &mut vectors, &mut Status, &[0x8b, 0x43, 0x04])?;
/// assert_eq!(regs.gpr[0], 0x1111_1111);
/// assert_eq!(regs.rip, 0x40_0003);
/// # Ok::<(), ioasid_mmio::Error>(())
/// ```
pub fn step(
    regs: &mut Registers,
    vectors: &mut dyn Vectors,
    memory: &mut dyn Memory,
    code: &[u8],
) -> Result<(), Error> {
    perform(regs, vectors, memory, decode(regs.rip, code)?)
}

/// Performs the instruction as [`step`] does, if it accesses memory exactly once, through an operand that neither FS
/// nor GS takes part in, and names no registers but the general ones. So it has failed before it has done anything, or
/// it has been performed.
///
/// # Errors
///
/// [`Error::Unsupported`] if it is another instruction; and as [`step`].
pub fn step_register_access(regs: &mut Registers, memory: &mut dyn Memory, code: &[u8]) -> Result<(), Error> {
    let instruction = decode(regs.rip, code)?;
    if !is_register_access(&instruction) {
        return Err(Error::Unsupported { mnemonic: format!("{:?}", instruction.mnemonic()).to_lowercase() });
    }
    perform(regs, &mut NoVectors, memory, instruction)
}

fn is_register_access(instruction: &Instruction) -> bool {
    use iced_x86::{Mnemonic as M, OpKind, Register};

    let once = match instruction.mnemonic() {
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Movbe | M::Movnti | M::Movdiri | M::Cmp | M::Test => true,
        // With memory first, these read it and write it.
        M::Add | M::Sub | M::And | M::Or | M::Xor => instruction.op0_kind() == OpKind::Register,
        _ => false,
    };
    let is_plain = |operand: u32| match instruction.op_kind(operand) {
        OpKind::Register => instruction.op_register(operand).is_gpr(),
        OpKind::Memory => !matches!(instruction.memory_segment(), Register::FS | Register::GS),
        _ => true,
    };
    let operands = || 0..instruction.op_count();
    once && operands().all(is_plain) && operands().any(|operand| instruction.op_kind(operand) == OpKind::Memory)
}

fn decode(rip: u64, code: &[u8]) -> Result<Instruction, Error> {
    // A near branch with prefix 66 has 16 bits on AMD's processors and 64 on Intel's. The option tells it from one
    // without, so that it can be refused.
    let instruction = Decoder::with_ip(64, code, rip, DecoderOptions::AMD).decode();
    if instruction.is_invalid() { Err(Error::Undecodable) } else { Ok(instruction) }
}

fn perform(
    regs: &mut Registers,
    vectors: &mut dyn Vectors,
    memory: &mut dyn Memory,
    instruction: Instruction,
) -> Result<(), Error> {
    let mut machine = machine::Machine::new(*regs, vectors, memory, instruction);
    dispatch::perform(&mut machine)?;
    *regs = machine.into_registers();
    Ok(())
}

/// No vector registers, for instructions that name none.
struct NoVectors;

impl Vectors for NoVectors {
    fn load(&mut self, _index: usize) -> Option<[u8; 64]> {
        None
    }

    fn store(&mut self, _index: usize, _value: &[u8; 64]) -> bool {
        false
    }

    fn mask(&mut self, _index: usize) -> Option<u64> {
        None
    }

    fn set_mask(&mut self, _index: usize, _value: u64) -> bool {
        false
    }

    fn mmx(&mut self, _index: usize) -> Option<u64> {
        None
    }

    fn set_mmx(&mut self, _index: usize, _value: u64) -> bool {
        false
    }
}
