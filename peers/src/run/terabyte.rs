//! `terabyte-…`: an address space of 1 TiB, mapped with one call in pages of 4 KiB, and in pages of 1 GiB.
//!
//! The arena is new, so this is with the kernel's work to provide 2 GiB of tables. Their memory is what the process
//! grows by, or what tables are in use, if that is more; a page is 8 bytes of its leaf table, and 8.1 leaves little for
//! anything else. There is no peer.

use anyhow::{Result, ensure};
use iopt::format;

use crate::layout::BASE;
use crate::ours::Table;
use crate::process;
use crate::run::{Benchmark, time};
use crate::statistics::{Pairs, alone};
use crate::table::{Figure, Row, Unit};

const LENGTH: u64 = 1 << 40;
const PAGES: u64 = LENGTH >> 12;
/// Tables for it: those with leaves, and 1/256 more for those above.
const TABLES: u32 = ((PAGES >> 9) + (PAGES >> 17) + 512) as u32;
/// One page further in its 2 MiB than the IOVA, so that nothing larger than a page fits.
const SMALL_PA: u64 = (1 << 44) + 0x1000;
/// Aligned to 1 GiB, as the IOVA is.
const LARGE_PA: u64 = 1 << 44;

/// How long it takes in pages of 4 KiB.
pub const SMALL_TIME: Benchmark = Benchmark {
    name: "terabyte-4k",
    measure: |bench| {
        let Small { nanoseconds, tables, grown } = *bench.terabyte()?;
        Ok(Row {
            name: SMALL_TIME.name.into(),
            samples: Pairs { ours: vec![nanoseconds], theirs: Vec::new() },
            unit: Unit::Time,
            figure: Figure::None,
            note: format!(
                "1 TiB in pages of 4 KiB, one call, new arena; tables {:.2} MiB, the process grew by {:.2} MiB",
                tables as f64 / f64::from(1 << 20),
                grown as f64 / f64::from(1 << 20)
            ),
        })
    },
};
/// How much memory it takes for each of them.
pub const SMALL_MEMORY: Benchmark = Benchmark {
    name: "terabyte-4k-memory",
    measure: |bench| {
        let Small { tables, grown, .. } = *bench.terabyte()?;
        Ok(Row {
            name: SMALL_MEMORY.name.into(),
            samples: Pairs { ours: vec![tables.max(grown) as f64 / PAGES as f64], theirs: Vec::new() },
            unit: Unit::Memory,
            figure: Figure::Ours { at_most: 8.1 },
            note: "memory for each page of the same: tables in use or growth of the process, whichever is more".into(),
        })
    },
};
/// How long it takes in pages of 1 GiB.
pub const LARGE_TIME: Benchmark = Benchmark { name: "terabyte-1g", measure: |_| large() };

/// What was measured with pages of 4 KiB.
pub struct Small {
    nanoseconds: f64,
    /// Bytes of tables.
    tables: u64,
    /// Bytes by which the process grew.
    grown: u64,
}

impl Small {
    /// Measures it, once.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub fn measure() -> Result<Self> {
        let before = process::resident()?;
        let mut table = None;
        let nanoseconds = time(|| {
            let made = Table::<format::X86_64>::new(TABLES)?;
            made.map_small(BASE, SMALL_PA, LENGTH)?;
            table = Some(made);
            Ok(())
        })?;
        let grown = process::resident()?.saturating_sub(before);
        let tables = table.as_ref().map_or(0, Table::bytes);
        for page in (0..PAGES).step_by(PAGES as usize / 1021) {
            let (iova, pa) = (BASE + (page << 12), SMALL_PA + (page << 12));
            ensure!(table.as_ref().and_then(|table| table.walk(iova)) == Some(pa), "IOVA {iova:#x} is not mapped");
        }
        Ok(Self { nanoseconds, tables, grown })
    }
}

fn large() -> Result<Row> {
    let samples = alone(31, || {
        process::give_back();
        let mut table = None;
        let taken = time(|| {
            let made = Table::<format::X86_64>::new(TABLES)?;
            made.map_large(BASE, LARGE_PA, LENGTH)?;
            table = Some(made);
            Ok(())
        })?;
        let tables = table.as_ref().map_or(0, Table::bytes) >> 12;
        ensure!(tables <= 8, "{tables} tables are too many for pages of 1 GiB");
        for iova in (BASE..BASE + LENGTH).step_by(1 << 29) {
            let found = table.as_ref().and_then(|table| table.walk(iova));
            ensure!(found == Some(iova - BASE + LARGE_PA), "IOVA {iova:#x} is not mapped");
        }
        Ok::<_, anyhow::Error>(taken)
    })?;
    Ok(Row {
        name: LARGE_TIME.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Ours { at_most: 1e6 },
        note: "1 TiB in pages of 1 GiB, one call, with making the arena".into(),
    })
}
