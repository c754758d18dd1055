//! The command register, CMD, and what CMDSTS answers.
//!
//! ```text
//!          31        30     25 24     20 19                                  0
//!  CMD    │ interrupt│ reserved │ code   │ operand                            │
//!          31        30           24 23                  8 7                 0
//!  CMDSTS │ active   │ unused       │ result (a handle)   │ error              │
//!
//!  operand: enable WQ                   7:0 index
//!           disable, drain, abort, reset WQ   19:16 which sixteen, 15:0 a bit for each
//!           drain, abort PASID          19:0 PASID
//!           interrupt handles           16 IMS, 15:0 index in the table
//! ```

/// CMD: an interrupt upon completion.
pub const REQUEST_INTERRUPT: u32 = 1 << 31;
/// CMD: reserved bits.
pub const RESERVED: u32 = 0x3F << 25;
/// CMDSTS: the command is not done.
pub const ACTIVE: u32 = 1 << 31;
/// Operand of the commands for interrupt handles: the interrupt message storage is meant.
pub const IMS: u32 = 1 << 16;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Check the configuration; enable the device.
    EnableDevice = 1,
    /// Accept nothing more, wait for what was accepted, disable the queues and the device.
    DisableDevice = 2,
    /// Wait for what was accepted.
    DrainAll = 3,
    /// Abandon what was accepted.
    AbortAll = 4,
    /// Abandon everything, disable the device, and forget its configuration.
    ResetDevice = 5,
    /// Check the configuration of a queue; enable it.
    EnableQueue = 6,
    /// As for the device.
    DisableQueue = 7,
    /// As for all.
    DrainQueue = 8,
    /// As for all.
    AbortQueue = 9,
    /// As for the device, but the queue keeps its size.
    ResetQueue = 10,
    /// Wait for what has this PASID.
    DrainPasid = 11,
    /// Abandon what has this PASID.
    AbortPasid = 12,
    /// Ask for a handle by which descriptors name an interrupt.
    RequestHandle = 13,
    /// Give it back.
    ReleaseHandle = 14,
}

impl Command {
    /// Every command.
    pub const ALL: [Self; 14] = [
        Self::EnableDevice,
        Self::DisableDevice,
        Self::DrainAll,
        Self::AbortAll,
        Self::ResetDevice,
        Self::EnableQueue,
        Self::DisableQueue,
        Self::DrainQueue,
        Self::AbortQueue,
        Self::ResetQueue,
        Self::DrainPasid,
        Self::AbortPasid,
        Self::RequestHandle,
        Self::ReleaseHandle,
    ];

    /// The command in a value that was written to CMD.
    pub fn of(value: u32) -> Option<Self> {
        let code = value >> 20 & 0x1F;
        Self::ALL.into_iter().find(|command| *command as u32 == code)
    }

    /// Its bit in CMDCAP.
    pub const fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// Why a command failed: the error field of CMDSTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CommandError {
    /// There is no such command.
    Unsupported = 0x01,
    /// There is no such queue.
    QueueIndex = 0x02,
    /// A reserved bit is set.
    Reserved = 0x04,
    /// The device has halted.
    Halted = 0x05,
    /// Enable Device: it is not disabled.
    DeviceEnabled = 0x10,
    /// Enable Device: the queues have more entries than there are.
    QueueSizes = 0x14,
    /// Enable Device: a group has queues and no engines, or engines and no queues.
    GroupIncomplete = 0x15,
    /// Enable Device: a queue with entries is not in one group, or one without is in some, or there is no such queue.
    GroupQueues = 0x16,
    /// Enable Device: an engine is in more than one group, or there is no such engine.
    GroupEngines = 0x17,
    /// Enable WQ: the device is not enabled.
    DeviceNotEnabled = 0x20,
    /// Enable WQ: it is not disabled.
    QueueEnabled = 0x21,
    /// Enable WQ: it has no entries.
    QueueSize = 0x22,
    /// Enable WQ: its priority is 0.
    Priority = 0x23,
    /// Enable WQ: blocking on faults needs page requests.
    BlockOnFault = 0x25,
    /// Enable WQ: a shared queue needs PASIDs, and PASIDs must be enabled for the function.
    PasidEnable = 0x26,
    /// Enable WQ: its largest batch is 1, or above the device's.
    BatchSize = 0x27,
    /// Enable WQ: its longest transfer is above the device's.
    TransferSize = 0x28,
    /// Enable WQ: it is privileged, and the function may not be.
    Privileged = 0x2A,
    /// Enable WQ: address translation cannot be disabled for a queue.
    AtsDisable = 0x2C,
    /// Enable WQ: page requests cannot be disabled for a queue.
    PrsDisable = 0x2E,
    /// Disable Device: it is not enabled.
    NotEnabled = 0x31,
    /// Disable, drain, abort WQ: one of them is not enabled.
    QueueNotEnabled = 0x32,
    /// Interrupt handles: there is no such vector.
    InterruptIndex = 0x41,
}
