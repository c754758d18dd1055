//! `ioasid device`, and its devices as those of runs: whatever ends when, the other side goes on.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::{Test, eventually, finish, ioasid, program_under, succeed};

pub const TESTS: &[Test] = &[
    ("a_device_of_another_process_is_one_of_a_run", || {
        let server = Server::start("ioat");
        for memory in ["shared", "private", "memfd", "mixed"] {
            for how in ["", ",no-tables", ",untrusted"] {
                succeed(&mut program_under(&["--check", "--device", &server.device(how)], "copy", &[memory]));
            }
        }
        assert_eq!(server.stop(libc::SIGTERM), Some(0));
    }),
    ("a_socket_goes_with_its_server_and_one_that_was_left_is_no_hindrance", || {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            let server = Server::start("edu");
            let path = server.path.clone();
            assert_eq!(server.stop(signal), Some(0));
            assert!(!path.exists());
        }
        let server = Server::start("edu");
        let path = server.path.clone();
        let (left, place) = (path.with_extension("left"), path.clone());
        std::fs::rename(&path, &left).unwrap();
        server.stop(libc::SIGKILL);
        std::fs::rename(left, &path).unwrap();
        drop(Server::at("edu", place));
    }),
    ("what_cannot_be_served_is_said", || {
        let path = socket_path();
        let listener = UnixListener::bind(&path).unwrap();
        let at = path.to_str().unwrap();
        for (arguments, status, part) in [
            (&["edu", "--socket", at][..], 125, "listens there already"),
            (&["edu", "--socket", "/nowhere/socket"], 125, "/nowhere/socket"),
            (&["edu", "--socket", "/dev/null"], 125, "/dev/null"),
            (&["floppy", "--socket", at], 2, "there is: ioat"),
            (&["dsa,slices=2", "--socket", at], 2, "2 devices"),
            (&["edu"], 2, "--socket"),
            (&["edu", "--socket", at, "--timeout", "0"], 2, "1..=3600"),
        ] {
            let output = finish(Command::new(ioasid()).arg("device").args(arguments));
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
            assert!(errors.contains(part), "{arguments:?}: {errors}");
        }
        drop(listener);
        std::fs::remove_file(&path).unwrap();
    }),
    ("a_server_that_is_not_there_is_said_at_the_start", || {
        let output = finish(&mut program_under(&["--device", "vfio-user,socket=/nowhere"], "just-exits", &["0"]));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2));
        assert!(errors.contains("no server can be reached at /nowhere"), "{errors}");
        // One that listens, and says nothing.
        let path = socket_path();
        let _listener = UnixListener::bind(&path).unwrap();
        let device = format!("vfio-user,socket={},timeout=1", path.display());
        let output = finish(&mut program_under(&["--device", &device], "just-exits", &["0"]));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("did not answer VERSION within 1s"), "{errors}");
        std::fs::remove_file(&path).unwrap();
    }),
    ("a_server_goes_on_when_runs_are_killed", || {
        let server = Server::start("ioat");
        for round in 0..rounds() {
            let mut run = copying(&server.device(""));
            std::thread::sleep(Duration::from_millis(u64::from(round * 7 % 20)));
            run.kill().unwrap();
            run.wait().unwrap();
        }
        succeed(&mut program_under(&["--check", "--device", &server.device("")], "copy", &["shared"]));
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.child.id())).unwrap();
        assert!(!maps.contains("memfd:ioasid") && maps.lines().count() < 300, "{maps}");
        assert!(std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap().count() < 30);
        assert_eq!(server.stop(libc::SIGTERM), Some(0));
    }),
    ("a_run_goes_on_when_servers_are_killed", || {
        for round in 0..rounds() {
            let server = Server::start("ioat");
            let mut run = copying(&server.device(""));
            std::thread::sleep(Duration::from_millis(u64::from(round * 7 % 20)));
            server.stop(libc::SIGKILL);
            let mut errors = BufReader::new(run.stderr.take().unwrap());
            let mut line = String::new();
            errors.read_line(&mut line).unwrap();
            assert!(line.contains("0001:00:01.0: the device has gone"), "{line}");
            // The program notices, or is ended: both end the run.
            let pid = rustix::process::Pid::from_child(&run);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            eventually("the run ends", || run.try_wait().unwrap().is_some());
            let _ = errors.read_to_string(&mut line);
        }
    }),
    ("a_server_that_stands_still_holds_up_no_run_for_longer_than_was_said", || {
        for how in ["", ",no-tables", ",untrusted"] {
            for round in 0..4u64 {
                let server = Server::start("ioat");
                let mut run = copying(&server.device(&format!(",timeout=1{how}")));
                std::thread::sleep(Duration::from_millis(round * 7));
                server.signal(libc::SIGSTOP);
                let pid = rustix::process::Pid::from_child(&run);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                let begin = Instant::now();
                eventually("the run ends", || run.try_wait().unwrap().is_some());
                // To be told to stop, to say that it is out, and to be reset: a second each.
                assert!(begin.elapsed() < Duration::from_secs(5), "{how}: {:?}", begin.elapsed());
            }
        }
    }),
    ("a_server_that_does_not_say_that_it_is_out_is_ended", || {
        let mut server = Server::start("ioat");
        let mut run = program_under(&["--quiet", "--device", &server.device(",timeout=1")], "unmaps-when-told", &[])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "copying");
        server.signal(libc::SIGSTOP);
        // Its member's file says of each passage that a port is inside.
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.child.id())).unwrap();
        let gate = maps.lines().find(|line| line.contains("memfd:ioasid-gate") && line.contains("rw-s")).unwrap();
        let (first, end) = gate.split(' ').next().unwrap().split_once('-').unwrap();
        let [first, end] = [first, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        let memory = std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", server.child.id())).unwrap();
        memory.write_all_at(&vec![0xff; (end - first) as usize], first).unwrap();
        run.stdin.take().unwrap().write_all(b"now\n").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "unmapped");
        assert_eq!(server.child.wait().unwrap().signal(), Some(libc::SIGKILL));
        let output = run.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("the device has gone"), "{errors}");
    }),
    ("a_driver_sees_nothing_of_back_ends_that_are_killed", || {
        for how in ["", ",share"] {
            let (image, log) = (File::new("image", 1 << 20), File::new("log", 8));
            let (path, model) = (socket_path(), format!("virtio-blk,image={}", image.0.display()));
            let start = || Server::serving(&model, path.clone(), &["--protocol", "vhost-user"]);
            let mut server = start();
            let device = format!("virtio-blk,vhost-user={},timeout=20{how}", path.display());
            let mut run = checking(&device, &log);
            for round in 0..rounds() {
                std::thread::sleep(Duration::from_millis(u64::from(round * 7 % 20)));
                server.stop(libc::SIGKILL);
                server = start();
                let before = log.count();
                eventually("the driver goes on", || log.count() > before + 1 || run.try_wait().unwrap().is_some());
                assert!(run.try_wait().unwrap().is_none(), "{how} {round}");
            }
            run.kill().unwrap();
            run.wait().unwrap();
            assert_eq!(server.stop(libc::SIGTERM), Some(0));
        }
    }),
    ("a_back_end_goes_on_when_runs_are_killed", || {
        for how in ["", ",share"] {
            let log = File::new("log", 8);
            let server = Server::serving("virtio-blk,memory=1M", socket_path(), &["--protocol", "vhost-user"]);
            let device = format!("virtio-blk,vhost-user={}{how}", server.path.display());
            for round in 0..rounds() {
                let before = log.count();
                let mut run = checking(&device, &log);
                std::thread::sleep(Duration::from_millis(u64::from(round * 7 % 20)));
                eventually("the driver is at work", || log.count() != before);
                run.kill().unwrap();
                run.wait().unwrap();
            }
            let process = format!("/proc/{}", server.child.id());
            let maps = std::fs::read_to_string(format!("{process}/maps")).unwrap();
            assert!(!maps.contains("memfd:ioasid") && maps.lines().count() < 300, "{maps}");
            assert!(std::fs::read_dir(format!("{process}/fd")).unwrap().count() < 30);
            assert_eq!(server.stop(libc::SIGTERM), Some(0));
        }
    }),
    ("a_back_end_that_stands_still_holds_up_no_run_for_longer_than_was_said", || {
        for how in ["", ",share"] {
            let log = File::new("log", 8);
            let server = Server::serving("virtio-blk,memory=1M", socket_path(), &["--protocol", "vhost-user"]);
            let mut run = checking(&format!("virtio-blk,vhost-user={},timeout=1{how}", server.path.display()), &log);
            server.signal(libc::SIGSTOP);
            let pid = rustix::process::Pid::from_child(&run);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            let begin = Instant::now();
            eventually("the run ends", || run.try_wait().unwrap().is_some());
            assert!(begin.elapsed() < Duration::from_secs(5), "{how}: {:?}", begin.elapsed());
        }
    }),
];

/// A file of a test's.
struct File(PathBuf);

impl File {
    fn new(what: &str, length: usize) -> Self {
        let path = socket_path().with_extension(what);
        std::fs::write(&path, vec![0; length]).unwrap();
        Self(path)
    }

    /// What it says, if it is a log.
    fn count(&self) -> u64 {
        std::fs::read(&self.0).unwrap().try_into().map_or(0, u64::from_le_bytes)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A run that writes a disk and reads it until it is ended.
fn checking(device: &str, log: &File) -> Child {
    let log = log.0.to_str().unwrap();
    let mut command = program_under(&["--quiet", "--device", device], "disk-checks", &[log]);
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "checking\n");
    run
}

/// How often a test kills a process: ten times, or as often as IOASID_REMOTE_KILLS says.
fn rounds() -> u32 {
    std::env::var("IOASID_REMOTE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

/// A run that copies until it is ended.
fn copying(device: &str) -> Child {
    let mut run = program_under(&["--quiet", "--device", device], "endless", &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "copying\n");
    run
}

fn socket_path() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("ioasid-test-{}-socket-{number}", std::process::id()))
}

/// `ioasid device`, which is killed when this is dropped.
struct Server {
    child: Child,
    path: PathBuf,
}

impl Server {
    fn start(model: &str) -> Self {
        Self::at(model, socket_path())
    }

    fn at(model: &str, path: PathBuf) -> Self {
        Self::serving(model, path, &[])
    }

    fn serving(model: &str, path: PathBuf, more: &[&str]) -> Self {
        let mut child = Command::new(ioasid())
            .args(["device", model, "--socket"])
            .arg(&path)
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It says so when it is ready.
        let mut line = String::new();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        errors.read_line(&mut line).unwrap();
        assert!(line.contains("waits for a client"), "{line}");
        drop(UnixStream::connect(&path).unwrap());
        // The test needs nothing else that the server says, but the pipe must not fill.
        std::thread::spawn(move || drop(std::io::copy(&mut errors, &mut std::io::sink())));
        Self { child, path }
    }

    /// The device of a run that this has.
    fn device(&self, more: &str) -> String {
        format!("vfio-user,socket={}{more}", self.path.display())
    }

    fn signal(&self, signal: i32) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::from_named_raw(signal).unwrap()).unwrap();
    }

    /// Ends it by a signal; its status, if it has one.
    fn stop(mut self, signal: i32) -> Option<i32> {
        self.signal(signal);
        eventually("the server ends", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.path);
    }
}
