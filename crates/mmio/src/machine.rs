//! One instruction under way: the working copy of the registers, effective addresses, and operands.
//!
//! All accesses of the crate go through [`Machine::load`] and [`Machine::store`], and all errors about an operand
//! begin here. The working copy becomes the thread's registers only if the whole instruction succeeds.

use iced_x86::{EncodingKind, Instruction, OpKind, Register};

use crate::alu::{Computed, Width};
use crate::registers::{Registers, flags};
use crate::{Error, Memory, Vectors};

/// One instruction, and all that it may read and change.
pub(crate) struct Machine<'a> {
    pub(crate) regs: Registers,
    pub(crate) vectors: &'a mut dyn Vectors,
    pub(crate) instruction: Instruction,
    memory: &'a mut dyn Memory,
    /// Where the thread goes on; the instruction itself while iterations remain.
    next: u64,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(
        regs: Registers,
        vectors: &'a mut dyn Vectors,
        memory: &'a mut dyn Memory,
        instruction: Instruction,
    ) -> Self {
        let next = instruction.next_ip();
        Self { regs, vectors, instruction, memory, next }
    }

    /// The registers after the instruction.
    pub(crate) fn into_registers(self) -> Registers {
        let mut regs = self.regs;
        if self.next != regs.rip {
            // The fault that brought us here set RF; the completed instruction clears it.
            regs.set_flags(flags::RF, 0);
        }
        regs.rip = self.next;
        regs
    }

    /// Goes on at `target` instead of the next instruction.
    pub(crate) fn jump(&mut self, target: u64) {
        self.next = target;
    }

    /// Stays at this instruction, as an interrupt between two iterations does.
    pub(crate) fn stay(&mut self) {
        self.next = self.regs.rip;
    }

    pub(crate) fn unsupported(&self) -> Error {
        Error::Unsupported { mnemonic: format!("{:?}", self.instruction.mnemonic()).to_lowercase() }
    }

    /// Whether this is neither VEX nor EVEX: it then leaves a vector register's upper part alone.
    pub(crate) fn is_legacy(&self) -> bool {
        self.instruction.encoding() == EncodingKind::Legacy
    }

    pub(crate) fn load(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let length = bytes.len();
        self.memory.read(address, bytes).map_err(|_| Error::AccessFault { address, length, write: false })
    }

    pub(crate) fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let length = bytes.len();
        self.memory.write(address, bytes).map_err(|_| Error::AccessFault { address, length, write: true })
    }

    /// Stores a command to a shared work queue; whether the queue took it.
    pub(crate) fn submit(&mut self, address: u64, command: &[u8; 64]) -> Result<bool, Error> {
        let result = self.memory.enqueue(address, command);
        result.map_err(|_| Error::AccessFault { address, length: 64, write: true })
    }

    /// Loads `size` bytes (1, 2, 4 or 8), zero-extended.
    pub(crate) fn load_sized(&mut self, address: u64, size: usize) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        let Some(part) = bytes.get_mut(..size) else {
            return Err(self.unsupported());
        };
        self.load(address, part)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Stores the lowest `size` bytes (1, 2, 4 or 8) of `value`.
    pub(crate) fn store_sized(&mut self, address: u64, size: usize, value: u64) -> Result<(), Error> {
        let bytes = value.to_le_bytes();
        let Some(part) = bytes.get(..size) else {
            return Err(self.unsupported());
        };
        self.store(address, part)
    }

    /// What the segment of the memory operand adds to an offset: nothing in 64-bit mode, but for FS and GS.
    pub(crate) fn segment_base(&self, segment: Register) -> u64 {
        match segment {
            Register::FS => self.regs.fs_base,
            Register::GS => self.regs.gs_base,
            _ => 0,
        }
    }

    /// The linear address of memory operand `op`.
    pub(crate) fn address(&self, op: u32) -> Result<u64, Error> {
        self.instruction
            .virtual_address(op, 0, |register, _, _| match register {
                segment if segment.is_segment_register() => Some(self.segment_base(segment)),
                register => self.regs.get(register),
            })
            .ok_or_else(|| self.unsupported())
    }

    /// The linear address of memory operand `op`, `distance` bytes further on; the sum wraps where the offset wraps.
    pub(crate) fn address_beyond(&self, op: u32, distance: u64) -> Result<u64, Error> {
        let base = self.segment_base(self.instruction.memory_segment());
        let offset = self.address(op)?.wrapping_sub(base).wrapping_add(distance);
        Ok(base.wrapping_add(if self.has_narrow_address() { offset & 0xffff_ffff } else { offset }))
    }

    /// Whether the memory operand's address is computed in 32 bits (prefix 67).
    fn has_narrow_address(&self) -> bool {
        match (self.instruction.memory_base(), self.instruction.memory_index()) {
            (Register::None, Register::None) => self.instruction.memory_displ_size() == 4,
            (Register::None, index) => index.size() == 4,
            (base, _) => base == Register::EIP || base.is_gpr32(),
        }
    }

    /// Fails unless `address` is a multiple of `alignment` (a power of two).
    pub(crate) fn demand_alignment(&self, address: u64, alignment: usize) -> Result<(), Error> {
        let alignment = alignment as u64;
        if address.is_multiple_of(alignment) { Ok(()) } else { Err(Error::Misaligned { address, alignment }) }
    }

    pub(crate) fn is_memory(&self, op: u32) -> bool {
        self.instruction.op_kind(op) == OpKind::Memory
    }

    /// Size in bytes of register or memory operand `op`.
    pub(crate) fn size(&self, op: u32) -> usize {
        match self.instruction.op_kind(op) {
            OpKind::Register => self.instruction.op_register(op).size(),
            _ => self.instruction.memory_size().size(),
        }
    }

    /// Width of operand 0, by which most integer instructions compute.
    pub(crate) fn width(&self) -> Result<Width, Error> {
        Width::of_bytes(self.size(0)).ok_or_else(|| self.unsupported())
    }

    /// The value of operand `op`: a general register or memory, zero-extended, or an immediate, sign-extended.
    pub(crate) fn operand(&mut self, op: u32) -> Result<u64, Error> {
        match self.instruction.op_kind(op) {
            OpKind::Register => self.regs.get(self.instruction.op_register(op)).ok_or_else(|| self.unsupported()),
            OpKind::Memory => {
                let address = self.address(op)?;
                self.load_sized(address, self.size(op))
            }
            _ => self.instruction.try_immediate(op).map_err(|_| self.unsupported()),
        }
    }

    /// Writes operand `op`, a general register or memory.
    pub(crate) fn set_operand(&mut self, op: u32, value: u64) -> Result<(), Error> {
        match self.instruction.op_kind(op) {
            OpKind::Register => {
                let register = self.instruction.op_register(op);
                self.regs.set(register, value).ok_or_else(|| self.unsupported())
            }
            OpKind::Memory => {
                let address = self.address(op)?;
                self.store_sized(address, self.size(op), value)
            }
            _ => Err(self.unsupported()),
        }
    }

    /// Takes over the flags of a result.
    pub(crate) fn set_flags_of(&mut self, computed: &Computed) {
        self.regs.set_flags(computed.affected, computed.flags);
    }
}
