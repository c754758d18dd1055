//! `ioasid run`: a program, behind an IOMMU.
//!
//! ```text
//!   ioasid run ─┬─ main thread   supervise: waits for the program, passes signals on, performs register accesses
//!               ├─ tree          FUSE: open, close, /sys files
//!               ├─ listen × n    ioctl, mmap, pread, pwrite of device files, one more than are busy
//!               ├─ work × n      what may wait: closes, answers to page requests
//!               ├─ devices       one thread for each that ever worked
//!               └─ guardian      a process that leaves nobody behind
//!                   └─ child     enter: namespaces, mounts, seccomp filter, then the program itself
//! ```
//! The child is made before the first thread, prepares its surroundings with this process's help (it needs the tree
//! to be served while it mounts it), and becomes the program.

mod channel;
mod enter;
mod graft;
mod guardian;
mod supervise;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ioasid::{IommuKind, Machine};
use ioasid_serve::way::listen::Listener;
use ioasid_serve::way::trap::Tracer;
use ioasid_serve::way::tree::Tree;
use ioasid_serve::{Options, Server};
use rustix::process::getpid;

use crate::machine::{self, DeviceError, DeviceOption};
use crate::report::{Collector, Ending, Report, Style, Traffic};
use crate::terminal;
use channel::Channel;

pub use supervise::block_ends;

/// The command line is wrong.
pub const EXIT_USAGE: u8 = 2;
/// A finding turns into this exit status under `--check`.
pub const EXIT_FINDINGS: u8 = 99;
/// The surroundings of the program could not be made.
pub const EXIT_SETUP: u8 = 125;
/// The program is there and cannot be run.
pub const EXIT_CANNOT_RUN: u8 = 126;
/// There is no such program.
pub const EXIT_NOT_FOUND: u8 = 127;

/// What to run.
pub struct Plan {
    pub devices: Vec<DeviceOption>,
    /// What they are behind.
    pub iommu: IommuKind,
    /// How it is served.
    pub options: Options,
    /// Whether the program sees the machine's own PCI devices, too.
    pub host_devices: bool,
    pub program: OsString,
    pub arguments: Vec<OsString>,
    /// Where its standard output goes, if not to where this process's goes.
    pub output: Option<OwnedFd>,
}

/// What became of it.
pub struct Outcome {
    pub ending: Ending,
    pub report: Report,
}

/// Why the program did not run.
#[derive(Debug)]
pub enum Failure {
    /// The devices that were asked for cannot be together.
    Devices(DeviceError),
    /// It could not be executed: exit status as a shell's, and why.
    Program(u8, String),
    /// What it was to find around it could not be made.
    Setup(anyhow::Error),
}

/// What to do with the outcome.
#[derive(clap::Args)]
pub struct Reporting {
    /// Exit with status 99 if there is a finding
    #[arg(long)]
    pub check: bool,
    /// Write the report to FILE, as JSON
    #[arg(long = "report", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(long)]
    pub quiet: bool,
}

/// `ioasid run` as a command: runs, reports, and gives the exit status, or ends as the program ended.
pub fn command(plan: Plan, reporting: &Reporting) -> ExitCode {
    // Before the program has done its work, not after.
    if let Some(path) = &reporting.file
        && let Err(error) = std::fs::File::create(path)
    {
        say!("ioasid: cannot write the report to {}: {error}", path.display());
        return ExitCode::from(EXIT_SETUP);
    }
    match run(plan, reporting.quiet, |_| {}) {
        Ok(outcome) => finish(&outcome, reporting),
        Err(Failure::Devices(error)) => {
            say!("error: {error}");
            ExitCode::from(EXIT_USAGE)
        }
        Err(Failure::Program(status, why)) => {
            say!("ioasid: {why}");
            ExitCode::from(status)
        }
        Err(Failure::Setup(error)) => {
            say!("ioasid: {error:#}");
            ExitCode::from(EXIT_SETUP)
        }
    }
}

/// Reports, and gives the exit status, or ends as the program ended.
pub fn finish(outcome: &Outcome, reporting: &Reporting) -> ExitCode {
    if !reporting.quiet {
        let text = outcome.report.text(Style::of(&std::io::stderr()));
        if !text.is_empty() {
            say!("{}", text.trim_end());
        }
    }
    if let Some(path) = &reporting.file {
        let written = serde_json::to_vec_pretty(&outcome.report)
            .map_err(anyhow::Error::from)
            .and_then(|json| Ok(std::fs::write(path, json)?));
        if let Err(error) = written {
            say!("ioasid: cannot write the report to {}: {error}", path.display());
            return ExitCode::from(EXIT_SETUP);
        }
    }
    if reporting.check && !outcome.report.findings.is_empty() {
        return ExitCode::from(EXIT_FINDINGS);
    }
    match outcome.ending {
        Ending::Status(status) => ExitCode::from(status as u8),
        Ending::Signal(signal) => supervise::end_by_signal(signal),
    }
}

/// Runs the program to its end. `started` is given the machine once the program runs.
pub fn run(plan: Plan, quiet: bool, started: impl FnOnce(&Arc<Server>)) -> Result<Outcome, Failure> {
    let collector = Arc::new(Collector::new());
    let machine = Machine::new(collector.clone());
    let devices = machine::build(&machine, plan.iommu, &plan.devices).map_err(Failure::Devices)?;
    let server = Server::new(machine, devices, collector.clone(), plan.options);
    let mut program = vec![plan.program.to_string_lossy().into_owned()];
    program.extend(plan.arguments.iter().map(|argument| argument.to_string_lossy().into_owned()));

    let signals = supervise::block_signals().map_err(|error| Failure::Setup(error.into()))?;
    let (ours, theirs) = Channel::pair().map_err(|error| Failure::Setup(error.into()))?;
    let runner = getpid();
    let child = || enter::enter(&theirs, &plan, &signals, runner);
    let child = guardian::Program::start(&ours, child).map_err(Failure::Setup)?;
    drop(theirs);
    raise_descriptor_limit();
    let prepared = prepare(&server, &ours, quiet);
    let mut tracer = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            child.give_up();
            return Err(Failure::Setup(error));
        }
    };
    if let Some((status, why)) = ours.program_failure() {
        child.give_up();
        return Err(Failure::Program(status, why));
    }
    drop(ours);
    warn_if_out_of_reach(child.number);
    started(&server);
    let ending =
        supervise::wait(&child, &mut tracer, &signals, &server, quiet).map_err(|error| Failure::Setup(error.into()))?;
    server.close_all();
    child.let_go();
    if let Some(error) = collector.refused_memory()
        && !quiet
    {
        say!(
            "ioasid: a mapping was refused (ENOMEM): with it {} bytes would have been pinned, and RLIMIT_MEMLOCK allows {}. \
             As on Linux, raise that (ulimit -l); or run with --memlock unlimited.",
            error.wanted,
            error.limit
        );
    }
    let traffic = server
        .devices()
        .iter()
        .map(|device| {
            let (bytes_read, bytes_written) = device.endpoint.traffic();
            Traffic { device: device.rid.to_string(), bytes_read, bytes_written }
        })
        .collect();
    Ok(Outcome { ending, report: collector.report(program, ending, traffic) })
}

/// Serves the child while it prepares its surroundings, until it is about to become the program.
fn prepare(server: &Arc<Server>, channel: &Channel, quiet: bool) -> Result<Tracer> {
    let fuse = channel.receive_descriptor()?;
    let (tracer, handle) = Tracer::new(server.clone())?;
    let tracing = Arc::new(handle);
    Tree::new(server.clone(), tracing.clone()).serve(fuse).context("cannot serve the device files")?;
    channel.go()?;

    let root = channel.receive_descriptor()?;
    server.mounted(root).context("cannot look at the device tree")?;
    if let Some(note) = channel.receive_note()?
        && !quiet
        && terminal::columns().is_some()
    {
        // Who watches is told; a script is not, each time.
        say!("ioasid: {note}");
    }
    let calls = channel.receive_descriptor()?;
    Listener::new(server.clone(), tracing, calls).start().context("cannot answer the program's system calls")?;
    if server.devices().is_empty() && !server.is_selftest() && !quiet {
        // Nothing wrong with that: /dev/iommu is there. But it is seldom meant.
        say!("ioasid: no --device is given, so there is nothing under /dev/vfio/devices");
    }
    channel.go()?;
    Ok(tracer)
}

/// Says so if the program's memory and descriptors cannot be reached, without which its requests cannot be answered.
fn warn_if_out_of_reach(number: u32) {
    let is_denied = || {
        let opened = ioasid::memory::Process::open(number);
        opened.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied) && {
            // One that has ended, and so has no memory, is root's until it is waited for.
            let status = std::fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
            status.contains("\nVmSize:")
        }
    };
    // In the middle of its exec a program is out of reach for a moment.
    for _ in 0..50 {
        if !is_denied() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    say!(
        "ioasid: the program's memory cannot be reached, so that its requests on the devices will fail. Is it readable \
         to you? If it is: with Yama, as root, sysctl kernel.yama.ptrace_scope=1; in a container, start that with \
         --cap-add SYS_PTRACE; or run ioasid as root."
    );
}

/// Lets this process, not the program, have as many descriptors as it may: mappings of private memory take one each.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
