//! System calls of a thread of a program that another wants it to make.
//!
//! The tracer stops the thread for as long as that takes, and lets it go.

use super::ptrace;
use crate::program::memory::ThreadMemory;

/// `syscall`
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// A thread that is stopped, and does what it is told.
pub(super) struct Thread {
    tid: u32,
    before: ptrace::ThreadRegisters,
    /// Where there is a system call instruction.
    syscall: u64,
    mask: u64,
    /// Whether it is there still.
    alive: bool,
}

impl Thread {
    /// Takes a stopped thread over; `None` if it is not behind a system call.
    pub(super) fn take(tid: u32) -> Option<Self> {
        Self::take_at(tid, ptrace::registers(tid)?.rip().wrapping_sub(2))
    }

    /// Takes a stopped thread over, in whose memory there is a system call instruction at `syscall`.
    pub(super) fn take_at(tid: u32, syscall: u64) -> Option<Self> {
        let before = ptrace::registers(tid)?;
        let mut code = [0; 2];
        ThreadMemory::stopped(tid).read(syscall, &mut code).ok()?;
        // What arrives meanwhile waits.
        let mask = ptrace::signal_mask(tid)?;
        let taken = code == SYSCALL && ptrace::set_signal_mask(tid, u64::MAX);
        taken.then_some(Self { tid, before, syscall, mask, alive: true })
    }

    pub(super) fn tid(&self) -> u32 {
        self.tid
    }

    /// Has it make a system call, and returns what that returned. `None` if the thread is gone.
    pub(super) fn call(&mut self, number: i64, arguments: [u64; 6]) -> Option<i64> {
        if !self.alive {
            return None;
        }
        let call = self.before.of_call(self.syscall, number, arguments);
        let made = ptrace::set_registers(self.tid, &call) && ptrace::single_step(self.tid);
        let result = made.then(|| ptrace::registers(self.tid)).flatten();
        self.alive = result.is_some();
        result.map(|registers| registers.result())
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // If it is gone there is nothing to put back.
        let _ = ptrace::set_registers(self.tid, &self.before);
        let _ = ptrace::set_signal_mask(self.tid, self.mask);
    }
}
