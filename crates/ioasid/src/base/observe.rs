//! What the engine tells its observer: faults, and what was left behind.
//!
//! The engine keeps no log. A tool that reports bugs, a VMM that counts errors, a test: each implements [`Observer`].

use std::fmt;

use crate::base::ids::ObjectId;
use crate::base::types::{Iova, IovaRange, Pasid, Rid};

/// Why a DMA was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultReason {
    /// The function's bus-master bit is clear.
    NotBusMaster,
    /// The device, or this PASID of it, is attached to nothing.
    NotAttached,
    /// What the device, or this PASID of it, was attached to has been destroyed. Not told to an [`Observer`], as the
    /// device did nothing wrong, but counted ([`crate::Endpoint::parked_faults`]).
    Parked,
    /// Nothing is mapped at the address.
    NotMapped,
    /// Something is mapped there, and is not present.
    NotPresent,
    /// The mapping does not allow this access.
    NotPermitted,
    /// An entry of the guest's page table is not in memory that the parent maps.
    GuestTable,
    /// The mapping is there, but the memory behind it is not: unmapped by the process, cut off the file, or the
    /// process has ended.
    MemoryGone,
    /// An atomic operation, or a borrowed slice, needs memory that is mapped in this process, and this is not.
    NotLocal,
    /// It was made from within another access of the same port, by memory that calls back.
    Recursive,
    /// An atomic operation on 8 bytes at an address that is not a multiple of 8.
    Misaligned,
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotBusMaster => "the device is not bus master",
            Self::NotAttached => "the device is attached to no address space",
            Self::Parked => "what the device was attached to has been destroyed",
            Self::NotMapped => "nothing is mapped there",
            Self::NotPresent => "what is mapped there is not present",
            Self::NotPermitted => "the mapping does not allow it",
            Self::GuestTable => "the guest's page table leads outside of the guest's memory",
            Self::MemoryGone => "the memory behind the mapping is gone",
            Self::NotLocal => "the memory is another process's own, which can only be read and written",
            Self::Recursive => "it was made from within another access of the same port",
            Self::Misaligned => "an atomic operation needs an address that is a multiple of 8",
        })
    }
}

/// One refused DMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The endpoint that asked.
    pub rid: Rid,
    /// With which PASID, if any.
    pub pasid: Option<Pasid>,
    /// The first address that was refused.
    pub iova: Iova,
    /// Whether it was a write.
    pub write: bool,
    /// Why.
    pub reason: FaultReason,
    /// The address space that was asked, by its serial number (see [`crate::Ioas::serial`]).
    pub ioas: Option<u64>,
    /// What the device did it for, if its model says so.
    pub work: Option<Work>,
}

/// What a device does a DMA for, in the words that its driver knows: a command of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Work {
    /// The queue.
    pub queue: u16,
    /// The command, by the identifier that the driver has given it.
    pub command: u16,
}

/// What was still there when its owner went.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leftover {
    /// An address space was not destroyed before its context was closed.
    Ioas {
        /// Its id.
        id: ObjectId,
        /// How many areas were still mapped in it.
        areas: usize,
        /// And how many bytes.
        bytes: u64,
    },
    /// A device was not detached before it was closed.
    Attachment {
        /// The device.
        rid: Rid,
        /// Attached with this PASID, if any.
        pasid: Option<Pasid>,
        /// To this page table.
        hwpt: ObjectId,
        /// Of this address space, if of one.
        ioas: Option<ObjectId>,
    },
}

/// Is told what happens, on whatever thread it happens, which waits for the answer: implementations are brief. They are
/// called with no lock held, and may call the engine.
pub trait Observer: Send + Sync {
    /// A DMA was refused.
    fn fault(&self, _fault: &Fault) {}
    /// `range` of the address space with this serial number is no longer mapped.
    fn unmapped(&self, _ioas: u64, _range: IovaRange) {}
    /// Something outlived its owner.
    fn left_behind(&self, _what: &Leftover) {}
}

/// An observer that looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}
