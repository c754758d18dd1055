//! ptrace(2), as far as it is needed.
#![allow(unsafe_code, reason = "ptrace has no safe wrapper")]

use std::io;
use std::mem::zeroed;
use std::ptr;
use std::time::{Duration, Instant};

use ioasid_mmio::Registers;

use super::seize;
use super::vectors::{Area, LARGEST_XSTATE};

/// `NT_X86_XSTATE`: the register set in XSAVE's layout.
const NT_X86_XSTATE: libc::c_long = 0x202;

/// What a stop of a traced thread is.
pub(super) enum Stop {
    /// It is about to receive this signal.
    Signal(i32),
    /// It stopped with its process, by this signal.
    Group(i32),
    /// It has just become another program.
    Exec,
    /// It is about to end.
    Exit,
    /// Anything else, which it only has to go on from.
    Event,
}

pub(super) fn stop_of(status: i32) -> Stop {
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        libc::PTRACE_EVENT_EXIT => Stop::Exit,
        libc::PTRACE_EVENT_STOP if signal != libc::SIGTRAP => Stop::Group(signal),
        _ => Stop::Event,
    }
}

/// What is wanted of a thread that stays traced: every thread and process that it starts, and if this process dies, so
/// do they.
const OPTIONS: usize = (libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_TRACEEXIT
    | libc::PTRACE_O_EXITKILL) as usize;

/// Traces a thread, with every thread and process that it starts.
///
/// # Errors
/// See [`seize::seize`].
pub(super) fn seize(tid: u32) -> io::Result<()> {
    seize::seize(tid, OPTIONS)
}

/// Traces a thread, and stops it where it comes out of the system call that it is in; or where it ends before that, as
/// its parent may have been told of the end and look for it in vain.
///
/// # Errors
/// See [`seize::seize`].
pub(super) fn seize_to_stop(tid: u32) -> io::Result<()> {
    seize::seize(tid, libc::PTRACE_O_TRACEEXIT as usize)?;
    interrupt(tid)
}

/// Whether a thread that stopped has come further since, by a kill: it stops again where it ends, or has ended.
pub(super) fn has_moved_on(tid: u32) -> bool {
    let what = libc::WSTOPPED | libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: a structure of numbers, for which zeroes are values.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    // SAFETY: the kernel fills in the structure, which is there.
    let looked = unsafe { libc::waitid(libc::P_PID, tid, &raw mut info, what) };
    // SAFETY: the field is there for whatever waitid(2) has found, and zero for nothing.
    looked != 0 || unsafe { info.si_pid() } != 0
}

/// Stops a thread that is traced, where it comes out of the system call that it is in.
pub(super) fn interrupt(tid: u32) -> io::Result<()> {
    // SAFETY: takes no pointers.
    match unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0usize, 0usize) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A stopped thread stays traced, with every thread and process that it starts.
pub(super) fn trace_on(tid: u32) {
    // SAFETY: takes no pointers. It fails only if the thread was killed.
    unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, tid, 0usize, OPTIONS) };
}

/// How long a thread may take for one instruction. One that has gone takes for ever.
const PATIENCE: Duration = Duration::from_secs(1);

/// Has a stopped thread execute one instruction, with no signal. False if it has ended.
pub(super) fn single_step(tid: u32) -> bool {
    let begin = Instant::now();
    // What stops it in between, as job control does, is over when it goes on.
    while begin.elapsed() < PATIENCE {
        // SAFETY: takes no pointers.
        if unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, tid, 0usize, 0usize) } == -1 {
            return false;
        }
        match wait_for(tid, begin) {
            Some(status) if status >> 16 == 0 && libc::WSTOPSIG(status) == libc::SIGTRAP => return true,
            Some(_) => {}
            None => return false,
        }
    }
    false
}

/// The status with which a thread stops; `None` if it ends. A call that waits would not return if the thread vanishes,
/// as the first of a process does when another executes a program.
fn wait_for(tid: u32, begin: Instant) -> Option<i32> {
    while begin.elapsed() < PATIENCE {
        let mut status = 0;
        // SAFETY: `status` is written.
        match unsafe { libc::waitpid(tid as i32, &mut status, libc::__WALL | libc::WNOHANG) } {
            0 if begin.elapsed() < Duration::from_millis(1) => std::thread::yield_now(),
            0 => std::thread::sleep(Duration::from_micros(50)),
            number if number == tid as i32 => return libc::WIFSTOPPED(status).then_some(status),
            _ => return None,
        }
    }
    None
}

/// Waits until a thread that this one traces stops, and returns the status; `None` if it ends.
pub(super) fn wait_for_own(tid: u32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: `status` is written. No signal has a handler here that would end the wait.
    let number = unsafe { libc::waitpid(tid as i32, &mut status, libc::__WALL | libc::__WNOTHREAD) };
    (number == tid as i32 && libc::WIFSTOPPED(status)).then_some(status)
}

/// The signals that a stopped thread blocks.
pub(super) fn signal_mask(tid: u32) -> Option<u64> {
    // PTRACE_GETSIGMASK of Linux `include/uapi/linux/ptrace.h`; the C libraries disagree about its type.
    let (request, mut mask) = (0x420a, 0u64);
    // SAFETY: the request fills in as many bytes as it is told.
    let got = unsafe { libc::ptrace(request, tid, size_of::<u64>(), &raw mut mask) };
    (got != -1).then_some(mask)
}

/// Has a stopped thread block these signals.
pub(super) fn set_signal_mask(tid: u32, mask: u64) -> bool {
    // PTRACE_SETSIGMASK of the same.
    let request = 0x420b;
    // SAFETY: the request reads as many bytes as it is told.
    unsafe { libc::ptrace(request, tid, size_of::<u64>(), &raw const mask) != -1 }
}

/// At an exec: the number that the thread had before it took its process's.
pub(super) fn former_tid(tid: u32) -> Option<u32> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the request fills in an unsigned long.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, tid, 0usize, &raw mut message) };
    (result != -1).then_some(message as u32)
}

/// Lets a stopped thread go on, with a signal or (0) without. It fails only if the thread was killed.
pub(super) fn go_on(tid: u32, signal: i32) {
    // SAFETY: takes no pointers.
    unsafe { libc::ptrace(libc::PTRACE_CONT, tid, 0usize, signal as usize) };
}

/// Leaves a thread stopped with its process.
pub(super) fn listen(tid: u32) {
    // SAFETY: takes no pointers.
    unsafe { libc::ptrace(libc::PTRACE_LISTEN, tid, 0usize, 0usize) };
}

/// Lets a stopped thread go.
pub(super) fn detach(tid: u32) {
    detach_with(tid, 0);
}

/// Lets a stopped thread go, with a signal or (0) without.
pub(super) fn detach_with(tid: u32, signal: i32) {
    // SAFETY: takes no pointers.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, 0usize, signal as usize) };
}

/// The address at which the thread's pending SIGBUS was raised, if it is an access to bytes that do not exist.
pub(super) fn bus_error_address(tid: u32) -> Option<u64> {
    // SAFETY: plain data.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    // SAFETY: the request fills in a siginfo.
    if unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, tid, 0usize, &mut info) } == -1 {
        return None;
    }
    // SAFETY: a SIGBUS that the kernel raised for an access carries an address.
    (info.si_code == libc::BUS_ADRERR).then(|| unsafe { info.si_addr() } as u64)
}

/// Whether the thread's pending signal is an exception of its own.
pub(super) fn is_raised_by_kernel(tid: u32) -> bool {
    // SAFETY: plain data.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    // SAFETY: the request fills in a siginfo.
    let got = unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, tid, 0usize, &mut info) } != -1;
    got && info.si_code > 0
}

/// Makes the thread's pending signal that of a general protection fault.
pub(super) fn set_general_protection(tid: u32) {
    // SAFETY: plain data.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    info.si_signo = libc::SIGSEGV;
    info.si_code = SI_KERNEL;
    // SAFETY: the request reads a siginfo. It fails only if the thread was killed.
    unsafe { libc::ptrace(libc::PTRACE_SETSIGINFO, tid, 0usize, &info) };
}

/// In a siginfo: the kernel, for no reason that it names (`include/uapi/asm-generic/siginfo.h`).
const SI_KERNEL: libc::c_int = 0x80;

/// A thread's general registers, with those that no instruction names.
pub(super) struct ThreadRegisters(libc::user_regs_struct);

pub(super) fn registers(tid: u32) -> Option<ThreadRegisters> {
    // SAFETY: plain data.
    let mut registers: libc::user_regs_struct = unsafe { zeroed() };
    // SAFETY: the request fills in this structure.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0usize, &mut registers) };
    (result != -1).then_some(ThreadRegisters(registers))
}

pub(super) fn set_registers(tid: u32, registers: &ThreadRegisters) -> bool {
    // SAFETY: the request reads this structure.
    unsafe { libc::ptrace(libc::PTRACE_SETREGS, tid, 0usize, &registers.0) != -1 }
}

impl ThreadRegisters {
    pub(super) fn rip(&self) -> u64 {
        self.0.rip
    }

    /// The system call before: its number and arguments.
    pub(super) fn call(&self) -> (i64, [u64; 6]) {
        let r = &self.0;
        (r.orig_rax as i64, [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9])
    }

    /// What the system call before returned.
    pub(super) fn result(&self) -> i64 {
        self.0.rax as i64
    }

    /// At a system call instruction, with a call's number and arguments.
    pub(super) fn of_call(&self, rip: u64, number: i64, [rdi, rsi, rdx, r10, r8, r9]: [u64; 6]) -> Self {
        // No call was made, so that none is made again.
        let (orig_rax, rax) = (u64::MAX, number as u64);
        Self(libc::user_regs_struct { rip, rax, orig_rax, rdi, rsi, rdx, r10, r8, r9, ..self.0 })
    }

    pub(super) fn general(&self) -> Registers {
        let r = &self.0;
        Registers {
            gpr: [
                r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
                r.r15,
            ],
            rip: r.rip,
            rflags: r.eflags,
            fs_base: r.fs_base,
            gs_base: r.gs_base,
        }
    }

    pub(super) fn set_general(&mut self, new: &Registers) {
        let r = &mut self.0;
        [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
            r.r15,
        ] = new.gpr;
        r.rip = new.rip;
        r.eflags = new.rflags;
    }
}

/// The vector registers of a stopped thread.
pub(super) struct StoppedVectors(pub(super) u32);

impl Area for StoppedVectors {
    fn fetch(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; LARGEST_XSTATE];
        let length = regset(false, self.0, &mut bytes)?;
        bytes.truncate(length);
        Some(bytes)
    }

    fn put(&self, bytes: &mut [u8]) -> bool {
        regset(true, self.0, bytes).is_some()
    }
}

/// Reads the XSAVE area, or with `write` writes it, and returns its length.
fn regset(write: bool, tid: u32, bytes: &mut [u8]) -> Option<usize> {
    let mut area = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let request = if write { libc::PTRACE_SETREGSET } else { libc::PTRACE_GETREGSET };
    // SAFETY: `area` describes `bytes`, which the kernel reads or writes at most `iov_len` of.
    let result = unsafe { libc::ptrace(request, tid, NT_X86_XSTATE as usize, ptr::from_mut(&mut area)) };
    (result != -1).then_some(area.iov_len)
}
