//! The whole of it: a process whose device mapping has no memory behind it, and a tracer that performs each access.
//!
//! The child is compiled code and the C library's, not chosen encodings: what they do to the mapping must come out as
//! if there were memory. The tracer hands the vector registers over as ptrace gives them, so this also checks
//! [`Xstate`] against the kernel.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(unsafe_code, reason = "forks, maps memory and traces")]

use std::arch::asm;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ioasid_mmio::{AccessFault, Memory, Registers, Xstate, XstateLayout, step};

/// Size of the device's registers.
const SIZE: usize = 0x4000;
/// A register that counts how often it was read.
const COUNTER: usize = 0x3ff8;

/// The child's address space: device registers in the window, and its own memory.
struct Space {
    child: libc::pid_t,
    window: u64,
    device: Vec<u8>,
    reads_of_counter: u64,
}

impl Space {
    fn offset(&self, address: u64, length: usize) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(self.window)?).ok()?;
        (offset + length <= SIZE).then_some(offset)
    }

    /// Copies between `local` and the child's memory, in the direction of `call`.
    fn transfer(
        &self,
        call: unsafe extern "C" fn(
            libc::pid_t,
            *const libc::iovec,
            libc::c_ulong,
            *const libc::iovec,
            libc::c_ulong,
            libc::c_ulong,
        ) -> isize,
        local: *mut u8,
        length: usize,
        address: u64,
    ) -> usize {
        let local = libc::iovec { iov_base: local.cast(), iov_len: length };
        let remote = libc::iovec { iov_base: address as *mut _, iov_len: length };
        // SAFETY: `local` is a buffer of `length` bytes of the caller's, and each vector has one element.
        unsafe { call(self.child, &local, 1, &remote, 1, 0) }.try_into().unwrap_or(0)
    }
}

impl Memory for Space {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), AccessFault> {
        if let Some(offset) = self.offset(address, bytes.len()) {
            if offset == COUNTER {
                self.reads_of_counter += 1;
                self.device[COUNTER..COUNTER + 8].copy_from_slice(&self.reads_of_counter.to_le_bytes());
            }
            bytes.copy_from_slice(&self.device[offset..offset + bytes.len()]);
            return Ok(());
        }
        let read = self.transfer(libc::process_vm_readv, bytes.as_mut_ptr(), bytes.len(), address);
        if read == bytes.len() { Ok(()) } else { Err(AccessFault) }
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessFault> {
        if let Some(offset) = self.offset(address, bytes.len()) {
            self.device[offset..offset + bytes.len()].copy_from_slice(bytes);
            return Ok(());
        }
        let written = self.transfer(libc::process_vm_writev, bytes.as_ptr().cast_mut(), bytes.len(), address);
        if written == bytes.len() { Ok(()) } else { Err(AccessFault) }
    }
}

/// Calls ptrace, which must succeed.
fn trace(request: libc::c_uint, child: libc::pid_t, address: usize, data: usize) {
    // SAFETY: the callers pass what the request demands: a struct or an iovec of their own, or numbers.
    let result = unsafe { libc::ptrace(request, child, address, data) };
    assert_ne!(result, -1, "ptrace {request}: {}", std::io::Error::last_os_error());
}

fn fields(regs: &mut libc::user_regs_struct) -> [&mut u64; 16] {
    let r = regs;
    [
        &mut r.rax, &mut r.rcx, &mut r.rdx, &mut r.rbx, &mut r.rsp, &mut r.rbp, &mut r.rsi, &mut r.rdi, &mut r.r8,
        &mut r.r9, &mut r.r10, &mut r.r11, &mut r.r12, &mut r.r13, &mut r.r14, &mut r.r15,
    ]
}

const NT_X86_XSTATE: usize = 0x202;

/// Performs the instruction at which the child stopped.
fn perform(space: &mut Space, layout: XstateLayout) {
    let child = space.child;
    // SAFETY: all zeros is a valid user_regs_struct.
    let mut user: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    trace(libc::PTRACE_GETREGS, child, 0, &raw mut user as usize);
    let mut bytes = vec![0u8; 1 << 14];
    let mut area = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    trace(libc::PTRACE_GETREGSET, child, NT_X86_XSTATE, &raw mut area as usize);
    bytes.truncate(area.iov_len);

    let mut regs = Registers {
        gpr: fields(&mut user).map(|field| *field),
        rip: user.rip,
        rflags: user.eflags,
        fs_base: user.fs_base,
        gs_base: user.gs_base,
    };
    let mut code = [0; 15];
    let length = space.transfer(libc::process_vm_readv, code.as_mut_ptr(), code.len(), user.rip);
    let mut vectors = Xstate::new(&mut bytes, layout);
    if let Err(error) = step(&mut regs, &mut vectors, space, &code[..length]) {
        panic!("{error}: {code:02x?}");
    }
    let is_modified = vectors.is_modified();
    for (field, value) in fields(&mut user).into_iter().zip(regs.gpr) {
        *field = value;
    }
    (user.rip, user.eflags) = (regs.rip, regs.rflags);
    trace(libc::PTRACE_SETREGS, child, 0, &raw mut user as usize);
    if is_modified {
        let mut area = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        trace(libc::PTRACE_SETREGSET, child, NT_X86_XSTATE, &raw mut area as usize);
    }
}

/// Runs `program` in a child on a window of device registers; gives its exit status, the number of accesses that were
/// performed for it, and the device's registers. It must not allocate or panic, as it runs after a fork.
fn run(program: fn(*mut u8) -> i32) -> (i32, usize, Vec<u8>) {
    // SAFETY: an anonymous file of no size, mapped anew; the child uses the window only as raw memory, and leaves
    // by _exit.
    let (window, child) = unsafe {
        let file = libc::memfd_create(c"registers".as_ptr(), 0);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let window = libc::mmap(ptr::null_mut(), SIZE, protection, libc::MAP_SHARED, file, 0);
        assert_ne!(window, libc::MAP_FAILED);
        libc::close(file);
        let child = libc::fork();
        if child == 0 {
            if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == -1 {
                libc::_exit(120);
            }
            libc::_exit(program(window.cast()));
        }
        (window, child)
    };
    let layout = XstateLayout::of_this_processor();
    let mut space = Space { child, window: window as u64, device: vec![0; SIZE], reads_of_counter: 0 };
    let mut accesses = 0;
    loop {
        let mut status = 0;
        // SAFETY: `status` is an int of ours.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        if libc::WIFEXITED(status) {
            // SAFETY: the mapping above, to which nothing refers any more.
            unsafe { libc::munmap(window, SIZE) };
            return (libc::WEXITSTATUS(status), accesses, space.device);
        }
        assert!(libc::WIFSTOPPED(status), "the child ended with status {status:#x}");
        assert_eq!(libc::WSTOPSIG(status), libc::SIGBUS, "the child got another signal");
        perform(&mut space, layout);
        accesses += 1;
        trace(libc::PTRACE_CONT, child, 0, 0);
    }
}

/// Leaves a program with the line's number if the two differ.
macro_rules! check {
    ($left:expr, $right:expr) => {
        if $left != $right {
            return line!() as i32 % 100 + 1;
        }
    };
}

/// A place in the window.
///
/// # Safety
///
/// `offset + size_of::<T>()` is at most [`SIZE`].
unsafe fn at<T>(window: *mut u8, offset: usize) -> *mut T {
    // SAFETY: by the caller's promise the sum stays in the mapping.
    unsafe { window.add(offset).cast() }
}

#[test]
fn volatile_accesses_reach_the_device_once_each() {
    let (status, accesses, device) = run(|window| {
        // SAFETY: all offsets are in the window and aligned.
        unsafe {
            at::<u8>(window, 1).write_volatile(0xa1);
            at::<u16>(window, 2).write_volatile(0xb2b1);
            at::<u32>(window, 4).write_volatile(0xc4c3_c2c1);
            at::<u64>(window, 8).write_volatile(0xd8d7_d6d5_d4d3_d2d1);
            check!(at::<u64>(window, 0).read_volatile(), 0xc4c3_c2c1_b2b1_a100);
            check!(at::<u16>(window, 8).read_volatile(), 0xd2d1);
            for expected in 1..=5 {
                check!(at::<u64>(window, COUNTER).read_volatile(), expected);
            }
        }
        0
    });
    assert_eq!((status, accesses), (0, 11));
    assert_eq!(device[..4], [0, 0xa1, 0xb1, 0xb2]);
}

#[test]
fn atomic_operations_work_on_registers() {
    let (status, ..) = run(|window| {
        // SAFETY: all offsets are in the window and aligned.
        let (word, long) = unsafe { (AtomicU32::from_ptr(at(window, 4)), AtomicU64::from_ptr(at(window, 8))) };
        check!(word.fetch_add(5, Ordering::SeqCst), 0);
        check!(word.swap(9, Ordering::SeqCst), 5);
        check!(word.compare_exchange(8, 1, Ordering::SeqCst, Ordering::SeqCst), Err(9));
        check!(word.compare_exchange(9, 1, Ordering::SeqCst, Ordering::SeqCst), Ok(9));
        check!(word.fetch_xor(3, Ordering::SeqCst), 1);
        check!(word.fetch_max(77, Ordering::SeqCst), 2);
        check!(word.load(Ordering::SeqCst), 77);
        check!(long.fetch_sub(1, Ordering::SeqCst), 0);
        check!(long.fetch_and(0xffff_ffff, Ordering::SeqCst), u64::MAX);
        check!(long.load(Ordering::SeqCst), 0xffff_ffff);
        0
    });
    assert_eq!(status, 0);
}

#[test]
fn the_c_library_copies_fills_compares_and_searches_registers() {
    let (status, ..) = run(|window| {
        let mut source = [0u8; 0x1800];
        let mut back = [0u8; 0x1800];
        for (index, byte) in source.iter_mut().enumerate() {
            *byte = (index * 7 % 251) as u8 | 1;
        }
        // SAFETY: all offsets are in the window, and all lengths in the buffers; `source` has no zero within.
        unsafe {
            for length in [0, 1, 2, 3, 5, 8, 15, 16, 31, 33, 63, 64, 65, 127, 200, 256, 500, 1000, 3000, 0x1800] {
                let source = source.as_mut_ptr().cast();
                let (device, back) = (at(window, 64 + 3), back.as_mut_ptr().cast());
                libc::memcpy(device, source, length);
                libc::memset(back, 0, length);
                libc::memcpy(back, device, length);
                check!(libc::memcmp(back, source, length), 0);
                check!(libc::memcmp(device, source, length), 0);
                check!(libc::memcmp(source, device, length), 0);
                libc::memmove(at(window, 64 + 30), device, length);
                libc::memmove(device, at(window, 64 + 30), length);
                check!(libc::memcmp(device, source, length), 0);
                at::<u8>(window, 64 + 3 + length).write_volatile(0);
                check!(libc::strlen(device.cast()), length);
                check!(libc::memchr(device, 0, 0x2000), at(window, 64 + 3 + length));
                check!(libc::strcmp(device.cast(), device.cast()), 0);
                libc::memset(device, 0xee, length);
                check!(length > 0 && at::<u8>(window, 64 + 2 + length).read_volatile() != 0xee, false);
            }
        }
        0
    });
    assert_eq!(status, 0);
}

#[test]
fn string_instructions_run_to_their_end() {
    let (status, accesses, device) = run(|window| {
        // SAFETY: 12000 bytes from the window's start, by the instruction's definition.
        unsafe {
            asm!("rep stosb", inout("rcx") 12_000usize => _, inout("rdi") window => _, in("al") 0x5au8);
        }
        0
    });
    assert_eq!((status, accesses), (0, 3));
    assert!(device[..12_000].iter().all(|&byte| byte == 0x5a));
    assert_eq!(device[12_000], 0);
}

#[test]
fn vector_registers_go_through_ptrace_unharmed() {
    let (status, ..) = run(|window| {
        let pattern: [u8; 64] = std::array::from_fn(|index| index as u8 + 1);
        let mut out = [0u8; 256];
        // SAFETY: all accesses are of at most 64 bytes, in `pattern`, `out` and the window; the instructions are run
        // only where the processor has them.
        unsafe {
            asm!(
                "movdqu xmm9, [{p}]", "movdqu [{w}], xmm9", "pxor xmm8, xmm8", "movq xmm8, qword ptr [{w} + 8]",
                "movdqu [{o}], xmm8", "movdqu [{o} + 16], xmm9",
                p = in(reg) pattern.as_ptr(), w = in(reg) window, o = in(reg) out.as_mut_ptr(),
                out("xmm8") _, out("xmm9") _,
            );
            check!(out[..8], pattern[8..16]);
            check!(out[8..16], [0; 8]);
            check!(out[16..32], pattern[..16]);
            asm!(
                "movq mm5, [{p}]", "movq [{w}], mm5", "movq mm2, [{w}]", "movq [{o}], mm2", "movq [{o} + 8], mm5", "emms",
                p = in(reg) pattern.as_ptr(), w = in(reg) window, o = in(reg) out.as_mut_ptr(),
                out("mm2") _, out("mm5") _,
            );
            check!(out[..8], pattern[..8]);
            check!(out[8..16], pattern[..8]);
            if is_x86_feature_detected!("avx2") {
                asm!(
                    "vmovdqu ymm9, [{p}]", "vmovdqu [{w}], ymm9", "vzeroall", "vmovdqu ymm8, [{w}]",
                    "vpcmpeqb ymm9, ymm9, ymm9", "vmovq xmm9, qword ptr [{w}]",
                    "vmovdqu [{o}], ymm8", "vmovdqu [{o} + 32], ymm9",
                    p = in(reg) pattern.as_ptr(), w = in(reg) window, o = in(reg) out.as_mut_ptr(),
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                    out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                );
                check!(out[..32], pattern[..32]);
                check!(out[32..40], pattern[..8]);
                check!(out[40..64], [0; 24]);
            }
            if is_x86_feature_detected!("avx512bw") {
                // A store, a load to each kind of register and a mask; the neighbours must stay.
                asm!(
                    "vmovdqu64 zmm25, [{p}]", "vpternlogd zmm24, zmm24, zmm24, 0xff", "vmovdqu64 [{w}], zmm25",
                    "vpxorq zmm8, zmm8, zmm8", "kxnorq k2, k2, k2", "kmovq k1, [{w}]",
                    "vmovdqu64 zmm8, [{w}]", "vmovdqu64 zmm26, [{w}]",
                    "vmovdqu64 [{o}], zmm8", "vmovdqu64 [{o} + 64], zmm26", "vmovdqu64 [{o} + 128], zmm24",
                    "kmovq [{o} + 192], k1", "kmovq [{o} + 200], k2", "vzeroupper",
                    p = in(reg) pattern.as_ptr(), w = in(reg) window, o = in(reg) out.as_mut_ptr(),
                    out("xmm8") _, out("xmm24") _, out("xmm25") _, out("xmm26") _, out("k1") _, out("k2") _,
                );
                check!(out[..64], pattern);
                check!(out[64..128], pattern);
                check!(out[128..192], [0xff; 64]);
                check!(out[192..200], pattern[..8]);
                check!(out[200..208], [0xff; 8]);
            }
        }
        0
    });
    assert_eq!(status, 0);
}
