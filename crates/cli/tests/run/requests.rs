//! Malformed requests get Linux's errno and change nothing. The rows are in the program `requests`.

use crate::{Test, program_under, succeed};

pub const TESTS: &[Test] = &[("malformed_requests_get_linuxs_errno_and_change_nothing_behind_each_iommu", || {
    for kind in ["vtd", "vtd5", "amd", "smmuv3", "riscv"] {
        let mut program = program_under(&["--iommu", kind, "--device", "ioat", "--check"], "requests", &[]);
        let rows: usize = succeed(&mut program).trim().parse().unwrap();
        assert!(rows >= 110, "{kind}: {rows} rows");
    }
})];
