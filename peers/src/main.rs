//! `peers`: ioasid beside what it is measured against.
//!
//! ```text
//!  main ──► run/      one file per benchmark: what is ours, what is theirs, which figure is to be reached
//!       ──► cost/     one file per table of cost, which has no figure and no peer
//!            │  ├───► layout    what is mapped where, and which addresses are translated, for both sides
//!            │  ├───► ours      the calls of ioasid and iopt
//!            │  ├───► theirs/   peers that are no crates, or need something around them
//!            │  └───► inside/   what runs under `ioasid run`: this binary again, with a driver of its own
//!            ▼
//!           statistics ──► table   medians and spread, as a table or as JSON, with the machine that they hold for
//! ```
//!
//! Absolute times differ from machine to machine, so the two sides of a pair are measured in turn, in one run, and what
//! counts is the ratio of each pair. Each side's result is checked, so that one that does nothing cannot win. To add a
//! benchmark, add a file to `run/` and a line to [`run::BENCHMARKS`].
#![allow(unreachable_pub, reason = "in a binary, `pub` says that other modules use it")]

mod cost;
mod inside;
mod layout;
mod machine;
mod memory;
mod ours;
mod pair;
mod process;
mod random;
mod run;
mod statistics;
mod table;
mod theirs;
mod threads;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use inside::Task;

/// A figure was not reached, and --check was given.
const EXIT_NOT_REACHED: u8 = 1;
/// A benchmark could not be measured, or the command line is wrong.
const EXIT_FAILED: u8 = 2;

/// Measures ioasid beside its peers, in turn in one run.
#[derive(Parser)]
#[command(name = "peers", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Measure and print (what happens without a command, too)
    ///
    /// The exit status is 0; 1 with --check if a figure is not reached; 2 if something could not be measured.
    Run(RunArgs),
    /// Measure one thing from inside of `ioasid run`
    #[command(hide = true)]
    Inside {
        /// What.
        task: Task,
    },
    /// Be a device in a process of its own
    #[command(hide = true)]
    Device {
        /// Where to listen.
        socket: PathBuf,
        /// Which processor to do DMA on.
        cpu: usize,
    },
}

#[derive(Args)]
struct RunArgs {
    /// Print JSON, with all samples
    #[arg(long)]
    json: bool,
    /// Exit with status 1 if a figure is not reached
    #[arg(long)]
    check: bool,
    /// Measure only benchmarks and tables of cost whose name begins like this
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => measure(&args),
        Command::Inside { task } => inside::perform(task).map(|()| ExitCode::SUCCESS),
        Command::Device { socket, cpu } => ours::apart::serve(&socket, cpu).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("peers: {error:#}");
        ExitCode::from(EXIT_FAILED)
    })
}

fn measure(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let machine = machine::Machine::find();
    if !args.json {
        // Now, so that it is seen even if somebody loses patience.
        println!("{machine}\n");
    }
    let run::Results { rows, costs, failed } = run::benchmarks(&args.names)?;
    if args.json {
        println!("{}", table::json(&machine, &rows, &costs)?);
    } else {
        print!("{}", table::text(&rows, &costs));
    }
    for (name, error) in &failed {
        eprintln!("peers: {name}: {error:#}");
    }
    let missed = args.check && rows.iter().any(|row| row.reached() == Some(false));
    Ok(match (failed.is_empty(), missed) {
        (false, _) => ExitCode::from(EXIT_FAILED),
        (true, true) => ExitCode::from(EXIT_NOT_REACHED),
        (true, false) => ExitCode::SUCCESS,
    })
}
