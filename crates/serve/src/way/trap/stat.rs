//! System calls that ask about a file, and what they tell of it.
//!
//! In the tree, a device file is a regular file: the kernel would look for a driver behind any other, and not ask the
//! tree. So what such a call has told is changed before the thread sees it.

use std::fs;

use rustix::io::Errno;

use super::ptrace::ThreadRegisters;
use crate::program::memory::ThreadMemory;
use crate::way::tracing::CharDevice;

/// Whether a thread is in such a call. What cannot be known is no.
pub(crate) fn is_asking(tid: u32) -> bool {
    let Ok(call) = fs::read_to_string(format!("/proc/{tid}/syscall")) else { return false };
    let number = call.split(' ').next().and_then(|number| number.parse().ok());
    number.is_some_and(|number| Answer::of(number, [0; 6]).is_some())
}

/// Where a call has told of a file, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// A `struct stat` at this address.
    Stat(u64),
    /// A `struct statx`.
    Statx(u64),
}

// Offsets in `struct stat` of `arch/x86/include/uapi/asm/stat.h`.
const INODE: u64 = 8;
const MODE: u64 = 24;
const NUMBER: u64 = 40;
const SIZE: u64 = 48;
// Offsets in `struct statx` of `include/uapi/linux/stat.h`.
const STATX_MODE: u64 = 28;
const STATX_INODE: u64 = 32;
const STATX_SIZE: u64 = 40;
const STATX_NUMBER: u64 = 128;

impl Answer {
    /// That of a call with this number and these arguments.
    fn of(number: i64, arguments: [u64; 6]) -> Option<Self> {
        match number {
            libc::SYS_stat | libc::SYS_fstat | libc::SYS_lstat => Some(Self::Stat(arguments[1])),
            libc::SYS_newfstatat => Some(Self::Stat(arguments[2])),
            libc::SYS_statx => Some(Self::Statx(arguments[4])),
            _ => None,
        }
    }

    /// That of the call that a thread comes out of, if it has told something.
    pub(super) fn in_registers(registers: &ThreadRegisters) -> Option<Self> {
        let (number, arguments) = registers.call();
        Self::of(number, arguments).filter(|_| registers.result() == 0)
    }

    /// Has it tell of a character device, if it has told of that file.
    ///
    /// # Errors
    /// `EFAULT` if it is not there any more.
    pub(super) fn show(self, memory: ThreadMemory<'_>, device: CharDevice) -> Result<(), Errno> {
        let (at, inode, mode, size) = match self {
            Self::Stat(at) => (at, INODE, MODE, SIZE),
            Self::Statx(at) => (at, STATX_INODE, STATX_MODE, STATX_SIZE),
        };
        let mut word = [0; 8];
        memory.read(at.wrapping_add(inode), &mut word)?;
        if u64::from_ne_bytes(word) != device.inode {
            return Ok(());
        }
        let mut half = [0; 2];
        memory.read(at.wrapping_add(mode), &mut half)?;
        let permissions = u32::from(u16::from_ne_bytes(half)) & !libc::S_IFMT;
        memory.write(at.wrapping_add(mode), &((permissions | libc::S_IFCHR) as u16).to_ne_bytes())?;
        memory.write(at.wrapping_add(size), &[0; 8])?;
        let (major, minor) = device.number;
        match self {
            Self::Stat(at) => memory.write(at.wrapping_add(NUMBER), &libc::makedev(major, minor).to_ne_bytes()),
            Self::Statx(at) => {
                let number = [major.to_ne_bytes(), minor.to_ne_bytes()].concat();
                memory.write(at.wrapping_add(STATX_NUMBER), &number)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn the_offsets_are_those_of_the_structures() {
        let stat = [
            offset_of!(libc::stat, st_ino),
            offset_of!(libc::stat, st_mode),
            offset_of!(libc::stat, st_rdev),
            offset_of!(libc::stat, st_size),
        ];
        assert_eq!(stat.map(|offset| offset as u64), [INODE, MODE, NUMBER, SIZE]);
        let statx = [
            offset_of!(libc::statx, stx_ino),
            offset_of!(libc::statx, stx_mode),
            offset_of!(libc::statx, stx_rdev_major),
            offset_of!(libc::statx, stx_size),
        ];
        assert_eq!(statx.map(|offset| offset as u64), [STATX_INODE, STATX_MODE, STATX_NUMBER, STATX_SIZE]);
    }

    #[test]
    fn what_was_told_of_another_file_stays() {
        let mut told = [0u64; 18];
        told[1] = 7;
        let memory = ThreadMemory::stopped(std::process::id());
        let answer = Answer::of(libc::SYS_newfstatat, [0, 0, told.as_mut_ptr() as u64, 0, 0, 0]).unwrap();
        answer.show(memory, CharDevice { inode: 8, number: (511, 3) }).unwrap();
        let before = std::hint::black_box(&mut told).to_vec();
        assert_eq!(before.iter().sum::<u64>(), 7);
        answer.show(memory, CharDevice { inode: 7, number: (511, 3) }).unwrap();
        let told = std::hint::black_box(&mut told);
        assert_eq!((told[3] as u32, told[5]), (libc::S_IFCHR, libc::makedev(511, 3)));
        assert_eq!(Answer::Stat(8).show(memory, CharDevice { inode: 7, number: (0, 0) }), Err(Errno::FAULT));
        assert_eq!(Answer::of(libc::SYS_openat, [0; 6]), None);
    }
}
