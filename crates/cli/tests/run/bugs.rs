//! Each bug is found, named, and turned into an exit status.

use serde_json::Value;

use crate::{Test, finish, program_under, reported};

pub const TESTS: &[Test] = &[
    ("a_clean_program_is_not_reported", a_clean_program_is_not_reported),
    ("an_end_that_closes_everything_is_no_finding", || {
        for how in ["exit", "child", "exec"] {
            let (status, report) = reported(&["--device", "ioat", "--check"], "just-exits", &[how]);
            assert_eq!((status, &report["findings"]), (Some(0), &Value::Array(Vec::new())), "{how}");
        }
    }),
    ("dma_to_nowhere_is_a_dma_fault", || found("never-mapped", "dma-fault", "not-mapped")),
    ("dma_to_what_was_unmapped_is_a_use_after_unmap", || found("use-after-unmap", "use-after-unmap", "")),
    ("a_write_to_a_read_only_mapping_is_not_permitted", || found("read-only", "dma-fault", "not-permitted")),
    ("dma_without_bus_master_enable_is_named", || found("not-bus-master", "dma-fault", "not-bus-master")),
    ("dma_of_a_detached_device_is_named", || found("not-attached", "dma-fault", "not-attached")),
    ("dma_to_memory_that_is_gone_is_named", || {
        let (status, report) = reported(&["--device", "ioat", "--check"], "memory-gone", &[]);
        assert_eq!((status, kinds(&report)), (Some(99), vec!["memory-lost", "dma-fault"]), "{report:#}");
        assert_eq!(report["findings"][1]["reason"], "memory-gone", "{report:#}");
    }),
    ("memory_that_is_lost_is_named_and_what_comes_in_its_place_is_not_reached", || {
        for arguments in [&["memory-replaced"][..], &["traced", "memory-replaced"]] {
            memory_replaced(arguments);
        }
    }),
    ("dma_to_a_file_that_was_cut_short_is_named", || found("file-cut-short", "dma-fault", "memory-gone")),
    ("an_ioas_that_is_never_destroyed_is_leaked", || found("leaked-object", "object-leaked", "")),
    ("a_device_that_is_closed_attached_is_named", || found("left-attached", "device-left-attached", "")),
    ("an_interrupt_that_nobody_reads_is_named", || found("interrupt-unread", "interrupt-unread", "")),
    ("findings_are_shown_and_change_the_status_only_if_asked", findings_are_shown),
];

fn a_clean_program_is_not_reported() {
    for memory in ["shared", "private", "memfd", "mixed"] {
        let (status, report) = reported(&["--device", "ioat", "--check"], "copy", &[memory]);
        assert_eq!((status, &report["findings"]), (Some(0), &Value::Array(Vec::new())), "{memory}");
        assert!(report["traffic"][0]["bytes_written"].as_u64() >= Some(4 << 20), "{report}");
    }
}

fn found(program: &str, kind: &str, reason: &str) {
    let (status, report) = reported(&["--device", "ioat", "--check"], program, &[]);
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{report:#}");
    assert_eq!((status, findings[0]["kind"].as_str()), (Some(99), Some(kind)), "{report:#}");
    assert_eq!(findings[0]["reason"].as_str().unwrap_or_default(), reason, "{report:#}");
    assert_eq!(report["ending"]["status"], 0, "{report:#}");
}

fn kinds(report: &Value) -> Vec<&str> {
    report["findings"].as_array().unwrap().iter().map(|finding| finding["kind"].as_str().unwrap()).collect()
}

fn memory_replaced(arguments: &[&str]) {
    let (status, report) = reported(&["--device", "ioat", "--check"], arguments[0], &arguments[1..]);
    let expected = ["memory-lost", "dma-fault", "memory-lost", "dma-fault", "memory-lost"];
    assert_eq!((status, kinds(&report)), (Some(99), expected.to_vec()), "{report:#}");
    let iovas = report["findings"].as_array().unwrap().iter().map(|finding| finding["iova"].as_str().unwrap());
    assert_eq!(iovas.collect::<Vec<_>>(), ["0x201000", "0x201000", "0x202000", "0x202000", "0x900000"]);
    let process = |finding: usize| report["findings"][finding]["process"].as_u64().unwrap();
    assert!(process(0) == process(2) && process(0) != process(4), "{report:#}");
}

fn findings_are_shown() {
    let output = finish(&mut program_under(&["--device", "ioat"], "never-mapped", &[]));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}", output.status);
    assert!(text.contains("ioasid: 1 finding") && text.contains("write at IOVA 0x900000"), "{text}");
    assert!(!text.contains('\x1b'), "no colour where there is no terminal");
    let quiet = finish(&mut program_under(&["--device", "ioat", "--quiet"], "never-mapped", &[]));
    assert!(quiet.stderr.is_empty());
}
