//! Whose memory a process may have given to devices: that of those which it could trace.
//!
//! The runner may reach more than the program that asks, so it judges as the kernel would for that program
//! (ptrace(2), "access mode checking").

use std::fs;
use std::os::unix::fs::MetadataExt;

/// A process, as far as that matters.
struct Credentials {
    process: u32,
    uids: Vec<String>,
    gids: Vec<String>,
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
            effective: capabilities("CapEff:")?,
            permitted: capabilities("CapPrm:")?,
            owner: fs::metadata(format!("/proc/{tid}")).ok()?.uid(),
        })
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
    asker.process == target.process || (target.is_as(&asker) && target.permitted & !asker.effective == 0)
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
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        // It is its own program when its name is.
        while fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap().trim() != "sleep" {
            std::thread::yield_now();
        }
        assert!(may_reach(own, child.id()));
        assert!(!may_reach(own, u32::MAX) && !may_reach(u32::MAX, own));
        if rustix::process::geteuid().is_root() {
            let mut weak = Command::new("sleep").arg("100").uid(65534).gid(65534).spawn().unwrap();
            assert!(!may_reach(weak.id(), child.id()), "another user's");
            weak.kill().unwrap();
            weak.wait().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
