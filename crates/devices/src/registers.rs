//! Registers as one table: the same that a model looks accesses up in, and that traces and reports take names from.

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

/// A register of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterInfo {
    /// Its name in the specification.
    pub name: &'static str,
    /// The BAR that it is in.
    pub bar: u8,
    /// Offset in bytes.
    pub offset: u64,
    /// Width in bytes.
    pub width: u8,
    /// What a driver may do with it.
    pub access: RegisterAccess,
    /// What it holds after a reset, where that is the same for each device.
    pub reset: u64,
}

/// The registers of a BAR: an enumeration of them, and the table of what they are.
///
/// ```text
/// registers! {
///     /// What they are.
///     pub enum Register in BAR 0 {
///         /// What it is.
///         Version = "VS" at 0x08, 4 bytes, ReadOnly, reset 0x2_0000;
///     }
/// }
/// ```
macro_rules! registers {
    ($(#[$about:meta])* $visibility:vis enum $Register:ident in BAR $bar:literal {
        $($(#[$what:meta])* $Name:ident = $name:literal at $offset:literal, $width:literal bytes,
            $access:ident, reset $reset:expr;)*
    }) => {
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
                access: $crate::RegisterAccess::$access,
                reset: $reset,
            },)*];

            /// What it is.
            #[must_use]
            pub fn info(self) -> &'static $crate::RegisterInfo {
                &Self::TABLE[self as usize]
            }
        }
    };
}

pub(crate) use registers;
