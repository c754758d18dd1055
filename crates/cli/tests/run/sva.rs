//! Devices that use a process's own addresses, and ENQCMD.

use crate::unprivileged::as_user_with;
use crate::{Test, program_under, succeed};

pub const TESTS: &[Test] = &[
    ("a_device_uses_the_addresses_of_a_process", || uses_addresses("dsa,wqs=4")),
    ("a_part_of_a_device_uses_the_addresses_of_a_process", || uses_addresses("dsa,slices=2")),
    ("an_ordinary_users_device_uses_its_addresses", || as_user_with("dsa,wqs=4", "sva", 0, "")),
    ("who_cannot_trace_a_process_cannot_give_it_to_a_device", || as_user_with("dsa", "sva-of-another", 0, "")),
];

/// What the program does is in `examples/dsa`: it ends with an error if one of its claims does not hold.
fn uses_addresses(device: &str) {
    let text = succeed(&mut program_under(&["--device", device, "--check"], "sva", &[]));
    assert!(text.contains("came in on the way") && text.contains("parked"), "{text}");
}
