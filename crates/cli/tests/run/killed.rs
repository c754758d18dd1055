//! SIGKILL at any moment leaves nothing behind.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use crate::{Test, eventually, program_under, succeed};

pub const TESTS: &[Test] = &[
    ("a_hundred_runs_killed_at_random_leave_nothing", a_hundred_runs),
    ("a_runner_killed_while_it_asks_its_own_tree_goes", killed_while_asking),
];

const RUNS: u32 = 100;

/// Processes that were not there before and belong to a run: the runner's and the program's.
fn processes() -> BTreeSet<u32> {
    let exe = std::env::current_exe().unwrap();
    let ours = [exe, crate::ioasid()];
    let numbers =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers
        .filter(|number| *number != std::process::id())
        .filter(|number| {
            std::fs::read_link(format!("/proc/{number}/exe")).is_ok_and(|link| ours.contains(&link))
                && std::fs::read_to_string(format!("/proc/{number}/cmdline")).is_ok_and(|line| line.contains("kill-me"))
        })
        .collect()
}

fn fuse_connections() -> usize {
    std::fs::read_dir("/sys/fs/fuse/connections").map_or(0, Iterator::count)
}

fn a_hundred_runs() {
    let mut random = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
    let before = fuse_connections();
    let mut copying = 0;
    for run in 0..RUNS {
        let mut child = program_under(&["--device", "ioat"], "endless", &["kill-me"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_micros(u64::from(random >> 12) % 60_000));
        // The runner one time, the program the other.
        let victim = if run % 2 == 0 {
            Some(child.id())
        } else {
            let children = format!("/proc/{0}/task/{0}/children", child.id());
            std::fs::read_to_string(children).ok().and_then(|text| text.split_whitespace().next()?.parse().ok())
        };
        // SAFETY: takes no pointers; the victim is our child, or its child, which it has not waited for.
        unsafe { libc::kill(victim.unwrap_or(child.id()) as i32, libc::SIGKILL) };
        let output = {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut text).unwrap();
            text
        };
        copying += u32::from(output.contains("copying"));
        child.wait().unwrap();
        eventually("every process of the run is gone", || processes().is_empty());
    }
    assert!(copying >= RUNS / 4, "only {copying} of {RUNS} runs had begun to copy when they were killed");
    eventually("no FUSE connection is left", || fuse_connections() <= before);
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains("ioasid"));
    succeed(&mut program_under(&["--device", "ioat", "--check"], "copy", &["shared"]));
}

fn killed_while_asking() {
    for run in 0..40u64 {
        let mut child = program_under(&["--device", "ioat"], "mapping", &["kill-me"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "mapping\n");
        std::thread::sleep(Duration::from_micros(run * 137 % 5_000));
        child.kill().unwrap();
        // A thread that waits for what only its own process could tell it keeps it from ending.
        eventually("the runner is gone", || child.try_wait().unwrap().is_some());
        eventually("every process of the run is gone", || processes().is_empty());
    }
}
