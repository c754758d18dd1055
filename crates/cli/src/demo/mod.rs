//! `ioasid demo`: the whole of it in a few seconds.
//!
//! The program is `examples/rust`, built in as a hidden subcommand, so that a fresh clone needs nothing else. It runs
//! under the real runner, and this process looks on:
//!
//! - [`picture`] draws what the device can reach;
//! - [`watch`] follows the DMA and the program's output while it runs;
//! - [`verdict`] says afterwards whether everything that the demo promises has happened.

mod picture;
mod verdict;
mod watch;

use std::ffi::OsString;
use std::hint::black_box;
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use ioasid_serve::Options;

use crate::report::Style;
use crate::run::{self, Failure, Outcome, Plan};
use picture::{address, size};
use verdict::Stopped;
use watch::{Screen, Seen};

/// The subcommand that is the program.
pub const CLIENT: &str = "demo-client";

/// Bytes that one round copies.
const SIZE: u64 = 256 << 20;
/// How often they are copied.
const ROUNDS: u64 = 8;
/// The program's arguments, which say the same.
const ARGUMENTS: [&str; 5] = ["--size", "256M", "--rounds", "8", "--forbidden"];

/// Runs the demo. The exit status is 1 if anything that it promises did not happen.
pub fn command() -> ExitCode {
    match demo(&Screen::of_stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let red = Style::of(&std::io::stderr()).red("the demo failed");
            say!("{red}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(screen: &Screen) -> Result<()> {
    let style = screen.style();
    let myself = std::env::args_os().next().unwrap_or_else(|| "ioasid".into());
    let myself = myself.to_string_lossy();
    screen.heading("A program copies memory with a DMA engine, behind a software IOMMU");
    screen.line(format_args!("  $ {myself} run --device ioat -- \\"));
    screen.line(format_args!("        {myself} {CLIENT} {}", ARGUMENTS.join(" ")));
    screen.line(
        style.dim(
            "  The program is examples/rust. It uses /dev/iommu and /dev/vfio as on Linux, and no code of ioasid.",
        ),
    );

    let (outcome, seen) = run(screen)?;
    let stopped = verdict::judge(&outcome, &seen, SIZE * ROUNDS).inspect_err(|_| {
        eprint!("{}", outcome.report.text(Style::of(&std::io::stderr())));
    })?;
    show_throughput(screen, seen.rate);
    show_stopped(screen, &stopped);
    screen.heading("Next");
    screen.line(format_args!(
        "  {myself} run --device ioat -- PROGRAM           runs a program of yours with this device"
    ));
    screen.line(format_args!(
        "  {myself} run --check --device ioat -- PROGRAM   and exits 99 if its DMA is wrong, as for CI"
    ));
    Ok(())
}

/// Runs the program to its end, and watches it.
fn run(screen: &Screen) -> Result<(Outcome, Seen)> {
    let (output, input) = std::io::pipe().context("cannot make a pipe")?;
    let plan = Plan {
        iommu: ioasid::IommuKind::Vtd,
        // It is to be seen everywhere, however little memory may be pinned.
        options: Options { memlock: Some(u64::MAX), ..Options::default() },
        host_devices: false,
        devices: vec!["ioat".parse()?],
        program: std::env::current_exe().context("cannot tell where this program is")?.into(),
        arguments: [CLIENT].iter().chain(&ARGUMENTS).map(OsString::from).collect(),
        output: Some(input.into()),
    };
    let mut watcher: Option<std::io::Result<JoinHandle<Seen>>> = None;
    let outcome = run::run(plan, false, |server| {
        let (server, screen) = (server.clone(), screen.clone());
        let watch = move || watch::watch(server.machine(), output, &screen, SIZE * ROUNDS);
        watcher = Some(std::thread::Builder::new().name("watch".into()).spawn(watch));
    })
    .map_err(|failure| match failure {
        Failure::Devices(error) => error.into(),
        Failure::Program(_, why) => anyhow!(why),
        Failure::Setup(error) => error,
    })?;
    // The last writer of the pipe is gone, so the watcher comes to its end.
    let seen = watcher.context("the program was not started")??.join();
    Ok((outcome, seen.map_err(|_| anyhow!("the watcher panicked"))?))
}

fn show_throughput(screen: &Screen, engine: f64) {
    let processor = memcpy_rate();
    screen.heading("Throughput");
    screen.line(format_args!(
        "  {engine:.2} GB/s by DMA, the first touch of every page included: {:.2} of the {processor:.2} GB/s of a memcpy of {}",
        engine / processor,
        size(SIZE)
    ));
}

fn show_stopped(screen: &Screen, stopped: &Stopped) {
    let Stopped { device, iova, count, first } = stopped;
    let times = if *count == 1 { "once".to_owned() } else { format!("{count} times") };
    screen.heading("Forbidden DMA");
    screen.line(format_args!("  tried    write at IOVA {}, where nothing was ever mapped", address(*iova, 2)));
    screen.line(format_args!(
        "  {}  by the IOMMU, and reported: DMA fault of {device}, {times}, after {:.2} s",
        screen.style().green("stopped"),
        first.0
    ));
}

/// What memcpy reaches in this process, in GB/s: as many rounds as the program makes, of the same size.
fn memcpy_rate() -> f64 {
    // Not zeroes, which would be pages that are not there yet.
    let source = vec![1u8; SIZE as usize];
    let mut destination = vec![2u8; SIZE as usize];
    let mut elapsed = Duration::ZERO;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        destination.copy_from_slice(black_box(&source));
        black_box(&mut destination);
        elapsed += begin.elapsed();
    }
    (SIZE * ROUNDS) as f64 / elapsed.as_secs_f64() / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_say_how_much_is_copied() {
        assert_eq!(ARGUMENTS[..4], ["--size", &format!("{}M", SIZE >> 20), "--rounds", &ROUNDS.to_string()]);
    }
}
