//! What is behind the header, command by command.
//!
//! A structure that a command and its reply have in common is one type here. [`Request::decode`] takes a command of a
//! client apart and [`Command::decode`] one of either side; what they let through has the bytes that it says it has.

use bitflags::bitflags;
use ioasid::Access;
use zerocopy::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{CommandId, MAX_TRANSFER, MessageError};

bitflags! {
    /// What a device may do with what is mapped.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DmaFlags: u32 {
        /// Read it.
        const READ = 1 << 0;
        /// Write it.
        const WRITE = 1 << 1;
        /// Map the file.
        const MMAP = 1 << 2;
        /// Read and write the file.
        const FILE_IO = 1 << 3;
    }
}

impl DmaFlags {
    /// What allows this.
    #[must_use]
    pub fn of(access: Access) -> Self {
        let mut flags = Self::empty();
        flags.set(Self::READ, access.contains(Access::READ));
        flags.set(Self::WRITE, access.contains(Access::WRITE));
        flags
    }

    /// What they allow.
    #[must_use]
    pub fn access(self) -> Access {
        let mut access = Access::empty();
        access.set(Access::READ, self.contains(Self::READ));
        access.set(Access::WRITE, self.contains(Self::WRITE));
        access
    }
}

bitflags! {
    /// What DMA_UNMAP is about; the bits are VFIO's.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct UnmapFlags: u32 {
        /// All that is mapped; address and size are 0.
        const ALL = 1 << 1;
    }
}

bitflags! {
    /// What DEVICE_SET_IRQS does, with what; the bits are VFIO's.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqSetFlags: u32 {
        /// For all vectors.
        const NONE = 1 << 0;
        /// Where a byte is not 0.
        const BOOL = 1 << 1;
        /// With the descriptors beside the message.
        const EVENTFD = 1 << 2;
        /// Mask.
        const MASK = 1 << 3;
        /// Unmask.
        const UNMASK = 1 << 4;
        /// Signal, or have signalled.
        const TRIGGER = 1 << 5;
    }
}

macro_rules! structures {
    ($($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$about])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
            #[repr(C)]
            pub struct $name {
                $($(#[$field_about])* pub $field: $type,)*
            }
        )*
    };
}

structures! {
    /// DMA_MAP: memory that the device reaches from now on, by the descriptor beside it if there is one.
    DmaMap {
        /// Bytes of this.
        argsz: U32,
        /// [`DmaFlags`].
        flags: U32,
        /// Where it begins in the file.
        offset: U64,
        /// The IOVA.
        address: U64,
        /// Number of bytes.
        size: U64,
    }
    /// DMA_UNMAP, and its reply.
    DmaUnmap {
        /// Bytes of the reply, at the most.
        argsz: U32,
        /// [`UnmapFlags`].
        flags: U32,
        /// The IOVA.
        address: U64,
        /// Number of bytes.
        size: U64,
    }
    /// DEVICE_GET_INFO, and its reply.
    DeviceInfo {
        /// Bytes of the reply.
        argsz: U32,
        /// VFIO's flags.
        flags: U32,
        /// Number of regions.
        regions: U32,
        /// Number of interrupt indices.
        irqs: U32,
    }
    /// DEVICE_GET_REGION_INFO, and its reply, which capabilities may follow.
    RegionInfo {
        /// Bytes of the reply.
        argsz: U32,
        /// VFIO's flags.
        flags: U32,
        /// Which region.
        index: U32,
        /// Where in the reply the first capability is.
        cap_offset: U32,
        /// Bytes of the region.
        size: U64,
        /// Where it begins in the file beside the reply.
        offset: U64,
    }
    /// The capability that says which parts of a region can be mapped; [`SparseArea`]s follow.
    SparseAreas {
        /// 1.
        id: U16,
        /// 1.
        version: U16,
        /// Where the next capability is, or 0.
        next: U32,
        /// Number of areas.
        count: U32,
        /// Nothing.
        reserved: U32,
    }
    /// A part of a region that can be mapped.
    SparseArea {
        /// Where it begins in the region.
        offset: U64,
        /// Number of bytes.
        size: U64,
    }
    /// DEVICE_GET_REGION_IO_FDS, and its reply, which descriptions may follow.
    IoFds {
        /// Bytes of the reply.
        argsz: U32,
        /// 0.
        flags: U32,
        /// Which region.
        index: U32,
        /// How many descriptions there are.
        count: U32,
    }
    /// DEVICE_GET_IRQ_INFO, and its reply.
    IrqInfo {
        /// Bytes of the reply.
        argsz: U32,
        /// VFIO's flags.
        flags: U32,
        /// Which interrupts.
        index: U32,
        /// Number of vectors.
        count: U32,
    }
    /// DEVICE_SET_IRQS, which a byte for each vector may follow.
    IrqSet {
        /// Bytes of this and what follows.
        argsz: U32,
        /// [`IrqSetFlags`].
        flags: U32,
        /// Which interrupts.
        index: U32,
        /// The first vector.
        start: U32,
        /// Number of vectors.
        count: U32,
    }
    /// REGION_READ and REGION_WRITE, and their replies; data follows a write, and the reply to a read.
    RegionAccess {
        /// Where in the region.
        offset: U64,
        /// Which region.
        region: U32,
        /// Number of bytes.
        count: U32,
    }
    /// DMA_READ and DMA_WRITE, and their replies; data follows a write, and the reply to a read.
    DmaAccess {
        /// The IOVA.
        address: U64,
        /// Number of bytes.
        count: U64,
    }
    /// The reply to DMA_WRITE, in the 12 bytes that the specification gives it; there are peers that send a
    /// [`DmaAccess`].
    DmaWritten {
        /// The IOVA.
        address: U64,
        /// Number of bytes.
        count: U32,
    }
    /// One write of REGION_WRITE_MULTI.
    WriteMulti {
        /// Where in the region.
        offset: U64,
        /// Which region.
        region: U32,
        /// Number of bytes, up to 8.
        count: U32,
        /// The bytes.
        data: [u8; 8],
    }
    /// DEVICE_FEATURE, and its reply; data follows.
    Feature {
        /// Bytes of the reply, at the most.
        argsz: U32,
        /// VFIO's flags: which feature, and what to do.
        flags: U32,
    }
    /// MIG_DATA_READ and MIG_DATA_WRITE, and their replies; data follows a write, and the reply to a read.
    MigrationData {
        /// Bytes of the reply, at the most.
        argsz: U32,
        /// Number of bytes.
        size: U32,
    }
    /// SHARED_TABLES: page tables that the server's device walks from now on; the two descriptors are the gate of them.
    /// The addresses in the tables, and those of the tables, are what DMA_MAP then maps.
    SharedTables {
        /// Bytes of this.
        argsz: U32,
        /// 0.
        flags: U32,
        /// The address of the root.
        root: U64,
    }
}

/// How many bytes of a reply the client has room for (`argsz`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MostBytes(pub u32);

/// A command of a client.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "each is what its structure says")]
pub enum Request<'a> {
    Version(&'a [u8]),
    DmaMap(DmaMap, DmaFlags),
    DmaUnmap(DmaUnmap, UnmapFlags),
    DeviceGetInfo(MostBytes),
    DeviceGetRegionInfo(MostBytes, u32),
    DeviceGetRegionIoFds(MostBytes, u32),
    DeviceGetIrqInfo(u32),
    /// With the bytes that follow.
    DeviceSetIrqs(IrqSet, IrqSetFlags, &'a [u8]),
    RegionRead(RegionAccess),
    RegionWrite(RegionAccess, &'a [u8]),
    DeviceReset,
    RegionWriteMulti(&'a [WriteMulti]),
    DeviceFeature(Feature, &'a [u8]),
    MigDataRead(MigrationData),
    MigDataWrite(MigrationData, &'a [u8]),
    SharedTables(SharedTables),
}

/// A command of a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Command<'a> {
    /// The device reads memory.
    DmaRead(DmaAccess),
    /// The device writes memory.
    DmaWrite(DmaAccess, &'a [u8]),
}

/// What a command consists of.
struct Parts<'a> {
    id: CommandId,
    payload: &'a [u8],
}

impl<'a> Parts<'a> {
    fn short(&self) -> MessageError {
        MessageError::Length(self.id, self.payload.len())
    }

    /// The structure that it begins with, and the rest.
    fn first<T: FromBytes>(&self) -> Result<(T, &'a [u8]), MessageError> {
        T::read_from_prefix(self.payload).map_err(|_| self.short())
    }

    /// The structure, and as many bytes as it says.
    fn with_data<T: FromBytes + Copy>(&self, count: impl FnOnce(T) -> u64) -> Result<(T, &'a [u8]), MessageError> {
        let (first, rest) = self.first::<T>()?;
        let count = transfer(count(first))?;
        rest.get(..count).map(|data| (first, data)).ok_or_else(|| self.short())
    }

    fn no_descriptors(&self, descriptors: usize) -> Result<(), MessageError> {
        if descriptors == 0 { Ok(()) } else { Err(MessageError::Descriptors(self.id, descriptors)) }
    }
}

/// A number of bytes that one message can move.
fn transfer(count: u64) -> Result<usize, MessageError> {
    if count > MAX_TRANSFER { Err(MessageError::Transfer(count)) } else { Ok(count as usize) }
}

fn find(command: u16, payload: &[u8]) -> Result<Parts<'_>, MessageError> {
    Ok(Parts { id: CommandId::from_number(command).ok_or(MessageError::Command(command))?, payload })
}

impl<'a> Request<'a> {
    /// Takes a command apart that came with so many descriptors.
    ///
    /// # Errors
    /// [`MessageError`], if it does not have what it says, or is none that a client sends.
    pub fn decode(command: u16, payload: &'a [u8], descriptors: usize) -> Result<Self, MessageError> {
        let parts = find(command, payload)?;
        let id = parts.id;
        if !matches!(id, CommandId::DmaMap | CommandId::DeviceSetIrqs | CommandId::SharedTables) {
            parts.no_descriptors(descriptors)?;
        }
        Ok(match id {
            CommandId::Version => Self::Version(payload),
            CommandId::DmaMap => {
                let (map, _) = parts.first::<DmaMap>()?;
                if descriptors > 1 {
                    return Err(MessageError::Descriptors(id, descriptors));
                }
                let flags = map.flags.get();
                Self::DmaMap(map, DmaFlags::from_bits(flags).ok_or(MessageError::Flags(id, flags))?)
            }
            CommandId::DmaUnmap => {
                let (unmap, _) = parts.first::<DmaUnmap>()?;
                let flags = unmap.flags.get();
                Self::DmaUnmap(unmap, UnmapFlags::from_bits(flags).ok_or(MessageError::Flags(id, flags))?)
            }
            CommandId::DeviceGetInfo => Self::DeviceGetInfo(MostBytes(parts.first::<DeviceInfo>()?.0.argsz.get())),
            CommandId::DeviceGetRegionInfo => {
                let (info, _) = parts.first::<RegionInfo>()?;
                Self::DeviceGetRegionInfo(MostBytes(info.argsz.get()), info.index.get())
            }
            CommandId::DeviceGetRegionIoFds => {
                let (info, _) = parts.first::<IoFds>()?;
                Self::DeviceGetRegionIoFds(MostBytes(info.argsz.get()), info.index.get())
            }
            CommandId::DeviceGetIrqInfo => Self::DeviceGetIrqInfo(parts.first::<IrqInfo>()?.0.index.get()),
            CommandId::DeviceSetIrqs => {
                let (set, rest) = parts.first::<IrqSet>()?;
                let flags = set.flags.get();
                let known = IrqSetFlags::from_bits(flags).ok_or(MessageError::Flags(id, flags))?;
                let data = known.intersection(IrqSetFlags::NONE | IrqSetFlags::BOOL | IrqSetFlags::EVENTFD);
                let bools = if data == IrqSetFlags::BOOL {
                    rest.get(..set.count.get() as usize).ok_or_else(|| parts.short())?
                } else {
                    &[]
                };
                // Descriptors for each vector, or none, which takes them away.
                let fits = descriptors == 0 || data == IrqSetFlags::EVENTFD && descriptors == set.count.get() as usize;
                if !fits {
                    return Err(MessageError::Descriptors(id, descriptors));
                }
                if data.bits().count_ones() != 1 {
                    return Err(MessageError::Flags(id, flags));
                }
                Self::DeviceSetIrqs(set, known, bools)
            }
            CommandId::RegionRead => {
                let (access, _) = parts.first::<RegionAccess>()?;
                transfer(access.count.get().into())?;
                Self::RegionRead(access)
            }
            CommandId::RegionWrite => {
                let (access, data) = parts.with_data(|access: RegionAccess| access.count.get().into())?;
                Self::RegionWrite(access, data)
            }
            CommandId::DeviceReset => Self::DeviceReset,
            CommandId::RegionWriteMulti => {
                let (count, rest) = parts.first::<U64>()?;
                let count = transfer(count.get())?;
                let writes = <[WriteMulti]>::ref_from_prefix_with_elems(rest, count).map_err(|_| parts.short())?.0;
                if let Some(long) = writes.iter().find(|write| write.count.get() > 8) {
                    return Err(MessageError::Transfer(long.count.get().into()));
                }
                Self::RegionWriteMulti(writes)
            }
            CommandId::DeviceFeature => {
                let (feature, data) = parts.first::<Feature>()?;
                Self::DeviceFeature(feature, data)
            }
            CommandId::MigDataRead => {
                let (data, _) = parts.first::<MigrationData>()?;
                transfer(data.size.get().into())?;
                Self::MigDataRead(data)
            }
            CommandId::MigDataWrite => {
                let (data, bytes) = parts.with_data(|data: MigrationData| data.size.get().into())?;
                Self::MigDataWrite(data, bytes)
            }
            CommandId::SharedTables => {
                let (tables, _) = parts.first::<SharedTables>()?;
                match (descriptors, tables.flags.get()) {
                    (2, 0) => Self::SharedTables(tables),
                    (2, flags) => return Err(MessageError::Flags(id, flags)),
                    _ => return Err(MessageError::Descriptors(id, descriptors)),
                }
            }
            CommandId::DmaRead | CommandId::DmaWrite => return Err(MessageError::Command(command)),
        })
    }
}

impl<'a> Command<'a> {
    /// Takes a command apart that came with so many descriptors.
    ///
    /// # Errors
    /// [`MessageError`], if it does not have what it says, or is none that a server sends.
    pub fn decode(command: u16, payload: &'a [u8], descriptors: usize) -> Result<Self, MessageError> {
        let parts = find(command, payload)?;
        parts.no_descriptors(descriptors)?;
        match parts.id {
            CommandId::DmaRead => {
                let (access, _) = parts.first::<DmaAccess>()?;
                transfer(access.count.get())?;
                Ok(Self::DmaRead(access))
            }
            CommandId::DmaWrite => {
                let (access, data) = parts.with_data(|access: DmaAccess| access.count.get())?;
                Ok(Self::DmaWrite(access, data))
            }
            _ => Err(MessageError::Command(command)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn structures_have_the_specifications_sizes() {
        assert_eq!((size_of::<DmaMap>(), size_of::<DmaUnmap>(), size_of::<DeviceInfo>()), (32, 24, 16));
        assert_eq!((size_of::<RegionInfo>(), size_of::<SparseAreas>(), size_of::<SparseArea>()), (32, 16, 16));
        assert_eq!((size_of::<IrqInfo>(), size_of::<IrqSet>(), size_of::<RegionAccess>()), (16, 20, 16));
        assert_eq!((size_of::<DmaAccess>(), size_of::<DmaWritten>(), size_of::<WriteMulti>()), (16, 12, 24));
    }

    #[test]
    fn a_command_has_the_bytes_that_it_says() {
        let access = |count| RegionAccess { offset: U64::new(8), region: U32::new(0), count: U32::new(count) };
        let mut payload = access(4).as_bytes().to_vec();
        payload.extend([1, 2, 3, 4]);
        assert_eq!(Request::decode(10, &payload, 0), Ok(Request::RegionWrite(access(4), &[1, 2, 3, 4])));
        assert_eq!(Request::decode(10, &payload[..19], 0), Err(MessageError::Length(CommandId::RegionWrite, 19)));
        assert_eq!(Request::decode(10, &payload[..15], 0), Err(MessageError::Length(CommandId::RegionWrite, 15)));
        let long = access(MAX_TRANSFER as u32 + 1);
        assert_eq!(Request::decode(9, long.as_bytes(), 0), Err(MessageError::Transfer(MAX_TRANSFER + 1)));
        assert_eq!(Request::decode(9, &payload, 1), Err(MessageError::Descriptors(CommandId::RegionRead, 1)));
        for (command, name) in [(0, 0), (14, 14), (11, 11), (12, 12), (19, 19), (u16::MAX, u16::MAX)] {
            assert_eq!(Request::decode(command, &payload, 0), Err(MessageError::Command(name)));
        }
        assert_eq!(Command::decode(9, &payload, 0), Err(MessageError::Command(9)));
    }

    #[test]
    fn interrupts_are_set_with_one_kind_of_data() {
        let set = |flags, count| IrqSet { flags: U32::new(flags), count: U32::new(count), ..IrqSet::default() };
        let decode = |set: IrqSet, bytes: usize, fds| {
            let mut payload = set.as_bytes().to_vec();
            payload.resize(20 + bytes, 1);
            Request::decode(8, &payload, fds).map(|_| ())
        };
        let (none, bools, eventfds) = (0x21, 0x22, 0x24);
        assert_eq!(decode(set(none, 3), 0, 0), Ok(()));
        assert_eq!(decode(set(bools, 3), 3, 0), Ok(()));
        assert_eq!((decode(set(eventfds, 3), 0, 3), decode(set(eventfds, 3), 0, 0)), (Ok(()), Ok(())));
        let id = CommandId::DeviceSetIrqs;
        assert_eq!(decode(set(bools, u32::MAX), 3, 0), Err(MessageError::Length(id, 23)));
        assert_eq!(decode(set(eventfds, 3), 0, 2), Err(MessageError::Descriptors(id, 2)));
        assert_eq!(decode(set(none, 1), 0, 1), Err(MessageError::Descriptors(id, 1)));
        for flags in [0x20, 0x23, 0x27, 0x41] {
            assert_eq!(decode(set(flags, 1), 1, 0), Err(MessageError::Flags(id, flags)));
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_panics(
            command in prop_oneof![0u16..20, Just(CommandId::SharedTables as u16)],
            payload in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..80),
            fds in 0usize..4,
        ) {
            let _ = Request::decode(command, &payload, fds);
            let _ = Command::decode(command, &payload, fds);
        }
    }
}
