//! `cost-shared-areas`: what an area of 4 KiB of shared memory costs a program under `ioasid run`, and the runner.

use super::Table;
use crate::inside::{SHARED_AREA_COUNTS, SharedAreas, Task};
use crate::table::{Cell, Costs, Line};

/// Its one line.
pub const TABLE: Table = Table {
    name: "cost-shared-areas",
    measure: |bench| {
        let all: Vec<SharedAreas> = bench.runner()?.answer(Task::SharedAreas)?;
        let line = |(count, areas): (u32, SharedAreas)| Line {
            label: count.to_string(),
            cells: vec![
                Cell::times(vec![areas.map]),
                Cell::times(vec![areas.unmap]),
                Cell::count(areas.mappings.0 as f64),
                Cell::memory(areas.bytes),
            ],
        };
        Ok(Costs {
            name: TABLE.name,
            by: "areas",
            columns: &["map", "unmap", "mappings of the runner", "memory of the runner, each"],
            lines: SHARED_AREA_COUNTS.into_iter().zip(all).map(line).collect(),
            note: "areas of 4 KiB in one shared mapping, in one address space, a device attached".into(),
        })
    },
};
