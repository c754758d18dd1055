//! `run-start`: what it costs to start a program under `ioasid run`, from the start of the process to its end.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::run::{Bench, Benchmark, time};
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};

/// The shortest program there is.
const PROGRAM: &str = "true";
const PAIRS: usize = 51;

/// Its one line.
pub const BENCHMARK: Benchmark = Benchmark { name: "run-start", measure };

fn measure(bench: &Bench) -> Result<Row> {
    let mut under = bench.runner()?.command(PROGRAM);
    let mut alone = Command::new(PROGRAM);
    alone.stdin(Stdio::null());
    let samples = interleave(PAIRS, |side| match side {
        Side::Ours => time(|| run(&mut under)),
        Side::Theirs => time(|| run(&mut alone)),
    })?;
    Ok(Row {
        name: BENCHMARK.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Difference { under_ns: 50e6 },
        note: "`ioasid run --quiet --device ioat -- true`; `true` alone".into(),
    })
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
