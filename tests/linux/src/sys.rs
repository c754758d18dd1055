//! System calls, and rows of what they return.

use std::ffi::CString;

/// The names of the errors that rows have.
const NAMES: [(i32, &str); 22] = [
    (libc::E2BIG, "E2BIG"),
    (libc::EACCES, "EACCES"),
    (libc::EBADF, "EBADF"),
    (libc::EBADFD, "EBADFD"),
    (libc::EBUSY, "EBUSY"),
    (libc::EADDRINUSE, "EADDRINUSE"),
    (libc::EEXIST, "EEXIST"),
    (libc::EFAULT, "EFAULT"),
    (libc::EINVAL, "EINVAL"),
    (libc::EIO, "EIO"),
    (libc::EMFILE, "EMFILE"),
    (libc::ENODEV, "ENODEV"),
    (libc::ENOENT, "ENOENT"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::ENOTTY, "ENOTTY"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::EOVERFLOW, "EOVERFLOW"),
    (libc::EPERM, "EPERM"),
    (libc::EDOM, "EDOM"),
    (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT"),
    (libc::ESPIPE, "ESPIPE"),
];

/// What a system call returned, or its errno.
pub(crate) type Outcome = Result<i64, i32>;

/// The outcome of a call that returned this.
pub(crate) fn outcome(result: i64) -> Outcome {
    if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(result) }
}

/// An open file, closed when it is dropped.
pub(crate) struct File(pub(crate) i32);

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: this one's own.
        unsafe { libc::close(self.0) };
    }
}

/// Opens a file for reading and writing.
pub(crate) fn open(path: &str) -> Result<File, i32> {
    let path = CString::new(path).map_err(|_| libc::EINVAL)?;
    // SAFETY: a terminated string.
    outcome(unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) }.into()).map(|file| File(file as i32))
}

/// A request with a number for its argument, or an address where perhaps nothing is.
pub(crate) fn number(file: &File, request: u32, argument: u64) -> Outcome {
    // SAFETY: the kernel checks the address, and what is there is not used otherwise.
    outcome(unsafe { libc::ioctl(file.0, request.into(), argument) }.into())
}

/// A request on `argument`, which is changed by it.
pub(crate) fn ask<T>(file: &File, request: u32, argument: &mut T) -> Outcome {
    number(file, request, std::ptr::from_mut(argument) as u64)
}

/// Reads so many bytes at an offset.
pub(crate) fn read(file: &File, length: usize, offset: u64) -> Outcome {
    let mut data = vec![0u8; length];
    // SAFETY: room for as many bytes.
    outcome(unsafe { libc::pread(file.0, data.as_mut_ptr().cast(), length, offset as i64) } as i64)
}

/// Writes so many bytes at an offset.
pub(crate) fn write(file: &File, data: &[u8], offset: u64) -> Outcome {
    // SAFETY: as many bytes are there.
    outcome(unsafe { libc::pwrite(file.0, data.as_ptr().cast(), data.len(), offset as i64) } as i64)
}

/// Maps so many bytes at an offset, and unmaps them.
pub(crate) fn map(file: &File, length: usize, offset: u64, flags: i32) -> Outcome {
    // SAFETY: a new mapping.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, file.0, offset as i64)
    };
    if at == libc::MAP_FAILED {
        return outcome(-1);
    }
    // SAFETY: the mapping of a moment ago.
    outcome(unsafe { libc::munmap(at, length) }.into())
}

/// Pages of memory.
pub(crate) struct Memory {
    pub(crate) address: u64,
    length: usize,
}

impl Memory {
    pub(crate) fn new(length: usize) -> Self {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        assert!(at != libc::MAP_FAILED, "there is no memory");
        Self { address: at as u64, length }
    }

    /// What a device may write at any time.
    pub(crate) fn bytes(&self) -> &[std::cell::Cell<u8>] {
        // SAFETY: this one's own, as long as it lives; `Cell` allows what others write, where no more than bytes are.
        unsafe { std::slice::from_raw_parts(self.address as *const std::cell::Cell<u8>, self.length) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this one's own.
        unsafe { libc::munmap(self.address as *mut libc::c_void, self.length) };
    }
}

/// The rows so far.
#[derive(Default)]
pub(crate) struct Rows(usize);

impl Rows {
    /// Prints a row: what was asked, and what that returned.
    pub(crate) fn row(&mut self, what: &str, outcome: Outcome) {
        self.0 += 1;
        match outcome {
            Ok(value) => println!("row {what}: {value:#x}"),
            Err(errno) => match NAMES.iter().find(|(number, _)| *number == errno) {
                Some((_, name)) => println!("row {what}: {name}"),
                None => println!("row {what}: errno {errno}"),
            },
        }
    }

    /// A row of a call that gives a file, which is kept out of it.
    pub(crate) fn file(&mut self, what: &str, file: Result<File, i32>) -> Option<File> {
        self.row(what, file.as_ref().map(|_| 0).map_err(|errno| *errno));
        file.ok()
    }

    pub(crate) fn count(&self) -> usize {
        self.0
    }
}
