//! The signal handler that is put into programs which map registers.
//!
//! It is a page of code that stands on its own, and one of data, at an address of which there are few to look at:
//!
//! ```text
//!   BASE            the handler, readable and executable
//!   BASE + 0x1000   MAGIC, then what the program itself wants done with SIGILL, SIGBUS and SIGSEGV
//!   BASE + 0x2000   whether there is a ring; wiped in a child
//!   BASE + 0x3000   the ring (see `ring`), which a child does not have
//! ```
//! The handler asks, by a system call that the filter traps ([`ASK`] on descriptor -1), whether the instruction was a
//! register access. If so it was performed, the registers in the signal's frame are those behind it, and the handler
//! returns. If not it does what the program wanted done with the signal, with the registers and the signal mask of a
//! handler that the kernel had called. As the page of data is the process's own, a child of a fork has its own wishes.
//!
//! In the ring the handler asks for what is one access with general registers: nothing has to be copied from the
//! program's memory then. Where one access follows another, the poller looks at the ring, and the handler waits a short
//! time for an answer; otherwise a system call has the slot answered ([`ASK_RING`]). The handler makes the ring after
//! the first access: the listener gives it the file ([`RING`]), and it maps that. So a child makes a ring of its own.
#![allow(unsafe_code, reason = "assembly, and its bytes")]

use super::frame::WORDS;
use super::inject::Thread;
use super::{MAP, ring};
use rustix::io::Errno;

use crate::program::memory::ThreadMemory;

/// The request number of what the handler asks.
pub(crate) const ASK: u32 = ioasid_uapi::TYPE as u32 * 256 + 0xfe;
/// The request number by which the handler is given the file of a ring.
pub(crate) const RING: u32 = ioasid_uapi::TYPE as u32 * 256 + 0xfd;
/// The request number by which it has a slot of the ring answered.
pub(crate) const ASK_RING: u32 = ioasid_uapi::TYPE as u32 * 256 + 0xfc;
/// The sixth argument of the rt_sigaction(2) that the filter lets by. The kernel looks at four.
pub(crate) const PASS: u32 = 0x10a5_1d00;
/// The signals that it handles, in the order of what the program wants done.
pub(crate) const SIGNALS: [i32; 3] = [libc::SIGILL, libc::SIGBUS, libc::SIGSEGV];

/// Where it is put, if there is room: far from where kernels, loaders and sanitizers put things.
const BASES: [u64; 3] = [0x7000_0000_0000 - 0x10_0000, 0x2000_0000_0000 - 0x10_0000, 0x6ff0_0000];
const PAGE: u64 = 0x1000;
const MAGIC: [u8; 16] = *b"ioasid's handler";
const ACTIONS: u64 = PAGE + 16;

/// `struct kernel_sigaction`: handler, flags, restorer, mask; each eight bytes.
pub(crate) type Action = [u8; 32];
const ACTION_BYTES: u64 = size_of::<Action>() as u64;

/// Whether there is a ring: 0 says that it was not tried yet, 2 that it could not be had.
const HAS_RING: u64 = 2 * PAGE;
const RING_AT: u64 = 3 * PAGE;
/// How often the handler looks for an answer without a pause, which is 1 µs or less.
const LOOKS: u32 = 1000;
/// How often it looks again, with a pause each time, before it does something else: some 20 µs.
const SPINS: u32 = 500;

/// Signals that may come in between, beside those that it handles: they end a program that waits for an access; or its
/// own filter has it do a system call of the handler's in another way (SIGSYS). Others wait until the access is done,
/// as it is one instruction. Their handlers would find the alternate stack half full: of its 8 KiB, which is what many
/// programs set aside, a frame with wide vector registers takes more than 3.
const IN_BETWEEN: [i32; 5] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGSYS];

const SA_RESTORER: u64 = 0x0400_0000;

// Labels of ones and zeros alone would be taken for binary numbers, so there are none.
std::arch::global_asm!(
    r#"
    .pushsection .rodata.ioasid_handler, "a", @progbits
    .balign 16
ioasid_handler_start:
    push    rbx
    push    r12
    push    r13
    push    r14
    mov     ebx, edi
    mov     r12, rsi
    mov     r13, rdx
    lea     r14, [rip + ioasid_handler_start]
    // A bus error at an address, in a process that has a ring?
    cmp     ebx, 7
    jne     30f
    cmp     dword ptr [r12 + 8], 2
    jne     40f
    cmp     dword ptr [r14 + {has_ring}], 1
    jne     40f
    // A free slot, where its state is, and room for the answer on the stack: all but the red zone, which is there
    // anyway.
    sub     rsp, {room} - 128
    lea     r8, [r14 + {ring}]
    lea     r10, [r14 + {ring} + {states} - 4]
    mov     r9d, {slots}
22: add     r8, {slot}
    add     r10, 4
    xor     eax, eax
    mov     ecx, 1
    lock cmpxchg [r8], ecx
    je      23f
    dec     r9d
    jnz     22b
    jmp     27f
    // The address, the registers, and the instruction up to the end of its page.
23: mov     rax, [r12 + 16]
    mov     [r8 + {address}], rax
    lea     rsi, [r13 + 40]
    lea     rdi, [r8 + {registers}]
    mov     ecx, {words}
    rep movsq
    mov     rsi, [r13 + 168]
    mov     ecx, esi
    or      ecx, -4096
    neg     ecx
    mov     eax, 16
    cmp     ecx, eax
    cmova   ecx, eax
    mov     [r8 + 4], ecx
    lea     rdi, [r8 + {instruction}]
    rep movsb
    mov     eax, {asked}
    xchg    [r10], eax
    // If the poller looks, most answers come within the time of a few pauses.
    cmp     dword ptr [r14 + {ring}], 0
    je      25f
    mov     ecx, {looks}
29: cmp     dword ptr [r10], {answered}
    je      26f
    dec     ecx
    jnz     29b
    mov     ecx, {spins}
24: pause
    cmp     dword ptr [r10], {answered}
    je      26f
    dec     ecx
    jnz     24b
    // The poller does not look, or not soon.
    mov     dword ptr [r14 + {ring}], 0
    // The listener answers, or waits for the poller's answer.
25: mov     eax, 16
    mov     edi, -1
    mov     esi, {ask_ring}
    mov     edx, {slots}
    sub     edx, r9d
    syscall
    cmp     rax, -4
    je      25b
    cmp     dword ptr [r10], {answered}
    je      26f
    // This ring is not known, or the runner is gone: taken back, unless it is under way after all.
    mov     eax, {asked}
    xor     ecx, ecx
    lock cmpxchg [r10], ecx
    je      28f
    cmp     eax, {answered}
    je      26f
    cmp     dword ptr [r10], {asked}
    jae     25b
    jmp     28f
    // The frame changes only when the slot is free: a child that faults before asks for the same access.
26: mov     edx, [r8 + 4]
    lea     rsi, [r8 + {registers}]
    lea     rdi, [rsp - 128]
    mov     ecx, {words}
    rep movsq
    mov     dword ptr [r10], 0
    mov     dword ptr [r8], 0
    jmp     31f
28: mov     dword ptr [r8], 0
27: add     rsp, {room} - 128
    jmp     40f
    // A fault of the lines above: this is a child, made by a signal handler that came in between, and has no ring; or
    // the instruction cannot be read. They go on without a ring, as they have changed nothing but the slot.
30: cmp     ebx, 11
    jne     40f
    cmp     dword ptr [r12 + 8], 0
    jle     40f
    mov     rax, [r13 + 168]
    lea     rcx, [rip + 22b]
    cmp     rax, rcx
    jb      40f
    lea     rcx, [rip + 30b]
    cmp     rax, rcx
    jae     40f
    lea     rcx, [rip + 28b]
    mov     rax, [r12 + 16]
    and     rax, -4096
    lea     rdx, [r14 + {ring}]
    cmp     rax, rdx
    jne     32f
    lea     rcx, [rip + 27b]
32: mov     [r13 + 168], rcx
    jmp     69f
31: test    edx, edx
    jnz     27b
    lea     rsi, [rsp - 128]
    lea     rdi, [r13 + 40]
    mov     ecx, {words}
    rep movsq
    add     rsp, {room} - 128
    jmp     69f
    // What is asked, in the red zone: signal, information, context, bases of FS and GS.
40: mov     [rsp - 72], rbx
    mov     [rsp - 64], r12
    mov     [rsp - 56], r13
    mov     eax, 158
    mov     edi, 0x1003
    lea     rsi, [rsp - 48]
    syscall
    mov     eax, 158
    mov     edi, 0x1004
    lea     rsi, [rsp - 40]
    syscall
60: mov     eax, 16
    mov     edi, -1
    mov     esi, {ask}
    lea     rdx, [rsp - 72]
    syscall
    cmp     rax, -4
    je      60b
    cmp     rax, {map}
    jge     45f
    test    rax, rax
    jz      50f
    // It was no register access: the answer is which signal it was. A negative one says that the runner is gone.
    js      66f
    mov     ebx, eax
    // Or it was one, and a debugger is to be told.
    cmp     ebx, 5
    je      67f
66: xor     ecx, ecx
    cmp     ebx, 4
    je      61f
    mov     ecx, 32
    cmp     ebx, 7
    je      61f
    mov     ecx, 64
    // What does the program want?
61: lea     r14, [r14 + rcx + {actions}]
    cmp     qword ptr [r14], 1
    jb      63f
    je      62f
    // Its handler, with the mask of before, its own, and the signal unless it is not to be blocked.
    mov     rax, [r13 + 296]
    or      rax, [r14 + 24]
    test    dword ptr [r14 + 8], 0x40000000
    jnz     64f
    lea     ecx, [rbx - 1]
    bts     rax, rcx
64: push    rax
    mov     eax, 14
    mov     edi, 2
    mov     rsi, rsp
    xor     edx, edx
    mov     r10d, 8
    syscall
    pop     rcx
    mov     rax, [r14]
    test    dword ptr [r14 + 8], 0x80000000
    jz      65f
    mov     qword ptr [r14], 0
65: mov     edi, ebx
    mov     rsi, r12
    mov     rdx, r13
    pop     r14
    pop     r13
    pop     r12
    pop     rbx
    jmp     rax
    // Nothing, unless the kernel raised it: then it ends the process, whatever the program wants.
62: cmp     dword ptr [r12 + 8], 0
    jle     69f
    // The default. The kernel does it to a fault when the fault comes again. The handler sends again what was sent, and
    // a fault without an address, which the listener may have made of another; that arrives when the handler returns.
63: mov     eax, 13
    mov     edi, ebx
    lea     rsi, [rip + ioasid_handler_default]
    xor     edx, edx
    mov     r10d, 8
    mov     r9d, {pass}
    syscall
    mov     eax, [r12 + 8]
    cmp     eax, 0x80
    je      67f
    test    eax, eax
    jg      69f
67: xor     eax, eax
    lea     ecx, [rbx - 1]
    bts     rax, rcx
    push    rax
    mov     eax, 14
    xor     edi, edi
    mov     rsi, rsp
    xor     edx, edx
    mov     r10d, 8
    syscall
    pop     rax
    mov     eax, 39
    syscall
    mov     r13, rax
    mov     eax, 186
    syscall
    mov     rdi, r13
    mov     rsi, rax
    mov     edx, ebx
    mov     eax, 234
    syscall
    jmp     69f
    // It is memory: to be mapped in place of registers. The instruction comes again.
45: lea     r8d, [rax - {map}]
    mov     eax, 9
    mov     rdi, [rsp - 32]
    mov     rsi, [rsp - 24]
    mov     rdx, [rsp - 16]
    mov     r10d, 0x11
    mov     r9, [rsp - 8]
    syscall
    mov     [rsp - 32], rax
    mov     eax, 3
    mov     edi, r8d
    syscall
    // If that cannot be had, each access is performed.
    mov     dword ptr [rsp - 68], 1
    cmp     qword ptr [rsp - 32], 0
    jl      60b
    jmp     69f
    // It was performed. If this is the first time, there is a ring to be made.
50: xor     eax, eax
    mov     ecx, 2
    lock cmpxchg [r14 + {has_ring}], ecx
    jne     69f
    // In one go: a child of a handler that came in between would map the ring of its parent.
    sub     rsp, 16
    mov     qword ptr [rsp], -1
    mov     eax, 14
    xor     edi, edi
    mov     rsi, rsp
    lea     rdx, [rsp + 8]
    mov     r10d, 8
    syscall
52: mov     eax, 16
    mov     edi, -1
    mov     esi, {make_ring}
    xor     edx, edx
    syscall
    cmp     rax, -4
    je      52b
    test    eax, eax
    js      53f
    // It cannot be touched until no child gets it.
    mov     ebx, eax
    mov     eax, 9
    lea     rdi, [r14 + {ring}]
    mov     esi, 4096
    xor     edx, edx
    mov     r10d, 0x100001
    mov     r8d, ebx
    xor     r9d, r9d
    syscall
    mov     r12, rax
    mov     eax, 3
    mov     edi, ebx
    syscall
    lea     rdi, [r14 + {ring}]
    cmp     r12, rdi
    jne     53f
    mov     eax, 28
    mov     esi, 4096
    mov     edx, 10
    syscall
    test    eax, eax
    jnz     53f
    mov     eax, 10
    lea     rdi, [r14 + {ring}]
    mov     esi, 4096
    mov     edx, 3
    syscall
    test    eax, eax
    jnz     53f
    mov     dword ptr [r14 + {has_ring}], 1
53: mov     eax, 14
    mov     edi, 2
    lea     rsi, [rsp + 8]
    xor     edx, edx
    mov     r10d, 8
    syscall
    add     rsp, 16
69: pop     r14
    pop     r13
    pop     r12
    pop     rbx
    ret
ioasid_handler_restorer:
    mov     eax, 15
    syscall
    .balign 8
ioasid_handler_default:
    .quad   0, 0, 0, 0
ioasid_handler_end:
    .popsection
    "#,
    ask = const ASK,
    actions = const ACTIONS,
    pass = const PASS,
    map = const MAP,
    has_ring = const HAS_RING,
    ring = const RING_AT,
    make_ring = const RING,
    ask_ring = const ASK_RING,
    looks = const LOOKS,
    spins = const SPINS,
    slots = const ring::SLOTS,
    slot = const ring::SLOT,
    states = const ring::STATES_AT,
    address = const ring::ADDRESS_AT,
    registers = const ring::REGISTERS_AT,
    instruction = const ring::INSTRUCTION_AT,
    words = const WORDS,
    room = const WORDS * 8,
    asked = const ring::ASKED,
    answered = const ring::ANSWERED,
);

unsafe extern "C" {
    static ioasid_handler_start: u8;
    static ioasid_handler_restorer: u8;
    static ioasid_handler_end: u8;
}

/// The bytes of the handler, and where in them the return from a signal is.
fn code() -> (&'static [u8], u64) {
    let (start, end) = (&raw const ioasid_handler_start, &raw const ioasid_handler_end);
    let length = end.addr() - start.addr();
    let restorer = (&raw const ioasid_handler_restorer).addr() - start.addr();
    // SAFETY: both labels are of one section of constants, in this order.
    (unsafe { std::slice::from_raw_parts(start, length) }, restorer as u64)
}

/// Where the handler is in a thread's memory, if it is.
pub(crate) fn base_in(memory: ThreadMemory<'_>) -> Option<u64> {
    BASES.into_iter().find(|base| {
        let mut magic = [0; MAGIC.len()];
        memory.read(base + PAGE, &mut magic).is_ok() && magic == MAGIC
    })
}

/// Where it is kept what the program wants done with the signal of this index.
fn place_of(base: u64, index: usize) -> u64 {
    base + ACTIONS + ACTION_BYTES * index as u64
}

/// What the program wants done with the signal of this index, of which the handler is at `base`.
///
/// # Errors
/// Of reading.
pub(crate) fn action(memory: ThreadMemory<'_>, base: u64, index: usize) -> Result<Action, Errno> {
    let mut action = [0; size_of::<Action>()];
    memory.read(place_of(base, index), &mut action)?;
    Ok(action)
}

/// Notes what the program wants done.
///
/// # Errors
/// Of writing.
pub(crate) fn set_action(memory: ThreadMemory<'_>, base: u64, index: usize, action: &Action) -> Result<(), Errno> {
    memory.write(place_of(base, index), action)
}

/// Puts the handler into the process of a thread that is stopped behind a system call, and returns where. `None` if it
/// cannot be had.
pub(super) fn install(thread: &mut Thread) -> Option<u64> {
    const RW: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    const RX: u64 = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let memory = ThreadMemory::stopped(thread.tid());
    let map = |thread: &mut Thread, base: u64| {
        let at = thread.call(libc::SYS_mmap, [base, RING_AT, RW, flags as u64, u64::MAX, 0])?;
        (at == base as i64).then_some(base)
    };
    let base = BASES.into_iter().find_map(|base| map(thread, base))?;
    let (code, restorer) = code();
    let flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART | libc::SA_NODEFER;
    let blocked = IN_BETWEEN.iter().chain(&SIGNALS).fold(u64::MAX, |all, signal| all & !(1 << (signal - 1)));
    let ours: Action = zerocopy::transmute!([base, flags as u64 | SA_RESTORER, base + restorer, blocked]);
    let ours_at = place_of(base, SIGNALS.len());
    memory.write(base, code).and_then(|()| memory.write(ours_at, &ours)).ok()?;
    let wiped = [base + HAS_RING, PAGE, libc::MADV_WIPEONFORK as u64, 0, 0, 0];
    if thread.call(libc::SYS_mprotect, [base, PAGE, RX, 0, 0, 0])? != 0 || thread.call(libc::SYS_madvise, wiped)? != 0 {
        let _ = thread.call(libc::SYS_munmap, [base, RING_AT, 0, 0, 0, 0]);
        return None;
    }
    for (index, signal) in SIGNALS.into_iter().enumerate() {
        let arguments = [signal as u64, ours_at, place_of(base, index), 8, 0, PASS.into()];
        if thread.call(libc::SYS_rt_sigaction, arguments)? != 0 {
            return None;
        }
    }
    memory.write(base + PAGE, &MAGIC).ok()?;
    Some(base)
}

/// Has a stopped thread of another process, which is in memory with the handler at `base`, take it for its own signals.
pub(super) fn join(tid: u32, base: u64) -> Option<()> {
    let (_, restorer) = code();
    // Behind `mov eax, 15`.
    let mut thread = Thread::take_at(tid, base + restorer + 5)?;
    let ours_at = place_of(base, SIGNALS.len());
    for signal in SIGNALS {
        thread.call(libc::SYS_rt_sigaction, [signal as u64, ours_at, 0, 8, 0, PASS.into()])?;
    }
    Some(())
}
