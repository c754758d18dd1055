//! Registers as one table: the same that a model looks accesses up in, and that traces and reports take names from.

use std::ops::Range;

/// What a driver may do with a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterAccess {
    /// It is read; writes are ignored.
    ReadOnly,
    /// It is written; what it reads as means nothing.
    WriteOnly,
    /// It holds what was written, in those bits that can be.
    ReadWrite,
    /// Ones that are written set bits.
    WriteOneToSet,
    /// Ones that are written clear bits.
    WriteOneToClear,
    /// Reading it changes it.
    ReadToClear,
}

impl RegisterAccess {
    /// As specifications write it: `RO`, `RW1C` and the like.
    #[must_use]
    pub fn short(self) -> &'static str {
        match self {
            Self::ReadOnly => "RO",
            Self::WriteOnly => "WO",
            Self::ReadWrite => "RW",
            Self::WriteOneToSet => "RW1S",
            Self::WriteOneToClear => "RW1C",
            Self::ReadToClear => "RC",
        }
    }
}

/// A register of a device, or several of one kind in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterInfo {
    /// Its name in the specification.
    pub name: &'static str,
    /// The BAR that it is in; `None` for configuration space.
    pub bar: Option<u8>,
    /// Offset in bytes, of the first.
    pub offset: u64,
    /// Width in bytes.
    pub width: u8,
    /// How many there are.
    pub count: u16,
    /// What a driver may do with it.
    pub access: RegisterAccess,
    /// What it holds after a reset, where that is the same for each device.
    pub reset: u64,
}

impl RegisterInfo {
    /// The first byte after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.width) * u64::from(self.count)
    }
}

/// The part of an access that falls on one register.
pub(crate) struct Access<R> {
    pub(crate) register: R,
    /// The bytes of the register.
    pub(crate) bytes: Range<usize>,
    /// The same, as bytes of the access.
    pub(crate) data: Range<usize>,
}

impl<R> Access<R> {
    /// The bits of the register that are accessed.
    pub(crate) fn mask(&self) -> u64 {
        let mut mask = [0; 8];
        mask[self.bytes.clone()].fill(0xFF);
        u64::from_le_bytes(mask)
    }

    /// The register's share of `data`, zero elsewhere.
    pub(crate) fn value(&self, data: &[u8]) -> u64 {
        let mut value = [0; 8];
        value[self.bytes.clone()].copy_from_slice(&data[self.data.clone()]);
        u64::from_le_bytes(value)
    }
}

/// The registers of a table that an access of `len` bytes at `offset` falls on.
pub(crate) fn overlaps<R: Copy>(
    registers: &'static [R],
    table: &'static [RegisterInfo],
    offset: u64,
    len: usize,
) -> impl Iterator<Item = Access<R>> {
    let end = offset.saturating_add(len as u64);
    registers.iter().zip(table).filter_map(move |(register, info)| {
        let (from, to) = (info.offset.max(offset), info.end().min(end));
        (from < to).then(|| Access {
            register: *register,
            bytes: (from - info.offset) as usize..(to - info.offset) as usize,
            data: (from - offset) as usize..(to - offset) as usize,
        })
    })
}

/// The registers of a BAR, or of configuration space: an enumeration of them, and the table of what they are.
///
/// ```text
/// registers! {
///     /// What they are.
///     pub enum Register in BAR 0 {
///         /// What it is.
///         Version = "VS" at 0x08, 4 bytes, ReadOnly, reset 0x2_0000;
///         /// Four in a row.
///         Error = "SWERR" at 0xC0, 8 bytes * 4, ReadWrite, reset 0;
///     }
/// }
/// ```
macro_rules! registers {
    ($(#[$about:meta])* $visibility:vis enum $Register:ident in BAR $bar:literal { $($rest:tt)* }) => {
        $crate::registers::registers!(@ $(#[$about])* $visibility $Register, Some($bar), $($rest)*);
    };
    ($(#[$about:meta])* $visibility:vis enum $Register:ident in configuration space { $($rest:tt)* }) => {
        $crate::registers::registers!(@ $(#[$about])* $visibility $Register, None, $($rest)*);
    };
    (@ $(#[$about:meta])* $visibility:vis $Register:ident, $bar:expr,
        $($(#[$what:meta])* $Name:ident = $name:literal at $offset:expr, $width:literal bytes $(* $count:literal)?,
            $access:ident, reset $reset:expr;)*
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visibility enum $Register {
            $($(#[$what])* $Name,)*
        }

        impl $Register {
            /// All of them, in ascending order.
            pub const ALL: &'static [Self] = &[$(Self::$Name,)*];
            /// What they are, in the same order.
            pub const TABLE: &'static [$crate::RegisterInfo] = &[$($crate::RegisterInfo {
                name: $name,
                bar: $bar,
                offset: $offset,
                width: $width,
                // One, unless there are several.
                count: 1 $(- 1 + $count)?,
                access: $crate::RegisterAccess::$access,
                reset: $reset,
            },)*];

            /// What it is.
            #[must_use]
            pub fn info(self) -> &'static $crate::RegisterInfo {
                &Self::TABLE[self as usize]
            }

            /// The register that a byte is in, and which of several it is.
            #[must_use]
            pub fn at(offset: u64) -> Option<(Self, usize)> {
                let index = Self::TABLE.partition_point(|info| info.offset <= offset).checked_sub(1)?;
                let info = &Self::TABLE[index];
                let number = (offset - info.offset) / u64::from(info.width);
                (offset < info.end()).then(|| (Self::ALL[index], number as usize))
            }
        }
    };
}

pub(crate) use registers;

#[cfg(test)]
mod tests {
    use crate::registry::MODELS;
    use crate::{dsa, nvme};

    #[test]
    fn registers_ascend_and_do_not_overlap() {
        for table in MODELS.iter().flat_map(|model| model.registers) {
            for pair in table.windows(2) {
                assert!(pair[0].end() <= pair[1].offset, "{} {}", pair[0].name, pair[1].name);
            }
        }
    }

    #[test]
    fn a_register_is_found_by_each_of_its_bytes() {
        use nvme::spec::registers::Register;
        for register in Register::ALL {
            let info = register.info();
            assert!((info.offset..info.end()).all(|at| Register::at(at) == Some((*register, 0))));
        }
        assert_eq!((Register::at(0x18), Register::at(u64::MAX)), (None, None));
        use dsa::spec::registers::Register as Dsa;
        assert_eq!([0xBF, 0xC0, 0xD9, 0xE0].map(Dsa::at), [None, Some((Dsa::Error, 0)), Some((Dsa::Error, 3)), None]);
    }
}
