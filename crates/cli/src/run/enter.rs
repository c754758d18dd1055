//! The child: makes its surroundings, and becomes the program.
//!
//! ```text
//!   /dev                  a temporary file system with everything of the real one bound into it, and
//!   /dev/iommu, ioasid      links into
//!   /dev/vfio               the tree's dev/vfio
//!   /sys/module           the same, with the tree's modules
//!   /sys/devices          the same, with the tree's buses
//!   /sys/bus/pci          the tree's, in place of the machine's own, or, with --host-devices,
//!                           the tree's devices and its driver beside those
//!   /sys/kernel/iommu_groups   the same way
//! ```
//! The tree itself is mounted on `/dev/vfio` first, and then covered by its own part that belongs there.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, Signal, getegid, geteuid, getppid, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::channel::Channel;
use super::supervise::Signals;
use ioasid_serve::Options;

use super::{EXIT_CANNOT_RUN, EXIT_NOT_FOUND, EXIT_SETUP, Plan, graft};

/// Where the whole tree is mounted, before it is covered.
const STAGE: &str = "/dev/vfio";

/// What the child does: returns only by ending it.
#[allow(unsafe_code, reason = "the child ends without what the runner registered for its own end")]
pub fn enter(channel: &Channel, plan: &Plan, signals: &Signals, runner: Pid) -> Infallible {
    let failed = become_program(channel, plan, signals, runner);
    channel.send_error(&format!("{failed:#}"));
    // SAFETY: takes a number.
    unsafe { libc::_exit(i32::from(EXIT_SETUP)) }
}

/// Returns only if it fails.
fn become_program(channel: &Channel, plan: &Plan, signals: &Signals, runner: Pid) -> anyhow::Error {
    let prepared = prepare(channel, runner, plan).and_then(|()| channel.wait_for_go());
    if let Err(error) = prepared {
        return error;
    }
    if let Err(error) = signals.restore() {
        return error.into();
    }
    if let Some(output) = &plan.output
        && let Err(error) = rustix::stdio::dup2_stdout(output)
    {
        return error.into();
    }
    let error = execute(&plan.program, &plan.arguments);
    let name = plan.program.to_string_lossy();
    let (status, why) = match error {
        Errno::NOENT => (EXIT_NOT_FOUND, format!("cannot run `{name}`: there is no such program")),
        Errno::ACCESS => (EXIT_CANNOT_RUN, format!("cannot run `{name}`: it is not executable (chmod +x)")),
        other => (EXIT_CANNOT_RUN, format!("cannot run `{name}`: {}", io::Error::from(other))),
    };
    channel.send_program_failure(status, &why);
    std::process::exit(i32::from(status))
}

fn prepare(channel: &Channel, runner: Pid, plan: &Plan) -> Result<()> {
    let Plan { host_devices, options: Options { selftest, .. }, .. } = *plan;
    // The guardian ends this process when the runner ends; the kernel does when the guardian ends.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().is_none_or(|guardian| guardian == runner) {
        return Err(anyhow!("the runner is gone"));
    }
    let unprivileged = new_namespaces()?;
    // What the host mounts later shows up here, and nothing of here there.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).map_err(|error| match error {
        Errno::INVAL => anyhow!(
            "the root directory is no mount point, as in a chroot. Make it one, as root, before the chroot: \
             mount --rbind DIR DIR"
        ),
        other => anyhow!("cannot make the mounts private: {}", io::Error::from(other)),
    })?;

    let fuse = open_fuse()?;
    graft::open_up(Path::new("/dev"), &["vfio", "iommu", "ioasid"].map(str::to_owned))?;
    fs::create_dir(STAGE).context("cannot make /dev/vfio")?;
    // In a user namespace there is one user, who is also the runner outside; `allow_other` would let in everybody
    // inside and keep out the runner.
    let others = if unprivileged.is_some() { "" } else { ",allow_other" };
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={}{others}",
        fuse.as_raw_fd(),
        geteuid().as_raw(),
        getegid().as_raw()
    );
    let options = CString::new(options)?;
    mount("ioasid", STAGE, "fuse.ioasid", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))
        .context("cannot mount the device tree: does this kernel have FUSE (modprobe fuse)?")?;
    channel.send_descriptor(&fuse)?;
    drop(fuse);
    channel.wait_for_go()?;

    let root = open(STAGE, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context("cannot reach the device tree")?;
    // What is loaded is ours from the program's point of view, whatever the machine has of it.
    graft::room_in(Path::new("/sys/module"), &names_in("/sys/module")?)?;
    add_entries("/sys/module")?;
    let replaced = if host_devices { Vec::new() } else { names_in("/sys/devices")? };
    graft::room_in(Path::new("/sys/devices"), &replaced)?;
    add_entries("/sys/devices")?;
    if host_devices {
        for directory in ["/sys/bus/pci/devices", "/sys/kernel/iommu_groups"] {
            graft::room_in(Path::new(directory), &[])?;
            add_entries(directory)?;
        }
        graft::room_in(Path::new("/sys/bus/pci/drivers"), &names_in("/sys/bus/pci/drivers")?)?;
        add_entries("/sys/bus/pci/drivers")?;
    } else {
        show("/sys/bus/pci")?;
        show("/sys/kernel/iommu_groups")?;
    }
    if selftest {
        let debug = Path::new("/sys/kernel/debug");
        if !debug.is_dir() {
            graft::room_in(debug, &[])?;
        }
        graft::bind(&Path::new(STAGE).join("sys/kernel/debug"), debug)?;
    }
    for name in ["iommu", "ioasid"] {
        symlink("vfio/iommu", Path::new("/dev").join(name)).with_context(|| format!("cannot make /dev/{name}"))?;
    }
    graft::bind(Path::new("/dev/vfio/dev/vfio"), Path::new(STAGE))?;
    // The directory that one stands in may have been covered.
    if let Ok(here) = std::env::current_dir() {
        let _ = std::env::set_current_dir(here);
    }
    channel.send_descriptor(&root)?;
    channel.send_note(unprivileged)?;

    let listener = ioasid_serve::way::listen::filter::install(selftest).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS) => anyhow!(
            "this kernel cannot hand system calls to another process and wait for it (seccomp with \
             SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV): Linux 5.19 or later with CONFIG_SECCOMP_FILTER is needed"
        ),
        Some(libc::EBUSY) => anyhow!(
            "a seccomp filter with a listener is in force already, and there can be only one: run ioasid outside of \
             the sandbox or container that made it"
        ),
        _ => anyhow!("cannot install the system call filter: {error}"),
    })?;
    channel.send_descriptor(&listener)?;
    Ok(())
}

/// Where the tree has what is to be seen at `path`.
fn in_tree(path: &str) -> PathBuf {
    Path::new(STAGE).join(path.trim_start_matches('/'))
}

/// The names that the tree has in a directory.
fn names_in(directory: &str) -> Result<Vec<String>> {
    let source = in_tree(directory);
    let names = fs::read_dir(&source).and_then(|entries| {
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<Vec<_>>>()
    });
    names.with_context(|| format!("cannot read {}", source.display()))
}

/// Shows the tree's directory in place of the machine's.
fn show(directory: &str) -> Result<()> {
    let target = Path::new(directory);
    if !target.is_dir() {
        graft::room_in(target, &[])?;
    }
    graft::bind(&in_tree(directory), target)
}

/// Adds the tree's entries of one directory to the machine's, in which there is room for them.
fn add_entries(directory: &str) -> Result<()> {
    for name in names_in(directory)? {
        let (source, target) = (in_tree(directory).join(&name), Path::new(directory).join(&name));
        if target.symlink_metadata().is_ok() {
            return Err(anyhow!(
                "this machine has a {} of its own: choose another bdf= or group= for the device",
                target.display()
            ));
        }
        let made = match fs::read_link(&source) {
            Ok(link) => symlink(link, &target),
            Err(_) => fs::create_dir(&target),
        };
        made.with_context(|| format!("cannot make {}", target.display()))?;
        if !target.is_symlink() {
            graft::bind(&source, &target)?;
        }
    }
    Ok(())
}

/// A mount namespace of its own, and a user namespace if that is what it takes; then returns what is different there.
fn new_namespaces() -> Result<Option<&'static str>> {
    match unshare(UnshareFlags::NEWNS) {
        Ok(()) => return Ok(None),
        Err(Errno::PERM) => {}
        Err(error) => return Err(error).context("cannot make a mount namespace"),
    }
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(|error| {
        if geteuid().is_root() {
            return anyhow!(
                "root may not mount here, nor make a user namespace ({}). In a container, start that with --cap-add \
                 SYS_ADMIN --device /dev/fuse and, where AppArmor confines it, --security-opt apparmor=unconfined; or \
                 allow user namespaces in it.",
                io::Error::from(error)
            );
        }
        anyhow!(
            "without root a user namespace is needed, and this system does not allow one ({}). Allow it, as root: \
             sysctl user.max_user_namespaces=10000; on Debian, kernel.unprivileged_userns_clone=1; on Ubuntu, \
             kernel.apparmor_restrict_unprivileged_userns=0. Or run ioasid as root.",
            io::Error::from(error)
        )
    })?;
    // The program stays who it is. Other users and groups have no name in here.
    fs::write("/proc/self/setgroups", "deny").context("cannot prepare the group map")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1")).context("cannot map the user")?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1")).context("cannot map the group")?;
    Ok(Some(
        "not root: files of other users show as nobody's, programs with set-user-id gain nothing, and shared memory \
         without a file is copied instead of mapped, which is slower",
    ))
}

#[allow(unsafe_code, reason = "unshare affects what other threads share")]
fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: this process has one thread, and neither flag touches descriptors.
    unsafe { unshare_unsafe(flags) }
}

fn open_fuse() -> Result<OwnedFd> {
    open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| match error {
        Errno::ACCESS | Errno::PERM => anyhow!(
            "/dev/fuse is not open to this user. Open it to all, as distributions do, as root: chmod 666 /dev/fuse. Or \
             run ioasid as root."
        ),
        Errno::NOENT | Errno::NODEV | Errno::NXIO => anyhow!(
            "there is no /dev/fuse. Load FUSE, as root: modprobe fuse. In a container, start it with --device /dev/fuse."
        ),
        other => anyhow!("cannot open /dev/fuse: {}", io::Error::from(other)),
    })
}

/// Becomes the program, found as a shell finds it; returns only if it cannot.
#[allow(unsafe_code, reason = "exec")]
fn execute(program: &OsStr, arguments: &[std::ffi::OsString]) -> Errno {
    let words: Result<Vec<CString>, _> = std::iter::once(program)
        .chain(arguments.iter().map(|a| a.as_os_str()))
        .map(|w| CString::new(w.as_bytes()))
        .collect();
    let Ok(words) = words else { return Errno::INVAL };
    let mut pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: the array ends with a null pointer, and each of the others is a string that outlives the call.
    unsafe { libc::execvp(pointers[0], pointers.as_ptr()) };
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
