//! System calls that ask about a file, and what they tell of it.
//!
//! In the tree, a device file is a regular file: the kernel would look for a driver behind any other, and not ask the
//! tree. So what such a call has told is changed before the thread sees it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use super::ptrace;
use crate::way::CharDevice;

/// How often it is asked of a thread that is about to wait, and how long between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_micros(100);

/// Whether a thread is in such a call. What cannot be known is no.
pub(crate) fn is_asking(tid: u32) -> bool {
    for _ in 0..TRIES {
        let Ok(call) = fs::read_to_string(format!("/proc/{tid}/syscall")) else { return false };
        if !call.starts_with("running") {
            let number = call.split(' ').next().and_then(|number| number.parse().ok());
            return number.is_some_and(|number| Answer::of(number, [0; 6]).is_some());
        }
        std::thread::sleep(PAUSE);
    }
    false
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
const FILE_SYSTEM: u64 = 0;
const INODE: u64 = 8;
const MODE: u64 = 24;
const NUMBER: u64 = 40;
const SIZE: u64 = 48;
// Offsets in `struct statx` of `include/uapi/linux/stat.h`.
const STATX_MODE: u64 = 28;
const STATX_INODE: u64 = 32;
const STATX_SIZE: u64 = 40;
const STATX_NUMBER: u64 = 128;
const STATX_FILE_SYSTEM: u64 = 136;

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

    /// That of the call that a stopped thread comes out of, if it has told something.
    pub(super) fn of_stopped(tid: u32) -> Option<Self> {
        let registers = ptrace::registers(tid)?;
        let (number, arguments) = registers.call();
        Self::of(number, arguments).filter(|_| registers.result() == 0)
    }

    /// Has it tell of a character device, if it has told of that file.
    ///
    /// # Errors
    /// If it is not there any more.
    pub(super) fn show(self, memory: &File, device: CharDevice) -> io::Result<()> {
        let (at, inode, mode, size) = match self {
            Self::Stat(at) => (at, INODE, MODE, SIZE),
            Self::Statx(at) => (at, STATX_INODE, STATX_MODE, STATX_SIZE),
        };
        let word = |offset: u64| {
            let mut word = [0; 8];
            memory.read_exact_at(&mut word, at.wrapping_add(offset)).map(|()| word)
        };
        let file_system = match self {
            Self::Stat(_) => u64::from_ne_bytes(word(FILE_SYSTEM)?),
            Self::Statx(_) => {
                let [major, minor]: [u32; 2] = zerocopy::transmute!(word(STATX_FILE_SYSTEM)?);
                libc::makedev(major, minor)
            }
        };
        if (u64::from_ne_bytes(word(inode)?), file_system) != (device.inode, device.file_system) {
            return Ok(());
        }
        let mut half = [0; 2];
        memory.read_exact_at(&mut half, at.wrapping_add(mode))?;
        let permissions = u32::from(u16::from_ne_bytes(half)) & !libc::S_IFMT;
        memory.write_all_at(&((permissions | libc::S_IFCHR) as u16).to_ne_bytes(), at.wrapping_add(mode))?;
        memory.write_all_at(&[0; 8], at.wrapping_add(size))?;
        let (major, minor) = device.number;
        match self {
            Self::Stat(at) => memory.write_all_at(&libc::makedev(major, minor).to_ne_bytes(), at.wrapping_add(NUMBER)),
            Self::Statx(at) => {
                let number = [major.to_ne_bytes(), minor.to_ne_bytes()].concat();
                memory.write_all_at(&number, at.wrapping_add(STATX_NUMBER))
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
            offset_of!(libc::stat, st_dev),
        ];
        assert_eq!(stat.map(|offset| offset as u64), [INODE, MODE, NUMBER, SIZE, FILE_SYSTEM]);
        let statx = [
            offset_of!(libc::statx, stx_ino),
            offset_of!(libc::statx, stx_mode),
            offset_of!(libc::statx, stx_rdev_major),
            offset_of!(libc::statx, stx_size),
            offset_of!(libc::statx, stx_dev_major),
        ];
        let wanted = [STATX_INODE, STATX_MODE, STATX_NUMBER, STATX_SIZE, STATX_FILE_SYSTEM];
        assert_eq!(statx.map(|offset| offset as u64), wanted);
    }

    #[test]
    fn what_was_told_of_another_file_stays() {
        let mut told = [0u64; 18];
        (told[0], told[1]) = (40, 7);
        let memory = &super::super::show::memory_of(std::process::id()).unwrap();
        let answer = Answer::of(libc::SYS_newfstatat, [0, 0, told.as_mut_ptr() as u64, 0, 0, 0]).unwrap();
        let device = CharDevice { inode: 7, file_system: 40, number: (511, 3) };
        for other in [CharDevice { inode: 8, ..device }, CharDevice { file_system: 41, ..device }] {
            answer.show(memory, other).unwrap();
            assert_eq!(std::hint::black_box(&mut told).iter().sum::<u64>(), 47);
        }
        answer.show(memory, device).unwrap();
        let told = std::hint::black_box(&mut told);
        assert_eq!((told[3] as u32, told[5]), (libc::S_IFCHR, libc::makedev(511, 3)));
        Answer::Stat(8).show(memory, device).unwrap_err();
        assert_eq!(Answer::of(libc::SYS_openat, [0; 6]), None);
    }
}
