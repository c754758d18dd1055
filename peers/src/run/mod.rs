//! The benchmarks: one file each, which says what is ours, what is theirs, and which figure is to be reached.
//!
//! Those that run a program under `ioasid run` share [`runner`]; what that program does is in [`crate::inside`].

mod copy_library;
mod copy_shared;
mod ioctl_round_trip;
mod register_read;
mod run_start;
mod runner;

use std::cell::OnceCell;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::table::Row;
use runner::Runner;

/// One name in the table.
pub struct Benchmark {
    /// Its name.
    name: &'static str,
    /// Measures it.
    measure: fn(&Bench) -> Result<Row>,
}

/// In the order of the table.
pub const BENCHMARKS: &[Benchmark] = &[
    run_start::BENCHMARK,
    copy_shared::WARM,
    copy_shared::COLD,
    copy_library::PAGE,
    copy_library::PAGES_16,
    copy_library::MEGABYTE,
    ioctl_round_trip::BENCHMARK,
    register_read::BENCHMARK,
];

/// What benchmarks have in common, made when the first one needs it.
#[derive(Default)]
pub struct Bench {
    runner: OnceCell<Runner>,
}

impl Bench {
    /// `ioasid run`.
    ///
    /// # Errors
    /// If there is no binary and none can be built.
    fn runner(&self) -> Result<&Runner> {
        if let Some(runner) = self.runner.get() {
            return Ok(runner);
        }
        let runner = Runner::find()?;
        Ok(self.runner.get_or_init(|| runner))
    }
}

/// What came of it.
pub struct Results {
    /// What was measured.
    pub rows: Vec<Row>,
    /// What could not be, and why.
    pub failed: Vec<(&'static str, anyhow::Error)>,
}

/// Measures the benchmarks whose name begins with one of `names`, or all if there is none.
///
/// # Errors
/// If one of `names` is the beginning of no name, or this is a debug build. A benchmark that fails is in the results.
pub fn benchmarks(names: &[String]) -> Result<Results> {
    if cfg!(debug_assertions) {
        bail!("the figures of a debug build say nothing: use `cargo run --release -p peers`");
    }
    if let Some(unknown) = names.iter().find(|name| !BENCHMARKS.iter().any(|b| b.name.starts_with(name.as_str()))) {
        let known: Vec<_> = BENCHMARKS.iter().map(|benchmark| benchmark.name).collect();
        bail!("there is no benchmark `{unknown}`; there are {}", known.join(", "));
    }
    let bench = Bench::default();
    let mut results = Results { rows: Vec::new(), failed: Vec::new() };
    for Benchmark { name, measure } in BENCHMARKS {
        if names.is_empty() || names.iter().any(|wanted| name.starts_with(wanted.as_str())) {
            eprintln!("peers: {name} …");
            match measure(&bench) {
                Ok(row) => results.rows.push(row),
                Err(error) => results.failed.push((name, error)),
            }
        }
    }
    Ok(results)
}

/// How long `work` takes, in nanoseconds.
pub fn time<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e9)
}
