//! What the general-purpose instructions do, except those that move RIP or RSP, and strings.
//!
//! Each method is one family; the table in `dispatch` gives it the arithmetic. All follow one order: loads, then
//! stores, then registers of the working copy, so that an instruction whose access fails has changed nothing.

use iced_x86::Mnemonic;

use crate::Error;
use crate::alu::{self, Computed, Width};
use crate::machine::Machine;
use crate::registers::{RAX, RBX, RCX, RDX, flags};

type Binary = fn(Width, u64, u64, bool) -> Computed;
type Unary = fn(Width, u64) -> Computed;
/// Quotient and remainder of (high, low, divisor).
type Division = fn(Width, u64, u64, u64) -> Option<(u64, u64)>;

impl Machine<'_> {
    /// MOV, MOVZX, MOVNTI and MOVDIRI.
    pub(crate) fn mov(&mut self) -> Result<(), Error> {
        let value = self.operand(1)?;
        self.set_operand(0, value)
    }

    /// MOVSX and MOVSXD.
    pub(crate) fn mov_sign_extended(&mut self) -> Result<(), Error> {
        let source = Width::of_bytes(self.size(1)).ok_or_else(|| self.unsupported())?;
        let value = self.operand(1)?;
        self.set_operand(0, source.sign_extend(value) as u64)
    }

    /// MOVBE: a move that swaps the bytes.
    pub(crate) fn mov_swapped(&mut self) -> Result<(), Error> {
        let width = self.width()?;
        let value = self.operand(1)?.swap_bytes() >> (64 - width.bits());
        self.set_operand(0, value)
    }

    /// The source of MOVDIR64B and ENQCMD, and the address in a register to which it goes.
    fn command(&mut self) -> Result<(u64, [u8; 64]), Error> {
        let destination = self.operand(0)?;
        self.demand_alignment(destination, 64)?;
        let mut bytes = [0; 64];
        let source = self.address(1)?;
        self.load(source, &mut bytes)?;
        Ok((destination, bytes))
    }

    /// MOVDIR64B: 64 bytes, in one store.
    pub(crate) fn mov_64_bytes(&mut self) -> Result<(), Error> {
        let (destination, bytes) = self.command()?;
        self.store(destination, &bytes)
    }

    /// ENQCMD: a command to a shared work queue; ZF says that the queue did not take it.
    pub(crate) fn enqueue(&mut self) -> Result<(), Error> {
        let (destination, mut bytes) = self.command()?;
        // The processor puts the PASID and the privilege there, whatever the source holds.
        bytes[..4].fill(0);
        let is_taken = self.submit(destination, &bytes)?;
        self.regs.set_flags(flags::ARITHMETIC, if is_taken { 0 } else { flags::ZF });
        Ok(())
    }

    /// XLATB: a byte from the table at RBX.
    pub(crate) fn translate(&mut self) -> Result<(), Error> {
        let value = self.operand(0)?;
        self.regs.set_sized(RAX, 1, value);
        Ok(())
    }

    /// destination = f(destination, source): ADD, AND, the shifts, ...
    pub(crate) fn binary(&mut self, f: Binary) -> Result<(), Error> {
        self.binary_from(f, false)
    }

    /// destination = f(destination, source, CF): ADC, SBB, RCL and RCR.
    pub(crate) fn binary_with_carry(&mut self, f: Binary) -> Result<(), Error> {
        self.binary_from(f, self.regs.flag(flags::CF))
    }

    fn binary_from(&mut self, f: Binary, carry: bool) -> Result<(), Error> {
        let width = self.width()?;
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        let computed = f(width, a, b, carry);
        self.set_operand(0, computed.value)?;
        self.set_flags_of(&computed);
        Ok(())
    }

    /// CMP and TEST: only the flags of f(first, second).
    pub(crate) fn compare(&mut self, f: Binary) -> Result<(), Error> {
        let width = self.width()?;
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        let computed = f(width, a, b, false);
        self.set_flags_of(&computed);
        Ok(())
    }

    /// INC, DEC, NEG and NOT.
    pub(crate) fn unary(&mut self, f: Unary) -> Result<(), Error> {
        let width = self.width()?;
        let a = self.operand(0)?;
        let computed = f(width, a);
        self.set_operand(0, computed.value)?;
        self.set_flags_of(&computed);
        Ok(())
    }

    /// SHLD and SHRD.
    pub(crate) fn double_shift(&mut self, f: fn(Width, u64, u64, u64) -> Computed) -> Result<(), Error> {
        let width = self.width()?;
        let (a, b, count) = (self.operand(0)?, self.operand(1)?, self.operand(2)?);
        let computed = f(width, a, b, count);
        self.set_operand(0, computed.value)?;
        self.set_flags_of(&computed);
        Ok(())
    }

    /// XCHG.
    pub(crate) fn exchange(&mut self) -> Result<(), Error> {
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        // Either operand may be the one in memory; if it is the second, its address must not see the first change.
        if self.is_memory(1) {
            self.set_operand(1, a)?;
            self.set_operand(0, b)
        } else {
            self.set_operand(0, b)?;
            self.set_operand(1, a)
        }
    }

    /// XADD.
    pub(crate) fn exchange_add(&mut self) -> Result<(), Error> {
        let width = self.width()?;
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        let sum = alu::add(width, a, b, false);
        if self.is_memory(0) {
            self.set_operand(0, sum.value)?;
            self.set_operand(1, a)?;
        } else {
            // With one register as both operands the sum stands.
            self.set_operand(1, a)?;
            self.set_operand(0, sum.value)?;
        }
        self.set_flags_of(&sum);
        Ok(())
    }

    /// CMPXCHG. The destination is written in either case, as the processor always ends the cycle with a store.
    pub(crate) fn compare_exchange(&mut self) -> Result<(), Error> {
        let width = self.width()?;
        let (current, new) = (self.operand(0)?, self.operand(1)?);
        let difference = alu::sub(width, self.regs.gpr[RAX], current, false);
        if difference.value == 0 {
            self.set_operand(0, new)?;
        } else {
            self.set_operand(0, current)?;
            self.regs.set_sized(RAX, width.bytes(), current);
        }
        self.set_flags_of(&difference);
        Ok(())
    }

    /// CMPXCHG8B (`half` = 4) and CMPXCHG16B (`half` = 8): one access of two halves.
    pub(crate) fn compare_exchange_pair(&mut self, half: usize) -> Result<(), Error> {
        let address = self.address(0)?;
        if half == 8 {
            self.demand_alignment(address, 16)?;
        }
        let join = |low: u64, high: u64| match half {
            4 => (low & 0xffff_ffff | high << 32).into(),
            _ => u128::from(low) | u128::from(high) << 64,
        };
        let mut bytes = [0; 16];
        self.load(address, &mut bytes[..2 * half])?;
        let current = u128::from_le_bytes(bytes);
        let gpr = self.regs.gpr;
        let equal = current == join(gpr[RAX], gpr[RDX]);
        let new = if equal { join(gpr[RBX], gpr[RCX]) } else { current };
        self.store(address, &new.to_le_bytes()[..2 * half])?;
        if !equal {
            self.regs.set_sized(RAX, half, current as u64);
            self.regs.set_sized(RDX, half, (current >> (8 * half)) as u64);
        }
        self.regs.set_flags(flags::ZF, if equal { flags::ZF } else { 0 });
        Ok(())
    }

    /// BT, BTS, BTR and BTC. A bit offset in a register is signed and reaches beyond the operand in memory; an
    /// immediate does not.
    pub(crate) fn bit(&mut self, change: Option<fn(u64, u64) -> u64>) -> Result<(), Error> {
        let width = self.width()?;
        let offset = self.operand(1)?;
        let bit = 1 << (offset & u64::from(width.bits() - 1));
        let reaches = self.is_memory(0) && self.instruction.op_kind(1) == iced_x86::OpKind::Register;
        let address = if reaches {
            let units = width.sign_extend(offset) >> width.bits().trailing_zeros();
            Some(self.address_beyond(0, units.wrapping_mul(width.bytes() as i64) as u64)?)
        } else {
            None
        };
        let value = match address {
            Some(address) => self.load_sized(address, width.bytes())?,
            None => self.operand(0)?,
        };
        if let Some(change) = change {
            let changed = change(value, bit);
            match address {
                Some(address) => self.store_sized(address, width.bytes(), changed)?,
                None => self.set_operand(0, changed)?,
            }
        }
        self.regs.set_flags(flags::CF, if value & bit != 0 { flags::CF } else { 0 });
        Ok(())
    }

    /// SETcc.
    pub(crate) fn set_if(&mut self) -> Result<(), Error> {
        let holds = self.regs.holds(self.instruction.condition_code());
        self.set_operand(0, holds.into())
    }

    /// CMOVcc: the load happens, and a 32-bit destination is cut, whether the condition holds or not.
    pub(crate) fn mov_if(&mut self) -> Result<(), Error> {
        let (old, new) = (self.operand(0)?, self.operand(1)?);
        let holds = self.regs.holds(self.instruction.condition_code());
        self.set_operand(0, if holds { new } else { old })
    }

    /// MUL and the one-operand IMUL: RDX:RAX (AX for bytes) = RAX * operand.
    pub(crate) fn multiply_wide(&mut self, f: fn(Width, u64, u64) -> (u64, u64, bool)) -> Result<(), Error> {
        let width = self.width()?;
        let factor = self.operand(0)?;
        let (low, high, overflow) = f(width, self.regs.gpr[RAX], factor);
        self.set_pair(width, low, high);
        self.set_product_flags(overflow);
        Ok(())
    }

    /// IMUL with two or three operands.
    pub(crate) fn multiply(&mut self) -> Result<(), Error> {
        let width = self.width()?;
        let (a, b) = match self.instruction.op_count() {
            1 => return self.multiply_wide(alu::multiply_signed),
            2 => (self.operand(0)?, self.operand(1)?),
            _ => (self.operand(1)?, self.operand(2)?),
        };
        let (low, _, overflow) = alu::multiply_signed(width, a, b);
        self.set_operand(0, low)?;
        self.set_product_flags(overflow);
        Ok(())
    }

    /// MULX: an unsigned product by RDX into two registers; no flags.
    pub(crate) fn multiply_without_flags(&mut self) -> Result<(), Error> {
        let width = self.width()?;
        let factor = self.operand(2)?;
        let (low, high, _) = alu::multiply(width, self.regs.gpr[RDX], factor);
        self.set_operand(1, low)?;
        self.set_operand(0, high)
    }

    fn set_product_flags(&mut self, overflow: bool) {
        self.regs.set_flags(flags::CF | flags::OF, if overflow { flags::CF | flags::OF } else { 0 });
    }

    /// DIV and IDIV: RAX, RDX (AL, AH for bytes) = quotient, remainder of RDX:RAX (AX) by the operand.
    pub(crate) fn divide(&mut self, f: Division) -> Result<(), Error> {
        let width = self.width()?;
        let divisor = self.operand(0)?;
        let low = self.regs.gpr[RAX];
        let high = if width.bytes() == 1 { low >> 8 } else { self.regs.gpr[RDX] };
        let (quotient, remainder) = f(width, high, low, divisor).ok_or(Error::Divide)?;
        self.set_pair(width, quotient, remainder);
        Ok(())
    }

    /// Writes RDX:RAX of the width; for bytes that pair is AH:AL.
    fn set_pair(&mut self, width: Width, low: u64, high: u64) {
        match width.bytes() {
            1 => self.regs.set_sized(RAX, 2, low | high << 8),
            size => {
                self.regs.set_sized(RAX, size, low);
                self.regs.set_sized(RDX, size, high);
            }
        }
    }

    /// BSF and BSR: a source of zero leaves the destination alone.
    pub(crate) fn scan(&mut self, lowest: bool) -> Result<(), Error> {
        let source = self.operand(1)?;
        if source != 0 {
            let index = if lowest { source.trailing_zeros() } else { source.ilog2() };
            self.set_operand(0, index.into())?;
        }
        self.regs.set_flags(flags::ZF, if source == 0 { flags::ZF } else { 0 });
        Ok(())
    }

    /// TZCNT and LZCNT: a source of zero counts the width.
    pub(crate) fn count_zeros(&mut self, lowest: bool) -> Result<(), Error> {
        let width = self.width()?;
        let source = self.operand(1)?;
        let count = match (source, lowest) {
            (0, _) => width.bits(),
            (_, true) => source.trailing_zeros(),
            (_, false) => width.bits() - 1 - source.ilog2(),
        };
        self.set_operand(0, count.into())?;
        let zero = if count == 0 { flags::ZF } else { 0 };
        let carry = if source == 0 { flags::CF } else { 0 };
        self.regs.set_flags(flags::ZF | flags::CF, zero | carry);
        Ok(())
    }

    /// POPCNT.
    pub(crate) fn count_ones(&mut self) -> Result<(), Error> {
        let source = self.operand(1)?;
        self.set_operand(0, source.count_ones().into())?;
        self.regs.set_flags(flags::ARITHMETIC, if source == 0 { flags::ZF } else { 0 });
        Ok(())
    }

    /// ANDN: destination = !first & second.
    pub(crate) fn and_not(&mut self) -> Result<(), Error> {
        let width = self.width()?;
        let (a, b) = (self.operand(1)?, self.operand(2)?);
        let computed = alu::and(width, !a, b, false);
        self.set_operand(0, computed.value)?;
        self.set_flags_of(&computed);
        Ok(())
    }

    /// BLSI, BLSR and BLSMSK, which work on the lowest bit that is set.
    pub(crate) fn lowest_bit(&mut self) -> Result<(), Error> {
        let width = self.width()?;
        let source = self.operand(1)?;
        let less = source.wrapping_sub(1);
        let (value, carry) = match self.instruction.mnemonic() {
            Mnemonic::Blsi => (source & source.wrapping_neg(), source != 0),
            Mnemonic::Blsr => (source & less, source == 0),
            _ => (source ^ less, source == 0),
        };
        let computed = alu::with_carry(width, value, carry);
        self.set_operand(0, computed.value)?;
        self.set_flags_of(&computed);
        Ok(())
    }

    /// BZHI: clears the bits from an index on.
    pub(crate) fn zero_high_bits(&mut self) -> Result<(), Error> {
        let width = self.width()?;
        let (source, index) = (self.operand(1)?, self.operand(2)? & 0xff);
        let beyond = index >= width.bits().into();
        let value = if beyond { source } else { source & !(u64::MAX << index) };
        let computed = alu::with_carry(width, value, beyond);
        self.set_operand(0, computed.value)?;
        self.set_flags_of(&computed);
        Ok(())
    }

    /// BEXTR: the field of the source that a register describes (start in its first byte, length in its second).
    pub(crate) fn extract_field(&mut self) -> Result<(), Error> {
        let width = self.width()?;
        let (source, field) = (self.operand(1)?, self.operand(2)?);
        let (start, length) = (field as u8, (field >> 8) as u8);
        let shifted = source.checked_shr(start.into()).unwrap_or(0);
        let mask = 1u64.checked_shl(length.into()).map_or(u64::MAX, |end| end.wrapping_sub(1));
        let computed = alu::with_carry(width, shifted & mask, false);
        self.set_operand(0, computed.value)?;
        self.set_flags_of(&computed);
        Ok(())
    }

    /// RORX, SARX, SHLX and SHRX: destination = f(source, count), no flags.
    pub(crate) fn shift_without_flags(&mut self, f: Binary) -> Result<(), Error> {
        let width = self.width()?;
        let (source, count) = (self.operand(1)?, self.operand(2)?);
        self.set_operand(0, f(width, source, count, false).value)
    }

    /// PDEP and PEXT: spreads the low bits of the source over the mask's bits, or gathers them.
    pub(crate) fn permute_bits(&mut self, deposit: bool) -> Result<(), Error> {
        let (source, mut mask) = (self.operand(1)?, self.operand(2)?);
        let mut value = 0;
        for low in 0..mask.count_ones() {
            let bit = mask.trailing_zeros();
            let (from, to) = if deposit { (low, bit) } else { (bit, low) };
            value |= (source >> from & 1) << to;
            mask &= mask - 1;
        }
        self.set_operand(0, value)
    }

    /// ADCX and ADOX: an addition whose carry comes from and goes to `flag`, and no other flag changes.
    pub(crate) fn add_with(&mut self, flag: u64) -> Result<(), Error> {
        let width = self.width()?;
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        let sum = alu::add(width, a, b, self.regs.flag(flag));
        self.set_operand(0, sum.value)?;
        self.regs.set_flags(flag, if sum.flags & flags::CF != 0 { flag } else { 0 });
        Ok(())
    }

    /// CRC32: the CRC-32C of the source, continued from the destination.
    pub(crate) fn checksum(&mut self) -> Result<(), Error> {
        const POLYNOMIAL_REVERSED: u64 = 0x82f6_3b78;
        let bits = 8 * self.size(1);
        let (mut crc, source) = (self.operand(0)? & 0xffff_ffff, self.operand(1)?);
        for bit in 0..bits {
            let feedback = (crc ^ source >> bit) & 1;
            crc = crc >> 1 ^ if feedback != 0 { POLYNOMIAL_REVERSED } else { 0 };
        }
        self.set_operand(0, crc)
    }
}
