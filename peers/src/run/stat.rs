//! `stat-path`, `stat-file`: asking about a file that is none of ours, by a program under `ioasid run`; beside it, the
//! same program alone. Device files look like character devices, and other files are not to pay for that.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::run::{Bench, Benchmark};
use crate::statistics::{FEWEST_PAIRS, Side, interleave};
use crate::table::{Figure, Row, Unit};

/// Prints the nanoseconds of one call.
const PROGRAM: &str = "\
import os, sys, time
file, calls, by_path = os.open('.', os.O_RDONLY), 100000, sys.argv[1] == 'path'
begin = time.perf_counter_ns()
if by_path:
    [os.stat('.') for _ in range(calls)]
else:
    [os.fstat(file) for _ in range(calls)]
print((time.perf_counter_ns() - begin) / calls)
";

/// By its path.
pub const PATH: Benchmark = Benchmark { name: "stat-path", measure: |bench| measure(bench, &PATH, "path") };
/// When it is open.
pub const FILE: Benchmark = Benchmark { name: "stat-file", measure: |bench| measure(bench, &FILE, "file") };

fn measure(bench: &Bench, benchmark: &Benchmark, what: &str) -> Result<Row> {
    let (mut under, mut alone) = (bench.runner()?.command("python3"), Command::new("python3"));
    for python in [&mut under, &mut alone] {
        python.args(["-c", PROGRAM, what]).stdin(Stdio::null());
    }
    let samples = interleave(FEWEST_PAIRS, |side| match side {
        Side::Ours => one_call(&mut under),
        Side::Theirs => one_call(&mut alone),
    })?;
    Ok(Row {
        name: benchmark.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Difference { under_ns: 5e3 },
        note: "python3, os.stat or os.fstat of a directory of its own, under `ioasid run`; alone".into(),
    })
}

fn one_call(python: &mut Command) -> Result<f64> {
    let output = python.output().context("python3 is needed")?;
    ensure!(output.status.success(), "{python:?}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("{python:?} printed {text}"))
}
