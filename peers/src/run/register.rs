//! `register-polled`, `register-once`: a load from a mapped register, which the runner performs on the device model;
//! theirs is a read of one over vfio-user's socket, client and server on two processors. `doorbell`: a store to a page
//! of a BAR that is memory; theirs is one to any memory.

use anyhow::Result;

use crate::inside::Task;
use crate::run::{Bench, Benchmark};
use crate::table::{Figure, Row, Unit};

/// One after the other.
pub const POLLED: Benchmark = Benchmark { name: "register-polled", measure: polled };
/// One in 10 ms.
pub const ONCE: Benchmark = Benchmark { name: "register-once", measure: once };
/// One after the other.
pub const DOORBELL: Benchmark = Benchmark { name: "doorbell", measure: doorbell };

fn polled(bench: &Bench) -> Result<Row> {
    let note = "a 4-byte load from BAR 0, in a loop; a 4-byte read by the crate vfio_user, on two processors";
    row(bench, &POLLED, Task::Register, 3.0, note)
}

fn once(bench: &Bench) -> Result<Row> {
    row(bench, &ONCE, Task::RegisterOnce, 1.0, "the same, once in 10 ms")
}

fn doorbell(bench: &Bench) -> Result<Row> {
    let note = "a 4-byte store to a BAR that is memory; one to shared memory";
    row(bench, &DOORBELL, Task::Doorbell, 0.5, note)
}

fn row(bench: &Bench, benchmark: &Benchmark, task: Task, at_least: f64, note: &str) -> Result<Row> {
    Ok(Row {
        name: benchmark.name.into(),
        samples: bench.runner()?.inside(task)?,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least },
        note: note.into(),
    })
}
