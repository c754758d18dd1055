//! Arithmetic on vectors with a source in memory: the logic, comparisons, integer sums and shuffles into which a
//! compiler folds a load.
//!
//! Floating-point arithmetic is not here: it depends on MXCSR and raises exceptions, and no driver does it on a
//! register.

use iced_x86::Mnemonic;

use crate::Error;
use crate::machine::Machine;
use crate::registers::flags;
use crate::vector::{Bytes, Selection, element, set_element};

/// What an instruction does with one pair of elements: two values, zero-extended, and their size in bits.
pub(crate) type Elementwise = fn(u64, u64, u32) -> u64;

/// What an instruction does with one 16-byte lane of each source, and the immediate.
pub(crate) type Lanewise = fn(&[u8], &[u8], u8) -> [u8; 16];

/// The sources of an instruction: the destination counts as one if it is not VEX or EVEX.
struct Sources {
    first: Bytes,
    second: Bytes,
}

impl Machine<'_> {
    /// Fetches both sources, the second of which is operand `last`.
    fn sources(&mut self, last: u32, selection: Selection) -> Result<Sources, Error> {
        let first = self.register(last.saturating_sub(1))?;
        Ok(Sources { first: self.vector(first)?, second: self.vector_operand(last, selection)? })
    }

    /// PAND, PADDx, PMAXxx, ...: a function of each pair of elements.
    pub(crate) fn elementwise(&mut self, size: usize, f: Elementwise) -> Result<(), Error> {
        let register = self.register(0)?;
        let selection = self.selection(size, register.size())?;
        let old = self.vector(register)?;
        let sources = self.sources(self.instruction.op_count() - 1, selection)?;
        let mut value = [0; 64];
        for index in 0..selection.length / size {
            let (a, b) = (element(&sources.first, size, index), element(&sources.second, size, index));
            set_element(&mut value, size, index, f(a, b, 8 * size as u32));
        }
        self.set_selected(&old, selection, &value)
    }

    /// PCMPEQx and PCMPGTx: to a vector of all ones or zeros, or (EVEX) to a mask register.
    pub(crate) fn compare_elements(&mut self, size: usize, f: Elementwise) -> Result<(), Error> {
        if self.register(0)?.is_k() {
            return self.compare_to_mask(size, self.instruction.op_count() - 1, f);
        }
        self.elementwise(size, f)
    }

    /// VPCMPx and VPCMPUx: the immediate says which comparison.
    pub(crate) fn compare_by_immediate(&mut self, size: usize, signed: bool) -> Result<(), Error> {
        let f: Elementwise = match (self.operand(3)? & 7, signed) {
            (0, _) => equal,
            (1, true) => |a, b, bits| truth(sign_extend(a, bits) < sign_extend(b, bits)),
            (1, false) => |a, b, _| truth(a < b),
            (2, true) => |a, b, bits| truth(sign_extend(a, bits) <= sign_extend(b, bits)),
            (2, false) => |a, b, _| truth(a <= b),
            (3, _) => |_, _, _| 0,
            (4, _) => |a, b, _| truth(a != b),
            (5, true) => |a, b, bits| truth(sign_extend(a, bits) >= sign_extend(b, bits)),
            (5, false) => |a, b, _| truth(a >= b),
            (6, true) => greater,
            (6, false) => |a, b, _| truth(a > b),
            _ => |_, _, _| u64::MAX,
        };
        self.compare_to_mask(size, 2, f)
    }

    /// Writes a bit for each pair of elements; elements that the mask does not select give zero.
    pub(crate) fn compare_to_mask(&mut self, size: usize, last: u32, f: Elementwise) -> Result<(), Error> {
        let destination = self.register(0)?;
        if !destination.is_k() {
            return Err(self.unsupported());
        }
        let length = self.register(1)?.size();
        let selection = self.selection(size, length)?;
        let sources = self.sources(last, selection)?;
        let bits = (0..length / size).fold(0, |bits, index| {
            let (a, b) = (element(&sources.first, size, index), element(&sources.second, size, index));
            bits | u64::from(f(a, b, 8 * size as u32) != 0) << index
        });
        if self.vectors.set_mask(destination.number(), bits & selection.bits) {
            Ok(())
        } else {
            Err(Error::NoVectorState)
        }
    }

    /// PUNPCKxxx, PSHUFx, PALIGNR, ...: a function of each pair of 16-byte lanes.
    pub(crate) fn lanewise(&mut self, size: usize, has_first: bool, f: Lanewise) -> Result<(), Error> {
        let register = self.register(0)?;
        if !register.is_vector_register() {
            return Err(self.unsupported());
        }
        let length = register.size();
        let count = self.instruction.op_count();
        let has_immediate = self.instruction.try_immediate(count - 1).is_ok();
        let immediate = if has_immediate { self.operand(count - 1)? as u8 } else { 0 };
        let last = count - 1 - u32::from(has_immediate);
        let selection = self.selection(size, length)?;
        let old = self.vector(register)?;
        // A lane's elements come from anywhere in it, so memory is read whole whatever is selected of the result.
        let whole = Selection::all(size, length);
        let sources = if has_first {
            self.sources(last, whole)?
        } else {
            Sources { first: [0; 64], second: self.vector_operand(last, whole)? }
        };
        let mut value = [0; 64];
        for at in (0..length).step_by(16) {
            let lane = at..at + 16;
            let result = f(&sources.first[lane.clone()], &sources.second[lane.clone()], immediate);
            value[lane].copy_from_slice(&result);
        }
        self.set_selected(&old, selection, &value)
    }

    /// VPTERNLOGx: any function of three bits, given as its truth table.
    pub(crate) fn ternary_logic(&mut self, size: usize) -> Result<(), Error> {
        let register = self.register(0)?;
        let selection = self.selection(size, register.size())?;
        let old = self.vector(register)?;
        let table = self.operand(3)?;
        let sources = self.sources(2, selection)?;
        let mut value = [0; 64];
        for index in 0..64 {
            let (a, b, c) = (old[index], sources.first[index], sources.second[index]);
            value[index] = (0..8).fold(0, |byte, bit| {
                let row = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | c >> bit & 1;
                byte | ((table >> row & 1) as u8) << bit
            });
        }
        self.set_selected(&old, selection, &value)
    }

    /// PTEST: ZF if the sources have no bit in common, CF if the second has none that the first lacks.
    pub(crate) fn test_vector(&mut self) -> Result<(), Error> {
        let length = self.register(0)?.size();
        let sources = self.sources(1, Selection::all(8, length))?;
        let (mut common, mut lacking) = (0, 0);
        for (a, b) in sources.first.iter().zip(&sources.second).take(length) {
            common |= a & b;
            lacking |= !a & b;
        }
        let zero = if common == 0 { flags::ZF } else { 0 };
        let carry = if lacking == 0 { flags::CF } else { 0 };
        self.regs.set_flags(flags::ARITHMETIC, zero | carry);
        Ok(())
    }
}

fn sign_extend(value: u64, bits: u32) -> i64 {
    (value << (64 - bits)) as i64 >> (64 - bits)
}

/// The nearest value that a signed element of `bits` holds.
fn saturate(value: i64, bits: u32) -> u64 {
    let end = 1 << (bits - 1);
    value.clamp(-end, end - 1) as u64
}

fn truth(condition: bool) -> u64 {
    if condition { u64::MAX } else { 0 }
}

pub(crate) fn equal(a: u64, b: u64, _: u32) -> u64 {
    truth(a == b)
}

pub(crate) fn greater(a: u64, b: u64, bits: u32) -> u64 {
    truth(sign_extend(a, bits) > sign_extend(b, bits))
}

pub(crate) fn in_common(a: u64, b: u64, _: u32) -> u64 {
    truth(a & b != 0)
}

pub(crate) fn nothing_in_common(a: u64, b: u64, _: u32) -> u64 {
    truth(a & b == 0)
}

/// Element size and function of the instructions that work on pairs of elements and need no more said.
pub(crate) fn elementwise(mnemonic: Mnemonic) -> Option<(usize, Elementwise)> {
    use Mnemonic as M;
    let and: Elementwise = |a, b, _| a & b;
    let and_not: Elementwise = |a, b, _| !a & b;
    let or: Elementwise = |a, b, _| a | b;
    let xor: Elementwise = |a, b, _| a ^ b;
    let add: Elementwise = |a, b, _| a.wrapping_add(b);
    let sub: Elementwise = |a, b, _| a.wrapping_sub(b);
    // Only elements of at most 16 bits are added with saturation, so 64 bits hold every sum.
    let add_saturating: Elementwise = |a, b, bits| saturate(sign_extend(a, bits) + sign_extend(b, bits), bits);
    let sub_saturating: Elementwise = |a, b, bits| saturate(sign_extend(a, bits) - sign_extend(b, bits), bits);
    let add_saturating_unsigned: Elementwise = |a, b, bits| (a + b).min((1 << bits) - 1);
    let sub_saturating_unsigned: Elementwise = |a, b, _| a.saturating_sub(b);
    let multiply: Elementwise = |a, b, _| a.wrapping_mul(b);
    let min: Elementwise = |a, b, bits| if greater(a, b, bits) == 0 { a } else { b };
    let max: Elementwise = |a, b, bits| if greater(a, b, bits) == 0 { b } else { a };
    let min_unsigned: Elementwise = |a, b, _| a.min(b);
    let max_unsigned: Elementwise = |a, b, _| a.max(b);
    Some(match mnemonic {
        M::Pand | M::Andps | M::Vandps | M::Vpand | M::Vpandd => (4, and),
        M::Andpd | M::Vandpd | M::Vpandq => (8, and),
        M::Pandn | M::Andnps | M::Vandnps | M::Vpandn | M::Vpandnd => (4, and_not),
        M::Andnpd | M::Vandnpd | M::Vpandnq => (8, and_not),
        M::Por | M::Orps | M::Vorps | M::Vpor | M::Vpord => (4, or),
        M::Orpd | M::Vorpd | M::Vporq => (8, or),
        M::Pxor | M::Xorps | M::Vxorps | M::Vpxor | M::Vpxord => (4, xor),
        M::Xorpd | M::Vxorpd | M::Vpxorq => (8, xor),
        M::Paddb | M::Vpaddb => (1, add),
        M::Paddw | M::Vpaddw => (2, add),
        M::Paddd | M::Vpaddd => (4, add),
        M::Paddq | M::Vpaddq => (8, add),
        M::Psubb | M::Vpsubb => (1, sub),
        M::Psubw | M::Vpsubw => (2, sub),
        M::Psubd | M::Vpsubd => (4, sub),
        M::Psubq | M::Vpsubq => (8, sub),
        M::Paddsb | M::Vpaddsb => (1, add_saturating),
        M::Paddsw | M::Vpaddsw => (2, add_saturating),
        M::Paddusb | M::Vpaddusb => (1, add_saturating_unsigned),
        M::Paddusw | M::Vpaddusw => (2, add_saturating_unsigned),
        M::Psubsb | M::Vpsubsb => (1, sub_saturating),
        M::Psubsw | M::Vpsubsw => (2, sub_saturating),
        M::Psubusb | M::Vpsubusb => (1, sub_saturating_unsigned),
        M::Psubusw | M::Vpsubusw => (2, sub_saturating_unsigned),
        M::Pmullw | M::Vpmullw => (2, multiply),
        M::Pmulld | M::Vpmulld => (4, multiply),
        M::Vpmullq => (8, multiply),
        M::Pminsb | M::Vpminsb => (1, min),
        M::Pminsw | M::Vpminsw => (2, min),
        M::Pminsd | M::Vpminsd => (4, min),
        M::Vpminsq => (8, min),
        M::Pminub | M::Vpminub => (1, min_unsigned),
        M::Pminuw | M::Vpminuw => (2, min_unsigned),
        M::Pminud | M::Vpminud => (4, min_unsigned),
        M::Vpminuq => (8, min_unsigned),
        M::Pmaxsb | M::Vpmaxsb => (1, max),
        M::Pmaxsw | M::Vpmaxsw => (2, max),
        M::Pmaxsd | M::Vpmaxsd => (4, max),
        M::Vpmaxsq => (8, max),
        M::Pmaxub | M::Vpmaxub => (1, max_unsigned),
        M::Pmaxuw | M::Vpmaxuw => (2, max_unsigned),
        M::Pmaxud | M::Vpmaxud => (4, max_unsigned),
        M::Vpmaxuq => (8, max_unsigned),
        _ => return None,
    })
}

/// Interleaves the lower (or upper) halves of two lanes, element by element.
fn interleave(a: &[u8], b: &[u8], size: usize, upper: bool) -> [u8; 16] {
    let mut lane = [0; 16];
    let begin = if upper { 8 / size } else { 0 };
    for index in 0..8 / size {
        set_element(&mut lane, size, 2 * index, element(a, size, begin + index));
        set_element(&mut lane, size, 2 * index + 1, element(b, size, begin + index));
    }
    lane
}

/// Chooses each of four elements of `size` bytes, from `from` on, by two bits of the immediate.
fn choose(source: &[u8], size: usize, from: usize, immediate: u8) -> [u8; 16] {
    let mut lane = [0; 16];
    lane.copy_from_slice(source);
    for index in 0..4 {
        let chosen = from + usize::from(immediate >> (2 * index) & 3);
        set_element(&mut lane, size, from + index, element(source, size, chosen));
    }
    lane
}

fn join(low: &[u8], high: &[u8]) -> [u8; 16] {
    std::array::from_fn(|index| *low.get(index).unwrap_or(&high[index % 8]))
}

fn shuffle_bytes(a: &[u8], b: &[u8], _: u8) -> [u8; 16] {
    std::array::from_fn(|index| if b[index] & 0x80 != 0 { 0 } else { a[usize::from(b[index] & 15)] })
}

fn align(a: &[u8], b: &[u8], immediate: u8) -> [u8; 16] {
    std::array::from_fn(|index| {
        let from = index + usize::from(immediate);
        b.get(from).or_else(|| a.get(from.wrapping_sub(16))).copied().unwrap_or(0)
    })
}

/// Mask element, whether there is a first source, and function of the instructions that work lane by lane.
pub(crate) fn lanewise(mnemonic: Mnemonic) -> Option<(usize, bool, Lanewise)> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Punpcklbw | M::Vpunpcklbw => (1, true, |a, b, _| interleave(a, b, 1, false)),
        M::Punpcklwd | M::Vpunpcklwd => (2, true, |a, b, _| interleave(a, b, 2, false)),
        M::Punpckldq | M::Vpunpckldq | M::Unpcklps | M::Vunpcklps => (4, true, |a, b, _| interleave(a, b, 4, false)),
        M::Punpcklqdq | M::Vpunpcklqdq | M::Unpcklpd | M::Vunpcklpd => (8, true, |a, b, _| interleave(a, b, 8, false)),
        M::Punpckhbw | M::Vpunpckhbw => (1, true, |a, b, _| interleave(a, b, 1, true)),
        M::Punpckhwd | M::Vpunpckhwd => (2, true, |a, b, _| interleave(a, b, 2, true)),
        M::Punpckhdq | M::Vpunpckhdq | M::Unpckhps | M::Vunpckhps => (4, true, |a, b, _| interleave(a, b, 4, true)),
        M::Punpckhqdq | M::Vpunpckhqdq | M::Unpckhpd | M::Vunpckhpd => (8, true, |a, b, _| interleave(a, b, 8, true)),
        M::Pshufd | M::Vpshufd => (4, false, |_, b, immediate| choose(b, 4, 0, immediate)),
        M::Pshuflw | M::Vpshuflw => (2, false, |_, b, immediate| choose(b, 2, 0, immediate)),
        M::Pshufhw | M::Vpshufhw => (2, false, |_, b, immediate| choose(b, 2, 4, immediate)),
        M::Shufps | M::Vshufps => (4, true, |a, b, immediate| {
            let (low, high) = (choose(a, 4, 0, immediate), choose(b, 4, 0, immediate));
            join(&low[..8], &high[8..])
        }),
        M::Movshdup | M::Vmovshdup => (4, false, |_, b, _| choose(b, 4, 0, 0xf5)),
        M::Movsldup | M::Vmovsldup => (4, false, |_, b, _| choose(b, 4, 0, 0xa0)),
        // The form of 16 bytes reads only half of them, and is a broadcast.
        M::Vmovddup => (8, false, |_, b, _| choose(b, 4, 0, 0x44)),
        M::Pshufb | M::Vpshufb => (1, true, shuffle_bytes),
        M::Palignr | M::Vpalignr => (1, true, align),
        _ => return None,
    })
}
