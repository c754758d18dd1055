//! The general registers and flags of a stopped thread.
//!
//! A write follows the rule of 64-bit mode: 8 and 16 bits leave the rest of the register alone, 32 bits clear the
//! upper half (SDM volume 1, 3.4.1.1).

use iced_x86::{ConditionCode, Register};

/// Bits of RFLAGS that an instruction reads or writes here (SDM volume 1, 3.4.3).
pub mod flags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Parity of the result's lowest byte.
    pub const PF: u64 = 1 << 2;
    /// Carry out of bit 3.
    pub const AF: u64 = 1 << 4;
    /// The result is zero.
    pub const ZF: u64 = 1 << 6;
    /// The result's sign.
    pub const SF: u64 = 1 << 7;
    /// String instructions go downwards.
    pub const DF: u64 = 1 << 10;
    /// Signed overflow.
    pub const OF: u64 = 1 << 11;
    /// Instruction breakpoints are held off for one instruction.
    pub const RF: u64 = 1 << 16;

    /// The flags that arithmetic sets.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Hardware numbers of the registers that instructions use implicitly.
pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const RBP: usize = 5;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

/// General registers of a stopped thread in 64-bit mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// In the order of the hardware's encoding: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Address of the instruction to perform.
    pub rip: u64,
    /// Flags, as in [`flags`]; all other bits are kept.
    pub rflags: u64,
    /// What an FS override adds to an address.
    pub fs_base: u64,
    /// What a GS override adds to an address.
    pub gs_base: u64,
}

impl Registers {
    /// The value of a general register of any size, zero-extended; `None` for all other registers.
    pub(crate) fn get(&self, register: Register) -> Option<u64> {
        if !register.is_gpr() {
            return None;
        }
        let whole = self.gpr[register.full_register().number()];
        Some(match register.size() {
            1 if is_high_byte(register) => whole >> 8 & 0xff,
            1 => whole & 0xff,
            2 => whole & 0xffff,
            4 => whole & 0xffff_ffff,
            _ => whole,
        })
    }

    /// Writes a general register of any size; `None` for all other registers.
    pub(crate) fn set(&mut self, register: Register, value: u64) -> Option<()> {
        if !register.is_gpr() {
            return None;
        }
        let whole = &mut self.gpr[register.full_register().number()];
        *whole = match register.size() {
            1 if is_high_byte(register) => *whole & !0xff00 | (value & 0xff) << 8,
            1 => *whole & !0xff | value & 0xff,
            2 => *whole & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
        Some(())
    }

    /// Writes the lowest `size` bytes (1, 2, 4 or 8) of register number `index`.
    pub(crate) fn set_sized(&mut self, index: usize, size: usize, value: u64) {
        let whole = &mut self.gpr[index];
        *whole = match size {
            1 => *whole & !0xff | value & 0xff,
            2 => *whole & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    pub(crate) fn flag(&self, flag: u64) -> bool {
        self.rflags & flag != 0
    }

    /// Replaces the flags in `which` by those in `values`.
    pub(crate) fn set_flags(&mut self, which: u64, values: u64) {
        self.rflags = self.rflags & !which | values & which;
    }

    /// Whether the condition of a SETcc, CMOVcc or the like holds.
    pub(crate) fn holds(&self, condition: ConditionCode) -> bool {
        use flags::{CF, OF, PF, SF, ZF};
        let less = self.flag(SF) != self.flag(OF);
        match condition {
            ConditionCode::None => true,
            ConditionCode::o => self.flag(OF),
            ConditionCode::no => !self.flag(OF),
            ConditionCode::b => self.flag(CF),
            ConditionCode::ae => !self.flag(CF),
            ConditionCode::e => self.flag(ZF),
            ConditionCode::ne => !self.flag(ZF),
            ConditionCode::be => self.flag(CF | ZF),
            ConditionCode::a => !self.flag(CF | ZF),
            ConditionCode::s => self.flag(SF),
            ConditionCode::ns => !self.flag(SF),
            ConditionCode::p => self.flag(PF),
            ConditionCode::np => !self.flag(PF),
            ConditionCode::l => less,
            ConditionCode::ge => !less,
            ConditionCode::le => less || self.flag(ZF),
            ConditionCode::g => !less && !self.flag(ZF),
        }
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}
