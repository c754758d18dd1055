//! Registers in BAR 0.
//!
//! ```text
//! BAR 0, 16 KiB
//!   0x0000  registers, below                 CC   31    24 23  20 19  16 15 14 13 11 10   7 6  4   0
//!   0x1000  doorbells: 8 bytes a queue            │        │IOCQES│IOSQES│ SHN │ AMS │ MPS  │CSS│ │EN│
//!           ├ +0 tail of submissions
//!           └ +4 head of completions         CSTS     5    4    3  2   1    0
//!   0x2000  MSI-X table: the function's           │ PP │NSSRO│SHST│ CFS │ RDY │
//!   0x3000  pending bits: the function's
//! ```
//! What is not listed is reserved: it reads as zero and ignores writes.

use crate::registers::registers;

/// Size of BAR 0 in bytes.
pub const BAR0_SIZE: u64 = 0x4000;
/// Where the doorbells begin.
pub const DOORBELLS: u64 = 0x1000;
/// Bytes of the doorbells of a queue pair: stride 0.
pub const DOORBELLS_OF_ONE: u64 = 8;
/// MSI-X table in BAR 0.
pub const MSIX_TABLE: u32 = 0x2000;
/// MSI-X pending bits in BAR 0.
pub const MSIX_PENDING: u32 = 0x3000;
/// The BAR of the controller memory buffer, of 64 bits.
pub const CMB_BAR: u8 = 2;

/// VS: 2.0.0.
pub const VERSION: u32 = 0x0002_0000;
/// Most entries of a queue.
pub const MAX_ENTRIES: u32 = 4096;
/// How long a controller takes to become ready at the longest, in units of 500 ms.
pub const READY_TIMEOUT: u64 = 30;
/// NSSR: what resets the subsystem, "NVMe".
pub const SUBSYSTEM_RESET: u32 = 0x4E56_4D65;
/// log2 of the smallest page, and of the unit of MDTS.
pub const MIN_PAGE_SHIFT: u32 = 12;
/// Most of CC.MPS: pages of 64 KiB.
pub const MAX_MPS: u32 = 4;

registers! {
    /// A register.
    pub enum Register in BAR 0 {
        /// Controller capabilities.
        Capabilities = "CAP" at 0x00, 8 bytes, ReadOnly, reset 0;
        /// Version.
        Version = "VS" at 0x08, 4 bytes, ReadOnly, reset VERSION as u64;
        /// Masks interrupts.
        MaskSet = "INTMS" at 0x0C, 4 bytes, WriteOneToSet, reset 0;
        /// Unmasks interrupts.
        MaskClear = "INTMC" at 0x10, 4 bytes, WriteOneToClear, reset 0;
        /// Controller configuration, see [`cc`].
        Configuration = "CC" at 0x14, 4 bytes, ReadWrite, reset 0;
        /// Controller status, see [`csts`].
        Status = "CSTS" at 0x1C, 4 bytes, WriteOneToClear, reset 0;
        /// NVM subsystem reset.
        SubsystemReset = "NSSR" at 0x20, 4 bytes, WriteOnly, reset 0;
        /// Sizes of the admin queues.
        AdminQueueAttributes = "AQA" at 0x24, 4 bytes, ReadWrite, reset 0;
        /// Where the admin submission queue is.
        AdminSubmissionQueue = "ASQ" at 0x28, 8 bytes, ReadWrite, reset 0;
        /// Where the admin completion queue is.
        AdminCompletionQueue = "ACQ" at 0x30, 8 bytes, ReadWrite, reset 0;
        /// Where the controller memory buffer is.
        CmbLocation = "CMBLOC" at 0x38, 4 bytes, ReadOnly, reset 0;
        /// How large it is, and for what.
        CmbSize = "CMBSZ" at 0x3C, 4 bytes, ReadOnly, reset 0;
        /// Where the host sees it, see [`cmb`].
        CmbSpace = "CMBMSC" at 0x50, 8 bytes, ReadWrite, reset 0;
        /// Whether that place is a possible one.
        CmbStatus = "CMBSTS" at 0x58, 4 bytes, ReadOnly, reset 0;
        /// Its elasticity: none.
        CmbElasticity = "CMBEBS" at 0x5C, 4 bytes, ReadOnly, reset 0;
        /// Its throughput: not said.
        CmbThroughput = "CMBSWTP" at 0x60, 4 bytes, ReadOnly, reset 0;
        /// How long it takes to become ready.
        ReadyTimeouts = "CRTO" at 0x68, 4 bytes, ReadOnly, reset READY_TIMEOUT;
    }
}

/// CAP: what a controller can do, for all of these. Queues need not be contiguous; weighted round robin; the NVM
/// command set; ready with its media only.
#[must_use]
pub fn capabilities(has_cmb: bool) -> u64 {
    const WEIGHTED_ROUND_ROBIN: u64 = 1 << 17;
    const SUBSYSTEM_RESET: u64 = 1 << 36;
    const NVM_COMMAND_SET: u64 = 1 << 37;
    const CMB: u64 = 1 << 57;
    const READY_WITH_MEDIA: u64 = 1 << 59;
    let cmb = if has_cmb { CMB } else { 0 };
    u64::from(MAX_ENTRIES - 1)
        | WEIGHTED_ROUND_ROBIN
        | READY_TIMEOUT << 24
        | SUBSYSTEM_RESET
        | NVM_COMMAND_SET
        | u64::from(MAX_MPS) << 52
        | cmb
        | READY_WITH_MEDIA
}

/// CC.
pub mod cc {
    /// Enable.
    pub const EN: u32 = 1;
    /// What a driver can write.
    pub const WRITABLE: u32 = 0x01FF_FFF1;

    /// CSS: the command set; 0 is NVM.
    #[must_use]
    pub fn command_set(cc: u32) -> u32 {
        cc >> 4 & 7
    }

    /// MPS: log2 of the host's page in 4 KiB.
    #[must_use]
    pub fn page_shift(cc: u32) -> u32 {
        cc >> 7 & 15
    }

    /// AMS: 0 is round robin, 1 weighted round robin with urgent.
    #[must_use]
    pub fn arbitration(cc: u32) -> u32 {
        cc >> 11 & 7
    }

    /// SHN: 0 is none, 1 a normal shutdown, 2 an abrupt one.
    #[must_use]
    pub fn shutdown(cc: u32) -> u32 {
        cc >> 14 & 3
    }

    /// IOSQES: log2 of a submission's bytes.
    #[must_use]
    pub fn submission_shift(cc: u32) -> u32 {
        cc >> 16 & 15
    }

    /// IOCQES: log2 of a completion's bytes.
    #[must_use]
    pub fn completion_shift(cc: u32) -> u32 {
        cc >> 20 & 15
    }
}

/// CSTS.
pub mod csts {
    /// Ready.
    pub const RDY: u32 = 1;
    /// Fatal: the controller works no more until it is reset.
    pub const CFS: u32 = 1 << 1;
    /// SHST.
    pub const SHUTDOWN: u32 = 3 << 2;
    /// SHST: under way.
    pub const SHUTDOWN_BEGUN: u32 = 1 << 2;
    /// SHST: done.
    pub const SHUTDOWN_DONE: u32 = 2 << 2;
    /// A subsystem reset has occurred; written as one, it clears.
    pub const NSSRO: u32 = 1 << 4;
}

/// CMBSZ, CMBMSC and CMBSTS.
pub mod cmb {
    /// CMBSZ: submission queues, completion queues, lists, reads and writes may be there, in units of 4 KiB.
    #[must_use]
    pub fn size(bytes: u64) -> u32 {
        ((bytes >> 12) as u32) << 12 | 0x1F
    }

    /// CMBMSC.CRE: CMBLOC and CMBSZ say what there is.
    pub const REGISTERS_ENABLE: u64 = 1;
    /// CMBMSC.CMSE: addresses from CBA on are the buffer.
    pub const SPACE_ENABLE: u64 = 1 << 1;
    /// CMBMSC.CBA.
    pub const BASE: u64 = !0xFFF;
    /// CMBSTS.CBAI: what CBA says would pass the end of the address space.
    pub const BASE_INVALID: u32 = 1;
}
