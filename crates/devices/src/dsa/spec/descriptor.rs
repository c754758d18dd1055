//! Descriptors: 64 bytes, little-endian, as a portal takes them and as they lie in the memory of a batch.
//!
//! ```text
//!        31           30      20 19            0        31       24 23            0
//!  0x00 │ privileged │ reserved │ PASID         │ 0x04 │ operation │ flags         │
//!  0x08 │ completion record address                                                │
//!  0x10 │ source         Fill: pattern       Batch: descriptor list                │
//!  0x18 │ destination    Compare: second source     Compare Pattern: pattern       │
//!  0x20 │ transfer size  Batch: count           │ 0x24 │ interrupt │ reserved      │
//!  0x28 │                                                                          │
//!  0x30 │ of the operation                                                         │
//!  0x38 │                                                                          │
//!
//!           0x28             0x2C        0x30                 0x38
//!  compare  expected result
//!  create   delta record address         max. size            mask of expected results
//!  apply    delta size
//!  dualcast second destination
//!  CRC      seed                         address of the seed
//!  DIF      source, destination, flags   source tags          destination tags
//! ```

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of a descriptor in bytes, and the alignment of those in a batch.
pub const SIZE: usize = 64;
/// Longest transfer of the operations with delta records.
pub const DELTA_MAX_TRANSFER: u32 = 0x8_0000;
/// Bytes of one delta: its offset in units of 8 bytes, and 8 bytes of data.
pub const DELTA_SIZE: usize = 10;
/// Shortest room for a delta record.
pub const DELTA_MIN_RECORD: u32 = 80;

/// A descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Descriptor {
    /// Privileged in bit 31, PASID in the low 20. Counts in what is submitted to a shared queue, and nowhere else.
    pub identity: U32,
    /// The operation in the high 8 bits, [`Flags`] in the low 24.
    pub control: U32,
    /// Address of the completion record.
    pub completion: U64,
    /// Address of the source; pattern; address of the descriptor list.
    pub source: U64,
    /// Address of the destination, or of a second source; pattern.
    pub destination: U64,
    /// Bytes of the source; number of descriptors.
    pub size: U32,
    /// Interrupt that reports the completion.
    pub interrupt: U16,
    /// Zero.
    pub reserved: U16,
    /// What the operation says.
    pub specific: [U64; 3],
}

const _: () = assert!(size_of::<Descriptor>() == SIZE);

bitflags! {
    /// The flags of a descriptor.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// In a batch: begin when everything before is done, if all of it was a success.
        const FENCE = 1 << 0;
        /// Wait for pages.
        const BLOCK_ON_FAULT = 1 << 1;
        /// There is a place for a completion record.
        const RECORD_VALID = 1 << 2;
        /// Write the completion record also upon success.
        const REQUEST_RECORD = 1 << 3;
        /// Interrupt upon completion.
        const REQUEST_INTERRUPT = 1 << 4;
        /// The status says whether the result is the expected one.
        const CHECK_RESULT = 1 << 7;
        /// Write to the cache rather than to memory: a hint.
        const CACHE_CONTROL = 1 << 8;
        /// Traffic class of the first address: a hint.
        const ADDRESS_1_CLASS = 1 << 9;
        /// Traffic class of the second address: a hint.
        const ADDRESS_2_CLASS = 1 << 10;
        /// Traffic class of the third address: a hint.
        const ADDRESS_3_CLASS = 1 << 11;
        /// Traffic class of the completion record: a hint.
        const RECORD_CLASS = 1 << 12;
        /// Writes are seen in their order; they always are.
        const STRICT_ORDERING = 1 << 13;
        /// Read the destination before completion; there is nothing that would not have arrived.
        const READBACK = 1 << 14;
        /// CRC: read the seed from memory.
        const READ_SEED = 1 << 16;
        /// CRC: seed and result are not inverted, and their bits are in the other order.
        const BYPASS_INVERSION = 1 << 17;
        /// CRC: bit 7 of each byte of data comes first.
        const BYPASS_REFLECTION = 1 << 18;
        /// Drain: no readback on the second traffic class.
        const NO_READBACK_B = 1 << 19;
        /// Any other bit that may be set.
        const _ = !0;
    }
}

/// Drain: no readback on the first traffic class. (The bit has another meaning in a CRC.)
pub const NO_READBACK_A: Flags = Flags::BYPASS_REFLECTION;

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// Nothing.
    NoOp = 0x00,
    /// The descriptors in an array in memory.
    Batch = 0x01,
    /// Wait for what was submitted before.
    Drain = 0x02,
    /// Copy.
    Move = 0x03,
    /// Fill with a pattern of 8 bytes.
    Fill = 0x04,
    /// Compare two regions.
    Compare = 0x05,
    /// Compare with a pattern of 8 bytes.
    ComparePattern = 0x06,
    /// Record how one region differs from another.
    CreateDelta = 0x07,
    /// Make one region the other by such a record.
    ApplyDelta = 0x08,
    /// Copy to two places.
    Dualcast = 0x09,
    /// CRC-32C.
    Crc = 0x10,
    /// Copy with CRC-32C.
    CopyCrc = 0x11,
    /// Check the data integrity field of each block.
    DifCheck = 0x12,
    /// Copy, and append a field to each block.
    DifInsert = 0x13,
    /// Copy without the fields.
    DifStrip = 0x14,
    /// Copy with new fields.
    DifUpdate = 0x15,
    /// Flush processor caches, of which there are none to flush.
    CacheFlush = 0x20,
}

impl Operation {
    /// Every operation that there is.
    pub const ALL: [Self; 17] = [
        Self::NoOp,
        Self::Batch,
        Self::Drain,
        Self::Move,
        Self::Fill,
        Self::Compare,
        Self::ComparePattern,
        Self::CreateDelta,
        Self::ApplyDelta,
        Self::Dualcast,
        Self::Crc,
        Self::CopyCrc,
        Self::DifCheck,
        Self::DifInsert,
        Self::DifStrip,
        Self::DifUpdate,
        Self::CacheFlush,
    ];

    /// The operation with a code.
    pub fn of(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| *operation as u8 == code)
    }

    /// OPCAP, its first word: a bit for each operation.
    pub fn capability() -> u64 {
        Self::ALL.into_iter().fold(0, |bits, operation| bits | 1 << operation as u8)
    }
}

impl Descriptor {
    /// The code of the operation.
    pub fn code(&self) -> u8 {
        (self.control.get() >> 24) as u8
    }

    /// The flags.
    pub fn flags(&self) -> Flags {
        Flags::from_bits_retain(self.control.get() & 0x00FF_FFFF)
    }

    /// The PASID in it.
    pub fn pasid(&self) -> u32 {
        self.identity.get() & 0xF_FFFF
    }

    /// Whether it says that it is privileged.
    pub fn is_privileged(&self) -> bool {
        self.identity.get() >> 31 != 0
    }

    /// Byte `at` of it.
    pub fn byte(&self, at: usize) -> u8 {
        self.as_bytes()[at]
    }

    /// The 16 bits at byte `at`, which is even.
    pub fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    /// The 32 bits at byte `at`, which is a multiple of 4.
    pub fn word(&self, at: usize) -> u32 {
        u32::from(self.half(at)) | u32::from(self.half(at + 2)) << 16
    }
}
