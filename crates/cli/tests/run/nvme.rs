//! An NVMe controller: bugs of its driver are named by command, and what was flushed is there whatever happens.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::program::nvme::{BLOCKS, block};
use crate::{Test, ioasid, ioasid_run, program_under, succeed};

pub const TESTS: &[Test] = &[
    ("a_use_after_unmap_in_a_prp_list_is_named_with_its_command", unmapped_list),
    ("what_was_flushed_is_there_after_two_hundred_kills", two_hundred_kills),
    ("a_controller_that_is_taken_out_reads_as_ones", || {
        succeed(&mut program_under(&["--device", "nvme,memory=1M,fail=read:2:remove"], "nvme-removed", &[]));
    }),
    ("a_bad_image_is_said_at_the_start", bad_images),
];

/// A file of its own.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let place = std::env::temp_dir().join(format!("ioasid-test-nvme-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&place);
        Self(place)
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn unmapped_list() {
    let file = Place::new("report");
    let options = ["--quiet", "--check", "--report", file.text(), "--device", "nvme,memory=1M"];
    let output = crate::finish(&mut program_under(&options, "nvme-unmapped-list", &[]));
    assert_eq!(output.status.code(), Some(99), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let said: Vec<&str> = said.split_whitespace().collect();
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&file.0).unwrap()).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 2, "{report:#}");
    for (finding, said) in findings.iter().zip(said.chunks(2)) {
        assert_eq!(finding["kind"], "use-after-unmap", "{report:#}");
        assert_eq!(finding["command"]["queue"], 1, "{report:#}");
        assert_eq!(finding["command"]["identifier"].to_string(), said[0], "{report:#}");
        assert_eq!(finding["iova"], said[1], "{report:#}");
    }
    assert_eq!((&findings[0]["access"], &findings[1]["access"]), (&"write".into(), &"read".into()));
    // And for people.
    let options = ["--check", "--device", "nvme,memory=1M"];
    let output = crate::finish(&mut program_under(&options, "nvme-unmapped-list", &[]));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("use after unmap") && text.contains(", by command 1 of queue 1"), "{text}");
}

const KILLS: u32 = 200;

/// The runner is killed while its program writes. What it had said to be flushed is in the image, and so is what came
/// later, as far as it came.
fn two_hundred_kills() {
    let (image, log) = (Place::new("image"), Place::new("log"));
    std::fs::write(&image.0, vec![0; (BLOCKS * 4096) as usize]).unwrap();
    let device = format!("nvme,image={},lba=4096", image.text());
    let (mut next, mut random, mut flushes) = (1u64, 12345u32, 0);
    for kill in 0..KILLS {
        let mut command =
            program_under(&["--quiet", "--device", &device], "nvme-writer", &[log.text(), &next.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "writing\n", "kill {kill}");
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_micros(u64::from(random >> 12) % 10_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let flushed = u64::from_le_bytes(std::fs::read(&log.0).unwrap().try_into().unwrap());
        assert!(flushed > next);
        flushes += (flushed - next) / 8;
        check(&image.0, flushed);
        next = flushed;
    }
    assert!(flushes > u64::from(KILLS), "{flushes} flushes");
}

/// Checks that each block is the last one that was flushed to its place, or a later one, whole.
fn check(image: &Path, flushed: u64) {
    let bytes = std::fs::read(image).unwrap();
    for (at, found) in (0..).zip(bytes.chunks(4096)) {
        let sequence = u64::from_le_bytes(found[..8].try_into().unwrap()) / 512;
        assert!(found == block(sequence) || sequence == 0 && flushed <= BLOCKS, "block {at} is not whole");
        let newest = (1..flushed).rev().find(|sequence| sequence % BLOCKS == at);
        assert!(
            newest.is_none_or(|newest| sequence >= newest),
            "block {at} has {sequence}, and {newest:?} was flushed"
        );
    }
}

fn bad_images() {
    let short = Place::new("short");
    std::fs::write(&short.0, [0; 1000]).unwrap();
    let missing = Place::new("missing");
    let device = |what: &str| format!("nvme,{what}");
    for (device, part) in [
        (device(&format!("image={}", short.text())), "no whole blocks of 512"),
        (device(&format!("image={}", missing.text())), "give it a size="),
        (device("lba=4096,memory=1M"), "after image=FILE or memory=SIZE"),
        (device("memory=1M,fail=read:1"), "KIND:N:WHAT"),
        (device("memory=12"), "16M"),
        (device("memory=1M,cmb=5000"), "power of two"),
        (device("memory=1M,serial=123456789012345678901"), "20"),
    ] {
        let output = crate::finish(ioasid_run(&["--device", &device]).arg("true"));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(part), "{device}: {} {text}", output.status);
    }
    // One image in two runs at once.
    let image = Place::new("twice");
    let device = format!("nvme,image={},size=1M", image.text());
    let held = program_under(&["--quiet", "--device", &device], "nvme-writer", &["/dev/null", "0"])
        .stdout(Stdio::piped())
        .spawn();
    let mut held = held.unwrap();
    BufReader::new(held.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let output = crate::finish(ioasid_run(&["--device", &device]).arg("true"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use by another program"), "{output:?}");
    held.kill().unwrap();
    held.wait().unwrap();
    // And after it.
    assert!(ioasid().exists());
    succeed(ioasid_run(&["--device", &device]).arg("true"));
}
