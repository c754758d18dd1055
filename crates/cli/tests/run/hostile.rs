//! Programs that attack others, or the runner.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::unprivileged::shell_as_user_in;
use crate::{Test, eventually, finish, program_under, succeed};

pub const TESTS: &[Test] = &[
    ("a_child_with_the_number_of_a_thread_has_its_own_memory", || number_reused(&[])),
    ("a_child_with_the_number_of_a_thread_and_another_user_has_its_own_memory", || number_reused(&["65534"])),
    ("an_ordinary_users_child_with_the_number_of_a_thread_has_its_own_memory", users_number_reused),
    ("a_process_that_must_not_be_looked_into_is_not_given_to_a_device", || {
        if rustix::process::geteuid().is_root() {
            not_dumpable(&finish(&mut program_under(DSA, "not-dumpable", &["65534"])));
        }
        let line = "\"$ioasid\" run --quiet --device dsa -- \"$self\" program not-dumpable";
        not_dumpable(&shell_as_user_in("", line, "666"));
    }),
    ("what_linux_pins_can_be_mapped_and_nothing_else", || {
        // A file system that writes back is wanted, which the one that was built on is.
        let file = std::env::current_exe().unwrap().with_extension(format!("pinning-{}", std::process::id()));
        let output = finish(&mut program_under(DSA, "pinning", &[file.to_str().unwrap()]));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "as Linux\n", "{errors}");
    }),
    ("requests_that_wait_hold_up_no_others", || {
        if rustix::process::geteuid().is_root() {
            drop(succeed(&mut program_under(&["--quiet", "--device", "ioat"], "stuck", &[])));
        }
    }),
    ("registers_are_mapped_while_another_thread_execs", || {
        drop(succeed(&mut program_under(&["--quiet", "--device", "ioat"], "map-and-exec", &[])));
    }),
    ("processes_that_share_memory_and_are_no_threads_use_registers", || {
        drop(succeed(&mut program_under(&["--quiet", "--device", "ioat"], "shared-memory-processes", &[])));
    }),
    ("a_program_that_waits_in_a_register_access_can_be_ended", || {
        if rustix::process::geteuid().is_root() {
            ended_while_it_waits("stuck-register-access", "waiting\n", libc::SIGTERM);
        }
    }),
    ("a_run_ends_though_a_device_waits_for_memory", || {
        if rustix::process::geteuid().is_root() {
            let begin = Instant::now();
            assert_eq!(
                succeed(&mut program_under(&["--quiet", "--device", "ioat"], "stuck-and-ended", &[])),
                "ending\n"
            );
            assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        }
    }),
    ("requests_leave_nothing_in_the_runner", || {
        let devices = ["--quiet", "--memlock", "unlimited", "--device", "ioat", "--device", "ioat"];
        drop(succeed(&mut program_under(&devices, "nothing-remains", &[])));
    }),
    ("requests_at_random_neither_stop_nor_fill_the_runner", || {
        let devices = ["--quiet", "--memlock", "unlimited", "--device", "ioat", "--device", "ioat", "--device", "dsa"];
        let output = finish(&mut program_under(&devices, "random", &["9", "30000"]));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !errors.contains("panicked"), "{} {errors}", output.status);
    }),
    ("many_areas_of_a_file_cost_few_mappings", || {
        let devices = ["--quiet", "--memlock", "unlimited", "--device", "ioat"];
        drop(succeed(&mut program_under(&devices, "few-mappings", &[])));
    }),
    ("a_run_ends_in_the_middle_of_a_map_of_terabytes", || {
        let begin = ended_while_it_waits("endless-map", "mapping\n", libc::SIGKILL);
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }),
    ("a_runner_that_may_not_change_limits_knows_those_of_others", || {
        if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            let program = program_under(&["--quiet", "--device", "ioat"], "pinned-by-another", &["65534"]);
            command.args(["--bounding-set=-sys_resource", "--inh-caps=-all"]);
            assert_eq!(succeed(command.arg(program.get_program()).args(program.get_args())), "16\n");
        }
    }),
];

const DSA: &[&str] = &["--quiet", "--memlock", "unlimited", "--device", "dsa"];

/// Ends a program, when it has said something, with a signal: SIGKILL itself, and others by the runner, which passes
/// them on. Returns when that was.
fn ended_while_it_waits(program: &str, says: &str, signal: i32) -> Instant {
    let devices = ["--quiet", "--memlock", "unlimited", "--device", "ioat"];
    let mut command = program_under(&devices, program, &[]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, says);
    std::thread::sleep(Duration::from_millis(50));
    let begin = Instant::now();
    let pid = if signal == libc::SIGKILL { program_of(child.id()) } else { child.id() as i32 };
    // SAFETY: takes numbers; the child has not been waited for, and the program ends with it.
    unsafe { libc::kill(pid, signal) };
    let mut ended = None;
    eventually("the run has ended", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.signal()), Some(signal));
    begin
}

/// The program of a runner: the only child of its only child.
fn program_of(runner: u32) -> i32 {
    let child = |pid: u32| {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.trim().parse::<u32>().unwrap()
    };
    child(child(runner)) as i32
}

fn number_reused(user: &[&str]) {
    // Only root may choose a number, and become another user.
    if rustix::process::geteuid().is_root() {
        is_its_own(&finish(&mut program_under(DSA, "number-reused", user)));
    }
}

/// Only root may choose a number, so the test has few of them, which come round soon. The kernel can do that for a
/// namespace from Linux 6.14 on.
fn users_number_reused() {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(6), Some(14)) || !rustix::process::geteuid().is_root() {
        println!("left out: Linux 6.14 and root are needed to make numbers come round soon");
        return;
    }
    let few = "unshare --pid --fork --mount-proc sh -c 'echo 1000 > /proc/sys/kernel/pid_max; exec \"$0\" \"$@\"'";
    let line = "\"$ioasid\" run --quiet --memlock unlimited --device dsa -- \"$self\" program number-reused";
    is_its_own(&shell_as_user_in(few, line, "666"));
}

#[track_caller]
fn is_its_own(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let wanted = "the child's device reads \"child's\"\nthe parent has \"parents\"\n";
    assert_eq!(text, wanted, "{} {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn not_dumpable(output: &Output) {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(text, "Err(true)\n", "{} {errors}", output.status);
}
