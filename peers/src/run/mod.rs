//! The benchmarks: one file each, which says what is ours, what is theirs, and which figure is to be reached.
//!
//! Those that run a program under `ioasid run` share [`runner`]; what that program does is in [`crate::inside`].

mod areas_growth;
mod copy_shared;
mod dirty_harvest;
mod dma;
mod fault_resume;
mod ioctl_round_trip;
mod map_call;
mod map_run;
mod nested_hit;
mod nvme;
mod register;
mod remote;
mod run_start;
mod runner;
mod stat;
mod terabyte;
mod translate_hash;
mod translate_hit;
mod translate_list;
mod two_threads;
mod virtio_blk;
mod walk;
mod xproc;

use std::cell::OnceCell;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::cost;
use crate::inside::{Nvme, NvmeDoorbells};
use crate::table::{Costs, Row};
pub use runner::Runner;

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
    ioctl_round_trip::BENCHMARK,
    stat::PATH,
    stat::FILE,
    register::POLLED,
    register::ONCE,
    register::DOORBELL,
    remote::READ,
    xproc::MAP,
    xproc::DMA_PAGE,
    xproc::DMA_PAGES_16,
    xproc::GROWTH,
    translate_hit::PAGES_1K,
    translate_hit::PAGES_64K,
    translate_hit::PAGES_1M,
    translate_list::ENTRIES_2K,
    translate_list::ENTRY,
    translate_hash::BENCHMARK,
    two_threads::BENCHMARK,
    nested_hit::BENCHMARK,
    walk::MULTIARCH,
    walk::X86_64,
    map_run::MAP_MULTIARCH,
    map_run::MAP_X86_64,
    map_run::MAP_COLD,
    map_run::UNMAP_MULTIARCH,
    map_run::UNMAP_X86_64,
    map_call::MAP_ONE,
    map_call::MAP_256,
    map_call::UNMAP_ONE,
    map_call::UNMAP_256,
    dma::PAGE,
    dma::PAGES_16,
    dma::MEGABYTE,
    dirty_harvest::BENCHMARK,
    fault_resume::POLLED,
    fault_resume::BLOCKING,
    virtio_blk::BENCHMARK,
    terabyte::SMALL_TIME,
    terabyte::SMALL_MEMORY,
    terabyte::LARGE_TIME,
    areas_growth::BENCHMARK,
];

/// What benchmarks have in common, made when the first one needs it.
#[derive(Default)]
pub struct Bench {
    runner: OnceCell<Runner>,
    terabyte: OnceCell<terabyte::Small>,
    nvme: [OnceCell<Vec<Nvme>>; 3],
}

impl Bench {
    /// `ioasid run`.
    ///
    /// # Errors
    /// If there is no binary and none can be built.
    pub fn runner(&self) -> Result<&Runner> {
        made_once(&self.runner, Runner::find)
    }

    /// Reads of NVMe blocks, by depth.
    ///
    /// # Errors
    /// If the driver fails.
    fn nvme(&self, doorbells: NvmeDoorbells) -> Result<&Vec<Nvme>> {
        made_once(&self.nvme[doorbells as usize], || nvme::measure(self, doorbells))
    }

    /// 1 TiB in pages of 4 KiB, of which there is more than one thing to say.
    ///
    /// # Errors
    /// If it cannot be mapped.
    fn terabyte(&self) -> Result<&terabyte::Small> {
        made_once(&self.terabyte, terabyte::Small::measure)
    }
}

fn made_once<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(made) = cell.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}

/// What came of it.
pub struct Results {
    /// What was measured.
    pub rows: Vec<Row>,
    /// The tables of cost.
    pub costs: Vec<Costs>,
    /// What could not be, and why.
    pub failed: Vec<(&'static str, anyhow::Error)>,
}

/// Measures the benchmarks and the tables of cost whose name begins with one of `names`, or all if there is none.
///
/// # Errors
/// If one of `names` is the beginning of no name, or this is a debug build. A benchmark that fails is in the results.
pub fn benchmarks(names: &[String]) -> Result<Results> {
    if cfg!(debug_assertions) {
        bail!("the figures of a debug build say nothing: use `cargo run --release -p peers`");
    }
    let all = || BENCHMARKS.iter().chain(nvme::BENCHMARKS);
    let known = || all().map(|benchmark| benchmark.name).chain(cost::TABLES.iter().map(|table| table.name));
    if let Some(unknown) = names.iter().find(|name| !known().any(|known| known.starts_with(name.as_str()))) {
        bail!("there is no benchmark `{unknown}`; there are {}", known().collect::<Vec<_>>().join(", "));
    }
    let is_wanted = |name: &str| {
        let wanted = names.is_empty() || names.iter().any(|wanted| name.starts_with(wanted.as_str()));
        if wanted {
            eprintln!("peers: {name} …");
        }
        wanted
    };
    let bench = Bench::default();
    let mut results = Results { rows: Vec::new(), costs: Vec::new(), failed: Vec::new() };
    for Benchmark { name, measure } in all().filter(|benchmark| is_wanted(benchmark.name)) {
        match measure(&bench) {
            Ok(row) => results.rows.push(row),
            Err(error) => results.failed.push((name, error)),
        }
    }
    for cost::Table { name, measure } in cost::TABLES.iter().filter(|table| is_wanted(table.name)) {
        match measure(&bench) {
            Ok(costs) => results.costs.push(costs),
            Err(error) => results.failed.push((name, error)),
        }
    }
    Ok(results)
}

/// How long `work` takes, in nanoseconds.
///
/// # Errors
/// Of `work`.
pub fn time<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e9)
}
