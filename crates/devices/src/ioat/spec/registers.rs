//! Registers of the engine, in BAR 0 and in configuration space.
//!
//! ```text
//! BAR 0, 16 KiB
//!   0x0000  the function                    0x0080  channel 0 (the only one)
//!   ├ 0x00 CHANCNT      8  RO              ├ 0x80 CHANCTRL     16  RW, bits 0 and 8 special
//!   ├ 0x01 XFERCAP      8  RO              ├ 0x82 DMA_COMP     16  RO
//!   ├ 0x02 GENCTRL      8  RW              ├ 0x84 CHANCMD       8  commands
//!   ├ 0x03 INTRCTRL     8  reading clears  ├ 0x86 DMACOUNT     16  RW, the doorbell
//!   │                      bit 0           ├ 0x88 CHANSTS      64  RO
//!   ├ 0x04 ATTNSTATUS  32  reading clears  ├ 0x90 CHAINADDR    64  RW, arms the channel
//!   ├ 0x08 CBVER        8  RO              ├ 0x98 CHANCMP      64  RW
//!   ├ 0x0C INTRDELAY   16  RO 0 (absent)   ├ 0xA0 CDAR         64  RO
//!   ├ 0x0E CS_STATUS   16  RO 0            ├ 0xA8 CHANERR      32  write 1 to clear
//!   ├ 0x10 DMACAP      32  RO              ├ 0xAC CHANERRMASK  32  RW
//!   └ 0x14 DCAOFFSET   16  RO 0 (absent)   └ 0xB0 DCACTRL      32  RW
//!   0x2000  MSI-X table, 0x3000 pending bits: the function's
//!
//! configuration space
//!   0x148 DMAUNCERRSTS  32  write 1 to clear
//!   0x180 CHANERR_INT   32  write 1 to clear
//!   0x184 CHANERRMSK_INT 32 RW
//! ```
//!
//! What is not listed is reserved: it reads as zero and ignores writes.

use bitflags::bitflags;

use crate::registers::registers;

/// Size of BAR 0 in bytes.
pub const BAR0_SIZE: u64 = 0x4000;

/// CHANCNT: one channel. Each of the eight functions of a socket is one.
pub const CHANNELS: u8 = 1;
/// XFERCAP: log2 of the longest transfer of a descriptor: 1 MiB.
pub const TRANSFER_CAPABILITY: u8 = 20;
/// GENCTRL: the bits that hold what was written (debug enable, without effect).
pub const GENERAL_CONTROL_STORED: u8 = 0x01;
/// CBVER: major version in the high nibble, minor in the low.
pub const VERSION: u8 = 0x32;
/// DMA_COMP: compatible with versions 3 and 2, not with 1.
pub const COMPATIBILITY: u16 = 0x6;
/// Width of a bus address. A descriptor that names a higher one is in error.
pub const ADDRESS_BITS: u32 = 48;

registers! {
    /// A register in BAR 0.
    pub enum Register in BAR 0 {
        /// How many channels there are.
        ChannelCount = "CHANCNT" at 0x00, 1 bytes, ReadOnly, reset CHANNELS as u64;
        /// log2 of the longest transfer.
        TransferCapability = "XFERCAP" at 0x01, 1 bytes, ReadOnly, reset TRANSFER_CAPABILITY as u64;
        /// General control.
        GeneralControl = "GENCTRL" at 0x02, 1 bytes, ReadWrite, reset 0;
        /// Interrupts on, pending, by vectors.
        InterruptControl = "INTRCTRL" at 0x03, 1 bytes, ReadToClear, reset 0;
        /// Which channels interrupt.
        AttentionStatus = "ATTNSTATUS" at 0x04, 4 bytes, ReadToClear, reset 0;
        /// Version.
        Version = "CBVER" at 0x08, 1 bytes, ReadOnly, reset VERSION as u64;
        /// What it can do.
        Capability = "DMACAP" at 0x10, 4 bytes, ReadOnly, reset 0;
        /// Control of the channel.
        ChannelControl = "CHANCTRL" at 0x80, 2 bytes, ReadWrite, reset 0;
        /// With which versions it is compatible.
        Compatibility = "DMA_COMP" at 0x82, 2 bytes, ReadOnly, reset COMPATIBILITY as u64;
        /// Commands.
        Command = "CHANCMD" at 0x84, 1 bytes, WriteOneToSet, reset 0;
        /// The doorbell: descriptors so far.
        Count = "DMACOUNT" at 0x86, 2 bytes, ReadWrite, reset 0;
        /// State, and which descriptor was last.
        Status = "CHANSTS" at 0x88, 8 bytes, ReadOnly, reset 0;
        /// Where the chain begins; it arms the channel.
        ChainAddress = "CHAINADDR" at 0x90, 8 bytes, ReadWrite, reset 0;
        /// Where the status is written.
        CompletionAddress = "CHANCMP" at 0x98, 8 bytes, ReadWrite, reset 0;
        /// The descriptor that is being carried out.
        CurrentDescriptor = "CDAR" at 0xA0, 8 bytes, ReadOnly, reset 0;
        /// Errors.
        Error = "CHANERR" at 0xA8, 4 bytes, WriteOneToClear, reset 0;
        /// Which errors do not stop it.
        ErrorMask = "CHANERRMASK" at 0xAC, 4 bytes, ReadWrite, reset 0;
        /// Direct cache access.
        DcaControl = "DCACTRL" at 0xB0, 4 bytes, ReadWrite, reset 0;
    }
}

registers! {
    /// A register in configuration space that only this device has.
    pub enum ConfigRegister in configuration space {
        /// Parity errors inside the engine, of which a model has none.
        UncorrectableStatus = "DMAUNCERRSTS" at 0x148, 4 bytes, WriteOneToClear, reset 0;
        /// A second record of CHANERR, cleared on its own.
        ChannelError = "CHANERR_INT" at 0x180, 4 bytes, WriteOneToClear, reset 0;
        /// Which errors of CHANERR_INT escalate. Stored; there is nothing to escalate to.
        ChannelErrorMask = "CHANERRMSK_INT" at 0x184, 4 bytes, ReadWrite, reset 0;
    }
}

bitflags! {
    /// INTRCTRL.
    ///
    /// ```text
    ///  7        4      3         2        1        0
    /// ┌──────────┬──────────┬────────┬────────┬────────┐
    /// │ reserved │ vectors  │  INT   │ STATUS │ MASTER │
    /// └──────────┴──────────┴────────┴────────┴────────┘
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InterruptControl: u8 {
        /// Interrupts may be generated. Reading the register clears the bit: a handler reads, and at its end writes
        /// back what it read.
        const MASTER = 1 << 0;
        /// A bit of ATTNSTATUS is set. Read-only.
        const STATUS = 1 << 1;
        /// `STATUS` and `MASTER`: the level of the INTx line. Read-only.
        const INT = 1 << 2;
        /// MSI-X messages are generated whatever `MASTER` says.
        const MSIX_VECTORS = 1 << 3;
    }
}

bitflags! {
    /// DMACAPABILITY: what the engine can do beyond copying.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Capability: u32 {
        /// A transfer may break at a page boundary.
        const PAGE_BREAK = 1 << 0;
        /// Direct cache access.
        const DCA = 1 << 4;
        /// Block fill.
        const FILL = 1 << 6;
        /// XOR.
        const XOR = 1 << 8;
        /// P+Q parity.
        const PQ = 1 << 9;
    }
}

/// DMACAPABILITY: block fill, and no other option.
pub const CAPABILITY: Capability = Capability::FILL;

bitflags! {
    /// CHANCTRL.
    ///
    /// ```text
    ///  15     10    9      8     7   6    5      4        3         2       1     0
    /// ┌─────────┬───────┬──────┬───────┬───────┬───────┬───────┬─────────┬─────┬──────────┐
    /// │reserved │CPL DCA│IN USE│  res. │ SNOOP │ERR INT│ ABORT │ERR COMPL│ res.│INT DISABLE│
    /// └─────────┴───────┴──────┴───────┴───────┴───────┴───────┴─────────┴─────┴──────────┘
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ChannelControl: u16 {
        /// The channel sets it when it has sent an interrupt, and sends none while it is set. Writing 1 clears it
        /// ("rearm"); writing 0 does nothing.
        const INTERRUPT_DISABLE = 1 << 0;
        /// An error is reported with a completion write.
        const ERROR_COMPLETION = 1 << 2;
        /// Errors that belong to no descriptor halt the channel too. Those that do always halt it.
        const ANY_ERROR_ABORT = 1 << 3;
        /// An error is reported with an interrupt.
        const ERROR_INTERRUPT = 1 << 4;
        /// Descriptors are not in coherent memory.
        const DESCRIPTOR_NO_SNOOP = 1 << 5;
        /// Reading 0 takes the channel: the bit is set by the read. Writing 0 releases it.
        const IN_USE = 1 << 8;
        /// Completion writes use direct cache access.
        const COMPLETION_DCA = 1 << 9;
    }
}

impl ChannelControl {
    /// The bits that simply hold what was written.
    pub const STORED: Self = Self::ERROR_COMPLETION
        .union(Self::ANY_ERROR_ABORT)
        .union(Self::ERROR_INTERRUPT)
        .union(Self::DESCRIPTOR_NO_SNOOP)
        .union(Self::COMPLETION_DCA);
}

bitflags! {
    /// CHANCMD. One command to a write; two at once are an error.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Command: u8 {
        /// Version 1: start. The doorbell does that since.
        const START = 1 << 0;
        /// Version 1: append. The doorbell does that since.
        const APPEND = 1 << 1;
        /// Stop after the current descriptor.
        const SUSPEND = 1 << 2;
        /// Halt after the current descriptor.
        const ABORT = 1 << 3;
        /// Go on after a suspend.
        const RESUME = 1 << 4;
        /// Reset the channel. Reads as 1 until the last DMA of before has ended.
        const RESET = 1 << 5;
    }
}

bitflags! {
    /// CHANERR, CHANERRMASK, CHANERR_INT and CHANERRMSK_INT.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ChannelError: u32 {
        /// The source is outside the bus address width.
        const SOURCE_ADDRESS = 1 << 0;
        /// The destination is outside the bus address width.
        const DESTINATION_ADDRESS = 1 << 1;
        /// The next descriptor is outside the bus address width, or reading it was refused.
        const NEXT_ADDRESS = 1 << 2;
        /// The next descriptor is not on a 64-byte boundary.
        const NEXT_ALIGNMENT = 1 << 3;
        /// CHAINADDR is not on a 64-byte boundary, is too wide, or reading there was refused.
        const CHAIN_ADDRESS = 1 << 4;
        /// A write to CHANCMD held more than one command.
        const COMMAND = 1 << 5;
        /// Data integrity, found by the chipset.
        const CHIPSET_INTEGRITY = 1 << 6;
        /// Data integrity, found by the engine.
        const ENGINE_INTEGRITY = 1 << 7;
        /// Reading the source was refused.
        const READ_DATA = 1 << 8;
        /// Writing the destination was refused.
        const WRITE_DATA = 1 << 9;
        /// The descriptor's control field has an unknown operation or a reserved bit.
        const CONTROL = 1 << 10;
        /// The descriptor's size is zero or above XFERCAP.
        const LENGTH = 1 << 11;
        /// A completion write was asked for and CHANCMP was never written, or writing there was refused.
        const COMPLETION_ADDRESS = 1 << 12;
        /// Interrupts are not configured.
        const INTERRUPT_CONFIGURATION = 1 << 13;
        /// A recoverable error.
        const SOFT = 1 << 14;
        /// The engine itself could not work.
        const UNAFFILIATED = 1 << 15;
        /// XOR or P mismatch.
        const XOR_P = 1 << 16;
        /// Q mismatch.
        const XOR_Q = 1 << 17;
        /// Descriptor count.
        const COUNT = 1 << 18;
    }
}

/// State of a channel, the low three bits of CHANSTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Descriptors are being processed.
    Active = 0,
    /// The count is reached. Also called idle.
    Done = 1,
    /// Stopped on request; CHAINADDR or a resume goes on.
    Suspended = 2,
    /// Reset, aborted, or stopped by an error; CHAINADDR goes on.
    Halted = 3,
    /// A chain is set and nothing of it is counted yet.
    Armed = 4,
}

/// CHANSTS, which is also what a completion write puts in memory.
///
/// ```text
///  63                                    6 5  4    3      2     0
/// ┌───────────────────────────────────────┬──┬────┬──────┬───────┐
/// │ last completed descriptor, bits 63..6 │  │soft│unaff.│ state │
/// └───────────────────────────────────────┴──┴────┴──────┴───────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u64);

impl Status {
    /// A status of `state`, with the descriptor at IOVA `completed` as the last completed one (0: none).
    pub const fn new(state: State, completed: u64) -> Self {
        Self((completed & !0x3F) | state as u64)
    }

    /// The state.
    pub const fn state(self) -> State {
        match self.0 & 0x7 {
            0 => State::Active,
            1 => State::Done,
            2 => State::Suspended,
            4 => State::Armed,
            _ => State::Halted,
        }
    }

    /// IOVA of the last completed descriptor, 0 if there is none.
    pub const fn completed(self) -> u64 {
        self.0 & !0x3F
    }
}
