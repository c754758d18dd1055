//! Nested translation as a VMM uses it: a guest has its own page tables, in every format, and changes them at random.
//!
//! After each change a device reads and writes at random addresses, through a port, and each access is compared with
//! a model that looks the address up in two lists. Now and then the guest forgets, on purpose, to say what it
//! changed: then the device may still see what was there before, as with hardware, and this has to be seen, or the
//! rest would show nothing.
//!
//! ```text
//!   PASID ─► guest's table of PASIDs ─► guest's page table ─► guest-physical ─► parent page table ─► bytes of a memfd
//!            │ both in the guest's own memory, and so       ▲
//!            └─ found through the parent, too ──────────────┘
//! ```
//!
//! Read [`machine`] for what a VMM makes, [`guest`] for what the guest writes into its memory and says to the VMM,
//! [`model`] for the two lists, and [`steps`] for what happens at random.

#![allow(unreachable_pub, reason = "in a binary, `pub` says that other modules use it")]

mod guest;
mod machine;
mod model;
mod random;
mod steps;

use std::io::{IsTerminal, Write as _, stderr};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use ioasid::GuestFormat;
use iopt::format::{Armv8Stage1, Sv39, Sv48, Sv57, X86_64, X86_64FiveLevels};

use crate::steps::{Counts, Run};

/// A guest changes its own page tables, in every format, and what its device reaches is compared with a model.
#[derive(Parser)]
#[command(name = "ioasid-example-nested", version)]
struct Cli {
    /// Changes that the guest makes in each format
    #[arg(long, default_value_t = 10_000)]
    steps: u32,
}

/// Makes the steps in `format`, and says on a terminal how far it is.
fn run(format: GuestFormat, seed: u64, steps: u32) -> Result<Counts> {
    let shown = stderr().is_terminal();
    let progress = |done: u32| {
        if shown && done.is_multiple_of(100) {
            eprint!("\r{:<18}{done:>8} of {steps} steps", format!("{format:?}"));
            let _ = stderr().flush();
        }
    };
    let counts = match format {
        GuestFormat::X86_64 => Run::<X86_64>::new(format, seed)?.all(steps, progress),
        GuestFormat::X86_64FiveLevels => Run::<X86_64FiveLevels>::new(format, seed)?.all(steps, progress),
        GuestFormat::Armv8Pages4K => Run::<Armv8Stage1<12>>::new(format, seed)?.all(steps, progress),
        GuestFormat::Armv8Pages16K => Run::<Armv8Stage1<14>>::new(format, seed)?.all(steps, progress),
        GuestFormat::Armv8Pages64K => Run::<Armv8Stage1<16>>::new(format, seed)?.all(steps, progress),
        GuestFormat::Sv39 => Run::<Sv39>::new(format, seed)?.all(steps, progress),
        GuestFormat::Sv48 => Run::<Sv48>::new(format, seed)?.all(steps, progress),
        GuestFormat::Sv57 => Run::<Sv57>::new(format, seed)?.all(steps, progress),
        other => bail!("a guest's tables in the format {other:?} are new here"),
    };
    if shown {
        eprint!("\r\x1b[K");
    }
    counts
}

fn main() -> Result<ExitCode> {
    let Cli { steps } = Cli::parse();
    println!(
        "{:<18}{:>8}{:>10}{:>11}{:>22}{:>7}",
        "format", "steps", "checks", "forgotten", "stale when forgotten", "wrong"
    );
    let mut fine = true;
    // No guest has that one, and there is no table of PASIDs for it.
    let formats = GuestFormat::ALL.into_iter().filter(|format| *format != GuestFormat::VtdSecondStage);
    for (seed, format) in (1..).zip(formats) {
        let Counts { steps, checks, forgotten, stale, wrong } = run(format, seed, steps)?;
        println!("{:<18}{steps:>8}{checks:>10}{forgotten:>11}{stale:>22}{wrong:>7}", format!("{format:?}"));
        if stale == 0 {
            eprintln!("{format:?}: what was forgotten was never seen: more steps are needed, or nothing is cached");
        }
        fine &= wrong == 0 && stale > 0;
    }
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
