//! `cost-page-size-…`: against the size of pages, with 1,024 of them.

use anyhow::Result;

use super::{Table, port, walk};
use crate::layout::Layout;
use crate::table::{Cell, Costs, Line};

/// How many are mapped.
const PAGES: u32 = 1024;

/// What a port pays.
pub const PORT: Table = Table {
    name: "cost-page-size-port",
    measure: |_| {
        Ok(Costs {
            name: PORT.name,
            by: "page size",
            columns: port::COLUMNS,
            lines: lines(|layout| port::line(layout, 1))?,
            note: "a port and its address space, 1024 mappings of one page each".into(),
        })
    },
};
/// What a page table costs.
pub const TABLE: Table = Table {
    name: "cost-page-size-table",
    measure: |_| {
        Ok(Costs {
            name: TABLE.name,
            by: "page size",
            columns: walk::COLUMNS,
            lines: lines(walk::line)?,
            note: "a page table alone, x86-64, 1024 mappings of one page each".into(),
        })
    },
};

fn lines(measure: impl Fn(&Layout) -> Result<Vec<Cell>>) -> Result<Vec<Line>> {
    let sizes = [("4 KiB", 12), ("2 MiB", 21), ("1 GiB", 30)];
    sizes
        .into_iter()
        .map(|(label, shift)| Ok(Line { label: label.into(), cells: measure(&Layout::permuted(PAGES, shift))? }))
        .collect()
}
