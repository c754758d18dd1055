//! Regions: the parts of a device that a program reads, writes and maps, each at its place in the device's file.
//!
//! ```text
//!  file offset:  63        40 39                         0
//!               │ index      │ byte in the region          │
//!
//!  index:  0 to 5 BARs, 6 ROM, 7 configuration space, 8 VGA
//! ```
//!
//! Two ways lead in. **read and write** ([`Session::read`]) are requests of any length, cut into aligned accesses of
//! up to 8 bytes as Linux cuts them. The MSI-X table is left out: it reads as ones, and writes to it are dropped.
//! **A mapping** ([`Session::mapped_read`]) is one access of the processor and reaches the registers as it is, the
//! MSI-X table too.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bitflags::bitflags;
use thiserror::Error;

use super::watched::Key;
use super::{Session, permissions};
use crate::bar_memory::BarMemory;
use crate::eventfd::EventFd;
use crate::lock;
use crate::pci::BarError;
use crate::pci::config::{self, Write, pieces};
use crate::pci::{express, pm};

/// Number of region indices.
pub const COUNT: u32 = 9;
/// Index of the expansion ROM, which no function here has.
pub const ROM: u32 = 6;
/// Index of configuration space.
pub const CONFIG: u32 = 7;
/// Index of the VGA ranges, which no function here has.
pub const VGA: u32 = 8;

/// Position of the region's index in a file offset.
pub const OFFSET_SHIFT: u32 = 40;

/// A mapping covers whole pages, also of a BAR that is smaller.
const PAGE: u64 = 4096;

/// Where a region begins in the device's file: where Linux has it, as some programs compute it without asking.
pub const fn file_offset(index: u32) -> u64 {
    (index as u64) << OFFSET_SHIFT
}

/// The region index and the byte in the region of a file offset.
pub const fn locate(file_offset: u64) -> (u32, u64) {
    ((file_offset >> OFFSET_SHIFT) as u32, file_offset & ((1 << OFFSET_SHIFT) - 1))
}

bitflags! {
    /// What a region can do; the bits are VFIO's.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct RegionFlags: u32 {
        /// It can be read.
        const READ = 1 << 0;
        /// It can be written.
        const WRITE = 1 << 1;
        /// It can be mapped.
        const MMAP = 1 << 2;
    }
}

/// The answer to GET_REGION_INFO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionInfo {
    /// What it can do.
    pub flags: RegionFlags,
    /// Size in bytes; 0 for a region that is not there.
    pub size: u64,
    /// Where it begins in the device's file.
    pub offset: u64,
    /// The capability MSIX_MAPPABLE: the region holds the MSI-X table, and can be mapped all the same.
    pub msix_mappable: bool,
    /// The capability SPARSE_MMAP, if not empty: the parts that are memory, in bytes from the region's beginning. What
    /// lies between them can be mapped, too, and is registers.
    pub memory: Vec<Range<u64>>,
}

/// Why a region could not be read or written.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum RegionError {
    /// There is no such region, it is empty, or it cannot be written (EINVAL).
    #[error("region {0} is not there, or is read-only: GET_REGION_INFO tells which regions a device has")]
    Absent(u32),
    /// The access starts beyond the end (EINVAL).
    #[error("region {index} ends before offset {offset:#x}")]
    BeyondEnd {
        /// The region.
        index: u32,
        /// The first byte.
        offset: u64,
    },
    /// The access leaves configuration space (EFAULT).
    #[error("configuration space has 4096 bytes, and no {len} at {offset:#x}")]
    BeyondConfig {
        /// The first byte.
        offset: u64,
        /// The length.
        len: usize,
    },
    /// The BARs do not answer (EIO).
    #[error("the BARs do not answer: Memory Space Enable is clear, or the function is in D3hot")]
    Disabled,
}

/// The most stores of one session that eventfds have made, as many as Linux's.
const MOST_STORES: usize = 1000;

/// Why no store is made by an eventfd.
#[derive(Debug, Error)]
pub enum StoreError {
    /// It is no BAR, beyond its end, or in the MSI-X table (EINVAL).
    #[error("only what is in a BAR, and not in the MSI-X table, is stored by an eventfd")]
    Place,
    /// The same store is made by an eventfd already (EEXIST).
    #[error("an eventfd has the same made already")]
    Exists,
    /// None makes it (ENODEV).
    #[error("no eventfd has it made")]
    Missing,
    /// There are very many (ENOSPC).
    #[error("there are {MOST_STORES}, and no more")]
    TooMany,
    /// The descriptor is no eventfd, or there can be no thread.
    #[error(transparent)]
    Descriptor(#[from] std::io::Error),
}

impl From<BarError> for RegionError {
    fn from(error: BarError) -> Self {
        match error {
            BarError::Disabled => Self::Disabled,
            BarError::Outside { bar, offset, .. } => Self::BeyondEnd { index: bar.into(), offset },
        }
    }
}

/// What a file offset leads to.
enum Place {
    Config(u16),
    /// A BAR, the offset in it, and how many of the bytes asked for it has.
    Bar(u8, u64, usize),
}

impl Session {
    /// What GET_REGION_INFO tells of a region.
    ///
    /// # Errors
    /// [`RegionError::Absent`] for an index that is none, and for VGA. BARs and ROM that are not there have size 0.
    pub fn region_info(&self, index: u32) -> Result<RegionInfo, RegionError> {
        let read_write = RegionFlags::READ | RegionFlags::WRITE;
        let info = |flags, size| RegionInfo {
            flags,
            size,
            offset: file_offset(index),
            msix_mappable: false,
            memory: Vec::new(),
        };
        match index {
            0..=5 => match self.bar_size(index) {
                0 => Ok(info(RegionFlags::empty(), 0)),
                size if !self.device.can_map(index as u8) => Ok(info(read_write, size)),
                size => Ok(RegionInfo {
                    msix_mappable: self.function().spec().msix.is_some_and(|msix| u32::from(msix.table_bar) == index),
                    memory: self.memory(index).map(|(range, _)| range).collect(),
                    ..info(read_write | RegionFlags::MMAP, size)
                }),
            },
            ROM => Ok(info(RegionFlags::empty(), 0)),
            CONFIG => Ok(info(read_write, config::SIZE as u64)),
            _ => Err(RegionError::Absent(index)),
        }
    }

    /// Reads from the device's file; gives the number of bytes read, fewer at the end of a BAR.
    ///
    /// # Errors
    /// [`RegionError`]. If a BAR stops answering on the way, registers before that point have been read.
    pub fn read(&self, file_offset: u64, data: &mut [u8]) -> Result<usize, RegionError> {
        if data.is_empty() {
            return Ok(0);
        }
        match self.place(file_offset, data.len())? {
            Place::Config(offset) => {
                self.function().config_read(offset, data);
                Ok(data.len())
            }
            Place::Bar(bar, offset, len) => {
                for access in self.accesses(bar, offset, len) {
                    let part = &mut data[access.range()];
                    if access.is_table {
                        part.fill(0xff);
                    } else {
                        self.function().bar_read(bar, offset + access.start as u64, part)?;
                    }
                }
                Ok(len)
            }
        }
    }

    /// Writes to the device's file; gives the number of bytes written, fewer at the end of a BAR.
    ///
    /// # Errors
    /// As [`Session::read`], and [`RegionError::Absent`] for the ROM.
    pub fn write(&self, file_offset: u64, data: &[u8]) -> Result<usize, RegionError> {
        if data.is_empty() {
            return Ok(0);
        }
        match self.place(file_offset, data.len())? {
            Place::Config(offset) => {
                for (at, range) in pieces(offset, data.len()) {
                    self.config_write(at, &data[range]);
                }
                Ok(data.len())
            }
            Place::Bar(bar, offset, len) => {
                for access in self.accesses(bar, offset, len).filter(|access| !access.is_table) {
                    self.function().bar_write(bar, offset + access.start as u64, &data[access.range()])?;
                }
                Ok(len)
            }
        }
    }

    /// Reads through a mapping of a BAR: one access, with the length that the instruction has.
    ///
    /// Past the end of a BAR that is smaller than a page nothing answers, and bytes read as ones.
    ///
    /// # Errors
    /// [`BarError`], upon which Linux raises SIGBUS.
    pub fn mapped_read(&self, file_offset: u64, data: &mut [u8]) -> Result<(), BarError> {
        let (bar, offset, inside) = self.mapped(file_offset, data.len())?;
        let (data, beyond) = data.split_at_mut(inside);
        beyond.fill(0xff);
        self.function().bar_read(bar, offset, data)
    }

    /// Writes through a mapping of a BAR, as [`Session::mapped_read`].
    ///
    /// # Errors
    /// [`BarError`], upon which Linux raises SIGBUS.
    pub fn mapped_write(&self, file_offset: u64, data: &[u8]) -> Result<(), BarError> {
        let (bar, offset, inside) = self.mapped(file_offset, data.len())?;
        self.function().bar_write(bar, offset, &data[..inside])
    }

    /// Sends a command by a deferrable write through a mapping of a BAR (ENQCMD): whether it was accepted, or `None`
    /// where nothing takes such writes.
    ///
    /// # Errors
    /// [`BarError`], upon which Linux raises SIGBUS.
    pub fn mapped_enqueue(&self, file_offset: u64, command: &[u8; 64]) -> Result<Option<bool>, BarError> {
        let (bar, offset, inside) = self.mapped(file_offset, command.len())?;
        if inside < command.len() { Ok(None) } else { self.function().bar_enqueue(bar, offset, command) }
    }

    /// The memory that a byte of the device's file is, if it is memory: where in the file that is, and the memory.
    pub fn memory_at(&self, file_offset: u64) -> Option<(Range<u64>, &Arc<BarMemory>)> {
        let (index, offset) = locate(file_offset);
        let start = file_offset - offset;
        let (range, memory) = self.memory(index).find(|(range, _)| range.contains(&offset))?;
        Some((start + range.start..start + range.end, memory))
    }

    /// The parts of a region that are memory.
    fn memory(&self, index: u32) -> impl Iterator<Item = (Range<u64>, &Arc<BarMemory>)> {
        let pages = self.function().memory().iter().filter(move |pages| u32::from(pages.bar) == index);
        pages.map(|pages| (pages.offset..pages.offset + pages.memory.length(), &pages.memory))
    }

    /// Has `data` stored at a file offset at each signal of the program's descriptor, or, without one, no more.
    ///
    /// # Errors
    /// [`StoreError`]; nothing has changed then.
    pub fn store_by(&self, file_offset: u64, data: &[u8], fd: Option<OwnedFd>) -> Result<(), StoreError> {
        let (index, offset) = locate(file_offset);
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= self.bar_size(index));
        let Some(bar) = u8::try_from(index).ok().filter(|_| end.is_some()) else { return Err(StoreError::Place) };
        if self.function().is_msix_table(bar, offset, data.len()) {
            return Err(StoreError::Place);
        }
        let key = Key::Store(file_offset, data.to_vec());
        let _gate = lock(&self.gate);
        let Some(fd) = fd else {
            return if self.watched.remove(&key) { Ok(()) } else { Err(StoreError::Missing) };
        };
        if self.watched.has(&key) {
            return Err(StoreError::Exists);
        }
        if self.watched.count() >= MOST_STORES {
            return Err(StoreError::TooMany);
        }
        let (device, data) = (self.device.clone(), data.to_vec());
        // A BAR that does not answer drops the store.
        let store = move || {
            let _ = device.function.bar_write(bar, offset, &data);
        };
        self.watched.add(key, EventFd::new(fd)?, Box::new(store))?;
        Ok(())
    }

    fn bar_size(&self, index: u32) -> u64 {
        u8::try_from(index).ok().and_then(|index| self.function().spec().bar(index)).map_or(0, |bar| bar.size)
    }

    fn place(&self, file_offset: u64, len: usize) -> Result<Place, RegionError> {
        let (index, offset) = locate(file_offset);
        if index == CONFIG {
            let end = offset.saturating_add(len as u64);
            return match u16::try_from(offset) {
                Ok(offset) if end <= config::SIZE as u64 => Ok(Place::Config(offset)),
                _ => Err(RegionError::BeyondConfig { offset, len }),
            };
        }
        match self.bar_size(index) {
            0 => Err(RegionError::Absent(index)),
            size if offset >= size => Err(RegionError::BeyondEnd { index, offset }),
            size => {
                let len = usize::try_from(size - offset).map_or(len, |left| left.min(len));
                Ok(Place::Bar(index as u8, offset, len))
            }
        }
    }

    /// The BAR of a mapped access, the offset, and how many of the bytes the BAR has.
    fn mapped(&self, file_offset: u64, len: usize) -> Result<(u8, u64, usize), BarError> {
        let (index, offset) = locate(file_offset);
        let bar = u8::try_from(index).unwrap_or(u8::MAX);
        let size = self.bar_size(index);
        let mapped = size.next_multiple_of(PAGE);
        if offset.checked_add(len as u64).is_none_or(|end| end > mapped) {
            return Err(BarError::Outside { bar, offset, len });
        }
        let inside = size.saturating_sub(offset).min(len as u64) as usize;
        Ok((bar, offset.min(size), inside))
    }

    /// Cuts an access of a BAR as Linux does: the MSI-X table apart, the rest into aligned 8, 4, 2 and 1 bytes.
    fn accesses(&self, bar: u8, offset: u64, len: usize) -> impl Iterator<Item = Access> {
        let table = match self.function().spec().msix {
            Some(msix) if msix.table_bar == bar => {
                u64::from(msix.table_offset)..u64::from(msix.table_offset) + msix.table_len()
            }
            _ => 0..0,
        };
        let mut start = 0;
        std::iter::from_fn(move || {
            let at = offset + start as u64;
            let is_table = table.contains(&at);
            let until = match at {
                _ if is_table => table.end,
                at if at < table.start => table.start,
                _ => u64::MAX,
            };
            let left = usize::try_from(until - at).unwrap_or(usize::MAX).min(len - start);
            let aligned = [8, 4, 2, 1].into_iter().find(|size| left >= *size && at.is_multiple_of(*size as u64));
            let access = Access { start, len: if is_table { left } else { aligned? }, is_table };
            start += access.len;
            (access.len > 0).then_some(access)
        })
    }

    /// One aligned write to configuration space, of what the program may write.
    fn config_write(&self, at: u16, data: &[u8]) {
        let mut gate = lock(&self.gate);
        let dword = at & !3;
        if dword == pm::CONTROL {
            self.write_power(&mut gate, at, data);
            return;
        }
        let allowed = permissions::writable(self.function(), dword);
        let mut value = [0; 4];
        value[..data.len()].copy_from_slice(data);
        let write = Write { at, len: data.len() as u16, value: u32::from_le_bytes(value), allowed: u32::MAX };
        let resets = write.onto(express::DEVICE_CONTROL, 2).value & express::INITIATE_FLR != 0;
        // The host resets in the function's stead, and puts the configuration back.
        let allowed = if resets { allowed & !express::INITIATE_FLR } else { allowed };
        self.function().config_write_piece(at, data, allowed >> (u32::from(at % 4) * 8));
        if resets {
            self.function().reset_keeping_config();
        }
    }
}

/// A part of a longer access, relative to its beginning.
#[derive(Debug, PartialEq, Eq)]
struct Access {
    start: usize,
    len: usize,
    is_table: bool,
}

impl Access {
    fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IrqIndex;
    use crate::pci::header::{BAR_0, COMMAND, STATUS};
    use crate::pci::{msix, pm};
    use crate::testing::{Bench, Event, eventfd, read_eventfd};

    const BAR0: u64 = file_offset(0);
    const TABLE: u64 = BAR0 + 0x2000;

    fn write_event(offset: u64, data: &[u8]) -> Event {
        Event::Write(0, offset, data.to_vec())
    }

    #[test]
    fn regions_are_as_the_specification_of_the_function_says() {
        let bench = Bench::new();
        let info = |index| bench.session().region_info(index).unwrap();
        assert_eq!((info(0).size, info(0).msix_mappable), (0x4000, true));
        assert_eq!((info(4).size, info(4).msix_mappable), (0x100, false));
        assert_eq!((info(1).size, info(1).flags), (0, RegionFlags::empty()));
        assert_eq!((info(CONFIG).size, info(CONFIG).offset), (4096, 7 << 40));
        assert!(!info(CONFIG).flags.contains(RegionFlags::MMAP));
        assert_eq!(bench.session().region_info(VGA), Err(RegionError::Absent(VGA)));
    }

    #[test]
    fn a_long_write_is_cut_into_aligned_accesses() {
        let bench = Bench::new();
        bench.session().write(BAR0 + 0x1001, &[7; 18]).unwrap();
        let cut = [(0x1001, 1), (0x1002, 2), (0x1004, 4), (0x1008, 8), (0x1010, 2), (0x1012, 1)];
        let expected: Vec<Event> = cut.iter().map(|(at, len)| write_event(*at, &vec![7; *len])).collect();
        assert_eq!(bench.take_events(), expected);
    }

    #[test]
    fn a_request_never_reaches_the_msix_table() {
        let bench = Bench::new();
        let mut data = [0; 160];
        assert_eq!(bench.session().read(TABLE - 16, &mut data), Ok(160));
        assert_eq!(
            data[..16],
            [0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff]
        );
        assert_eq!(data[16..144], [0xff; 128]);
        assert_eq!(data[144], 0x80);
        bench.session().write(TABLE, &[0; 16]).unwrap();
        let mut entry = [0; 16];
        bench.session().mapped_read(TABLE, &mut entry).unwrap();
        assert_eq!(entry[12], 1);
    }

    #[test]
    fn a_request_is_short_at_the_end_and_refused_beyond_it() {
        let bench = Bench::new();
        assert_eq!(bench.session().read(BAR0 + 0x3ffc, &mut [0; 64]), Ok(4));
        let beyond = RegionError::BeyondEnd { index: 0, offset: 0x4000 };
        assert_eq!(bench.session().read(BAR0 + 0x4000, &mut [0; 1]), Err(beyond));
        assert_eq!(bench.session().read(BAR0 + 0x4000, &mut []), Ok(0));
    }

    #[test]
    fn regions_that_are_not_there_are_refused() {
        let bench = Bench::new();
        for index in [1, 5, ROM, VGA, 9, 0xff_fffe] {
            let refused = Err(RegionError::Absent(index));
            assert_eq!(bench.session().read(file_offset(index), &mut [0]), refused);
            assert_eq!(bench.session().write(file_offset(index), &[0]), refused);
        }
    }

    #[test]
    fn an_access_that_leaves_configuration_space_is_refused_whole() {
        let bench = Bench::new();
        let refused = RegionError::BeyondConfig { offset: 4092, len: 8 };
        assert_eq!(bench.session().write(file_offset(CONFIG) + 4092, &[0; 8]), Err(refused));
        assert_eq!(bench.session().read(file_offset(CONFIG) + 4092, &mut [0; 4]), Ok(4));
    }

    #[test]
    fn bars_do_not_answer_without_memory_space_enable() {
        let bench = Bench::new();
        bench.write_config(COMMAND, &[0, 0]);
        assert_eq!(bench.session().read(BAR0, &mut [0; 4]), Err(RegionError::Disabled));
        assert_eq!(bench.session().mapped_write(BAR0, &[0; 4]), Err(BarError::Disabled));
        assert_eq!(bench.take_events(), []);
    }

    #[test]
    fn bars_do_not_answer_in_d3() {
        let bench = Bench::new();
        bench.write_config(pm::CONTROL, &[3]);
        assert_eq!(bench.session().read(BAR0, &mut [0; 4]), Err(RegionError::Disabled));
        bench.write_config(pm::CONTROL, &[0]);
        assert_eq!(bench.session().read(BAR0, &mut [0; 4]), Ok(4));
    }

    #[test]
    fn a_mapped_access_has_the_length_of_the_instruction() {
        let bench = Bench::new();
        bench.session().mapped_read(BAR0 + 0x11, &mut [0; 32]).unwrap();
        bench.session().mapped_write(BAR0 + 0x40, &[5; 64]).unwrap();
        assert_eq!(bench.take_events(), [Event::Read(0, 0x11, 32), write_event(0x40, &[5; 64])]);
    }

    #[test]
    fn nothing_answers_between_the_end_of_a_small_bar_and_its_page() {
        let bench = Bench::new();
        let mut data = [0; 8];
        bench.session().mapped_read(file_offset(4) + 0xfc, &mut data).unwrap();
        assert_eq!(data, [0xfc, 0xfd, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);
        bench.session().mapped_write(file_offset(4) + 0x800, &[1; 8]).unwrap();
        assert!(bench.session().mapped_read(file_offset(4) + 0xffc, &mut data).is_err());
        assert!(bench.session().mapped_read(u64::MAX, &mut data).is_err());
    }

    #[test]
    fn a_mask_bit_set_through_the_mapping_holds_the_interrupt() {
        let bench = Bench::new();
        bench.enable_bus_master();
        let (ours, theirs) = eventfd();
        bench.give_eventfd(IrqIndex::Msix, 2, ours);
        let mask = TABLE + 2 * 16 + 12;
        bench.session().mapped_write(mask, &[1, 0, 0, 0]).unwrap();
        bench.interrupts().raise(2);
        let mut pending = [0; 8];
        bench.session().mapped_read(BAR0 + 0x3000, &mut pending).unwrap();
        assert_eq!((read_eventfd(&theirs), pending[0]), (0, 0b100));
        bench.session().mapped_write(mask, &[0, 0, 0, 0]).unwrap();
        assert_eq!(read_eventfd(&theirs), 1);
    }

    #[test]
    fn sizing_a_bar_reads_its_size_as_a_mask() {
        let bench = Bench::new();
        assert_eq!(bench.config(BAR_0, 4), 0xe000_000c);
        bench.write_config(BAR_0, &[0xff; 8]);
        assert_eq!(bench.config(BAR_0, 4), 0xffff_c00c);
        assert_eq!(bench.config(BAR_0 + 4, 4), u32::MAX);
        bench.write_config(BAR_0 + 8, &[0xff; 4]);
        assert_eq!(bench.config(BAR_0 + 8, 4), 0);
        bench.write_config(BAR_0 + 16, &[0xff; 4]);
        assert_eq!(bench.config(BAR_0 + 16, 4), 0xffff_ff00);
    }

    #[test]
    fn a_program_cannot_write_status_or_msix_control() {
        let bench = Bench::new();
        let before = (bench.config(STATUS, 2), bench.config(msix::CONTROL, 2));
        bench.write_config(STATUS, &[0xff; 2]);
        bench.write_config(msix::CONTROL, &[0xff; 2]);
        assert_eq!((bench.config(STATUS, 2), bench.config(msix::CONTROL, 2)), before);
    }

    #[test]
    fn device_specific_registers_are_the_models() {
        let bench = Bench::new();
        assert_eq!(bench.config(0x180, 4), 0xd5d5_d5d5);
        assert_eq!(bench.config(0x184, 4), 0);
    }
}
