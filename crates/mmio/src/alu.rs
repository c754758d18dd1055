//! Integer arithmetic of 8 to 64 bits, and the flags that it sets.
//!
//! Pure functions: operands in, [`Computed`] out. Operands are taken modulo the width. Where the manual leaves a flag
//! undefined, it is cleared or computed as for a count of one, as processors do.

use crate::registers::flags::{AF, ARITHMETIC, CF, OF, PF, SF, ZF};

/// The width of an operation in bits: 8, 16, 32 or 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Width(u32);

impl Width {
    /// `None` unless `bytes` is 1, 2, 4 or 8.
    pub(crate) fn of_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self(8)),
            2 => Some(Self(16)),
            4 => Some(Self(32)),
            8 => Some(Self(64)),
            _ => None,
        }
    }

    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    pub(crate) fn bytes(self) -> usize {
        self.0 as usize / 8
    }

    pub(crate) fn mask(self) -> u64 {
        u64::MAX >> (64 - self.0)
    }

    /// The highest bit.
    pub(crate) fn sign(self) -> u64 {
        1 << (self.0 - 1)
    }

    pub(crate) fn sign_extend(self, value: u64) -> i64 {
        (value << (64 - self.0)) as i64 >> (64 - self.0)
    }

    /// What the processor makes of a shift count.
    pub(crate) fn count(self, count: u64) -> u32 {
        (count & if self.0 == 64 { 63 } else { 31 }) as u32
    }
}

/// A result, and the flags among `affected` that it sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Computed {
    pub(crate) value: u64,
    pub(crate) affected: u64,
    pub(crate) flags: u64,
}

fn when(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// ZF, SF and PF of a result.
fn result_flags(width: Width, value: u64) -> u64 {
    when(value & width.mask() == 0, ZF)
        | when(value & width.sign() != 0, SF)
        | when((value as u8).count_ones().is_multiple_of(2), PF)
}

/// a + b + carry.
pub(crate) fn add(width: Width, a: u64, b: u64, carry: bool) -> Computed {
    let (a, b) = (a & width.mask(), b & width.mask());
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let value = wide as u64 & width.mask();
    let flags = result_flags(width, value)
        | when(wide >> width.bits() != 0, CF)
        | (a ^ b ^ value) & AF
        | when((a ^ value) & (b ^ value) & width.sign() != 0, OF);
    Computed { value, affected: ARITHMETIC, flags }
}

/// a - b - borrow.
pub(crate) fn sub(width: Width, a: u64, b: u64, borrow: bool) -> Computed {
    let (a, b) = (a & width.mask(), b & width.mask());
    let value = a.wrapping_sub(b).wrapping_sub(borrow.into()) & width.mask();
    let flags = result_flags(width, value)
        | when(u128::from(a) < u128::from(b) + u128::from(borrow), CF)
        | (a ^ b ^ value) & AF
        | when((a ^ b) & (a ^ value) & width.sign() != 0, OF);
    Computed { value, affected: ARITHMETIC, flags }
}

fn logic(width: Width, value: u64) -> Computed {
    let value = value & width.mask();
    Computed { value, affected: ARITHMETIC, flags: result_flags(width, value) }
}

pub(crate) fn and(width: Width, a: u64, b: u64, _: bool) -> Computed {
    logic(width, a & b)
}

pub(crate) fn or(width: Width, a: u64, b: u64, _: bool) -> Computed {
    logic(width, a | b)
}

pub(crate) fn xor(width: Width, a: u64, b: u64, _: bool) -> Computed {
    logic(width, a ^ b)
}

/// a + 1; unlike ADD it keeps CF.
pub(crate) fn inc(width: Width, a: u64) -> Computed {
    let sum = add(width, a, 1, false);
    Computed { affected: ARITHMETIC & !CF, ..sum }
}

/// a - 1; unlike SUB it keeps CF.
pub(crate) fn dec(width: Width, a: u64) -> Computed {
    let difference = sub(width, a, 1, false);
    Computed { affected: ARITHMETIC & !CF, ..difference }
}

pub(crate) fn neg(width: Width, a: u64) -> Computed {
    sub(width, 0, a, false)
}

/// NOT changes no flag.
pub(crate) fn not(width: Width, a: u64) -> Computed {
    Computed { value: !a & width.mask(), affected: 0, flags: 0 }
}

/// A shift or rotation by no bits: the value and all flags stay.
fn untouched(width: Width, a: u64) -> Computed {
    Computed { value: a & width.mask(), affected: 0, flags: 0 }
}

pub(crate) fn shl(width: Width, a: u64, count: u64, _: bool) -> Computed {
    let count = width.count(count);
    if count == 0 {
        return untouched(width, a);
    }
    let wide = u128::from(a & width.mask()) << count;
    let value = wide as u64 & width.mask();
    let carry = wide >> width.bits() & 1 != 0;
    let overflow = (value & width.sign() != 0) != carry;
    Computed { value, affected: ARITHMETIC, flags: result_flags(width, value) | when(carry, CF) | when(overflow, OF) }
}

pub(crate) fn shr(width: Width, a: u64, count: u64, _: bool) -> Computed {
    let count = width.count(count);
    if count == 0 {
        return untouched(width, a);
    }
    let a = a & width.mask();
    let value = a >> count;
    let carry = a >> (count - 1) & 1 != 0;
    Computed {
        value,
        affected: ARITHMETIC,
        flags: result_flags(width, value) | when(carry, CF) | when(a & width.sign() != 0, OF),
    }
}

pub(crate) fn sar(width: Width, a: u64, count: u64, _: bool) -> Computed {
    let count = width.count(count);
    if count == 0 {
        return untouched(width, a);
    }
    let signed = width.sign_extend(a);
    let value = (signed >> count) as u64 & width.mask();
    let carry = signed >> (count - 1) & 1 != 0;
    Computed { value, affected: ARITHMETIC, flags: result_flags(width, value) | when(carry, CF) }
}

pub(crate) fn rol(width: Width, a: u64, count: u64, _: bool) -> Computed {
    let count = width.count(count);
    if count == 0 {
        return untouched(width, a);
    }
    let value = rotate_left(width.bits(), (a & width.mask()).into(), count) as u64;
    let carry = value & 1 != 0;
    let overflow = (value & width.sign() != 0) != carry;
    Computed { value, affected: CF | OF, flags: when(carry, CF) | when(overflow, OF) }
}

pub(crate) fn ror(width: Width, a: u64, count: u64, _: bool) -> Computed {
    let count = width.count(count);
    if count == 0 {
        return untouched(width, a);
    }
    let bits = width.bits();
    let value = rotate_left(bits, (a & width.mask()).into(), bits - count % bits) as u64;
    let carry = value & width.sign() != 0;
    let overflow = carry != (value & width.sign() >> 1 != 0);
    Computed { value, affected: CF | OF, flags: when(carry, CF) | when(overflow, OF) }
}

/// Rotates the carry flag and the operand as one number.
pub(crate) fn rcl(width: Width, a: u64, count: u64, carry: bool) -> Computed {
    let bits = width.bits();
    let count = width.count(count) % (bits + 1);
    if count == 0 {
        return untouched(width, a);
    }
    let wide = rotate_left(bits + 1, u128::from(a & width.mask()) | u128::from(carry) << bits, count);
    let value = wide as u64 & width.mask();
    let carry = wide >> bits & 1 != 0;
    let overflow = (value & width.sign() != 0) != carry;
    Computed { value, affected: CF | OF, flags: when(carry, CF) | when(overflow, OF) }
}

/// Rotates the carry flag and the operand as one number.
pub(crate) fn rcr(width: Width, a: u64, count: u64, carry: bool) -> Computed {
    let bits = width.bits();
    let count = width.count(count) % (bits + 1);
    if count == 0 {
        return untouched(width, a);
    }
    let wide = u128::from(a & width.mask()) | u128::from(carry) << bits;
    let wide = rotate_left(bits + 1, wide, bits + 1 - count);
    let value = wide as u64 & width.mask();
    let overflow = (value & width.sign() != 0) != (value & width.sign() >> 1 != 0);
    Computed { value, affected: CF | OF, flags: when(wide >> bits & 1 != 0, CF) | when(overflow, OF) }
}

/// Rotates a number of `bits` bits (at most 65), whose other bits are zero.
fn rotate_left(bits: u32, value: u128, count: u32) -> u128 {
    let count = count % bits;
    (value << count | value >> (bits - count)) & (u128::MAX >> (128 - bits))
}

/// SHLD: shifts `a` left, filling from the top of `b`.
pub(crate) fn shld(width: Width, a: u64, b: u64, count: u64) -> Computed {
    let count = width.count(count);
    if count == 0 {
        return untouched(width, a);
    }
    let bits = width.bits();
    let wide = u128::from(a & width.mask()) << bits | u128::from(b & width.mask());
    let value = (wide << count >> bits) as u64 & width.mask();
    let carry = wide >> (2 * bits - count) & 1 != 0;
    double_shift_flags(width, a, value, carry)
}

/// SHRD: shifts `a` right, filling from the bottom of `b`.
pub(crate) fn shrd(width: Width, a: u64, b: u64, count: u64) -> Computed {
    let count = width.count(count);
    if count == 0 {
        return untouched(width, a);
    }
    let wide = u128::from(b & width.mask()) << width.bits() | u128::from(a & width.mask());
    let value = (wide >> count) as u64 & width.mask();
    let carry = wide >> (count - 1) & 1 != 0;
    double_shift_flags(width, a, value, carry)
}

fn double_shift_flags(width: Width, before: u64, value: u64, carry: bool) -> Computed {
    let overflow = (before ^ value) & width.sign() != 0;
    Computed { value, affected: ARITHMETIC, flags: result_flags(width, value) | when(carry, CF) | when(overflow, OF) }
}

/// A result of a bit-manipulation instruction, whose carry says something of its own.
pub(crate) fn with_carry(width: Width, value: u64, carry: bool) -> Computed {
    let logic = logic(width, value);
    Computed { flags: logic.flags | when(carry, CF), ..logic }
}

/// The low and the high half of an unsigned product, and whether the high half matters.
pub(crate) fn multiply(width: Width, a: u64, b: u64) -> (u64, u64, bool) {
    let product = u128::from(a & width.mask()) * u128::from(b & width.mask());
    let (low, high) = (product as u64 & width.mask(), (product >> width.bits()) as u64 & width.mask());
    (low, high, high != 0)
}

/// The low and the high half of a signed product, and whether the low half alone is not the product.
pub(crate) fn multiply_signed(width: Width, a: u64, b: u64) -> (u64, u64, bool) {
    let product = i128::from(width.sign_extend(a)) * i128::from(width.sign_extend(b));
    let (low, high) = (product as u64 & width.mask(), (product >> width.bits()) as u64 & width.mask());
    (low, high, i128::from(width.sign_extend(low)) != product)
}

/// Quotient and remainder of `high:low` by `divisor`; `None` is the processor's #DE.
pub(crate) fn divide(width: Width, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let dividend = u128::from(high & width.mask()) << width.bits() | u128::from(low & width.mask());
    let divisor = u128::from(divisor & width.mask());
    let quotient = dividend.checked_div(divisor)?;
    (quotient <= width.mask().into()).then(|| (quotient as u64, (dividend % divisor) as u64))
}

/// As [`divide`], signed; the remainder has the dividend's sign.
pub(crate) fn divide_signed(width: Width, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let unsigned = u128::from(high & width.mask()) << width.bits() | u128::from(low & width.mask());
    let unused = 128 - 2 * width.bits();
    let dividend = (unsigned << unused) as i128 >> unused;
    let divisor = i128::from(width.sign_extend(divisor));
    let quotient = dividend.checked_div(divisor)?;
    let low = quotient as u64 & width.mask();
    (i128::from(width.sign_extend(low)) == quotient).then(|| (low, (dividend % divisor) as u64 & width.mask()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTE: Width = Width(8);

    #[test]
    fn add_sets_carry_and_overflow_apart() {
        assert_eq!(add(BYTE, 0xff, 1, false).flags, CF | ZF | AF | PF);
        assert_eq!(add(BYTE, 0x7f, 0, true).flags, OF | SF | AF);
    }

    #[test]
    fn a_shift_by_a_multiple_of_32_changes_nothing() {
        assert_eq!(shl(BYTE, 0x81, 32, false), untouched(BYTE, 0x81));
    }

    #[test]
    fn dividing_the_least_number_by_minus_one_is_an_error() {
        assert_eq!(divide_signed(Width(64), 1 << 63, 0, u64::MAX), None);
        assert_eq!(divide_signed(BYTE, 0xff, 0x80, 0xff), None);
        assert_eq!(divide_signed(BYTE, 0xff, 0x81, 0xff), Some((0x7f, 0)));
    }
}
