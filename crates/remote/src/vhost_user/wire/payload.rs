//! What is behind the header, request by request.
//!
//! [`Request::decode`] takes a front end's request apart, and [`BackendRequest::decode`] a back end's; what they let
//! through has the bytes, the descriptors and the numbers that it has to have.

use ioasid::Access;
use zerocopy::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BackendRequestId, MAX_CONFIG, MAX_REGIONS, MessageError, RequestId};

macro_rules! structures {
    ($($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$about])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
            #[repr(C)]
            pub struct $name { $($(#[$field_about])* pub $field: $type,)* }
        )*
    };
}

structures! {
    /// A number of a ring.
    VringState {
        /// Which ring.
        index: U32,
        /// Its entries, its base, or whether it is enabled.
        number: U32,
    }
    /// Where a ring is: addresses of the front end's, or IOVAs if they are translated.
    VringAddress {
        /// Which ring.
        index: U32,
        /// Whether writes are logged.
        flags: U32,
        /// Its descriptors.
        descriptors: U64,
        /// The device's ring.
        device: U64,
        /// The driver's ring.
        driver: U64,
        /// Where writes to the device's ring are logged.
        log: U64,
    }
    /// Memory of the front end's.
    MemoryRegion {
        /// Its address for devices whose addresses are not translated.
        guest: U64,
        /// Its bytes.
        size: U64,
        /// Its address in the front end.
        user: U64,
        /// Where it begins in the file.
        offset: U64,
    }
    /// What SET_MEM_TABLE begins with.
    MemoryHead {
        /// How many regions follow.
        regions: U32,
        /// Nothing.
        padding: U32,
    }
    /// What ADD_MEM_REG and REM_MEM_REG have.
    SingleRegion {
        /// Nothing.
        padding: U64,
        /// The region.
        region: MemoryRegion,
    }
    /// A translation: asked for, given, or taken back.
    IotlbMessage {
        /// The first IOVA.
        iova: U64,
        /// Bytes.
        size: U64,
        /// The address in the front end.
        user: U64,
        /// What is allowed, or asked for: 1 to read, 2 to write.
        access: u8,
        /// See [`IotlbKind`].
        kind: u8,
        /// Nothing.
        padding: [u8; 6],
    }
    /// What GET_INFLIGHT_FD and SET_INFLIGHT_FD have: a place in a file.
    InflightPlace {
        /// Bytes.
        length: U64,
        /// The first of them.
        offset: U64,
        /// For how many queues.
        queues: U16,
        /// Of how many entries.
        size: U16,
        /// Nothing.
        padding: U32,
    }
    /// What GET_CONFIG and SET_CONFIG begin with.
    ConfigHead {
        /// The first byte.
        offset: U32,
        /// How many.
        size: U32,
        /// Why they are written: 0, as the driver does.
        flags: U32,
    }
}

impl InflightPlace {
    /// Bytes that say something.
    pub const WORDS: usize = 20;
}

impl MemoryRegion {
    /// Whether an address beyond it is none.
    fn makes_sense(&self) -> bool {
        let last = self.size.get().checked_sub(1);
        let fits = |start: U64| last.is_some_and(|last| start.get().checked_add(last).is_some());
        fits(self.guest) && fits(self.user) && fits(self.offset)
    }
}

/// What a message about a translation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IotlbKind {
    /// The back end asks for it.
    Miss = 1,
    /// The front end gives it.
    Update = 2,
    /// The front end takes it back.
    Invalidate = 3,
}

impl IotlbMessage {
    /// Of this kind, for so many bytes from `iova` on.
    #[must_use]
    pub fn new(kind: IotlbKind, iova: u64, size: u64, user: u64, access: Access) -> Self {
        let access = u8::from(access.contains(Access::READ)) | u8::from(access.contains(Access::WRITE)) << 1;
        let (iova, size, user) = (U64::new(iova), U64::new(size), U64::new(user));
        Self { iova, size, user, access, kind: kind as u8, padding: [0; 6] }
    }

    /// What it is, if that is something.
    #[must_use]
    pub fn kind(&self) -> Option<IotlbKind> {
        match self.kind {
            1 => Some(IotlbKind::Miss),
            2 => Some(IotlbKind::Update),
            3 => Some(IotlbKind::Invalidate),
            _ => None,
        }
    }

    /// What is allowed, or asked for.
    #[must_use]
    pub fn access(&self) -> Access {
        let mut access = Access::empty();
        access.set(Access::READ, self.access & 1 != 0);
        access.set(Access::WRITE, self.access & 2 != 0);
        access
    }
}

/// Which ring a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringFile {
    /// Which ring.
    pub index: u8,
    /// Whether there is one.
    pub has_file: bool,
}

impl VringFile {
    const NO_FILE: u64 = 1 << 8;

    /// As it is sent.
    #[must_use]
    pub fn encode(self) -> u64 {
        u64::from(self.index) | if self.has_file { 0 } else { Self::NO_FILE }
    }
}

/// A front end's request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum Request<'a> {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<MemoryRegion>),
    SetVringNum(VringState),
    SetVringAddr(VringAddress),
    SetVringBase(VringState),
    GetVringBase(VringState),
    SetVringKick(VringFile),
    SetVringCall(VringFile),
    SetVringErr(VringFile),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(VringState),
    SetBackendReqFd,
    Iotlb(IotlbMessage),
    GetConfig(ConfigHead),
    SetConfig(ConfigHead, &'a [u8]),
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(MemoryRegion),
    RemMemReg(MemoryRegion),
    SetStatus(u64),
    GetStatus,
}

/// A payload, and whose it is.
struct Payload<'a> {
    name: &'static str,
    bytes: &'a [u8],
    descriptors: usize,
}

impl<'a> Payload<'a> {
    fn whole<T: FromBytes + Immutable>(&self) -> Result<T, MessageError> {
        T::read_from_bytes(self.bytes).map_err(|_| MessageError::Length(self.name, self.bytes.len()))
    }

    fn number(&self) -> Result<u64, MessageError> {
        Ok(self.whole::<U64>()?.get())
    }

    fn prefix<T: FromBytes + Immutable>(&self) -> Result<(T, &'a [u8]), MessageError> {
        T::read_from_prefix(self.bytes).map_err(|_| MessageError::Length(self.name, self.bytes.len()))
    }

    fn descriptors(&self, count: usize) -> Result<(), MessageError> {
        if self.descriptors == count { Ok(()) } else { Err(MessageError::Descriptors(self.name, self.descriptors)) }
    }

    fn vring_file(&self) -> Result<VringFile, MessageError> {
        let number = self.number()?;
        let file = VringFile { index: number as u8, has_file: number & VringFile::NO_FILE == 0 };
        if number >> 9 != 0 {
            return Err(MessageError::Value(self.name, number));
        }
        self.descriptors(usize::from(file.has_file))?;
        Ok(file)
    }

    fn region(&self, region: MemoryRegion) -> Result<MemoryRegion, MessageError> {
        if region.makes_sense() { Ok(region) } else { Err(MessageError::Value(self.name, region.size.get())) }
    }

    fn config(&self) -> Result<(ConfigHead, &'a [u8]), MessageError> {
        let (head, bytes) = self.prefix::<ConfigHead>()?;
        let end = head.offset.get().checked_add(head.size.get());
        if bytes.len() != head.size.get() as usize {
            return Err(MessageError::Length(self.name, self.bytes.len()));
        }
        end.filter(|end| *end as usize <= MAX_CONFIG)
            .map(|_| (head, bytes))
            .ok_or(MessageError::Value(self.name, head.offset.get().into()))
    }
}

impl<'a> Request<'a> {
    /// Takes a request apart: its number, its payload, how many descriptors came beside it.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(request: u32, payload: &'a [u8], descriptors: usize) -> Result<Self, MessageError> {
        let id = RequestId::from_number(request).ok_or(MessageError::Request(request))?;
        let payload = Payload { name: id.name(), bytes: payload, descriptors };
        let has_descriptors = matches!(
            id,
            RequestId::SetMemTable
                | RequestId::SetVringKick
                | RequestId::SetVringCall
                | RequestId::SetVringErr
                | RequestId::SetBackendReqFd
                | RequestId::AddMemReg
                | RequestId::RemMemReg
                | RequestId::SetInflightFd
        );
        if !has_descriptors {
            payload.descriptors(0)?;
        }
        // Some front ends have bytes behind requests that say nothing: they say nothing.
        match id {
            RequestId::GetFeatures => Ok(Self::GetFeatures),
            RequestId::SetFeatures => payload.number().map(Self::SetFeatures),
            RequestId::SetOwner => Ok(Self::SetOwner),
            RequestId::ResetOwner => Ok(Self::ResetOwner),
            RequestId::SetMemTable => {
                let (head, rest) = payload.prefix::<MemoryHead>()?;
                let count = head.regions.get() as usize;
                if count > MAX_REGIONS {
                    return Err(MessageError::Value(id.name(), count as u64));
                }
                let bytes = rest.get(..count * size_of::<MemoryRegion>());
                // Some send the array as long as it can be.
                let bytes = bytes.ok_or(MessageError::Length(id.name(), payload.bytes.len()))?;
                let regions = bytes.chunks(size_of::<MemoryRegion>()).map(|region| {
                    let region = MemoryRegion::read_from_bytes(region);
                    payload.region(region.map_err(|_| MessageError::Length(id.name(), bytes.len()))?)
                });
                let regions = regions.collect::<Result<Vec<_>, _>>()?;
                payload.descriptors(count)?;
                Ok(Self::SetMemTable(regions))
            }
            RequestId::SetVringNum => payload.whole().map(Self::SetVringNum),
            RequestId::SetVringAddr => payload.whole().map(Self::SetVringAddr),
            RequestId::SetVringBase => payload.whole().map(Self::SetVringBase),
            RequestId::GetVringBase => payload.whole().map(Self::GetVringBase),
            RequestId::SetVringKick => payload.vring_file().map(Self::SetVringKick),
            RequestId::SetVringCall => payload.vring_file().map(Self::SetVringCall),
            RequestId::SetVringErr => payload.vring_file().map(Self::SetVringErr),
            RequestId::GetProtocolFeatures => Ok(Self::GetProtocolFeatures),
            RequestId::SetProtocolFeatures => payload.number().map(Self::SetProtocolFeatures),
            RequestId::GetQueueNum => Ok(Self::GetQueueNum),
            RequestId::SetVringEnable => payload.whole().map(Self::SetVringEnable),
            RequestId::SetBackendReqFd => {
                payload.descriptors(1)?;
                Ok(Self::SetBackendReqFd)
            }
            RequestId::IotlbMsg => payload.whole().map(Self::Iotlb),
            RequestId::GetConfig => Ok(Self::GetConfig(payload.config()?.0)),
            RequestId::SetConfig => payload.config().map(|(head, bytes)| Self::SetConfig(head, bytes)),
            RequestId::ResetDevice => Ok(Self::ResetDevice),
            RequestId::GetMaxMemSlots => Ok(Self::GetMaxMemSlots),
            RequestId::AddMemReg => {
                let single = payload.whole::<SingleRegion>()?;
                payload.descriptors(1)?;
                payload.region(single.region).map(Self::AddMemReg)
            }
            // A descriptor may be beside it, and is of no use.
            RequestId::RemMemReg if descriptors > 1 => Err(MessageError::Descriptors(id.name(), descriptors)),
            RequestId::RemMemReg => Ok(Self::RemMemReg(payload.whole::<SingleRegion>()?.region)),
            RequestId::SetStatus => payload.number().map(Self::SetStatus),
            RequestId::GetStatus => Ok(Self::GetStatus),
            // Back ends here finish requests in their order, and have nothing to keep.
            RequestId::GetInflightFd | RequestId::SetInflightFd => Err(MessageError::Request(request)),
        }
    }
}

/// A back end's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendRequest {
    /// It asks for a translation.
    Miss(IotlbMessage),
    /// The device's configuration has changed.
    ConfigChange,
}

impl BackendRequest {
    /// Takes a request apart.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(request: u32, payload: &[u8]) -> Result<Self, MessageError> {
        let id = BackendRequestId::from_number(request).ok_or(MessageError::Request(request))?;
        let payload = Payload { name: id.name(), bytes: payload, descriptors: 0 };
        match id {
            BackendRequestId::IotlbMsg => {
                let message = payload.whole::<IotlbMessage>()?;
                match message.kind() {
                    Some(IotlbKind::Miss) => Ok(Self::Miss(message)),
                    _ => Err(MessageError::Value(id.name(), message.kind.into())),
                }
            }
            BackendRequestId::ConfigChangeMsg => Ok(Self::ConfigChange),
        }
    }
}
