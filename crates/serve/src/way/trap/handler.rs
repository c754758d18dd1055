//! The signal handler that is put into programs which map registers.
//!
//! It is a page of code that stands on its own, and one of data, at an address of which there are few to look at:
//!
//! ```text
//!   BASE            the handler, readable and executable
//!   BASE + 0x1000   MAGIC, then what the program itself wants done with SIGILL, SIGBUS and SIGSEGV
//! ```
//! The handler asks, by a system call that the filter traps ([`ASK`] on descriptor -1), whether the instruction was a
//! register access. If so it was performed, the registers in the signal's frame are those behind it, and the handler
//! returns. If not it does what the program wanted done with the signal, with the registers and the signal mask of a
//! handler that the kernel had called. As the page of data is the process's own, a child of a fork has its own wishes.
#![allow(unsafe_code, reason = "assembly, and its bytes")]

use super::inject::Thread;
use rustix::io::Errno;

use crate::program::memory::ThreadMemory;

/// The request number of what the handler asks.
pub(crate) const ASK: u32 = ioasid_uapi::TYPE as u32 * 256 + 0xfe;
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

const SA_RESTORER: u64 = 0x0400_0000;

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
    // What is asked: signal, information, context, bases of FS and GS.
    sub     rsp, 40
    mov     [rsp], rbx
    mov     [rsp + 8], r12
    mov     [rsp + 16], r13
    mov     eax, 158
    mov     edi, 0x1003
    lea     rsi, [rsp + 24]
    syscall
    mov     eax, 158
    mov     edi, 0x1004
    lea     rsi, [rsp + 32]
    syscall
0:  mov     eax, 16
    mov     edi, -1
    mov     esi, {ask}
    mov     rdx, rsp
    syscall
    cmp     rax, -4
    je      0b
    add     rsp, 40
    test    rax, rax
    jz      9f
    // It was no register access: the answer is which signal it was. A negative one says that the runner is gone.
    js      6f
    mov     ebx, eax
    // Or it was one, and a debugger is to be told.
    cmp     ebx, 5
    je      7f
6:  xor     ecx, ecx
    cmp     ebx, 4
    je      1f
    mov     ecx, 32
    cmp     ebx, 7
    je      1f
    mov     ecx, 64
    // What does the program want?
1:  lea     r14, [r14 + rcx + {actions}]
    cmp     qword ptr [r14], 1
    jb      3f
    je      2f
    // Its handler, with the mask of before, its own, and the signal unless it is not to be blocked.
    mov     rax, [r13 + 296]
    or      rax, [r14 + 24]
    test    dword ptr [r14 + 8], 0x40000000
    jnz     4f
    lea     ecx, [rbx - 1]
    bts     rax, rcx
4:  push    rax
    mov     eax, 14
    mov     edi, 2
    mov     rsi, rsp
    xor     edx, edx
    mov     r10d, 8
    syscall
    pop     rcx
    mov     rax, [r14]
    test    dword ptr [r14 + 8], 0x80000000
    jz      5f
    mov     qword ptr [r14], 0
5:  mov     edi, ebx
    mov     rsi, r12
    mov     rdx, r13
    pop     r14
    pop     r13
    pop     r12
    pop     rbx
    jmp     rax
    // Nothing, unless the kernel raised it: then it ends the process, whatever the program wants.
2:  cmp     dword ptr [r12 + 8], 0
    jle     9f
    // The default. The kernel does it to a fault when the fault comes again. The handler sends again what was sent, and
    // a fault without an address, which the listener may have made of another; that arrives when the handler returns.
3:  mov     eax, 13
    mov     edi, ebx
    lea     rsi, [rip + ioasid_handler_default]
    xor     edx, edx
    mov     r10d, 8
    mov     r9d, {pass}
    syscall
    mov     eax, [r12 + 8]
    cmp     eax, 0x80
    je      7f
    test    eax, eax
    jg      9f
7:  xor     eax, eax
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
9:  pop     r14
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
        let at = thread.call(libc::SYS_mmap, [base, 2 * PAGE, RW, flags as u64, u64::MAX, 0])?;
        (at == base as i64).then_some(base)
    };
    let base = BASES.into_iter().find_map(|base| map(thread, base))?;
    let (code, restorer) = code();
    // Whatever comes in between may touch registers, too, and what ends the process may end it while it waits.
    let flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART | libc::SA_NODEFER;
    let ours: Action = zerocopy::transmute!([base, flags as u64 | SA_RESTORER, base + restorer, 0]);
    let ours_at = place_of(base, SIGNALS.len());
    memory.write(base, code).and_then(|()| memory.write(ours_at, &ours)).ok()?;
    if thread.call(libc::SYS_mprotect, [base, PAGE, RX, 0, 0, 0])? != 0 {
        let _ = thread.call(libc::SYS_munmap, [base, 2 * PAGE, 0, 0, 0, 0]);
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
