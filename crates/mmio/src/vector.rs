//! Vector operands: whole registers, the elements that a mask selects, and what a write leaves behind.
//!
//! A vector is 64 bytes here, whatever part of it an instruction uses. Three rules hold for all instructions:
//!
//! - A legacy SSE instruction leaves the register above its operand alone; VEX and EVEX clear it.
//! - EVEX names a mask: elements that it does not select keep the destination's value, or become zero. They are not
//!   accessed in memory. An access whose elements are all selected is one access, else one per selected element.
//! - The destination is fetched before memory is accessed: a register that is not there must not cost a device its
//!   read-to-clear bits.
//!
//! MMX registers take part as vectors of 8 bytes.

use iced_x86::{OpKind, Register};

use crate::Error;
use crate::machine::Machine;

/// The bytes of a vector register, lowest first.
pub(crate) type Bytes = [u8; 64];

/// Which elements of a vector an instruction works on, one bit each, and their size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selection {
    /// Bytes in an element, 1 to 64.
    pub(crate) element: usize,
    /// Bytes in the vector, a multiple of `element`.
    pub(crate) length: usize,
    /// A bit for each element; bits beyond the last are zero.
    pub(crate) bits: u64,
}

impl Selection {
    pub(crate) fn new(element: usize, length: usize, bits: u64) -> Self {
        let count = (length / element).clamp(1, 64) as u32;
        Self { element, length, bits: bits & u64::MAX >> (64 - count) }
    }

    pub(crate) fn all(element: usize, length: usize) -> Self {
        Self::new(element, length, u64::MAX)
    }

    pub(crate) fn is_all(self) -> bool {
        self.bits == Self::all(self.element, self.length).bits
    }

    /// The positions of the selected elements in the vector.
    pub(crate) fn ranges(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let Self { element, length, bits } = self;
        (0..length / element)
            .filter(move |index| bits >> index & 1 != 0)
            .map(move |index| index * element..(index + 1) * element)
    }
}

/// Element `index` of `vector` as a number; `size` is 1, 2, 4 or 8.
pub(crate) fn element(vector: &[u8], size: usize, index: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(&vector[index * size..(index + 1) * size]);
    u64::from_le_bytes(bytes)
}

/// Writes element `index` of `vector`; `size` is 1, 2, 4 or 8.
pub(crate) fn set_element(vector: &mut [u8], size: usize, index: usize, value: u64) {
    vector[index * size..(index + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
}

impl Machine<'_> {
    /// The register that is operand `op`.
    pub(crate) fn register(&self, op: u32) -> Result<Register, Error> {
        match self.instruction.op_kind(op) {
            OpKind::Register => Ok(self.instruction.op_register(op)),
            _ => Err(self.unsupported()),
        }
    }

    /// The value of a vector or MMX register.
    pub(crate) fn vector(&mut self, register: Register) -> Result<Bytes, Error> {
        if register.is_vector_register() {
            self.vectors.load(register.number()).ok_or(Error::NoVectorState)
        } else if register.is_mm() {
            let value = self.vectors.mmx(register.number()).ok_or(Error::NoVectorState)?;
            let mut bytes = [0; 64];
            bytes[..8].copy_from_slice(&value.to_le_bytes());
            Ok(bytes)
        } else {
            Err(self.unsupported())
        }
    }

    /// Writes the first `length` bytes of a register, and clears the rest if the encoding does. `old` is its value.
    pub(crate) fn set_vector(
        &mut self,
        register: Register,
        old: &Bytes,
        length: usize,
        value: &Bytes,
    ) -> Result<(), Error> {
        let mut new = if self.is_legacy() { *old } else { [0; 64] };
        new[..length].copy_from_slice(&value[..length]);
        let stored = if register.is_mm() {
            self.vectors.set_mmx(register.number(), element(&new, 8, 0))
        } else {
            self.vectors.store(register.number(), &new)
        };
        if stored { Ok(()) } else { Err(Error::NoVectorState) }
    }

    /// The elements that the instruction's mask selects; all, if it has none.
    pub(crate) fn selection(&mut self, element: usize, length: usize) -> Result<Selection, Error> {
        let bits = match self.instruction.op_mask() {
            Register::None => u64::MAX,
            mask => self.vectors.mask(mask.number()).ok_or(Error::NoVectorState)?,
        };
        Ok(Selection::new(element, length, bits))
    }

    /// Loads the selected elements of a vector in memory; the others are zero.
    pub(crate) fn load_selected(&mut self, address: u64, selection: Selection) -> Result<Bytes, Error> {
        let mut bytes = [0; 64];
        if selection.is_all() {
            self.load(address, &mut bytes[..selection.length])?;
        } else {
            for range in selection.ranges() {
                self.load(address.wrapping_add(range.start as u64), &mut bytes[range])?;
            }
        }
        Ok(bytes)
    }

    /// Stores the selected elements of a vector.
    pub(crate) fn store_selected(&mut self, address: u64, selection: Selection, value: &Bytes) -> Result<(), Error> {
        if selection.is_all() {
            return self.store(address, &value[..selection.length]);
        }
        for range in selection.ranges() {
            self.store(address.wrapping_add(range.start as u64), &value[range])?;
        }
        Ok(())
    }

    /// Operand `op` as the source of arithmetic: a register, a vector in memory, or one element of memory repeated.
    pub(crate) fn vector_operand(&mut self, op: u32, selection: Selection) -> Result<Bytes, Error> {
        if !self.is_memory(op) {
            let register = self.register(op)?;
            return self.vector(register);
        }
        let address = self.address(op)?;
        if self.instruction.is_broadcast() {
            let mut one = [0; 64];
            if selection.bits != 0 {
                self.load(address, &mut one[..selection.element])?;
            }
            return Ok(repeat(&one[..selection.element]));
        }
        if self.is_legacy() && selection.length == 16 {
            self.demand_alignment(address, 16)?;
        }
        self.load_selected(address, selection)
    }

    /// Writes the selected elements of a result to operand 0; the others keep their value or become zero.
    pub(crate) fn set_selected(&mut self, old: &Bytes, selection: Selection, value: &Bytes) -> Result<(), Error> {
        let register = self.register(0)?;
        let mut merged = if self.instruction.zeroing_masking() { [0; 64] } else { *old };
        for range in selection.ranges() {
            merged[range.clone()].copy_from_slice(&value[range]);
        }
        self.set_vector(register, old, selection.length, &merged)
    }
}

/// A vector that holds `unit` over and over.
pub(crate) fn repeat(unit: &[u8]) -> Bytes {
    std::array::from_fn(|index| unit[index % unit.len()])
}
