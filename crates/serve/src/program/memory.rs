//! The memory of threads: copies from and to it, and whether two have the same.
#![allow(unsafe_code, reason = "process_vm_readv has no safe wrapper")]

use rustix::io::Errno;

/// Whether two threads are in one memory, as far as the kernel can tell (kcmp(2)).
pub(crate) fn share_memory(one: u32, other: u32) -> bool {
    const KCMP_VM: libc::c_long = 1;
    // SAFETY: takes numbers.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) == 0 }
}

/// The memory of a thread that stands still: while it does, its number means it, and later perhaps another's.
#[derive(Clone, Copy)]
pub(crate) struct ThreadMemory<'a> {
    tid: u32,
    stands: &'a dyn Fn() -> bool,
}

impl<'a> ThreadMemory<'a> {
    /// Of a thread that stands as long as `stands` says so.
    pub(crate) fn new(tid: u32, stands: &'a dyn Fn() -> bool) -> Self {
        Self { tid, stands }
    }

    pub(crate) fn tid(self) -> u32 {
        self.tid
    }

    /// Whether the thread still stands.
    pub(crate) fn stands(self) -> bool {
        (self.stands)()
    }

    /// Copies from it, all or nothing as far as the caller is told.
    ///
    /// # Errors
    /// `EFAULT`; `ESRCH` if the thread has gone.
    pub(crate) fn read(self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        copy_from_process(self.tid, address, data)?;
        if self.stands() { Ok(()) } else { Err(Errno::SRCH) }
    }

    /// Copies to it, all or nothing as far as the caller is told.
    ///
    /// # Errors
    /// As [`ThreadMemory::read`].
    pub(crate) fn write(self, address: u64, data: &[u8]) -> Result<(), Errno> {
        if self.stands() { copy_to_process(self.tid, address, data) } else { Err(Errno::SRCH) }
    }
}

impl ThreadMemory<'static> {
    /// Of a thread that this process has stopped by ptrace.
    pub(crate) fn stopped(tid: u32) -> Self {
        Self { tid, stands: &|| true }
    }
}

fn copy_from_process(tid: u32, address: u64, data: &mut [u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: data.len() };
    // SAFETY: `local` is `data`; the other address is in the other process and checked by the kernel.
    let copied = unsafe { libc::process_vm_readv(tid as i32, &local, 1, &remote, 1, 0) };
    if copied == data.len() as isize { Ok(()) } else { Err(Errno::FAULT) }
}

fn copy_to_process(tid: u32, address: u64, data: &[u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: data.len() };
    // SAFETY: `local` is `data`, which is only read; the other address is checked by the kernel.
    let copied = unsafe { libc::process_vm_writev(tid as i32, &local, 1, &remote, 1, 0) };
    if copied == data.len() as isize { Ok(()) } else { Err(Errno::FAULT) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_thread_that_has_gone_is_nobodys() {
        let own = std::process::id();
        let (source, target) = ([7u8; 4], [0u8; 4]);
        let (from, to) = (source.as_ptr() as u64, target.as_ptr() as u64);
        let mut data = [0; 4];
        assert_eq!(ThreadMemory::stopped(own).read(from, &mut data), Ok(()));
        assert_eq!(data, source);
        let gone = ThreadMemory::new(own, &|| false);
        assert_eq!(gone.read(from, &mut data), Err(Errno::SRCH));
        assert_eq!(gone.write(to, &data), Err(Errno::SRCH));
        ThreadMemory::stopped(own).read(to, &mut data).unwrap();
        assert_eq!(data, [0; 4], "nothing was written");
        assert_eq!(ThreadMemory::stopped(own).write(0, &data), Err(Errno::FAULT));
    }
}
