//! SIGKILL at any moment leaves nothing behind.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::program::circle::WAYS;
use crate::{Test, eventually, program_under, succeed};

pub const TESTS: &[Test] = &[
    ("a_hundred_runs_killed_at_random_leave_nothing", a_hundred_runs),
    ("a_traced_program_without_its_guardian_ends", without_a_guardian),
    ("three_hundred_runners_killed_while_they_ask_their_own_tree_go", killed_while_asking),
    ("nobody_outlives_a_runner_that_is_killed", nobody_outlives_a_runner),
    ("what_is_mapped_keeps_no_run_from_ending", || {
        let text = succeed(&mut program_under(&["--device", "ioat", "--quiet"], "keeping", &[]));
        assert_eq!(text, "mapped\n");
    }),
];

const RUNS: u32 = 100;

/// Processes of the runs with this mark among their arguments: the runner's and the program's.
fn processes(mark: &str) -> BTreeSet<u32> {
    let exe = std::env::current_exe().unwrap();
    let ours = [exe, crate::ioasid()];
    let numbers =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers
        .filter(|number| *number != std::process::id())
        .filter(|number| {
            std::fs::read_link(format!("/proc/{number}/exe")).is_ok_and(|link| ours.contains(&link))
                && std::fs::read_to_string(format!("/proc/{number}/cmdline")).is_ok_and(|line| line.contains(mark))
        })
        .collect()
}

fn fuse_connections() -> usize {
    std::fs::read_dir("/sys/fs/fuse/connections").map_or(0, Iterator::count)
}

/// The first child of a process.
fn first_child(number: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{number}/task/{number}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Waits until a runner is gone, and whatever it started with this mark: for a second.
fn gone_within_a_second(child: &mut Child, mark: &str, what: &dyn std::fmt::Debug) {
    let killed = Instant::now();
    while child.try_wait().unwrap().is_none() || !processes(mark).is_empty() {
        if killed.elapsed() > Duration::from_secs(1) {
            let left = processes(mark);
            let _ = child.kill();
            panic!("{what:?}: {left:?}");
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn a_hundred_runs() {
    let mut random = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
    let before = fuse_connections();
    for run in 0..RUNS {
        let mut child = program_under(&["--device", "ioat"], "endless", &["kill-me-at-random"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        // Every other run is killed while its program copies, the others perhaps before.
        if run / 3 % 2 == 0 {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            assert!(line.contains("copying"), "{line}");
        }
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_micros(u64::from(random >> 12) % 60_000));
        // The runner one time, what is between them another, and the program.
        let victim = match run % 3 {
            0 => Some(child.id()),
            1 => first_child(child.id()),
            _ => first_child(child.id()).and_then(first_child),
        };
        // SAFETY: takes no pointers; the victim is our child, or its child, which it has not waited for.
        unsafe { libc::kill(victim.unwrap_or(child.id()) as i32, libc::SIGKILL) };
        stdout.read_to_string(&mut String::new()).unwrap();
        child.wait().unwrap();
        eventually("every process of the run is gone", || processes("kill-me-at-random").is_empty());
    }
    eventually("no FUSE connection is left", || fuse_connections() <= before);
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains("ioasid"));
    succeed(&mut program_under(&["--device", "ioat", "--check"], "copy", &["shared"]));
}

/// A thread that is traced ends when its tracer has it go: so the runner, which ends what the guardian was for, has to.
fn without_a_guardian() {
    for run in 0..10 {
        let mark = "kill-my-guardian";
        let mut child = program_under(&["--device", "ioat", "--quiet"], "traced", &["endless", mark])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "copying\n");
        let guardian = first_child(child.id()).unwrap();
        // SAFETY: takes no pointers; the guardian is waited for by the runner, which lives.
        unsafe { libc::kill(guardian as i32, libc::SIGKILL) };
        gone_within_a_second(&mut child, mark, &run);
    }
}

/// A thread that waits for what only its own process could tell it must not keep that from ending.
fn killed_while_asking() {
    let ioat = |name: &str, argument: &str| {
        program_under(&["--device", "ioat", "--memlock", "unlimited", "--quiet"], name, &[argument, "kill-me-asking"])
    };
    for run in 0..300 {
        let command = match run % 6 {
            0 => ioat("mapping", "kill-me-asking"),
            way => ioat("asking", WAYS[way - 1]),
        };
        // Without these capabilities it has to look for shared memory among the program's files.
        let command = if run % 6 == 5 && rustix::process::geteuid().is_root() {
            let mut weak = Command::new("setpriv");
            weak.args(["--bounding-set=-sys_admin,-checkpoint_restore", "--inh-caps=-all"]);
            weak.arg(command.get_program()).args(command.get_args());
            weak
        } else {
            command
        };
        killed_after(command, Duration::from_micros(run as u64 * 137 % 5_000));
    }
}

/// Kills a runner some time after its program has said the first word, and waits until it is gone: for a second.
fn killed_after(mut command: Command, time: Duration) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(["mapping\n", "asking\n"].contains(&line.as_str()), "{command:?}: {line}");
    std::thread::sleep(time);
    child.kill().unwrap();
    gone_within_a_second(&mut child, "kill-me-asking", &command);
}

/// Not a program that has changed its user, nor what it started and left, nor who has a session of their own.
fn nobody_outlives_a_runner() {
    let seconds = format!("{}.{}", 7000 + std::process::id() % 1000, std::process::id());
    let scripts = [
        format!("setsid sleep {seconds} & (sleep {seconds} &) & echo ready; exec sleep {seconds}"),
        format!("echo ready; exec setpriv --reuid=65534 --regid=65534 --clear-groups sleep {seconds}"),
        format!("(setpriv --reuid=65534 --regid=65534 --clear-groups setsid sleep {seconds} &); echo ready; exit 0"),
    ];
    let count = if rustix::process::geteuid().is_root() { scripts.len() } else { 1 };
    for script in &scripts[..count] {
        let mut child = crate::ioasid_run(&["--quiet", "--device", "ioat"])
            .args(["sh", "-c", &format!("exec 3</dev/iommu; {script}")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        eventually("they sleep", || sleepers(&seconds) > 0);
        std::thread::sleep(Duration::from_millis(20));
        child.kill().unwrap();
        child.wait().unwrap();
        let killed = Instant::now();
        while sleepers(&seconds) > 0 {
            assert!(killed.elapsed() < Duration::from_secs(1), "{script}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Processes that sleep for so long.
fn sleepers(seconds: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let line = |path: std::path::PathBuf| std::fs::read_to_string(path.join("cmdline")).unwrap_or_default();
    entries.filter(|entry| line(entry.path()) == format!("sleep\0{seconds}\0")).count()
}
