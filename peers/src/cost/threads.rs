//! `cost-threads`: against the number of threads, each with a port of its own of the same device.

use super::{Table, port};
use crate::layout::Layout;
use crate::table::{Costs, Line};

/// Mappings in the address space.
const PAGES: u32 = 1 << 16;

/// What a port pays.
pub const PORT: Table = Table {
    name: "cost-threads",
    measure: |_| {
        let layout = Layout::permuted(PAGES, 12);
        let line = |threads: u32| Ok(Line { label: threads.to_string(), cells: port::line(&layout, threads)? });
        Ok(Costs {
            name: PORT.name,
            by: "threads",
            columns: port::COLUMNS,
            lines: [1, 2].into_iter().map(line).collect::<anyhow::Result<_>>()?,
            note: "a port for each, one address space of 65536 pages of 4 KiB; each does the same at the same time"
                .into(),
        })
    },
};
