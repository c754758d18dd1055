//! What a controller is made of.

use std::path::PathBuf;

use thiserror::Error;

use super::fail::Failure;
use crate::storage::ImageError;

/// Most queue pairs for I/O.
pub const MAX_QUEUES: u16 = 64;
/// Most namespaces that a controller is made with.
pub const MAX_NAMESPACES: usize = 32;
/// Largest controller memory buffer.
pub const MAX_CMB: u64 = 8 << 20;

/// Where the blocks of a namespace are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// In memory, zero at first: so many bytes.
    Memory(u64),
    /// In a file or a block device. With a size, a file is made if there is none.
    Image {
        /// Where it is.
        path: PathBuf,
        /// Bytes.
        size: Option<u64>,
    },
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceOptions {
    /// Where its blocks are.
    pub backing: Backing,
    /// log2 of the bytes of a block: 9 or 12.
    pub block_shift: u32,
    /// The host can read it only.
    pub readonly: bool,
    /// Blocks have protection information of this type, 1 to 3, in a buffer of its own; 0 for none.
    pub protection: u8,
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeOptions {
    /// Its namespaces, which have the identifiers from 1 on: up to [`MAX_NAMESPACES`].
    pub namespaces: Vec<NamespaceOptions>,
    /// Up to 20 printable characters.
    pub serial: String,
    /// Queue pairs for I/O, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Bytes of the controller memory buffer: 0, or a power of two from 4 KiB to [`MAX_CMB`].
    pub cmb: u64,
    /// The doorbells are a page of memory, which the controller looks at: a store costs nothing, and an idle controller
    /// sees one after 10 ms at the latest.
    pub doorbells_in_memory: bool,
    /// What shall go wrong.
    pub failures: Vec<Failure>,
}

impl Default for NvmeOptions {
    fn default() -> Self {
        Self {
            namespaces: Vec::new(),
            serial: "ioasid".into(),
            queues: MAX_QUEUES,
            cmb: 0,
            doorbells_in_memory: false,
            failures: Vec::new(),
        }
    }
}

/// Why there is no such controller.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NvmeError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("a controller has {MAX_NAMESPACES} namespaces at the most, and not {0}")]
    TooManyNamespaces(usize),
    #[error("`{0}` is no serial number: it has 1 to 20 printable characters of ASCII")]
    Serial(String),
    #[error("a controller has 1 to {MAX_QUEUES} queue pairs, and not {0}")]
    Queues(u16),
    #[error("a controller memory buffer of {0} bytes: a power of two from 4096 to {MAX_CMB} is possible")]
    Cmb(u64),
    #[error("a namespace has blocks of 512 or 4096 bytes (a shift of 9 or 12), and not of a shift of {0}")]
    Block(u32),
    #[error("protection information is of type 1, 2 or 3, and not {0}")]
    Protection(u8),
    #[error("a namespace of {0} bytes has no whole blocks of {1}")]
    NoBlocks(u64, u64),
    #[error("the controller could not be set up: {0}")]
    Io(String),
}

impl NvmeOptions {
    pub(super) fn check(&self) -> Result<(), NvmeError> {
        if self.namespaces.len() > MAX_NAMESPACES {
            return Err(NvmeError::TooManyNamespaces(self.namespaces.len()));
        }
        let is_printable = self.serial.bytes().all(|byte| (0x20..0x7F).contains(&byte));
        if !(1..=20).contains(&self.serial.len()) || !is_printable {
            return Err(NvmeError::Serial(self.serial.clone()));
        }
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return Err(NvmeError::Queues(self.queues));
        }
        if self.cmb != 0 && !(self.cmb.is_power_of_two() && (4096..=MAX_CMB).contains(&self.cmb)) {
            return Err(NvmeError::Cmb(self.cmb));
        }
        for namespace in &self.namespaces {
            if !matches!(namespace.block_shift, 9 | 12) {
                return Err(NvmeError::Block(namespace.block_shift));
            }
            if namespace.protection > 3 {
                return Err(NvmeError::Protection(namespace.protection));
            }
            if let Backing::Memory(bytes) = namespace.backing
                && (bytes == 0 || !bytes.is_multiple_of(1 << namespace.block_shift))
            {
                return Err(NvmeError::NoBlocks(bytes, 1 << namespace.block_shift));
            }
        }
        Ok(())
    }
}
