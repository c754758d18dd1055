//! Whose memory a process may have given to devices: that of those which it could trace.
//!
//! The runner may reach more than the program that asks, so it judges as the kernel would for that program
//! (ptrace(2), "access mode checking").

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// A process, as far as that matters.
struct Credentials {
    process: u32,
    uids: Vec<String>,
    gids: Vec<String>,
    /// In which that holds.
    user_namespace: Option<PathBuf>,
    /// What it may do, and what it might make itself able to do.
    effective: u64,
    permitted: u64,
    /// Who owns its files in /proc: another than its user, if it must not be looked into.
    owner: u32,
}

impl Credentials {
    /// Of the process that a thread belongs to.
    fn of(tid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
        let field = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
        let words = |name| Some(field(name)?.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let capabilities = |name| u64::from_str_radix(&field(name)?, 16).ok();
        Some(Self {
            process: field("Tgid:")?.parse().ok()?,
            uids: words("Uid:")?,
            gids: words("Gid:")?,
            user_namespace: fs::read_link(format!("/proc/{tid}/ns/user")).ok(),
            effective: capabilities("CapEff:")?,
            permitted: capabilities("CapPrm:")?,
            owner: fs::metadata(format!("/proc/{tid}")).ok()?.uid(),
        })
    }

    /// Whether it can do all that `other` might. Capabilities are worth what the user namespace is in which one has
    /// them.
    fn is_as_able_as(&self, other: &Self) -> bool {
        let same_namespace = self.user_namespace.is_some() && self.user_namespace == other.user_namespace;
        other.permitted == 0 || (same_namespace && other.permitted & !self.effective == 0)
    }

    /// Whether its user and group are one and the same in all roles, those of `other`.
    fn is_as(&self, other: &Self) -> bool {
        let same = |ids: &[String], own: &[String]| ids[..3].iter().all(|id| *id == own[1]);
        self.uids.len() == 4
            && self.gids.len() == 4
            && same(&self.uids, &other.uids)
            && same(&self.gids, &other.gids)
            && self.owner.to_string() == self.uids[1]
    }
}

/// Whether the process of thread `asker` may reach the memory of process `target`.
pub(crate) fn may_reach(asker: u32, target: u32) -> bool {
    let (Some(asker), Some(target)) = (Credentials::of(asker), Credentials::of(target)) else { return false };
    asker.process == target.process || (target.is_as(&asker) && asker.is_as_able_as(&target))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_reaches_itself_and_its_like_and_nobody_stronger() {
        let own = std::process::id();
        assert!(may_reach(own, own));
        // It is its own program when its name is.
        let is_sleeping = |pid: u32| {
            while fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() != "sleep" {
                std::thread::yield_now();
            }
        };
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        is_sleeping(child.id());
        assert!(may_reach(own, child.id()));
        assert!(!may_reach(own, u32::MAX) && !may_reach(u32::MAX, own));
        if rustix::process::geteuid().is_root() {
            let mut weak = Command::new("sleep").arg("100").uid(65534).gid(65534).spawn().unwrap();
            assert!(!may_reach(weak.id(), child.id()), "another user's");
            weak.kill().unwrap();
            weak.wait().unwrap();
            // All capabilities, and worth nothing here.
            let mut apart =
                Command::new("unshare").args(["--user", "--map-root-user", "sleep", "100"]).spawn().unwrap();
            is_sleeping(apart.id());
            assert!(!may_reach(apart.id(), child.id()), "another user namespace's");
            apart.kill().unwrap();
            apart.wait().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
