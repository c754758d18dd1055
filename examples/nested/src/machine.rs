//! What a VMM makes: the guest's memory, an I/O address space that maps it, a parent page table, and a device with a
//! port.
//!
//! ```text
//!   offset in the memfd    guest-physical
//!         0                     0          page tables of the guest's
//!     8 MiB                 8 MiB          its table of PASIDs
//!    16 MiB                16 MiB          2 MiB of data, in pieces of 64 KiB
//!    18 MiB             4 GiB + 2 MiB      2 MiB more, above what a PC has other things at
//! ```
//! Each word of the data says where it is, so a read shows by itself what it reached.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use ioasid::memory::{GuestTables, Segment};
use ioasid::{
    Access, BusAddress, Context, Device, DmaPort, GroupId, Hwpt, HwptOptions, Ioas, Iova, IovaRange, Machine,
    NestedHwpt, NestedOptions, Pasid, Placement, Rid, Silent,
};
use iopt::Arena;

use crate::model::{Expected, Second};

/// Bytes that the guest has for page tables, from guest-physical 0.
const TABLES: u64 = 8 << 20;
/// Where the guest has its table of PASIDs, in the file and to itself.
pub const PASID_TABLE: u64 = TABLES;
/// Bytes of the file that are mapped as they lie: page tables, and the table of PASIDs behind.
const LOW: u64 = TABLES + (64 << 10);
/// Where in the file the data is, and its first part in the guest's memory.
const DATA: u64 = 16 << 20;
/// Where the second part is in the guest's memory.
const HIGH: u64 = (4 << 30) + (2 << 20);
/// Bytes of each part.
pub const PART: u64 = 2 << 20;
/// What the VMM takes away and gives back at a time.
const PIECE: u64 = 64 << 10;
/// Pieces of both parts.
pub const PIECES: u64 = 2 * PART / PIECE;

/// What a word of the data holds, beside its offset.
const MARK: u64 = 0x6e65_7374 << 32;

/// A machine with one guest.
pub struct Host {
    context: Arc<Context>,
    device: Device,
    port: DmaPort,
    ioas: Arc<Ioas>,
    parent: Arc<Hwpt>,
    memory: Arc<File>,
    /// Where the guest makes page tables.
    pub arena: Arc<Arena<GuestTables>>,
    /// What is mapped as the guest's data.
    pub second: Second,
    stamp: u64,
}

/// The guest-physical address of a byte of the data, counted from its beginning.
pub fn gpa(data: u64) -> u64 {
    if data < PART { DATA + data } else { HIGH + (data - PART) }
}

impl Host {
    /// # Errors
    /// If there is no memory.
    pub fn new() -> Result<Self> {
        // The memory is one file. What makes page tables in it has the beginning, and does not know of the rest.
        let space = GuestTables::new(TABLES as usize)?;
        let memory = space.file().clone();
        memory.set_len(DATA + 2 * PART)?;
        for piece in 0..PIECES {
            let offset = DATA + piece * PIECE;
            let words: Vec<u8> = (0..PIECE / 8).flat_map(|n| (MARK | (offset + 8 * n)).to_le_bytes()).collect();
            memory.write_all_at(&words, offset)?;
        }

        // What a VMM does once: an IOMMU, an endpoint for the device, and the guest's memory as an address space.
        let machine = Machine::new(Arc::new(Silent));
        let endpoint = machine.add_endpoint("0000:00:01.0".parse::<Rid>()?, GroupId(0)).context("no endpoint")?;
        endpoint.set_bus_master(true)?;
        let context = machine.context();
        let ioas = context.ioas_alloc().context("no address space")?;
        let low = Segment::file(&memory, 0, LOW, true)?;
        ioas.map(Placement::Fixed(Iova(0)), LOW, Access::all(), || Ok(vec![low]))?;

        // And for a device that the guest is to have nested tables for: a parent.
        let device = context.bind(&endpoint)?;
        let options = HwptOptions::default().nest_parent(true).pasids(true);
        let parent = context.hwpt_alloc(device.endpoint(), &ioas, options)?;

        let arena = Arc::new(Arena::with_memory(space));
        let (port, second) = (endpoint.port(), Second::default());
        let mut machine = Self { context, device, port, ioas, parent, memory, arena, second, stamp: 0 };
        for piece in 0..PIECES {
            machine.toggle(piece)?;
        }
        Ok(machine)
    }

    /// Takes a piece of the data away from the guest, or gives it back. The device finds that out at once, whatever the
    /// guest does.
    pub fn toggle(&mut self, piece: u64) -> Result<()> {
        let (offset, at) = (DATA + piece * PIECE, gpa(piece * PIECE));
        if self.second.unmap(at) {
            self.ioas.unmap(IovaRange::new(at, PIECE).context("an empty piece")?)?;
        } else {
            let segment = Segment::file(&self.memory, offset, PIECE, true)?;
            self.ioas.map(Placement::Fixed(Iova(at)), PIECE, Access::all(), || Ok(vec![segment]))?;
            self.second.map(at, PIECE, offset);
        }
        Ok(())
    }

    /// A nested page table, and the device attached to it.
    pub fn attach(&self, pasid: Option<Pasid>, options: impl Into<NestedOptions>) -> Result<Arc<NestedHwpt>> {
        let nested = self.context.hwpt_alloc_nested(&self.parent, options)?;
        self.device.attach(pasid, &nested)?;
        Ok(nested)
    }

    /// Words in the guest's memory, as its processor writes them.
    pub fn put(&self, gpa: u64, words: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        ensure!(gpa + bytes.len() as u64 <= LOW, "{gpa:#x} is not where it has its tables");
        Ok(self.memory.write_all_at(&bytes, gpa)?)
    }

    /// Has the device read or write a word, and says which of `all` that was, if it was one of them.
    pub fn access(&mut self, at: BusAddress, write: bool, all: &[Expected]) -> Result<Option<usize>> {
        if !write {
            let mut word = [0; 8];
            let found = self.port.read(at, &mut word).map_err(|error| error.reason);
            let found = found.map(|()| u64::from_le_bytes(word) ^ MARK);
            return Ok(all.iter().position(|expected| *expected == found));
        }
        self.stamp += 1;
        match self.port.write(at, &self.stamp.to_le_bytes()) {
            Err(error) => Ok(all.iter().position(|expected| *expected == Err(error.reason))),
            Ok(()) => {
                for (n, offset) in all.iter().enumerate() {
                    if let Ok(offset) = offset
                        && self.word(*offset)? == self.stamp
                    {
                        self.memory.write_all_at(&(MARK | offset).to_le_bytes(), *offset)?;
                        return Ok(Some(n));
                    }
                }
                Ok(None)
            }
        }
    }

    fn word(&self, offset: u64) -> Result<u64> {
        let mut word = [0; 8];
        self.memory.read_exact_at(&mut word, offset)?;
        Ok(u64::from_le_bytes(word))
    }
}
