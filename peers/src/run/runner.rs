//! The `ioasid` binary, and programs under it.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;

use crate::inside::Task;
use crate::statistics::{FEWEST_PAIRS, Pairs};

/// Where this package was built from.
const SOURCE: &str = env!("CARGO_MANIFEST_DIR");

/// `ioasid run`.
pub struct Runner {
    ioasid: PathBuf,
    peers: PathBuf,
}

impl Runner {
    /// Takes the binary that lies beside this one. Under `cargo run`, which promises that what runs is what the sources
    /// say, and if there is none, cargo is asked to build it first.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn find() -> Result<Self> {
        let peers = env::current_exe().context("cannot find this program's own file")?;
        let directory = peers.parent().context("this program's own file is nowhere")?;
        let ioasid = directory.join("ioasid");
        if env::var_os("CARGO").is_some() || !ioasid.exists() {
            build(directory)?;
        }
        ensure!(ioasid.exists(), "there is no {}: `cargo build --release -p ioasid-cli` makes it", ioasid.display());
        Ok(Self { ioasid, peers })
    }

    /// `ioasid run` with an I/OAT engine and without a report, about to run `program`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_with("ioat", program)
    }

    fn command_with(&self, device: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.ioasid);
        command.args(["run", "--quiet", "--device", device, "--"]).arg(program).stdin(Stdio::null());
        command
    }

    /// Has this binary perform `task` under the runner, and takes its samples.
    ///
    /// # Errors
    /// If it fails, or its samples are too few to be any.
    pub fn inside(&self, task: Task) -> Result<Pairs> {
        let samples: Pairs = self.answer(task)?;
        ensure!(samples.ours.len() >= FEWEST_PAIRS, "{} samples are too few", samples.ours.len());
        Ok(samples)
    }

    /// Has this binary perform `task` under the runner, and takes what it prints.
    ///
    /// # Errors
    /// If it fails, or prints something else.
    pub fn answer<T: DeserializeOwned>(&self, task: Task) -> Result<T> {
        let mut command = self.command_with(task.device(), &self.peers);
        let output = command.args(["inside", task.name()]).stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("cannot run {}", self.ioasid.display()))?;
        ensure!(output.status.success(), "{command:?}: {}", output.status);
        serde_json::from_slice(&output.stdout).context("the program inside printed no samples")
    }
}

/// Builds `ioasid` into `directory`, which is `release` in some target directory.
fn build(directory: &Path) -> Result<()> {
    let (Some("release"), Some(target)) = (directory.file_name().and_then(OsStr::to_str), directory.parent()) else {
        bail!("{} is no build directory: put a release build of `ioasid` there", directory.display());
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(["build", "--release", "--quiet", "-p", "ioasid-cli", "--target-dir"]).arg(target);
    // Cargo's own output would be in the way of the table.
    let status = command.current_dir(SOURCE).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot run {} to build ioasid", cargo.display()))?;
    ensure!(status.success(), "{command:?} in {SOURCE}: {status}");
    Ok(())
}
