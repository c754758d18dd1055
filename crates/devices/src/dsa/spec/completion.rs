//! Completion records: 32 bytes that the device writes, the status last.
//!
//! ```text
//!         7       4       3       2          1        0
//!  0x00 │ bytes completed │ 0 │ fault info │ result │ status │      status: 7 the fault was a write, 5:0 code
//!  0x08 │ fault address                                      │
//!  0x10 │ of the operation; invalid flags                    │
//!  0x18 │ of the operation                                   │
//! ```
//!
//! Fault info is not used: GENCAP does not offer it.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size and alignment of a completion record in bytes.
pub const SIZE: usize = 32;
/// Bit of the status: the access that faulted was a write.
pub const FAULT_WRITE: u8 = 0x80;

/// A completion record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Record {
    /// [`Status`], with [`FAULT_WRITE`].
    pub status: u8,
    /// Result of the operation.
    pub result: u8,
    /// Zero.
    pub fault_info: u8,
    /// Zero.
    pub reserved: u8,
    /// Bytes of the source, or descriptors, that were processed, if not all were.
    pub completed: U32,
    /// Address that faulted.
    pub fault_address: U64,
    /// What the operation gives.
    pub specific: [U64; 2],
}

const _: () = assert!(size_of::<Record>() == SIZE);

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// It is done.
    Success = 0x01,
    /// It is done, and the result is not the expected one.
    FalsePredicate = 0x02,
    /// A page was not there, and the descriptor does not wait for pages.
    PageFault = 0x03,
    /// A page was not there, and was not to be had.
    PageRefused = 0x04,
    /// A descriptor of the batch was not a success.
    BatchFailed = 0x05,
    /// A page of the batch was not there.
    BatchPageFault = 0x06,
    /// The offsets in a delta record do not ascend.
    DeltaOrder = 0x07,
    /// An offset in a delta record is beyond the transfer.
    DeltaOffset = 0x08,
    /// A data integrity field is not what it should be.
    DifError = 0x09,
    /// There is no such operation, or not here.
    Operation = 0x10,
    /// A flag that there is not, or not here, or one that must be set is not.
    Flags = 0x11,
    /// A reserved field is not zero.
    Reserved = 0x12,
    /// The size is 0 or too large.
    TransferSize = 0x13,
    /// The batch has too few or too many descriptors.
    BatchSize = 0x14,
    /// The size of a delta record is not possible.
    DeltaSize = 0x15,
    /// Buffers overlap.
    Overlap = 0x16,
    /// The two destinations differ in their place in the page.
    DualcastAlignment = 0x17,
    /// The descriptor list is not on a 64-byte boundary.
    BatchAlignment = 0x18,
    /// The interrupt is not the descriptor's to raise.
    InterruptHandle = 0x19,
    /// The page of the completion record was not there, and was not to be had.
    RecordFault = 0x1A,
    /// The completion record is not on a 32-byte boundary.
    RecordAlignment = 0x1B,
    /// An address or a size is not aligned.
    Alignment = 0x1C,
    /// The descriptor is privileged and may not be.
    Privilege = 0x1D,
    /// The device itself failed.
    Hardware = 0x20,
}

impl Record {
    /// The code of its [`Status`].
    pub fn code(&self) -> u8 {
        self.status & 0x3F
    }

    /// Whether it has this status.
    pub fn is(&self, status: Status) -> bool {
        self.code() == status as u8
    }

    /// Whether it is of no use to the driver unless asked for: nothing is wrong, as far as this descriptor goes.
    pub fn is_quiet(&self) -> bool {
        [Status::Success, Status::FalsePredicate, Status::BatchFailed].into_iter().any(|status| self.is(status))
    }

    /// Whether it may be written. What is wrong with its own place, or with who asks, is told in SWERR.
    pub fn is_presentable(&self) -> bool {
        ![Status::RecordFault, Status::RecordAlignment, Status::Privilege].into_iter().any(|status| self.is(status))
    }
}

/// What else SWERR tells of, which has no descriptor of its own: its code.
pub mod other {
    /// CMD was written while a command was active.
    pub const COMMAND_ACTIVE: u8 = 0x52;
    /// A dedicated queue was full.
    pub const QUEUE_FULL: u8 = 0x53;
    /// Translation failed: of a slice's descriptor, because its PASID is not one that the slice may use.
    pub const PASID_REFUSED: u8 = 0x22;
}
