//! The seccomp filter of a program that is served: which of its system calls are answered from outside.
//!
//! Few enough that the program does not notice: requests of the type that iommufd and VFIO share, shared mappings of
//! files, and calls on file offsets where no ordinary file ends. What turns out to be about another file goes on as if
//! nothing had been. Reads and writes of the first region, which begins where every file does, come by way of the tree.
//!
//! | call | trapped if |
//! | --- | --- |
//! | `ioctl` | the number's type is `';'`, or it is KVM_SET_DEVICE_ATTR |
//! | `mmap` | a file is shared, or the offset is 2^40 or more |
//! | `pread64`, `pwrite64`, `preadv`, `pwritev`, `preadv2`, `pwritev2` | the offset is 2^40 or more |
//! | `rt_sigaction` | it is about a signal that the handler takes (`trap`), and not the handler's own |
//! | `read`, in a run for Linux's own tests | the length is 0 |
//! | `openat`, in a run for Linux's own tests | always |
//!
//! Everything else is allowed by the filter; the kernel remembers that for calls whose arguments are not looked at.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use ioasid_uapi::{TYPE, kvm};
use ioasid_vfio::device::region::file_offset;

use crate::way::trap::{PASS, SIGNALS};

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// `AUDIT_ARCH_X86_64`
const ARCH_X86_64: u32 = 0xc000_003e;
const OFFSET_OF_NUMBER: u32 = 0;
const OFFSET_OF_ARCH: u32 = 4;

/// Offset in `struct seccomp_data` of the lower half of argument `n`.
const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

/// System calls with a file offset, and which argument it is.
const BY_OFFSET: [(i64, u32); 7] = [
    (libc::SYS_mmap, 5),
    (libc::SYS_pread64, 3),
    (libc::SYS_pwrite64, 3),
    (libc::SYS_preadv, 3),
    (libc::SYS_pwritev, 3),
    (libc::SYS_preadv2, 3),
    (libc::SYS_pwritev2, 3),
];

fn op(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// The filter as a BPF program; with `selftest`, for Linux's own tests, which look more closely than others.
#[must_use]
pub fn program(selftest: bool) -> Vec<libc::sock_filter> {
    let allow = op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
    let notify = op(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0, 0);
    // x86-64's 32-bit and x32 calls are other calls, with numbers of their own; programs of that kind are not served.
    let mut program = vec![op(LOAD, OFFSET_OF_ARCH, 0, 0), op(IF_EQUAL, ARCH_X86_64, 1, 0), allow];
    program.push(op(LOAD, OFFSET_OF_NUMBER, 0, 0));
    program.extend([
        op(IF_EQUAL, libc::SYS_ioctl as u32, 0, 6),
        op(LOAD, argument(1), 0, 0),
        op(IF_EQUAL, kvm::SET_DEVICE_ATTR, 2, 0),
        op(AND, 0xff00, 0, 0),
        op(IF_EQUAL, u32::from(TYPE) << 8, 0, 1),
        notify,
        allow,
    ]);
    if selftest {
        program.extend([
            op(IF_EQUAL, libc::SYS_openat as u32, 0, 1),
            notify,
            op(IF_EQUAL, libc::SYS_read as u32, 0, 3),
            op(LOAD, argument(2), 0, 0),
            op(IF_EQUAL, 0, 0, 1),
            notify,
            op(LOAD, OFFSET_OF_NUMBER, 0, 0),
        ]);
    }
    program.push(op(IF_EQUAL, libc::SYS_rt_sigaction as u32, 0, 9));
    program.extend([op(LOAD, argument(5), 0, 0), op(IF_EQUAL, PASS, 0, 1), allow, op(LOAD, argument(0), 0, 0)]);
    // To the notification, each as far as those behind it are long.
    let [first, second, third] = SIGNALS.map(|signal| signal as u32);
    program.extend([op(IF_EQUAL, first, 2, 0), op(IF_EQUAL, second, 1, 0), op(IF_EQUAL, third, 0, 1), notify, allow]);
    program.extend([
        op(IF_EQUAL, libc::SYS_mmap as u32, 0, 5),
        op(LOAD, argument(3), 0, 0),
        // Of the two kinds of shared mappings, and none that is anonymous, this bit is set.
        op(AND, (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32, 0, 0),
        op(IF_EQUAL, libc::MAP_SHARED as u32, 0, 1),
        notify,
        op(LOAD, OFFSET_OF_NUMBER, 0, 0),
    ]);
    for (number, offset) in BY_OFFSET {
        program.extend([
            op(IF_EQUAL, number as u32, 0, 4),
            op(LOAD, argument(offset) + 4, 0, 0),
            op(IF_AT_LEAST, (file_offset(1) >> 32) as u32, 0, 1),
            notify,
            allow,
        ]);
    }
    program.push(allow);
    program
}

/// Puts this thread, and every thread and process that comes of it, under the filter, and returns the descriptor on
/// which its trapped calls arrive.
///
/// # Errors
/// `EACCES` without CAP_SYS_ADMIN in the user namespace and without `no_new_privs`; `EBUSY` under another filter that
/// has a listener; `EINVAL` on kernels before 5.19.
#[allow(unsafe_code, reason = "seccomp has no safe wrapper")]
pub fn install(selftest: bool) -> io::Result<OwnedFd> {
    let mut program = program(selftest);
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // Once a call is being answered only a fatal signal ends it, so that no request is made twice.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: `filter` points to a valid program that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program on one system call, as the kernel would.
    fn decide(selftest: bool, arch: u32, number: i64, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend((number as u32).to_ne_bytes());
        data.extend(arch.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
        let program = program(selftest);
        let (mut at, mut a) = (0, 0u32);
        loop {
            let op = &program[at];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { op.jt } else { op.jf });
            match op.code {
                LOAD => a = u32::from_ne_bytes(data[op.k as usize..][..4].try_into().unwrap()),
                AND => a &= op.k,
                IF_EQUAL => at += jump(a == op.k),
                IF_AT_LEAST => at += jump(a >= op.k),
                RETURN => return op.k,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn only_what_may_be_ours_is_trapped() {
        let (trap, allow) = (libc::SECCOMP_RET_USER_NOTIF, libc::SECCOMP_RET_ALLOW);
        let call = |number, args| decide(false, ARCH_X86_64, number, args);
        assert_eq!(call(libc::SYS_ioctl, [3, 0x3b81, 0, 0, 0, 0]), trap);
        assert_eq!(call(libc::SYS_ioctl, [3, 0xffff_ffff_0000_3b81, 0, 0, 0, 0]), trap);
        assert_eq!(call(libc::SYS_ioctl, [3, 0x5401, 0, 0, 0, 0]), allow);
        assert_eq!(call(libc::SYS_ioctl, [3, 0x4018_aee1, 0, 0, 0, 0]), trap);
        assert_eq!(call(libc::SYS_ioctl, [3, 0x4018_aee2, 0, 0, 0, 0]), allow);
        assert_eq!(call(libc::SYS_read, [3, 0x3b81, 0, 0, 0, 0]), allow);
        assert_eq!(decide(false, 0x4000_0003, libc::SYS_ioctl, [3, 0x3b81, 0, 0, 0, 0]), allow);
        let test = |length| decide(true, ARCH_X86_64, libc::SYS_read, [3, 0x1000, length, 0, 0, 0]);
        assert_eq!([0, 1, 4096].map(test), [trap, allow, allow]);
        assert_eq!([false, true].map(|test| decide(test, ARCH_X86_64, libc::SYS_openat, [0; 6])), [allow, trap]);
        assert_eq!(decide(true, ARCH_X86_64, libc::SYS_write, [3, 0x1000, 0, 0, 0, 0]), allow);
        assert_eq!(decide(true, ARCH_X86_64, libc::SYS_pread64, [3, 0, 8, 1 << 40, 0, 0]), trap);
        for signal in 1..64 {
            let action = |sixth| call(libc::SYS_rt_sigaction, [signal, 0x1000, 0, 8, 0, sixth]);
            let wanted = if SIGNALS.map(|taken| taken as u64).contains(&signal) { trap } else { allow };
            assert_eq!([action(0), action(PASS.into())], [wanted, allow], "signal {signal}");
        }
        for (number, argument) in BY_OFFSET {
            for (offset, decision) in [(0, allow), (1 << 39, allow), (1 << 40, trap), (7 << 40 | 0x1000, trap)] {
                let mut args = [3, 0, 4096, 0, 0, 0];
                args[argument as usize] = offset;
                assert_eq!(call(number, args), decision, "call {number} at {offset:#x}");
            }
        }
        let map = |flags: i32| call(libc::SYS_mmap, [0, 4096, 3, flags as u64, 3, 0]);
        assert_eq!(
            [libc::MAP_SHARED, libc::MAP_SHARED_VALIDATE, libc::MAP_SHARED | libc::MAP_FIXED].map(map),
            [trap; 3]
        );
        let others =
            [libc::MAP_PRIVATE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS];
        assert_eq!(others.map(map), [allow; 3]);
    }
}
