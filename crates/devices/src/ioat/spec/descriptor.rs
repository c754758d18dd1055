//! Descriptors: 64 bytes in memory, on a 64-byte boundary, little-endian.
//!
//! ```text
//!        copy                    fill
//!  0x00  size (4), control (4)   size (4), control (4)
//!  0x08  source                  pattern
//!  0x10  destination             destination
//!  0x18  next descriptor         next descriptor
//!  0x20  reserved, then 16 bytes for the driver at 0x30
//!
//! control
//!   31    24 23        11 10   9   8     7 6      5     4      3      2  1        0
//!  ┌────────┬────────────┬────┬───┬──────┬───────┬────┬─────┬───────┬────────┬─────────┐
//!  │   op   │  reserved  │HINT│DCA│BUNDLE│ BREAK │NULL│FENCE│COMPL. │NO SNOOP│INTERRUPT│
//!  └────────┴────────────┴────┴───┴──────┴───────┴────┴─────┴───────┴────────┴─────────┘
//! ```

use bitflags::bitflags;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::registers::{ADDRESS_BITS, ChannelError, TRANSFER_CAPABILITY};

/// Size and alignment of a descriptor in bytes.
pub const SIZE: usize = 64;

/// Operation: copy.
pub const OP_COPY: u8 = 0x00;
/// Operation: block fill.
pub const OP_FILL: u8 = 0x01;

/// Longest transfer of a descriptor in bytes.
pub const LONGEST_TRANSFER: u32 = 1 << TRANSFER_CAPABILITY;

/// A descriptor as it lies in memory.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Descriptor {
    /// Length of the transfer in bytes.
    pub size: U32,
    /// [`Control`] in the low 24 bits, the operation in the high 8.
    pub control: U32,
    /// Copy: IOVA of the source. Fill: the 64-bit pattern.
    pub source: U64,
    /// IOVA of the destination.
    pub destination: U64,
    /// IOVA of the descriptor to go on with.
    pub next: U64,
    /// Unused by these operations.
    pub reserved: [U64; 2],
    /// The driver's own.
    pub user: [U64; 2],
}

const _: () = assert!(size_of::<Descriptor>() == SIZE);

bitflags! {
    /// The flags of a descriptor's control field.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Control: u32 {
        /// Interrupt upon completion.
        const INTERRUPT = 1 << 0;
        /// Do not snoop the source. No effect: there are no caches to miss.
        const SOURCE_NO_SNOOP = 1 << 1;
        /// Do not snoop the destination. No effect.
        const DESTINATION_NO_SNOOP = 1 << 2;
        /// Write CHANSTS to CHANCMP upon completion.
        const COMPLETION = 1 << 3;
        /// Complete this before the next is begun. No effect: descriptors are processed one by one.
        const FENCE = 1 << 4;
        /// Move nothing. The size must still be a valid one, as hardware wants it.
        const NULL = 1 << 5;
        /// Write the destination through direct cache access: a hint.
        const DESTINATION_DCA = 1 << 9;
        /// A hint.
        const HINT = 1 << 10;
    }
}

impl Control {
    /// What a fill knows of them.
    const OF_FILL: Self = Self::INTERRUPT.union(Self::DESTINATION_NO_SNOOP).union(Self::COMPLETION).union(Self::FENCE);
}

/// What a valid descriptor asks to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Nothing.
    Null,
    /// Move `len` bytes.
    Copy {
        /// IOVA of the source.
        from: u64,
        /// IOVA of the destination.
        to: u64,
        /// Bytes.
        len: u32,
    },
    /// Repeat the eight bytes of `pattern`, lowest first, over `len` bytes.
    Fill {
        /// The pattern.
        pattern: u64,
        /// IOVA of the destination.
        to: u64,
        /// Bytes.
        len: u32,
    },
}

impl Descriptor {
    /// What the descriptor asks for.
    ///
    /// # Errors
    /// The error bits that say what is wrong with it. The control field is judged first, then the size, then the
    /// addresses.
    pub fn decode(&self) -> Result<(Operation, Control), ChannelError> {
        let raw = self.control.get();
        let [.., op] = raw.to_le_bytes();
        let control = Control::from_bits(raw & 0x00FF_FFFF).ok_or(ChannelError::CONTROL)?;
        let (len, source, to) = (self.size.get(), self.source.get(), self.destination.get());

        let operation = match op {
            OP_COPY if control.contains(Control::NULL) => Operation::Null,
            OP_COPY => Operation::Copy { from: source, to, len },
            OP_FILL if Control::OF_FILL.contains(control) => Operation::Fill { pattern: source, to, len },
            _ => return Err(ChannelError::CONTROL),
        };
        if len == 0 || len > LONGEST_TRANSFER {
            return Err(ChannelError::LENGTH);
        }
        let mut wrong = ChannelError::empty();
        let (from, to) = match operation {
            Operation::Null => (None, None),
            Operation::Copy { from, to, .. } => (Some(from), Some(to)),
            Operation::Fill { to, .. } => (None, Some(to)),
        };
        wrong.set(ChannelError::SOURCE_ADDRESS, from.is_some_and(|at| !reachable(at, len)));
        wrong.set(ChannelError::DESTINATION_ADDRESS, to.is_some_and(|at| !reachable(at, len)));
        if wrong.is_empty() { Ok((operation, control)) } else { Err(wrong) }
    }
}

/// Whether `[iova, iova + len)` lies inside the bus address width.
pub(crate) fn reachable(iova: u64, len: u32) -> bool {
    iova.checked_add(u64::from(len)).is_some_and(|end| end <= 1 << ADDRESS_BITS)
}
