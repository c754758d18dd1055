//! `register-read`: a load from a mapped register, which the runner performs on the device model.
//!
//! Its peer, libvfio-user with the crate `vfio_user`, is not measured here: its figures are from a machine like the one
//! in `machine`, and stand in the note.

use anyhow::Result;

use crate::inside::Task;
use crate::run::{Bench, Benchmark};
use crate::table::{Figure, Row, Unit};

/// Its one line.
pub const BENCHMARK: Benchmark = Benchmark { name: "register-read", measure };

fn measure(bench: &Bench) -> Result<Row> {
    Ok(Row {
        name: BENCHMARK.name.into(),
        samples: bench.runner()?.inside(Task::Register)?,
        unit: Unit::Time,
        figure: Figure::None,
        note: "a 4-byte load from BAR 0; libvfio-user, measured elsewhere: 14 µs on one core, 62 µs across two".into(),
    })
}
