//! Commands and completions, little-endian, as they lie in the queues.
//!
//! ```text
//!        31         24 23    16 15 14 13  10 9  8 7        0
//!  0x00 │ command identifier   │PSDT│      │FUSE │ opcode   │    completion
//!  0x04 │ namespace identifier                             │    0x00 │ result, 64 bits              │
//!  0x08 │ of the command, 64 bits                          │    0x08 │ SQ identifier │ SQ head      │
//!  0x10 │ metadata pointer, 64 bits                        │    0x0C │ status ... │P│ command id.   │
//!  0x18 │ data pointer: two PRPs, or one SGL descriptor    │
//!  0x28 │ of the command, 6 × 32 bits: CDW10 to CDW15      │
//! ```

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a command.
pub const COMMAND_SIZE: usize = 64;
/// Bytes of a completion.
pub const COMPLETION_SIZE: usize = 16;
/// The namespace identifier that means all of them.
pub const ALL_NAMESPACES: u32 = 0xFFFF_FFFF;

/// A command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Command {
    /// See [`admin`] and [`nvm`].
    pub opcode: u8,
    /// FUSE in bits 1 to 0, PSDT in bits 7 to 6.
    pub flags: u8,
    /// Which command of its queue it is.
    pub identifier: U16,
    /// Which namespace it is for.
    pub namespace: U32,
    /// CDW2 and CDW3.
    pub specific: [U32; 2],
    /// MPTR.
    pub metadata: U64,
    /// DPTR.
    pub data: [U64; 2],
    /// CDW10 to CDW15.
    pub words: [U32; 6],
}

const _: () = assert!(size_of::<Command>() == COMMAND_SIZE);

/// How a command and the next one are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// They are not.
    Normal,
    /// It is the first of two.
    First,
    /// It is the second of two.
    Second,
    /// Not a value.
    Reserved,
}

impl Command {
    /// CDW10 to CDW15, by number.
    #[must_use]
    pub fn word(&self, number: usize) -> u32 {
        self.words[number - 10].get()
    }

    /// CDW10 and CDW11: the first block, and other things of 64 bits.
    #[must_use]
    pub fn long(&self) -> u64 {
        u64::from(self.word(11)) << 32 | u64::from(self.word(10))
    }

    /// See [`Fuse`].
    #[must_use]
    pub fn fuse(&self) -> Fuse {
        [Fuse::Normal, Fuse::First, Fuse::Second, Fuse::Reserved][usize::from(self.flags & 3)]
    }

    /// PSDT: 0 for PRPs, 1 and 2 for SGLs.
    #[must_use]
    pub fn data_kind(&self) -> u8 {
        self.flags >> 6
    }
}

/// A completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Completion {
    /// What the command says.
    pub result: U64,
    /// How far the controller has taken commands from the queue.
    pub queue_head: U16,
    /// The queue that the command was in.
    pub queue: U16,
    /// The command.
    pub identifier: U16,
    /// The status field, and the phase in bit 0.
    pub status: U16,
}

const _: () = assert!(size_of::<Completion>() == COMPLETION_SIZE);

/// Admin commands.
pub mod admin {
    /// Delete I/O Submission Queue.
    pub const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0A;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0C;
    /// Namespace Management.
    pub const NAMESPACE_MANAGEMENT: u8 = 0x0D;
    /// Namespace Attachment.
    pub const NAMESPACE_ATTACHMENT: u8 = 0x15;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7C;
    /// Format NVM.
    pub const FORMAT_NVM: u8 = 0x80;
    /// Sanitize.
    pub const SANITIZE: u8 = 0x84;
}

/// Commands of the NVM command set.
pub mod nvm {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify.
    pub const VERIFY: u8 = 0x0C;
    /// Reservation Register.
    pub const RESERVATION_REGISTER: u8 = 0x0D;
    /// Reservation Report.
    pub const RESERVATION_REPORT: u8 = 0x0E;
    /// Reservation Acquire.
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    /// Reservation Release.
    pub const RESERVATION_RELEASE: u8 = 0x15;
    /// Copy.
    pub const COPY: u8 = 0x19;
}

/// CDW12 of the commands on a range of blocks.
pub mod control {
    /// Write Zeroes may deallocate.
    pub const DEALLOCATE: u32 = 1 << 25;
    /// PRINFO.PRACT: the controller makes and takes away protection information.
    pub const PROTECTION_ACTION: u32 = 1 << 29;
    /// PRINFO.PRCHK: what is checked: guard, application tag, reference tag.
    pub const CHECK_GUARD: u32 = 1 << 28;
    /// See [`CHECK_GUARD`].
    pub const CHECK_APPLICATION: u32 = 1 << 27;
    /// See [`CHECK_GUARD`].
    pub const CHECK_REFERENCE: u32 = 1 << 26;
    /// Force Unit Access.
    pub const FORCE_UNIT_ACCESS: u32 = 1 << 30;
}
