//! VERSION: what each side speaks, as numbers and as JSON.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zerocopy::native_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use super::{CommandId, MAX_DESCRIPTORS, MAX_TRANSFER, MessageError};

/// The major version that both sides have to speak.
pub const MAJOR: u16 = 0;
/// The minor version that is spoken here.
pub const MINOR: u16 = 1;

/// How many descriptors beside a message are asked for: QEMU 11 speaks to nobody who takes more.
const SAID_DESCRIPTORS: u64 = 16;

/// Who takes less at once takes a page all the same, as each would be a message otherwise.
const LEAST_TRANSFER: u64 = 4096;

/// What VERSION says, in both directions.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    /// The major version.
    pub major: u16,
    /// The minor version.
    pub minor: u16,
    /// What its sender can do.
    pub capabilities: Capabilities,
}

/// What a side can do. What it does not say has the value that the specification gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// How many descriptors it takes beside one message.
    pub max_msg_fds: u64,
    /// How many bytes it takes in one message that moves data.
    pub max_data_xfer_size: u64,
    /// How many mappings for DMA it has at most.
    pub max_dma_maps: u64,
    /// The sizes of pages in these, a bit for each.
    pub pgsizes: u64,
    /// Commands of the server go by a socket of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub twin_socket: Option<TwinSocket>,
    /// Whether it takes REGION_WRITE_MULTI.
    pub write_multiple: bool,
    /// Whether it knows SHARED_TABLES, which the specification does not have.
    #[serde(rename = "ioasid_shared_tables", skip_serializing_if = "std::ops::Not::not")]
    pub shared_tables: bool,
}

/// A socket for the commands of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TwinSocket {
    /// Whether the sender can have one, or, in the reply, whether there is one.
    pub supported: bool,
    /// Which of the descriptors beside the reply it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd_index: Option<u64>,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_msg_fds: 1,
            max_data_xfer_size: 1 << 20,
            max_dma_maps: 65535,
            pgsizes: 4096,
            twin_socket: None,
            write_multiple: false,
            shared_tables: false,
        }
    }
}

impl Capabilities {
    /// What is possible here.
    #[must_use]
    pub fn ours() -> Self {
        Self {
            max_msg_fds: SAID_DESCRIPTORS,
            max_data_xfer_size: MAX_TRANSFER,
            pgsizes: (1 << 48) - (1 << 12),
            write_multiple: true,
            ..Self::default()
        }
    }

    /// How many bytes a message to whoever has these moves at most.
    #[must_use]
    pub fn transfer(&self) -> usize {
        self.max_data_xfer_size.clamp(LEAST_TRANSFER, MAX_TRANSFER) as usize
    }

    /// How many descriptors a message to whoever has these has at most.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.max_msg_fds.min(MAX_DESCRIPTORS as u64) as usize
    }
}

/// Why two sides cannot speak with each other.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VersionError {
    /// It is not a VERSION message, or too short for one.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Another major version.
    #[error("the peer speaks version {0}.{1} of vfio-user, and this side {MAJOR}.{MINOR}")]
    Major(u16, u16),
    /// It is no JSON, or not of these values.
    #[error("the peer's capabilities are not as they have to be: {0}")]
    Json(#[from] serde_json::Error),
    /// It says that there is a socket and not which.
    #[error("the peer says that there is a twin socket, and does not pass one")]
    NoTwin,
}

#[derive(Deserialize, Serialize, Default)]
struct Data {
    #[serde(default)]
    capabilities: Capabilities,
}

impl Version {
    /// With these capabilities.
    #[must_use]
    pub fn with(capabilities: Capabilities) -> Self {
        Self { major: MAJOR, minor: MINOR, capabilities }
    }

    /// Takes a message apart.
    ///
    /// # Errors
    /// [`VersionError`].
    pub fn decode(payload: &[u8]) -> Result<Self, VersionError> {
        let short = || MessageError::Length(CommandId::Version, payload.len());
        let ([major, minor], data) = <[U16; 2]>::read_from_prefix(payload).map_err(|_| short())?;
        let (major, minor) = (major.get(), minor.get());
        if major != MAJOR {
            return Err(VersionError::Major(major, minor));
        }
        let text = data.split(|byte| *byte == 0).next().unwrap_or_default();
        let Data { capabilities } = if text.is_empty() { Data::default() } else { serde_json::from_slice(text)? };
        Ok(Self { major, minor, capabilities })
    }

    /// Puts a message together.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = [U16::new(self.major), U16::new(self.minor)].as_bytes().to_vec();
        let data = Data { capabilities: self.capabilities.clone() };
        // Numbers and booleans under fixed names: there is nothing that could not be written.
        payload.extend(serde_json::to_vec(&data).unwrap_or_default());
        payload.push(0);
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Vec<u8> {
        let mut payload = vec![0, 0, 1, 0];
        payload.extend(text.as_bytes());
        payload
    }

    #[test]
    fn what_is_not_said_is_as_the_specification_has_it() {
        for text in
            ["", "\0", "{}\0", "{\"capabilities\":{}}", "{\"capabilities\":{\"migration\":{\"pgsize\":4096}}}\0"]
        {
            let version = Version::decode(&message(text)).unwrap();
            assert_eq!(version, Version { major: 0, minor: 1, capabilities: Capabilities::default() }, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let twin = Some(TwinSocket { supported: true, fd_index: Some(0) });
        let version = Version::with(Capabilities { twin_socket: twin, ..Capabilities::ours() });
        assert_eq!(Version::decode(&version.encode()).unwrap(), version);
    }

    #[test]
    fn what_is_none_is_refused() {
        assert!(matches!(Version::decode(&[1, 0, 1, 0]), Err(VersionError::Major(1, 1))));
        assert!(matches!(Version::decode(&[0, 0, 1]), Err(VersionError::Message(_))));
        for text in ["{", "7", "{\"capabilities\":{\"max_msg_fds\":-1}}", "{\"capabilities\":7}", "\u{1}"] {
            assert!(matches!(Version::decode(&message(text)), Err(VersionError::Json(_))), "{text}");
        }
    }
}
