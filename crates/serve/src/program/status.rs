//! What the kernel says of a thread in `/proc/TID/status` (proc_pid_status(5)).

use std::fs;

/// The text, as it was a moment ago.
pub(crate) struct Status(String);

impl Status {
    /// Of a thread; `None` if there is none.
    pub(crate) fn of(tid: u32) -> Option<Self> {
        fs::read_to_string(format!("/proc/{tid}/status")).ok().map(Self)
    }

    /// What a line says, of which the name ends with a colon.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        Some(self.0.lines().find_map(|line| line.strip_prefix(name))?.trim())
    }

    /// The decimal number of a line.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        self.field(name)?.parse().ok()
    }

    /// The set of a line, in hexadecimal: signals, or capabilities.
    pub(crate) fn set(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.field(name)?, 16).ok()
    }

    /// The process that it belongs to.
    pub(crate) fn process(&self) -> Option<u32> {
        self.number("Tgid:")
    }

    /// The process that traces it, if one does.
    pub(crate) fn tracer(&self) -> Option<u32> {
        self.number("TracerPid:").filter(|tracer| *tracer != 0)
    }

    /// Whether it has ended and only waits to be waited for.
    pub(crate) fn has_ended(&self) -> bool {
        self.field("State:").is_some_and(|state| state.starts_with(['Z', 'X']))
    }
}

/// Whether a thread has gone, or is about to go as soon as it is answered.
pub(crate) fn is_being_killed(tid: u32) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    let pending = |status: &Status| status.set("SigPnd:").unwrap_or(0) | status.set("ShdPnd:").unwrap_or(0);
    Status::of(tid).is_none_or(|status| status.has_ended() || pending(&status) & KILL != 0)
}

/// The process that a thread belongs to.
pub(crate) fn process_of(tid: u32) -> Option<u32> {
    Status::of(tid)?.process()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_their_names() {
        let text = "Name:\tTgid: 9\nState:\tZ (zombie)\nTgid:\t12\nTracerPid:\t0\nSigBlk:\t0000000000000040\n";
        let status = Status(text.to_owned());
        assert_eq!((status.process(), status.tracer(), status.set("SigBlk:")), (Some(12), None, Some(0x40)));
        assert!(status.has_ended());
        assert_eq!((status.number("State:"), status.field("None:")), (None, None));
        assert_eq!(process_of(std::process::id()), Some(std::process::id()));
        assert_eq!(process_of(u32::MAX), None);
    }
}
