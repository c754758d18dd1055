//! `ioasid run`, from outside: what a program that knows nothing of it sees, and what is left afterwards.
//!
//! This binary is both sides. As a test it starts `ioasid run -- itself program NAME`, and as `program NAME` it is one
//! of the programs in `program.rs`, which use nothing but system calls.
#![allow(unsafe_code, reason = "the programs map memory and make raw system calls, as drivers do")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "in a binary, `pub` says that other modules use it")]

mod bugs;
mod driver;
mod hostile;
mod isolation;
mod killed;
mod nvme;
mod process;
mod program;
mod remote;
mod requests;
mod sva;
mod unprivileged;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output};
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("program") {
        let name = words.next().expect("the name of a program");
        program::run(&name, &words.collect::<Vec<_>>());
        return ExitCode::SUCCESS;
    }
    let mut trials = Vec::new();
    let groups = [
        process::TESTS,
        bugs::TESTS,
        requests::TESTS,
        isolation::TESTS,
        killed::TESTS,
        unprivileged::TESTS,
        sva::TESTS,
        hostile::TESTS,
        nvme::TESTS,
        remote::TESTS,
    ];
    for group in groups {
        for &(name, test) in group {
            trials.push(Trial::test(name, move || {
                test();
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A named test.
type Test = (&'static str, fn());

/// The binary under test.
fn ioasid() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_ioasid"))
}

/// `ioasid run OPTIONS --`, to be continued with a program.
fn ioasid_run(options: &[&str]) -> Command {
    let mut command = Command::new(ioasid());
    command.arg("run").args(options).arg("--");
    command
}

/// One of the programs in `program.rs`, under `ioasid run OPTIONS`.
fn program_under(options: &[&str], name: &str, arguments: &[&str]) -> Command {
    let mut command = ioasid_run(options);
    command.arg(std::env::current_exe().unwrap()).arg("program").arg(name).args(arguments);
    command
}

/// Runs it to its end, which must come within a minute.
#[track_caller]
fn finish(command: &mut Command) -> Output {
    let mut timed = Command::new("timeout");
    timed.args(["--signal=KILL", "60"]).arg(command.get_program()).args(command.get_args());
    timed.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    if let Some(directory) = command.get_current_dir() {
        timed.current_dir(directory);
    }
    timed.output().expect("the coreutils program `timeout`")
}

/// Runs it to its end, which must be a success with nothing on standard error; returns standard output.
#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = finish(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program of ours with its report in a file, and returns exit status and report.
#[track_caller]
fn reported(options: &[&str], name: &str, arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
    let file = std::env::temp_dir().join(format!("ioasid-test-{}-{name}", std::process::id()));
    let mut all = vec!["--quiet", "--report", file.to_str().unwrap()];
    all.extend(options);
    let output = finish(&mut program_under(&all, name, arguments));
    let report = std::fs::read(&file)
        .unwrap_or_else(|error| panic!("{error}: {} {}", output.status, String::from_utf8_lossy(&output.stderr)));
    std::fs::remove_file(&file).unwrap();
    (output.status.code(), serde_json::from_slice(&report).unwrap())
}

/// Waits until `condition` holds, for at most ten seconds.
#[track_caller]
fn eventually(what: impl AsRef<OsStr>, mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came true that {}", what.as_ref().to_string_lossy());
}
