//! Adds entries to a directory of a file system that does not let one add any.
//!
//! A small temporary file system is mounted over the directory; what was there is bound back into it, entry by entry,
//! and then there is room for more. So the real `/dev` and `/sys` stay as they are beneath, and everything in them
//! stays reachable; only this mount namespace sees the difference.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, mount, mount_bind_recursive};

/// Makes `directory` extensible, keeping all of its entries but `replaced`.
pub fn open_up(directory: &Path, replaced: &[String]) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let real = open(directory, flags, Mode::empty()).with_context(|| format!("cannot open {}", directory.display()))?;
    // The descriptor leads to the real directory also when something is mounted over it.
    let beneath = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&real)));
    let entries: Vec<_> = fs::read_dir(&beneath)
        .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
        .with_context(|| format!("cannot read {}", directory.display()))?;
    mount("ioasid", directory, "tmpfs", MountFlags::NOSUID, c"mode=0755,size=4m")
        .with_context(|| format!("cannot mount over {}", directory.display()))?;
    for entry in entries {
        let name = entry.file_name();
        if replaced.iter().any(|replaced| *name == **replaced) {
            continue;
        }
        let (source, target) = (beneath.join(&name), directory.join(&name));
        let kept = entry.file_type().and_then(|kind| {
            if kind.is_symlink() {
                return symlink(fs::read_link(&source)?, &target);
            }
            if kind.is_dir() {
                fs::create_dir(&target)?;
            } else {
                fs::write(&target, [])?;
            }
            Ok(mount_bind_recursive(&source, &target)?)
        });
        match kept {
            // Terminals and the like come and go.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.with_context(|| format!("cannot keep {}", target.display()))?,
        }
    }
    Ok(())
}

/// Makes sure that `directory` is there, that it has none of the entries that are `replaced`, and that entries can be
/// added to it.
pub fn room_in(directory: &Path, replaced: &[String]) -> Result<()> {
    let exists = directory.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
    open_up(exists, if exists == directory { replaced } else { &[] })?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

/// Makes `target` show what is at `source`.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    mount_bind_recursive(source, target)
        .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))
}
