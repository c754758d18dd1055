//! A disk: `virtio-blk` (1af4:1042), in a file, in memory, or a back end's.
//!
//! ```text
//!   a request's descriptors
//!   ┌────────────────────┐   ┌──────────────────────────┐   ┌──────────┐
//!   │ type, sector (16 B)│ ► │ data, any number of these│ ► │ status 1 │
//!   └────────────────────┘   └──────────────────────────┘   └──────────┘
//! ```
//! A request is carried out when it comes, so the disk is as the driver has been told, and a flush has only the file to
//! wait for. Bytes go by way of a buffer: nothing is held while the file works, so an unmap does not wait for it.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, 5.2.

use std::path::PathBuf;

use ioasid::{DmaError, Iova};

use super::elsewhere::{self, BackEnd, Place, Shape};
use super::queue::{Broken, Part};
use super::{Device, Identity, Offer, Parts, Queues, Served, TURN, function};
use crate::Dma;
use crate::registry::{BuildError, Built, Context, ModelInfo, OptionInfo, OptionKind, Options, Site, one};
use crate::storage::{self, Blocks, MemoryBlocks};

/// Bytes of a sector, the unit of addresses.
const SECTOR: u64 = 512;
/// Bytes that are moved at once.
const PIECE: usize = 64 << 10;
/// Sectors that are discarded, or made zero, by one request: 1 GiB.
const MOST_AT_ONCE: u32 = 2 << 20;
/// The largest disk.
const MOST: u64 = 1 << 50;

/// Features of a disk (5.2.3).
mod feature {
    pub(super) const SIZE_MAX: u64 = 1 << 1;
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const GEOMETRY: u64 = 1 << 4;
    pub(super) const READ_ONLY: u64 = 1 << 5;
    pub(super) const BLOCK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const TOPOLOGY: u64 = 1 << 10;
    pub(super) const QUEUES: u64 = 1 << 12;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// What a request asks for (VIRTIO_BLK_T_…).
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

const IMAGE: &str = "image";
const SIZE: &str = "size";
const MEMORY: &str = "memory";
const READONLY: &str = "readonly";
const SERIAL: &str = "serial";
const QUEUES: &str = "queues";

/// The model.
pub const MODEL: ModelInfo = ModelInfo {
    name: "virtio-blk",
    about: "virtio 1.2 disk in a file or in memory (1af4:1042)",
    options: &[
        OptionInfo::new(IMAGE, "a raw file, or a block device", OptionKind::Text("FILE")),
        OptionInfo::new(SIZE, "make the file if there is none", OptionKind::Size { least: SECTOR, most: MOST }),
        OptionInfo::new(MEMORY, "a disk in memory", OptionKind::Size { least: SECTOR, most: MOST }),
        OptionInfo::new(READONLY, "it cannot be written", OptionKind::Flag),
        OptionInfo::new(SERIAL, "its name, up to 20 bytes (made of the place)", OptionKind::Text("TEXT")),
        OptionInfo::new(QUEUES, "queues (1)", OptionKind::Number { least: 1, most: 16 }),
        elsewhere::OPTIONS[0],
        elsewhere::OPTIONS[1],
        elsewhere::OPTIONS[2],
    ],
    registers: &[super::registers::Register::TABLE],
    functions: one,
    check: |options| {
        let of_own = [IMAGE, SIZE, MEMORY, READONLY, SERIAL];
        elsewhere::check(options, &of_own)?;
        match (options.text(IMAGE), options.number(MEMORY), elsewhere::is_meant(options)) {
            (Some(_), None, false) | (None, Some(_), false) | (None, None, true) => Ok(()),
            _ => Err(BuildError::NoDisk),
        }
    },
    build,
    offer: Some(offer),
};

fn queues(options: &Options) -> u16 {
    options.number(QUEUES).unwrap_or(1) as u16
}

fn build(options: &Options, sites: &[Site], context: Context<'_>) -> Result<Vec<Built>, BuildError> {
    let site = sites[0];
    let queues = queues(options);
    if let Some(place) = Place::of(options, site.rid, &context.notice) {
        return back_end(BackEnd::find(place)?, queues, site, context);
    }
    function(parts(options, site)?, site, &context)
}

fn offer(options: &Options, site: Site, context: Context<'_>) -> Result<Offer, BuildError> {
    Offer::new(parts(options, site)?, site, &context)
}

/// A disk here.
fn parts(options: &Options, site: Site) -> Result<Parts, BuildError> {
    let queues = queues(options);
    let readonly = options.has(READONLY);
    let blocks = match (options.text(IMAGE), options.number(MEMORY)) {
        (Some(image), _) => {
            let image = storage::open(&PathBuf::from(image), options.number(SIZE), SECTOR, readonly);
            Blocks::Image(image.map_err(|error| BuildError::Image(site.rid, error))?)
        }
        (None, memory) => {
            let memory = MemoryBlocks::new(memory.unwrap_or(SECTOR) / SECTOR * SECTOR);
            Blocks::Memory(memory.map_err(|error| BuildError::NoMemory(site.rid, error.to_string()))?)
        }
    };
    let mut serial = [0; 20];
    let text = options.text(SERIAL).map_or_else(|| format!("ioasid {}", site.rid), str::to_owned);
    serial.iter_mut().zip(text.bytes()).for_each(|(byte, text)| *byte = text);
    let identity = identity(&blocks, readonly, queues);
    let disk = Disk { blocks, readonly, serial, writes_through: true, buffer: vec![0; PIECE] };
    Ok((identity, Box::new(disk)))
}

/// A disk that a back end has.
fn back_end(back_end: BackEnd, queues: u16, site: Site, context: Context<'_>) -> Result<Vec<Built>, BuildError> {
    /// What is the driver's and the back end's to agree on, and asks for nothing of this side.
    const KNOWN: u64 = feature::SIZE_MAX
        | feature::SEG_MAX
        | feature::GEOMETRY
        | feature::READ_ONLY
        | feature::BLOCK_SIZE
        | feature::FLUSH
        | feature::TOPOLOGY
        | feature::QUEUES
        | feature::DISCARD
        | feature::WRITE_ZEROES;
    let mut configuration = back_end.read_config(CONFIGURATION)?;
    shown(&mut configuration, queues);
    let features = back_end.features(if queues > 1 { KNOWN } else { KNOWN & !feature::QUEUES });
    let shape = Shape { features, queues, configuration: CONFIGURATION, shown, failure: Some(Refusal::Failed as u8) };
    let identity = Identity { kind: KIND, class: CLASS, features, queues, together: 1, configuration };
    back_end.function(&identity, shape, site, &context)
}

/// A back end's configuration as the driver sees it: this side has the queues.
fn shown(configuration: &mut [u8], queues: u16) {
    let most = configuration[12..16].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    configuration[12..16].copy_from_slice(&most.min(SEGMENTS).to_le_bytes());
    configuration[34..36].copy_from_slice(&queues.to_le_bytes());
}

/// Parts of a request that are data: with the two others as many as a queue of 128 has, which is what VMMs make of one
/// that another process serves.
const SEGMENTS: u32 = 126;
/// Bytes of the configuration.
const CONFIGURATION: usize = 60;
const KIND: u16 = 2;
const CLASS: u32 = 0x01_8000;

fn identity(blocks: &Blocks, readonly: bool, queues: u16) -> Identity {
    let mut configuration = vec![0; CONFIGURATION];
    let mut put = |at: usize, bytes: &[u8]| configuration[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(blocks.length() / SECTOR).to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    put(34, &queues.to_le_bytes());
    for at in [36, 48] {
        // Sectors of one segment, and one segment in a request.
        put(at, &MOST_AT_ONCE.to_le_bytes());
        put(at + 4, &1u32.to_le_bytes());
    }
    put(44, &1u32.to_le_bytes());
    put(56, &[1]);
    let writes = feature::DISCARD | feature::WRITE_ZEROES;
    let features = feature::SEG_MAX
        | feature::FLUSH
        | if queues > 1 { feature::QUEUES } else { 0 }
        | if readonly { feature::READ_ONLY } else { writes }
        | super::feature::ALL;
    Identity { kind: KIND, class: CLASS, features, queues, together: 1, configuration }
}

/// The disk.
struct Disk {
    blocks: Blocks,
    readonly: bool,
    serial: [u8; 20],
    /// What is done is there after a loss of power, as the driver does not ask for that.
    writes_through: bool,
    buffer: Vec<u8>,
}

/// Why a request is not done, in the byte that the driver is told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Refusal {
    Failed = 1,
    Unsupported = 2,
}

/// Whatever address the driver got wrong, to the driver it is an I/O error; the IOMMU has the details.
impl From<DmaError> for Refusal {
    fn from(_: DmaError) -> Self {
        Self::Failed
    }
}

impl From<std::io::Error> for Refusal {
    fn from(_: std::io::Error) -> Self {
        Self::Failed
    }
}

impl Device for Disk {
    fn begin(&mut self, features: u64) {
        // A driver that cannot ask for it relies on it (5.2.6.2).
        self.writes_through = features & feature::FLUSH == 0;
    }

    fn serve(
        &mut self,
        queues: &mut Queues,
        kicked: u64,
        dma: &mut dyn Dma,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Served, Broken> {
        let mut served = Served::default();
        for (number, queue) in queues.iter_mut().enumerate() {
            let Some(queue) = queue.as_mut().filter(|_| kicked & 1 << number != 0) else { continue };
            queue.be_silent(dma)?;
            let mut is_empty = false;
            for _ in 0..TURN {
                let Some(chain) = queue.pop(dma)? else {
                    is_empty = !queue.ask_to_be_told(dma)?;
                    break;
                };
                let written = self.request(dma, &chain.parts, goes_on);
                if !goes_on() {
                    return Ok(served);
                }
                queue.push(dma, chain.head, written)?;
            }
            served.more |= u64::from(!is_empty) << number;
            served.interrupts |= u64::from(queue.wants_interrupt(dma)?) << number;
        }
        Ok(served)
    }
}

/// What a request consists of, however it is cut into parts (2.7.4.1).
struct Request {
    header: [u8; HEADER as usize],
    /// What the device reads behind the header.
    readable: Vec<Part>,
    /// What it writes before the status.
    writable: Vec<Part>,
}

/// Bytes of the header.
const HEADER: u32 = 16;

impl Request {
    fn of(dma: &mut dyn Dma, parts: &[Part]) -> Result<Self, Refusal> {
        let mut readable: Vec<Part> = parts.iter().filter(|part| !part.writes).copied().collect();
        let mut writable: Vec<Part> = parts.iter().filter(|part| part.writes).copied().collect();
        if let Some(last) = writable.last_mut() {
            last.length -= 1;
        }
        writable.retain(|part| part.length > 0);
        let (mut header, mut done) = ([0; HEADER as usize], 0);
        for part in &mut readable {
            let now = part.length.min(HEADER - done);
            dma.read(Iova(part.address).into(), &mut header[done as usize..][..now as usize])?;
            *part = Part { address: part.address.wrapping_add(now.into()), length: part.length - now, ..*part };
            done += now;
        }
        readable.retain(|part| part.length > 0);
        if done < HEADER { Err(Refusal::Failed) } else { Ok(Self { header, readable, writable }) }
    }
}

impl Disk {
    /// Does one request, and returns how many bytes of the chain were written.
    fn request(&mut self, dma: &mut dyn Dma, parts: &[Part], goes_on: &dyn Fn() -> bool) -> u32 {
        // The last byte that is written is the status: without it there is nothing to tell the driver with.
        let last = parts.iter().rfind(|part| part.writes && part.length > 0);
        let place = last.and_then(|last| last.address.checked_add(u64::from(last.length) - 1));
        let is_ordered = parts.is_sorted_by_key(|part| part.writes) && parts.last().is_none_or(|part| part.length > 0);
        let Some(place) = place.filter(|_| is_ordered) else { return 0 };
        let done = Request::of(dma, parts).and_then(|request| self.execute(dma, &request, goes_on));
        let (written, status) = match done {
            Ok(written) => (written, 0),
            Err(refusal) => (0, refusal as u8),
        };
        dma.write(Iova(place).into(), &[status]).map_or(0, |()| written.saturating_add(1))
    }

    fn execute(&mut self, dma: &mut dyn Dma, request: &Request, goes_on: &dyn Fn() -> bool) -> Result<u32, Refusal> {
        let Request { header, readable, writable } = request;
        let [a, b, c, d, _, _, _, _, sector @ ..] = *header;
        let (kind, sector) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector));
        let is_write = matches!(kind, kind::OUT | kind::DISCARD | kind::WRITE_ZEROES);
        if is_write && self.readonly {
            return Err(Refusal::Failed);
        }
        let written = match kind {
            // What goes the other way is nothing.
            kind::IN if readable.is_empty() => self.transfer(dma, sector, writable, true, goes_on)?,
            kind::OUT if writable.is_empty() => self.transfer(dma, sector, readable, false, goes_on)?,
            kind::IN | kind::OUT => return Err(Refusal::Failed),
            kind::FLUSH => {
                self.blocks.flush()?;
                0
            }
            kind::GET_ID => {
                let Some(part) = writable.first() else { return Err(Refusal::Failed) };
                let id = &self.serial[..self.serial.len().min(part.length as usize)];
                dma.write(Iova(part.address).into(), id)?;
                id.len() as u32
            }
            kind::DISCARD | kind::WRITE_ZEROES => {
                self.zero(dma, kind, readable, goes_on)?;
                0
            }
            _ => return Err(Refusal::Unsupported),
        };
        if is_write && self.writes_through {
            self.blocks.flush()?;
        }
        Ok(written)
    }

    fn transfer(
        &mut self,
        dma: &mut dyn Dma,
        sector: u64,
        data: &[Part],
        reads: bool,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<u32, Refusal> {
        // All of it is on the disk, or none of it is touched.
        let length: u64 = data.iter().map(|part| u64::from(part.length)).sum();
        let mut at = self.range(sector, length)?;
        for part in data {
            for offset in (0..part.length).step_by(PIECE) {
                if !goes_on() {
                    return Err(Refusal::Failed);
                }
                let piece = &mut self.buffer[..((part.length - offset) as usize).min(PIECE)];
                let address = Iova(part.address.checked_add(offset.into()).ok_or(Refusal::Failed)?).into();
                if reads {
                    self.blocks.read(at, piece)?;
                    dma.write(address, piece)?;
                } else {
                    dma.read(address, piece)?;
                    self.blocks.write(at, piece, false)?;
                }
                at += piece.len() as u64;
            }
        }
        Ok(if reads { u32::try_from(length).unwrap_or(u32::MAX) } else { 0 })
    }

    /// Discards sectors, or makes them zero: one segment of 16 bytes.
    fn zero(&mut self, dma: &mut dyn Dma, kind: u32, data: &[Part], goes_on: &dyn Fn() -> bool) -> Result<(), Refusal> {
        const UNMAP: u32 = 1;
        let [part] = data else { return Err(Refusal::Failed) };
        if part.length != 16 {
            return Err(Refusal::Failed);
        }
        let mut segment = [0; 16];
        dma.read(Iova(part.address).into(), &mut segment)?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| segment[at + byte]));
        let (sector, count, flags) = (u64::from(word(0)) | u64::from(word(4)) << 32, word(8), word(12));
        if flags & !UNMAP != 0 || kind == kind::DISCARD && flags != 0 {
            return Err(Refusal::Unsupported);
        }
        let length = u64::from(count) * SECTOR;
        let start = self.range(sector, length)?;
        if count > MOST_AT_ONCE {
            return Err(Refusal::Failed);
        }
        Ok(self.blocks.zero(start, length, kind == kind::DISCARD || flags == UNMAP, goes_on)?)
    }

    /// Where so many whole sectors begin, if they are on the disk.
    fn range(&self, sector: u64, length: u64) -> Result<u64, Refusal> {
        let start = sector.checked_mul(SECTOR).ok_or(Refusal::Failed)?;
        let end = start.checked_add(length).ok_or(Refusal::Failed)?;
        let is_whole = length > 0 && length.is_multiple_of(SECTOR);
        if end > self.blocks.length() || !is_whole { Err(Refusal::Failed) } else { Ok(start) }
    }
}
