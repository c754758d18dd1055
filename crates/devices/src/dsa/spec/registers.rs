//! Registers in BAR 0, and the portals in BAR 2.
//!
//! ```text
//! BAR 0, 64 KiB                                   BAR 2, 16 KiB for each work queue
//!   0x00 VERSION     RO    0x80 GENCFG  RWL         0x0000 unlimited, interrupts by MSI-X
//!   0x10 GENCAP      RO    0x88 GENCTRL RW          0x1000 limited, interrupts by MSI-X
//!   0x20 WQCAP       RO    0x90 GENSTS  RO          0x2000 unlimited, by IMS: there is none
//!   0x30 GRPCAP      RO    0x98 INTCAUSE RW1C       0x3000 limited, by IMS: there is none
//!   0x38 ENGCAP      RO    0xA0 CMD     WO
//!   0x40 OPCAP × 4   RO    0xA8 CMDSTS  RO        each portal is one 4-KiB page, and every multiple of
//!   0x60 OFFSETS × 2 RO    0xB0 CMDCAP  RO        64 in it is the portal
//!                          0xC0 SWERR × 4
//!   0x0400 MSIXPERM   8 bytes for each vector
//!   0x0600 GRPCFG    64 bytes for each group: WQs × 4, engines, flags
//!   0x0800 WQCFG     32 bytes for each work queue
//!   0x4000 MSI-X table, 0x5000 pending bits: the function's
//!   0xF000 dummy portal: takes nothing
//! ```
//!
//! Offsets are those of 8-byte words. What is not listed is reserved: it reads as zero and ignores writes. RWL is
//! read-write until the device, or the work queue, is enabled. There is no event log, no interrupt message storage, no
//! performance monitoring; read buffers cannot be configured.

use bitflags::bitflags;

use crate::registers::registers;

/// Size of BAR 0 in bytes.
pub const BAR0_SIZE: u64 = 0x1_0000;
/// Size of a portal in bytes.
pub const PORTAL_SIZE: u64 = 0x1000;
/// Bytes of BAR 2 for each work queue.
pub const PORTALS_SIZE: u64 = 4 * PORTAL_SIZE;
/// MSI-X table in BAR 0.
pub const MSIX_TABLE: u32 = 0x4000;
/// MSI-X pending bits in BAR 0.
pub const MSIX_PENDING: u32 = 0x5000;

/// VERSION.
pub const VERSION: u64 = 0x00;
/// GENCAP.
pub const GENCAP: u64 = 0x10;
/// WQCAP.
pub const WQCAP: u64 = 0x20;
/// GRPCAP.
pub const GRPCAP: u64 = 0x30;
/// ENGCAP.
pub const ENGCAP: u64 = 0x38;
/// OPCAP, the first of four words; the others are zero.
pub const OPCAP: u64 = 0x40;
/// OFFSETS, the first of two words; the second is zero.
pub const OFFSETS: u64 = 0x60;
/// GENCFG.
pub const GENCFG: u64 = 0x80;
/// GENCTRL.
pub const GENCTRL: u64 = 0x88;
/// GENSTS.
pub const GENSTS: u64 = 0x90;
/// INTCAUSE.
pub const INTCAUSE: u64 = 0x98;
/// CMD.
pub const CMD: u64 = 0xA0;
/// CMDSTS.
pub const CMDSTS: u64 = 0xA8;
/// CMDCAP.
pub const CMDCAP: u64 = 0xB0;
/// SWERR, the first of four words.
pub const SWERR: u64 = 0xC0;
/// MSIXPERM: 8 bytes for each vector.
pub const MSIXPERM: u64 = 0x400;
/// GRPCFG: 64 bytes for each group.
pub const GRPCFG: u64 = 0x600;
/// Bytes of a group's configuration.
pub const GRPCFG_SIZE: u64 = 64;
/// WQCFG: 32 bytes for each work queue.
pub const WQCFG: u64 = 0x800;
/// Bytes of a work queue's configuration: 2^(5 + WQCAP's WQCFG size, which is 0).
pub const WQCFG_SIZE: u64 = 32;
/// The dummy portal, one page.
pub const DUMMY_PORTAL: u64 = 0xF000;

registers! {
    /// A register in BAR 0, or several in a row.
    pub enum Register in BAR 0 {
        /// Version.
        Version = "VERSION" at VERSION, 8 bytes, ReadOnly, reset VERSION_1_0;
        /// What the device can do.
        GeneralCapability = "GENCAP" at GENCAP, 8 bytes, ReadOnly, reset 0;
        /// What work queues can do.
        QueueCapability = "WQCAP" at WQCAP, 8 bytes, ReadOnly, reset 0;
        /// How many groups there are.
        GroupCapability = "GRPCAP" at GRPCAP, 8 bytes, ReadOnly, reset 0;
        /// How many engines there are.
        EngineCapability = "ENGCAP" at ENGCAP, 8 bytes, ReadOnly, reset 0;
        /// Which operations there are.
        Operations = "OPCAP" at OPCAP, 8 bytes * 4, ReadOnly, reset 0;
        /// Where the tables are.
        TableOffsets = "OFFSETS" at OFFSETS, 8 bytes * 2, ReadOnly, reset 0;
        /// General configuration.
        GeneralConfig = "GENCFG" at GENCFG, 8 bytes, ReadWrite, reset 0;
        /// General control, see [`GeneralControl`].
        GeneralControl = "GENCTRL" at GENCTRL, 8 bytes, ReadWrite, reset 0;
        /// The state, see [`DeviceState`].
        GeneralStatus = "GENSTS" at GENSTS, 8 bytes, ReadOnly, reset 0;
        /// Why vector 0 was raised, see [`InterruptCause`].
        InterruptCause = "INTCAUSE" at INTCAUSE, 8 bytes, WriteOneToClear, reset 0;
        /// Commands.
        Command = "CMD" at CMD, 8 bytes, WriteOnly, reset 0;
        /// What became of the last command.
        CommandStatus = "CMDSTS" at CMDSTS, 8 bytes, ReadOnly, reset 0;
        /// Which commands there are.
        CommandCapability = "CMDCAP" at CMDCAP, 8 bytes, ReadOnly, reset 0;
        /// Errors of software.
        Error = "SWERR" at SWERR, 8 bytes * 4, WriteOneToClear, reset 0;
        /// For whom vectors are, see [`Permission`].
        VectorPermission = "MSIXPERM" at MSIXPERM, 8 bytes * 64, ReadWrite, reset 0;
        /// Groups: eight words each.
        GroupConfig = "GRPCFG" at GRPCFG, 8 bytes * 64, ReadWrite, reset 0;
        /// Work queues: four words each, see [`QueueConfig`].
        QueueConfig = "WQCFG" at WQCFG, 8 bytes * 256, ReadWrite, reset 0;
    }
}

/// VERSION: 1.0.
pub const VERSION_1_0: u64 = 0x100;
/// OFFSETS: places of GRPCFG, WQCFG and MSIXPERM in units of 256 bytes; no IMS, no performance monitoring.
pub const TABLE_OFFSETS: u64 = (GRPCFG >> 8) | (WQCFG >> 8) << 16 | (MSIXPERM >> 8) << 32;
/// log2 of the longest transfer of a descriptor: 2 GiB.
pub const MAX_TRANSFER_SHIFT: u32 = 31;
/// log2 of the largest batch: 1024 descriptors.
pub const MAX_BATCH_SHIFT: u32 = 10;
/// Entries of all work queues together.
pub const TOTAL_WQ_SIZE: u16 = 128;
/// GENCFG: the bits that hold what was written: user-mode interrupts.
pub const USER_INTERRUPTS: u32 = 1 << 12;
/// GRPCFG: the flags that hold what was written: two traffic classes, without effect.
pub const GROUP_FLAGS: u64 = 0x3F;

bitflags! {
    /// GENCAP, apart from the two maxima.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct GeneralCapability: u64 {
        /// A descriptor may wait for a page.
        const BLOCK_ON_FAULT = 1 << 0;
        /// Source and destination of a move may overlap.
        const OVERLAPPING_COPY = 1 << 1;
        /// The cache control flag is a hint that may be given.
        const CACHE_CONTROL = 1 << 2;
        /// CMDCAP is there.
        const COMMAND_CAPABILITIES = 1 << 4;
        /// The destination may be read back before completion.
        const DESTINATION_READBACK = 1 << 8;
        /// GENCFG, GRPCFG and WQCFG can be written.
        const CONFIGURATION = 1 << 31;
    }
}

impl GeneralCapability {
    /// The register: these bits with the longest transfer and the largest batch, each as log2.
    pub const fn register(self, max_transfer_shift: u32, max_batch_shift: u32) -> u64 {
        self.bits() | (max_transfer_shift as u64) << 16 | (max_batch_shift as u64) << 21
    }
}

bitflags! {
    /// WQCAP, apart from the number of queues and their total size.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct QueueCapability: u64 {
        /// Work queues may be shared.
        const SHARED = 1 << 48;
        /// Work queues may be dedicated.
        const DEDICATED = 1 << 49;
        /// Work queues have priorities.
        const PRIORITY = 1 << 51;
        /// The occupancy of a work queue can be read.
        const OCCUPANCY = 1 << 52;
    }
}

impl QueueCapability {
    /// The register: these bits with `total` entries in `queues` queues.
    pub const fn register(self, total: u16, queues: u8) -> u64 {
        self.bits() | total as u64 | (queues as u64) << 16
    }
}

bitflags! {
    /// GENCTRL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct GeneralControl: u32 {
        /// Interrupt when SWERR becomes valid.
        const ERROR_INTERRUPT = 1 << 0;
        /// Interrupt when the device halts.
        const HALT_INTERRUPT = 1 << 1;
    }
}

bitflags! {
    /// INTCAUSE: why vector 0 was raised. A written 1 clears.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InterruptCause: u32 {
        /// SWERR became valid.
        const ERROR = 1 << 0;
        /// A command completed.
        const COMMAND = 1 << 1;
        /// The device halted.
        const HALT = 1 << 4;
    }
}

/// The state in GENSTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeviceState {
    /// Nothing is accepted; configuration can be written.
    Disabled = 0,
    /// Work queues may be enabled.
    Enabled = 1,
    /// A command that disables the device waits for descriptors.
    Draining = 2,
    /// The device cannot go on; a Reset Device command, or a reset of the function, helps.
    Halted = 3,
}

bitflags! {
    /// MSIXPERM, apart from the PASID in its bits 31 to 12.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Permission: u32 {
        /// No completion interrupts by this vector.
        const IGNORE = 1 << 2;
        /// The vector is for descriptors with this PASID.
        const PASID_ENABLE = 1 << 3;
    }
}

/// MSIXPERM: the bits that hold what was written.
pub const PERMISSION_STORED: u32 = 0xFFFF_F00C;

/// State of a work queue, in WQCFG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum QueueState {
    /// Nothing is accepted.
    Disabled = 0,
    /// Descriptors may be submitted.
    Enabled = 1,
    /// A command that disables the queue waits for descriptors.
    Draining = 2,
}

/// How a work queue is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueMode {
    /// By deferrable writes of several clients, each with its PASID.
    Shared,
    /// By posted writes of one client, which counts what it submits.
    Dedicated,
}

/// WQCFG, as eight words of 32 bits.
///
/// ```text
///       31 30   29     28     27      8 7      4    3        2     1      0
///  0  │ reserved                      │ size (16)                           │
///  1  │ reserved                      │ threshold (16)                      │
///  2  │ res. │ priv │ PASID │ PASID   │ priority │ no PRS │ no ATS │ block │ dedicated │
///                    enable                                         on fault
///  3  │ reserved                        8:5 log2 batch │ 4:0 log2 transfer  │
///  4  │ occupancy interrupt: absent                                         │
///  5  │ occupancy limit: absent                                             │
///  6  │ 31:30 state, 29 mode support  │ occupancy (16)                      │
///  7  │ reserved                                                            │
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueConfig(pub [u32; 4]);

impl QueueConfig {
    /// The bits of each word that hold what was written.
    pub const STORED: [u32; 4] = [0xFFFF, 0xFFFF, 0x3FFF_FFFF, 0x1FF];
    /// Word 2: the queue is dedicated.
    pub const DEDICATED: u32 = 1 << 0;
    /// Word 2: descriptors may wait for pages.
    pub const BLOCK_ON_FAULT: u32 = 1 << 1;
    /// Word 2: no address translation service for this queue; not to be had.
    pub const ATS_DISABLE: u32 = 1 << 2;
    /// Word 2: no page requests for this queue; not to be had.
    pub const PRS_DISABLE: u32 = 1 << 3;
    /// Word 2: descriptors of a dedicated queue have the PASID of the queue.
    pub const PASID_ENABLE: u32 = 1 << 28;
    /// Word 2: descriptors of a dedicated queue with a PASID are privileged.
    pub const PRIVILEGED: u32 = 1 << 29;
    /// Word 2: what says in whose name a dedicated queue acts.
    pub const IDENTITY: u32 = Self::PRIVILEGED | Self::PASID_ENABLE | 0xF_FFFF << 8;
    /// Word 6: a queue whose configuration is fixed lets its identity be written all the same.
    pub const MODE_SUPPORT: u32 = 1 << 29;

    /// Number of entries.
    pub const fn size(&self) -> u16 {
        self.0[0] as u16
    }

    /// Number of entries that limited portals may fill; not more than there are.
    pub fn threshold(&self) -> u16 {
        self.size().min(self.0[1] as u16)
    }

    /// Shared or dedicated.
    pub const fn mode(&self) -> QueueMode {
        if self.0[2] & Self::DEDICATED == 0 { QueueMode::Shared } else { QueueMode::Dedicated }
    }

    /// Whether a bit of word 2 is set.
    pub const fn has(&self, bit: u32) -> bool {
        self.0[2] & bit != 0
    }

    /// Priority among the queues of the group, 1 to 15.
    pub const fn priority(&self) -> u8 {
        (self.0[2] >> 4 & 0xF) as u8
    }

    /// The PASID of a dedicated queue.
    pub const fn pasid(&self) -> u32 {
        self.0[2] >> 8 & 0xF_FFFF
    }

    /// log2 of the longest transfer.
    pub const fn transfer_shift(&self) -> u32 {
        self.0[3] & 0x1F
    }

    /// log2 of the largest batch.
    pub const fn batch_shift(&self) -> u32 {
        self.0[3] >> 5 & 0xF
    }
}
