//! The process that a thread belongs to, and copies from and to its memory.
#![allow(unsafe_code, reason = "process_vm_readv has no safe wrapper")]

use std::fs;

use rustix::io::Errno;
use rustix::process::Pid;

/// The process that a thread belongs to.
pub(crate) fn process_of(tid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{}/status", tid.as_raw_nonzero())).ok()?;
    let number = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())?;
    Pid::from_raw(number)
}

/// As [`process_of`], with numbers.
pub(crate) fn process_of_thread(tid: u32) -> Option<u32> {
    Some(process_of(Pid::from_raw(i32::try_from(tid).ok()?)?)?.as_raw_nonzero().get() as u32)
}

/// Whether two threads are in one memory, as far as the kernel can tell (kcmp(2)).
pub(crate) fn share_memory(one: u32, other: u32) -> bool {
    const KCMP_VM: libc::c_long = 1;
    // SAFETY: takes numbers.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) == 0 }
}

/// Copies memory of a process, all or nothing as far as the caller is told.
pub(crate) fn copy_from_process(tid: u32, address: u64, data: &mut [u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: data.len() };
    // SAFETY: `local` is `data`; the other address is in the other process and checked by the kernel.
    let copied = unsafe { libc::process_vm_readv(tid as i32, &local, 1, &remote, 1, 0) };
    if copied == data.len() as isize { Ok(()) } else { Err(Errno::FAULT) }
}

/// Copies memory to a process, all or nothing as far as the caller is told.
pub(crate) fn copy_to_process(tid: u32, address: u64, data: &[u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: data.len() };
    // SAFETY: `local` is `data`, which is only read; the other address is checked by the kernel.
    let copied = unsafe { libc::process_vm_writev(tid as i32, &local, 1, &remote, 1, 0) };
    if copied == data.len() as isize { Ok(()) } else { Err(Errno::FAULT) }
}
