//! This process as the kernel sees it: its resident memory, and the processors that it runs on.
#![allow(unsafe_code, reason = "malloc_trim")]

use std::fs;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Gives memory that was freed back to the kernel. Without it, what is allocated next may be present already.
pub fn give_back() {
    // SAFETY: it concerns only memory that was freed.
    unsafe { libc::malloc_trim(0) };
}

/// Bytes of memory that the process has, huge pages included, after [`give_back`].
///
/// # Errors
/// If `/proc` does not say.
pub fn resident() -> Result<u64> {
    give_back();
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    bytes(&status).context("/proc/self/status has no VmRSS")
}

fn bytes(status: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    // Pages of hugetlbfs are not in VmRSS.
    Some((field("VmRSS")? + field("HugetlbPages").unwrap_or(0)) << 10)
}

/// The processors that this thread may run on.
///
/// # Errors
/// Of `sched_getaffinity`.
pub fn processors() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("sched_getaffinity")?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Keeps this thread on one processor.
///
/// # Errors
/// Of `sched_setaffinity`.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on processor {cpu}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_what_proc_says() {
        assert_eq!(bytes("Name:\tx\nVmRSS:\t   12 kB\nHugetlbPages:\t 2048 kB\n"), Some(2060 << 10));
        assert_eq!(bytes("VmRSS:\t   12 kB\n"), Some(12 << 10));
        assert_eq!(bytes("Name:\tx\n"), None);
    }
}
