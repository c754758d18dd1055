//! String instructions, with and without a repeat prefix.
//!
//! A repeated one is interruptible: after each iteration RSI, RDI, RCX and the flags say exactly where it stands, and
//! RIP stays at it until the last. That serves three ends here: a long copy is cut into calls of [`STEP_BYTES`], an
//! access that fails after others succeeded is reported by the next call, and either way the thread, when it is let
//! run, goes on by itself (SDM volume 2, REP).

use iced_x86::OpKind;

use crate::Error;
use crate::alu::{self, Width};
use crate::machine::Machine;
use crate::registers::{RAX, RCX, RDI, RSI, flags};

/// How much a repeated instruction does in one call.
const STEP_BYTES: usize = 4096;

/// What one iteration does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Memory at RSI to memory at RDI.
    Move,
    /// Memory at RSI compared with memory at RDI.
    Compare,
    /// RAX to memory at RDI.
    Store,
    /// Memory at RSI to RAX.
    Load,
    /// RAX compared with memory at RDI.
    Scan,
}

impl Operation {
    fn uses_source(self) -> bool {
        matches!(self, Self::Move | Self::Compare | Self::Load)
    }

    fn uses_destination(self) -> bool {
        self != Self::Load
    }

    /// Whether the repeat prefix also looks at ZF.
    fn compares(self) -> bool {
        matches!(self, Self::Compare | Self::Scan)
    }
}

/// The part of RSI, RDI and RCX that counts: all of it, or with prefix 67 the lower half.
#[derive(Clone, Copy)]
struct AddressSize(usize);

impl AddressSize {
    fn mask(self) -> u64 {
        if self.0 == 4 { 0xffff_ffff } else { u64::MAX }
    }
}

impl Machine<'_> {
    /// MOVS, CMPS, STOS, LODS and SCAS of any size.
    pub(crate) fn string(&mut self, operation: Operation) -> Result<(), Error> {
        let width = Width::of_bytes(self.instruction.memory_size().size()).ok_or_else(|| self.unsupported())?;
        let address_size = match (0..self.instruction.op_count()).any(|op| {
            matches!(self.instruction.op_kind(op), OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI)
        }) {
            true => AddressSize(4),
            false => AddressSize(8),
        };
        if !self.instruction.has_rep_prefix() && !self.instruction.has_repne_prefix() {
            return self.iterate(operation, width, address_size);
        }
        for done in 0..STEP_BYTES / width.bytes() {
            let count = self.regs.gpr[RCX] & address_size.mask();
            if count == 0 {
                return Ok(());
            }
            match self.iterate(operation, width, address_size) {
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
                Ok(()) => self.regs.set_sized(RCX, address_size.0, count - 1),
            }
            let ends = operation.compares() && self.regs.flag(flags::ZF) == self.instruction.has_repne_prefix();
            if ends || count == 1 {
                return Ok(());
            }
        }
        self.stay();
        Ok(())
    }

    fn iterate(&mut self, operation: Operation, width: Width, address_size: AddressSize) -> Result<(), Error> {
        let size = width.bytes();
        let source =
            self.segment_base(self.instruction.memory_segment()).wrapping_add(self.regs.gpr[RSI] & address_size.mask());
        let destination = self.regs.gpr[RDI] & address_size.mask();
        let accumulator = self.regs.gpr[RAX];
        match operation {
            Operation::Move => {
                let value = self.load_sized(source, size)?;
                self.store_sized(destination, size, value)?;
            }
            Operation::Compare => {
                let first = self.load_sized(source, size)?;
                let second = self.load_sized(destination, size)?;
                self.set_flags_of(&alu::sub(width, first, second, false));
            }
            Operation::Store => self.store_sized(destination, size, accumulator)?,
            Operation::Load => {
                let value = self.load_sized(source, size)?;
                self.regs.set_sized(RAX, size, value);
            }
            Operation::Scan => {
                let value = self.load_sized(destination, size)?;
                self.set_flags_of(&alu::sub(width, accumulator, value, false));
            }
        }
        let stride = if self.regs.flag(flags::DF) { (size as u64).wrapping_neg() } else { size as u64 };
        for (used, index) in [(operation.uses_source(), RSI), (operation.uses_destination(), RDI)] {
            if used {
                let moved = self.regs.gpr[index].wrapping_add(stride);
                self.regs.set_sized(index, address_size.0, moved);
            }
        }
        Ok(())
    }
}
