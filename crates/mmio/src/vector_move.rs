//! Moves between memory and vector, MMX and mask registers.
//!
//! The method's arguments are what the mnemonic says and the operands do not: the size of the elements that a mask
//! counts, and whether the address must be aligned.

use iced_x86::Register;

use crate::Error;
use crate::machine::Machine;
use crate::vector::{Bytes, Selection, element, repeat, set_element};

/// Whether a whole-vector move faults on an address that is no multiple of the vector's size.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alignment {
    Demanded,
    Any,
}

impl Machine<'_> {
    /// MOVAPS, MOVDQU, VMOVDQU8, MOVNTDQ, ...: a whole vector in either direction, under a mask if there is one.
    pub(crate) fn move_vector(&mut self, element: usize, alignment: Alignment) -> Result<(), Error> {
        let (register_op, memory_op) = if self.is_memory(0) { (1, 0) } else { (0, 1) };
        if !self.is_memory(memory_op) {
            return Err(self.unsupported());
        }
        let register = self.register(register_op)?;
        let selection = self.selection(element, register.size())?;
        let old = self.vector(register)?;
        let address = self.address(memory_op)?;
        // An access of nothing is no access, and has no alignment: so AMD's processors; the manual does not say.
        if alignment == Alignment::Demanded && selection.bits != 0 {
            self.demand_alignment(address, selection.length)?;
        }
        if memory_op == 0 {
            self.store_selected(address, selection, &old)
        } else {
            let value = self.load_selected(address, selection)?;
            self.set_selected(&old, selection, &value)
        }
    }

    /// MOVD, MOVQ, MOVSS and MOVSD: the lowest element; a load clears the rest of the XMM register.
    pub(crate) fn move_scalar(&mut self) -> Result<(), Error> {
        let (register_op, memory_op) = if self.is_memory(0) { (1, 0) } else { (0, 1) };
        if !self.is_memory(memory_op) {
            return Err(self.unsupported());
        }
        let register = self.register(register_op)?;
        let old = self.vector(register)?;
        let size = self.size(memory_op);
        let selected = self.selection(size, size)?;
        let address = self.address(memory_op)?;
        if memory_op == 0 {
            return self.store_selected(address, selected, &old);
        }
        let loaded = self.load_selected(address, selected)?;
        let mut value = [0; 64];
        let kept = if selected.bits == 0 && !self.instruction.zeroing_masking() { &old } else { &loaded };
        value[..size].copy_from_slice(&kept[..size]);
        self.set_vector(register, &old, register.size(), &value)
    }

    /// MOVLPS, MOVHPS, MOVLPD and MOVHPD: one half of an XMM register, which begins at byte `at`.
    pub(crate) fn move_half(&mut self, at: usize) -> Result<(), Error> {
        if self.is_memory(0) {
            let register = self.register(1)?;
            let value = self.vector(register)?;
            let address = self.address(0)?;
            return self.store(address, &value[at..at + 8]);
        }
        self.insert(8, at)
    }

    /// PINSRx, VINSERTI128 and the like: `size` bytes from memory into a copy of the first source, where the
    /// immediate says.
    pub(crate) fn insert_chunk(&mut self, size: usize) -> Result<(), Error> {
        let length = self.register(0)?.size();
        let last = self.instruction.op_count() - 1;
        let index = self.operand(last)? as usize % (length / size).max(1);
        self.insert(size, index * size)
    }

    /// The general insertion: the memory operand follows the sources.
    fn insert(&mut self, size: usize, at: usize) -> Result<(), Error> {
        let memory_op = (1..self.instruction.op_count()).find(|&op| self.is_memory(op));
        let memory_op = memory_op.ok_or_else(|| self.unsupported())?;
        let register = self.register(0)?;
        let length = register.size();
        // VEX names the first source; legacy SSE uses the destination.
        let first = self.register(memory_op - 1)?;
        let mask_element = self.instruction.memory_size().element_size().clamp(1, 8);
        let selection = self.selection(mask_element, length)?;
        let old = self.vector(register)?;
        let mut value = self.vector(first)?;
        let address = self.address(memory_op)?;
        self.load(address, &mut value[at..at + size])?;
        self.set_selected(&old, selection, &value)
    }

    /// INSERTPS: a dword from memory, then dwords cleared as the immediate says.
    pub(crate) fn insert_and_clear(&mut self) -> Result<(), Error> {
        let last = self.instruction.op_count() - 1;
        if !self.is_memory(last - 1) {
            return Err(self.unsupported());
        }
        let control = self.operand(last)?;
        let register = self.register(0)?;
        let first = self.register(last - 2)?;
        let old = self.vector(register)?;
        let mut value = self.vector(first)?;
        let address = self.address(last - 1)?;
        let loaded = self.load_sized(address, 4)?;
        set_element(&mut value, 4, (control >> 4 & 3) as usize, loaded);
        for index in (0..4).filter(|index| control >> index & 1 != 0) {
            set_element(&mut value, 4, index, 0);
        }
        self.set_vector(register, &old, 16, &value)
    }

    /// PEXTRx, EXTRACTPS, VEXTRACTI128 and the like: `size` bytes, chosen by the immediate, to memory.
    pub(crate) fn extract_chunk(&mut self, size: usize) -> Result<(), Error> {
        if !self.is_memory(0) {
            return Err(self.unsupported());
        }
        let register = self.register(1)?;
        let mask_element = self.instruction.memory_size().element_size().clamp(1, 8);
        let selection = self.selection(mask_element, size)?;
        let source = self.vector(register)?;
        let at = self.operand(2)? as usize % (register.size() / size).max(1) * size;
        let mut value = [0; 64];
        value[..size].copy_from_slice(&source[at..at + size]);
        let address = self.address(0)?;
        self.store_selected(address, selection, &value)
    }

    /// VBROADCASTSS, VPBROADCASTx, VBROADCASTI32X4 and the like, and MOVDDUP: `size` bytes of memory over and over,
    /// under a mask that counts `element`.
    pub(crate) fn broadcast(&mut self, size: usize, element: usize) -> Result<(), Error> {
        let register = self.register(0)?;
        if !self.is_memory(1) {
            return Err(self.unsupported());
        }
        let selection = self.selection(element, register.size())?;
        let old = self.vector(register)?;
        let address = self.address(1)?;
        // Of the source only what some selected element needs is read.
        let needed = (0..64 / element).filter(|index| selection.bits >> index & 1 != 0);
        let needed = needed.fold(0, |bits, index| bits | 1 << (index % (size / element)));
        let unit = self.load_selected(address, Selection::new(element, size, needed))?;
        self.set_selected(&old, selection, &repeat(&unit[..size]))
    }

    /// PMOVZXxx and PMOVSXxx: each element of `from` bytes becomes one of `to`.
    pub(crate) fn widen(&mut self, from: usize, to: usize, signed: bool) -> Result<(), Error> {
        let register = self.register(0)?;
        if !self.is_memory(1) {
            return Err(self.unsupported());
        }
        let selection = self.selection(to, register.size())?;
        let old = self.vector(register)?;
        let address = self.address(1)?;
        let source = Selection::new(from, register.size() / to * from, selection.bits);
        let source = self.load_selected(address, source)?;
        let mut value = [0; 64];
        for index in 0..register.size() / to {
            let unused = 64 - 8 * from as u32;
            let wide = element(&source, from, index) << unused;
            let wide = if signed { (wide as i64 >> unused) as u64 } else { wide >> unused };
            set_element(&mut value, to, index, wide);
        }
        self.set_selected(&old, selection, &value)
    }

    /// VPMOVxx to memory: the low part of each element of `from` bytes, `to` bytes of it.
    pub(crate) fn narrow(&mut self, from: usize, to: usize) -> Result<(), Error> {
        if !self.is_memory(0) {
            return Err(self.unsupported());
        }
        let register = self.register(1)?;
        let count = register.size() / from;
        let source = self.vector(register)?;
        let selection = self.selection(to, count * to)?;
        let mut value = [0; 64];
        for index in 0..count {
            set_element(&mut value, to, index, element(&source, from, index));
        }
        let address = self.address(0)?;
        self.store_selected(address, selection, &value)
    }

    /// MASKMOVDQU and MASKMOVQ: the bytes whose mask byte has its highest bit set, to memory at RDI.
    pub(crate) fn store_bytes_selected(&mut self) -> Result<(), Error> {
        let (data, mask) = (self.register(1)?, self.register(2)?);
        let (length, data, mask) = (data.size(), self.vector(data)?, self.vector(mask)?);
        let address = self.address(0)?;
        // Each byte on its own: a register must not see one that is not selected.
        let selection = Selection::new(1, length, high_bits(&mask, 1, length));
        self.store_selected(address, selection, &data)
    }

    /// VPMASKMOVx and VMASKMOVPx: elements whose mask element has its highest bit set; a load clears the others.
    pub(crate) fn move_masked(&mut self, element: usize) -> Result<(), Error> {
        let (mask_op, memory_op) = if self.is_memory(0) { (1, 0) } else { (1, 2) };
        if !self.is_memory(memory_op) {
            return Err(self.unsupported());
        }
        let mask = self.register(mask_op)?;
        let length = mask.size();
        let mask = self.vector(mask)?;
        let selection = Selection::new(element, length, high_bits(&mask, element, length));
        let register = self.register(2 - memory_op)?;
        let value = self.vector(register)?;
        let address = self.address(memory_op)?;
        if memory_op == 0 {
            return self.store_selected(address, selection, &value);
        }
        let loaded = self.load_selected(address, selection)?;
        self.set_vector(register, &value, length, &loaded)
    }

    /// KMOVx between memory and a mask register.
    pub(crate) fn move_mask(&mut self) -> Result<(), Error> {
        let (register_op, memory_op) = if self.is_memory(0) { (1, 0) } else { (0, 1) };
        if !self.is_memory(memory_op) {
            return Err(self.unsupported());
        }
        let register = self.register(register_op)?;
        let size = self.size(memory_op);
        let address = self.address(memory_op)?;
        let index = if register.is_k() {
            register.number()
        } else {
            return Err(self.unsupported());
        };
        let value = self.vectors.mask(index).ok_or(Error::NoVectorState)?;
        if memory_op == 0 {
            return self.store_sized(address, size, value);
        }
        let value = self.load_sized(address, size)?;
        if self.vectors.set_mask(index, value) { Ok(()) } else { Err(Error::NoVectorState) }
    }

    /// Whether some operand is a vector register: tells SSE's MOVSD and CMPSD from the string instructions of the
    /// same names.
    pub(crate) fn names_vector(&self) -> bool {
        (0..self.instruction.op_count()).filter_map(|op| self.register(op).ok()).any(Register::is_vector_register)
    }
}

/// The highest bit of each element.
fn high_bits(vector: &Bytes, size: usize, length: usize) -> u64 {
    (0..length / size).fold(0, |bits, index| bits | u64::from(vector[(index + 1) * size - 1] >> 7) << index)
}
