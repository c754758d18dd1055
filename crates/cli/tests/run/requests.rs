//! Malformed requests get Linux's errno and change nothing. The rows are in the program `requests`.

use crate::{Test, program_under, succeed};

pub const TESTS: &[Test] = &[("malformed_requests_get_linuxs_errno_and_change_nothing", || {
    let rows: usize =
        succeed(&mut program_under(&["--device", "ioat", "--check"], "requests", &[])).trim().parse().unwrap();
    assert!(rows >= 110, "{rows} rows");
})];
