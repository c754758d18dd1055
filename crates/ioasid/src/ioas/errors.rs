//! Why an address space refuses something.

use thiserror::Error;

use crate::base::types::{Iova, IovaRange, WouldDeadlock};
use crate::memory::PinError;
use crate::mirror::MirrorError;

/// Where a mapping goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Exactly there.
    Fixed(Iova),
    /// Anywhere that is free. If there is room for it, the IOVA gets the place in its large page of 2 MiB that this
    /// address of the memory has in its own, so that large pages fit.
    Automatic {
        /// The address of the memory where it comes from.
        like: u64,
    },
}

/// Why nothing was mapped. The address space is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MapError {
    /// The length is zero.
    #[error("a mapping cannot be empty")]
    Empty,
    /// The range wraps around the end of the address space.
    #[error("IOVA {0:#x} and length {1:#x} reach beyond the end of the address space")]
    Overflow(u64, u64),
    /// The IOVA, the length or the memory's offset in its page is not a multiple of what mappings are made of.
    #[error("{0:#x} is not a multiple of {1:#x}, which mappings of this address space are made of")]
    Unaligned(u64, u64),
    /// Neither reading nor writing is asked for.
    #[error("a mapping must be readable or writable")]
    NoAccess,
    /// Part of the range is reserved, by a device or the owner, or beyond what the page tables can address.
    #[error("IOVA {0} is reserved, or beyond what the devices attached can address")]
    Reserved(IovaRange),
    /// Part of the range is mapped already.
    #[error("IOVA {0} overlaps a mapping")]
    Occupied(IovaRange),
    /// No free range is large enough.
    #[error("no free range of {0:#x} bytes")]
    NoSpace(u64),
    /// What is to be mapped lies beyond the end of the pages.
    #[error("the pages have no {1:#x} bytes at {0:#x}")]
    BeyondPages(u64, u64),
    /// Writing is asked for, and the pages were given for reading only.
    #[error("the pages were given for reading only")]
    PagesReadOnly,
    /// What is to be copied is not mapped as a whole.
    #[error("IOVA {0:#x} and length {1:#x} are not mapped as a whole in the source")]
    SourceNotMapped(u64, u64),
    /// The memory cannot be had.
    #[error(transparent)]
    Pages(#[from] PinError),
    /// If it failed half-way, it would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
    /// A mirror could not take the mapping.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// Why the rules of an address space were not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RuleError {
    /// Two of the ranges overlap, or one is empty.
    #[error("the ranges must not overlap, and each must have more than one address")]
    BadRanges,
    /// A device, a page table or the owner reserves part of what is to be allowed, or the other way round.
    #[error("IOVA {0} is reserved by one and allowed by the other")]
    Reserved(IovaRange),
    /// Something is mapped there.
    #[error("IOVA {0} is mapped")]
    Mapped(IovaRange),
    /// A mapping is not made of pages of the processor.
    #[error("IOVA {0} is mapped, and is not made of whole pages of {1:#x} bytes")]
    Misaligned(IovaRange, u64),
    /// The page tables have large pages in them.
    #[error("something is mapped for a device already, perhaps by large pages")]
    InUse,
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}

/// Why nothing was unmapped. The address space is as it was, but after [`UnmapError::Mirror`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnmapError {
    /// Nothing is mapped in the range.
    #[error("nothing is mapped at IOVA {0}")]
    Empty(IovaRange),
    /// It begins or ends inside an area.
    #[error("IOVA {0} does not consist of whole mappings")]
    NotWhole(IovaRange),
    /// Part of the range is being mapped at this moment.
    #[error("IOVA {0} is being mapped at this moment")]
    Busy(IovaRange),
    /// Something in it is needed by an object, until that is destroyed.
    #[error("IOVA {0} is needed by another object")]
    Locked(IovaRange),
    /// Something in it is pinned by an access, and a notice led to nothing.
    #[error("IOVA {0} is pinned by an access that does not let it go")]
    Pinned(IovaRange),
    /// A mirror failed to unmap it, and is not asked for anything any more. The range *is* unmapped from all others and
    /// from the address space; what that mirror could reach stays pinned.
    #[error("a mirror failed to unmap IOVA {0}: it was cut off, and the memory stays pinned")]
    Mirror(IovaRange),
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}

/// Why an area was not cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CutError {
    /// The parts would not be made of what mappings are made of.
    #[error("IOVA {0:#x} is not a multiple of {1:#x}, which mappings of this address space are made of")]
    Unaligned(u64, u64),
    /// It may be mapped by larger pages than the parts would be.
    #[error("IOVA {0:#x} may lie inside a large page")]
    LargePages(u64),
    /// It is being mapped or unmapped, or something in it is pinned.
    #[error("the mapping that IOVA {0:#x} lies in is in use")]
    Busy(u64),
    /// A mirror cannot have it in two parts.
    #[error("a device cannot have the mapping that IOVA {0:#x} lies in in two parts")]
    Mirror(u64),
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}

/// Why a device or a mirror cannot use an address space. The address space is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Something is mapped there, or allowed to be, that it cannot use for memory.
    #[error("IOVA {0} is mapped or allowed, but the device cannot use it for memory")]
    Conflict(IovaRange),
    /// Something is mapped that is not made of its pages.
    #[error("IOVA {0} is mapped, and is not made of pages of {1:#x} bytes")]
    Misaligned(IovaRange, u64),
    /// Memory that is mapped could not be brought in.
    #[error(transparent)]
    Pages(#[from] PinError),
    /// The mirror failed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}

/// Why nothing was made to fault, brought in, or allowed otherwise. What is mapped is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PresenceError {
    /// Nothing is mapped in the range.
    #[error("nothing is mapped in IOVA {0}")]
    Empty(IovaRange),
    /// The range is not made of what mappings are made of, or of the processor's pages.
    #[error("IOVA {0} is not made of pages of {1:#x} bytes")]
    Unaligned(IovaRange, u64),
    /// Part of the range is being mapped.
    #[error("IOVA {0} is being mapped")]
    Busy(IovaRange),
    /// An area cannot be cut where the range begins or ends.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The memory could not be brought in.
    #[error(transparent)]
    Pages(#[from] PinError),
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
    /// A mirror failed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// Why devices may do what they could before.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProtectError {
    /// Nothing is mapped in the range.
    #[error("nothing is mapped at IOVA {0}")]
    Empty(IovaRange),
    /// It begins or ends inside an area.
    #[error("IOVA {0} does not consist of whole mappings")]
    NotWhole(IovaRange),
    /// Part of the range is being mapped.
    #[error("IOVA {0} is being mapped")]
    Busy(IovaRange),
    /// Neither reading nor writing is to be allowed: unmap it instead.
    #[error("a mapping must be readable or writable")]
    NoAccess,
    /// Writing is asked for, and the pages were given for reading only.
    #[error("the pages at IOVA {0} were given for reading only")]
    PagesReadOnly(IovaRange),
    /// Something in it is pinned by software.
    #[error("IOVA {0} is pinned")]
    Pinned(IovaRange),
    /// A mirror failed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}
