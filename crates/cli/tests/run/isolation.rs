//! Two programs, two contexts, two devices: neither reaches the other's memory.

use crate::{Test, program_under, succeed};

pub const TESTS: &[Test] = &[
    ("two_programs_cannot_reach_each_others_memory", two_programs),
    ("a_group_belongs_to_one_context", a_group_belongs_to_one_context),
];

fn two_programs() {
    let devices = ["--device", "ioat", "--device", "ioat", "--quiet"];
    let text = succeed(&mut program_under(&devices, "isolation", &[]));
    assert_eq!(text, "a tried 200 addresses of b and reached none\nb tried 200 addresses of a and reached none\n");
}

fn a_group_belongs_to_one_context() {
    let devices = ["--device", "ioat,group=5", "--device", "ioat,group=5", "--device", "ioat", "--check"];
    assert_eq!(succeed(&mut program_under(&devices, "groups", &[])), "as it should be\n");
}
