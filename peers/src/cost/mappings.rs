//! `cost-mappings-…`: against the number of mappings, of 4 KiB each.

use anyhow::Result;

use super::{Table, port, short, walk};
use crate::layout::Layout;
use crate::table::{Cell, Costs, Line};

/// What a port pays.
pub const PORT: Table = Table {
    name: "cost-mappings-port",
    measure: |_| {
        Ok(Costs {
            name: PORT.name,
            by: "mappings",
            columns: port::COLUMNS,
            lines: lines(&[1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 24], |layout| port::line(layout, 1))?,
            note: "a port and its address space, pages of 4 KiB; each thing for one page, each page mapped by a call"
                .into(),
        })
    },
};
/// What a page table costs.
pub const TABLE: Table = Table {
    name: "cost-mappings-table",
    measure: |_| {
        Ok(Costs {
            name: TABLE.name,
            by: "mappings",
            columns: walk::COLUMNS,
            lines: lines(&[1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 24], walk::line)?,
            note: "a page table alone, x86-64, pages of 4 KiB; each thing for one page, each page mapped by a call"
                .into(),
        })
    },
};

fn lines(counts: &[u32], measure: impl Fn(&Layout) -> Result<Vec<Cell>>) -> Result<Vec<Line>> {
    counts
        .iter()
        .map(|&count| Ok(Line { label: short(count), cells: measure(&Layout::permuted(count, 12))? }))
        .collect()
}
