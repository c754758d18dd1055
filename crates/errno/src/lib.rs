//! The one table from what went wrong to Linux's errno for it: what programs, and clients of sockets, are told.

use ioasid::memory::{ImportError, PinError};
use ioasid::{
    AccessAttachError, AccessError, AttachError, BindError, CopyError, CutError, DestroyError, DirtyError,
    HwQueueError, HwptError, MapError, MirrorError, PasidError, PresenceError, ProtectError, RuleError, SvaError,
    UnmapError, ViommuError, WouldDeadlock,
};
use ioasid_vfio::BarError;
use ioasid_vfio::device::OpenError;
use ioasid_vfio::device::irq::IrqError;
use ioasid_vfio::device::region::{RegionError, StoreError};
use rustix::io::Errno;

/// An error that a program is told as a number.
pub trait ToErrno {
    /// The number.
    fn errno(&self) -> Errno;
}

/// For an error that this table does not know yet.
const UNKNOWN: Errno = Errno::IO;

macro_rules! table {
    ($($error:ty { $($variant:pat => $errno:ident),* $(,)? })*) => {
        $(impl ToErrno for $error {
            #[allow(unreachable_patterns, reason = "some of the errors may become more")]
            fn errno(&self) -> Errno {
                match self { $($variant => Errno::$errno,)* _ => UNKNOWN }
            }
        })*
    };
}

table! {
    DestroyError {
        Self::Missing(_) => NOENT,
        Self::Busy(_) => BUSY,
        Self::WouldDeadlock(_) => DEADLK,
    }
    UnmapError {
        Self::Empty(_) | Self::NotWhole(_) => NOENT,
        Self::Busy(_) | Self::Locked(_) => BUSY,
        Self::Pinned(_) => DEADLK,
        Self::Mirror(_) => IO,
        Self::WouldDeadlock(_) => DEADLK,
    }
    ImportError {
        Self::BadAddress(_) | Self::Gone => FAULT,
        Self::NotInFile => INVAL,
        Self::System(_) => NOMEM,
    }
    iopt::MapError {
        Self::OutOfTables => NOMEM,
        Self::Occupied(_) => EXIST,
        Self::Unaligned { .. } | Self::OutOfRange { .. } => INVAL,
    }
    CutError {
        Self::Unaligned(..) | Self::LargePages(_) => INVAL,
        Self::Busy(_) => BUSY,
        Self::Mirror(_) => IO,
        Self::WouldDeadlock(_) => DEADLK,
    }
    RuleError {
        Self::BadRanges | Self::InUse => INVAL,
        Self::Reserved(_) | Self::Mapped(_) | Self::Misaligned(..) => ADDRINUSE,
        Self::WouldDeadlock(_) => DEADLK,
    }
    BindError {
        Self::GroupBusy => PERM,
        Self::AlreadyBound => BUSY,
        Self::OtherMachine => INVAL,
        Self::Removed => NODEV,
        Self::NoIds => NOMEM,
    }
    DirtyError {
        Self::Off | Self::On | Self::PageSize(_) | Self::Range(..) | Self::Overlap(_) | Self::ShortBitmap(..) => INVAL,
        Self::TooManyPages(..) => TOOBIG,
        Self::NoMemory => NOMEM,
        Self::Part => NOTTY,
        Self::WouldDeadlock(_) => DEADLK,
        Self::Table(_) => NOMEM,
    }
    ViommuError {
        Self::Missing(_) | Self::NotBound(_) => NOENT,
        Self::NotAParent(_) | Self::OtherIommu(_) | Self::NoRoom => INVAL,
        Self::Exists => EXIST,
        Self::NoIds => NOMEM,
        Self::WouldDeadlock(_) => DEADLK,
    }
    AccessAttachError {
        Self::Missing(_) => NOENT,
        Self::State => INVAL,
        Self::Misaligned(..) => ADDRINUSE,
        Self::WouldDeadlock(_) => DEADLK,
    }
    BarError {
        Self::Disabled => IO,
        Self::Outside { .. } => INVAL,
    }
    RegionError {
        Self::Absent(_) | Self::BeyondEnd { .. } => INVAL,
        Self::BeyondConfig { .. } => FAULT,
        Self::Disabled => IO,
    }
}

impl ToErrno for WouldDeadlock {
    fn errno(&self) -> Errno {
        Errno::DEADLK
    }
}

impl ToErrno for OpenError {
    fn errno(&self) -> Errno {
        match self {
            Self::InUse => Errno::INVAL,
            Self::Memory(error) => Errno::from_io_error(error).unwrap_or(Errno::NOMEM),
        }
    }
}

impl ToErrno for PinError {
    fn errno(&self) -> Errno {
        match self {
            Self::Memory(error) => error.errno(),
            Self::ReadOnly => Errno::FAULT,
            Self::WrongLength(..) | Self::NotPages(_) => Errno::INVAL,
            Self::OverLimit(_) | Self::PhysicalSpace(_) => Errno::NOMEM,
            Self::Recursive => Errno::DEADLK,
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for MapError {
    fn errno(&self) -> Errno {
        match self {
            Self::Empty | Self::Unaligned(..) | Self::NoAccess | Self::Reserved(_) | Self::BeyondPages(..) => {
                Errno::INVAL
            }
            Self::Overflow(..) => Errno::OVERFLOW,
            Self::Occupied(_) => Errno::EXIST,
            Self::NoSpace(_) => Errno::NOSPC,
            Self::PagesReadOnly => Errno::PERM,
            Self::SourceNotMapped(..) => Errno::NOENT,
            Self::WouldDeadlock(error) => error.errno(),
            Self::Pages(error) => error.errno(),
            Self::Mirror(error) => error.errno(),
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for ProtectError {
    fn errno(&self) -> Errno {
        match self {
            Self::Empty(_) => Errno::NOENT,
            Self::NotWhole(_) | Self::NoAccess => Errno::INVAL,
            Self::PagesReadOnly(_) => Errno::PERM,
            Self::Busy(_) | Self::Pinned(_) => Errno::BUSY,
            Self::Mirror(error) => error.errno(),
            Self::WouldDeadlock(error) => error.errno(),
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for MirrorError {
    fn errno(&self) -> Errno {
        match self {
            Self::Table(error) => error.errno(),
            Self::Unsupported(_) => Errno::OPNOTSUPP,
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for AttachError {
    fn errno(&self) -> Errno {
        match self {
            Self::Missing(_) | Self::NoVirtualDevice(_) => Errno::NOENT,
            Self::WrongFormat(_)
            | Self::NoDirtyTracking(_)
            | Self::PasidTooWide(..)
            | Self::NotForPasids
            | Self::OwnsPasids(_)
            | Self::GroupElsewhere(_) => Errno::INVAL,
            Self::CannotWait(_) => Errno::OPNOTSUPP,
            Self::PasidElsewhere(_) => Errno::BUSY,
            Self::Closed => Errno::NODEV,
            Self::NoPasids => Errno::NOSPC,
            Self::Conflict(_) | Self::Misaligned(..) => Errno::ADDRINUSE,
            Self::Pages(error) => error.errno(),
            Self::NoIds => Errno::NOMEM,
            Self::NotConfirmed => Errno::FAULT,
            Self::WouldDeadlock(error) => error.errno(),
            Self::Table(error) => error.errno(),
            Self::Mirror(error) => error.errno(),
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for HwptError {
    fn errno(&self) -> Errno {
        match self {
            Self::Missing(_) | Self::NotBound(_) => Errno::NOENT,
            Self::NotAParent(_) | Self::Guest(_) => Errno::INVAL,
            Self::WrongFormat(_) | Self::NoDirtyTracking => Errno::OPNOTSUPP,
            Self::NoIds => Errno::NOMEM,
            Self::Conflict(_) | Self::Misaligned(..) => Errno::ADDRINUSE,
            Self::Pages(error) => error.errno(),
            Self::WouldDeadlock(error) => error.errno(),
            Self::Table(error) => error.errno(),
            Self::Mirror(error) => error.errno(),
            Self::Closed => Errno::NODEV,
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for SvaError {
    fn errno(&self) -> Errno {
        match self {
            Self::Gone => Errno::SRCH,
            Self::NotForSva => Errno::INVAL,
            Self::Closed => Errno::NODEV,
            Self::NoIds => Errno::NOMEM,
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for PasidError {
    fn errno(&self) -> Errno {
        match self {
            Self::Full(..) => Errno::NOSPC,
            Self::Range(..) => Errno::INVAL,
            Self::NotAllocated(_) => Errno::NOENT,
            Self::Elsewhere(_) => Errno::BUSY,
            Self::WouldDeadlock(error) => error.errno(),
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for PresenceError {
    fn errno(&self) -> Errno {
        match self {
            Self::Empty(_) => Errno::NOENT,
            Self::Unaligned(..) => Errno::INVAL,
            Self::Busy(_) => Errno::BUSY,
            Self::Cut(error) => error.errno(),
            Self::Pages(error) => error.errno(),
            Self::WouldDeadlock(error) => error.errno(),
            Self::Mirror(error) => error.errno(),
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for CopyError {
    fn errno(&self) -> Errno {
        match self {
            Self::Missing(_) | Self::NotBound(_) | Self::NotAttached(_) => Errno::NOENT,
            Self::Refused(error) if error.recoverable => Errno::AGAIN,
            Self::Refused(_) => Errno::FAULT,
            Self::Closed => Errno::NODEV,
            Self::WouldDeadlock(error) => error.errno(),
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for HwQueueError {
    fn errno(&self) -> Errno {
        match self {
            Self::Viommu(error) => error.errno(),
            Self::OutOfOrder(_) => Errno::IO,
            Self::Memory(error) => error.errno(),
            Self::Scattered => Errno::FAULT,
            Self::WouldDeadlock(error) => error.errno(),
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for AccessError {
    fn errno(&self) -> Errno {
        match self {
            Self::Empty | Self::CannotPin | Self::Unaligned(_) | Self::Unmapping(_) => Errno::INVAL,
            Self::Overflow(..) => Errno::OVERFLOW,
            Self::NotAttached | Self::NotMapped(_) => Errno::NOENT,
            Self::NotPermitted(_) => Errno::PERM,
            Self::Pages(error) => error.errno(),
            Self::Gone(_) => Errno::FAULT,
            Self::WouldDeadlock(error) => error.errno(),
            _ => UNKNOWN,
        }
    }
}

impl ToErrno for StoreError {
    fn errno(&self) -> Errno {
        match self {
            Self::Place => Errno::INVAL,
            Self::Missing => Errno::NODEV,
            Self::Exists => Errno::EXIST,
            Self::TooMany => Errno::NOSPC,
            Self::Descriptor(error) => Errno::from_io_error(error).unwrap_or(Errno::INVAL),
        }
    }
}

impl ToErrno for IrqError {
    fn errno(&self) -> Errno {
        match self {
            Self::Range { .. } | Self::DataLength { .. } | Self::State(..) => Errno::INVAL,
            Self::Unsupported(_) => Errno::NOTTY,
            Self::NoVectors(_) => Errno::RANGE,
            Self::Descriptor { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::INVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_finds_no_pasid_has_run_out_of_space() {
        assert_eq!(AttachError::NoPasids.errno(), Errno::NOSPC);
    }
}
