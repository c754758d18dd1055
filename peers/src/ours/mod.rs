//! ioasid and iopt as the benchmarks use them: the one place that knows their calls.
//!
//! - [`Space`]: an address space with a device attached to it, and its ports; what [`translate`] asks.
//! - [`Table`]: a page table of iopt, with the arena that it lies in.
//! - [`Tracked`]: a table that knows what was written.
//! - [`Faulting`]: memory that a device has to ask for.
//! - [`Stages`]: a device's pages in one stage or in two.
//! - [`remote`]: a device behind a socket; [`apart`]: one in a process of its own, which walks tables.
#![allow(unsafe_code, reason = "memory of this process is given to a device")]

pub mod apart;
mod faulting;
mod nested;
pub mod remote;

use std::any::Any;
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::{Context, Result};
use ioasid::memory::{Segment, TableSpace};
use ioasid::{
    Access, Device, DmaPort, Endpoint, GroupId, Hwpt, HwptOptions, Ioas, Iova, IovaRange, Machine, Placement, Rid,
    Silent,
};
use iopt::{Arena, EmptyTables, Format, Leaves, PageTable};

use crate::layout::{BASE, Layout};
use crate::memory::Shared;
pub use faulting::{Faulting, touch};
pub use nested::{Stages, TableKind};

/// An address space, and a device that is attached to it.
pub struct Space {
    ioas: Arc<Ioas>,
    endpoint: Arc<Endpoint>,
    attached: Device,
}

impl Space {
    /// With nothing mapped.
    ///
    /// # Errors
    /// Of the crate.
    pub fn new() -> Result<Self> {
        let machine = Machine::new(Arc::new(Silent));
        let rid: Rid = "0000:00:01.0".parse()?;
        let endpoint = machine.add_endpoint(rid, GroupId(0)).context("no room for an endpoint")?;
        let context = machine.context();
        let ioas = context.ioas_alloc().context("no room for an address space")?;
        let device = context.bind(&endpoint)?;
        device.attach(None, &ioas)?;
        endpoint.set_bus_master(true)?;
        Ok(Self { ioas, endpoint, attached: device })
    }

    /// With all of `layout` mapped, each page by a call of its own.
    ///
    /// # Errors
    /// Of the crate.
    pub fn over(layout: &Layout, memory: &Memory) -> Result<Self> {
        let space = Self::new()?;
        for (iova, target) in layout.mappings() {
            space.map(iova, memory.segment(target, layout.page_length()))?;
        }
        Ok(space)
    }

    /// Maps `memory` at `iova`.
    ///
    /// # Errors
    /// Of the crate.
    pub fn map(&self, iova: u64, memory: Segment) -> Result<()> {
        self.map_placed(Placement::Fixed(Iova(iova)), memory)
    }

    /// Maps `memory` where `placement` says.
    ///
    /// # Errors
    /// Of the crate.
    pub fn map_placed(&self, placement: Placement, memory: Segment) -> Result<()> {
        self.ioas.map(placement, memory.length(), Access::all(), || Ok(vec![memory]))?;
        Ok(())
    }

    /// Unmaps `length` bytes at `iova`, and is sure that no DMA reaches them any more.
    ///
    /// # Errors
    /// Of the crate.
    pub fn unmap(&self, iova: u64, length: u64) -> Result<()> {
        let range = IovaRange::new(iova, length).context("the range wraps")?;
        self.ioas.unmap(range)?;
        Ok(())
    }

    /// Unmaps everything.
    ///
    /// # Errors
    /// Of the crate.
    pub fn unmap_all(&self) -> Result<()> {
        self.ioas.unmap(IovaRange::ALL)?;
        Ok(())
    }

    /// The address space.
    pub fn ioas(&self) -> &Arc<Ioas> {
        &self.ioas
    }

    /// What it is in.
    pub fn context(&self) -> &Arc<ioasid::Context> {
        self.attached.context()
    }

    /// The page table that the device is attached to.
    fn hwpt(&self) -> Result<Arc<Hwpt>> {
        let id = self.attached.attach(None, &self.ioas)?;
        self.attached.context().hwpt(id).context("an attached device has a page table")
    }

    /// A new page table over it, that the device can be attached to.
    fn hwpt_alloc(&self, options: HwptOptions) -> Result<Arc<Hwpt>> {
        Ok(self.context().hwpt_alloc(self.attached.endpoint(), &self.ioas, options)?)
    }

    /// A new port of the device.
    pub fn port(&self) -> DmaPort {
        self.endpoint.port()
    }
}

/// Memory of this process that devices can be given.
pub struct Memory {
    start: NonNull<u8>,
    keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: through it memory is only given to devices, by its address, which any thread may do.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// As much as `layout` needs.
    ///
    /// # Errors
    /// Of `mmap`.
    pub fn of(layout: &Layout) -> Result<Self> {
        let memory = Shared::anonymous(layout.memory() as usize)?;
        Ok(Self { start: memory.start(), keep: memory.keep() })
    }

    /// The address of its first byte.
    pub fn start(&self) -> u64 {
        self.start.addr().get() as u64
    }

    /// `length` bytes of it, `offset` bytes from its beginning.
    pub fn segment(&self, offset: u64, length: u64) -> Segment {
        // SAFETY: `keep` holds the mapping, which has these bytes, as a layout maps nothing that is not in its memory.
        // There are no references to them.
        unsafe { Segment::local(self.start.byte_add(offset as usize), length, self.keep.clone()) }
    }
}

/// The address in this process that `iova` leads to.
// Always, as `slices` is: a device model has it in its loop.
#[inline(always)]
pub fn translate(port: &mut DmaPort, iova: u64) -> Option<u64> {
    let slices = port.slices(Iova(iova), 8, Access::READ).ok()?;
    Some(slices[0].as_ptr() as u64)
}

/// The sum of the addresses in this process that `iovas` lead to, as one access.
#[inline]
pub fn translate_burst(port: &mut DmaPort, iovas: &[u64]) -> Option<u64> {
    let (&first, others) = iovas.split_first()?;
    let mut slices = port.slices(Iova(first), 8, Access::READ).ok()?;
    slices.extend(others.iter().map(|&iova| (Iova(iova), 8))).ok()?;
    Some(slices.iter().fold(0, |sum, slice| sum.wrapping_add(slice.as_ptr() as u64)))
}

/// A page table, in memory as the engine has it.
pub struct Table<F: Format> {
    table: PageTable<F, TableSpace>,
}

impl<F: Format> Table<F> {
    /// An empty one in an arena of its own, of at most `tables` tables of 4 KiB.
    ///
    /// # Errors
    /// If there is no memory for a table.
    pub fn new(tables: u32) -> Result<Self> {
        let arena = Arena::with_memory(TableSpace::private(tables as usize * 4096)?);
        Ok(Self { table: PageTable::new(Arc::new(arena))? })
    }

    /// Maps `length` bytes with one call, in pages of 4 KiB.
    ///
    /// # Errors
    /// Of the crate.
    #[inline]
    pub fn map_small(&self, iova: u64, pa: u64, length: u64) -> Result<()> {
        self.map(iova, pa, length, 12)
    }

    /// Maps `length` bytes with one call, in the largest pages that fit.
    ///
    /// # Errors
    /// Of the crate.
    #[inline]
    pub fn map_large(&self, iova: u64, pa: u64, length: u64) -> Result<()> {
        self.map(iova, pa, length, u32::MAX)
    }

    #[inline]
    fn map(&self, iova: u64, pa: u64, length: u64, largest: u32) -> Result<()> {
        let mut empty = EmptyTables::none();
        // As from a caller whose arguments are not known when this is compiled.
        let (iova, pa, length, leaves) = black_box((iova, pa, length, Leaves { access: Access::all(), largest }));
        self.table.map(iova, pa, length, leaves, &mut empty)?;
        self.table.free(empty);
        Ok(())
    }

    /// Unmaps `length` bytes with one call, and gives the tables that are empty then back to the arena.
    ///
    /// # Errors
    /// Of the crate.
    #[inline]
    pub fn unmap(&self, iova: u64, length: u64) -> Result<()> {
        let mut empty = EmptyTables::none();
        self.table.unmap(iova, length, &mut empty)?;
        self.table.free(empty);
        Ok(())
    }

    /// What translates an address to what it is mapped to, if that may be read.
    #[inline]
    pub fn walker(&self) -> impl Fn(u64) -> Option<u64> + '_ {
        let view = self.table.view();
        move |iova| {
            let found = view.walk(iova)?;
            found.access.contains(Access::READ).then_some(found.pa)
        }
    }

    /// What `iova` translates to, if it may be read.
    pub fn walk(&self, iova: u64) -> Option<u64> {
        self.walker()(iova)
    }

    /// Bytes of tables that are in use.
    pub fn bytes(&self) -> u64 {
        self.table.arena().in_use() as u64 * 4096
    }
}

/// An HWPT with pages of 4 KiB in a row, of which it is tracked which are written.
pub struct Tracked {
    _space: Space,
    port: DmaPort,
    hwpt: Arc<Hwpt>,
    pages: u64,
}

impl Tracked {
    /// So many, all clean. They share a file that stays empty.
    ///
    /// # Errors
    /// Of the crate.
    pub fn new(pages: u32) -> Result<Self> {
        let (space, pages) = (Space::new()?, u64::from(pages));
        let (memory, _file) = Segment::memfd(pages * 4096)?;
        space.map(BASE, memory)?;
        let hwpt = space.hwpt()?;
        hwpt.start_dirty_tracking(4096)?;
        Ok(Self { port: space.port(), _space: space, hwpt, pages })
    }

    /// Has the device borrow one for writing, which writes nothing.
    ///
    /// # Errors
    /// If it is not mapped.
    pub fn mark(&mut self, page: u32) -> Result<()> {
        drop(self.port.slices(Iova(BASE + (u64::from(page) << 12)), 8, Access::WRITE)?);
        Ok(())
    }

    /// Sets the bits of all that were written since the last time, and waits for the device as a migration has to.
    ///
    /// # Errors
    /// Of the crate.
    pub fn harvest(&mut self, bitmap: &mut [u64]) -> Result<()> {
        let range = IovaRange::new(BASE, self.pages << 12).context("the range wraps")?;
        Ok(self.hwpt.read_dirty(range, 4096, true, bitmap)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_translates_what_is_mapped_until_it_is_unmapped() {
        let layout = Layout::permuted(16, 12);
        let addresses = layout.addresses();
        let memory = Memory::of(&layout).unwrap();
        let space = Space::over(&layout, &memory).unwrap();
        let mut port = space.port();
        let sweep = layout.sweep(addresses.clone(), memory.start());
        sweep.time_once(|iova| translate(&mut port, iova)).unwrap();
        space.unmap(layout.iova(3), layout.page_length()).unwrap();
        assert!(sweep.time_once(|iova| translate(&mut port, iova)).is_err());
    }

    #[test]
    fn a_table_translates_what_is_mapped_until_it_is_unmapped() {
        let table = Table::<iopt::format::X86_64>::new(16).unwrap();
        table.map_small(0x4000_0000, 0x1000, 0x4000).unwrap();
        assert_eq!(table.walk(0x4000_2008), Some(0x3008));
        assert_eq!(table.bytes(), 4 * 4096);
        table.unmap(0x4000_0000, 0x4000).unwrap();
        assert_eq!((table.walk(0x4000_2008), table.bytes()), (None, 4096));
    }

    #[test]
    fn small_pages_stay_small() {
        let table = Table::<iopt::format::X86_64>::new(16).unwrap();
        table.map_small(0x4000_0000, 0x4000_0000, 0x20_0000).unwrap();
        assert_eq!(table.bytes(), 4 * 4096);
        table.unmap(0x4000_0000, 0x20_0000).unwrap();
        table.map_large(0x4000_0000, 0x4000_0000, 0x20_0000).unwrap();
        assert_eq!(table.bytes(), 3 * 4096);
    }

    #[test]
    fn a_burst_is_translated_as_its_addresses_are() {
        let layout = Layout::permuted(16, 12);
        let memory = Memory::of(&layout).unwrap();
        let space = Space::over(&layout, &memory).unwrap();
        let (mut port, addresses) = (space.port(), layout.addresses());
        let each = addresses[..32].iter().map(|&iova| translate(&mut port, iova).unwrap());
        let sum = each.fold(0u64, u64::wrapping_add);
        assert_eq!(translate_burst(&mut port, &addresses[..32]), Some(sum));
    }

    #[test]
    fn what_a_device_borrows_for_writing_is_dirty_once() {
        let mut tracked = Tracked::new(128).unwrap();
        [3, 100].iter().for_each(|&page| tracked.mark(page).unwrap());
        for wanted in [[1 << 3, 1 << 36], [0, 0]] {
            let mut bitmap = [0; 2];
            tracked.harvest(&mut bitmap).unwrap();
            assert_eq!(bitmap, wanted);
        }
    }
}
