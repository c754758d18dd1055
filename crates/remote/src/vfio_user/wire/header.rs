//! The 16 bytes that each message begins with.

use std::fmt;

use zerocopy::native_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{MAX_MESSAGE, MessageError};

/// Bytes of a header.
pub const HEADER_SIZE: usize = 16;

/// What a message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Chosen by who sends a command, and the same in the reply.
    pub id: U16,
    /// Which command.
    pub command: U16,
    /// Bytes of the message, with the header.
    pub size: U32,
    /// Type, and what else there is to say.
    pub flags: U32,
    /// Of a reply that is an error, the number.
    pub error: U32,
}

/// Bits of [`Header::flags`].
const TYPE: u32 = 0xF;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It asks for something.
    Command {
        /// Whether it waits for a reply.
        wants_reply: bool,
    },
    /// It answers.
    Reply {
        /// The errno, if it was refused.
        error: Option<u32>,
    },
}

/// The commands, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the specification's")]
#[repr(u16)]
pub enum CommandId {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    DeviceGetInfo = 4,
    DeviceGetRegionInfo = 5,
    DeviceGetRegionIoFds = 6,
    DeviceGetIrqInfo = 7,
    DeviceSetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    DmaRead = 11,
    DmaWrite = 12,
    DeviceReset = 13,
    RegionWriteMulti = 15,
    DeviceFeature = 16,
    MigDataRead = 17,
    MigDataWrite = 18,
    /// Not the specification's: it is sent to who says that it knows it (`ioasid_shared_tables`).
    SharedTables = 0x8000,
}

impl CommandId {
    /// All that there are.
    pub const ALL: [Self; 18] = [
        Self::Version,
        Self::DmaMap,
        Self::DmaUnmap,
        Self::DeviceGetInfo,
        Self::DeviceGetRegionInfo,
        Self::DeviceGetRegionIoFds,
        Self::DeviceGetIrqInfo,
        Self::DeviceSetIrqs,
        Self::RegionRead,
        Self::RegionWrite,
        Self::DmaRead,
        Self::DmaWrite,
        Self::DeviceReset,
        Self::RegionWriteMulti,
        Self::DeviceFeature,
        Self::MigDataRead,
        Self::MigDataWrite,
        Self::SharedTables,
    ];

    /// The command with this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|id| *id as u16 == number)
    }

    /// Its name in the specification.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Version => "VERSION",
            Self::DmaMap => "DMA_MAP",
            Self::DmaUnmap => "DMA_UNMAP",
            Self::DeviceGetInfo => "DEVICE_GET_INFO",
            Self::DeviceGetRegionInfo => "DEVICE_GET_REGION_INFO",
            Self::DeviceGetRegionIoFds => "DEVICE_GET_REGION_IO_FDS",
            Self::DeviceGetIrqInfo => "DEVICE_GET_IRQ_INFO",
            Self::DeviceSetIrqs => "DEVICE_SET_IRQS",
            Self::RegionRead => "REGION_READ",
            Self::RegionWrite => "REGION_WRITE",
            Self::DmaRead => "DMA_READ",
            Self::DmaWrite => "DMA_WRITE",
            Self::DeviceReset => "DEVICE_RESET",
            Self::RegionWriteMulti => "REGION_WRITE_MULTI",
            Self::DeviceFeature => "DEVICE_FEATURE",
            Self::MigDataRead => "MIG_DATA_READ",
            Self::MigDataWrite => "MIG_DATA_WRITE",
            Self::SharedTables => "SHARED_TABLES",
        }
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Header {
    /// Of a command with so many bytes behind the header.
    #[must_use]
    pub fn command(id: u16, command: CommandId, payload: usize) -> Self {
        Self {
            id: U16::new(id),
            command: U16::new(command as u16),
            size: U32::new((HEADER_SIZE + payload) as u32),
            flags: U32::new(0),
            error: U32::new(0),
        }
    }

    /// Of the reply to this command, with so many bytes behind the header.
    #[must_use]
    pub fn reply(&self, payload: usize) -> Self {
        Self { size: U32::new((HEADER_SIZE + payload) as u32), flags: U32::new(1), error: U32::new(0), ..*self }
    }

    /// Of the reply that refuses this command.
    #[must_use]
    pub fn refusal(&self, errno: u32) -> Self {
        Self { flags: U32::new(1 | ERROR), error: U32::new(errno), ..self.reply(0) }
    }

    /// The same command, for which no reply is wanted.
    #[must_use]
    pub fn without_reply(self) -> Self {
        Self { flags: U32::new(self.flags.get() | NO_REPLY), ..self }
    }

    /// What it is.
    ///
    /// # Errors
    /// [`MessageError::Kind`].
    pub fn kind(&self) -> Result<Kind, MessageError> {
        let flags = self.flags.get();
        match flags & TYPE {
            0 => Ok(Kind::Command { wants_reply: flags & NO_REPLY == 0 }),
            1 => Ok(Kind::Reply { error: (flags & ERROR != 0).then_some(self.error.get()) }),
            other => Err(MessageError::Kind(other)),
        }
    }

    /// Number of bytes behind the header.
    ///
    /// # Errors
    /// [`MessageError::Size`].
    pub fn payload(&self) -> Result<usize, MessageError> {
        let size = self.size.get();
        let payload = (size as usize).checked_sub(HEADER_SIZE).filter(|_| size as usize <= MAX_MESSAGE);
        payload.ok_or(MessageError::Size(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_has_the_commands_id_and_number() {
        let command = Header::command(7, CommandId::RegionRead, 16);
        assert_eq!(command.kind(), Ok(Kind::Command { wants_reply: true }));
        assert_eq!(command.without_reply().kind(), Ok(Kind::Command { wants_reply: false }));
        let reply = command.reply(20);
        assert_eq!((reply.id.get(), reply.command.get(), reply.payload()), (7, 9, Ok(20)));
        assert_eq!(reply.kind(), Ok(Kind::Reply { error: None }));
        assert_eq!(command.refusal(22).kind(), Ok(Kind::Reply { error: Some(22) }));
        assert_eq!(command.refusal(22).payload(), Ok(0));
    }

    #[test]
    fn a_size_is_that_of_a_message() {
        let of = |size| Header { size: U32::new(size), ..Header::command(0, CommandId::Version, 0) }.payload();
        assert_eq!((of(16), of(MAX_MESSAGE as u32)), (Ok(0), Ok(MAX_MESSAGE - 16)));
        for size in [0, 15, MAX_MESSAGE as u32 + 1, u32::MAX] {
            assert_eq!(of(size), Err(MessageError::Size(size)));
        }
    }

    #[test]
    fn commands_have_the_numbers_of_the_specification() {
        assert_eq!(CommandId::from_number(13), Some(CommandId::DeviceReset));
        assert_eq!(
            (CommandId::from_number(14), CommandId::from_number(0), CommandId::from_number(19)),
            (None, None, None)
        );
        for number in 1..=18 {
            assert_eq!(CommandId::from_number(number).map_or(14, |id| id as u16), number);
        }
    }
}
