//! The 12 bytes that each message begins with, and the requests by their numbers.

use std::fmt;

use zerocopy::native_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{MAX_PAYLOAD, MessageError};
use crate::Ended;
use crate::socket::Head;

/// Bytes of a header.
pub const HEADER_SIZE: usize = 12;

/// What a message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Which request; the same in its reply.
    pub request: U32,
    /// The version, and what else there is to say.
    pub flags: U32,
    /// Bytes that follow.
    pub size: U32,
}

/// Bits of [`Header::flags`].
const VERSION: u32 = 0b11;
const VERSION_1: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEEDS_REPLY: u32 = 1 << 3;

impl Header {
    /// Of a request with so many bytes behind the header. One that `needs_reply` is answered whatever it is.
    #[must_use]
    pub fn request(request: u32, payload: usize, needs_reply: bool) -> Self {
        let flags = VERSION_1 | if needs_reply { NEEDS_REPLY } else { 0 };
        Self { request: U32::new(request), flags: U32::new(flags), size: U32::new(payload as u32) }
    }

    /// Of the reply to this request, with so many bytes behind the header.
    #[must_use]
    pub fn reply(&self, payload: usize) -> Self {
        Self { request: self.request, flags: U32::new(VERSION_1 | REPLY), size: U32::new(payload as u32) }
    }

    /// Whether it is a reply.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.flags.get() & REPLY != 0
    }

    /// Whether it is to be answered whatever it is.
    #[must_use]
    pub fn needs_reply(&self) -> bool {
        self.flags.get() & NEEDS_REPLY != 0
    }

    /// Number of bytes behind the header.
    ///
    /// # Errors
    /// [`MessageError::Version`], [`MessageError::Size`].
    pub fn payload(&self) -> Result<usize, MessageError> {
        let (flags, size) = (self.flags.get(), self.size.get());
        if flags & VERSION != VERSION_1 {
            return Err(MessageError::Version(flags & VERSION));
        }
        if size as usize <= MAX_PAYLOAD { Ok(size as usize) } else { Err(MessageError::Size(size)) }
    }
}

impl Head for Header {
    fn follows(&self) -> Result<usize, Ended> {
        Ok(self.payload()?)
    }
}

macro_rules! requests {
    ($(#[$about:meta])* $type:ident { $($name:ident = $number:literal, $text:literal;)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the names are the specification's")]
        #[repr(u32)]
        pub enum $type { $($name = $number,)* }

        impl $type {
            /// All that there are here.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The request with this number.
            #[must_use]
            pub fn from_number(number: u32) -> Option<Self> {
                Self::ALL.iter().copied().find(|id| *id as u32 == number)
            }

            /// Its name in the specification.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

requests! {
    /// What a front end asks for.
    RequestId {
        GetFeatures = 1, "GET_FEATURES";
        SetFeatures = 2, "SET_FEATURES";
        SetOwner = 3, "SET_OWNER";
        ResetOwner = 4, "RESET_OWNER";
        SetMemTable = 5, "SET_MEM_TABLE";
        SetVringNum = 8, "SET_VRING_NUM";
        SetVringAddr = 9, "SET_VRING_ADDR";
        SetVringBase = 10, "SET_VRING_BASE";
        GetVringBase = 11, "GET_VRING_BASE";
        SetVringKick = 12, "SET_VRING_KICK";
        SetVringCall = 13, "SET_VRING_CALL";
        SetVringErr = 14, "SET_VRING_ERR";
        GetProtocolFeatures = 15, "GET_PROTOCOL_FEATURES";
        SetProtocolFeatures = 16, "SET_PROTOCOL_FEATURES";
        GetQueueNum = 17, "GET_QUEUE_NUM";
        SetVringEnable = 18, "SET_VRING_ENABLE";
        SetBackendReqFd = 21, "SET_BACKEND_REQ_FD";
        IotlbMsg = 22, "IOTLB_MSG";
        GetConfig = 24, "GET_CONFIG";
        SetConfig = 25, "SET_CONFIG";
        GetInflightFd = 31, "GET_INFLIGHT_FD";
        SetInflightFd = 32, "SET_INFLIGHT_FD";
        ResetDevice = 34, "RESET_DEVICE";
        GetMaxMemSlots = 36, "GET_MAX_MEM_SLOTS";
        AddMemReg = 37, "ADD_MEM_REG";
        RemMemReg = 38, "REM_MEM_REG";
        SetStatus = 39, "SET_STATUS";
        GetStatus = 40, "GET_STATUS";
    }
}

requests! {
    /// What a back end asks for, by the socket that SET_BACKEND_REQ_FD passes.
    BackendRequestId {
        IotlbMsg = 1, "BACKEND_IOTLB_MSG";
        ConfigChangeMsg = 2, "BACKEND_CONFIG_CHANGE_MSG";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_to_its_request() {
        let request = Header::request(11, 8, true);
        assert!(request.needs_reply() && !request.is_reply());
        assert_eq!((request.payload(), request.reply(16).payload()), (Ok(8), Ok(16)));
        assert!(request.reply(0).is_reply() && !request.reply(0).needs_reply());
        assert_eq!(request.reply(0).request.get(), 11);
    }

    #[test]
    fn versions_and_sizes_are_those_that_there_are() {
        let of = |flags, size| Header { request: U32::new(1), flags: U32::new(flags), size: U32::new(size) }.payload();
        assert_eq!((of(1, 0), of(0xd, MAX_PAYLOAD as u32)), (Ok(0), Ok(MAX_PAYLOAD)));
        for version in [0, 2, 3] {
            assert_eq!(of(version, 0), Err(MessageError::Version(version)));
        }
        for size in [MAX_PAYLOAD as u32 + 1, u32::MAX] {
            assert_eq!(of(1, size), Err(MessageError::Size(size)));
        }
    }

    #[test]
    fn requests_have_the_numbers_of_the_specification() {
        assert_eq!(RequestId::from_number(22), Some(RequestId::IotlbMsg));
        assert_eq!(RequestId::from_number(18).map(RequestId::name), Some("SET_VRING_ENABLE"));
        assert_eq!(
            (RequestId::from_number(0), RequestId::from_number(6), RequestId::from_number(99)),
            (None, None, None)
        );
    }
}
