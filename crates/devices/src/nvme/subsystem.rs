//! What lasts when the controller is reset: namespaces, saved features, counters and logs.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::features::Features;
use super::namespace::{FORMATS, Format, Metadata, Namespace, PLAIN_FORMATS, WriteProtection};
use super::options::{Backing, NvmeOptions};
use super::pool::Pool;
use super::reservation::HostId;
use super::spec::status::Status;
use crate::storage::{self, Blocks, ImageError, MemoryBlocks};

/// Entries of the log of errors.
pub(super) const ERRORS: usize = 64;
/// Namespace identifiers that there can be.
pub(super) const MOST_NAMESPACES: u32 = super::options::MAX_NAMESPACES as u32;

/// A command that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorEntry {
    pub(super) queue: u16,
    pub(super) identifier: u16,
    pub(super) status: Status,
    pub(super) namespace: u32,
}

/// What SMART tells.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    /// Blocks of 512 bytes.
    pub(super) read: u64,
    pub(super) written: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) media_errors: u64,
    pub(super) errors: u64,
    pub(super) unsafe_shutdowns: u64,
    pub(super) power_cycles: u64,
}

impl Health {
    pub(super) fn note_read(&mut self, bytes: u64) {
        self.reads += 1;
        self.read += bytes / 512;
    }

    pub(super) fn note_written(&mut self, bytes: u64) {
        self.writes += 1;
        self.written += bytes / 512;
    }
}

/// How far a sanitize operation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sanitize {
    #[default]
    Never,
    /// Asked for, with this CDW10.
    UnderWay(u32),
    Done(u32),
    Failed(u32),
}

/// What lasts.
pub(super) struct Subsystem {
    pub(super) serial: String,
    /// Those that are allocated.
    pub(super) namespaces: BTreeMap<u32, Namespace>,
    /// What they are made of, and what others could be.
    pub(super) pool: Pool,
    /// Which formats there are.
    pub(super) formats: &'static [Format],
    /// Namespaces that there ever were.
    pub(super) made: u64,
    pub(super) saved: Features,
    pub(super) health: Health,
    pub(super) since: Instant,
    /// The last errors, the newest first, with their numbers.
    pub(super) errors: VecDeque<(u64, ErrorEntry)>,
    /// Namespaces that have changed since the log was read.
    pub(super) changed: Vec<u32>,
    pub(super) sanitize: Sanitize,
}

impl Subsystem {
    /// With the namespaces that are asked for.
    ///
    /// # Errors
    /// If an image cannot be used, or there is no memory.
    pub(super) fn new(options: &NvmeOptions) -> Result<Self, ImageError> {
        let (mut namespaces, mut pool) = (BTreeMap::new(), Pool::default());
        for (id, wanted) in (1..).zip(&options.namespaces) {
            let blocks = match &wanted.backing {
                Backing::Memory(bytes) => MemoryBlocks::new(*bytes)
                    .map(Blocks::Memory)
                    .map_err(|error| ImageError::NoMemory(*bytes, error.to_string()))?,
                Backing::Image { path, size } => {
                    Blocks::Image(storage::open(path, *size, 1 << wanted.block_shift, wanted.readonly)?)
                }
            };
            let extent = pool.add(blocks, wanted.readonly);
            let has_metadata = wanted.protection > 0;
            let format = FORMATS
                .into_iter()
                .find(|format| format.shift == wanted.block_shift && format.has_metadata == has_metadata);
            let metadata = Metadata { extended: false, protection: wanted.protection };
            let format = format.unwrap_or(FORMATS[0]);
            namespaces.insert(id, Namespace::new(extent, format, metadata, id.into()));
        }
        Ok(Self {
            serial: options.serial.clone(),
            formats: if options.namespaces.iter().any(|wanted| wanted.protection > 0) {
                &FORMATS
            } else {
                &FORMATS[..PLAIN_FORMATS]
            },
            made: namespaces.len() as u64,
            namespaces,
            pool,
            saved: Features::default(),
            health: Health { power_cycles: 1, ..Health::default() },
            since: Instant::now(),
            errors: VecDeque::new(),
            changed: Vec::new(),
            sanitize: Sanitize::Never,
        })
    }

    /// The namespace that a command is for, which has to be attached.
    ///
    /// # Errors
    /// One for what is no identifier, another for one that is not in use.
    pub(super) fn attached(&mut self, id: u32) -> Result<&mut Namespace, Status> {
        if !Self::is_identifier(id) {
            return Err(Status::INVALID_NAMESPACE);
        }
        self.namespaces.get_mut(&id).filter(|namespace| namespace.attached).ok_or(Status::INVALID_FIELD)
    }

    /// Whether a namespace cannot be written, or may not.
    pub(super) fn is_protected(&self, namespace: &Namespace) -> bool {
        namespace.protection != WriteProtection::None || self.pool.is_readonly(namespace.extent)
    }

    /// Checks that the namespace that a command is for can be written, and that `host` may.
    pub(super) fn check_writable(&mut self, id: u32, host: &HostId) -> Result<(), Status> {
        self.attached(id)?;
        if self.namespaces.get(&id).is_some_and(|namespace| self.is_protected(namespace)) {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        self.attached(id)?.reservation.check(host, true)
    }

    /// The identifiers of those that are attached.
    pub(super) fn active(&self) -> impl Iterator<Item = u32> {
        self.namespaces.iter().filter(|(_, namespace)| namespace.attached).map(|(id, _)| *id)
    }

    /// A namespace's globally unique identifier. It is the same whenever the same controller is made again.
    pub(super) fn name(&self, namespace: &Namespace) -> [u8; 16] {
        let text = format!("ioasid {} {}", self.serial, namespace.number);
        // FNV-1a of 128 bits.
        let hash = text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
            (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013B)
        });
        hash.to_be_bytes()
    }

    /// Whether identifiers can be this one.
    pub(super) fn is_identifier(id: u32) -> bool {
        (1..=MOST_NAMESPACES).contains(&id)
    }

    /// Notes a failure. Returns its status, which says that there is more to know.
    pub(super) fn note_error(&mut self, entry: ErrorEntry) -> Status {
        self.health.errors += 1;
        let is_of_media = matches!(entry.status.code(), 0x280 | 0x281);
        self.health.media_errors += u64::from(is_of_media);
        let entry = ErrorEntry { status: entry.status.with_more(), ..entry };
        self.errors.push_front((self.health.errors, entry));
        self.errors.truncate(ERRORS);
        entry.status
    }

    /// Notes that a namespace has come, gone or changed.
    pub(super) fn note_changed(&mut self, id: u32) {
        if !self.changed.contains(&id) {
            self.changed.push(id);
        }
    }
}
