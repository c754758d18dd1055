//! Instructions that move RIP or RSP: jumps, calls, returns, and the stack.
//!
//! Either the operand or the stack itself may lie on a device register.

use iced_x86::{Code, OpKind};

use crate::Error;
use crate::machine::Machine;
use crate::registers::{RBP, RSP};

impl Machine<'_> {
    /// Stores `value` below the stack pointer and moves it there.
    fn push_value(&mut self, size: usize, value: u64) -> Result<(), Error> {
        let top = self.regs.gpr[RSP].wrapping_sub(size as u64);
        self.store_sized(top, size, value)?;
        self.regs.gpr[RSP] = top;
        Ok(())
    }

    fn pop_value(&mut self, size: usize) -> Result<u64, Error> {
        let top = self.regs.gpr[RSP];
        let value = self.load_sized(top, size)?;
        self.regs.gpr[RSP] = top.wrapping_add(size as u64);
        Ok(value)
    }

    /// How far a push or pop moves the stack pointer.
    fn stack_size(&self) -> usize {
        self.instruction.stack_pointer_increment().unsigned_abs() as usize
    }

    /// PUSH. An address that uses RSP, and RSP itself, are taken from before it.
    pub(crate) fn push(&mut self) -> Result<(), Error> {
        let value = self.operand(0)?;
        self.push_value(self.stack_size(), value)
    }

    /// POP. An address that uses RSP is computed after it; POP RSP ends with the value loaded.
    pub(crate) fn pop(&mut self) -> Result<(), Error> {
        let value = self.pop_value(self.stack_size())?;
        self.set_operand(0, value)
    }

    /// LEAVE: RSP = RBP, then POP RBP.
    pub(crate) fn leave(&mut self) -> Result<(), Error> {
        let size = if self.instruction.code() == Code::Leavew { 2 } else { 8 };
        let frame = self.regs.gpr[RBP];
        let value = self.load_sized(frame, size)?;
        self.regs.gpr[RSP] = frame.wrapping_add(size as u64);
        self.regs.set_sized(RBP, size, value);
        Ok(())
    }

    /// Where a near JMP or CALL goes.
    fn target(&mut self) -> Result<u64, Error> {
        match self.instruction.op_kind(0) {
            OpKind::NearBranch64 => Ok(self.instruction.near_branch64()),
            OpKind::Register | OpKind::Memory if self.size(0) == 8 => self.operand(0),
            // A far pointer, which needs the segment tables, or a target of 16 bits.
            _ => Err(self.unsupported()),
        }
    }

    /// JMP.
    pub(crate) fn jump_near(&mut self) -> Result<(), Error> {
        let target = self.target()?;
        self.jump(target);
        Ok(())
    }

    /// CALL.
    pub(crate) fn call_near(&mut self) -> Result<(), Error> {
        let target = self.target()?;
        self.push_value(8, self.instruction.next_ip())?;
        self.jump(target);
        Ok(())
    }

    /// RET, with or without a number of bytes to drop.
    pub(crate) fn return_near(&mut self) -> Result<(), Error> {
        let dropped = match self.instruction.code() {
            Code::Retnq => 0,
            Code::Retnq_imm16 => self.operand(0)?,
            _ => return Err(self.unsupported()),
        };
        let target = self.pop_value(8)?;
        self.regs.gpr[RSP] = self.regs.gpr[RSP].wrapping_add(dropped);
        self.jump(target);
        Ok(())
    }
}
