//! The same for an ordinary user.
//!
//! These tests become one if they are root, in a mount namespace where `/dev/fuse` is open to all, as distributions
//! have it.

use std::process::Command;

use crate::{Test, finish, ioasid};

pub const TESTS: &[Test] = &[
    ("an_ordinary_user_copies", || as_user("copy shared", 0, "")),
    ("an_ordinary_user_copies_private_memory", || as_user("copy private", 0, "")),
    ("an_ordinary_user_is_told_of_a_bug", || as_user("use-after-unmap", 99, "use after unmap")),
    ("an_ordinary_user_has_threads_and_children", || {
        as_user("threads", 0, "");
        as_user("fork", 0, "");
    }),
    ("an_ordinary_user_is_told_what_is_different", an_ordinary_user_is_told),
    ("a_closed_dev_fuse_is_explained", a_closed_dev_fuse_is_explained),
];

/// Runs a shell line as an ordinary user; `$ioasid` and `$self` are the binaries.
fn shell_as_user(line: &str, fuse_mode: &str) -> std::process::Output {
    shell_as_user_in("", line, fuse_mode)
}

/// The same, where root has prepared something: `before` is words of a shell line which end with a command to execute.
pub fn shell_as_user_in(before: &str, line: &str, fuse_mode: &str) -> std::process::Output {
    let own = std::env::current_exe().unwrap();
    if !rustix::process::geteuid().is_root() {
        return finish(Command::new("sh").args(["-c", line]).env("ioasid", ioasid()).env("self", own));
    }
    // The binaries are copied, as the user may not be able to enter the directory that they are in.
    let script = format!(
        "set -e; mount -t tmpfs -o mode=0755 none /mnt; cp \"$ioasid\" /mnt/ioasid; cp \"$self\" /mnt/self; \
         mknod /mnt/fuse c 10 229; chmod {fuse_mode} /mnt/fuse; mount --bind /mnt/fuse /dev/fuse; cd /; \
         export ioasid=/mnt/ioasid self=/mnt/self; \
         exec {before} setpriv --reuid=65534 --regid=65534 --clear-groups sh -c \"$line\""
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).env("ioasid", ioasid()).env("self", own).env("line", line);
    finish(&mut command)
}

#[track_caller]
fn as_user(program: &str, status: i32, part: &str) {
    as_user_with("ioat", program, status, part);
}

/// Runs a program with this device as an ordinary user: its exit status, and part of what is said of it.
#[track_caller]
pub fn as_user_with(device: &str, program: &str, status: i32, part: &str) {
    let line = format!("\"$ioasid\" run --device {device} --check -- \"$self\" program {program}");
    let output = shell_as_user(&line, "666");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(status) && text.contains(part), "{program}: {} {text}", output.status);
}

fn an_ordinary_user_is_told() {
    let output = shell_as_user("\"$ioasid\" run --device ioat -- id -u", "666");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.is_empty(), "a script is not told each time: {text}");
    let watched = shell_as_user("script -qec \"$ioasid run --device ioat -- id -u\" /dev/null", "666");
    let text = String::from_utf8_lossy(&watched.stdout).into_owned();
    assert_eq!(text.matches("not root").count(), 1, "{text}");
    let quiet = shell_as_user("\"$ioasid\" run --quiet --device ioat -- id -u", "666");
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{}", String::from_utf8_lossy(&quiet.stderr));
    assert_eq!(output.stdout, quiet.stdout, "and is who they were");
    assert_ne!(String::from_utf8_lossy(&output.stdout).trim(), "0");
}

fn a_closed_dev_fuse_is_explained() {
    if !rustix::process::geteuid().is_root() {
        // Only root can close it for this test.
        assert!(finish(Command::new(ioasid()).args(["run", "--quiet", "--", "true"])).status.success());
        return;
    }
    let output = shell_as_user("\"$ioasid\" run --device ioat -- true", "600");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("chmod 666 /dev/fuse"), "{text}");
}
