//! Register accesses: single instructions of the program, performed from outside of it.
//!
//! A mapping of a device file raises SIGBUS at every access, as the file has no bytes (see [`crate::way::tree`]). A
//! handler in the program takes the signal and asks; the instruction is performed on the device model, and the program
//! goes on behind it. A signal that is none of ours goes to the program's own handler, as if there were no other.
//!
//! ```text
//!   program: load or store ──SIGBUS──► handler ──ioctl(-1, ASK)──► listener ──► answer ──► ioasid-mmio ──► OpenFile
//!      ▲                                  │                                       │
//!      └────────── sigreturn ─────────────┴──────── registers in the frame ◄──────┘
//! ```
//! | file | holds |
//! | --- | --- |
//! | `handler` | the handler: its code, where it is, and what the program itself wants done with its signals |
//! | `inject` | system calls that a thread is told to make, by which the handler comes into its process |
//! | `ring` | memory that a process shares, in which accesses are asked for without a system call |
//! | `poller` | the thread that looks at rings |
//! | `frame` | the registers that the handler was called with |
//! | `vectors` | vector registers, wherever they are |
//! | `memory` | what an instruction reads and writes |
//! | `stat`, `show` | calls that ask about a device file, which is to look like a character device |
//! | `tracer`, `ptrace` | the thread that traces others: to put the handler in, or where none would be called |
//!
//! Two instructions that hand work to a device, MOVDIR64B and ENQCMD, are performed here, too, for processors that have
//! none: the illegal instruction is taken back. ENQCMD goes with the PASID that the process has asked for (`enqcmd`);
//! without one it stays the general protection fault that it is on hardware.
//!
//! A process that never maps registers has no handler, and one that execs has none any more: the mapping is gone. A
//! child has its parent's.

mod frame;
mod handler;
mod inject;
mod memory;
mod poller;
mod ptrace;
mod ring;
mod seize;
mod show;
mod stat;
mod tracer;
mod vectors;

use std::io::{self, Write as _};
use std::ops::Range;
use std::os::fd::OwnedFd;

use ioasid::memory::PAGE_SIZE;
use ioasid_mmio::{Submission, XstateLayout, step};
use rustix::io::Errno;

use crate::program::memory::ThreadMemory;
use crate::program::processes::Purpose;
use crate::server::Server;
use frame::Frame;
pub(crate) use handler::{ASK, ASK_RING, Action, PASS, RING, SIGNALS, action, base_in, set_action};
use memory::{LONGEST_INSTRUCTION, Mapped, ProgramMemory, fetch_instruction};
pub(crate) use poller::Rings;
pub(crate) use stat::is_asking;
pub use tracer::{Stopped, TraceHandle, Tracer};
use vectors::LazyVectors;

/// Bytes of a [`Question`] in the thread's memory.
const QUESTION: usize = 40;

/// In a siginfo: the kernel, for no reason that it names (`include/uapi/asm-generic/siginfo.h`).
const SI_KERNEL: i32 = 0x80;

/// What the handler asks: the signal, and the addresses and bases that it was called with. Behind it is room for a
/// [`Place`].
struct Question {
    signal: i32,
    /// Memory could not be mapped: each access has to be performed.
    cannot_map: bool,
    info: u64,
    context: u64,
    fs_base: u64,
    gs_base: u64,
}

impl Question {
    fn read(thread: ThreadMemory<'_>, address: u64) -> Result<Self, Errno> {
        let mut bytes = [0; QUESTION];
        thread.read(address, &mut bytes)?;
        let [signal, info, context, fs_base, gs_base]: [u64; 5] = zerocopy::transmute!(bytes);
        Ok(Self { signal: signal as i32, cannot_map: signal >> 32 != 0, info, context, fs_base, gs_base })
    }

    /// The reason of the signal, and the address that it is about.
    fn reason(&self, thread: ThreadMemory<'_>) -> Result<(i32, u64), Errno> {
        let mut bytes = [0; 24];
        thread.read(self.info, &mut bytes)?;
        let [_, _, code, _, low, high]: [u32; 6] = zerocopy::transmute!(bytes);
        Ok((code as i32, u64::from(high) << 32 | u64::from(low)))
    }
}

/// An answer from this on says that memory is to be mapped: it is the descriptor behind this.
pub(crate) const MAP: i64 = 0x1_0000;

/// Where memory is to be mapped: address, length, protection, offset in the file.
type Place = [u64; 4];

/// Answers the handler of a thread: 0 if the instruction was performed, or SIGTRAP if it was, and a debugger waits for
/// it; [`MAP`] and a descriptor if memory is to be mapped, and the instruction comes again; otherwise the signal to be
/// taken for the program's own affair.
///
/// `give` gives the thread a descriptor.
///
/// # Errors
/// `EFAULT` if what it asks is not there; `ESRCH` if the thread has gone.
pub(crate) fn answer(
    server: &Server,
    thread: ThreadMemory<'_>,
    address: u64,
    give: impl FnOnce(OwnedFd) -> Result<i32, Errno>,
) -> Result<i64, Errno> {
    let question = Question::read(thread, address)?;
    let (code, about) = question.reason(thread)?;
    let process = server.process(thread.tid(), Purpose::Mapping).map_err(|_| Errno::SRCH)?;
    let mut memory = ProgramMemory { thread, server, mappings: process.vmas() };
    // What was opened by the number was opened of this thread's process, if it stands after that.
    let mut frame = Frame::read(thread, question.context)?;
    let mut general = frame.registers(question.fs_base, question.gs_base);
    let mut bytes = [0; LONGEST_INSTRUCTION];
    let (instruction, is_covered) = fetch_instruction(thread, general.rip, &mut bytes);
    let own = i64::from(question.signal);
    let submits = match question.signal {
        libc::SIGBUS
            if code == libc::BUS_ADRERR
                && let Some(mapped) = memory.device(about, 1) =>
        {
            if !question.cannot_map
                && let Some(found) = mapped.file.memory(mapped.offset)
                && let Ok(file) = found.memory.file(found.writable)
                && let Ok(descriptor) = give(file)
            {
                let place: [u8; size_of::<Place>()] = zerocopy::transmute!(place_of(&mapped, &found.place));
                thread.write(address + QUESTION as u64, &place)?;
                return Ok(MAP + i64::from(descriptor));
            }
            false
        }
        // Another thread has had it mapped since: the instruction comes again, and finds it.
        libc::SIGBUS if code == libc::BUS_ADRERR && memory.is_bar_memory(about) => return Ok(0),
        signal if code > 0 && is_submission(signal, instruction) => true,
        _ => return Ok(own),
    };
    let mut vectors = LazyVectors::new(frame.vectors(), XstateLayout::of_this_processor());
    let at = general.rip;
    match step(&mut general, &mut vectors, &mut memory, instruction) {
        // A debugger that waits for the instruction to come again would wait for ever.
        Ok(()) if vectors.put_back() && frame.put_back(&general) => {
            Ok(if is_covered { libc::SIGTRAP.into() } else { 0 })
        }
        Ok(()) => Err(Errno::FAULT),
        // A general protection or page fault, as a processor that has the instruction raises.
        Err(_) if submits => {
            let info: [u8; 12] = zerocopy::transmute!([libc::SIGSEGV, 0, SI_KERNEL]);
            thread.write(question.info, &info)?;
            Ok(libc::SIGSEGV.into())
        }
        Err(error) => {
            tell_refused(thread.tid(), about, at, &error);
            Ok(own)
        }
    }
}

/// The most parts in which memory of a BAR is mapped. A page is not too small: the program may have put something else
/// in the place of the next one by the time that its handler maps this one. But each part costs a touch and a mapping.
const PARTS: u64 = 1024;

/// Where a thread that stands at a byte of a mapping is to map memory, which is at `memory` in the device's file.
fn place_of(at: &Mapped, memory: &Range<u64>) -> Place {
    let Mapped { offset, vma, .. } = at;
    let part = (memory.end - memory.start).div_ceil(PARTS).next_multiple_of(PAGE_SIZE);
    let part_start = offset - (offset - memory.start) % part;
    let start = part_start.max(vma.offset);
    let end = (part_start + part).min(memory.end).min(vma.offset + (vma.end - vma.start));
    let protection = [(vma.readable, libc::PROT_READ), (vma.writable, libc::PROT_WRITE)];
    let protection = protection.into_iter().filter(|(has, _)| *has).fold(0, |all, (_, bit)| all | bit);
    [vma.start + (start - vma.offset), end - start, protection as u64, start - memory.start]
}

/// Whether an instruction hands work to a device, and this signal says that the processor has no such instruction
/// (SIGILL), or no PASID for it (SIGSEGV).
fn is_submission(signal: i32, instruction: &[u8]) -> bool {
    match Submission::at(instruction) {
        Some(Submission::Movdir64b) => signal == libc::SIGILL,
        Some(Submission::Enqcmd) => matches!(signal, libc::SIGILL | libc::SIGSEGV),
        None => false,
    }
}

/// Says of an access at `about`, by the instruction at `at`, why it is not performed.
fn tell_refused(tid: u32, about: u64, at: u64, error: &ioasid_mmio::Error) {
    let _ =
        writeln!(io::stderr(), "ioasid: thread {tid}: register access at {about:#x}, instruction at {at:#x}: {error}",);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_is_told_by_the_signal_that_a_processor_raises() {
        // movdir64b rax, [rcx]; enqcmd rax, [rcx]; mov eax, [rcx]
        let (movdir64b, enqcmd, mov) =
            (&[0x66, 0x0f, 0x38, 0xf8, 0x01], &[0xf2, 0x0f, 0x38, 0xf8, 0x01], &[0x8b, 0x01]);
        let told = |instruction: &[u8]| [libc::SIGILL, libc::SIGSEGV].map(|signal| is_submission(signal, instruction));
        assert_eq!(told(movdir64b), [true, false]);
        assert_eq!(told(enqcmd), [true, true]);
        assert_eq!(told(mov), [false, false]);
        assert!(!is_submission(libc::SIGBUS, enqcmd));
    }

    #[test]
    fn memory_is_mapped_a_page_at_a_time_and_no_further_than_the_mapping() {
        struct Nothing;
        impl crate::request::file::OpenFile for Nothing {}
        let vma = ioasid::memory::Vma {
            start: 0x7000_0000,
            end: 0x7000_4000,
            offset: 0x2_1000,
            dev: 0,
            inode: 0,
            readable: true,
            writable: false,
            shared: true,
        };
        let at = |offset: u64| Mapped { file: std::sync::Arc::new(Nothing), offset, vma };
        let read = libc::PROT_READ as u64;
        assert_eq!(place_of(&at(0x2_2008), &(0x2_0000..0x3_0000)), [0x7000_1000, 0x1000, read, 0x2000]);
        // Of 16 MiB, parts of 16 KiB, as far as they are mapped.
        let large = 0x2_0000..0x102_0000;
        assert_eq!(place_of(&at(0x2_2008), &large), [0x7000_0000, 0x3000, read, 0x1000]);
        assert_eq!(place_of(&at(0x2_4000), &large), [0x7000_3000, 0x1000, read, 0x4000]);
    }
}
