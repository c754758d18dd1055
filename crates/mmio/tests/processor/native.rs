//! Runs one instruction on the processor, with all registers as told.
//!
//! ```text
//!   0x2000_0000  CODE: the instruction, then a jump back; at LANDING a second jump back
//!   0x2000_1000  ARENA: the memory that it works on
//! ```
//!
//! The addresses are fixed and low, so that RIP-relative, absolute and 32-bit addresses can be written into the cases.

use std::arch::global_asm;
use std::mem::offset_of;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};

pub(crate) const CODE: u64 = 0x2000_0000;
pub(crate) const LANDING: u64 = CODE + 0x80;
pub(crate) const ARENA: u64 = 0x2000_1000;
pub(crate) const ARENA_SIZE: usize = 0x2000;
const PAGE: usize = 0x1000;

/// All that an instruction may read and write, but memory.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) vectors: [[u8; 64]; 32],
    pub(crate) masks: [u64; 8],
    pub(crate) mmx: [u64; 8],
    pub(crate) gpr: [u64; 16],
    pub(crate) rflags: u64,
    level: u64,
    target: u64,
    host_stack: u64,
}

pub(crate) const ZERO: State = State {
    vectors: [[0; 64]; 32],
    masks: [0; 8],
    mmx: [0; 8],
    gpr: [0; 16],
    rflags: 0,
    level: 0,
    target: 0,
    host_stack: 0,
};

/// Where the assembly below finds the registers; guarded by [`OWNER`].
static mut STATE: State = ZERO;
static OWNER: Mutex<()> = Mutex::new(());
/// The signal that the instruction raised, or 0.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

#[rustfmt::skip]
global_asm!(
    "ioasid_mmio_enter:",
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    "mov [rip + {s} + {host}], rsp",
    "lea rax, [rip + {s}]",
    "cmp qword ptr [rax + {level}], 1",
    "jb 4f",
    "je 3f",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vmovdqu64 zmm\\i, [rax + 64*\\i]",
    ".endr",
    ".irp i, 0,1,2,3,4,5,6,7",
    "kmovq k\\i, [rax + {masks} + 8*\\i]",
    ".endr",
    "jmp 5f",
    "3:",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu ymm\\i, [rax + 64*\\i]",
    ".endr",
    "jmp 5f",
    "4:",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "movdqu xmm\\i, [rax + 64*\\i]",
    ".endr",
    "5:",
    ".irp i, 0,1,2,3,4,5,6,7",
    "movq mm\\i, [rax + {mmx} + 8*\\i]",
    ".endr",
    "push qword ptr [rax + {rflags}]",
    "popfq",
    "mov rax, [rip + {s} + {gpr}]",
    "mov rcx, [rip + {s} + {gpr} + 8]",
    "mov rdx, [rip + {s} + {gpr} + 16]",
    "mov rbx, [rip + {s} + {gpr} + 24]",
    "mov rsp, [rip + {s} + {gpr} + 32]",
    "mov rbp, [rip + {s} + {gpr} + 40]",
    "mov rsi, [rip + {s} + {gpr} + 48]",
    "mov rdi, [rip + {s} + {gpr} + 56]",
    ".irp i, 8,9,10,11,12,13,14,15",
    "mov r\\i, [rip + {s} + {gpr} + 8*\\i]",
    ".endr",
    "jmp qword ptr [rip + {s} + {target}]",

    "ioasid_mmio_leave:",
    "mov [rip + {s} + {gpr}], rax",
    "mov [rip + {s} + {gpr} + 8], rcx",
    "mov [rip + {s} + {gpr} + 16], rdx",
    "mov [rip + {s} + {gpr} + 24], rbx",
    "mov [rip + {s} + {gpr} + 32], rsp",
    "mov [rip + {s} + {gpr} + 40], rbp",
    "mov [rip + {s} + {gpr} + 48], rsi",
    "mov [rip + {s} + {gpr} + 56], rdi",
    ".irp i, 8,9,10,11,12,13,14,15",
    "mov [rip + {s} + {gpr} + 8*\\i], r\\i",
    ".endr",
    "mov rsp, [rip + {s} + {host}]",
    "pushfq",
    "pop qword ptr [rip + {s} + {rflags}]",
    "cld",
    "lea rax, [rip + {s}]",
    ".irp i, 0,1,2,3,4,5,6,7",
    "movq [rax + {mmx} + 8*\\i], mm\\i",
    ".endr",
    "emms",
    "cmp qword ptr [rax + {level}], 1",
    "jb 4f",
    "je 3f",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vmovdqu64 [rax + 64*\\i], zmm\\i",
    ".endr",
    ".irp i, 0,1,2,3,4,5,6,7",
    "kmovq [rax + {masks} + 8*\\i], k\\i",
    ".endr",
    "vzeroupper",
    "jmp 5f",
    "3:",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu [rax + 64*\\i], ymm\\i",
    ".endr",
    "vzeroupper",
    "jmp 5f",
    "4:",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "movdqu [rax + 64*\\i], xmm\\i",
    ".endr",
    "5:",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "ret",
    s = sym STATE,
    masks = const offset_of!(State, masks),
    mmx = const offset_of!(State, mmx),
    gpr = const offset_of!(State, gpr),
    rflags = const offset_of!(State, rflags),
    level = const offset_of!(State, level),
    target = const offset_of!(State, target),
    host = const offset_of!(State, host_stack),
);

unsafe extern "C" {
    fn ioasid_mmio_enter();
    safe static ioasid_mmio_leave: u8;
}

/// How many bytes of a vector register this processor has, and whether it has 32 of them and masks.
pub(crate) fn vector_size() -> usize {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        64
    } else if is_x86_feature_detected!("avx") {
        32
    } else {
        16
    }
}

/// The two mappings, and the only right to run code.
pub(crate) struct Processor {
    _owner: MutexGuard<'static, ()>,
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
}

/// Notes the signal, and goes on where a completed instruction goes on.
extern "C" fn on_fault(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the context of the interrupted thread.
    let rip = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] };
    if *rip == CODE as i64 {
        SIGNAL.store(signal, Ordering::Relaxed);
        *rip = &raw const ioasid_mmio_leave as i64;
    } else {
        // Not ours: let it happen again, and kill the process.
        // SAFETY: `signal` is async-signal-safe, and SIG_DFL is a valid action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

const ARCH_SET_GS: libc::c_long = 0x1001;
const ARCH_GET_FS: libc::c_long = 0x1003;

impl Processor {
    pub(crate) fn new() -> Self {
        let owner = OWNER.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let gs_base = ARENA + 0x321;
        let mut fs_base = 0u64;
        // SAFETY: nothing else is mapped at these addresses (NOREPLACE); a previous owner unmapped its mapping. GS is
        // not used by x86-64 programs, and the call for FS writes one u64 to the address given.
        unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            mmap_anonymous(CODE as *mut _, PAGE + ARENA_SIZE, protection, flags).expect("the fixed addresses are free");
            assert_eq!(libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, gs_base), 0);
            assert_eq!(libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &raw mut fs_base), 0);
        }
        for signal in [libc::SIGSEGV, libc::SIGFPE, libc::SIGILL] {
            // SAFETY: all zeros is a valid sigaction; `on_fault` has the signature that SA_SIGINFO demands, and runs
            // on the signal stack that std gives every thread, as RSP may point anywhere.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_fault as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
            }
        }
        Self { _owner: owner, fs_base, gs_base }
    }

    /// Puts an instruction in place.
    pub(crate) fn set_code(&mut self, code: &[u8]) {
        // ud2, then jmp [rip + 0] to the way back.
        let mut page = [0x0f, 0x0b].repeat(0x80);
        let mut back = vec![0xff, 0x25, 0, 0, 0, 0];
        back.extend((&raw const ioasid_mmio_leave as u64).to_le_bytes());
        page[..code.len()].copy_from_slice(code);
        page[code.len()..code.len() + back.len()].copy_from_slice(&back);
        let landing = (LANDING - CODE) as usize;
        page[landing..landing + back.len()].copy_from_slice(&back);
        // SAFETY: the code page is mapped by `new` and holds more than `page`; nothing runs in it, as `self` is the
        // only owner.
        unsafe {
            mprotect(CODE as *mut _, PAGE, MprotectFlags::READ | MprotectFlags::WRITE).expect("mprotect");
            std::ptr::copy_nonoverlapping(page.as_ptr(), CODE as *mut u8, page.len());
            mprotect(CODE as *mut _, PAGE, MprotectFlags::READ | MprotectFlags::EXEC).expect("mprotect");
        }
    }

    /// Runs the instruction on `state` and on `arena`, which become what they are after it. Gives the signal that the
    /// instruction raised, if it did not complete.
    pub(crate) fn run(&mut self, state: &mut State, arena: &mut [u8; ARENA_SIZE]) -> Option<i32> {
        SIGNAL.store(0, Ordering::Relaxed);
        state.level = (vector_size() / 32) as u64;
        state.target = CODE;
        // SAFETY: `self` owns STATE and the arena. The code in place is one instruction of the tables in `cases`,
        // which by the way its registers were prepared works on the arena alone, and then jumps to the way back,
        // which restores all that the calling convention keeps.
        unsafe {
            std::ptr::copy_nonoverlapping(arena.as_ptr(), ARENA as *mut u8, ARENA_SIZE);
            STATE = *state;
            ioasid_mmio_enter();
            *state = STATE;
            std::ptr::copy_nonoverlapping(ARENA as *const u8, arena.as_mut_ptr(), ARENA_SIZE);
        }
        (state.level, state.target, state.host_stack) = (0, 0, 0);
        Some(SIGNAL.load(Ordering::Relaxed)).filter(|&signal| signal != 0)
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        // SAFETY: the mapping is the one that `new` made, and nothing refers to it any more.
        unsafe { rustix::mm::munmap(CODE as *mut _, PAGE + ARENA_SIZE).expect("munmap") };
    }
}
