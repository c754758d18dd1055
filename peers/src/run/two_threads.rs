//! `threads-2`: two threads translate, each on a processor of its own, through a port of its own of the same device;
//! beside it, one of them alone.
//!
//! A sample is the time for one translation, whoever of the two does it: the time until both are done ÷ all
//! translations. So the ratio is the throughput of two ÷ the throughput of one.

use std::time::Instant;

use anyhow::{Context, Result};
use ioasid::DmaPort;

use crate::layout::{Layout, Sweep};
use crate::ours::{self, Memory, Space};
use crate::run::Benchmark;
use crate::statistics::{Side, interleave};
use crate::table::{Figure, Row, Unit};
use crate::threads::{Meeting, together};

/// Pages of each thread.
const PAGES: u32 = 4096;
/// How often a sample goes over a thread's addresses.
const PASSES: usize = 32;

/// Its one line.
pub const BENCHMARK: Benchmark = Benchmark { name: "threads-2", measure: |_| measure() };

struct Worker {
    port: DmaPort,
    sweep: Sweep,
}

fn measure() -> Result<Row> {
    let layout = Layout::permuted(2 * PAGES, 12);
    // All addresses of one thread, then those of the other.
    let (first, second): (Vec<u64>, Vec<u64>) =
        layout.addresses().into_iter().partition(|&iova| iova < layout.iova(PAGES));
    let memory = Memory::of(&layout)?;
    let space = Space::over(&layout, &memory)?;
    let mut workers =
        [first, second].map(|own| Worker { port: space.port(), sweep: layout.sweep(own, memory.start()) });
    let samples = interleave(21, |side| match side {
        Side::Ours => sample(&mut workers),
        Side::Theirs => sample(&mut workers[..1]),
    })?;
    Ok(Row {
        name: BENCHMARK.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least: 1.9 },
        note: "time per translation of two threads with a port each, 4096 pages each; of one thread alone".into(),
    })
}

fn sample(workers: &mut [Worker]) -> Result<f64> {
    let times = together(workers, run)?;
    let start = times.iter().map(|(start, _)| *start).min().context("no thread ran")?;
    let end = times.iter().map(|(_, end)| *end).max().context("no thread ran")?;
    let translations: usize = workers.iter().map(|worker| PASSES * worker.sweep.length()).sum();
    Ok((end - start).as_secs_f64() * 1e9 / translations as f64)
}

/// When it began and when it was done.
fn run(Worker { port, sweep }: &mut Worker, meeting: &Meeting) -> Result<(Instant, Instant)> {
    let mut translate = |iova| ours::translate(port, iova);
    sweep.pass(&mut translate)?;
    meeting.meet()?;
    let start = Instant::now();
    for _ in 0..PASSES {
        sweep.pass(&mut translate)?;
    }
    Ok((start, Instant::now()))
}
