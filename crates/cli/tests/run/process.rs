//! A program under `ioasid run` lives as it would without.

use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Stdio;

use crate::{Test, finish, ioasid, ioasid_run, program_under, succeed};

pub const TESTS: &[Test] = &[
    ("the_exit_status_is_the_programs", the_exit_status_is_the_programs),
    ("a_signal_that_ends_the_program_ends_the_runner", a_signal_ends_both),
    ("environment_directory_arguments_and_input_pass_through", surroundings_pass_through),
    ("signals_to_the_runner_reach_the_program", signals_reach_the_program),
    ("a_stopped_program_stops_the_runner", a_stopped_program_stops_the_runner),
    ("a_program_stopped_and_continued_by_its_child_goes_on", || {
        let script = "(sleep 0.2; kill -CONT $$) & kill -STOP $$; exit 6";
        assert_eq!(finish(ioasid_run(&["--quiet"]).args(["sh", "-c", script])).status.code(), Some(6));
    }),
    ("a_program_that_stops_its_parent_ends_all_the_same", || {
        let script = "kill -STOP $PPID; exit 5";
        assert_eq!(finish(ioasid_run(&["--quiet"]).args(["sh", "-c", script])).status.code(), Some(5));
    }),
    ("a_program_that_ends_its_parent_ends_the_run", || {
        let output = finish(ioasid_run(&["--quiet"]).args(["sh", "-c", "kill -KILL $PPID; sleep 50"]));
        assert_eq!(output.status.signal(), Some(libc::SIGKILL));
    }),
    ("signal_dispositions_are_those_of_a_program_started_directly", || {
        let script = "grep -E 'SigIgn|SigBlk' /proc/self/status";
        let direct = finish(std::process::Command::new("sh").args(["-c", script]));
        assert_eq!(finish(ioasid_run(&["--quiet"]).args(["sh", "-c", script])).stdout, direct.stdout);
    }),
    ("a_standard_error_that_cannot_be_written_changes_nothing", || {
        let mut command = ioasid_run(&[]);
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(command.args(["sh", "-c", "exit 4"]).stderr(full).status().unwrap().code(), Some(4));
    }),
    ("a_thread_that_is_not_the_first_execs", || drop(program("exec-from-thread"))),
    ("registers_are_mapped_after_the_first_thread_has_ended", || drop(program("first-thread-ends"))),
    ("what_was_closed_is_closed_for_the_next_request", || drop(program("close-then-destroy"))),
    ("many_areas_need_few_descriptors", || {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -n 150; exec \"$@\"", "sh"]);
        let program = program_under(&["--device", "ioat", "--check"], "many-areas", &[]);
        drop(succeed(command.arg(program.get_program()).args(program.get_args())));
    }),
    ("a_device_tells_what_it_has", || drop(program("information"))),
    ("a_descriptor_can_do_what_it_was_opened_for", || drop(program("open-modes"))),
    ("a_mapping_to_read_from_is_not_written", || {
        let output = finish(&mut program_under(&["--device", "ioat", "--check"], "forged-store", &[]));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("store of 4 bytes"), "{}: {text}", output.status);
    }),
    ("bad_command_lines_exit_2_and_say_what_would_be_right", bad_command_lines),
    ("programs_that_cannot_be_run_exit_as_from_a_shell", programs_that_cannot_be_run),
    ("dev_and_sys_keep_what_they_had", dev_and_sys_keep_what_they_had),
    ("a_device_is_bound_and_unbound_through_sys", a_device_is_bound_and_unbound),
    ("nothing_of_it_is_seen_outside", nothing_is_seen_outside),
    ("many_threads_use_registers_at_once", || drop(program("threads"))),
    ("children_after_a_fork_use_the_same_registers", || drop(program("fork"))),
    ("a_program_handles_its_own_sigbus", || drop(program("own-sigbus"))),
    ("a_program_has_handlers_of_its_own_beside_registers", || drop(program("own-handlers"))),
    ("registers_are_exact_in_a_storm_of_signals_and_children", || {
        let devices = ["--device", "ioat", "--device", "ioat", "--device", "ioat", "--device", "ioat", "--check"];
        drop(succeed(&mut program_under(&devices, "storm", &[])));
    }),
    ("a_child_made_in_the_middle_of_an_access_goes_on", || drop(program("forked-in-accesses"))),
    ("a_signal_sent_in_the_middle_of_an_access_arrives", || drop(program("sent-in-accesses"))),
    ("a_program_that_filters_its_own_system_calls_uses_registers", || drop(program("filtered"))),
    ("a_thread_that_blocks_bus_errors_uses_registers", || drop(program("blocked-bus-errors"))),
    ("a_program_that_has_to_be_traced_lives_as_one_that_has_not", || {
        for name in ["threads", "fork", "own-sigbus", "signals", "exec", "wide-accesses", "first-thread-ends"] {
            drop(succeed(&mut program_under(&["--device", "ioat", "--check"], "traced", &[name])));
        }
        drop(succeed(&mut program_under(&["--device", "ioat", "--quiet"], "traced", &["registers"])));
    }),
    ("memory_of_a_bar_is_mapped_as_memory", || {
        let (shared, own) = (["--device", "ivshmem,memory=1"], ["--device", "ivshmem"]);
        let devices = [&[shared, shared, own, own].concat(), &["--check"][..]].concat();
        drop(succeed(&mut program_under(&devices, "bar-memory", &[])));
        drop(succeed(&mut program_under(&devices, "traced", &["bar-memory-traced"])));
    }),
    ("a_program_with_timers_and_signals_loses_none", || drop(program("signals"))),
    ("a_program_that_execs_gives_up_its_registers", || drop(program("exec"))),
    ("a_child_that_outlives_the_program_keeps_its_device", a_child_outlives_the_program),
    ("registers_behave_exactly_through_the_mapping", || {
        // It makes a refused DMA on purpose, to have an error bit to clear.
        drop(succeed(&mut program_under(&["--device", "ioat", "--quiet"], "registers", &[])));
    }),
    ("one_client_works_in_all_five_modes", || {
        for mode in ["type1", "type1v2", "compat-type1", "compat-type1v2", "cdev"] {
            // It is refused on purpose.
            drop(succeed(&mut program_under(&["--device", "ioat", "--quiet"], "mode", &[mode])));
        }
    }),
    ("groups_and_containers_live_as_on_linux", || drop(program("groups-and-containers"))),
    ("a_device_reaches_another_and_itself_where_they_are_mapped", || {
        // It is refused on purpose.
        drop(succeed(&mut program_under(&["--device", "ioat", "--device", "ivshmem", "--quiet"], "peers", &[])));
    }),
    ("a_buffer_of_a_device_is_taken_back_by_a_reset", || {
        // It is refused on purpose.
        drop(succeed(&mut program_under(&["--device", "ioat", "--device", "ivshmem", "--quiet"], "dma-buffer", &[])));
    }),
    ("device_files_look_like_character_devices", || {
        drop(program("char-devices"));
        drop(succeed(&mut program_under(&["--device", "ioat", "--check"], "traced", &["char-devices"])));
    }),
    ("a_device_tells_exactly_what_it_has_written", || {
        let devices = ["--device", "ioat", "--device", "dsa,slices=2", "--check"];
        drop(succeed(&mut program_under(&devices, "dma-logging", &[])));
    }),
    ("an_open_file_keeps_its_name_while_others_look", || drop(program("names"))),
    ("registers_are_mapped_while_other_threads_look_at_device_files", || {
        for _ in 0..10 {
            drop(succeed(&mut program_under(&["--device", "ioat", "--check"], "traced", &["maps-while-others-look"])));
        }
    }),
    ("a_name_that_is_opened_again_is_what_it_was_opened_for", || drop(program("modes-of-opens"))),
    ("a_thread_that_looks_at_a_device_file_holds_up_no_exec", || {
        drop(succeed(&mut program_under(&["--device", "ioat", "--check"], "looks-and-execs", &["100"])));
    }),
    ("a_process_that_is_stopped_stays_so_whatever_it_looks_at", || {
        drop(succeed(&mut program_under(&["--device", "ioat", "--quiet"], "stays-stopped", &[])));
        drop(succeed(&mut program_under(&["--device", "ioat", "--quiet"], "traced", &["stays-stopped"])));
    }),
    ("devices_behind_a_bridge_are_reset_together", || {
        let devices = ["--device", "ioat,bus=1", "--device", "ioat,bus=1", "--device", "ioat,bus=2", "--check"];
        drop(succeed(&mut program_under(&devices, "reset-together", &[])));
    }),
    ("an_eventfd_unmasks_interrupts_and_none_is_lost", || {
        drop(succeed(&mut program_under(&["--device", "edu", "--check"], "interrupts-resample", &[])));
    }),
    ("an_eventfd_is_a_doorbell", || {
        // It is refused on purpose.
        drop(succeed(&mut program_under(&["--device", "edu", "--quiet"], "doorbell-by-eventfd", &[])));
    }),
    ("dsa_copies_to_another_device_until_that_is_reset", || {
        // It is refused on purpose.
        let devices = ["--device", "dsa", "--device", "ivshmem", "--quiet"];
        drop(succeed(&mut program_under(&devices, "dsa-peers", &[])));
        drop(succeed(&mut program_under(&devices, "dsa-buffers", &[])));
    }),
    ("who_has_a_device_that_is_unbound_is_asked_to_let_go", || drop(program("asked-back"))),
    ("registers_that_cannot_be_mapped_are_read_and_written", || {
        drop(succeed(&mut program_under(&["--device", "ioat,map=off", "--check"], "not-mapped", &[])));
    }),
    ("registers_can_be_looked_at_without_vfio", || drop(program("resource"))),
    ("a_part_of_a_device_comes_out_of_its_group", || {
        drop(succeed(&mut program_under(&["--device", "dsa,slices=2", "--check"], "slice-of-a-group", &[])));
    }),
    ("requests_on_a_container_fail_as_on_linux", || drop(program("type1-errors"))),
    ("each_version_of_type1_cuts_its_own_way", || drop(program("type1-cuts"))),
    ("mappings_of_a_container_lose_addresses_and_get_others", || drop(program("type1-addresses"))),
    ("a_container_has_as_many_mappings_as_it_says", || drop(program("type1-limit"))),
    ("a_container_tells_exactly_what_was_written", || drop(program("type1-dirty"))),
    ("memory_instructions_work_on_registers", || drop(program("wide-accesses"))),
];

fn program(name: &str) -> String {
    succeed(&mut program_under(&["--device", "ioat", "--check"], name, &[]))
}

fn the_exit_status_is_the_programs() {
    for status in [0, 1, 7, 255] {
        let output = finish(ioasid_run(&["--device", "ioat"]).args(["sh", "-c", &format!("exit {status}")]));
        assert_eq!(output.status.code(), Some(status));
    }
}

fn a_signal_ends_both() {
    for signal in ["KILL", "TERM", "ABRT", "SEGV"] {
        let mut command = ioasid_run(&["--device", "ioat"]);
        let status = command.args(["sh", "-c", &format!("kill -{signal} $$")]).status().unwrap();
        assert_eq!(status.code(), None, "{signal}: {status}");
        let expected = match signal {
            "KILL" => libc::SIGKILL,
            "TERM" => libc::SIGTERM,
            "ABRT" => libc::SIGABRT,
            _ => libc::SIGSEGV,
        };
        assert_eq!(status.signal(), Some(expected));
    }
}

fn surroundings_pass_through() {
    let mut command = ioasid_run(&["--device", "ioat"]);
    command.args(["sh", "-c", r#"read line; echo "$line $WORD $PWD $1" "$2""#, "sh", "a b", "--check"]);
    command.env("WORD", "word").current_dir("/tmp").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello word /tmp a b --check\n");
}

fn signals_reach_the_program() {
    use std::io::{BufRead, BufReader};
    let script = r#"trap 'echo got' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done"#;
    let mut command = ioasid_run(&["--device", "ioat"]);
    let mut child = command.args(["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    let send = |signal| {
        // SAFETY: takes no pointers; the child has not been waited for.
        unsafe { libc::kill(child.id() as i32, signal) };
    };
    assert_eq!(next(), "ready");
    send(libc::SIGUSR1);
    assert_eq!(next(), "got");
    send(libc::SIGTERM);
    assert_eq!(next(), "term");
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

fn a_stopped_program_stops_the_runner() {
    let mut command = ioasid_run(&["--device", "ioat"]);
    // A terminal's stop does nothing to an orphaned process group, as this one may be.
    command.process_group(0);
    let mut child = command.args(["sh", "-c", "kill -TSTP $$; exit 5"]).spawn().unwrap();
    let mut status = 0;
    // SAFETY: `status` is written.
    let stopped = unsafe { libc::waitpid(child.id() as i32, &mut status, libc::WUNTRACED) };
    assert!(stopped == child.id() as i32 && libc::WIFSTOPPED(status));
    // SAFETY: takes no pointers.
    unsafe { libc::kill(child.id() as i32, libc::SIGCONT) };
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

fn bad_command_lines() {
    for (words, part) in [
        (&["run", "--device", "floppy", "--", "true"][..], "ioat"),
        (&["run", "--device", "ioat,colour=red", "--", "true"], "bdf="),
        (&["run", "--device", "ioat,bdf=1:2", "--", "true"], "0000:00:01.0"),
        (&["run", "--device", "ioat,bdf=0:0:3.0", "--device", "ioat,bdf=0:0:3.0", "--", "true"], "bdf="),
        (&["run", "--colour", "--", "true"], "--colour"),
        (&["run"], "PROGRAM"),
        (&["fly"], "fly"),
    ] {
        let output = finish(std::process::Command::new(ioasid()).args(words));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
        assert!(text.contains(part), "{words:?}: {text}");
    }
}

fn programs_that_cannot_be_run() {
    for (name, status, part) in [
        ("/no/such/program", 127, "there is no such program"),
        ("no-such-program-anywhere", 127, "there is no such program"),
        ("/etc/passwd", 126, "not executable"),
        ("/tmp", 126, "not executable"),
    ] {
        let output = finish(ioasid_run(&["--device", "ioat"]).arg(name));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(status) && text.contains(part), "{name}: {} {text}", output.status);
    }
}

fn dev_and_sys_keep_what_they_had() {
    let listing = |directory: &str| {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let modules = ["iommufd", "vfio", "vfio_iommu_type1", "vfio_pci", "vfio_pci_core"];
    for (directory, ours, host_devices, of_machine) in [
        ("/dev", &["ioasid", "iommu", "vfio"][..], false, true),
        ("/sys/module", &modules, false, true),
        ("/sys/devices", &["pci0009:09"], false, true),
        ("/sys/kernel", &[], false, true),
        // The machine's own devices are hidden, or shown beside ours.
        ("/sys/bus/pci/devices", &["0009:09:09.1"], false, false),
        ("/sys/bus/pci/devices", &["0009:09:09.1"], true, true),
        ("/sys/bus/pci/drivers", &["vfio-pci"], false, false),
        ("/sys/bus/pci/drivers", &["vfio-pci"], true, true),
        ("/sys/kernel/iommu_groups", &["4321"], false, false),
        ("/sys/kernel/iommu_groups", &["4321"], true, true),
    ] {
        if !std::path::Path::new(directory).is_dir() {
            continue;
        }
        let mut expected = if of_machine { listing(directory) } else { Vec::new() };
        expected.extend(ours.iter().map(|name| (*name).to_owned()));
        expected.sort();
        expected.dedup();
        let device = ["--device", "ioat,bdf=0009:09:09.1,group=4321", "--host-devices"];
        let options = if host_devices { &device[..] } else { &device[..2] };
        let seen = succeed(ioasid_run(options).args(["ls", "-A", directory]));
        let mut seen: Vec<_> = seen.lines().map(str::to_owned).collect();
        seen.sort();
        assert_eq!(seen, expected, "{directory}");
    }
    let script = "echo hello >/dev/null && head -c 8 /dev/zero | wc -c && test -c /dev/tty && test -L /dev/fd";
    assert_eq!(succeed(ioasid_run(&["--device", "ioat"]).args(["sh", "-c", script])).trim(), "8");
}

fn a_device_is_bound_and_unbound() {
    // What fails says with which line.
    let script = r#"
        exec 5>&2 2>/dev/null
        fail() { echo "line $1" >&5; exit 1; }
        dev=0001:00:01.0; home=/sys/bus/pci/devices/$dev; driver=/sys/bus/pci/drivers/vfio-pci
        group=/dev/vfio/$(basename $(readlink $home/iommu_group))
        [ "$(basename $(readlink $home/driver))" = vfio-pci ] || fail $LINENO
        [ "$(cat $home/driver_override)" = vfio-pci ] || fail $LINENO
        [ -d $driver/$dev/vfio-dev ] && [ -d $driver/module/parameters ] || fail $LINENO
        grep -q DRIVER=vfio-pci $home/uevent || fail $LINENO
        echo $dev >$driver/bind && fail $LINENO
        echo 0001:00:07.0 >$driver/unbind && fail $LINENO
        echo $dev >$home/driver/unbind || fail $LINENO
        [ -e $home/driver ] && fail $LINENO
        [ -e $home/vfio-dev ] && fail $LINENO
        [ -e $driver/$dev ] && fail $LINENO
        [ -e $group ] && fail $LINENO
        [ -z "$(ls /dev/vfio/devices)" ] || fail $LINENO
        grep -q DRIVER= $home/uevent && fail $LINENO
        echo $dev >$driver/unbind && fail $LINENO
        echo other >$home/driver_override || fail $LINENO
        echo $dev >$driver/bind && fail $LINENO
        echo >$home/driver_override || fail $LINENO
        [ "$(cat $home/driver_override)" = "(null)" ] || fail $LINENO
        echo $dev >/sys/bus/pci/drivers_probe || fail $LINENO
        [ -e $home/driver ] && fail $LINENO
        echo nonsense >$driver/new_id && fail $LINENO
        echo 8086 2021 >$driver/new_id || fail $LINENO
        [ -e $group ] && [ -e /dev/vfio/devices/vfio0 ] || fail $LINENO
        echo 8086 2021 >$driver/new_id && fail $LINENO
        echo 8086 2021 >$driver/remove_id || fail $LINENO
        echo 8086 2021 >$driver/remove_id && fail $LINENO
        echo $dev >$driver/unbind && echo vfio-pci >$home/driver_override || fail $LINENO
        echo $dev >/sys/bus/pci/drivers_probe || fail $LINENO
        [ -e $home/driver ] || fail $LINENO
        echo 1 >$home/reset || fail $LINENO
        echo 2 >$home/reset && fail $LINENO
        exit 0
    "#;
    drop(succeed(ioasid_run(&["--device", "ioat", "--check"]).args(["bash", "-c", script])));
}

fn nothing_is_seen_outside() {
    let script = "test -e /dev/iommu && grep -c ioasid /proc/mounts";
    let inside = succeed(ioasid_run(&["--device", "ioat"]).args(["sh", "-c", script]));
    assert_ne!(inside.trim(), "0");
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains("ioasid"), "{mounts}");
}

fn a_child_outlives_the_program() {
    let output = finish(&mut program_under(&["--device", "ioat", "--check"], "daemon", &[]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(text, "parent ends\nchild copied\n");
}
