// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program; see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    ioasid_example_rust_client::main_with(std::env::args().skip(1))
}
