//! The same pages of a device in one stage, and in two: a guest's own table over what its parent maps.
//!
//! ```text
//!   one stage   IOVA ─► pages of `layout` ────────────────────────────────────► memory
//!   two         IOVA ─► pages of `layout`, in the guest's table ─► 1 GiB + … ─► memory
//!                       the table itself ────────────────────────► 0 + … ─────► a memfd
//! ```

use std::any::Any;
use std::sync::Arc;

use anyhow::{Context, Result};
use ioasid::memory::{GuestTables, Segment};
use ioasid::{Access, DmaPort, GuestFormat, GuestTable, HwptOptions, IovaRange, NestedHwpt, Target};
use iopt::format::{Armv8Stage1, Sv39, Sv48, Sv57, X86_64, X86_64FiveLevels};
use iopt::{Arena, EmptyTables, Format, PageTable};

use super::{Memory, Space};
use crate::layout::Layout;

/// Bytes that the guest has for page tables, from its physical address 0 on.
const TABLES: u64 = 8 << 20;
/// Where the guest sees the memory.
const DATA: u64 = 1 << 30;

/// A format of guests' page tables, and how one is filled.
pub struct TableKind {
    /// Its name.
    pub name: &'static str,
    /// log2 of the bytes of its smallest page.
    pub shift: u32,
    format: GuestFormat,
    fill: fn(&Arc<Arena<GuestTables>>, &Layout) -> Result<Filled>,
}

/// Where the root is, and what keeps the table.
type Filled = (u64, Box<dyn Any>);

impl TableKind {
    const fn of<F: Format + 'static>(name: &'static str, format: GuestFormat) -> Self {
        Self { name, shift: F::PAGE_SHIFT, format, fill: fill::<F> }
    }

    /// The commonest.
    pub const X86_64: Self = Self::of::<X86_64>("x86-64, 4 levels", GuestFormat::X86_64);
    /// Each.
    pub const ALL: [Self; 8] = [
        Self::X86_64,
        Self::of::<X86_64FiveLevels>("x86-64, 5 levels", GuestFormat::X86_64FiveLevels),
        Self::of::<Armv8Stage1<12>>("Armv8, 4 KiB", GuestFormat::Armv8Pages4K),
        Self::of::<Armv8Stage1<14>>("Armv8, 16 KiB", GuestFormat::Armv8Pages16K),
        Self::of::<Armv8Stage1<16>>("Armv8, 64 KiB", GuestFormat::Armv8Pages64K),
        Self::of::<Sv39>("Sv39", GuestFormat::Sv39),
        Self::of::<Sv48>("Sv48", GuestFormat::Sv48),
        Self::of::<Sv57>("Sv57", GuestFormat::Sv57),
    ];
}

fn fill<F: Format + 'static>(arena: &Arc<Arena<GuestTables>>, layout: &Layout) -> Result<Filled> {
    let (table, mut empty) = (PageTable::<F, _>::new(arena.clone())?, EmptyTables::none());
    for (iova, target) in layout.mappings() {
        table.map(iova, DATA + target, layout.page_length(), Access::all(), &mut empty)?;
    }
    table.free(empty);
    Ok((table.root().0, Box::new(table)))
}

/// A device that is attached to a page table that was made for it.
pub struct Stages {
    space: Space,
    attached: Target,
    /// The nested table, and the guest's.
    guest: Option<(Arc<NestedHwpt>, Box<dyn Any>)>,
}

impl Stages {
    /// With the pages of `layout` mapped, each by a call.
    ///
    /// # Errors
    /// Of the crate.
    pub fn one(layout: &Layout, memory: &Memory) -> Result<Self> {
        let space = Space::over(layout, memory)?;
        let attached = Target::from(&space.hwpt_alloc(HwptOptions::default())?);
        Self { space, attached, guest: None }.attach_anew()
    }

    /// With the pages of `layout` in a guest's table, over a parent that maps all of `memory` with one call.
    ///
    /// # Errors
    /// Of the crate.
    pub fn two(tables: &TableKind, layout: &Layout, memory: &Memory) -> Result<Self> {
        let space = Space::new()?;
        let table_space = GuestTables::new(TABLES as usize)?;
        let file = table_space.file();
        space.map(0, Segment::file(file, 0, TABLES, true)?)?;
        space.map(DATA, memory.segment(0, layout.memory()))?;
        let parent = space.hwpt_alloc(HwptOptions::default().nest_parent(true))?;
        let (root, kept) = (tables.fill)(&Arc::new(Arena::with_memory(table_space)), layout)?;
        let table = GuestTable { format: tables.format, root };
        let nested = space.context().hwpt_alloc_nested(&parent, table)?;
        let attached = Target::from(&nested);
        Self { space, attached, guest: Some((nested, kept)) }.attach_anew()
    }

    fn attach_anew(self) -> Result<Self> {
        self.forget_all()?;
        Ok(self)
    }

    /// Attaches the device anew: its ports know nothing any more, neither of the table nor of its parent.
    ///
    /// # Errors
    /// Of the crate.
    pub fn forget_all(&self) -> Result<()> {
        let device = &self.space.attached;
        device.detach(None)?;
        device.attach(None, &self.attached)?;
        Ok(())
    }

    /// As the guest does when it has changed its table in `range`: what the parent translates stays known.
    ///
    /// # Errors
    /// Of the crate, or if there is no guest.
    pub fn forget_guests(&self, range: IovaRange) -> Result<()> {
        let (nested, _) = self.guest.as_ref().context("there is no guest")?;
        Ok(nested.invalidate(range)?)
    }

    /// A new port of the device.
    pub fn port(&self) -> DmaPort {
        self.space.port()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ours::translate;

    #[test]
    fn two_stages_lead_where_one_does_whatever_is_forgotten() {
        for tables in &TableKind::ALL {
            let layout = Layout::permuted(64, tables.shift);
            let memory = Memory::of(&layout).unwrap();
            let sweep = layout.sweep(layout.addresses(), memory.start());
            let range = IovaRange::new(layout.iova(0), 64 * layout.page_length()).unwrap();
            let two = Stages::two(tables, &layout, &memory).unwrap();
            let mut port = two.port();
            sweep.time_once(|iova| translate(&mut port, iova)).unwrap();
            two.forget_guests(range).unwrap();
            sweep.time_once(|iova| translate(&mut port, iova)).unwrap();
            two.forget_all().unwrap();
            sweep.time_once(|iova| translate(&mut port, iova)).unwrap();
            let one = Stages::one(&layout, &memory).unwrap();
            let mut port = one.port();
            sweep.time_once(|iova| translate(&mut port, iova)).unwrap();
            assert!(one.forget_guests(range).is_err());
        }
    }
}
