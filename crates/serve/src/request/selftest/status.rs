//! `/proc/PID/status` as Linux's own tests expect it: with the memory that was pinned here.

use std::fs;
use std::sync::Arc;

use rustix::io::Errno;

use crate::program::accounts::{Accounts, Whose};
use crate::request::given::GivenFile;

/// The text, as it was when it was opened.
struct Status(String);

impl GivenFile for Status {
    fn is_seekable(&self) -> bool {
        true
    }

    fn read(&self, _room: usize) -> Result<Vec<u8>, Errno> {
        Ok(self.0.clone().into_bytes())
    }
}

/// The process that a path is the status of.
pub(crate) fn process_of(path: &str) -> Option<u32> {
    path.strip_prefix("/proc/")?.strip_suffix("/status")?.parse().ok()
}

/// The file for a process, if there is one.
pub(crate) fn file(process: u32, accounts: &Accounts) -> Option<Arc<dyn GivenFile>> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let pinned = accounts.bytes(|whose| matches!(whose, Whose::Pinned(one) if one.pid() == process));
    let locked = accounts.bytes(|whose| matches!(whose, Whose::Process(one) if one.pid() == process));
    Some(Arc::new(Status(with(&text, pinned, locked))))
}

/// The text with so many bytes more pinned and locked.
fn with(text: &str, pinned: u64, locked: u64) -> String {
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let more = match name {
            "VmPin" => pinned,
            "VmLck" => locked,
            _ => return None,
        };
        let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(format!("{name}:\t{:>8} kB\n", kib + more / 1024))
    };
    text.lines().map(|old| line(old).unwrap_or_else(|| format!("{old}\n"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_pinned_and_locked_is_another() {
        let text = "Name:\tx: y\nVmLck:\t       4 kB\nVmPin:\t       0 kB\nVmHWM:\t     100 kB\n";
        let wanted = "Name:\tx: y\nVmLck:\t      12 kB\nVmPin:\t   16384 kB\nVmHWM:\t     100 kB\n";
        assert_eq!(with(text, 16 << 20, 8192), wanted);
        assert_eq!(process_of("/proc/12/status"), Some(12));
        assert_eq!(["/proc/self/status", "/proc/12/stat", "/proc//status"].map(process_of), [None; 3]);
    }
}
