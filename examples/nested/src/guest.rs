//! The guest: page tables, a table of PASIDs that leads to them, and what it says when it has changed something.
//!
//! ```text
//!   no PASID   ──► entry 0 ──► page table of process 0
//!   PASID 1    ──► entry 1 ──► page table of process 1
//!   PASID 2    ──► entry 2 ──► page table of process 2
//!   PASID 3    ──► page table of process 3, which the VMM attached by itself
//! ```

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use ioasid::memory::GuestTables;
use ioasid::{GuestFormat, GuestPasidFormat, GuestPasidTable, GuestTable, IovaRange, NestedHwpt, Pasid, WithoutPasid};
use iopt::{Format, PageTable};

use crate::machine::{Host, PASID_TABLE};
use crate::model::First;

/// Processes, each with a page table.
pub const PROCESSES: usize = 4;
/// Of those, how many the guest's own table of PASIDs leads to.
pub const IN_TABLE: usize = 3;

/// A page table in the guest's memory, and the list of what is in it.
pub struct Process<F: Format> {
    pub table: PageTable<F, GuestTables>,
    pub first: First,
}

/// How a guest says what it has changed.
#[derive(Debug, Clone, Copy)]
pub enum Invalidation {
    /// The IOVAs that it changed.
    Range(IovaRange),
    /// All IOVAs.
    All,
    /// All of the PASID.
    Pasid,
}

/// A guest.
pub struct Guest<F: Format> {
    pub machine: Host,
    pub processes: [Process<F>; PROCESSES],
    format: GuestFormat,
    /// That of the table of PASIDs, and that of the process beside it.
    nested: [Arc<NestedHwpt>; 2],
}

/// The PASID of a process.
pub fn pasid(process: usize) -> Option<Pasid> {
    // What has none is process 0.
    u32::try_from(process).ok().filter(|number| *number != 0).and_then(Pasid::new)
}

/// In what form a guest has a table of PASIDs that leads to page tables of `format`.
fn pasid_format(format: GuestFormat) -> Result<GuestPasidFormat> {
    Ok(match format {
        GuestFormat::X86_64 | GuestFormat::X86_64FiveLevels => GuestPasidFormat::AmdGcr3(1, format),
        GuestFormat::Armv8Pages4K | GuestFormat::Armv8Pages16K | GuestFormat::Armv8Pages64K => {
            GuestPasidFormat::SmmuV3Linear
        }
        GuestFormat::Sv39 | GuestFormat::Sv48 | GuestFormat::Sv57 => GuestPasidFormat::RiscVDirectory(1),
        other => bail!("there is no table of PASIDs for page tables in the format {other:?}"),
    })
}

/// The entry that leads to `root`, and how many bytes entries take; see [`GuestPasidFormat`].
fn pasid_entry(format: GuestFormat, root: u64) -> Result<(Vec<u64>, u64)> {
    let arm = |granule: u64| (vec![1 << 41 | 1 << 31 | granule << 6 | (64 - 48), root], 64);
    let risc_v = |mode: u64| (vec![1, mode << 60 | root >> 12], 16);
    Ok(match format {
        GuestFormat::X86_64 | GuestFormat::X86_64FiveLevels => (vec![root | 1], 8),
        GuestFormat::Armv8Pages4K => arm(0),
        GuestFormat::Armv8Pages64K => arm(1),
        GuestFormat::Armv8Pages16K => arm(2),
        GuestFormat::Sv39 => risc_v(8),
        GuestFormat::Sv48 => risc_v(9),
        GuestFormat::Sv57 => risc_v(10),
        other => bail!("there is no table of PASIDs for page tables in the format {other:?}"),
    })
}

impl<F: Format> Guest<F> {
    /// A guest whose processes have nothing mapped.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(format: GuestFormat) -> Result<Self> {
        let machine = Host::new()?;
        let process = || {
            Ok::<_, anyhow::Error>(Process { table: PageTable::new(machine.arena.clone())?, first: First::default() })
        };
        let processes = [process()?, process()?, process()?, process()?];
        let pasids = GuestPasidTable {
            format: pasid_format(format)?,
            root: PASID_TABLE,
            pasid_bits: 4,
            without: WithoutPasid::EntryZero,
            zero_is_none: true,
        };
        let beside = GuestTable { format, root: processes[IN_TABLE].table.root().0 };
        let nested = [machine.attach(None, pasids)?, machine.attach(pasid(IN_TABLE), beside)?];
        let guest = Self { machine, processes, format, nested };
        for process in 0..IN_TABLE {
            guest.enter(process)?;
        }
        Ok(guest)
    }

    /// Writes the entry of a process into the table of PASIDs.
    pub fn enter(&self, process: usize) -> Result<()> {
        let (words, size) = pasid_entry(self.format, self.processes[process].table.root().0)?;
        self.machine.put(PASID_TABLE + process as u64 * size, &words)
    }

    /// Says what has changed for a process.
    pub fn invalidate(&self, process: usize, what: Invalidation) -> Result<()> {
        let nested = self.nested.get(process / IN_TABLE).context("no such process")?;
        match what {
            Invalidation::Range(range) => nested.invalidate(range)?,
            Invalidation::All => nested.invalidate(IovaRange::ALL)?,
            Invalidation::Pasid => nested.invalidate_pasid(pasid(process))?,
        }
        Ok(())
    }
}
