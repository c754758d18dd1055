//! `threads-2`: two threads translate, each on a processor of its own, through ports of one device, in one address
//! space; beside it, the same two with a machine each, that share nothing at all.
//!
//! A sample is the time for one translation, whoever of the two does it: the time until both are done ÷ all
//! translations. So the ratio says what sharing costs. How much two threads do in the time of one is a property of the
//! processor: two threads of one core, or a core whose clock falls when its neighbour works, may do hardly more than
//! one.

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
    let memory = Memory::of(&layout)?;
    let spaces = [(); 3].map(|()| Space::over(&layout, &memory));
    let [shared, first, second] = spaces;
    let (shared, own) = (shared?, [first?, second?]);
    // The addresses of each thread, the same ones on both sides.
    let worker = |space: &Space, thread: u32| {
        let is_its = |iova: &u64| (*iova < layout.iova(PAGES)) == (thread == 0);
        let addresses = layout.addresses().into_iter().filter(is_its).collect();
        Worker { port: space.port(), sweep: layout.sweep(addresses, memory.start()) }
    };
    let mut ours = [worker(&shared, 0), worker(&shared, 1)];
    let mut theirs = [worker(&own[0], 0), worker(&own[1], 1)];
    let samples = interleave(21, |side| match side {
        Side::Ours => sample(&mut ours),
        Side::Theirs => sample(&mut theirs),
    })?;
    Ok(Row {
        name: BENCHMARK.name.into(),
        samples,
        unit: Unit::Time,
        figure: Figure::Ratio { at_least: 0.95 },
        note: "time per translation of two threads with a port each, 4096 pages each; with a machine each".into(),
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
