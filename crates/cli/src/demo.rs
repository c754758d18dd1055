//! `ioasid demo`: the whole of it in a few seconds.

use std::process::ExitCode;

use clap::Args;

#[derive(Args)]
pub struct DemoArgs {}

pub fn command(_args: &DemoArgs) -> ExitCode {
    ExitCode::SUCCESS
}
